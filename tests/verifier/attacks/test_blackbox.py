"""Attacks that only ask: what they spend is counted exactly, their points lie in the sets, and they succeed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from verifier.attacks import problems
from verifier.attacks.apgd import apgd_ce
from verifier.attacks.blackbox.boundary import Boundary
from verifier.attacks.blackbox.decision import Beginning
from verifier.attacks.blackbox.estimate import Zoo, differences, gaussian, nes, spsa
from verifier.attacks.blackbox.hopskipjump import HopSkipJump
from verifier.attacks.blackbox.sparse import SparseRs
from verifier.attacks.blackbox.square import Square
from verifier.attacks.blackbox.windows import Windows, share_at
from verifier.attacks.gradient import pgd
from verifier.attacks.oracle import GraphOracle, Oracle
from verifier.attacks.session import SessionOracle
from verifier.attacks.threats import Threat
from verifier.attacks.trial import Attack, Attacked, Problem, Trial, attack
from verifier.errors import InputError
from verifier.network import read_network

DIGITS = Path(__file__).resolve().parents[3] / "benchmarks" / "digits"
UNIT = (Fraction(0), Fraction(1))

SCORES: tuple[Attack, ...] = (Square(), Square(shape=(2, 3, 4)), spsa(8), nes(8), Zoo(coordinates=5))
LABELS: tuple[Attack, ...] = (Boundary(), HopSkipJump(first=20), HopSkipJump(norm="inf", first=20))


@dataclass(frozen=True, eq=False)
class Counting:
    """Affine scores; remembers every point that it was asked about. ``labels``: the scores are one-hot."""

    weight: Tensor
    bias: Tensor
    labels: bool = False
    rows: int = 7
    seen: list[Tensor] = field(default_factory=list)
    differentiable: bool = False

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def outputs(self, points: Tensor) -> Tensor:
        assert 0 < len(points) <= self.rows
        self.seen.append(points.clone())
        scores = points @ self.weight + self.bias
        return torch.nn.functional.one_hot(scores.argmax(1), scores.shape[1]).to(scores) if self.labels else scores


def affine(seed: int = 0, labels: bool = False) -> tuple[Counting, np.ndarray, np.ndarray]:
    """An oracle on 24 inputs and 3 classes, 5 examples of it, and their classes."""
    random = np.random.default_rng(seed)
    weight, bias = random.standard_normal((24, 3)).astype(np.float32), random.standard_normal(3).astype(np.float32)
    x = random.random((5, 24), dtype=np.float32)
    return Counting(torch.from_numpy(weight), torch.from_numpy(bias), labels), x, (x @ weight + bias).argmax(1)


def border(oracle: Counting, x: np.ndarray, labels: np.ndarray, order: float) -> np.ndarray:
    """Exact distances from the border of the nearest other class, for a dual norm of the given order."""
    weight, scores = oracle.weight.numpy(), x @ oracle.weight.numpy() + oracle.bias.numpy()
    found = []
    for score, label in zip(scores, labels, strict=True):
        gap = [(score[label] - score[k]) / np.linalg.norm(weight[:, label] - weight[:, k], order) for k in range(3)
               if k != label]  # fmt: skip
        found.append(min(gap))
    return np.array(found)


def problem_of(oracle: Oracle, x: np.ndarray, labels: np.ndarray, epsilon: str, norm: str) -> Problem:
    return problems.classification(oracle, x, labels, problems.ball(x, Fraction(epsilon), norm, UNIT))


def euclid(threat: Threat) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, who: (x - threat.centre[who]).norm(dim=1)


def cases() -> list[tuple[Attack, str, str]]:
    """Every attack with threat models that it knows."""
    boxes = [(method, "inf", "1/50") for method in (*SCORES, *LABELS)]
    balls = [(method, "2", "1/20") for method in SCORES]
    slopes = [(method, "1", "1/20") for method in SCORES[2:]]
    return boxes + balls + slopes + [(SparseRs(), "0", "1")]


@pytest.mark.parametrize("budget", [1, 2, 37, 150])
@pytest.mark.parametrize(("method", "norm", "epsilon"), cases(), ids=lambda v: getattr(v, "name", str(v)))
def test_evaluations_are_counted_exactly_and_stay_within_the_budget(
    method: Attack, norm: str, epsilon: str, budget: int
) -> None:
    """The examples are told apart by the set that a point lies in: the sets are far from each other."""
    oracle, x, labels = affine()
    threat = problems.ball(x, Fraction(epsilon), norm, UNIT)
    trial = Trial(problems.classification(oracle, x, labels, threat), budget=budget)
    method.run(trial)
    asked = torch.cat(oracle.seen)
    owner = (asked[:, None] - threat.centre).norm(dim=2).argmin(1)
    counted = torch.bincount(owner, minlength=5)
    assert torch.equal(counted, trial.evaluations) and int(counted.max()) <= budget
    assert bool(threat.contains(asked, owner).all())


def test_a_batch_beyond_the_budget_is_cut() -> None:
    oracle, x, labels = affine()
    trial = Trial(problem_of(oracle, x, labels, "1/50", "inf"), budget=3)
    who = torch.tensor([0, 1, 0, 0, 1, 0])
    margin = trial.evaluate(torch.from_numpy(x)[who], who)
    assert margin.isfinite().tolist() == [True, True, True, True, True, False]
    assert trial.evaluations.tolist() == [3, 2, 0, 0, 0] and len(torch.cat(oracle.seen)) == 5
    again = trial.outputs(torch.from_numpy(x)[who[:3]], who[:3])
    assert again.isfinite().all(1).tolist() == [False, True, False]
    assert trial.evaluate(torch.from_numpy(x)[who], who).isinf().all() and len(torch.cat(oracle.seen)) == 6


def test_needed_is_the_place_of_the_first_hit_in_a_batch() -> None:
    oracle, x, labels = affine(3)
    trial = Trial(problem_of(oracle, x, labels, "1", "inf"))
    wrong = torch.from_numpy(x[labels != labels[0]][0])
    right = torch.from_numpy(x[0])
    trial.evaluate(right[None], torch.tensor([0]))
    trial.evaluate(torch.stack([right, right, wrong, wrong]), torch.zeros(4, dtype=torch.int64))
    assert int(trial.needed[0]) == 4 and int(trial.evaluations[0]) == 5


def test_descent_keeps_the_budget_too() -> None:
    x, labels = digits(4)
    found = attack(problem_of(graph_oracle(), x, labels, "1/1000", "inf"), pgd(steps=40), budget=7)
    assert found.evaluations.tolist() == [7] * 4


@pytest.mark.parametrize(("norm", "order"), [("inf", 1.0), ("2", 2.0)])
@pytest.mark.parametrize("method", SCORES, ids=lambda m: m.name)
def test_they_find_what_there_is_on_an_affine_classifier(method: Attack, norm: str, order: float) -> None:
    """Without a range's ends the distance of the border is known: found a third above it, never below."""
    oracle, x, labels = affine(1)
    epsilon = border(oracle, x, labels, order)
    for k in range(2):
        for factor, budget in ((1.35, 1200), (0.99, 200)):
            threat = problems.ball(x[k : k + 1], Fraction(float(factor * epsilon[k])), norm, None)
            problem = problems.classification(oracle, x[k : k + 1], labels[k : k + 1], threat)
            assert bool(attack(problem, method, budget=budget).found.all()) == (factor > 1), k


@functools.cache
def session() -> SessionOracle:
    return SessionOracle.of((DIGITS / "digits.onnx").read_bytes())


@functools.cache
def graph_oracle() -> GraphOracle:
    return GraphOracle.of(read_network(DIGITS / "digits.onnx").graph)


@functools.cache
def digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Test images of digits that the network knows."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = (data.images.reshape(-1, 64) / 16).astype(np.float32)[1400:], data.target[1400:].astype(np.int64)
    right = session().outputs(torch.from_numpy(x)).argmax(1).numpy() == y
    return x[right][:count], y[right][:count]


DIGIT_ATTACKS: tuple[Attack, ...] = (Square(shape=(1, 8, 8)), Square(), spsa(32), nes(), Zoo())


@pytest.mark.parametrize("method", DIGIT_ATTACKS, ids=lambda m: f"{m.name}-{getattr(m, 'shape', '')}")
@pytest.mark.parametrize(("norm", "epsilon"), [("inf", "0.2"), ("2", "1.2")])
def test_they_find_on_digits_what_a_gradient_finds(method: Attack, norm: str, epsilon: str) -> None:
    """Where Auto-PGD succeeds everywhere, through onnxruntime, and onnxruntime agrees point by point."""
    x, labels = digits(12)
    assert bool(attack(problem_of(graph_oracle(), x, labels, epsilon, norm), apgd_ce(60)).found.all())
    found = attack(problem_of(session(), x, labels, epsilon, norm), method, budget=5000)
    share = float(found.found.double().mean())
    assert share >= 0.9
    for point, label, hit in zip(found.points, labels, found.found.tolist(), strict=True):
        scores = session().outputs(point[None])[0]
        assert not hit or float(scores[label]) <= float(scores[np.arange(10) != label].max())
    assert bool(((found.needed > 0) == found.found).all())


def test_sparse_changes_are_found_on_digits() -> None:
    x, labels = digits(12)
    found = attack(problem_of(session(), x, labels, "6", "0"), SparseRs(), budget=3000)
    assert float(found.found.double().mean()) >= 0.9
    assert int((found.points != torch.from_numpy(x)).sum(1).max()) <= 6


@pytest.mark.parametrize("method", LABELS, ids=lambda m: f"{m.name}-{getattr(m, 'norm', '2')}")
def test_labels_alone_lead_near_the_border(method: Attack) -> None:
    """One-hot scores, the whole range as a set: within 25 % of the exact distance after 1,200 labels."""
    oracle, x, labels = affine(2, labels=True)
    x = x / 2 + np.float32(0.25)
    labels = (x @ oracle.weight.numpy() + oracle.bias.numpy()).argmax(1)
    maximum = isinstance(method, HopSkipJump) and method.norm == "inf"
    problem = problem_of(oracle, x, labels, "4", "inf")
    centre = torch.from_numpy(x)

    def distance(points: Tensor, who: Tensor) -> Tensor:
        return (points - centre[who]).norm(p=torch.inf if maximum else 2.0, dim=1)

    trial = Trial(problem, budget=1200, distance=distance)
    method.run(trial)
    found = trial.result()
    exact = torch.from_numpy(border(oracle, x, labels, 1.0 if maximum else 2.0))
    length = distance(found.points, torch.arange(5))
    assert bool(found.found.all())
    assert bool((length >= exact * (1 - 1e-5)).all()) and bool((length <= exact * 1.25).all())
    assert bool(problem.threat.contains(found.points, torch.arange(5)).all())


def test_a_known_start_is_used_and_none_is_no_error() -> None:
    oracle, x, labels = affine(3, labels=True)
    problem = problem_of(oracle, x, labels, "4", "inf")
    others = [int(np.flatnonzero(labels != label)[0]) if (labels != label).any() else 0 for label in labels]
    known = torch.from_numpy(x[others])
    trial = Trial(problem, budget=300, distance=euclid(problem.threat))
    HopSkipJump(start=Beginning(known)).run(trial)
    there = torch.from_numpy(labels[others] != labels)
    assert torch.equal(oracle.seen[0], known[: len(oracle.seen[0])])
    assert torch.equal(trial.result().found, there) and bool(there.any())
    for method in (Boundary(), HopSkipJump()):
        nothing = Trial(problem_of(oracle, x, labels, "1/10000", "inf"), budget=50, distance=euclid(problem.threat))
        method.run(nothing)
        assert not bool(nothing.result().found.any()) and nothing.evaluations.tolist() == [50] * 5


@pytest.mark.parametrize("method", [*DIGIT_ATTACKS, Boundary(), HopSkipJump()], ids=lambda m: m.name)
def test_a_seed_decides_everything(method: Attack) -> None:
    x, labels = digits(3)

    def run(seed: int) -> Attacked:
        problem = problem_of(session(), x, labels, "1", "inf")
        trial = Trial(problem, seed=seed, budget=120, distance=euclid(problem.threat))
        method.run(trial)
        return trial.result()

    first, again, other = run(1), run(1), run(2)
    assert torch.equal(first.points, again.points) and torch.equal(first.needed, again.needed)
    assert not torch.equal(first.points, other.points)


def test_estimates_are_the_gradient_where_the_set_leaves_room_and_one_sided_where_not() -> None:
    oracle, x, labels = affine(4)
    problem = problem_of(oracle, np.clip(x, 0.2, 0.8), labels, "1/10", "inf")
    at, who = problem.threat.centre[:1].double(), torch.zeros(1, dtype=torch.int64)
    trial = Trial(problem)
    each = 0.01 * torch.eye(24, dtype=torch.float32)[:, None]
    slopes = differences(trial, at.float(), who, each, per=1).sum(0)[0]
    scores = at.float() @ oracle.weight + oracle.bias
    other = scores.scatter(1, torch.from_numpy(labels[:1])[:, None], -torch.inf).argmax(1)
    exact = oracle.weight[:, labels[0]] - oracle.weight[:, int(other[0])]
    assert torch.allclose(slopes, exact, atol=2e-3)
    corner = problem.threat.project(at.float() + 1, who)
    assert torch.allclose(differences(trial, corner, who, each, per=1).sum(0)[0], exact, atol=4e-3)
    away = 0.01 * gaussian((4000, 1, 24), at.float(), trial.draw)
    mean = differences(trial, at.float(), who, away).mean(0)[0]
    assert float((mean - exact).norm() / exact.norm()) < 0.15


def test_inner_points_of_flat_boxes_are_found() -> None:
    """The counterexample lies away from all corners: max(|x_0 - 0.37|, |x_1 + 0.2|) <= 0.1."""

    class Bump(Counting):
        def outputs(self, points: Tensor) -> Tensor:
            far = (points - points.new_tensor([0.37, -0.2])).abs().amax(1)
            return torch.stack([far - 0.1, torch.zeros_like(far)], 1)

    none = torch.zeros(0)
    problem = problems.classification(
        Bump(none, none), np.zeros((1, 2), np.float32), np.array([0]),
        problems.ball(np.zeros((1, 2), np.float32), Fraction(1), "inf"),
    )  # fmt: skip
    assert bool(attack(problem, Square(), budget=1000).found.all())
    assert not bool(attack(problem, Square(inside=0.0), budget=1000).found.any())


def test_attacks_refuse_what_they_do_not_know() -> None:
    oracle, x, labels = affine()
    for method, norm, message in (
        (Square(), "1", "inf and 2 only"), (SparseRs(), "2", "norm 0 only"), (spsa(), "0", "norms 2 and 1"),
        (Zoo(), "0", "norms 2 and 1"), (Square(shape=(1, 5, 5)), "inf", "24 elements"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            attack(problem_of(oracle, x, labels, "1", norm), method, budget=10)


def test_windows_shrink_as_published() -> None:
    assert [share_at(k, 10_000, 0.8) for k in (0, 10, 11, 51, 9000)] == [0.8, 0.8, 0.4, 0.2, 0.8 / 2**9]
    assert share_at(6, 5000, 0.8) == 0.4
    layout = Windows(3, 32, 32)
    assert layout.window(0.25) == (16, 16) and layout.window(1e-9) == (1, 1)
    draw = torch.Generator().manual_seed(0)
    places = layout.places(2000, (15, 15), draw)
    assert places.sum((1, 2)).unique().tolist() == [225] and bool(places[:, ::31, ::31].any(0).all())
