"""What an ascent keeps gives its bounds again, bit for bit and without any search; anything else is noticed."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bounds import kept as keeping
from bounds import propagate as propagation
from bounds.ascent import optimised
from bounds.box import Box
from bounds.graph import Builder, Graph
from bounds.kept import Kept, arrays, coarse, crowned, fine, half, of_arrays, reproved
from bounds.ops.base import Op
from bounds.ops.bilinear import MatrixProduct
from bounds.ops.conv import Conv
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.ops.shaping import Reshape, Transpose
from bounds.ops.softmax import Softmax
from bounds.ops.sshape import Sigmoid
from bounds.plan import Plan, prepare
from bounds.propagate import crown, propagate
from bounds.rounding import Rounding
from bounds.work import Account

D = torch.float64
Bounds = dict[int, tuple[Tensor, Tensor]]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def dense(op: Op) -> Graph:
    """Four layers of ten neurons between five inputs and three outputs."""
    build = Builder()
    x = build.input((5,))
    for k in range(4):
        weight = build.constant(0.6 * normal(k, build.shape(x)[0], 10))
        x = build.add(op, build.add(Gemm(), x, weight, build.constant(normal(k + 9, 10))))
    return build.finish([build.add(Gemm(), x, build.constant(normal(20, 10, 3)))])


def images(op: Op) -> Graph:
    """Convolutions, whose neurons see patches; at the end whole images."""
    build = Builder()
    x = build.input((1, 2, 16, 16))
    for k, (kernel, pads) in enumerate(((3, (1, 1, 1, 1)), (2, (0, 1, 1, 0)))):
        weight = build.constant(normal(k, 4, build.shape(x)[1], kernel, kernel) / 2)
        x = build.add(op, build.add(Conv((2, 2), (1, 1), pads, 1), x, weight, build.constant(normal(k + 5, 4) / 2)))
    size = math.prod(build.shape(x))
    x = build.add(Gemm(), build.add(Reshape((size,)), x), build.constant(normal(8, size, 6)))
    return build.finish([build.add(Gemm(), build.add(op, x), build.constant(normal(9, 6, 2)))])


def coupled(op: Op) -> Graph:
    """A product of two neurons' rows, a softmax over them, and neurons behind it."""
    build = Builder()
    x = build.input((4, 3))
    one, two = (build.add(op, build.add(Gemm(), x, build.constant(normal(k, 3, 3)))) for k in (1, 2))
    scores = build.add(MatrixProduct(), one, build.add(Transpose((1, 0)), two))
    x = build.add(Reshape((12,)), build.add(MatrixProduct(), build.add(Softmax(-1), scores), two))
    x = build.add(op, build.add(Gemm(), x, build.constant(normal(4, 12, 8)), build.constant(normal(5, 8) / 9)))
    return build.finish([build.add(Gemm(), x, build.constant(normal(6, 8, 2)))])


CASES = [
    pytest.param(make(op), id=f"{make.__name__}, {type(op).__name__}")
    for make, op in (
        (dense, Relu()),
        (dense, Sigmoid()),
        (images, Relu()),
        (images, Sigmoid()),
        (coupled, Relu()),
        (coupled, Sigmoid()),
    )
]


def plans(graph: Graph) -> tuple[Plan, Plan]:
    return prepare(graph, torch.float32), prepare(graph, D, rounding=Rounding.of(D))


def box(plan: Plan, count: int = 1, radius: float = 0.15) -> Box:
    middle = normal(30, count, *plan.graph.nodes[plan.input].shape)
    return Box(middle - radius, middle + radius)


def searched(graph: Graph, count: int = 1, steps: int = 5, **how: object) -> tuple[Plan, Bounds, dict[int, Kept]]:
    search, plan = plans(graph)
    kept: dict[int, Kept] = {}
    tighten = optimised(search, steps, keep=kept.__setitem__, **how)  # type: ignore[arg-type]
    state, _ = propagate(plan, box(plan, count), tighten=tighten)
    return plan, dict(state.bounds), kept


def again(plan: Plan, kept: dict[int, Kept], count: int = 1) -> Bounds:
    stored = {node: of_arrays({k: v.clone() for k, v in arrays(one).items()}) for node, one in kept.items()}
    state, _ = propagate(plan, box(plan, count), tighten=reproved(stored))
    return dict(state.bounds)


def same(one: Bounds, two: Bounds) -> bool:
    return all(torch.equal(a, b) for n in one for a, b in zip(one[n], two[n], strict=True))


def width(bounds: Bounds) -> float:
    return sum(float((high - low).sum()) for low, high in bounds.values())


@pytest.mark.parametrize("graph", CASES)
@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_bounds_are_proven_again(graph: Graph, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, found, kept = searched(graph, count)
    plain, _ = propagate(plan, box(plan, count), tighten=crown)
    assert any(one.chosen for one in kept.values()) and width(found) < 0.999 * width(dict(plain.bounds))
    monkeypatch.setattr("bounds.ascent.climb", None)
    monkeypatch.setattr("bounds.patch_ascent.climb", None)
    assert same(again(plan, kept, count), found)


@torch.no_grad()
def test_patches_are_decided_over_patches() -> None:
    _, plan = plans(images(Relu()))
    _, _, kept = searched(images(Relu()))
    seen = [n for n, one in kept.items() if one.chosen and keeping.frames(plan, n) is not None]
    assert len(seen) == 1 and max(kept) > seen[0], "one layer over patches, another over whole images"


@pytest.mark.parametrize("graph", CASES)
@torch.no_grad()
def test_few_bits_cost_little(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against an ascent that decides with its parameters as they are."""
    _, found, _ = searched(graph)
    monkeypatch.setattr(keeping, "coarse", lambda values: values.double())
    monkeypatch.setattr(keeping, "half", lambda values: values.double())
    _, whole, _ = searched(graph)
    assert not same(found, whole), "the parameters are rounded"
    assert width(found) <= width(whole) * (1 + 2e-4)


@torch.no_grad()
def test_another_slope_is_another_bound_that_holds() -> None:
    graph = dense(Relu())
    plan, found, kept = searched(graph)
    node = max(n for n, one in kept.items() if one.chosen)
    (first, *rest) = kept[node].chosen
    values = {side: 255 - v for side, v in first.values.items()}
    kept[node] = replace(kept[node], chosen=(replace(first, values=values), *rest))
    other = again(plan, kept)
    assert not same(other, found)
    inputs = box(plan)
    points = inputs.lower + (inputs.upper - inputs.lower) * torch.rand((500, 5), generator=torch.Generator(), dtype=D)
    value = replace(graph, outputs=(node,)).evaluate(points)[0]
    assert bool((value >= other[node][0] - 1e-9).all() and (value <= other[node][1] + 1e-9).all())


@pytest.mark.parametrize("limit", [0, 1 << 12])
@torch.no_grad()
def test_what_an_account_leaves_to_crown_is_left_to_it_again(limit: float) -> None:
    plan, found, kept = searched(dense(Sigmoid()), account=Account(limit))
    assert same(again(plan, kept), found)


@pytest.mark.parametrize("moment", range(2, 14, 2))
@pytest.mark.parametrize("ascent", [False, True])
@torch.no_grad()
def test_what_time_cuts_off_is_cut_off_again(moment: int, ascent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any moment, in the middle of a node's rows; some of them are screened by parallel lines first."""
    search, plan = plans(images(Relu()))
    search, plan = replace(search, memory=1 << 17), replace(plan, memory=1 << 17)
    monkeypatch.setattr(propagation, "SCREEN_FROM", 0)
    kept: dict[int, Kept] = {}
    calls = iter(range(1 << 20))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(calls)))
    tighten = optimised(search, 3, float(moment), keep=kept.__setitem__) if ascent else crowned(
        float(moment), kept.__setitem__
    )
    state, _ = propagate(plan, box(plan), tighten=tighten)
    found = dict(state.bounds)
    full, _ = propagate(plan, box(plan), tighten=optimised(search, 3) if ascent else crown)
    assert width(dict(full.bounds)) < width(found), "something was cut off"
    assert same(again(plan, kept), found)


@torch.no_grad()
def test_what_does_not_fit_is_refused() -> None:
    plan, _, kept = searched(dense(Relu()))
    node = max(n for n, one in kept.items() if one.chosen)
    chunk = kept[node].chosen[0]

    def having(chunk: keeping.Chosen) -> dict[int, Kept]:
        return {**kept, node: replace(kept[node], chosen=(chunk,))}

    with pytest.raises(ValueError, match="not among"):
        again(plan, having(replace(chunk, rows=chunk.rows + 10)))
    with pytest.raises(ValueError, match="do not fit what is free"):
        again(plan, having(replace(chunk, values={side: v[1:] for side, v in chunk.values.items()})))
    with pytest.raises(ValueError, match="do not fit what is free"):
        again(plan, having(replace(chunk, values={})))
    stored = arrays(kept[node])
    with pytest.raises(ValueError, match="kept rows"):
        of_arrays({**stored, "rows": stored["rows"][1:]})
    with pytest.raises(ValueError, match="kept parameters"):
        of_arrays({**stored, "chunks": stored["chunks"][:, 1:]})
    with pytest.raises(ValueError, match="kept parameters"):
        of_arrays({**stored, "chunks": -stored["chunks"]})
    with pytest.raises(ValueError, match="kept parameters"):  # a chunk of no rows
        of_arrays({**stored, "chunks": torch.cat([stored["chunks"], 0 * stored["chunks"]])})
    with pytest.raises(ValueError, match="walked: a row comes twice"):
        of_arrays({**stored, "walked": torch.zeros(2, dtype=torch.int32)})


def test_numbers_of_few_bits() -> None:
    grid = torch.arange(256, dtype=D) / 255
    assert torch.equal(coarse(grid), torch.arange(256, dtype=torch.uint8))
    assert torch.equal(fine(coarse(grid.float())), grid)
    assert coarse(torch.tensor([-1.0, 2.0, torch.nan, 0.5 / 255 + 1e-6])).tolist() == [0, 255, 0, 1]
    assert bool(torch.isfinite(half(torch.tensor([torch.inf, -torch.inf, torch.nan, 1e30]))).all())
