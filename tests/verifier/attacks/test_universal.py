"""One perturbation for all examples, patches, and attacks by another model reach what they can reach at best."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bounds.graph import Builder, Graph
from bounds.ops.gemm import Gemm
from verifier.attacks.apgd import Apgd
from verifier.attacks.goals import Misclassified
from verifier.attacks.gradient import Centre, Pgd, Uniform
from verifier.attacks.losses import CrossEntropy
from verifier.attacks.oracle import GraphOracle
from verifier.attacks.threats import Boxes
from verifier.attacks.transforms.corruptions import Brightness
from verifier.attacks.transforms.flow import Flow
from verifier.attacks.transforms.layout import Layout
from verifier.attacks.transforms.patches import Patched, patched, salient_corners
from verifier.attacks.transforms.transfer import MeanOracle, Transfer
from verifier.attacks.transforms.universal import Mean, fooling_rate, universal
from verifier.attacks.transforms.views import Additive, Chain, Transformed, parameter_box
from verifier.attacks.trial import Attack, Problem, Trial, attack
from verifier.errors import InputError

GREY, COLOUR = Layout(1, 5, 5), Layout(3, 9, 7, last=True)


def inputs(layout: Layout, count: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand((count, layout.size), generator=draw, dtype=torch.float64).to(dtype)


def affine(weight: Tensor, bias: Tensor) -> Graph:
    """Outputs ``x @ weight + bias``."""
    builder = Builder()
    x = builder.input((len(weight),))
    return builder.finish([builder.add(Gemm(), x, builder.constant(weight), builder.constant(bias))])


def classifier(size: int, seed: int = 0, classes: int = 4) -> GraphOracle:
    draw = torch.Generator().manual_seed(seed)
    return GraphOracle.of(affine(torch.randn(size, classes, generator=draw), torch.zeros(classes)))


def own_labels(oracle: GraphOracle, x: Tensor) -> Misclassified:
    return Misclassified(oracle.outputs(x).argmax(1))


@pytest.mark.parametrize("method", [Apgd(steps=30, loss=Mean()), Pgd(steps=30, loss=Mean(CrossEntropy(), 5))])
def test_one_perturbation_for_all_reaches_the_optimum_of_an_affine_classifier(method: Attack) -> None:
    draw = torch.Generator().manual_seed(0)
    weight, x = torch.randn(6, generator=draw), torch.randn(40, 6, generator=draw)
    oracle = GraphOracle.of(affine(torch.stack([weight, -weight], 1), torch.zeros(2)))
    x = x[x @ weight > 0]
    labels = torch.zeros(len(x), dtype=torch.int64)
    view = Transformed(Additive(6), x)
    ends = torch.tensor(0.25, dtype=torch.float64)
    problem = universal(oracle, labels, view, parameter_box(view, (-ends, ends), rows=1))
    found = attack(problem, method)
    # The best of all: 0.25 against every sign of the weight.
    best = int((x @ weight - 0.25 * weight.abs().sum() <= 0).sum())
    assert 5 < best < len(x)
    assert fooling_rate(problem, found.points[0]) == pytest.approx(best / len(x))
    assert int(found.margin[0]) == len(x) - best
    share = universal(oracle, labels, view, problem.threat, share=best / len(x))
    assert bool(attack(share, method).found[0])


def test_shared_evaluations_in_parts_give_the_same_gradients() -> None:
    x = inputs(GREY, 7, dtype=torch.float32)
    whole = classifier(GREY.size)
    goal = own_labels(whole, x)
    small = GraphOracle(whole.graph, 3, whole.device)
    view = Transformed(Chain(Flow(GREY), Additive(GREY.size)), x)
    box = parameter_box(view, (torch.tensor(-0.5), torch.tensor(0.5)), rows=1)
    found = []
    for oracle in (whole, small):
        trial = Trial(universal(oracle, goal.label, view, box))
        found.append(trial.descend(torch.full((2, 75), 0.125), torch.zeros(2, dtype=torch.int64), Mean()))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert bool(found[0][2].any())


def test_shared_problems_say_which_loss_they_need() -> None:
    x = inputs(GREY, 2, dtype=torch.float32)
    oracle, view = classifier(GREY.size), Transformed(Brightness(), x)
    box = parameter_box(view, (torch.tensor(-1.0), torch.tensor(1.0)), rows=1)
    problem = universal(oracle, torch.zeros(2, dtype=torch.int64), view, box)
    with pytest.raises(InputError, match="use Mean"):
        attack(problem, Pgd(loss=CrossEntropy()))
    with pytest.raises(InputError, match="one set is shared"):
        universal(oracle, torch.zeros(2, dtype=torch.int64), view, parameter_box(view, (box.lower[0], box.upper[0])))


@pytest.mark.parametrize("layout", [GREY, COLOUR])
def test_a_patch_changes_nothing_outside_of_its_rectangle(layout: Layout) -> None:
    x = inputs(layout, 4, dtype=torch.float32)
    oracle = classifier(layout.size)
    goal = own_labels(oracle, x)
    corner = salient_corners(oracle, goal, layout, x, (2, 3))
    problem = patched(oracle, goal, Patched.at(layout, x, corner, (2, 3)), (0.0, 1.0))
    who = torch.arange(4)
    assert torch.equal(problem.inputs(problem.threat.centre, who), x)
    found = attack(problem, Apgd(steps=20, start=Uniform()))
    images = layout.images(problem.inputs(found.points, who))
    for image, before, (top, left) in zip(images, layout.images(x), corner.tolist(), strict=True):
        same = image == before
        assert bool(same[:, :top].all()) and bool(same[:, top + 2 :].all())
        assert bool(same[:, :, :left].all()) and bool(same[:, :, left + 3 :].all())
        assert not bool(same[:, top : top + 2, left : left + 3].all())


def test_the_corner_with_the_steepest_slopes_is_chosen() -> None:
    weight = torch.zeros(5, 5, 2)
    weight[3, 1, 0], weight[2, 2, 1] = 4.0, -3.0
    oracle = GraphOracle.of(affine(weight.reshape(25, 2), torch.zeros(2)))
    goal = Misclassified(torch.zeros(1, dtype=torch.int64))
    assert salient_corners(oracle, goal, GREY, torch.zeros(1, 25), (2, 2)).tolist() == [[2, 1]]
    with pytest.raises(InputError, match="leaves an image"):
        Patched.at(GREY, torch.zeros(1, 25), torch.tensor([4, 0]), (2, 2))


def test_one_patch_for_all_at_different_places() -> None:
    """Every example is fooled exactly where the patch's mean is above a half, wherever it lies."""
    x = torch.zeros(3, 25)
    oracle = GraphOracle.of(affine(torch.stack([torch.zeros(25), torch.ones(25)], 1), torch.tensor([2.0, 0.0])))
    view = Patched.at(GREY, x, torch.tensor([[0, 0], [1, 3], [3, 2]]), (2, 2))
    box = Boxes.of(torch.zeros(1, 4), torch.ones(1, 4), torch.zeros(1, 4))
    problem = universal(oracle, torch.zeros(3, dtype=torch.int64), view, box)
    found = attack(problem, Apgd(steps=10, loss=Mean(), start=Centre()))
    assert bool(found.found[0]) and float(found.points.sum()) >= 2


@dataclass(frozen=True)
class Flat:
    """An oracle's outputs without their gradients."""

    oracle: GraphOracle
    differentiable = False
    rows = 64
    device = torch.device("cpu")

    def outputs(self, points: Tensor) -> Tensor:
        return self.oracle.outputs(points).detach()


def test_transfer_asks_the_target_once_a_round_and_keeps_its_margin() -> None:
    x = inputs(GREY, 6, dtype=torch.float32)
    oracle = classifier(GREY.size)
    goal = own_labels(oracle, x)
    other = classifier(GREY.size, seed=1)
    ends = torch.tensor(0.5, dtype=torch.float64)
    view = Transformed(Additive(GREY.size), x)
    threat = parameter_box(view, (-ends, ends))
    problem = Problem(Flat(oracle), goal, threat, view)
    same = attack(problem, Transfer(oracle, Apgd(steps=10)))
    assert bool(same.found.all()) and same.evaluations.tolist() == [1] * 6
    mixed = attack(problem, Transfer(MeanOracle((other, oracle)), Apgd(steps=10), rounds=3))
    assert bool(mixed.found.any()) and int(mixed.evaluations.max()) <= 3
    who = torch.arange(6)
    assert torch.equal(goal.margin(oracle.outputs(problem.inputs(mixed.points, who)), who), mixed.margin)


def test_transfer_goes_beyond_the_sources_boundary() -> None:
    """The target's threshold is higher than the source's: a point just beyond the latter would not do."""
    x = torch.zeros(1, 3)
    source, target = (
        GraphOracle.of(affine(torch.stack([torch.zeros(3), torch.ones(3)], 1), torch.tensor([t, 0.0])))
        for t in (0.5, 2.5)
    )
    threat = Boxes.of(torch.zeros(1, 3), torch.ones(1, 3), x)
    problem = Problem(target, Misclassified(torch.zeros(1, dtype=torch.int64)), threat)
    assert bool(attack(problem, Transfer(source, Apgd(steps=20))).found[0])
