"""Attacks made of parts, and robust accuracy: on classifiers whose truth is known."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from torch import Tensor

import verifier
from verifier import limits
from verifier.attacks import apgd, gradient, problems
from verifier.attacks.blackbox.square import Square
from verifier.attacks.classifier import Classifier, lead
from verifier.attacks.evaluation import Evaluator, ball_threat
from verifier.attacks.losses import CrossEntropy, Dlr, Margin, TargetedDlr, TargetedMargin
from verifier.attacks.oracle import GraphOracle
from verifier.attacks.portfolio import ATTACKS, Target, named
from verifier.attacks.session import SessionOracle
from verifier.attacks.trial import Problem, Trial, attack
from verifier.errors import InputError
from verifier.examples import fit_examples
from verifier.replay import open_session

WEIGHT = np.array([[1.0, -2.0, 0.5], [-1.0, 0.5, 1.0], [0.25, 1.0, -1.5], [0.0, 0.0, 0.1]], dtype=np.float32)
GRADIENTS = sorted(set(ATTACKS) - {"square", "sparse-rs", "nes", "spsa", "zoo"})
"""The attacks that follow gradients."""

DUAL = (("inf", 1), ("2", 2), ("1", math.inf))
"""A norm, and the order of the norm dual to it."""


def affine(path: Path, weight: np.ndarray = WEIGHT, shape: tuple[int, ...] = (3,)) -> Path:
    """The classifier ``x -> W x`` as ONNX."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "W"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "affine", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", len(weight)])],
        [numpy_helper.from_array(weight, "W")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def digits(checkout: Path) -> Path:
    return checkout / "benchmarks" / "digits" / "digits.onnx"


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    """Test images ``[N, 1, 8, 8]`` with their classes."""
    data = load_digits()
    return (data.images[1400:1480, None] / 16).astype(np.float32), data.target[1400:1480]


def distances(x: np.ndarray, labels: np.ndarray, order: float) -> np.ndarray:
    """Of each example from the nearest other class of the affine classifier, in the norm dual to ``order``."""
    scores = x @ WEIGHT.T
    found = np.full(len(x), np.inf)
    for k, label in enumerate(labels):
        for other in set(range(len(WEIGHT))) - {int(label)}:
            gap = scores[k, label] - scores[k, other]
            found[k] = min(found[k], gap / np.linalg.norm(WEIGHT[label] - WEIGHT[other], ord=order))
    return found


@pytest.mark.parametrize(("norm", "order"), DUAL)
@pytest.mark.parametrize("name", GRADIENTS)
def test_attacks_reach_the_nearest_class_of_an_affine_classifier_and_no_nearer(
    name: str, norm: str, order: float, tmp_path: Path
) -> None:
    """Only attacks that aim at every class must find the nearest: the others may follow a gradient to a further one."""
    x = np.random.default_rng(1).standard_normal((40, 3)).astype(np.float32)
    labels = (x @ WEIGHT.T).argmax(1)
    true = distances(x, labels, order)
    radius = float(np.median(true))
    model, (method,) = Classifier.of(affine(tmp_path / "affine.onnx")), named(name, Target.of(norm, (1, 3)))
    threat = problems.ball(x, Fraction(radius), norm)
    found = attack(problems.classification(model.oracle(), x, labels, threat), method).found.numpy()
    assert not found[true > 1.001 * radius].any()
    near = true < (0.8 if norm == "1" else 0.97) * radius
    assert found[near].mean() >= (1.0 if name in ("multi-targeted", "apgd-t", "apgd-mt") else 0.5)


def test_one_step_reaches_the_end_of_a_set_from_an_end_of_the_range(tmp_path: Path) -> None:
    """The label's score less the other's has the slope (2, -2.5, -0.5), and the examples can go up alone."""
    x = np.zeros((1, 3), np.float32)
    model = Classifier.of(affine(tmp_path / "affine.onnx", WEIGHT[:2]))
    threat = problems.ball(x, Fraction(1, 8), "inf", (Fraction(0), Fraction(1)))
    slack = torch.full((1,), 1.0, dtype=torch.float64)  # not done at the example, where both scores are 0
    problem = Problem(model.oracle(), problems.Misclassified(torch.tensor([0]), slack), threat)
    assert attack(problem, gradient.fgsm()).points.tolist() == [[0, 0.125, 0.125]]


def test_losses_are_least_where_another_class_wins() -> None:
    """Values by hand, and descent on any of them lowers the margin to first order."""
    goal = problems.Misclassified(torch.tensor([0]))
    outputs, who, target = torch.tensor([[3.0, 1.0, 0.5, -1.0]]), torch.tensor([0]), torch.tensor([2])
    by_hand = {
        Margin(): 2.0,
        CrossEntropy(): 3 - math.log(math.exp(3) + math.exp(1) + math.exp(0.5) + math.exp(-1)),
        Dlr(): 2 / 2.5,
        TargetedMargin(): 2.5,
        TargetedDlr(): 2.5 / (3 - (0.5 - 1) / 2),
    }
    for loss, value in by_hand.items():
        assert loss.value(goal, outputs, who, target).item() == pytest.approx(value, rel=1e-6)
        at = outputs.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss.value(goal, at, who, target).sum(), at)
        assert goal.margin(outputs - 1e-3 * slope, who) < goal.margin(outputs, who)


def test_two_classes_have_no_third() -> None:
    goal = problems.Misclassified(torch.tensor([1]))
    outputs, who = torch.tensor([[1.0, 4.0]]), torch.tensor([0])
    assert Dlr().value(goal, outputs, who, None).item() == 3
    assert TargetedDlr().value(goal, outputs, who, torch.tensor([0])).item() == 3


def test_checkpoints_are_those_of_the_paper() -> None:
    """For 100 steps: 22, 41, 57, 70, 80, 87, then every sixth."""
    assert sorted(apgd.checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]


class Counting:
    """An oracle that notes how often each row was asked."""

    def __init__(self, inner: GraphOracle) -> None:
        self.inner, self.asked = inner, 0
        self.differentiable, self.rows, self.device = True, 7, inner.device

    def outputs(self, points: Tensor) -> Tensor:
        self.asked += len(points)
        return self.inner.outputs(points)


@pytest.mark.parametrize("name", GRADIENTS)
def test_every_evaluation_is_counted(name: str, digits: Path, images: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = images[0][:6].reshape(6, -1), images[1][:6]
    oracle = Counting(GraphOracle.of(verifier.load(digits)))
    problem = problems.classification(oracle, x, y, problems.ball(x, Fraction(1, 50), "inf"))
    found = attack(problem, named(name, Target("inf"))[0], seed=3)
    assert int(found.evaluations.sum()) == oracle.asked
    assert bool((found.needed <= found.evaluations).all())


def test_an_attack_repeats_itself_under_a_seed(digits: Path, images: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = images[0][:20].reshape(20, -1), images[1][:20]
    oracle = GraphOracle.of(verifier.load(digits))
    problem = problems.classification(oracle, x, y, problems.ball(x, Fraction(1, 20), "inf"))
    runs = [attack(problem, apgd.apgd_ce(20), seed=seed).points for seed in (5, 5, 6)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_clauses_of_a_property_are_attacked_by_the_same_parts(checkout: Path) -> None:
    folder = checkout / "benchmarks" / "digits"
    query = verifier.read(folder / "digits.onnx", folder / "fragile.vnnlib")
    problem = problems.of_clauses(query)
    found = attack(problem, gradient.pgd_margin(40))
    assert bool(found.found.any())
    assert bool(problem.threat.contains(found.points, torch.arange(problem.size)).all())
    with pytest.raises(InputError, match="classes of a classifier"):
        attack(problem, apgd.apgd_ce())


def test_time_and_budget_are_kept(digits: Path, images: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = images[0].reshape(80, -1), images[1]
    oracle = GraphOracle.of(verifier.load(digits))
    problem = problems.classification(oracle, x, y, problems.ball(x, Fraction(1, 1000), "inf"))
    assert int(attack(problem, apgd.apgd_targeted(), until=limits.now()).evaluations.sum()) == 0
    trial = Trial(problem, budget=15)
    apgd.apgd_ce().run(trial)
    assert int(trial.evaluations.max()) == 15


@pytest.mark.parametrize(("norm", "epsilon"), [("inf", "0.1"), ("2", "1/2"), ("1", "3/2"), ("0", "2")])
def test_robust_accuracy_counts_what_onnxruntime_confirms(
    norm: str, epsilon: str, digits: Path, images: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = images
    attacks = (gradient.fgsm(), apgd.apgd_ce(30))
    found = verifier.robust_accuracy(digits, x, y, epsilon=epsilon, norm=norm, data_range=(0, 1), attacks=attacks)
    session = open_session(digits.read_bytes())
    scores = session.run(None, {"image": found.points.reshape(x.shape)})[0]
    every = np.arange(len(y))
    others = scores.copy()
    others[every, y] = -np.inf
    assert np.array_equal(scores[every, y] <= others.max(1), found.broken)
    assert np.array_equal(session.run(None, {"image": x})[0].argmax(1) == y, found.clean)
    assert found.robust_accuracy < found.accuracy
    assert sum(row.found for row in found.rows) == int((found.broken & found.clean).sum())
    away = np.abs(found.points.astype(np.float64) - x.reshape(found.points.shape).astype(np.float64))
    size = {"inf": away.max(1), "2": np.sqrt((away**2).sum(1)), "1": away.sum(1), "0": (away > 0).sum(1)}[norm]
    assert size.max() <= float(Fraction(epsilon))
    assert found.points.min() >= 0
    assert found.points.max() <= 1


@pytest.mark.parametrize(
    ("lie", "refused"),
    [(WEIGHT[[1, 2, 0, 3]], 1), (-1e38 * WEIGHT, 3)],
    ids=["other classes", "infinitely bad"],
)
def test_what_onnxruntime_refuses_is_not_broken(lie: np.ndarray, refused: int, tmp_path: Path) -> None:
    """A graph that lies about the model: no point of it counts, and a larger lead is asked for, a finite one."""
    honest = Classifier.of(affine(tmp_path / "a.onnx"))
    liar = Classifier.of(affine(tmp_path / "b.onnx", lie))
    model = Classifier(liar.graph, honest.session, honest.classes)
    x = 4 * np.eye(3, dtype=np.float32)
    threat = ball_threat(Fraction(1, 100), "inf", None)
    examples = fit_examples(x, None, (1, 3), np.float32)
    evaluator = Evaluator(model, examples, threat, [gradient.fgsm(), gradient.pgd(5), gradient.pgd(5)])
    evaluator.run()
    found = evaluator.result()
    assert found.robust_accuracy == 1
    assert [row.refused > 0 for row in found.rows[:refused]] == [True] * refused
    assert found.finished


def test_a_run_that_is_stopped_says_what_it_knows(digits: Path, images: tuple[np.ndarray, np.ndarray]) -> None:
    found = verifier.robust_accuracy(digits, *images, epsilon=0.3, timeout=0)
    assert not found.finished
    assert found.robust_accuracy == found.accuracy
    assert [row.tried for row in found.rows] == [0] * len(found.rows)


def test_nothing_is_broken_within_nothing(digits: Path, images: tuple[np.ndarray, np.ndarray]) -> None:
    for norm in ("inf", "2", "1", "0"):
        found = verifier.robust_accuracy(
            digits, *images, epsilon=0, norm=norm, data_range=(0, 1), attacks=[apgd.apgd_ce(5)]
        )
        assert found.robust_accuracy == found.accuracy


def test_attacks_break_what_is_violated_and_nothing_that_is_proven(
    digits: Path, images: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = images[0][2:8], images[1][2:8]
    attacks = [gradient.pgd(20), apgd.apgd_multi_targeted(10)]
    found = verifier.robust_accuracy(digits, x, y, epsilon="0.04", data_range=(0, 1), attacks=attacks)
    words = [verifier.verify(verifier.robustness(digits, a, "0.04", label=int(b), data_range=(0, 1)), timeout=30).word
             for a, b in zip(x, y, strict=True)]  # fmt: skip
    assert set(words) == {"sat", "unsat"}
    assert [word == "sat" for word in words] == found.broken.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": -1}, "negative"),
        ({"norm": "3"}, "the known ones"),
        ({"data_range": (0, 0.5)}, "outside the data range"),
        ({"y": np.arange(3)}, "3 labels"),
        ({"y": np.full(80, 10)}, "classes 0 to 9"),
        ({"y": np.full(80, 0.5)}, "whole numbers"),
        ({"x": np.zeros((2, 8, 8, 2), np.float32)}, "does not fit"),
        ({"x": np.full((1, 64), np.nan)}, "NaN"),
        ({"timeout": "soon"}, "seconds"),
    ],
)
def test_wrong_questions_are_refused(
    change: dict[str, object], message: str, digits: Path, images: tuple[np.ndarray, np.ndarray]
) -> None:
    asked: dict[str, object] = {"x": images[0], "y": images[1] if "x" not in change else None, "epsilon": 0.1} | change
    with pytest.raises(InputError, match=message):
        verifier.robust_accuracy(digits, **asked)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Jumps:
    """An oracle that makes numbers of everything, NaN and infinities too."""

    differentiable: bool = True
    rows: int = 1000

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def outputs(self, points: Tensor) -> Tensor:
        high = torch.where(points.isfinite().all(1), 1.0, -1.0)
        return torch.stack([high, -high], 1) + 0 * points.nan_to_num(0, 0, 0).sum(1, keepdim=True)


def test_a_point_that_is_no_number_is_no_counterexample() -> None:
    """Without a range a search may get to infinities and NaN, and a model with jumps gives finite scores there."""
    x = np.zeros((2, 3), dtype=np.float32)
    problem = problems.classification(Jumps(), x, np.zeros(2, dtype=np.int64), problems.whole_range(x))
    for bad in (math.inf, math.nan):
        trial = Trial(problem)
        trial.evaluate(torch.full((2, 3), bad), torch.arange(2))
        assert not trial.result().found.any() and not trial.result().needed.any()
        assert bool(trial.result().points.isfinite().all())
    assert not attack(problem, Square(steps=3)).found.any()


def test_of_equal_points_one_is_kept_whole() -> None:
    """Several threads that write points to one place would mix their elements."""
    x = np.zeros((2, 3), dtype=np.float32)
    problem = problems.classification(Jumps(), x, np.ones(2, dtype=np.int64), problems.whole_range(x))
    trial, rows = Trial(problem), torch.arange(1.0, 9.0)[:, None].expand(-1, 3)
    trial.evaluate(rows, torch.tensor([0, 1] * 4))
    assert trial.result().points[:, 0].tolist() == [1, 2]


def wide_scores(path: Path) -> bytes:
    """``x -> x + (0, 1e-12)`` with a float input and scores in double."""
    nodes = [helper.make_node("Cast", ["x"], ["d"], to=TensorProto.DOUBLE), helper.make_node("Add", ["d", "c"], ["y"])]
    graph = helper.make_graph(
        nodes, "wide", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, [1, 2])],
        [numpy_helper.from_array(np.array([0.0, 1e-12]), "c")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path.read_bytes()


def test_scores_keep_their_digits(tmp_path: Path) -> None:
    """Rounded to the input's type they would be equal, and the example broken."""
    session = SessionOracle.of(wide_scores(tmp_path / "w.onnx"))
    model = Classifier(None, session, 2)
    found = verifier.robust_accuracy(model, np.ones((1, 2), dtype=np.float32), np.array([1]), epsilon=0, attacks=[])
    assert found.clean.all() and not found.broken.any()


def test_scores_are_those_of_a_replay_to_the_last_bit(tmp_path: Path) -> None:
    """onnxruntime may give several points together other last digits than each by itself, and a tie is a matter of
    those."""
    random = np.random.default_rng(0)
    weight, x = random.normal(size=(300, 64)), random.random((50, 300))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["batch", 300])],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, ["batch", 64])], [numpy_helper.from_array(weight, "W")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    session = open_session(model)
    alone = np.concatenate([session.run(None, {"x": row[None]})[0] for row in x])
    assert np.array_equal(Classifier.of(model).scores(x), alone)


def test_an_interrupt_anywhere_leaves_a_consistent_result(tmp_path: Path) -> None:
    classifier = Classifier.of(affine(tmp_path / "a.onnx"))
    x = np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)
    examples = fit_examples(x, None, (1, 3), np.float32)
    broken = set()
    for stop in range(3, 400, 7):
        threat = ball_threat(Fraction(1, 2), "inf", None)
        evaluator = Evaluator(classifier, examples, threat, [gradient.fgsm(), gradient.pgd(3)])
        with interrupted(stop):
            evaluator.run()
        found = evaluator.result()
        leads = lead(classifier.scores(found.points), found.labels)
        assert ((leads <= 0) == found.broken).all()
        assert ((found.by >= 0) == found.broken).all()
        assert [row.found for row in found.rows] == [int((found.by == k).sum()) for k in range(2)]
        broken.add(int(found.broken.sum()))
    assert len(broken) > 1


@contextmanager
def interrupted(stop: int) -> Iterator[None]:
    """KeyboardInterrupt at instruction number ``stop`` of ``evaluation``."""
    left, before = [stop], sys.gettrace()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.endswith("evaluation.py"):
            return None
        frame.f_trace_opcodes = True
        left[0] -= event == "opcode"
        if not left[0]:
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
