"""Einsum against torch's own, in every usual form; what it becomes, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bounds import Box, Crown, compute_bounds
from bounds.graph import Builder, Graph
from bounds.ops import readers
from bounds.ops.base import OnnxNode, UnsupportedOperatorError

SIZES = {"b": 2, "c": 3, "h": 2, "i": 3, "j": 4, "k": 5, "q": 3, "s": 4, "o": 1}


def read(equation: str, *operands: Tensor | tuple[int, ...]) -> Graph:
    """A tuple is the shape of an input, a tensor a constant."""
    build = Builder()
    ids = tuple(build.constant(o) if isinstance(o, Tensor) else build.input(o) for o in operands)
    node = OnnxNode("Einsum", "sum", {"equation": equation}, ids, 1, 13)
    return build.finish(readers()["Einsum"].from_onnx(node, build))


def shapes_of(equation: str) -> list[tuple[int, ...]]:
    return [
        tuple(SIZES[letter] for letter in term.replace("...", "bh").replace(" ", ""))
        for term in equation.split("->")[0].split(",")
    ]


ONE = ["ij->ji", "ijk->ik", "ij->", "i->i", "ijk", "ji", "...ij->...ji", "bij->ib", "b...j->..."]
TWO = [
    "ij,jk->ik", "ij,kj->ik", "ji,jk->ki", "bij,bjk->bik", "bhqk,bshk->bhqs", "bqhk,bshk->bhqs", "ij,ij->ij", "ij,ij->",
    "ij,ij->i", "i,j->ij", "i,j->ji", "ij,j->i", "i,i->", "ij,jk", "bij,jk->bik", "ij,bjk->bki", "ijk,jk->i",
    "bi,bj->bij", "ij,ji->ij", "ij,k->j", "...ij,...jk->...ik", "...ij,jk->...ik", " i j , j k -> i k ", "oj,ij->ij",
    "ij,oj->io", "...i,i...", "jiq,ijk->kq",
]  # fmt: skip


@pytest.mark.parametrize("equation", ONE)
def test_one_operand(equation: str) -> None:
    (shape,) = shapes_of(equation)
    x = torch.randn(7, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = read(equation, shape).evaluate(x)[0]
    torch.testing.assert_close(found, torch.stack([torch.einsum(equation, v) for v in x]))


@pytest.mark.parametrize("form", ["variable", "first", "second"])
@pytest.mark.parametrize("equation", TWO)
def test_two_operands(equation: str, form: str) -> None:
    """Two variable ones, or either of them constant: then affine, and bounds on a box are exact."""
    random = torch.Generator().manual_seed(1)
    one, two = (torch.randn(7, *shape, dtype=torch.float64, generator=random) for shape in shapes_of(equation))
    fixed = {"variable": (), "first": (0,), "second": (1,)}[form]
    # A constant keeps one sign, so that sizes of its sums are sums of its sizes.
    pair = [-x[:1].abs().expand_as(x) if k in fixed else x for k, x in enumerate((one, two))]
    graph = read(equation, *(x[0] if k in fixed else tuple(x.shape[1:]) for k, x in enumerate(pair)))
    given = [x for k, x in enumerate(pair) if k not in fixed]
    wanted = torch.stack([torch.einsum(equation, a, b) for a, b in zip(*pair, strict=True)])
    torch.testing.assert_close(graph.evaluate(*given)[0], wanted)
    if fixed:
        (x,) = given
        bounds = compute_bounds(graph, Box(x - 0.25, x + 0.25), Crown())
        sizes = [v.abs() if k in fixed else torch.full_like(v, 0.25) for k, v in enumerate(pair)]
        radius = torch.stack([torch.einsum(equation, a, b) for a, b in zip(*sizes, strict=True)])
        torch.testing.assert_close(bounds.lower, wanted - radius)
        torch.testing.assert_close(bounds.upper, wanted + radius)


def operations(graph: Graph) -> set[str]:
    return {type(n.op).__name__ for n in graph.nodes} - {"Input", "Const", "Reshape", "Transpose"}


def test_what_the_usual_forms_become() -> None:
    weight = torch.ones(3, 4, dtype=torch.float64)
    assert operations(read("ij,jk->ik", (2, 3), weight)) == {"Gemm"}
    assert operations(read("ij,kj->ik", (2, 3), weight.T)) == {"Gemm"}
    assert operations(read("bqd,bkd->bqk", (2, 3, 4), (2, 5, 4))) == {"MatrixProduct"}
    assert operations(read("ij,ij->ij", (3, 4), weight)) == {"Mul"}
    assert operations(read("ij,ij->ij", (3, 4), (3, 4))) == {"Product"}
    assert operations(read("i,j->ij", (3,), (4,))) == {"Product", "Expand"}
    assert operations(read("ijk->j", (3, 4, 5))) == {"ReduceSum"}


@pytest.mark.parametrize(
    ("equation", "operands", "error", "why"),
    [
        ("ii->i", [(3, 3)], UnsupportedOperatorError, "'ii->i' takes a diagonal"),
        ("ij,jk,kl->il", [(2, 2)] * 3, UnsupportedOperatorError, "'ij,jk,kl->il' has 3 operands"),
        ("ij,jk->ik", [(2, 3), (4, 2)], ValueError, "'j' the sizes 3 and 4"),
        ("ij,jk->il", [(2, 3), (3, 2)], ValueError, "from nowhere"),
        ("ij,jk->ii", [(2, 3), (3, 2)], ValueError, "twice"),
        ("ij->ij", [(2, 3), (3, 2)], ValueError, "names 1 operands"),
        ("ijk->i", [(2, 3)], ValueError, r"does not fit an operand of shape \(2, 3\)"),
        ("i2->i", [(2, 3)], ValueError, "is not made of letters"),
    ],
)
def test_what_is_refused_is_named(equation: str, operands: list[Any], error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        read(equation, *operands)
