"""The probability of a rare violation by adaptive multi-level splitting (Webb, Rainforth, Teh and Kumar, A statistical
approach to assessing neural network robustness, ICLR 2019).

Points are drawn uniformly, the k of n with the least scores say where the next level lies, and the points below it are
multiplied and moved within what lies below, until the level is that of a violation. The probability is the product of
the shares. The logarithm of a level's share is estimated by its mean: of n uniform numbers the k-th smallest, u, has
``E[log u] = psi(k) - psi(n + 1)`` (digamma), so that logarithms of independent runs have the right mean, up to what
the moves fail to mix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.special import digamma
from scipy.stats import binom, t
from torch import Tensor

from bounds import Box, Graph, LpBall
from verifier.errors import InputError
from verifier.statistics.estimate import Estimate, Repeated, check_confidence, check_count
from verifier.statistics.proportions import QUANTITY, SAMPLED, clopper_pearson
from verifier.statistics.sampling import Uniform, moved, uniform
from verifier.statistics.violations import Violations, violations

_ACCEPTED = 0.3
"""The share of accepted moves that the width of the moves is adapted to."""

_LEAST_KEPT = 10

_FIRST_STEP, _LEAST_STEP = 0.5, 1e-6

MIXING = "between two levels the Metropolis-Hastings moves reach every part of what lies below the level (mixing)"
SPREAD = "logarithms of independent runs are about normally distributed around that of the probability (Student t)"
MEDIAN = "a run's estimate is not more often below the probability than above it (limits of the median, by signs)"


@dataclass(frozen=True, slots=True)
class _Plan:
    """How one run works: ``samples`` points, of which a share ``keep`` survives a level, ``moves`` of each between two
    levels, and the probability ``smallest`` below which it ends."""

    samples: int
    keep: float
    moves: int
    smallest: float


@dataclass(frozen=True, slots=True)
class _Run:
    """One run: the natural logarithm ``log`` of what it estimated (an upper limit of that where it was ``cut``), how
    often the network was evaluated, and the ``hits`` at the first level if it was the only one."""

    log: float
    evaluations: int
    cut: bool = False
    hits: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Points:
    """The points of R runs: ``noise`` ``[R, N, size]``, ``scores`` ``[R, N]``, widths of moves ``steps`` ``[R]``."""

    noise: Tensor
    scores: Tensor
    steps: Tensor

    def take(self, runs: Tensor, chosen: Tensor) -> _Points:
        """Of these runs the points ``chosen`` ``[runs, N]``."""
        index = chosen[:, :, None].expand(-1, -1, self.noise.shape[2])
        return _Points(self.noise[runs].gather(1, index), self.scores[runs].gather(1, chosen), self.steps[runs])


def splitting(  # noqa: PLR0913 - the questions that a caller may ask
    graph: Graph,
    region: Box | LpBall,
    *,
    label: int | None = None,
    rows: Tensor | None = None,
    threshold: float = 0.0,
    runs: int = 10,
    samples: int = 500,
    keep: float = 0.25,
    moves: int = 20,
    smallest: float = 1e-30,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The probability that a uniform point of ``region`` (one ``Box`` or ``LpBall``) is a violation, however small.

    A violation, with ``label``: another class scores at least as much; with ``rows`` ``[R, *output shape]``: some
    ``rows[r] . output <= threshold``. ``runs`` independent runs with ``samples`` points each; a share ``keep`` of them
    survives a level, and each is moved ``moves`` times between two levels. ``repeated`` has the logarithms of the runs
    and their variance; the value is their geometric mean and the limits are Student's t of the logarithms.

    A run that gets below the probability ``smallest``, or finds no point below a level, is cut off. Then only an upper
    limit is claimed (the lower one is 0): that of the median of the runs, which needs 6 runs at 95 %. Where
    all runs end at the first level, this is plain sampling, and the limits are exact (Clopper-Pearson).

    Raises ``InputError``: arguments that do not fit, too few runs (it says how many are needed), outputs that are
    not finite.
    """
    check_confidence(confidence)
    plan = _Plan(samples, keep, moves, smallest)
    _check(plan, runs, confidence)
    asked = violations(graph, label, rows, threshold)
    source = uniform(region, graph.nodes[graph.inputs[0]].shape)
    generator = torch.Generator().manual_seed(seed)
    found = _runs(asked, source, plan, runs, generator)
    return _summary(found, plan, confidence)


def _check(plan: _Plan, runs: int, confidence: float) -> None:
    check_count("runs", runs, 2)
    check_count("samples", plan.samples, 2 * _LEAST_KEPT)
    check_count("moves", plan.moves, 1)
    if not 0 < plan.keep <= 0.9 or plan.keep * plan.samples < _LEAST_KEPT:
        raise InputError(
            f"keep={plan.keep}: a share of at most 0.9 that leaves at least {_LEAST_KEPT} of {plan.samples} samples"
        )
    if not 0 < plan.smallest < 1:
        raise InputError(f"smallest={plan.smallest}: a probability above 0 and below 1 is needed")
    needed = math.ceil(math.log2(2 / (1 - confidence)))
    if runs < needed:
        raise InputError(f"runs={runs}: {needed} independent runs are needed for a confidence of {confidence}")


def _runs(asked: Violations, source: Uniform, plan: _Plan, runs: int, generator: torch.Generator) -> list[_Run]:
    """Independent runs, side by side: one batch of points has those of all runs that are not at their end."""
    count = plan.samples
    noise = source.draw(runs * count, generator).reshape(runs, count, -1)
    points = _Points(noise, _scores(asked, source, noise)[0], torch.full((runs,), _FIRST_STEP, dtype=torch.float64))
    totals, evaluations, found = [0.0] * runs, count, []
    while totals:
        levels = points.scores.kthvalue(math.ceil(plan.keep * count), dim=1).values
        going, chosen = [], []
        for place, level in enumerate(levels.tolist()):
            below = (points.scores[place] < level).nonzero().flatten()
            ended = _end(points.scores[place], level, len(below), totals[place], evaluations, plan)
            if ended is not None:
                found.append(ended)
                continue
            totals[place] += _log_share(len(below), count)
            order = below[torch.randperm(len(below), generator=generator)]
            going.append(place)
            chosen.append(order[torch.arange(count) % len(order)])
        totals = [totals[place] for place in going]
        if totals:
            kept = torch.tensor(going)
            points = points.take(kept, torch.stack(chosen))
            for _ in range(plan.moves):
                points = _move(asked, source, points, levels[kept], generator)
        evaluations += plan.moves * count
    return found


def _end(scores: Tensor, level: float, below: int, total: float, evaluations: int, plan: _Plan) -> _Run | None:
    """What a run has found, where its next level would be the last one; else None."""
    if level <= 0:
        hits = int((scores <= 0).sum())
        first = hits if evaluations == plan.samples else None
        return _Run(total + _log_share(hits, plan.samples), evaluations, hits=first)
    if not below:  # many points share the least score: nothing lies below it
        return _Run(total - math.log(plan.samples), evaluations, cut=True)
    if total + _log_share(below, plan.samples) < math.log(plan.smallest):
        return _Run(math.log(plan.smallest), evaluations, cut=True)
    return None


def _log_share(below: int, count: int) -> float:
    """The logarithm of the share below a level that is the next larger one of ``count`` numbers."""
    return float(digamma(below + 1) - digamma(count + 1))


def _scores(asked: Violations, source: Uniform, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Scores ``[R, N]`` of the points of noise ``[R, N, size]``, and which lie within the region's box."""
    points = source.points(noise.flatten(0, 1))
    return asked.scores(points).reshape(noise.shape[:2]), source.inside(points).reshape(noise.shape[:2])


def _move(asked: Violations, source: Uniform, points: _Points, levels: Tensor, generator: torch.Generator) -> _Points:
    """One Metropolis-Hastings move of every point within the region below its run's level, and the next widths."""
    proposed = moved(points.noise, points.steps[:, None, None], generator)
    values, inside = _scores(asked, source, proposed)
    accepted = (values < levels[:, None]) & inside
    noise = torch.where(accepted[:, :, None], proposed, points.noise)
    steps = points.steps * (0.5 * (accepted.double().mean(1) - _ACCEPTED)).exp()
    return _Points(noise, torch.where(accepted, values, points.scores), steps.clamp(_LEAST_STEP, 1.0))


def _summary(found: list[_Run], plan: _Plan, confidence: float) -> Estimate:
    repeated = Repeated(tuple(-math.inf if run.cut else run.log for run in found))
    method = f"adaptive multi-level splitting, {len(found)} runs of {plan.samples} points"
    cut = sum(run.cut for run in found)
    if cut:
        method += f", {cut} cut off below {plan.smallest:g} or for want of points below a level"
    value, lower, upper, assumed = _limits(found, plan, confidence, repeated)
    evaluations = sum(run.evaluations for run in found)
    return Estimate(
        value, lower, upper, confidence, QUANTITY, method, evaluations, (*SAMPLED, *assumed), repeated=repeated
    )


def _limits(
    found: list[_Run], plan: _Plan, confidence: float, repeated: Repeated
) -> tuple[float, float, float, tuple[str, ...]]:
    """The value, its limits, and what they rest on."""
    runs = len(found)
    hits = [run.hits for run in found if run.hits is not None]
    if len(hits) == runs:
        total = runs * plan.samples
        return sum(hits) / total, *clopper_pearson(sum(hits), total, confidence), ()
    if any(run.cut for run in found):
        logs = sorted(run.log for run in found)
        above = max(int(binom.ppf((1 - confidence) / 2, runs, 0.5)), 1)  # so few of the runs are above their median
        finite = sorted(repeated.logs)
        middle = (finite[(runs - 1) // 2] + finite[runs // 2]) / 2
        upper = logs[runs - above]
        return math.exp(middle), 0.0, min(math.exp(upper), 1.0), (MIXING, MEDIAN)
    spread = math.sqrt(repeated.variance / runs) * float(t.ppf((1 + confidence) / 2, runs - 1))
    ends = (math.exp(repeated.mean - spread), min(math.exp(repeated.mean + spread), 1.0))
    return math.exp(repeated.mean), *ends, (MIXING, SPREAD)
