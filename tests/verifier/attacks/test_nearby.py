"""Minimum-distortion attacks: against closed forms, against exact radii, and always inside the range."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

import verifier
from bounds.graph import Builder, Graph
from bounds.ops.gemm import Gemm
from verifier.attacks import problems
from verifier.attacks.goals import Misclassified
from verifier.attacks.nearby.carlini import CarliniWagner, CarliniWagnerSparse
from verifier.attacks.nearby.deepfool import DeepFool
from verifier.attacks.nearby.fab import Fab
from verifier.attacks.nearby.fmn import FastMinimumNorm
from verifier.attacks.nearby.measure import Norm, onto_plane
from verifier.attacks.nearby.polish import Bisect, Restore
from verifier.attacks.nearby.portfolio import Nearest, known_attacks, nearest_examples
from verifier.attacks.nearby.sigma_zero import SigmaZero
from verifier.attacks.oracle import GraphOracle
from verifier.attacks.trial import Attack, Problem, attack
from verifier.errors import InputError
from verifier.network import Network, read_network

WIDE = (Fraction(-10), Fraction(10))
NORMS: tuple[Norm, ...] = ("inf", "2", "1", "0")
QUICK = CarliniWagner("inf", searches=5)
EACH = [(QUICK if a == CarliniWagner("inf") else a, n) for n in NORMS for a in known_attacks(n)]
NAMES = [f"{a.name} {n}" for a, n in EACH]


def affine(weight: np.ndarray, bias: np.ndarray) -> Graph:
    build = Builder()
    x = build.input((weight.shape[0],))
    numbers = [build.constant(torch.from_numpy(a)) for a in (weight, bias)]
    return build.finish([build.add(Gemm(), x, *numbers)])


def classified(graph: Graph, x: np.ndarray, ends: tuple[Fraction, Fraction] | None = WIDE) -> Problem:
    """The examples with the classes that the graph gives them."""
    oracle = GraphOracle.of(graph, torch.from_numpy(x[:1]).dtype)
    labels = oracle.outputs(torch.from_numpy(x)).argmax(1).numpy()
    return problems.classification(oracle, x, labels, problems.whole_range(x, ends))


def check(problem: Problem, found: Nearest, norm: Norm) -> None:
    """Points are of the range and the type, of another class where said, and no further than said."""
    centre, every = problem.threat.centre, torch.arange(problem.size)
    assert found.points.dtype == centre.dtype
    assert bool(problem.threat.contains(found.points, every).all())
    margin = problem.goal.margin(problem.oracle.outputs(found.points), every)
    assert bool((margin[found.found] <= 0).all())
    for point, x, distance in zip(found.points.tolist(), centre.tolist(), found.distance.tolist(), strict=True):
        away = [abs(Fraction(a) - Fraction(b)) for a, b in zip(point, x, strict=True)]
        if math.isinf(distance):
            assert not any(away)
        elif norm == "2":
            assert sum(a * a for a in away) <= Fraction(distance) ** 2
        else:
            true = {"inf": max(away), "1": sum(away), "0": sum(a != 0 for a in away)}[norm]
            assert true <= Fraction(distance) <= true * (1 + Fraction(1, 10**9))


def planes(seed: int = 0) -> tuple[Graph, np.ndarray, Callable[[Norm], Tensor]]:
    """An affine classifier of 4 classes, examples, and their exact distances."""
    random = np.random.default_rng(seed)
    weight, bias = random.standard_normal((6, 4)), random.standard_normal(4)
    x = random.standard_normal((5, 6)).astype(np.float32)

    def exact(norm: Norm) -> Tensor:
        scores = x.astype(np.float64) @ weight + bias
        label = scores.argmax(1)
        least = []
        for row, own in zip(scores, label, strict=True):
            ratios = []
            for k in {0, 1, 2, 3} - {int(own)}:
                slope = weight[:, own] - weight[:, k]
                order = {"inf": 1, "2": 2, "1": np.inf}[norm]
                ratios.append((row[own] - row[k]) / np.linalg.norm(slope, order))
            least.append(min(ratios))
        return torch.tensor(least)

    return affine(weight, bias), x, exact


@pytest.mark.parametrize(("method", "norm"), [e for e in EACH if e[1] != "0"], ids=[n for n in NAMES if n[-1] != "0"])
def test_the_distance_to_a_plane_is_reached(method: Attack, norm: Norm) -> None:
    graph, x, exact = planes()
    problem = classified(graph, x)
    found = nearest_examples(problem, norm, [method])
    check(problem, found, norm)
    ratio = found.distance / exact(norm)
    assert bool((ratio >= 1 - 1e-5).all()), ratio  # margins are those of float32
    assert bool((ratio <= (1.05 if method.name == "cw" else 1.03)).all()), ratio


@pytest.mark.parametrize("method", [SigmaZero(), CarliniWagnerSparse()], ids=lambda a: a.name)
def test_one_element_that_suffices_is_found(method: Attack) -> None:
    """Each element alone is worth its weight, in a range from 0 to 1: only the first can do it, or many others."""
    weight = np.zeros((8, 2))
    weight[:, 1] = [1.0, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]
    problem = classified(affine(weight, np.array([0.9, 0.0])), np.zeros((1, 8), np.float32), (Fraction(0), Fraction(1)))
    found = nearest_examples(problem, "0", [method, Restore()])
    check(problem, found, "0")
    assert found.distance.tolist() == [1.0]


@pytest.fixture(scope="module")
def tiny() -> Network:
    """4 inputs, two layers of 8 ReLUs, 3 classes."""
    random, nodes, values, at = np.random.default_rng(3), [], [], "x"
    for k, (before, after) in enumerate(((4, 8), (8, 8), (8, 3))):
        weight, bias = random.standard_normal((before, after)), random.standard_normal(after) / 4
        values.append(numpy_helper.from_array(weight.astype(np.float32), f"w{k}"))
        values.append(numpy_helper.from_array(bias.astype(np.float32), f"b{k}"))
        nodes.append(helper.make_node("Gemm", [at, f"w{k}", f"b{k}"], [f"y{k}"]))
        at = f"y{k}"
        if k < 2:
            nodes.append(helper.make_node("Relu", [at], [f"z{k}"]))
            at = f"z{k}"
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, d]) for n, d in (("x", 4), (at, 3))]
    graph = helper.make_graph(nodes, "tiny", info[:1], info[1:], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return read_network(model.SerializeToString())


@pytest.mark.parametrize("norm", ["inf", "1"])
def test_against_the_exact_radius(tiny: Network, norm: Norm) -> None:
    """In float64, so that a point is not of another class by float32's rounding alone."""
    x = np.random.default_rng(1).uniform(0, 1, (2, 4))
    problem = classified(tiny.graph, x, (Fraction(0), Fraction(1)))
    exact = [verifier.exact_radius(tiny, row, norm, data_range=(0, 1), gap=1e-7) for row in x]
    lower, upper = (torch.tensor([getattr(e, end) for e in exact]) for end in ("lower", "upper"))
    assert bool(upper.isfinite().any())
    for method in (Fab(norm, steps=20), DeepFool(norm), CarliniWagner(searches=3)):
        found = nearest_examples(problem, norm, [method])
        check(problem, found, norm)
        assert bool((found.distance >= lower - 1e-12).all()), method
    found = nearest_examples(problem, norm)
    check(problem, found, norm)
    assert bool((found.distance >= lower - 1e-12).all())
    near = upper.isfinite()
    assert bool((found.distance[near] <= 1.02 * upper[near]).all()), found.distance / upper


@pytest.mark.parametrize(("method", "norm"), EACH, ids=NAMES)
def test_a_clause_of_a_property(method: Attack, norm: Norm, tmp_path: Path) -> None:
    """The box's middle is the example; the nearest point where y_1 >= y_0 holds."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "plane",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(np.array([[0.0, 2.0], [1.0, 0.0]], np.float32), "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path = tmp_path / "plane.onnx"
    path.write_bytes(model.SerializeToString())
    (tmp_path / "p.vnnlib").write_text(
        "(declare-const X_0 Real)\n(declare-const X_1 Real)\n(declare-const Y_0 Real)\n(declare-const Y_1 Real)\n"
        "(assert (>= X_0 -1))\n(assert (<= X_0 1))\n(assert (>= X_1 0))\n(assert (<= X_1 2))\n"
        "(assert (>= Y_1 Y_0))\n"
    )
    problem = problems.of_clauses(verifier.read(path, tmp_path / "p.vnnlib"))
    found = nearest_examples(problem, norm, [method])  # from (0, 1): 2 x_0 >= x_1
    check(problem, found, norm)
    true = {"inf": 1 / 3, "2": 1 / 5**0.5, "1": 0.5, "0": 1.0}[norm]
    assert true * (1 - 1e-6) <= float(found.distance) <= 1.06 * true


class Flat:
    """An oracle without slopes: each score is the same everywhere."""

    differentiable, rows, device = True, 64, torch.device("cpu")

    def __init__(self, scores: list[float]) -> None:
        self.scores = torch.tensor(scores)

    def outputs(self, points: Tensor) -> Tensor:
        return self.scores + 0 * points.sum(1, keepdim=True)


@pytest.mark.parametrize(("method", "norm"), EACH, ids=NAMES)
@pytest.mark.parametrize("scores", [[1.0, 0.0, 0.5], [1e38, -1e38, 0.0], [math.inf, 0.0, 0.0], [math.nan, 0.0, 1.0]])
def test_nothing_to_go_by(method: Attack, norm: Norm, scores: list[float]) -> None:
    x = torch.tensor([[0.0, 0.5, 1.0]] * 2)
    ends = (Fraction(0), Fraction(1))
    problem = Problem(Flat(scores), Misclassified(torch.tensor([0, 0])), problems.whole_range(x.numpy(), ends))
    found = nearest_examples(problem, norm, [method], budget=60)
    assert not bool(found.found.any()) and torch.equal(found.points, x)
    assert bool((found.evaluations <= 60).all())


@pytest.mark.parametrize(("method", "norm"), EACH, ids=NAMES)
@pytest.mark.parametrize("budget", [3, 40])
def test_budgets_are_kept(method: Attack, norm: Norm, budget: int) -> None:
    graph, x, _ = planes()
    problem = classified(graph, x)
    assert bool((nearest_examples(problem, norm, [method], budget=budget).evaluations <= budget).all())


@pytest.mark.parametrize(("method", "norm"), EACH, ids=NAMES)
def test_any_counterexample_of_a_ball_ends_the_search(method: Attack, norm: Norm) -> None:
    """On a trial without a distance a threat model is left by no point, and examples are done when they are found."""
    graph, x, exact = planes()
    radius = Fraction(4) if norm == "0" else Fraction(float(exact(norm).max()) * 1.2)
    problem = replace(classified(graph, x), threat=problems.ball(x, radius, norm, WIDE))
    found = attack(problem, method, budget=2000)
    assert bool(problem.threat.contains(found.points, torch.arange(len(x))).all())
    assert bool(found.found.all())


@given(st.integers(0, 10**6), st.sampled_from(NORMS), st.booleans())
def test_planes_are_met_with_the_least_change(seed: int, norm: Norm, bounded: bool) -> None:
    """The plane is met inside the range, and no random point of it is nearer; where it is out of reach, no point of
    the range comes nearer to it."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand((1, 5), generator=draw, dtype=torch.float64)
    slope = torch.randn((1, 5), generator=draw, dtype=torch.float64) * (torch.rand((1, 5), generator=draw) < 0.8)
    value = 2 * torch.randn((1,), generator=draw, dtype=torch.float64)
    low, high = (torch.full_like(x, e) for e in ((0.0, 1.0) if bounded else (-math.inf, math.inf)))
    change = onto_plane(x, value, slope, low, high, norm)
    at = x + change
    assert bool(((at >= low - 1e-12) & (at <= high + 1e-12)).all())
    left = float(value + (slope * change).sum())
    corner = torch.where((slope * value) > 0, low, high)
    reach = float((slope.abs() * (corner - x).abs().clamp(max=1e30)).sum())
    if reach < abs(float(value)):
        assert abs(left) == pytest.approx(abs(float(value)) - reach, abs=1e-9)
        return
    assert abs(left) <= 1e-9
    own = float(change.norm(p=float(norm))) if norm != "0" else float((change != 0).sum())
    others = torch.rand((300, 5), generator=draw, dtype=torch.float64) * 2 - 0.5
    others = others.clamp(0, 1) if bounded else others
    met = onto_plane(others, value + ((others - x) * slope).sum(1), slope.expand(300, 5), low, high, "2") + others - x
    on = (value + (met * slope).sum(1)).abs() <= 1e-9
    sizes = met.norm(p=float(norm), dim=1) if norm != "0" else (met.abs() > 1e-9).sum(1).double()
    assert own <= float(sizes[on].min() if bool(on.any()) else math.inf) + 1e-6


def test_points_brought_nearer_stay_counterexamples() -> None:
    graph, x, exact = planes()
    problem = classified(graph, x)
    far = nearest_examples(problem, "2", [DeepFool("inf")])
    found = nearest_examples(problem, "2", [DeepFool("inf"), Bisect(steps=20)])
    check(problem, found, "2")
    assert bool((found.distance <= far.distance).all()) and bool((found.distance >= exact("2") * (1 - 1e-5)).all())
    beyond = DeepFool("2", overshoot=1.0)
    sparse = nearest_examples(problem, "0", [beyond, Restore()])
    check(problem, sparse, "0")
    assert nearest_examples(problem, "0", [beyond]).distance.tolist() == [6.0] * 5
    assert bool((sparse.distance <= 4).all())


def test_the_known_start_and_the_first_radius_are_taken() -> None:
    """A descent with a start in the other class finds it at once, where steps from the example find nothing."""
    graph, x, _ = planes()
    problem = classified(graph, x)
    far = nearest_examples(problem, "2", [DeepFool("inf")]).points
    once = FastMinimumNorm(points=2, steps=1, first=1e-6)
    assert not bool(nearest_examples(problem, "2", [once]).found.any())
    known = FastMinimumNorm(points=2, steps=1, first=1e-6, known=far)
    assert bool(nearest_examples(problem, "2", [known]).found.all())


def test_an_example_that_is_misclassified_is_its_own_nearest_one() -> None:
    graph, x, _ = planes()
    oracle = GraphOracle.of(graph)
    worst = oracle.outputs(torch.from_numpy(x)).argmin(1).numpy()
    problem = problems.classification(oracle, x, worst, problems.whole_range(x, WIDE))
    for norm in NORMS:
        found = nearest_examples(problem, norm, budget=50)
        assert float(found.distance.max()) < 1e-150 and torch.equal(found.points, problem.threat.centre)


def test_what_is_asked_wrongly_is_named() -> None:
    graph, x, _ = planes()
    problem = classified(graph, x, None)
    for method in (CarliniWagner("1"), DeepFool("0"), Fab("0"), FastMinimumNorm("0")):
        with pytest.raises(InputError, match="minimises the norms"):
            nearest_examples(problem, "2", [method])
    with pytest.raises(InputError, match="give a data range"):
        nearest_examples(problem, "0", [SigmaZero()])
    with pytest.raises(InputError, match="outside the data range"):
        problems.whole_range(x, (Fraction(0), Fraction(1)))
