"""Which inputs a functional depends on over a region: proven ends of its slopes, and a ranking by what they can do.

The derivatives of every part of the region are bounded (``bounds.jacobian_bounds``); parts are halved, those first that
decide the outermost end for the input with the largest reach, a few hundred times. The ends over the region are those
over all parts together.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bounds import Box, DomainError, Graph, LpBall, jacobian_bounds
from bounds.ops.base import NoDerivativeError
from verifier import limits
from verifier.anytime.bounding import without_bounds
from verifier.anytime.boxes import halved
from verifier.anytime.domain import Domain
from verifier.anytime.points import samples
from verifier.anytime.refinement import functional_graph
from verifier.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from verifier.network import Network

_LOG = logging.getLogger(__name__)

BATCH = 16
"""Parts that are halved in a round."""

MOST_ELEMENTS = 1 << 25
"""Of the ends of all parts and of their slopes (four numbers an input): fewer splits are made where there are more."""


@dataclass(frozen=True, slots=True, eq=False)
class Sensitivity:
    """Of a functional f of a model's outputs over a region, for each of n flat inputs (float64, ``[n]`` each):

        lower <= df/dx_i <= upper        for every x in the region (every element of the Clarke derivative),

    proven in real arithmetic over the stored weights; ``seen``, the largest ``|df/dx_i|`` at points that were tried, as
    computed; ``width`` of the region. ``parts``: into how many the region was split.
    """

    lower: Tensor
    upper: Tensor
    seen: Tensor
    width: Tensor
    parts: int

    @property
    def reach(self) -> Tensor:
        """``[n]``: by how much f changes at most while input i alone runs through the region:
        ``max(|lower|, |upper|) * width`` (up to rounding)."""
        steepest = torch.maximum(self.lower.abs(), self.upper.abs())
        return torch.where(self.width > 0, steepest * self.width, 0.0)

    @property
    def ranking(self) -> tuple[int, ...]:
        """The inputs, those with the largest reach first."""
        return tuple(self.reach.argsort(descending=True, stable=True).tolist())

    @property
    def rising(self) -> Tensor:
        """``[n]`` bool: f is proven not to fall in this input."""
        return self.lower >= 0

    @property
    def falling(self) -> Tensor:
        """``[n]`` bool: f is proven not to rise in this input."""
        return self.upper <= 0


def sensitivity(  # noqa: PLR0913 - the questions that a caller may ask
    model: str | Path | bytes | Network | Graph,
    region: Box | LpBall,
    functional: Tensor | str | None = None,
    *,
    label: int | None = None,
    splits: int = 256,
    timeout: float | None = None,
    seed: int = 0,
) -> Sensitivity:
    """How a functional's slopes are bounded over one box or ball; ``functional`` and ``label`` as in ``refine``.

    ``splits``: how often a part of the region may be halved; ``timeout`` in seconds is looked at between rounds. Raises
    ``InputError``, and ``UnsupportedError`` for a network that jumps.
    """
    until = limits.deadline(timeout)
    graph = functional_graph(model, functional, label)
    if splits < 0:
        raise InputError(f"splits={splits}: a whole number of at least 0")
    try:
        domain = Domain.of(region)
        work = _Parts(graph, domain)
    except ValueError as error:  # what is wrong with the region or the graph
        raise InputError(str(error)) from error
    splits = min(splits, MOST_ELEMENTS // (4 * work.low.shape[1]))
    while (left := splits + 1 - work.count) > 0 and limits.now() < until:
        if not work.halve(left):
            break
    low, high = domain.ends()
    infinite = bool((~torch.cat(work.ends()).isfinite()).any())
    if infinite and (node := without_bounds(graph, domain)):
        _LOG.warning("%s has no finite bounds on the region, so that some slopes have none", node)
    return Sensitivity(*work.ends(), _seen(graph, domain, seed), (high - low)[0], work.count)


class _Parts:
    """State: boxes ``[N, n]`` that cover the region, and the ends of the slopes over each."""

    def __init__(self, graph: Graph, domain: Domain) -> None:
        self.graph, self.domain = graph, domain
        self.low, self.high = domain.ends()
        self.width = (self.high - self.low)[0]
        self.least, self.most = self._slopes(self.low, self.high)

    @property
    def count(self) -> int:
        """N."""
        return int(self.low.shape[0])

    def ends(self) -> tuple[Tensor, Tensor]:
        """Over all parts, ``[n]`` each."""
        return self.least.amin(0), self.most.amax(0)

    def halve(self, allowed: int) -> bool:
        """Halve at most ``allowed`` parts, first those that decide the ends of the input with the most reach for which
        that can change something; whether any could be halved."""
        reach = torch.nan_to_num(torch.maximum(self.least.abs(), self.most.abs()).amax(0) * self.width, posinf=1e300)
        spread = torch.nan_to_num((self.most - self.least) * self.width, posinf=1e300)
        deciding = torch.zeros(self.count, dtype=torch.bool)
        for i in (reach * (spread.amax(0) > 0)).argsort(descending=True)[:4].tolist():
            deciding[self.least[:, i].argmin()] = deciding[self.most[:, i].argmax()] = True
        widest = (self.high - self.low) * torch.nan_to_num(self.most - self.least, posinf=1e300)
        score = torch.where(deciding, math.inf, widest.amax(1))
        chosen = score.topk(min(BATCH, self.count, allowed)).indices
        one, two = self.low[chosen], self.high[chosen]
        left, right, smaller = halved(one, two, self._axis(chosen))
        if not bool(smaller.any()):
            return False
        low, high = torch.cat([one[smaller], right[smaller]]), torch.cat([left[smaller], two[smaller]])
        there = self.domain.inhabited(low, high)
        low, high = low[there], high[there]
        parents = chosen[smaller].repeat(2)[there]
        least, most = self._slopes(low, high)
        rest = torch.ones(self.count, dtype=torch.bool)
        rest[chosen[smaller]] = False
        self.low, self.high = torch.cat([self.low[rest], low]), torch.cat([self.high[rest], high])
        # What is proven of a part holds for its halves.
        self.least, self.most = (
            torch.cat([old[rest], better(old[parents], new)])
            for old, new, better in ((self.least, least, torch.maximum), (self.most, most, torch.minimum))
        )
        return True

    def _axis(self, chosen: Tensor) -> Tensor:
        """Along which each part is halved: an input of the largest reach within it, as far as others are not wider."""
        steep = torch.nan_to_num(torch.maximum(self.least[chosen].abs(), self.most[chosen].abs()), posinf=1e300)
        width = self.high[chosen] - self.low[chosen]
        share = width / self.width.clamp(min=torch.finfo(width.dtype).tiny)
        reach = steep * width
        return (reach / reach.amax(1, keepdim=True).clamp(min=1e-300) + share).argmax(1)

    def _slopes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Ends ``[N, n]`` of the slopes over boxes; infinite where nothing is known."""
        try:
            found = jacobian_bounds(self.graph, self.domain.part(low, high))
        except NoDerivativeError as error:
            raise UnsupportedError(f"{error}: there are no slopes; the range can be refined all the same") from error
        except DomainError as error:
            raise InputError(str(error)) from error
        ends = (found.lower.flatten(1), -math.inf), (found.upper.flatten(1), math.inf)
        least, most = (torch.where(end.isfinite(), end, unknown) for end, unknown in ends)
        return least, most


def _seen(graph: Graph, domain: Domain, seed: int) -> Tensor:
    """``[n]``: the largest slopes at some points of the region."""
    with torch.enable_grad():
        points = samples(domain, seed).requires_grad_()
        values = graph.to(torch.float64).evaluate(points.reshape(-1, *domain.shape))[0]
        (slopes,) = torch.autograd.grad(values.sum(), points)
    return torch.nan_to_num(slopes).abs().amax(0)
