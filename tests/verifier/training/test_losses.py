"""Losses by hand on small problems; adversaries stay inside; certified losses bound the worst case."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bounds import Box, Crown, Interval, compute_bounds, margins, trace
from verifier.errors import InputError
from verifier.training import (
    Adversarial,
    Adversary,
    CentreLoss,
    Certified,
    CrossEntropy,
    Expressive,
    Loss,
    Plain,
    Settings,
    SmoothAdversarial,
    Trades,
    centres,
    epochs,
    initialise,
    ramp,
    with_centres,
)
from verifier.training.losses import divergence


def small(seed: int = 0) -> nn.Sequential:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    initialise(module, seed)
    with torch.no_grad():
        for values in module.parameters():
            values.mul_(2)
    return module


def line() -> nn.Linear:
    """Outputs (w . x, 0) with w = (2, -1): the worst point of a box for class 0 is at -sign(w)."""
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[2.0, -1.0], [0.0, 0.0]]))
        module.bias.zero_()
    return module


def batch(count: int = 12, size: int = 4) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.rand(count, size, generator=draw), torch.arange(count) % 3


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LOSSES: dict[str, Loss] = {
    "plain": Plain(),
    "gaussian": Plain(0.25),
    "adversarial": Adversarial(Adversary(0.1)),
    "smooth": SmoothAdversarial(0.25, Adversary(0.2, 3, "2")),
    "trades": Trades(Adversary(0.1, start=0.1)),
    "centres": Plain(objective=CentreLoss(centres(3, 3))),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_gradients_reach_all_parameters_and_chance_comes_from_the_generator(loss: Loss) -> None:
    module, (x, y) = small(), batch()
    state = torch.get_rng_state()
    value = loss(module, x, y, draw(3))
    assert value.shape == ()
    assert float(value.detach()) == float(loss(module, x, y, draw(3)).detach())
    value.backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_losses_by_hand() -> None:
    """Of outputs (2 a - b, 0) at (1, 1): the margin of class 0 is 1; within 0.1 of each element it falls to 0.7, and
    within 0.1 in the norm 2 to 1 - 0.1 sqrt(5)."""
    module, x, y = line(), torch.ones(1, 2), torch.zeros(1, dtype=torch.int64)

    def entropy(margin: float) -> float:
        return math.log1p(math.exp(-margin))

    def value(loss: Loss) -> float:
        return float(loss(module, x, y, draw()).detach())

    assert value(Plain()) == pytest.approx(entropy(1.0), rel=1e-6)
    box, ball = Adversary(0.1), Adversary(0.1, norm="2")
    assert value(Adversarial(box)) == pytest.approx(entropy(0.7), rel=1e-6)
    assert value(Adversarial(ball)) == pytest.approx(entropy(1 - 0.1 * 5**0.5), rel=1e-4)
    one, other = torch.tensor([1.0, 0.0]).softmax(0), torch.tensor([1.3, 0.0]).softmax(0)
    two = torch.tensor([0.7, 0.0]).softmax(0)
    apart = max(float((one * (one / q).log()).sum()) for q in (two, other))
    trades = Trades(Adversary(0.1, start=0.1), beta=4.0)
    assert value(trades) in (
        pytest.approx(entropy(1.0) + 4 * apart, rel=1e-4),
        pytest.approx(entropy(1.0) + 4 * float((one * (one / other).log()).sum()), rel=1e-4),
    )
    certified = replace(Certified.of(module, x, 0.1), kappa=0.0)
    assert value(certified) == pytest.approx(entropy(0.7), rel=1e-6)
    half = replace(certified, kappa=0.25, within=(0.95, 2.0))
    assert value(half) == pytest.approx(0.25 * entropy(1) + 0.75 * entropy(0.8), rel=1e-6)


def test_smooth_losses_without_an_adversary_are_gaussian_ones() -> None:
    module, (x, y) = small(), batch()
    still = SmoothAdversarial(0.25, Adversary(0.0, 1, "2"), samples=1)
    found = [loss(module, x, y, draw(2)).item() for loss in (still, Plain(0.25))]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    moved = SmoothAdversarial(0.25, Adversary(0.3, 5, "2"), samples=1)
    assert moved(module, x, y, draw(2)).item() > found[0]


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_adversaries_stay_inside_and_gain(norm: str) -> None:
    module, (x, y) = small(), batch()
    adversary = Adversary(0.2, 5, norm, (0.0, 1.0))  # type: ignore[arg-type]

    def values(points: Tensor) -> Tensor:
        return CrossEntropy()(module(points), y)

    points = adversary.points(values, x, draw())
    assert not points.requires_grad
    assert bool((points >= 0).all()) and bool((points <= 1).all())
    assert float((points - x).norm(p=float(norm), dim=1).max()) <= 0.2 * (1 + 1e-5)
    assert bool((values(points) > values(x)).all())
    assert all(p.grad is None for p in module.parameters())


def test_adversaries_leave_the_statistics_of_batches_alone() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    initialise(module)
    norm = module[1]
    assert isinstance(norm, nn.BatchNorm1d) and norm.num_batches_tracked is not None
    module.train()
    norm.eval()
    x, y = batch()
    Adversarial(Adversary(0.1))(module, x, y, draw())
    assert module.training and not norm.training
    norm.train()
    Adversarial(Adversary(0.1))(module, x, y, draw())
    assert int(norm.num_batches_tracked) == 1


def test_divergence_is_that_of_softmax() -> None:
    first, second = torch.tensor([[0.3, -1.0, 2.0]]), torch.tensor([[1.0, 0.0, 0.5]])
    p, q = first.softmax(1), second.softmax(1)
    assert float(divergence(first, second)) == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)
    assert float(divergence(first, first + 3)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("classes", "size"), [(2, 1), (3, 2), (10, 9), (10, 16)])
def test_centres_are_a_regular_simplex(classes: int, size: int) -> None:
    found = centres(classes, size, 2.0).double()
    expected = torch.full((classes, classes), -4 / (classes - 1), dtype=torch.float64).fill_diagonal_(4)
    torch.testing.assert_close(found @ found.T, expected, rtol=1e-5, atol=1e-5)


def test_the_class_is_that_of_the_nearest_centre() -> None:
    points, features = centres(5, 6), nn.Linear(4, 6)
    initialise(features)
    x = 5 * torch.randn(50, 4, generator=draw())
    nearest = torch.cdist(features(x), points).argmin(1)
    assert torch.equal(with_centres(features, points)(x).argmax(1), nearest)
    loss = CentreLoss(points)(points[:2] + 1, torch.tensor([0, 1]))
    torch.testing.assert_close(loss, torch.full((2,), 3.0))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_certified_losses_are_never_below_the_worst_point(share: float) -> None:
    module, (x, y) = small(), batch()
    loss = replace(Certified.of(module, x[:1], 0.1, (0.0, 1.0)), kappa=0.0, share=share)
    certified = functional.cross_entropy(-loss.margins(x, y), y, reduction="none")
    assert float(loss(module, x, y, draw())) == pytest.approx(float(certified.mean()), rel=1e-6)
    points = (x + 0.1 * (2 * torch.rand(2000, *x.shape, generator=draw()) - 1)).clamp(0, 1)
    corners = (x + 0.1 * (2 * torch.rand(2000, *x.shape, generator=draw(1)) - 1).sign()).clamp(0, 1)
    for some in (points, corners):
        outputs = module(some)
        gaps = outputs.gather(2, y.expand(2000, -1).unsqueeze(2)) - outputs
        assert bool((gaps.amin(0) >= loss.margins(x, y) - 1e-5).all())
        worst = CrossEntropy()(outputs.flatten(0, 1), y.repeat(2000)).reshape(2000, -1).amax(0)
        assert bool((certified >= worst - 1e-5).all())


def test_expressive_losses_lie_between_an_adversary_and_a_bound() -> None:
    """Their value is the definition's; at the ends they are one of the two alone, and what they hold of the certified
    one bounds the loss at all points of the box."""
    module, (x, y) = small(), batch()
    adversarial, certified = Adversarial(Adversary(0.1)), Certified.of(module, x[:1], 0.1, kappa=0.0)

    def value(weight: float) -> float:
        return float(Expressive(adversarial, certified, weight)(module, x, y, draw()))

    below, above = float(adversarial(module, x, y, draw())), float(certified(module, x, y, draw()))
    assert below < above - 0.01
    assert (value(0.0), value(1.0)) == (below, above)
    assert value(0.25) == pytest.approx(0.75 * below + 0.25 * above, rel=1e-6)
    points = x + 0.1 * (2 * torch.rand(2000, *x.shape, generator=draw(2)) - 1).sign()
    worst = CrossEntropy()(module(points.flatten(0, 1)), y.repeat(2000)).reshape(2000, -1).amax(0).mean()
    assert (value(0.4) - 0.6 * below) / 0.4 >= float(worst) - 1e-5


def test_gradients_of_expressive_losses_are_those_of_both_parts() -> None:
    module, (x, y) = small(), batch()
    adversarial, certified = Adversarial(Adversary(0.1)), Certified.of(module, x[:1], 0.1, kappa=0.0)
    parameters = list(module.parameters())
    one, other, both = (
        torch.autograd.grad(loss(module, x, y, draw()), parameters)
        for loss in (adversarial, certified, Expressive(adversarial, certified, 0.3))
    )
    for first, second, found in zip(one, other, both, strict=True):
        assert float((first - second).abs().max()) > 1e-3
        torch.testing.assert_close(found, 0.7 * first + 0.3 * second, rtol=1e-4, atol=1e-6)


def test_ramps_of_expressive_losses_let_the_certified_part_grow() -> None:
    module, (x, _) = small(), batch()
    adversarial = Adversarial(Adversary(0.2))
    scheduled = ramp(Expressive(adversarial, Certified.of(module, x[:1], 0.2, kappa=0.0), 0.3), 0.2, 0.7)
    for done, epsilon, kappa in ((0.1, 0.0, 1.0), (0.45, 0.1, 0.5), (0.9, 0.2, 0.0)):
        now = scheduled.at(done)
        assert isinstance(now, Expressive)
        assert (now.weight, now.adversarial) == (0.3, adversarial)
        assert (now.certified.epsilon, now.certified.kappa) == (pytest.approx(epsilon), pytest.approx(kappa))


def test_margins_are_those_of_the_bounds() -> None:
    """Class by class as ``compute_bounds`` gives them; linear bounds are tighter than intervals, at most CROWN's."""
    module, (x, y) = small(), batch()
    loss = Certified.of(module, x[:1], 0.05)
    with torch.no_grad():
        intervals, crown = loss.margins(x, y), replace(loss, share=1.0).margins(x, y)
        middle = replace(loss, share=0.25).margins(x, y)
        graph = trace(module.eval(), x[:1])
        for k in (0, 4, 11):
            label = int(y[k])
            others = [c for c in range(3) if c != label]
            box = Box((x[k : k + 1] - 0.05).unsqueeze(1), (x[k : k + 1] + 0.05).unsqueeze(1))
            expected = compute_bounds(graph, box, Interval(), rows=margins(graph, label), semantics=None).lower[0]
            torch.testing.assert_close(intervals[k, others], expected, rtol=1e-4, atol=1e-5)
            best = compute_bounds(graph, box, Crown(), rows=margins(graph, label), semantics=None).lower[0]
            assert bool((crown[k, others] <= best + 1e-4).all())
            assert float(intervals[k, label]) == float(crown[k, label]) == 0
    assert bool((crown >= intervals - 1e-5).all()) and bool((crown > intervals + 0.01).any())
    torch.testing.assert_close(middle, 0.75 * intervals + 0.25 * crown, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_gradients_of_certified_losses_are_true(share: float) -> None:
    """Against differences in float64, and after the parameters have changed in place."""
    module, (x, y) = small().double(), batch(4)
    loss = replace(Certified.of(module, x[:1].double(), 0.05), kappa=0.3, share=share)
    with torch.no_grad():
        next(module.parameters()).mul_(0.9)
    value = loss(module, x.double(), y, draw())
    found = torch.autograd.grad(value, list(module.parameters()))
    for values, gradient in zip(module.parameters(), found, strict=True):
        way = torch.randn(values.shape, generator=draw(5), dtype=torch.float64)
        with torch.no_grad():
            ends = []
            for sign in (1, -1):
                values.add_(sign * 1e-6 * way)
                ends.append(float(loss(module, x.double(), y, draw())))
                values.sub_(sign * 1e-6 * way)
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((gradient * way).sum()), rel=1e-4, abs=1e-7)


def test_ramps_go_from_natural_training_to_the_whole_loss() -> None:
    module, (x, y) = small(), batch()
    last = replace(Certified.of(module, x[:1], 0.2), kappa=0.5)
    scheduled = ramp(last, 0.2, 0.7, share=1.0)
    early, halfway, late = (scheduled.at(share) for share in (0.1, 0.45, 0.9))
    assert isinstance(early, Certified) and isinstance(halfway, Certified) and isinstance(late, Certified)
    assert (early.epsilon, early.kappa, early.share) == (0, 1, 1)
    assert halfway.epsilon == pytest.approx(0.1)
    assert (halfway.kappa, halfway.share) == (pytest.approx(0.75), pytest.approx(0.5))
    assert (late.epsilon, late.kappa, late.share) == (0.2, 0.5, 0)
    assert float(early(module, x, y, draw())) == pytest.approx(float(Plain()(module, x, y, draw())), rel=1e-6)


def test_certified_training_follows_statistics_of_batches() -> None:
    """Bounds of a network with normalisation hold for it as it is after some training."""
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    initialise(module)
    x, y = batch(30)
    loss = Certified.of(module, x[:1], 0.02)
    assert module.training
    before = loss.margins(x, y)
    for _ in epochs(module, x, y, loss, Settings(epochs=3, batch=10, rate=0.05)):
        pass
    module.eval()
    outputs = module(x)
    after = loss.margins(x, y)
    assert bool((outputs.gather(1, y[:, None]) - outputs >= after - 1e-5).all())
    assert not torch.allclose(before, after)


def test_errors_say_what_to_do() -> None:
    module, (x, y) = small(), batch()
    certified = Certified.of(module, x[:1], 0.1)
    with pytest.raises(InputError, match="another module"):
        certified(small(), x, y, draw())
    with pytest.raises(InputError, match="at least one"):
        Adversary(0.1, steps=0)
    with pytest.raises(InputError, match="inf and 2"):
        Adversary(0.1, norm="1")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="radius"):
        Adversary(math.nan)
    with pytest.raises(InputError, match="below"):
        Adversary(0.1, within=(1.0, 0.0))
    with pytest.raises(InputError, match="sigma"):
        Plain(-1.0)
    with pytest.raises(InputError, match="beta"):
        Trades(Adversary(0.1), beta=-1)
    with pytest.raises(InputError, match="samples"):
        SmoothAdversarial(0.1, Adversary(0.1), samples=0)
    with pytest.raises(InputError, match="classes - 1"):
        centres(10, 8)
    with pytest.raises(InputError, match=r"must return \[B, 4\]"):
        CentreLoss(centres(3, 4))(module(x), y)
    with pytest.raises(InputError, match="kappa"):
        replace(certified, kappa=2.0)
    with pytest.raises(InputError, match="weight"):
        Expressive(Plain(), certified, 1.5)
    with pytest.raises(InputError, match="begin < end"):
        ramp(certified, 0.5, 0.5)
