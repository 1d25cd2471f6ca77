"""Bounds of Jacobians: exact difference quotients and sampled gradients never leave them, and norms are what they say.

A difference quotient ``(f(x + h e) - f(x)) / h`` inside the box is a mean of derivatives along a line of the box, so it
lies within the bounds whatever kinks are on the way: in fractions, without any tolerance.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import mpmath
import numpy as np
import pytest
import torch

from bounds import Alpha, Box, Builder, Crown, Graph, Interval
from bounds.compute import Method
from bounds.jacobian import JacobianBounds, jacobian_bounds
from bounds.ops.base import NoDerivativeError, Op
from bounds.ops.bilinear import MatrixProduct, Product
from bounds.ops.extremum import Max
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.ops.shaping import Reshape, Transpose
from bounds.ops.softmax import LogSoftmax, Softmax
from bounds.ops.sshape import Tanh
from bounds.rounding import Rounding

D = torch.float64
mpf = mpmath.mpf
NORMS = (1, 2, math.inf)


def boxes_of(graph: Graph, rng: np.random.Generator) -> Box:
    """Two boxes, some of whose sides are points."""
    size = graph.nodes[graph.inputs[0]].shape[0]
    middle = torch.from_numpy(rng.normal(size=(2, size)))
    radius = torch.from_numpy(rng.random((2, size)) * rng.choice([0.01, 0.3, 1.5], (2, 1)))
    return Box(middle - radius, middle + radius)


def check(found: JacobianBounds, graph: Graph, box: Box, exact: ModuleType, seed: int) -> None:
    """Exact difference quotients along every input, over tiny and wide steps, against the bounds."""
    rng = np.random.default_rng(seed)
    size = graph.nodes[graph.inputs[0]].shape[0]
    for which in range(2):
        low, high = exact.exact(box.lower[which]), exact.exact(box.upper[which])
        x = low + (high - low) * exact.exact(rng.integers(0, 2, size) if which else rng.random(size))
        start = output(exact, graph, x, seed)
        for i in range(size):
            share = Fraction(1) if rng.random() < 0.3 else Fraction(1, 10**9)
            step = ((low[i] if x[i] * 2 > low[i] + high[i] else high[i]) - x[i]) * share
            moved = x.copy()
            moved[i] += step
            quotient = (output(exact, graph, moved, seed) - start) / step
            for r, value in enumerate(quotient):
                below, above = found.lower[which, r, i].item(), found.upper[which, r, i].item()
                assert not math.isnan(below) and not math.isnan(above)
                assert below == -math.inf or Fraction(below) <= value, (which, r, i)
                assert above == math.inf or value <= Fraction(above), (which, r, i)


def output(exact: ModuleType, graph: Graph, x: np.ndarray, seed: int) -> np.ndarray:
    """The output in fractions; inexact constants are the same ones at every call."""
    return exact.evaluate(graph, x, np.random.default_rng(seed))[graph.outputs[0]].reshape(-1)


@pytest.mark.parametrize("kind", ["plain", "inexact", "cancelling", "huge", "tiny"])
def test_no_difference_quotient_leaves_the_bounds(networks: ModuleType, exact: ModuleType, kind: str) -> None:
    scales = {
        "plain": networks.Scales(),
        "inexact": networks.Scales(single=False, smooth=False),
        "cancelling": networks.Scales(cancel=True, smooth=False),
        "huge": networks.Scales(weight=1e8, smooth=False),
        "tiny": networks.Scales(weight=1e-160, single=False, smooth=False),
    }[kind]
    finite = 0
    for seed in range(24 if kind == "plain" else 10):
        rng = np.random.default_rng(seed)
        graph = networks.random_graph(rng, scales)
        box = boxes_of(graph, rng)
        found = jacobian_bounds(graph, box)
        finite += int(torch.isfinite(found.lower).sum())
        check(found, graph, box, exact, seed)
    assert finite > 20


@pytest.mark.parametrize("method", [Interval(), Alpha(steps=3)], ids=repr)
def test_every_method_bounds_the_operands(networks: ModuleType, exact: ModuleType, method: Method) -> None:
    for seed in range(40, 46):
        rng = np.random.default_rng(seed)
        graph = networks.random_graph(rng)
        box = boxes_of(graph, rng)
        check(jacobian_bounds(graph, box, method), graph, box, exact, seed)


def affine(build: Builder, x: int, draw: torch.Generator, width: int) -> int:
    weight = torch.randn((build.shape(x)[0], width), generator=draw, dtype=D) * build.shape(x)[0] ** -0.5
    return build.add(Gemm(), x, build.constant(weight), build.constant(torch.randn(width, generator=draw, dtype=D)))


def layered(op: Op, seed: int = 0, depth: int = 2) -> Graph:
    """Five inputs, ``depth`` layers of eight, three outputs."""
    draw = torch.Generator().manual_seed(seed)
    build = Builder()
    x = build.input((5,), "x")
    for _ in range(depth):
        x = build.add(op, affine(build, x, draw, 8))
    return build.finish([affine(build, x, draw, 3)])


def sampled(graph: Graph, box: Box, count: int) -> torch.Tensor:
    """Jacobians ``[count, N, R, inputs]`` at random points, by autograd."""
    share = torch.rand((count, *box.lower.shape), dtype=D, generator=torch.Generator().manual_seed(1))
    points = (box.lower + share * (box.upper - box.lower)).flatten(0, 1).requires_grad_()
    (value,) = graph.evaluate(points)
    rows = [torch.autograd.grad(value[:, r].sum(), points, retain_graph=True)[0] for r in range(value.shape[1])]
    return torch.stack(rows, 1).reshape(count, box.size, len(rows), -1)


@pytest.mark.parametrize("op", [Relu(), Tanh()], ids=repr)
def test_bounds_hold_the_gradients_and_shrink_to_them(op: Op) -> None:
    graph = layered(op)
    widths = []
    for radius in (0.5, 0.02, 0.0):
        middle = torch.randn((2, 5), dtype=D, generator=torch.Generator().manual_seed(3))
        box = Box(middle - radius, middle + radius)
        found, gradients = jacobian_bounds(graph, box), sampled(graph, box, 50)
        slack = 1e-12 if radius == 0 else 0.0
        assert (found.lower - slack <= gradients.amin(0)).all() and (found.upper + slack >= gradients.amax(0)).all()
        widths.append((found.upper - found.lower).amax().item())
    assert widths[0] > 10 * widths[2] and widths[0] >= widths[1] >= widths[2] and widths[2] < 1e-12


def test_a_linear_function_has_its_matrix() -> None:
    weight = torch.randn((4, 3), dtype=D, generator=torch.Generator().manual_seed(0))
    build = Builder()
    graph = build.finish([build.add(Gemm(), build.input((4,)), build.constant(weight))])
    found = jacobian_bounds(graph, Box.around(torch.zeros(4, dtype=D), 1.0))
    assert (found.lower <= weight.T).all() and (found.upper >= weight.T).all()
    assert (found.upper - found.lower).amax() < 1e-14
    for p in NORMS:
        matrix = weight.T.abs() if p == 2 else weight.T
        truth = torch.linalg.matrix_norm(matrix, p)
        assert truth <= found.norm(p)[0] <= truth * 1.001
        dual = {1: math.inf, 2: 2, math.inf: 1}[p]
        assert torch.allclose(found.row_norms(p)[0], torch.linalg.vector_norm(weight.T, dual, dim=1))


@pytest.mark.parametrize("p", NORMS)
def test_no_difference_is_larger_than_the_norms_allow(p: float) -> None:
    for seed, op in enumerate((Relu(), Tanh(), Relu())):
        graph = layered(op, seed)
        box = boxes_of(graph, np.random.default_rng(seed))
        found = jacobian_bounds(graph, box)
        draw = torch.Generator().manual_seed(seed)
        shares = torch.rand((2, 400, *box.lower.shape), dtype=D, generator=draw)
        shares[1, 200:] = (shares[0, 200:] + 1e-3 * shares[1, 200:]).clamp(max=1)
        x, y = (box.lower + share * (box.upper - box.lower) for share in shares)
        one, two = (graph.evaluate(point.flatten(0, 1))[0].reshape(400, 2, -1) for point in (x, y))
        distance = torch.linalg.vector_norm(x - y, p, dim=-1)
        moved = torch.linalg.vector_norm(one - two, p, dim=-1)
        slack = 1 + 1e-9  # differences of computed values
        assert (moved <= found.norm(p) * distance * slack + 1e-12).all()
        assert ((one - two).abs() <= found.row_norms(p) * distance.unsqueeze(-1) * slack + 1e-12).all()
        assert (found.row_norms(p) > 0).all()
        assert (found.norm(2) <= (found.norm(1) * found.norm(math.inf)).sqrt() * (1 + 1e-3)).all()


def attention(op: Op, seed: int) -> Graph:
    """Six inputs as two matrices of different rows: ``op`` of their product, times one of them, and elementwise."""
    draw = torch.Generator().manual_seed(seed)
    build = Builder()
    x = build.input((6,), "x")
    one, two = (build.add(Reshape((3, 2)), affine(build, x, draw, 6)) for _ in range(2))
    scores = build.add(op, build.add(MatrixProduct(), one, build.add(Transpose((1, 0)), two)))
    mixed = build.add(Product(), build.add(MatrixProduct(), scores, two), one)
    return build.finish([affine(build, build.add(Reshape((6,)), mixed), draw, 2)])


@pytest.mark.parametrize("op", [Softmax(-1), Softmax(-2), LogSoftmax(-1), Tanh()], ids=repr)
def test_products_and_softmax(op: Op) -> None:
    for seed in range(3):
        graph = attention(op, seed)
        for radius in (0.3, 1e-3, 0.0):
            middle = torch.randn((2, 6), dtype=D, generator=torch.Generator().manual_seed(seed))
            box = Box(middle - radius, middle + radius)
            found, gradients = jacobian_bounds(graph, box), sampled(graph, box, 30)
            slack = 1e-11  # of autograd
            assert (found.lower - slack <= gradients.amin(0)).all() and (found.upper + slack >= gradients.amax(0)).all()
            if radius < 0.1:
                assert (found.upper - found.lower).amax() < 1e4 * radius + 1e-10


def test_rows_are_derivatives_of_forms() -> None:
    graph = layered(Relu())
    box = boxes_of(graph, np.random.default_rng(0))
    rows = torch.tensor([[1.0, -1.0, 0.0], [0.5, 0.25, -2.0]], dtype=D)
    found, gradients = jacobian_bounds(graph, box, rows=rows), sampled(graph, box, 50)
    forms = torch.einsum("kr,snri->snki", rows, gradients)
    assert found.lower.shape == (2, 2, 5)
    assert (found.lower <= forms.amin(0)).all() and (found.upper >= forms.amax(0)).all()


def test_boxes_in_chunks_give_what_single_boxes_give(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = layered(Tanh())
    box = boxes_of(graph, np.random.default_rng(0))
    whole = jacobian_bounds(graph, box)
    for elements in (1, 20, 50):
        monkeypatch.setattr("bounds.jacobian._CHUNK", elements)
        parts = jacobian_bounds(graph, box)
        assert torch.allclose(whole.lower, parts.lower, atol=1e-12) and torch.allclose(whole.upper, parts.upper)
    single = jacobian_bounds(graph, box.take(torch.tensor([1])))
    assert torch.allclose(whole.lower[1], single.lower[0], atol=1e-12)


def test_a_kink_at_an_end_counts() -> None:
    """Clarke's Jacobian of a ReLU at 0 is [0, 1], at the end of a box too; a maximum likewise."""
    build = Builder()
    x = build.input((1,))
    y = build.add(Gemm(), x, build.constant(torch.tensor([[3.0]])))
    graph = build.finish([build.add(Max(), x, y)])
    found = jacobian_bounds(graph, Box(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])))
    assert found.lower[0] <= 1 and found.upper[0] >= 3
    assert abs(found.lower[1] - 3) < 1e-14 and abs(found.upper[1] - 3) < 1e-14
    build = Builder()
    graph = build.finish([build.add(Relu(), build.input((1,)))])
    found = jacobian_bounds(graph, Box(torch.tensor([[0.0], [-1.0]]), torch.tensor([[1.0], [0.0]])))
    assert (found.lower.abs() < 1e-14).all() and (found.upper >= 1).all()


def test_an_operator_without_a_derivative_is_named() -> None:
    class Step(Relu):
        """A function that says nothing of its derivative."""

        def derivative_range(self, *arguments: object, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
            raise NoDerivativeError("Step jumps")

    build = Builder()
    x = build.add(Step(), build.input((2,)), name="first")
    graph = build.finish([build.add(Step(), x, name="second")])
    with pytest.raises(NoDerivativeError, match=r"node 1 'first': Step jumps; node 2 'second': Step jumps"):
        jacobian_bounds(graph, Box.around(torch.zeros(2), 1.0))


def test_what_is_wrong_is_named() -> None:
    graph = layered(Relu())
    box = Box.around(torch.zeros(5), 0.1)
    with pytest.raises(ValueError, match="semantics 'float32'"):
        jacobian_bounds(graph, box, semantics="float32")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"rows of shape \(2, 4\)"):
        jacobian_bounds(graph, box, rows=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="norms 1, 2 and infinity"):
        jacobian_bounds(graph, box).norm(3)


def test_search_needs_no_claim() -> None:
    graph, box = layered(Relu()), Box.around(torch.zeros(5), 0.3)
    proven, found = jacobian_bounds(graph, box, Crown()), jacobian_bounds(graph, box, Crown(), semantics=None)
    assert found.semantics is None and found.lower.dtype == torch.float32
    assert torch.allclose(found.lower.double(), proven.lower, atol=1e-5)


# Every operator -------------------------------------------------------------------------------------------------------


def helper(name: str) -> ModuleType:
    """A file of ``tests/helpers``, which is no package."""
    if name not in sys.modules:
        path = Path(__file__).resolve().parents[1] / "helpers" / f"{name}.py"
        specification = importlib.util.spec_from_file_location(name, path)
        assert specification is not None and specification.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def test_derivatives_of_every_operator() -> None:
    """Chords lie in the range of the derivative (by the mean value theorem), exactly and on dangerous intervals."""
    silent = []
    relaxations = helper("relaxations")
    for example in helper("nonlinear_examples").EXAMPLES:
        for random in (None, 24):
            variable = relaxations.variables(example, D, random)
            try:
                ranges = example.op.derivatives(example.operands(variable), Rounding.of(D))
            except NoDerivativeError:
                silent.append(example)
                break
            for k in range(example.arity):
                low, high = (end.expand_as(variable[0][0]).flatten().tolist() for end in ranges[k])
                for n, (below, above) in list(enumerate(zip(low, high, strict=True)))[:: 1 if random else 4]:
                    helper("chords").check_chords(
                        example, [(float(a[n]), float(b[n])) for a, b in variable], k, (below, above), n
                    )
    assert all(example.jumps for example in silent), [example.name for example in silent]
