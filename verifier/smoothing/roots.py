"""Where a falling function changes its sign, on the safe side."""

from __future__ import annotations

from collections.abc import Callable

from scipy.optimize import brentq

_STEPS = (0.0, 1e-13, 1e-11, 1e-9, 1e-6)
_TURNS = 10_000  # of bisection it takes a thousand from 1 to the smallest numbers, of Brent's method a few times that


def last_up(f: Callable[[float], float], low: float, high: float) -> float:
    """A number at which the falling ``f`` is at least 0, as near to where it changes its sign as can be had: ``high``
    if it does not, and ``low`` where nothing better is found (whatever f is there)."""
    if f(high) >= 0:
        return high
    if f(low) <= 0:
        return low
    found = float(brentq(f, low, high, xtol=1e-300, rtol=1e-14, maxiter=_TURNS, disp=False))
    return next((x for x in (found - step * (found - low) for step in _STEPS) if f(x) >= 0), low)
