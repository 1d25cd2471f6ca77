"""The reverse Weibull distribution of maxima, fitted by maximum likelihood, with limits of its right end point.

``P(X <= x) = exp(-((location - x) / scale) ** shape)`` up to ``location`` (``scipy.stats.weibull_max``). At a given
location the likelihood has one maximum over shape and scale, found by Newton's method on the shape; what is left is a
function of the location alone (the profile likelihood), which is scanned: nothing depends on a start. Shapes are at
least 1, since below that the likelihood grows without bound as the location nears the largest observation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

_DECADES = np.linspace(-6, 3, 28)
"""Distances of the location from the largest observation: decades, in units of the mean distance of the others."""

_FINER, _ROUNDS, _STEPS = 9, 3, 8

_LIMIT_DECADES = np.linspace(-6, 3, 361)


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """Of B samples ``[B, n]`` the parameters and the greatest log-likelihood, each ``[B]``. ``open_ended``: the
    likelihood still grows at the farthest location that is looked at, so that there is no end point to be seen (the
    limit is a Gumbel distribution)."""

    location: np.ndarray
    scale: np.ndarray
    shape: np.ndarray
    likelihood: np.ndarray
    open_ended: np.ndarray


def fitted(maxima: np.ndarray) -> Fit:
    """The maximum likelihood fit to each of B samples ``[B, n]``, whose elements are not all equal."""
    most = maxima.max(1, keepdims=True)
    below = most - maxima
    unit = below.mean(1, keepdims=True)
    below = below / unit
    decades = np.broadcast_to(_DECADES, (len(maxima), len(_DECADES)))
    profile = _profile(below, decades)[0]
    open_ended = profile.argmax(1) == len(_DECADES) - 1
    grid = decades
    for _ in range(_ROUNDS):
        best = profile.argmax(1)[:, None]
        low = np.take_along_axis(grid, np.maximum(best - 1, 0), 1)
        high = np.take_along_axis(grid, np.minimum(best + 1, grid.shape[1] - 1), 1)
        grid = low + (high - low) * np.linspace(0, 1, _FINER)
        profile = _profile(below, grid)[0]
    best = profile.argmax(1)[:, None]
    at = np.take_along_axis(grid, best, 1)
    likelihood, shape, scale = (v[:, 0] for v in _profile(below, at))
    location = (most + unit * 10**at)[:, 0]
    likelihood = likelihood - maxima.shape[1] * np.log(unit[:, 0])
    return Fit(location, scale * unit[:, 0], shape, likelihood, open_ended)


def _profile(below: np.ndarray, decades: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``[B, G]`` each: the greatest log-likelihood at these locations, and the shape and scale that attain it."""
    logs = np.log(below[:, None, :] + 10 ** decades[:, :, None])
    most = logs.max(2)
    logs = logs - most[:, :, None]
    mean = logs.mean(2)
    shape = np.clip(1.28 / np.maximum(logs.std(2), 1e-12), 1.0, 1e6)
    for _ in range(_STEPS):
        power = np.exp(shape[:, :, None] * logs)
        total = power.sum(2)
        first = (power * logs).sum(2) / total
        spread = (power * logs**2).sum(2) / total - first**2
        step = (1 / shape + mean - first) / (1 / shape**2 + np.maximum(spread, 0))
        shape = np.clip(shape + step, np.maximum(shape / 3, 1.0), shape * 3)
    scale = np.exp(shape[:, :, None] * logs).mean(2) ** (1 / shape)
    count = below.shape[1]
    likelihood = count * (np.log(shape) - shape * np.log(scale) + (shape - 1) * mean - 1 - most)
    return likelihood, shape, scale * np.exp(most)


def distances(fit: Fit, maxima: np.ndarray) -> np.ndarray:
    """The Kolmogorov-Smirnov distances ``[B]`` of samples ``[B, n]`` from the distributions fitted to them."""
    below = np.maximum(fit.location[:, None] - np.sort(maxima, 1), 0)
    share = np.exp(-((below / fit.scale[:, None]) ** fit.shape[:, None]))
    steps = np.arange(maxima.shape[1] + 1) / maxima.shape[1]
    return np.maximum(np.abs(share - steps[1:]).max(1), np.abs(share - steps[:-1]).max(1))


@dataclass(frozen=True, slots=True, eq=False)
class Resampled:
    """Of B samples drawn from a fit and fitted again: their Kolmogorov-Smirnov ``distances`` ``[B]``, and the mean
    ``ratio`` by which twice the log-likelihood falls to the location that they were drawn with (of chi-squared: 1)."""

    distances: np.ndarray
    ratio: float

    def p_value(self, distance: float) -> float:
        """Of such a distance, at least ``1 / (B + 1)``. The parameters were fitted to the same sample, so the usual
        table would hardly ever reject (Stute, Gonzalez Manteiga and Presedo Quindimil, Metrika 40, 1993)."""
        return float((1 + (self.distances >= distance).sum()) / (len(self.distances) + 1))


def resampled(fit: Fit, size: int, draws: int, seed: int) -> Resampled:
    """A parametric bootstrap: ``draws`` samples of ``size`` maxima from the first of the fits."""
    generator = np.random.default_rng(seed)
    drawn = -generator.weibull(fit.shape[0], (draws, size))  # location and scale change neither distances nor ratios
    again = fitted(drawn)
    most = drawn.max(1, keepdims=True)
    unit = (most - drawn).mean(1, keepdims=True)
    there = np.log10(np.maximum(-most / unit, 1e-300))
    likelihood = _profile((most - drawn) / unit, there)[0][:, 0] - size * np.log(unit[:, 0])
    ratios = 2 * np.maximum(again.likelihood - likelihood, 0)
    return Resampled(distances(again, drawn), float(ratios.mean()))


def location_limits(fit: Fit, maxima: np.ndarray, confidence: float, ratio: float) -> tuple[float, float]:
    """Limits of the location of one sample ``[1, n]``: where twice the profile log-likelihood falls by the quantile of
    chi-squared of one degree times ``ratio`` (at least 1): Bartlett's correction, by resampling (Rocke, Journal of the
    American Statistical Association 84, 1989). Never below the largest observation; infinite where it does not fall
    that far."""
    most = float(maxima.max())
    unit = float((most - maxima).mean())
    profile = _profile((most - maxima) / unit, _LIMIT_DECADES[None])[0][0] - maxima.shape[1] * math.log(unit)
    fall = chi2.ppf(confidence, 1) * max(ratio, 1.0)
    outside = np.flatnonzero(2 * (float(fit.likelihood[0]) - profile) > fall)
    places = most + unit * 10**_LIMIT_DECADES
    end = float(fit.location[0])
    left, right = outside[places[outside] < end], outside[places[outside] > end]
    lower = float(places[left[-1]]) if len(left) else most
    upper = float(places[right[0]]) if len(right) else math.inf
    return lower, upper
