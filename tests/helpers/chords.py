"""Ranges of derivatives against chords, which lie in them by the mean value theorem: in high precision, exactly."""

from __future__ import annotations

import itertools
import math
from typing import Any

import mpmath
import numpy as np

mpf = mpmath.mpf


def check_chords(example: Any, ends: list[tuple[float, float]], k: int, found: tuple[float, float], seed: int) -> None:
    """Chords along operand ``k`` between its ends, its kinks and random places, the others anywhere."""
    rng = np.random.default_rng(seed)
    low, high = ends[k]
    places = [low, high, *(c for c in (*example.kinks, 0.0) if low < c < high), *rng.uniform(low, high, 3)]
    places = sorted({min(max(float(p), low), high) for p in places})
    others = [float(np.clip(rng.choice([a, b, rng.uniform(a, b)]), a, b)) for a, b in ends]
    assert not math.isnan(found[0]) and not math.isnan(found[1])
    with mpmath.workprec(1300):  # sums and products of doubles are exact, and nothing is lost where a function is flat
        for left, right in itertools.pairwise(places):
            one, two = ([*others[:k], p, *others[k + 1 :]] for p in (left, right))
            rise, width = example.exact(two) - example.exact(one), mpf(right) - mpf(left)
            assert mpf(found[0]) * width <= rise <= mpf(found[1]) * width, (example.name, ends, k, left, right, found)
