"""Transformations do what they say, their gradients are right, and attacks on their parameters find what is planted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from bounds import perturbations
from bounds.graph import Builder, Graph
from bounds.ops.gemm import Gemm
from bounds.rotation import rotated
from verifier.attacks.apgd import Apgd
from verifier.attacks.goals import Misclassified
from verifier.attacks.gradient import Centre, Pgd
from verifier.attacks.losses import Margin
from verifier.attacks.oracle import GraphOracle
from verifier.attacks.transforms.corruptions import Blur, Brightness, BrightnessContrast, Contrast, Noise
from verifier.attacks.transforms.flow import Flow, Roughness
from verifier.attacks.transforms.grid import Grid, WorstOf
from verifier.attacks.transforms.jpeg import Jpeg
from verifier.attacks.transforms.layout import Layout
from verifier.attacks.transforms.spatial import Spatial
from verifier.attacks.transforms.views import Additive, Chain, Transform, Transformed, parameter_box, transformed
from verifier.attacks.trial import Attack, Problem, Trial, attack
from verifier.errors import InputError

GREY, COLOUR = Layout(1, 5, 5), Layout(3, 9, 7, last=True)
ALL: list[Callable[[Layout], Transform]] = [
    Spatial,
    lambda a: Spatial(a, "border"),
    Flow,
    lambda a: Flow(a, "zero"),
    lambda a: Noise.gaussian(a.size),
    lambda a: Blur(a, 2),
    lambda a: Brightness(),
    lambda a: Contrast(),
    lambda a: Contrast(0.5),
    lambda a: BrightnessContrast(),
    Jpeg,
    lambda a: Chain(Flow(a), Additive(a.size)),
]


def inputs(layout: Layout, count: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand((count, layout.size), generator=draw, dtype=torch.float64).to(dtype)


def near(transform: Transform, count: int, size: float, seed: int = 1) -> Tensor:
    """Parameters around the neutral ones; those of a blur positive, qualities below 100."""
    draw = torch.Generator().manual_seed(seed)
    neutral = transform.neutral
    change = size * torch.rand((count, len(neutral)), generator=draw, dtype=torch.float64) + 0.01
    return neutral - 50 * change if isinstance(transform, Jpeg) else neutral + change


def affine(weight: Tensor, bias: Tensor) -> Graph:
    """Outputs ``x @ weight + bias``."""
    builder = Builder()
    x = builder.input((len(weight),))
    return builder.finish([builder.add(Gemm(), x, builder.constant(weight), builder.constant(bias))])


def identity(layout: Layout) -> Graph:
    return affine(torch.eye(layout.size, dtype=torch.float64), torch.zeros(layout.size, dtype=torch.float64))


def classifier(size: int, seed: int = 0, classes: int = 4) -> GraphOracle:
    draw = torch.Generator().manual_seed(seed)
    return GraphOracle.of(affine(torch.randn(size, classes, generator=draw), torch.zeros(classes)))


def own_labels(oracle: GraphOracle, x: Tensor) -> Misclassified:
    return Misclassified(oracle.outputs(x).argmax(1))


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("layout", [GREY, COLOUR])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neutral_parameters_give_the_input_exactly(
    make: Callable[[Layout], Transform], layout: Layout, dtype: torch.dtype
) -> None:
    transform, x = make(layout), inputs(layout, dtype=dtype)
    theta = transform.neutral.to(dtype).expand(len(x), -1)
    found = transform.apply(x, theta)
    assert found.dtype == dtype and torch.equal(found, x)
    moved = transform.apply(x, near(transform, len(x), 1.5).to(dtype))
    assert not torch.equal(moved, x)


@pytest.mark.parametrize("make", [make for make in ALL if not isinstance(make(GREY), Jpeg)])
@pytest.mark.parametrize("layout", [GREY, COLOUR])
def test_gradients_agree_with_finite_differences(make: Callable[[Layout], Transform], layout: Layout) -> None:
    """Along random directions of the parameters, for random sums of the pixels."""
    transform, x = make(layout), inputs(layout, 2)
    theta = near(transform, 2, 0.3).requires_grad_()
    draw = torch.Generator().manual_seed(2)
    for _ in range(5):
        weight, direction = (torch.randn(a.shape, generator=draw, dtype=torch.float64) for a in (x, theta))
        (gradient,) = torch.autograd.grad((transform.apply(x, theta) * weight).sum(), theta)
        with torch.no_grad():
            ahead, behind = (transform.apply(x, theta + s * 1e-7 * direction) for s in (1, -1))
        slope = float(((ahead - behind) * weight).sum()) / 2e-7
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("make", ALL)
def test_rows_do_not_mix(make: Callable[[Layout], Transform]) -> None:
    transform, x = make(COLOUR), inputs(COLOUR)
    theta = near(transform, len(x), 0.3)
    alone = torch.cat([transform.apply(x[k : k + 1], theta[k : k + 1]) for k in range(len(x))])
    assert torch.allclose(transform.apply(x, theta), alone, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("side", [5, 6, 9])
def test_quarter_turns_are_those_of_torch(side: int) -> None:
    layout = Layout(2, side, side)
    x = inputs(layout, 1)
    for turns in (1, 2, 3, -1):
        theta = torch.tensor([[turns * math.pi / 2, 0, 0]], dtype=torch.float64)
        found = layout.images(Spatial(layout).apply(x, theta))
        either = [torch.rot90(layout.images(x), way * turns, (2, 3)) for way in (1, -1)]
        assert min(float((found - turned).abs().max()) for turned in either) < 1e-12


def test_rotations_are_those_that_certificates_enclose() -> None:
    layout = Layout(2, 6, 9)
    x = inputs(layout, 1)
    for degrees in (-130, -20, -3, 1, 17, 90, 200):
        angle = math.radians(degrees)
        found = Spatial(layout).apply(x, torch.tensor([[angle, 0, 0]], dtype=torch.float64))
        assert torch.allclose(found, rotated(layout.images(x), angle).flatten(1), atol=1e-12)


def test_brightness_and_contrast_are_those_that_certificates_bound() -> None:
    x, theta = inputs(GREY, 1), torch.tensor([[0.3, -0.4]], dtype=torch.float64)
    graph = identity(GREY)
    for transform, other in (
        (Brightness(), perturbations.brightness(graph, x[0])),
        (Contrast(), perturbations.contrast(graph, x[0])),
        (Contrast(0.25), perturbations.contrast(graph, x[0], 0.25)),
        (BrightnessContrast(0.5), perturbations.brightness_and_contrast(graph, x[0])),
    ):
        at = theta[:, : len(transform.neutral)]
        assert torch.allclose(transform.apply(x, at), other.evaluate(at)[0], atol=1e-14)


def test_translations_move_whole_pixels() -> None:
    x = inputs(GREY, 1)
    theta = torch.tensor([[0.0, 2.0, -1.0]], dtype=torch.float64)
    image = GREY.images(x)[0, 0]
    moved = GREY.images(Spatial(GREY).apply(x, theta))[0, 0]
    assert torch.equal(moved[2:, :4], image[:3, 1:]) and not moved[:2].any() and not moved[:, 4].any()
    repeated = GREY.images(Spatial(GREY, "border").apply(x, theta))[0, 0]
    assert torch.equal(repeated[0, :4], image[0, 1:]) and torch.equal(repeated[2:, 4], image[:3, 4])


def test_a_constant_flow_is_a_translation() -> None:
    x = inputs(COLOUR, 2)
    theta = torch.tensor([0.3, -1.2], dtype=torch.float64)
    flow = theta.repeat_interleave(COLOUR.height * COLOUR.width).expand(2, -1)
    shift = torch.cat([torch.zeros(1), -theta]).expand(2, 3)
    for padding in ("zero", "border"):
        assert torch.allclose(Flow(COLOUR, padding).apply(x, flow), Spatial(COLOUR, padding).apply(x, shift))


def test_blur_keeps_constants_and_flattens_the_rest() -> None:
    blur, x = Blur(GREY, 3), inputs(GREY, 2)
    theta = torch.full((2, 1), 1.5, dtype=torch.float64)
    assert torch.allclose(blur.apply(torch.full_like(x, 0.7), theta), torch.full_like(x, 0.7))
    assert bool((blur.apply(x, theta).std(1) < x.std(1) / 2).all())


def test_jpeg_rounds_coefficients_to_multiples_of_its_steps() -> None:
    layout, half = Layout(1, 8, 8), torch.full((2, 1), 50.0, dtype=torch.float64)
    x = inputs(layout, 2)
    once = Jpeg(layout).apply(x, half)
    assert torch.allclose(Jpeg(layout).apply(once, half), once, atol=1e-12)
    # The constant coefficient is 8 times the mean; its step is 16 / 255.
    multiple = once.mean(1) * 8 * 255 / 16
    assert torch.allclose(multiple, multiple.round(), atol=1e-9)
    errors = [float((Jpeg(layout).apply(x, 0 * half + q) - x).norm()) for q in (100, 90, 50, 10, 1)]
    assert errors == sorted(errors) and errors[0] == 0


def test_roughness_is_zero_for_constant_flows_and_counts_pairs() -> None:
    layout = Layout(1, 2, 2)
    flow = torch.zeros(1, 8, dtype=torch.float64)
    assert float(Roughness(layout, 1.0)(flow + 3, torch.zeros(1))) < 1e-5
    flow[0, 0], flow[0, 4] = 3, 4  # one pixel, two neighbours
    assert float(Roughness(layout, 0.5)(flow, torch.zeros(1))) == pytest.approx(5, abs=1e-5)


def test_a_penalty_pulls_at_losses_and_not_at_margins() -> None:
    layout = Layout(1, 6, 6)
    x, oracle = inputs(layout, 4, dtype=torch.float32), classifier(36)
    box = (torch.tensor(-1.0), torch.tensor(1.0))
    rough = []
    for weight in (0.0, 1.0):
        problem = transformed(
            oracle, own_labels(oracle, x), Transformed(Flow(layout), x), box, Roughness(layout, weight)
        )
        who, theta = torch.arange(4), torch.full((4, 72), 0.3)
        theta[:, 10] = -0.3
        _, margin, gradient = Trial(problem).descend(theta, who, Margin())
        assert torch.equal(margin, problem.goal.margin(oracle.outputs(problem.inputs(theta, who)), who))
        rough.append(gradient[:, 10])
    assert bool((rough[1] < rough[0]).all())


@dataclass(frozen=True)
class Turned:
    """An oracle in float64: the first class as long as a bar at the left edge of the turned image stays dark."""

    threshold: float
    differentiable = True
    rows = 64
    device = torch.device("cpu")

    def outputs(self, points: Tensor) -> Tensor:
        score = points.reshape(-1, 9, 9)[:, 0, 2].to(torch.float32)
        return torch.stack([torch.full_like(score, self.threshold), score], 1)


def bar_problem(limit: float) -> Problem:
    """A vertical bar through the middle: the pixel at (0, 2) becomes light where the image is turned by 20 degrees or
    more, one way alone (the angle of (-4, -2) to the bar is 26.6 degrees)."""
    layout = Layout(1, 9, 9)
    image = torch.zeros(1, 1, 9, 9)
    image[..., 4] = 1
    view = Transformed(Spatial(layout), image.flatten(1), (0.0, 1.0))
    at_20 = view(torch.tensor([[math.radians(20), 0, 0], [-math.radians(20), 0, 0]]), torch.zeros(2, dtype=torch.int64))
    threshold = float(at_20.reshape(2, 9, 9)[:, 0, 2].max())
    assert 0.1 < threshold < 0.9
    ends = torch.tensor([math.radians(limit), 0, 0], dtype=torch.float64)
    return transformed(Turned(threshold), Misclassified(torch.zeros(1, dtype=torch.int64)), view, (-ends, ends))


@pytest.mark.parametrize("method", [Grid(31), WorstOf(40), Apgd(steps=20, restarts=10), Pgd(steps=20, restarts=10)])
def test_a_rotation_that_is_needed_is_found(method: Attack) -> None:
    found = attack(bar_problem(30), method)
    assert bool(found.found[0]) and abs(float(found.points[0, 0])) > math.radians(19.99)
    assert not found.points[0, 1:].any()
    missed = attack(bar_problem(19), method)
    assert not bool(missed.found[0]) and abs(float(missed.points[0, 0])) <= math.radians(19)


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("method", [Apgd(steps=8), WorstOf(5), Pgd(steps=5, start=Centre())])
def test_parameters_stay_in_their_box_and_runs_repeat(make: Callable[[Layout], Transform], method: Attack) -> None:
    x = inputs(GREY, 3, dtype=torch.float32)
    oracle, transform = classifier(GREY.size), make(GREY)
    one = torch.ones_like(transform.neutral)
    lower, upper = (transform.neutral - one / 3, transform.neutral + one / 3)
    if isinstance(transform, Jpeg | Blur):
        lower, upper = (transform.neutral - 90.1, transform.neutral) if isinstance(transform, Jpeg) else (0 * one, one)
    problem = transformed(oracle, own_labels(oracle, x), Transformed(transform, x, (0.0, 1.0)), (lower, upper))
    first, again = attack(problem, method, seed=3), attack(problem, method, seed=3)
    assert torch.equal(first.points, again.points) and torch.equal(first.margin, again.margin)
    points = first.points.double()
    assert bool((points >= lower).all()) and bool((points <= upper).all())
    who = torch.arange(3)
    images = problem.inputs(first.points, who)
    assert bool((images >= 0).all()) and bool((images <= 1).all())
    assert torch.allclose(problem.goal.margin(oracle.outputs(images), who), first.margin, atol=1e-5)


def test_the_grid_takes_all_combinations_and_the_worst_of_them() -> None:
    """A margin that is never at most 0: a bowl upside down over a box, least at one corner."""
    x = torch.zeros(2, 2)
    oracle = GraphOracle.of(affine(torch.tensor([[0.0, 1.0], [0.0, -2.0]]), torch.tensor([10.0, 0.0])))
    box = (torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 1.0]))
    problem = transformed(oracle, Misclassified(torch.zeros(2, dtype=torch.int64)), Transformed(Additive(2), x), box)
    found = attack(problem, Grid(4))
    assert found.points.tolist() == [[1, 0], [1, 0]] and found.evaluations.tolist() == [16, 16]
    assert attack(problem, Grid(4), budget=5).evaluations.tolist() == [5, 5]
    assert attack(problem, Grid(1)).points.tolist() == [[0, 0.5], [0, 0.5]]
    assert attack(problem, WorstOf(300)).evaluations.tolist() == [300, 300]
    with pytest.raises(InputError, match="for each of 2 parameters"):
        attack(problem, Grid(1001))


def test_layouts_and_ranges() -> None:
    assert Layout.of((1, 3, 9, 7)) == Layout(3, 9, 7) and Layout.of((9, 7, 3)) == Layout(3, 9, 7, True)
    assert Layout.of((784,)) == Layout(1, 28, 28) and Layout.of((1, 1, 8, 8)) == Layout(1, 8, 8)
    for shape in ((5,), (3, 8, 3), (8, 8, 8)):
        with pytest.raises(InputError, match="name its Layout"):
            Layout.of(shape)
    x = inputs(COLOUR)
    assert torch.equal(COLOUR.flat(COLOUR.images(x)), x) and COLOUR.images(x).shape == (3, 3, 9, 7)
    assert torch.equal(COLOUR.images(x)[0, 1, 2, 3], x[0].reshape(9, 7, 3)[2, 3, 1])
    with pytest.raises(InputError, match="outside the data range"):
        transformed(classifier(25), Misclassified(torch.zeros(3)), Transformed(Brightness(), 2 * x, (0, 1)), (x, x))


def test_boxes_of_parameters_are_rounded_inwards() -> None:
    view = Transformed(Brightness(), torch.zeros(2, 4))
    third = torch.tensor(1 / 3, dtype=torch.float64)
    box = parameter_box(view, (-third, third))
    assert box.lower.shape == (2, 1) and box.lower.dtype == torch.float32
    assert float(box.upper[0, 0]) <= 1 / 3 < float(np.nextafter(np.float32(box.upper[0, 0]), np.float32(1)))
    assert torch.equal(box.lower, -box.upper)
