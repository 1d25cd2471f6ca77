"""Losses of a batch: ``loss(module, x, y, draw) -> scalar``, frozen values with their own options.

``x`` ``[B, *shape]``, ``y`` ``[B]`` classes; ``draw`` is where all chance comes from. The module is called as it is, in
training mode within the loop; adversaries look for their points with it in evaluation mode, so that they leave the
statistics of normalisation layers alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.errors import InputError
from verifier.training.adversary import Adversary, in_mode


class Loss(Protocol):
    """To be made small; differentiable in the module's parameters."""

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, draw: torch.Generator) -> Tensor:
        """A scalar."""


class Objective(Protocol):
    """How bad outputs ``[B, F]`` are for the classes ``[B]``: ``CrossEntropy`` or a ``CentreLoss``."""

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        """``[B]``, one value an example."""


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """``-log softmax(outputs)[y]``."""

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        """See ``Objective``."""
        return functional.cross_entropy(outputs, y, reduction="none")


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A loss that changes: ``at(share)`` is that of a step after ``share`` (0 to 1) of all have been taken."""

    at: Callable[[float], Loss]


@dataclass(frozen=True, slots=True)
class Plain:
    """The mean objective at the inputs, with Gaussian noise of standard deviation ``sigma`` added (Cohen et al., ICML
    2019: train where the smoothed classifier looks); with 0 it is natural training."""

    sigma: float = 0.0
    objective: Objective = CrossEntropy()

    def __post_init__(self) -> None:
        _check_sigma(self.sigma)

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, draw: torch.Generator) -> Tensor:
        """See ``Loss``."""
        if self.sigma:
            x = x + self.sigma * _normal(x, 1, draw)[0]
        return self.objective(module(x), y).mean()


@dataclass(frozen=True, slots=True)
class SmoothAdversarial:
    """SmoothAdv (Salman et al., NeurIPS 2019): training under noise at points that an adversary chose against the
    smoothed classifier.

    The adversary makes ``-log mean_i softmax(f(x' + noise_i))[y]`` large over ``samples`` draws of noise of standard
    deviation ``sigma``, the same at each of its steps (SmoothAdv_PGD, equation 6); the loss is the mean cross-entropy
    at ``x' + noise_i``. ``adversary`` is mostly one of the norm 2; with a radius of 0 this is ``Plain(sigma)`` with
    several draws.
    """

    sigma: float
    adversary: Adversary
    samples: int = 2

    def __post_init__(self) -> None:
        _check_sigma(self.sigma)
        if self.samples < 1:
            raise InputError(f"samples={self.samples}: at least one draw of noise is needed")

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, draw: torch.Generator) -> Tensor:
        """See ``Loss``."""
        noise = self.sigma * _normal(x, self.samples, draw)

        def smoothed(points: Tensor) -> Tensor:
            return _smoothed(module((points + noise).flatten(0, 1)).unflatten(0, noise.shape[:2]), y)

        with in_mode(module, training=False):
            points = self.adversary.points(smoothed, x, draw)
        outputs = module((points + noise).flatten(0, 1))
        return functional.cross_entropy(outputs, y.repeat(self.samples))


@dataclass(frozen=True, slots=True)
class Adversarial:
    """Adversarial training (Madry et al., ICLR 2018): the mean objective at the adversary's points."""

    adversary: Adversary
    objective: Objective = CrossEntropy()

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, draw: torch.Generator) -> Tensor:
        """See ``Loss``."""
        with in_mode(module, training=False):
            points = self.adversary.points(lambda p: self.objective(module(p), y), x, draw)
        return self.objective(module(points), y).mean()


@dataclass(frozen=True, slots=True)
class Trades:
    """TRADES (Zhang et al., ICML 2019): ``CE(f(x), y) + beta KL(softmax f(x) || softmax f(x'))``, means over the batch,
    where the adversary makes the second term large. It begins near x: at x itself the gradient is 0."""

    adversary: Adversary
    beta: float = 6.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise InputError(f"beta: {self.beta} is not a number from 0 up")

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, draw: torch.Generator) -> Tensor:
        """See ``Loss``."""
        with in_mode(module, training=False):
            with torch.no_grad():
                there = module(x)
            points = self.adversary.points(lambda p: divergence(there, module(p)), x, draw)
        outputs = module(x)
        return functional.cross_entropy(outputs, y) + self.beta * divergence(outputs, module(points)).mean()


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """``[B]``: the Kullback-Leibler divergence of softmax(second) from softmax(first), of outputs ``[B, F]``."""
    return functional.kl_div(second.log_softmax(1), first.log_softmax(1), reduction="none", log_target=True).sum(1)


def _smoothed(outputs: Tensor, y: Tensor) -> Tensor:
    """``-log mean_i softmax(outputs_i)[y]`` ``[B]`` of outputs ``[m, B, F]``."""
    right = outputs.log_softmax(2).gather(2, y.expand(len(outputs), -1).unsqueeze(2)).squeeze(2)
    return math.log(len(outputs)) - right.logsumexp(0)


def _normal(x: Tensor, count: int, draw: torch.Generator) -> Tensor:
    return torch.randn((count, *x.shape), generator=draw, device=x.device, dtype=x.dtype)


def _check_sigma(sigma: float) -> None:
    if not (math.isfinite(sigma) and sigma >= 0):
        raise InputError(f"sigma: {sigma} is not a number from 0 up")
