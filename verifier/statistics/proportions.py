"""Plain sampling: the share of violations among uniform points, with exact limits (Clopper and Pearson, 1934)."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor

from bounds import Box, Graph, LpBall
from verifier.errors import InputError
from verifier.statistics.estimate import Estimate, check_confidence, check_count
from verifier.statistics.sampling import uniform
from verifier.statistics.violations import violations

QUANTITY = "the probability that a uniform point of the region is a violation"

SAMPLED = (
    "points are uniform in the region and independent of each other, as far as the pseudo-random numbers are",
    "the network is the one computed in float64",
)

FINEST = 1e-4
"""The accuracy down to which the samples are counted that reach it: some hundred million."""

_AT_ONCE = 2**16

Hits = Literal["any", "none"]


def clopper_pearson(hits: int, samples: int, confidence: float = 0.95) -> tuple[float, float]:
    """Limits of a probability of which ``hits`` of ``samples`` independent trials were met.

    They cover the truth in at least a share ``confidence`` of all experiments, whatever it is: each side misses it with
    a probability of at most ``(1 - confidence) / 2``. Raises ``InputError``.
    """
    check_confidence(confidence)
    check_count("samples", samples, 1)
    if not 0 <= hits <= samples:
        raise InputError(f"{hits} hits of {samples} samples: a number from 0 to {samples} is needed")
    tail = (1 - confidence) / 2
    lower = 0.0 if hits == 0 else float(beta.ppf(tail, hits, samples - hits + 1))
    upper = 1.0 if hits == samples else float(beta.ppf(1 - tail, hits + 1, samples - hits))
    return lower, upper


def samples_needed(accuracy: float, confidence: float = 0.95, hits: Hits = "any") -> int:
    """The fewest samples whose Clopper-Pearson limits lie at most ``accuracy`` from the share of hits.

    ``hits``: "any", whatever is hit (about half of the samples is the hardest); "none", if no sample is a violation:
    ``log((1 - confidence) / 2) / log(1 - accuracy)``, rounded up. Raises ``InputError``, for "any" also where the
    accuracy is below ``FINEST``.
    """
    check_confidence(confidence)
    if not 0 < accuracy < 1:
        raise InputError(f"accuracy {accuracy}: a number between 0 and 1 is needed")
    if hits not in ("any", "none"):
        raise InputError(f"hits {hits!r}: 'any' or 'none'")
    if hits == "none":
        return math.ceil(math.log((1 - confidence) / 2) / math.log1p(-accuracy))
    if accuracy < FINEST:
        raise InputError(
            f"accuracy {accuracy}: plain sampling would need about {1 / accuracy / accuracy:.0e} samples; ask for "
            f"{FINEST} or more, or for what is rare take verifier.statistics.splitting"
        )
    most = 1
    while _farthest(most, confidence) > accuracy:
        most *= 2
    least = most // 2
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if _farthest(middle, confidence) > accuracy else (least, middle)
    return most


def _farthest(samples: int, confidence: float) -> float:
    """The largest distance of a limit from the share of hits, over all counts: the upper limit of a count is as far as
    the lower one of its opposite, and the worst count is less than ``2 sqrt(samples)`` from the middle."""
    middle, far = samples / 2, 2 * math.sqrt(samples)
    counts = np.arange(max(0, int(middle - far)), min(samples, math.floor(middle + far) + 1))
    upper = beta.ppf((1 + confidence) / 2, counts + 1, samples - counts)
    return float((upper - counts / samples).max())


def monte_carlo(  # noqa: PLR0913 - the questions that a caller may ask
    graph: Graph,
    region: Box | LpBall,
    *,
    label: int | None = None,
    rows: Tensor | None = None,
    threshold: float = 0.0,
    samples: int = 10_000,
    confidence: float = 0.95,
    accuracy: float | None = None,
    seed: int = 0,
) -> Estimate:
    """The probability that a uniform point of ``region`` (one ``Box`` or ``LpBall``) is a violation, by sampling.

    A violation, with ``label``: another class scores at least as much; with ``rows`` ``[R, *output shape]``: some
    ``rows[r] . output <= threshold``. The limits are those of ``clopper_pearson``, valid for any number of hits: after
    none of n, at 95 %, the probability is at most ``1 - 0.025 ** (1 / n)``.

    ``accuracy`` asks that the limits lie no farther from the value: ``InputError`` where ``samples`` cannot promise it,
    with the number that can. Also for arguments that do not fit, and outputs that are not finite.
    """
    check_confidence(confidence)
    check_count("samples", samples, 1)
    asked = violations(graph, label, rows, threshold)
    if accuracy is not None:
        _check_samples(samples, accuracy, confidence)
    source = uniform(region, graph.nodes[graph.inputs[0]].shape)
    generator = torch.Generator().manual_seed(seed)
    hits, left = 0, samples
    while left:
        count = min(left, _AT_ONCE)
        hits += int((asked.scores(source.points(source.draw(count, generator))) <= 0).sum())
        left -= count
    lower, upper = clopper_pearson(hits, samples, confidence)
    method = f"plain sampling, Clopper-Pearson limits of {hits} hits"
    return Estimate(hits / samples, lower, upper, confidence, QUANTITY, method, samples, SAMPLED)


def _check_samples(samples: int, accuracy: float, confidence: float) -> None:
    needed = samples_needed(accuracy, confidence)
    if samples < needed:
        fewest = samples_needed(accuracy, confidence, "none")
        raise InputError(
            f"samples={samples} cannot promise an accuracy of {accuracy} at a confidence of {confidence}: {needed} are "
            f"needed ({fewest} if no violation is among them; verifier.statistics.samples_needed)"
        )
