"""What is claimed is true: no exact point leaves bounds of semantics "real", no float32 result those of "float32"."""

from __future__ import annotations

from fractions import Fraction
from types import ModuleType

import numpy as np
import pytest
import torch

from bounds import Alpha, Box, Builder, Crown, Graph, Interval, compute_bounds
from bounds.box import LpBall
from bounds.compute import Bounds
from bounds.methods import Forward, Method
from bounds.ops.arithmetic import Add
from bounds.ops.exponential import Log
from bounds.ops.gemm import Gemm
from bounds.ops.piecewise import PRelu
from bounds.ops.powers import Sqrt
from bounds.ops.relu import Relu
from bounds.ops.univariate import Univariate
from bounds.rounding import Rounding

D = torch.float64
METHODS: tuple[Method, ...] = (Interval(), Forward(), Crown(), Alpha(steps=2))
KINDS = ("box", "point", "l1", "l2")


def region(rng: np.random.Generator, size: int, kind: str, dtype: torch.dtype = D) -> Box | LpBall:
    """Three sets of one kind, of very different sizes."""
    centre = torch.from_numpy(rng.normal(size=(3, size))).to(dtype)
    radius = torch.tensor([1.0, 1e-3, 1e-9], dtype=dtype)
    if kind in ("l1", "l2"):
        limit = torch.full((1, size), 1.5, dtype=dtype)
        centre = centre.clamp(-1.4, 1.4)
        return LpBall(centre, radius * size**0.5, int(kind[1]), Box(-limit, limit))
    spread = torch.from_numpy(rng.random((3, size))).to(dtype) * (radius[:, None] if kind == "box" else 0.0)
    return Box(centre - spread, centre + spread)


def inside(exact: ModuleType, rng: np.random.Generator, given: Box | LpBall, k: int) -> np.ndarray:
    """A point exactly in set k: for a box often a corner, for a ball one near its surface, all in fractions."""
    if isinstance(given, Box):
        low, high = exact.exact(given.lower[k].double()), exact.exact(given.upper[k].double())
        share = rng.integers(0, 2, low.shape) if rng.random() < 0.5 else rng.random(low.shape)
        return low + (high - low) * exact.exact(share)
    assert given.within is not None
    centre, radius = exact.exact(given.centre[k].double()), Fraction(float(given.radius[k]))
    low, high = (exact.exact(b[0].double()) for b in (given.within.lower, given.within.upper))
    away = rng.normal(size=centre.shape)
    away = np.eye(away.size)[0] * away if rng.random() < 0.3 else away
    away /= np.abs(away).sum() if given.p == 1 else np.sqrt((away**2).sum())
    step = exact.exact(away) * radius * (1 - Fraction(1, 2**45))
    x = np.minimum(np.maximum(centre + step, low), high)
    length = sum(abs(v) for v in x - centre) if given.p == 1 else sum(v * v for v in x - centre)
    assert length <= (radius if given.p == 1 else radius**2)
    return x


def check(found: Bounds, values: dict[int, np.ndarray], output: int, k: int) -> None:
    for node in found.intervals:
        lower, upper = found.at(node)
        holds(lower[k], values[node], upper[k])
    holds(found.lower[k], values[output], found.upper[k])


def holds(lower: torch.Tensor, values: np.ndarray, upper: torch.Tensor) -> None:
    for low, value, high in zip(
        lower.flatten().tolist(), np.ravel(values).tolist(), upper.flatten().tolist(), strict=True
    ):
        assert low == low and high == high and low != np.inf and high != -np.inf
        assert low == -np.inf or Fraction(low) <= value
        assert high == np.inf or value <= Fraction(high)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_no_exact_point_leaves_the_bounds(networks: ModuleType, exact: ModuleType, method: Method, kind: str) -> None:
    """Random networks over all old operators: plain, cancelling, of weights 1e8, of weights that underflow."""
    scales = (
        networks.Scales(),
        networks.Scales(cancel=True, smooth=False),
        networks.Scales(weight=1e8, single=False, smooth=False),
        networks.Scales(weight=1e-160, single=False),
    )
    for seed, scale in enumerate(scales):
        rng = np.random.default_rng([seed, KINDS.index(kind)])
        graph = networks.random_graph(rng, scale, image=bool(seed % 2))
        sets = region(rng, graph.nodes[graph.inputs[0]].shape[0], kind)
        found = compute_bounds(graph, sets, method)
        for k in range(3):
            x = inside(exact, rng, sets, k)
            check(found, exact.evaluate(graph, x, rng), graph.outputs[0], k)


def cancelling(rng: np.random.Generator, size: int, scale: float) -> Graph:
    """Pairs of weights that nearly cancel, ``s w`` and ``-s w (1 + tiny)``, three layers deep, with a residual sum."""
    build = Builder()
    x = before = build.input((size,), "x")
    for layer in range(3):
        half = rng.normal(size=(size // 2, size)) * scale
        other = -half * (1 + rng.normal(size=half.shape) * 2.0**-50)
        weight = torch.from_numpy(np.concatenate([half, other]))
        bias = torch.from_numpy(rng.normal(size=size) * (scale if layer else 1.0))
        x = build.add(Gemm(), x, build.constant(weight), build.constant(bias))
        x = build.add(Relu(), x) if layer < 2 else x
        x = build.add(Add(), x, before) if layer == 1 else x
        scale = min(1 / scale, 1e150)
    return build.finish([x])


@pytest.mark.parametrize("scale", [1e8, 2.0**-1060, 1e-300, 1e150])
def test_cancellation_and_subnormals(exact: ModuleType, scale: float) -> None:
    """Sums of pairs around 1e8, products below the normal range, sums near the end of the range."""
    for seed, kind in enumerate(KINDS):
        rng = np.random.default_rng(seed)
        graph = cancelling(rng, 6, scale)
        sets = region(rng, 6, kind)
        for method in METHODS:
            found = compute_bounds(graph, sets, method)
            for k in range(3):
                check(found, exact.evaluate(graph, inside(exact, rng, sets, k)), graph.outputs[0], k)


def test_tiny_boxes_around_zero(exact: ModuleType) -> None:
    """Everything subnormal at once: inputs, weights and results."""
    rng = np.random.default_rng(1)
    graph = cancelling(rng, 4, 2.0**-30)
    ends = torch.from_numpy(rng.integers(1, 9, size=(3, 4)) * 5e-324)
    sets = Box(-ends, ends)
    for method in METHODS:
        found = compute_bounds(graph, sets, method)
        for k in range(3):
            check(found, exact.evaluate(graph, inside(exact, rng, sets, k)), graph.outputs[0], k)


@pytest.mark.parametrize("semantics", ["real", "float32"])
def test_lines_hold(networks: ModuleType, exact: ModuleType, semantics: str) -> None:
    """The affine functions that are returned lie below and above in exact arithmetic, as they are."""
    rng = np.random.default_rng(0)
    graph = networks.random_graph(rng, networks.Scales(cancel=True))
    size = graph.nodes[graph.inputs[0]].shape[0]
    for kind in ("box", "l2"):
        sets = region(rng, size, kind)
        found = compute_bounds(graph, sets, Crown(), semantics=semantics).lines  # type: ignore[arg-type]
        for k in range(3):
            x = inside(exact, rng, sets, k)
            y = exact.evaluate(graph, x, rng)[graph.outputs[0]].reshape(-1)
            below = exact.exact(found.lower_rows[k].flatten(1)).dot(x) + exact.exact(found.lower_bias[k])
            above = exact.exact(found.upper_rows[k].flatten(1)).dot(x) + exact.exact(found.upper_bias[k])
            assert (below <= y).all() and (y <= above).all()


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_no_float32_result_leaves_the_bounds(networks: ModuleType, singles: ModuleType, method: Method) -> None:
    """Sums in several orders, at float32 points; the exact value is covered too (it is one more order, in a way)."""
    scales = (
        networks.Scales(),
        networks.Scales(cancel=True),
        networks.Scales(weight=100.0, smooth=False),
        networks.Scales(weight=1e-12),
    )
    for seed, scale in enumerate(scales):
        for kind in ("point", "box", "l2"):
            rng = np.random.default_rng([seed, len(kind)])
            graph = networks.random_graph(rng, scale, image=bool(seed % 2))
            sets = region(rng, graph.nodes[graph.inputs[0]].shape[0], kind, torch.float32)
            found = compute_bounds(graph, sets, method, semantics="float32")
            real = compute_bounds(graph, sets, method)
            if isinstance(method, Interval):  # other methods may choose better lines for wider intervals
                assert bool((found.lower <= real.lower).all() and (found.upper >= real.upper).all())
            for k in range(3):
                x = single_point(rng, sets, k)
                check(found, singles.evaluate(graph, x, rng), graph.outputs[0], k)
                torch_values = graph.values(torch.from_numpy(x)[None])
                check(found, {i: torch_values[i][0].numpy() for i in found.intervals}, graph.outputs[0], k)


def single_point(rng: np.random.Generator, given: Box | LpBall, k: int) -> np.ndarray:
    """A float32 point of set k."""
    if isinstance(given, Box):
        low, high = given.lower[k].numpy(), given.upper[k].numpy()
        corner = np.where(rng.random(low.shape) < 0.5, low, high)
        return np.clip(low + (high - low) * rng.random(low.shape).astype(np.float32), low, high) if k else corner
    away = rng.normal(size=given.centre[k].shape)
    x = given.centre[k].numpy() + away / np.sqrt((away**2).sum()) * float(given.radius[k]) * 0.999
    x = torch.from_numpy(x).float().clamp(-1.5, 1.5)
    return (x if bool(given.take(torch.tensor([k])).contains(x[None])) else given.centre[k]).numpy()


def test_float32_results_do_leave_real_bounds(networks: ModuleType, singles: ModuleType) -> None:
    """The difference between the two semantics is no formality."""
    rng = np.random.default_rng(0)
    graph = cancelling(rng, 6, 2.0**10)
    sets = region(rng, 6, "point", torch.float32)
    found = compute_bounds(graph, sets, Crown())
    y = singles.evaluate(graph, single_point(rng, sets, 0), rng)[graph.outputs[0]].astype(np.float64)
    assert (y < found.lower[0].numpy()).any() or (y > found.upper[0].numpy()).any()


def test_overflow_in_float32_is_no_information() -> None:
    build = Builder()
    x = build.input((2,), "x")
    big = build.add(Gemm(), x, build.constant(torch.full((2, 1), 3e38, dtype=D)))
    graph = build.finish([build.add(Gemm(), big, build.constant(torch.full((1, 1), 1e-38, dtype=D)))])
    box = Box.around(torch.ones(2), 0.5)
    real, single = compute_bounds(graph, box), compute_bounds(graph, box, semantics="float32")
    assert bool(torch.isfinite(real.lower).all())
    assert bool((single.lower == -torch.inf).all()) and bool((single.upper == torch.inf).all())


def test_constants_that_float32_rounds(singles: ModuleType) -> None:
    """A graph of float64 weights is another network in float32."""
    rng = np.random.default_rng(4)
    graph = cancelling(rng, 4, 1.0)
    box = Box.around(torch.from_numpy(rng.normal(size=4)).float(), 0.0)
    found = compute_bounds(graph, box, semantics="float32")
    y = singles.evaluate(graph, box.lower[0].numpy(), rng)[graph.outputs[0]]
    holds(found.lower[0], y, found.upper[0])


def test_an_inexact_constant_of_a_nonlinear_node_is_refused() -> None:
    """Its lines would take the constant as it stands."""
    build = Builder()
    slope = build.constant(torch.full((2,), 0.1, dtype=D), torch.full((2,), 1e-9, dtype=D))
    graph = build.finish([build.add(PRelu(), build.input((2,), "x"), slope)])
    with pytest.raises(ValueError, match="not exact"):
        compute_bounds(graph, Box.around(torch.zeros(2), 1.0))


@pytest.mark.parametrize("op", [Sqrt(), Log()], ids=repr)
def test_derivatives_at_negative_zero(op: Univariate) -> None:
    """-0.0 is 0: the derivative there is +inf, whatever the sign of the zero is."""
    ends = torch.tensor([-0.0], dtype=D), torch.tensor([1.0], dtype=D)
    ((low, high),) = op.derivatives([ends], Rounding.of(D))
    assert float(low) <= op.derivative(ends[1]) and float(high) == torch.inf


def test_every_elementwise_operator_in_float32(examples: ModuleType) -> None:
    """Each operator at float32 points, as torch computes it: within its own error of its exact value."""
    rng, single, double = np.random.default_rng(0), Rounding.of(torch.float32), Rounding.of(D)
    for example in examples.EXAMPLES:
        low, high = example.domain
        size = 10.0 ** rng.uniform(-4, 1.5, (example.arity, 300))
        points = size * (rng.choice([-1, 1], size.shape) if low < 0 else 1)
        points = np.concatenate(
            [points, np.repeat([[k for k in example.kinks if low <= k <= high]], example.arity, 0)], 1
        )
        given = [torch.from_numpy(p.astype(np.float32)).unsqueeze(0) for p in points]
        operands = example.operands([(x.double(), x.double()) for x in given])
        result = example.op.interval(operands, double)
        error = example.op.roundoff(operands, result, single)
        error = torch.zeros_like(result[0]) if error is None else error
        computed = example.forward(given).double()
        assert bool((result[0] - error <= computed).all() and (computed <= result[1] + error).all()), example.name
