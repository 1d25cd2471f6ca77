"""Noise on a grid: its distribution exactly, its sums exactly, and the attack that it is there for."""

from __future__ import annotations

import functools
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from verifier.errors import InputError, UnsupportedError
from verifier.smoothing.certificates import ProbablyRobust
from verifier.smoothing.counting import Sampler, Stream
from verifier.smoothing.estimation import Fixed
from verifier.smoothing.exact import Grid, GridNoise
from verifier.smoothing.noise import Gaussian, Independent, Laplace, Uniform
from verifier.smoothing.places import OnGrid
from verifier.smoothing.radial import Cubic
from verifier.smoothing.schedule import Question, Terms, certify_all
from verifier.smoothing.smoothed import smooth

NOISES: tuple[Independent, ...] = (Gaussian(0.25), Laplace(0.1), Uniform(0.5), Gaussian(0.0005), Gaussian(4.0))


@pytest.mark.parametrize("noise", NOISES, ids=lambda n: n.words)
@pytest.mark.parametrize("step", ["1/255", "1/16", "0.5"])
def test_whole_numbers_have_the_probabilities_of_their_cells(noise: Independent, step: str) -> None:
    """The table's total variation from the true distribution, in 40 digits, is at most what is charged."""
    made = GridNoise.of(noise, Fraction(step))
    chances = made.chances()
    assert sum(chances.values()) == 2**62
    with mpmath.workdps(40):
        size = mpmath.mpf(made.step.numerator) / made.step.denominator

        def below(z: mpmath.mpf) -> mpmath.mpf:
            match noise:
                case Gaussian(sigma):
                    return mpmath.ncdf(z / mpmath.mpf(sigma))
                case Laplace(scale):
                    part = mpmath.exp(-abs(z) / mpmath.mpf(scale)) / 2
                    return part if z < 0 else 1 - part
                case Uniform(width):
                    return min(max((z + mpmath.mpf(width)) / (2 * mpmath.mpf(width)), mpmath.mpf(0)), mpmath.mpf(1))
            raise AssertionError

        @functools.cache
        def up_to(k: int) -> mpmath.mpf:
            return below((k + mpmath.mpf(0.5)) * size)

        known, off = mpmath.mpf(0), mpmath.mpf(0)
        for k, chance in chances.items():
            true = up_to(k) - up_to(k - 1)
            known += true
            off += abs(true - mpmath.mpf(chance) / 2**62)
        assert (off + 1 - known) / 2 <= made.distance < 1e-10


@pytest.mark.parametrize("noise", NOISES[:3], ids=lambda n: n.words)
def test_draws_have_the_table_s_distribution(noise: Independent) -> None:
    made = GridNoise.of(noise, Fraction(1, 4))
    drawn = made.draw(1000, 50, torch.Generator().manual_seed(0), torch.float32)
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn, drawn.round())
    values, counts = np.unique(drawn.numpy().astype(int), return_counts=True)
    expected = {k: chance / 2**62 * drawn.numel() for k, chance in made.chances().items()}
    often = {k for k, e in expected.items() if e >= 10}
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    seen = [found.get(k, 0) for k in sorted(often)] + [sum(n for k, n in found.items() if k not in often)]
    known = [expected[k] for k in sorted(often)] + [sum(e for k, e in expected.items() if k not in often)]
    if known[-1] < 5:
        seen, known = seen[:-1], [e * sum(seen[:-1]) / sum(known[:-1]) for e in known[:-1]]
    assert chisquare(seen, known).pvalue > 1e-3
    other = made.draw(1000, 50, torch.Generator().manual_seed(1), torch.float32)
    assert not torch.equal(drawn, other)


def test_radii_are_those_of_the_real_noise_up_to_the_distance() -> None:
    noise = Gaussian(0.25)
    place = OnGrid(GridNoise.of(noise, Fraction(1, 255)), lambda x: x)
    for p in (0.6, 0.99, 0.99999):
        real, found = noise.shift("2", 3072).radius(p, 1 - p), place.shift("2", 3072).radius(p, 1 - p)
        assert real * (1 - 1e-3) < found < real


def test_points_of_the_grid_are_those_of_image_files() -> None:
    grid = Grid(Fraction(1, 255))
    images = np.arange(256, dtype=np.uint8)
    x = torch.from_numpy(images.astype(np.float32) / np.float32(255))
    numbers = grid.numbers(x)
    assert numbers.tolist() == list(range(256))
    assert torch.equal(grid.points(numbers), x)
    assert grid.numbers(torch.from_numpy(images.astype(np.float32) * np.float32(1 / 255))).tolist() == list(range(256))
    assert Grid(Fraction("0.1")).points(torch.tensor([3.0, -2.0])).tolist() == pytest.approx([0.3, -0.2])
    with pytest.raises(InputError, match="not a multiple"):
        grid.numbers(x + 1e-6)
    with pytest.raises(InputError, match=r"element 1 of an input, 0\.5, is not a multiple of the step 1/255"):
        grid.numbers(torch.tensor([0.0, 0.5]))
    with pytest.raises(InputError, match="not a multiple"):
        grid.numbers(torch.tensor([float("nan")]))


def certificate(place: OnGrid | None, scores: object, x: Tensor) -> ProbablyRobust:
    noise = Gaussian(0.5) if place is None else place.noise
    source = Sampler(scores if place is None else place.scores, 2, noise, 1000)  # type: ignore[arg-type]
    start = x if place is None else place.start(x)
    shift = (Gaussian(0.5) if place is None else place).shift("2", len(x))
    stream = Stream(start, torch.Generator().manual_seed(1))
    terms = Terms(Question(), shift, "")
    return dict(certify_all(source, [(0, stream, None)], Fixed(4000), terms))[0]


def test_floating_point_cannot_betray_the_input() -> None:
    """A classifier that knows x by the rounding of sums: in float32 ``(z - x) + x == z`` holds at all z = x + noise
    and around other inputs it does not (in the manner of Voracek and Hein). Plain noise gives it a certificate that is
    false; with exact noise x is not to be seen, and no two certificates contradict each other."""
    one, far = torch.full((300,), 127 / 255), torch.full((300,), 128 / 255)
    apart = float((one - far).norm())

    def betrays(z: Tensor) -> Tensor:
        known = ((z - one) + one == z).all(1).float()
        return torch.stack([known, 1 - known], 1)

    plain, other = certificate(None, betrays, one), certificate(None, betrays, far)
    assert (plain.label, other.label) == (0, 1)
    assert plain.radius > 10 * apart  # and still the class at ``far`` is another one
    place = OnGrid(GridNoise.of(Gaussian(0.5), Fraction(1, 255)), betrays)
    sound, other = certificate(place, betrays, one), certificate(place, betrays, far)
    assert sound.label == other.label or max(sound.radius, other.radius) < apart


def test_what_cannot_be_exact_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="depend on each other"):
        GridNoise.of(Cubic(0.1), Fraction(1, 255))
    with pytest.raises(InputError, match="too fine"):
        GridNoise.of(Gaussian(10.0), Fraction(1, 10**9))
    for step in (Fraction(0), Fraction(-1, 2)):
        with pytest.raises(InputError, match="positive"):
            GridNoise.of(Gaussian(1.0), step)
    for text in ("x", "1/0"):
        with pytest.raises(InputError, match=f"step={text}: a positive number"):
            smooth(torch.nn.Linear(1, 2).eval(), 20.0, shape=(1,), step=text)
    place = OnGrid(GridNoise.of(Gaussian(1.0), Fraction(1, 255)), lambda x: x)
    with pytest.raises(InputError, match="take a larger step"):
        place.start(torch.tensor([65_800.0]))


def test_types_in_which_whole_numbers_are_rounded_are_refused() -> None:
    """bfloat16 has 8 digits: 401 + noise would be rounded to numbers of 400 + noise."""
    module = torch.nn.Linear(1, 2).bfloat16().eval()
    with pytest.raises(UnsupportedError, match="bfloat16"):
        smooth(module, 20.0, shape=(1,), step="1")
