"""How far torch's functions are off, as operators use them: what ``bounds.ops.smooth`` relies on.

    python -m benchmarks.function_errors [points]

Every smooth operator claims that its value in float64 is off by at most ``ulps`` units in the last place plus
``grain`` of 1's, and its derivative by 16 units plus ``rough`` of 1's. Both are compared with 300 digits on points of
all sizes, near zeros, turning and inflection points. The table shows the largest share of each claim that was used up;
at most a half is accepted, a safety factor of two for points that were not tried and for other builds of torch.
The arguments of sines and cosines go up to 2^26, beyond which nothing is relied on. Measured with torch 2.13 on x86-64
(its vectorised and its plain code): CPUs of other kinds deserve a run of this script.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import mpmath
import numpy as np
import torch

from bounds.ops.smooth import Smooth

ACCEPTED = 0.5


@dataclass(frozen=True, slots=True)
class Share:
    """The share of its claims that an operator used up, and where."""

    name: str
    value: float
    value_at: float
    slope: float
    slope_at: float


def examples() -> list[Any]:
    """The examples of smooth operators that the tests have."""
    folder = Path(__file__).resolve().parents[1] / "tests" / "helpers"
    modules: list[ModuleType] = []
    for name in ("relaxations", "nonlinear_examples"):
        if name not in sys.modules:
            specification = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
            assert specification is not None and specification.loader is not None
            sys.modules[name] = importlib.util.module_from_spec(specification)
            specification.loader.exec_module(sys.modules[name])
        modules.append(sys.modules[name])
    return [e for e in modules[1].EXAMPLES if isinstance(e.op, Smooth)]


def points(example: Any, count: int, seed: int = 0) -> np.ndarray:
    """Numbers of all sizes, ordinary ones, and the neighbourhood of special places; multiples of pi / 2."""
    rng = np.random.default_rng(seed)
    quarter = count // 4
    sign = rng.choice([-1.0, 1.0], quarter)
    places = np.array((*example.kinks, *example.op.turns(), *(e for p in example.op.pieces() for e in (p.low, p.high))))
    places = places[np.isfinite(places)]
    near = rng.choice(places, quarter) if places.size else np.zeros(quarter)
    found = [
        sign * 10.0 ** rng.uniform(-100, 7.8, quarter),
        rng.uniform(-40, 40, quarter),
        near + 10.0 ** rng.uniform(-16, 0, quarter) * rng.choice([-1.0, 0.0, 1.0], quarter),
        rng.integers(-(2**25), 2**25, quarter) * (math.pi / 2) * rng.choice([1.0, 1e-7, 1e-3], quarter),
    ]
    x = np.concatenate(found)
    x = np.clip(x, *example.domain)
    return x[(x != 0) | (not example.pole)]


def measure(example: Any, count: int, seed: int = 0) -> Share:
    """Over ``count`` points."""
    op, info = example.op, torch.finfo(torch.float64)
    x = points(example, count, seed)
    given = torch.from_numpy(x)
    # One at a time is torch's plain code, all at once its vectorised one.
    values = torch.where(
        torch.arange(x.size) % 7 == 0, torch.cat([op.forward(v) for v in given.split(1)]), op.forward(given)
    )
    slopes = op.derivative(given)
    worst = [(0.0, 0.0), (0.0, 0.0)]
    for place, value, slope in zip(x.tolist(), values.tolist(), slopes.tolist(), strict=True):
        exact = mpmath.mpf(place)
        if math.isfinite(value) and abs(value) < 1e300:
            wanted = example.reference(exact)
            claim = op.ulps * info.eps * abs(wanted) + op.grain * info.eps + info.tiny
            worst[0] = max(worst[0], (float(abs(wanted - value) / claim), place))
        if math.isfinite(slope) and abs(slope) < 1e300 and place not in {0.0, *(p for p, _ in op.kinks())}:
            step = abs(exact) * mpmath.mpf(2) ** -60
            wanted = (example.reference(exact + step) - example.reference(exact - step)) / (2 * step)
            claim = 16 * info.eps * abs(wanted) + op.rough() * info.eps + info.tiny
            worst[1] = max(worst[1], (float(abs(wanted - slope) / claim), place))
    return Share(example.name, *worst[0], *worst[1])


def main() -> int:
    """Print the table; the exit status says whether a claim is too tight."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    listed = examples()
    mpmath.mp.prec = 1000  # for quotients of differences at numbers of 1e-100
    found = [measure(example, count) for example in listed]
    print(f"{'operator':60} {'value':>7} {'at':>24} {'slope':>7} {'at':>24}")
    for share in found:
        print(f"{share.name:60} {share.value:7.3f} {share.value_at:24.17g} {share.slope:7.3f} {share.slope_at:24.17g}")
    return int(max(max(s.value, s.slope) for s in found) > ACCEPTED)


if __name__ == "__main__":
    sys.exit(main())
