"""A classifier and noise: the smoothed classifier, asked for classes and certificates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from verifier.errors import InputError, UnsupportedError
from verifier.examples import fit_examples
from verifier.smoothing.base import Base, Model, Way, base, behind_layer
from verifier.smoothing.certificates import ProbablyRobust, check_samples
from verifier.smoothing.counting import Sampler, Stream
from verifier.smoothing.estimation import Estimation, Sequential
from verifier.smoothing.exact import GridNoise
from verifier.smoothing.noise import Gaussian, Noise, check_norm
from verifier.smoothing.places import AfterLayer, AtInput, OnGrid, Place
from verifier.smoothing.schedule import Question, Terms, certify_all


@dataclass(frozen=True, slots=True, eq=False)
class Smoothed:
    """See ``smooth``. ``shape``: of one input, a leading 1 of an ONNX model included; ``rows``: noisy copies that are
    evaluated at once."""

    place: Place
    classes: int
    shape: tuple[int, ...]
    rows: int
    dtype: torch.dtype
    device: torch.device

    def certify(
        self,
        x: np.ndarray | Tensor,
        estimation: Estimation | None = None,
        question: Question = Question(),  # noqa: B008 - a frozen value
        *,
        labels: Sequence[int] | np.ndarray | None = None,
        budget: int | None = None,
        seed: int = 0,
    ) -> tuple[ProbablyRobust, ...]:
        """A certificate for each input of ``x`` ``[N, *input shape]`` (or flat), by ``certify_each``. ``labels``: the
        classes to certify (None: those found). Raises ``InputError``."""
        inputs = self.inputs(x)
        asked: list[int | None] = [None] * len(inputs) if labels is None else [int(label) for label in labels]
        if len(asked) != len(inputs):
            raise InputError(f"{len(asked)} labels for {len(inputs)} inputs")
        numbered = zip(range(len(inputs)), inputs, asked, strict=True)
        found = dict(self.certify_each(numbered, estimation, question.each(len(inputs)), budget=budget, seed=seed))
        return tuple(found[k] for k in range(len(inputs)))

    def certify_each(
        self,
        inputs: Iterable[tuple[int, Tensor, int | None]],
        estimation: Estimation | None = None,
        question: Question = Question(),  # noqa: B008 - a frozen value
        *,
        budget: int | None = None,
        seed: int = 0,
        report: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[int, ProbablyRobust]]:
        """Certificates of numbered flat inputs, each as soon as it is done; the noise of an input depends on its number
        and the seed alone.

        ``estimation``: ``Fixed`` or ``Sequential`` (None: sequential, to ``default_radii``, 100,000 samples at most).
        ``budget``: samples for all inputs together. ``report`` is called with the samples drawn so far, now and then.
        Raises ``InputError``.
        """
        if question.together:
            raise InputError("together: how many inputs there are is not known here; ask question.each(number)")
        how = Sequential(self.default_radii(question.norm)) if estimation is None else estimation
        shift = self.place.shift(check_norm(question.norm), int(np.prod(self.shape)))
        streams = ((k, self._stream(row, seed, k), label) for k, row, label in inputs)
        terms = Terms(question, shift, self.place.arithmetic)
        yield from certify_all(self.sampler, streams, how, terms, budget, report)

    def predict(
        self, x: np.ndarray | Tensor, *, n: int = 1000, alpha: float = 0.001, seed: int = 0
    ) -> tuple[int | None, ...]:
        """The smoothed class of each input, wrong with a probability of at most ``alpha`` each; None: it abstains
        (Cohen et al., algorithm PREDICT: the counts of the first two classes in a two-sided binomial test, Hung and
        Fithian, 2019). Raises ``InputError``."""
        check_samples(1, n, alpha)
        found: list[int | None] = []
        for k, row in enumerate(self.inputs(x)):
            counts = self.sampler.counts(self._stream(row, seed, k), n)[:-1]
            first, second = counts.topk(2).values.tolist()
            sure = first + second > 0 and binomtest(first, first + second, 0.5).pvalue <= alpha
            found.append(int(counts.argmax()) if sure else None)
        return tuple(found)

    @property
    def sampler(self) -> Sampler:
        """What draws and counts."""
        return Sampler(self.place.scores, self.classes, self.place.noise, self.rows, self.dtype)

    def inputs(self, x: np.ndarray | Tensor) -> Tensor:
        """``[N, n]`` on the device. Raises ``InputError`` for arrays that do not fit."""
        given = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
        wide = np.float64 if self.dtype == torch.float64 else np.float32
        return torch.from_numpy(fit_examples(given, None, self.shape, wide).x).to(self.device)

    def default_radii(self, norm: str) -> tuple[float, ...]:
        """Nine radii from 0 to what a probability of 99.9 % certifies: where ``Sequential`` looks, if nothing else is
        said."""
        most = self.place.shift(check_norm(norm), int(np.prod(self.shape))).radius(0.999, 0.001)
        return tuple(float(f"{most * k / 8:.2g}") for k in range(9))

    def _stream(self, x: Tensor, seed: int, number: int) -> Stream:
        draw = torch.Generator(self.device).manual_seed((seed * 1_000_003 + number) % 2**63)
        return Stream(self.place.start(x).to(self.dtype), draw)


def smooth(
    model: Model,
    sigma: float | Noise,
    *,
    shape: Sequence[int] | None = None,
    layer: bool = False,
    step: Fraction | str | None = None,
    way: Way = Way(),  # noqa: B008 - a frozen value
) -> Smoothed:
    """The smoothed classifier g(x): the class that ``model`` gives most often to ``x + noise``.

    ``sigma``: the deviation of Gaussian noise, or another distribution of ``verifier.smoothing``. ``model``: ONNX
    (onnxruntime runs what cannot be read), a graph, or a torch module in evaluation mode of inputs ``[P, *shape]``
    (``shape`` is needed then; the module stays where it is). ``layer``: the noise is added after the first layer
    (``layer``). ``step``: inputs are multiples of it, such as 1/255, and noise is exact (``exact``). Raises
    ``InputError`` and ``UnsupportedError``.
    """
    noise = sigma if isinstance(sigma, Noise) else Gaussian(float(sigma))
    if layer and step is not None:
        raise InputError("exact noise is for the input: after a layer values are on no grid")
    if layer:
        found, behind = behind_layer(model, shape, way)
        return _smoothed(found, AfterLayer(noise, behind))
    found = base(model, shape, way)
    if step is None:
        return _smoothed(found, AtInput(noise, found.scores))
    if found.dtype not in (torch.float32, torch.float64):
        raise UnsupportedError(f"exact noise: whole numbers of images and noise are not exact in {found.dtype}")
    return _smoothed(found, OnGrid(GridNoise.of(noise, _fraction(step), found.device), found.scores))


def _fraction(step: Fraction | str) -> Fraction:
    try:
        return Fraction(step)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise InputError(f"step={step}: a positive number is needed, such as 1/255") from None


def _smoothed(found: Base, place: Place) -> Smoothed:
    return Smoothed(place, found.classes, found.shape, found.rows, found.dtype, found.device)
