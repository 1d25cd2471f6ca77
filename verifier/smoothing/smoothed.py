"""A classifier and noise: the smoothed classifier, asked for classes and certificates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bounds.graph import Graph
from verifier.attacks.classifier import Classifier
from verifier.attacks.oracle import GraphOracle
from verifier.errors import InputError
from verifier.examples import fit_examples
from verifier.network import Network
from verifier.smoothing import certify as certificates
from verifier.smoothing.certify import Estimation, ProbablyRobust, Sequential
from verifier.smoothing.counting import Sampler, Scores
from verifier.smoothing.noise import Gaussian, Noise, check_norm

MODULE_ROWS = 1000
"""Points that a torch module is given at once, where nothing else is said."""

_MOST_ROWS = 4096
"""Of a graph on a processor: more at once only leave its caches."""


@dataclass(frozen=True, slots=True, eq=False)
class Smoothed:
    """See ``smooth``. ``shape``: of one input, a leading 1 of an ONNX model included."""

    scores: Scores
    classes: int
    shape: tuple[int, ...]
    noise: Noise
    rows: int
    dtype: torch.dtype
    device: torch.device
    half: bool = False

    def certify(
        self,
        x: np.ndarray | Tensor,
        estimation: Estimation | None = None,
        *,
        norm: str = "2",
        n0: int = 100,
        alpha: float = 0.001,
        seed: int = 0,
    ) -> tuple[ProbablyRobust, ...]:
        """A certificate for each input of ``x`` ``[N, *input shape]`` (or flat), each with a confidence of its own of
        ``1 - alpha`` (for all N together: ``alpha / N``). ``estimation``: ``Fixed`` or ``Sequential`` (None:
        sequential, to radii in steps of half the noise's deviation, 100,000 samples at most). Raises ``InputError``."""
        inputs = self._inputs(x)
        known = check_norm(norm)
        how = Sequential(default_radii(self.noise, inputs.shape[1])) if estimation is None else estimation
        return tuple(
            certificates.certify(self.sampler(seed, k), row, how, norm=known, n0=n0, alpha=alpha)
            for k, row in enumerate(inputs)
        )

    def predict(
        self, x: np.ndarray | Tensor, *, n: int = 1000, alpha: float = 0.001, seed: int = 0
    ) -> tuple[int | None, ...]:
        """The smoothed class of each input, wrong with a probability of at most ``alpha`` each; None: it abstains."""
        inputs = self._inputs(x)
        return tuple(
            certificates.predict(self.sampler(seed, k), row, n=n, alpha=alpha) for k, row in enumerate(inputs)
        )

    def _inputs(self, x: np.ndarray | Tensor) -> Tensor:
        given = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
        wide = np.float64 if self.dtype == torch.float64 else np.float32
        return torch.from_numpy(fit_examples(given, None, self.shape, wide).x).to(self.device)

    def sampler(self, seed: int, number: int) -> Sampler:
        """The source of noise of the input with this number: it does not depend on what was asked before."""
        draw = torch.Generator(self.device).manual_seed((seed * 1_000_003 + number) % 2**63)
        scores = _in_half(self.scores, self.device) if self.half else self.scores
        return Sampler(scores, self.classes, self.noise, self.rows, draw, self.dtype)


def smooth(
    model: str | Path | bytes | Network | Graph | Classifier | nn.Module,
    sigma: float | Noise,
    *,
    shape: Sequence[int] | None = None,
    rows: int | None = None,
    device: str = "auto",
    half: bool = False,
) -> Smoothed:
    """The smoothed classifier g(x): the class that ``model`` gives most often to ``x + noise``.

    ``sigma``: the deviation of Gaussian noise, or another distribution of ``verifier.smoothing.noise``. ``model``: ONNX
    (onnxruntime runs what cannot be read), a graph, or a torch module in evaluation mode of inputs ``[P, *shape]``
    (``shape`` is needed then; the module stays where it is). ``rows``: noisy copies evaluated at once. ``half``: the
    model is run in half precision on a GPU. Raises ``InputError`` and ``UnsupportedError``.
    """
    from verifier.pipeline import choose_device

    noise = sigma if isinstance(sigma, Noise) else Gaussian(float(sigma))
    if rows is not None and rows < 1:
        raise InputError(f"rows: {rows} is not a number of points from 1")
    if isinstance(model, nn.Module):
        return _of_module(model, noise, shape, rows, half)
    place = choose_device(device)
    if isinstance(model, Graph):
        oracle, size = GraphOracle.of(model, torch.float32, place), model.nodes[model.inputs[0]].shape
        classes, dtype = int(np.prod(model.nodes[model.outputs[0]].shape)), torch.float32
        known = rows or min(oracle.rows, _MOST_ROWS)
        return Smoothed(oracle.outputs, classes, size, noise, known, dtype, place, _check_half(half, place))
    classifier = model if isinstance(model, Classifier) else Classifier.of(model)
    asked = classifier.oracle(place)
    dtype = torch.float64 if classifier.dtype is np.float64 else torch.float32
    most = asked.rows if asked.device.type == "cuda" else min(asked.rows, _MOST_ROWS)
    return Smoothed(
        asked.outputs, classifier.classes, classifier.shape, noise, min(rows or most, asked.rows), dtype, asked.device,
        _check_half(half, asked.device),
    )  # fmt: skip


def default_radii(noise: Noise, size: int) -> tuple[float, ...]:
    """Radii in steps of half the deviation of one element, up to four of them."""
    step = noise.variance(size) ** 0.5 / 2
    return tuple(step * k for k in range(9))


def _of_module(
    module: nn.Module, noise: Noise, shape: Sequence[int] | None, rows: int | None, half: bool
) -> Smoothed:
    if shape is None:
        raise InputError("a torch module does not tell the shape of its inputs: give shape=(channels, height, width)")
    if module.training:
        raise InputError("the module is in training mode, where it may compute something else: call its eval() first")
    first = next((p for p in module.parameters() if p.is_floating_point()), None)
    place = torch.device("cpu") if first is None else first.device
    dtype = torch.float32 if first is None else first.dtype
    sizes = tuple(shape)

    def scores(points: Tensor) -> Tensor:
        found: Tensor = module(points.reshape(-1, *sizes))
        return found.flatten(1)

    with torch.inference_mode():
        classes = scores(torch.zeros((1, int(np.prod(sizes))), dtype=dtype, device=place)).shape[1]
    return Smoothed(scores, classes, sizes, noise, rows or MODULE_ROWS, dtype, place, _check_half(half, place))


def _check_half(half: bool, place: torch.device) -> bool:
    if half and place.type != "cuda":
        raise InputError("half precision is for GPUs: on a processor it is slower")
    return half


def _in_half(scores: Scores, place: torch.device) -> Scores:
    def run(points: Tensor) -> Tensor:
        with torch.autocast(place.type, torch.float16):
            return scores(points).float()

    return run
