"""The box-constrained L-BFGS attack: the least squared distance and the margin, weighed by c.

Szegedy et al., Intriguing properties of neural networks, ICLR 2014, section 4.1: minimise ``c * distance^2 + loss`` in
the range, and search for the greatest c whose minimiser is a counterexample. The margin takes the cross-entropy's
place, as its slope does not vanish where scores are far apart. One example after the other, by scipy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from verifier.attacks.losses import Loss, Margin
from verifier.attacks.trial import Trial


class _Over(Exception):
    """Time or budget is up."""


@dataclass(frozen=True, slots=True)
class Lbfgs:
    """``searches`` values of c, each minimised in ``steps`` evaluations or so; the distance is Euclidean, what counts
    is the trial's own."""

    searches: int = 12
    steps: int = 60
    loss: Loss = field(default_factory=Margin)

    @property
    def name(self) -> str:
        """See ``Attack``."""
        return "l-bfgs"

    def run(self, trial: Trial) -> None:
        """See ``Attack``."""
        for example in trial.open().tolist():
            if trial.late:
                return
            try:
                self._search(trial, torch.tensor([example], device=trial.margin.device))
            except _Over:
                continue

    def _search(self, trial: Trial, who: Tensor) -> None:
        """Bisect c for one example, on a logarithmic scale, from where a linear model puts the boundary."""
        x = trial.problem.threat.centre[who]
        _, margin, slope = trial.descend(x, who, self.loss)
        steep = float(slope.double().square().sum())
        c = steep / (2 * max(float(margin), 1e-30)) if steep > 0 else 1.0
        low, high = 0.0, np.inf  # hit below, no hit above
        for _ in range(self.searches):
            if self._minimise(trial, who, float(np.clip(c, 1e-30, 1e30))):
                low = c
                c = 4 * c if np.isinf(high) else float(np.sqrt(c * high))
            else:
                high = c
                c = c / 4 if low == 0 else float(np.sqrt(low * c))

    def _minimise(self, trial: Trial, who: Tensor, c: float) -> bool:
        """Whether the minimum for this c (or what comes nearest to it) is a counterexample."""
        threat = trial.problem.threat
        centre = threat.centre[who]
        origin, last = centre[0].double().cpu().numpy(), np.inf

        def value(point: np.ndarray) -> tuple[float, np.ndarray]:
            nonlocal last
            if trial.late or not bool(trial.is_open(who)):
                raise _Over
            x = threat.project(torch.from_numpy(point)[None].to(centre), who)
            found, margin, slope = trial.descend(x, who, self.loss)
            last = float(margin)
            away = point - origin
            gradient = slope[0].double().cpu().numpy() + 2 * c * away
            return float(np.nan_to_num(float(found) + c * float(away @ away), posinf=1e30)), gradient

        low, high = (e[0].double().cpu().numpy() for e in threat.ends(who))
        found = minimize(value, origin, jac=True, method="L-BFGS-B", bounds=np.stack([low, high], 1),
                         options={"maxfun": self.steps, "maxiter": self.steps})  # fmt: skip
        value(found.x)
        return last <= 0
