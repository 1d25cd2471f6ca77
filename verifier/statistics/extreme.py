"""CLEVER: a local Lipschitz constant, and with it a lower limit of the minimal distortion, by extreme value theory.

Weng et al., Evaluating the robustness of neural networks: an extreme value theory approach, ICLR 2018. The maxima of
gradient norms over batches of samples follow, in the limit, a reverse Weibull distribution whose end point is the
greatest norm in the ball. Where the fit fails the estimate is refused. It stays an estimate in any case: batches are
finite, so that the limits cover the truth less often than they say (docs/results.md), and a network can be steep where
no sample falls (Goodfellow, Gradient masking causes CLEVER to overestimate adversarial perturbation
size, 2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bounds import Graph, LpBall
from bounds.layouts import flat
from verifier.errors import InputError, UnsupportedError
from verifier.ranges import jumps
from verifier.regions import check_norm
from verifier.statistics.estimate import Estimate, Refused, check_confidence, check_count
from verifier.statistics.sampling import uniform
from verifier.statistics.violations import check_graph, chunk, margins_of
from verifier.statistics.weibull import Fit, distances, fitted, location_limits, resampled

METHOD = "CLEVER"
LIPSCHITZ = "the greatest dual norm of the margin's gradient in the ball"
DISTORTION = (
    "the margin over its greatest gradient norm in the ball, at most the radius: the minimal distortion is not smaller"
)

LEAST_BATCHES = 50
SIGNIFICANCE = 0.05
DRAWS = 199

Norm = Literal["inf", "2", "1"]


@dataclass(frozen=True, slots=True)
class Targeted:
    """Of one class ``target``: the ``margin`` at the input, and estimates of the ``lipschitz`` constant of the margin
    in the ball and of the ``distortion`` that it takes at least to reach the class."""

    target: int
    margin: float
    lipschitz: Estimate | Refused
    distortion: Estimate | Refused


@dataclass(frozen=True, slots=True)
class Clever:
    """``targeted``, class by class, and the least of them: ``untargeted``, refused where one of them is."""

    targeted: tuple[Targeted, ...]
    untargeted: Estimate | Refused


@dataclass(frozen=True, slots=True)
class _Plan:
    """``batches`` of ``samples`` points, the ``confidence`` of one class' limits, and the seed."""

    batches: int
    samples: int
    confidence: float
    seed: int


def clever(  # noqa: PLR0913 - the questions that a caller may ask
    graph: Graph,
    x: Tensor,
    label: int,
    radius: float,
    norm: Norm = "2",
    *,
    targets: Sequence[int] | None = None,
    batches: int = 200,
    samples: int = 256,
    confidence: float = 0.95,
    seed: int = 0,
) -> Clever:
    """Estimates of how far ``x`` ``[*input shape]`` is from being classified otherwise than ``label``.

    For each class of ``targets`` (default: all others), of the margin ``output[label] - output[target]``, the dual norm
    of its gradient is taken at ``batches`` times ``samples`` uniform points of the ball of ``radius`` in ``norm``. The
    maxima of the batches are fitted; with the end point L the distortion is ``min(margin / L, radius)``. Limits of L
    are those of its profile likelihood, with Bartlett's correction; they hold for all targets together (Bonferroni).

    An estimate is ``Refused`` where a maximum comes twice (the gradient is constant on pieces), where no end point can
    be seen, and where a Kolmogorov-Smirnov test rejects the fit at 5 % (a parametric bootstrap, since the parameters
    are fitted to the same maxima: one in twenty good fits is refused too).

    Raises ``InputError`` for arguments that do not fit (fewer than 50 batches among them) and where another class is
    ahead at ``x``, ``UnsupportedError`` for a network with jumps, which has no Lipschitz constant.
    """
    check_confidence(confidence)
    check_count("batches", batches, LEAST_BATCHES)
    check_count("samples", samples, 2)
    ball = _ball(graph, x, radius, norm)
    rows, chosen = _rows(graph, label, targets)
    margins = (rows @ flat(graph.evaluate(ball.centre)[0])[0]).tolist()
    for target, margin in zip(chosen, margins, strict=True):
        if not math.isfinite(margin):
            raise InputError(f"at the input the margin over class {target} is {margin}: its scores are not finite")
        if margin <= 0:
            raise InputError(
                f"label {label}: at the input class {target} scores as much or more (margin {margin:.6g}), so that the "
                "distortion is 0"
            )
    plan = _Plan(batches, samples, 1 - (1 - confidence) / len(chosen), seed)
    maxima = _maxima(graph, ball, rows, plan)
    found = tuple(
        _targeted(target, margin, column, radius, plan)
        for target, margin, column in zip(chosen, margins, maxima.T, strict=True)
    )
    return Clever(found, _least(found, confidence))


def _ball(graph: Graph, x: Tensor, radius: float, norm: str) -> LpBall:
    check_graph(graph)
    if places := jumps(graph):
        raise UnsupportedError(
            f"the network jumps at {', '.join(places)}: it has no Lipschitz constant (splitting and monte_carlo "
            "estimate the probability of a violation without one)"
        )
    check_norm(norm)
    shape = graph.nodes[graph.inputs[0]].shape
    if not isinstance(x, Tensor) or tuple(x.shape) != shape:
        raise InputError(f"x {tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__}: one tensor of {shape}")
    if not (radius > 0 and math.isfinite(radius)):
        raise InputError(f"radius {radius}: a finite number above 0 is needed")
    try:
        return LpBall(x.detach().to(torch.float64)[None], torch.tensor([radius], dtype=torch.float64), float(norm))
    except ValueError as error:
        raise InputError(str(error)) from error


def _rows(graph: Graph, label: int, targets: Sequence[int] | None) -> tuple[Tensor, list[int]]:
    rows = flat(margins_of(graph, label))
    others = [k for k in range(len(rows) + 1) if k != label]
    chosen = others if targets is None else list(targets)
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(others):
        raise InputError(f"targets {chosen}: other classes than the label, each once, of {others}")
    return rows[[others.index(k) for k in chosen]], chosen


def _maxima(graph: Graph, ball: LpBall, rows: Tensor, plan: _Plan) -> np.ndarray:
    """``[batches, targets]``: the greatest dual norm of the gradient in each batch."""
    source = uniform(ball, tuple(ball.centre.shape[1:]))
    generator = torch.Generator().manual_seed(plan.seed)
    at_once = max(1, chunk(graph) // (2 * plan.samples))
    order = {math.inf: 1.0, 2: 2.0, 1: math.inf}[ball.p]
    found = []
    for start in range(0, plan.batches, at_once):
        count = min(at_once, plan.batches - start)
        points = source.points(source.draw(count * plan.samples, generator))
        norms = [_norms(graph, part, rows, order) for part in points.split(chunk(graph))]
        found.append(torch.cat(norms).reshape(count, plan.samples, -1).amax(1))
    return torch.cat(found).numpy()


def _norms(graph: Graph, points: Tensor, rows: Tensor, order: float) -> Tensor:
    """``[N, targets]``: norms of the gradients of ``rows . output`` at the points."""
    points = points.detach().requires_grad_(True)
    with torch.enable_grad():
        values = flat(graph.evaluate(points)[0]) @ rows.T
        gradients = [
            torch.autograd.grad(values[:, k].sum(), points, retain_graph=k + 1 < len(rows))[0] for k in range(len(rows))
        ]
    norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), order, dim=1) for g in gradients], 1)
    if not bool(torch.isfinite(norms).all()):
        raise InputError("the gradient is not finite at a sampled point of the ball: choose a smaller radius")
    return norms


def _targeted(target: int, margin: float, maxima: np.ndarray, radius: float, plan: _Plan) -> Targeted:
    taken = plan.batches * plan.samples
    reason, p_value = _tied(maxima, margin), None
    if not reason:
        fit = fitted(maxima[None])
        again = resampled(fit, plan.batches, DRAWS, plan.seed)
        p_value = again.p_value(float(distances(fit, maxima[None])[0]))
        reason = _misfit(fit, p_value, plan)
    if reason:
        refusals = (Refused(quantity, METHOD, reason, p_value, taken) for quantity in (LIPSCHITZ, DISTORTION))
        return Targeted(target, margin, *refusals)
    assert p_value is not None
    lower, upper = location_limits(fit, maxima[None], plan.confidence, again.ratio)
    assumed = _assumptions(float(fit.shape[0]), p_value, plan)
    end = float(fit.location[0])
    lipschitz = Estimate(end, lower, upper, plan.confidence, LIPSCHITZ, METHOD, taken, assumed)
    value, low, high = (min(margin / constant, radius) for constant in (end, upper, lower))
    distortion = Estimate(value, low, high, plan.confidence, DISTORTION, METHOD, taken, assumed)
    return Targeted(target, margin, lipschitz, distortion)


def _tied(maxima: np.ndarray, margin: float) -> str:
    """Why maxima without enough different values are no sample of a reverse Weibull distribution; empty: they are."""
    most = float(maxima.max())
    count = int((maxima >= most * (1 - 1e-12)).sum())
    if count == 1:
        return ""
    found = f"{count} of the maxima of {len(maxima)} batches are the same, {most:.6g}"
    found += f" (margin over it: {margin / most:.6g})" if most > 0 else ""
    return (
        f"{found}: the gradient is constant on pieces, and no continuous distribution fits. More samples do not change "
        "that; milp.distortion (verifier.exact_radius) proves the distance where a network is linear piece by piece"
    )


def _misfit(fit: Fit, p_value: float, plan: _Plan) -> str:
    taken = f"{plan.batches} batches of {plan.samples} samples"
    if bool(fit.open_ended[0]):
        return f"the likelihood has no maximum at a finite end point ({taken}): larger batches may show one"
    if p_value < SIGNIFICANCE:
        return (
            f"the Kolmogorov-Smirnov test rejects a reverse Weibull distribution of the maxima: p = {p_value:.3g}, "
            f"below {SIGNIFICANCE} ({taken}); larger batches may be nearer to their limit"
        )
    return ""


def _assumptions(shape: float, p_value: float, plan: _Plan) -> tuple[str, ...]:
    regular = "above 2, as it should be" if shape > 2 else "not above 2, where this is not proven"
    return (
        "maxima over batches of uniform samples have a reverse Weibull distribution, as they do in the limit of large "
        f"batches, and {plan.batches} of {plan.samples} do not contradict it (Kolmogorov-Smirnov, p = {p_value:.3g})",
        "its end point is the greatest gradient norm in the ball: nothing steeper is hidden where no sample falls",
        "that is the margin's Lipschitz constant: it has a gradient almost everywhere, and no jumps",
        "how far the maxima are from that limit is not counted: on ridge functions of 2 to 20 inputs limits at 95 % "
        "held the truth in 79 to 97 of 100 experiments",
        "twice the profile log-likelihood of the end point is chi-squared up to a factor, seen by resampling (the "
        f"fitted shape {shape:.3g} is {regular})",
        "the network is the one computed in float64",
    )


def _least(found: tuple[Targeted, ...], confidence: float) -> Estimate | Refused:
    """The least distortion of all classes."""
    estimates = [t.distortion for t in found if isinstance(t.distortion, Estimate)]
    refused = [t for t in found if isinstance(t.distortion, Refused)]
    samples = found[0].distortion.samples
    if refused:
        first = refused[0].distortion
        assert isinstance(first, Refused)
        classes = ", ".join(str(t.target) for t in refused)
        reason = f"refused for the classes {classes} of {len(found)}; for class {refused[0].target}: {first.reason}"
        return Refused(DISTORTION, METHOD, reason, first.p_value, samples)
    every = tuple(dict.fromkeys(sentence for e in estimates for sentence in e.assumptions))
    return Estimate(
        value=min(e.value for e in estimates),
        lower=min(e.lower for e in estimates),
        upper=min(e.upper for e in estimates),
        confidence=confidence,
        quantity=DISTORTION,
        method=METHOD,
        samples=samples,
        assumptions=every,
    )
