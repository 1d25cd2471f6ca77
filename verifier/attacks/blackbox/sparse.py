"""Sparse-RS: a random search over which elements change, and to what (Croce et al., AAAI 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.attacks.blackbox.windows import share_at
from verifier.attacks.threats import Balls
from verifier.attacks.trial import Trial
from verifier.errors import InputError


@dataclass(frozen=True, slots=True)
class SparseRs:
    """In balls of the norm 0: as many elements as may change stand at random ends of the data range; a step exchanges
    a ``share`` of them, ever fewer, for others (algorithm 1; each element by itself)."""

    name: str = "sparse-rs"
    steps: int = 5000
    share: float = 0.3

    def run(self, trial: Trial) -> None:
        """See ``Attack``. Raises ``InputError`` for threat models other than balls of the norm 0."""
        threat = trial.problem.threat
        if not (isinstance(threat, Balls) and threat.norm == "0"):
            raise InputError("Sparse-RS: balls of the norm 0 only; for the norms inf and 2 there is Square")
        who = trial.open()
        size = threat.centre.shape[1]
        count = min(int(threat.radius), size)
        chosen = _some(torch.ones_like(threat.centre[who], dtype=torch.bool), count, trial.draw)
        x = self._set(threat, threat.centre[who], chosen, who, trial.draw)
        margin = trial.evaluate(x, who)
        for step in range(self.steps):
            keep = trial.is_open(who)
            if trial.late or not bool(keep.any()) or count == 0:
                return
            x, who, margin, chosen = x[keep], who[keep], margin[keep], chosen[keep]
            swapped = max(1, round(share_at(step, self.steps, self.share) * count))
            out, new = _some(chosen, swapped, trial.draw), _some(~chosen, min(swapped, size - count), trial.draw)
            new = new if count < size else out
            other = torch.where(out, threat.centre[who], x)
            other = self._set(threat, other, new, who, trial.draw)
            found = trial.evaluate(other, who)
            better = (found < margin)[:, None]
            chosen = torch.where(better, (chosen & ~out) | new, chosen)
            x, margin = torch.where(better, other, x), torch.minimum(found, margin)

    @staticmethod
    def _set(threat: Balls, x: Tensor, chosen: Tensor, who: Tensor, draw: torch.Generator) -> Tensor:
        """The chosen elements at random ends of the range."""
        up = torch.rand(x.shape, generator=draw, device=x.device) < 0.5
        ends = torch.where(up, x.new_tensor(threat.high), x.new_tensor(threat.low))
        return threat.project(torch.where(chosen, ends, x), who)


def _some(among: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """``[P, d]`` bool: ``count`` random elements of those in ``among`` of each row."""
    chosen = torch.zeros_like(among)
    if count == 0:
        return chosen
    order = torch.rand(among.shape, generator=draw, device=among.device).masked_fill(~among, -1.0)
    return chosen.scatter(1, order.topk(count, dim=1).indices, True)
