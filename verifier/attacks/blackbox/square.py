"""Square attack: a random search that changes one square window at a time (Andriushchenko et al., ECCV 2020).

In boxes (algorithms 1 and 2) a window is moved to the box's ends, with one random sign a channel. In balls of the norm
2 (algorithm 3) a window takes over the change of another one and what the radius leaves. Flat inputs have blocks of
consecutive elements instead of squares.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.attacks.blackbox.windows import Shape, Windows, share_at, signs
from verifier.attacks.threats import Balls, Boxes
from verifier.attacks.trial import Trial
from verifier.errors import InputError


@dataclass(frozen=True, slots=True)
class Square:
    """``steps`` windows for inputs of a ``shape`` [C, H, W] (None: flat); the first ones hold the ``share`` of all
    places. In a box the share ``inside`` of the windows is not moved to its ends but to random values between them
    (None: 0 for images, 0.5 for flat inputs, whose counterexamples may lie far from the ends)."""

    name: str = "square"
    shape: Shape | None = None
    steps: int = 5000
    share: float = 0.8
    inside: float | None = None

    def run(self, trial: Trial) -> None:
        """See ``Attack``. Raises ``InputError`` for norms other than inf and 2, and a shape that does not fit."""
        threat = trial.problem.threat
        layout = Windows.of(self.shape, threat)
        moves: _Ends | _Swaps
        if isinstance(threat, Boxes):
            inside = self.inside if self.inside is not None else 0.5 * (self.shape is None)
            moves = _Ends(threat, layout, inside, trial.draw)
        elif isinstance(threat, Balls) and threat.norm == "2":
            moves = _Swaps(threat, layout, trial.draw)
        else:
            raise InputError("Square attack: boxes and the norms inf and 2 only; for the norm 0 there is SparseRs")
        who = trial.open()
        x = moves.first(who)
        margin = trial.evaluate(x, who)
        for step in range(self.steps):
            keep = trial.is_open(who)
            if trial.late or not bool(keep.any()):
                return
            if not bool(keep.all()):
                x, who, margin = x[keep], who[keep], margin[keep]
            other = moves.proposed(x, who, layout.window(share_at(step, self.steps, self.share)))
            asked = torch.nonzero((other != x).any(1)).squeeze(1)
            found = margin.new_full(margin.shape, torch.inf)
            found[asked] = trial.evaluate(other[asked], who[asked])
            better = found < margin
            x, margin = torch.where(better[:, None], other, x), torch.where(better, found, margin)


@dataclass(frozen=True, slots=True, eq=False)
class _Ends:
    """Moves in boxes."""

    threat: Boxes
    layout: Windows
    inside: float
    draw: torch.Generator

    def first(self, who: Tensor) -> Tensor:
        """Vertical stripes of the ends; of a flat input each element by itself."""
        lower = self.threat.lower[who]
        up = signs((len(who), self.layout.channels, 1, self.layout.width), lower, self.draw) > 0
        return torch.where(up.expand(-1, *self.layout.shape).reshape(lower.shape), self.threat.upper[who], lower)

    def proposed(self, x: Tensor, who: Tensor, window: tuple[int, int]) -> Tensor:
        """The points with one window changed."""
        lower, upper = self.threat.lower[who], self.threat.upper[who]
        places = self.layout.places(len(x), window, self.draw)[:, None].expand(-1, *self.layout.shape)
        up = signs((len(x), self.layout.channels, 1, 1), x, self.draw) > 0
        target = torch.where(up.expand(-1, *self.layout.shape).reshape(x.shape), upper, lower)
        if self.inside > 0:
            free = torch.rand((len(x), 1), generator=self.draw, device=x.device) < self.inside
            target = torch.where(free, self.threat.random(who, self.draw), target)
        mask = places.reshape(x.shape)
        same = ((target == x) | ~mask).all(1, keepdim=True)  # what changes nothing would be asked in vain
        target = torch.where(same, torch.where(target == upper, lower, upper), target)
        return torch.where(mask, target, x)


@dataclass(frozen=True, slots=True, eq=False)
class _Swaps:
    """Moves in balls of the norm 2."""

    threat: Balls
    layout: Windows
    draw: torch.Generator

    def first(self, who: Tensor) -> Tensor:
        """Tiles of peaks with random signs, scaled to the radius."""
        centre = self.threat.centre[who]
        _, height, width = self.layout.shape
        sides = (max(1, height // 5), max(1, width // 5)) if height > 1 else (1, max(1, width // 25))
        peak = _peaks(sides, centre)
        tiles = [-(-whole // part) for whole, part in zip((height, width), sides, strict=True)]
        sign = signs((len(who), self.layout.channels, *tiles), centre, self.draw)
        grid = torch.einsum("ncij,ab->nciajb", sign, peak)
        grid = grid.reshape(*sign.shape[:2], tiles[0] * sides[0], tiles[1] * sides[1])[:, :, :height, :width]
        return self._scaled(centre, grid.reshape(centre.shape), who)

    def proposed(self, x: Tensor, who: Tensor, window: tuple[int, int]) -> Tensor:
        """The change of one window goes to another, with what the radius leaves (algorithm 3)."""
        centre, radius = self.threat.centre[who], float(self.threat.radius)
        away = (x - centre).reshape(-1, *self.layout.shape)
        new, old = (self.layout.places(len(x), window, self.draw)[:, None] for _ in range(2))
        left = (radius**2 - away.square().sum((1, 2, 3), keepdim=True)).clamp(min=0)
        both = (away * (new | old)).square().sum((2, 3), keepdim=True)
        available = (both + left / self.layout.channels).sqrt()
        kept = away * new
        kept = kept / kept.square().sum((2, 3), keepdim=True).sqrt().clamp(min=1e-30)
        height, width = window
        peak = _halves(window, x)
        turned = torch.rand(len(x), generator=self.draw, device=x.device) < 0.5
        if height == width:
            peaks = torch.where(turned[:, None, None], peak.T, peak)
        else:
            peaks = peak.expand(len(x), -1, -1)
        sign = signs((len(x), self.layout.channels, 1, 1), x, self.draw)
        change = torch.zeros_like(away)
        change[new.expand_as(away)] = (sign * peaks[:, None]).reshape(-1)
        change = change + kept
        change = change / change.square().sum((2, 3), keepdim=True).sqrt().clamp(min=1e-30) * available
        away = torch.where(new, change, torch.where(old, 0.0, away))
        return self._scaled(centre, away.reshape(x.shape), who)

    def _scaled(self, centre: Tensor, away: Tensor, who: Tensor) -> Tensor:
        """The point of the ball in this direction, at its surface unless the range cuts it."""
        length = away.norm(dim=1, keepdim=True).clamp(min=1e-30)
        return self.threat.project(centre + away / length * float(self.threat.radius), who)


def _peaks(window: tuple[int, int], like: Tensor) -> Tensor:
    """``window``-shaped, norm 1: sums of 1 / k^2, from the border to the middle with ever smaller k (their eta)."""
    height, width = window
    rings = max(height, width) // 2 + 1
    rows, columns = (torch.arange(size, device=like.device) for size in window)
    deep = torch.minimum(rows, height - 1 - rows)[:, None] if height > 1 else rows[:, None] + rings
    wide = torch.minimum(columns, width - 1 - columns)[None, :] if width > 1 else columns[None, :] + rings
    ring = torch.minimum(deep, wide).clamp(max=rings - 1)
    heights = (1 / torch.arange(rings, 0, -1, device=like.device, dtype=like.dtype).square()).cumsum(0)
    peak = heights[ring]
    return peak / peak.norm()


def _halves(window: tuple[int, int], like: Tensor) -> Tensor:
    """Two peaks of opposite signs side by side, norm 1; one where there is no room for two."""
    height, width = window
    if width < 2:
        return _peaks(window, like)
    first = width // 2
    both = torch.cat([_peaks((height, first), like), -_peaks((height, width - first), like)], 1)
    return both / both.norm()
