"""The loop: Adam over shuffled batches, one epoch after the other, for as long as the caller wants."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from verifier.errors import InputError
from verifier.training.adversary import in_mode
from verifier.training.losses import Loss, Scheduled

_PLAIN = (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Flatten, nn.Identity, nn.Dropout, nn.Sequential)


@dataclass(frozen=True, slots=True)
class Settings:
    """``epochs`` over the data in batches of ``batch``; Adam (Kingma and Ba, ICLR 2015) at ``rate``, which falls to 0
    along a half cosine over all steps; ``decay`` of the weights; gradients longer than ``longest`` are shortened to
    it. ``seed``: of the order of the examples and of all that losses draw."""

    epochs: int = 50
    batch: int = 64
    rate: float = 1e-3
    seed: int = 0
    decay: float = 0.0
    longest: float = 10.0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1:
            raise InputError(f"epochs={self.epochs}, batch={self.batch}: at least one each is needed")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise InputError(f"rate: {self.rate} is not a positive number")
        if not (self.decay >= 0 and self.longest > 0):
            raise InputError(f"decay={self.decay}, longest={self.longest}: numbers from 0 up are needed")


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch that is over: its ``number`` from 1, and the mean ``loss`` of its examples."""

    number: int
    loss: float


def epochs(
    module: nn.Module, x: Tensor, y: Tensor, loss: Loss | Scheduled, settings: Settings = Settings()
) -> Iterator[Epoch]:
    """Train ``module`` in place on ``x`` ``[N, *shape]`` and classes ``y`` ``[N]``; yields after every epoch.

    The caller may stop whenever it has seen enough. The module is in training mode while an epoch runs, and between
    epochs in the mode that it came in. The same seed on the same machine gives the same
    parameters (dropout aside, which draws from torch's own generator). Raises ``InputError`` for data that do not fit,
    and where the loss is no longer finite.
    """
    _check(module, x, y)
    draw = torch.Generator(device=x.device).manual_seed(settings.seed)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=settings.rate, weight_decay=settings.decay)
    batches = math.ceil(len(x) / settings.batch)
    for number in range(1, settings.epochs + 1):
        total = 0.0
        with in_mode(module, training=True):
            order = torch.randperm(len(x), generator=draw, device=x.device).split(settings.batch)
            for k, chosen in enumerate(order):
                done = ((number - 1) * batches + k) / (settings.epochs * batches)
                for group in optimiser.param_groups:
                    group["lr"] = settings.rate * (1 + math.cos(math.pi * done)) / 2
                value = (loss.at(done) if isinstance(loss, Scheduled) else loss)(module, x[chosen], y[chosen], draw)
                total += _step(optimiser, parameters, value, settings.longest) * len(chosen)
        yield Epoch(number, total / len(x))


def train(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: Loss | Scheduled,
    settings: Settings = Settings(),
    report: Callable[[Epoch], None] | None = None,
) -> None:
    """Run ``epochs`` to the end; ``report`` is called after each."""
    for epoch in epochs(module, x, y, loss, settings):
        if report is not None:
            report(epoch)


def initialise(module: nn.Module, seed: int = 0) -> None:
    """Give all layers new parameters that depend on the seed alone, as torch distributes them: uniform within
    ``1 / sqrt(fan-in)`` for weights and biases; normalisation layers begin as the identity. Raises ``InputError`` for
    a layer with parameters of another kind."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, part in module.named_modules():
            if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                reach = 1 / math.sqrt(part.weight[0].numel())
                for values in (part.weight, part.bias):
                    if values is not None and values.requires_grad:
                        fresh = torch.rand(values.shape, generator=draw, dtype=torch.float64)
                        values.copy_((2 * fresh - 1) * reach)
            elif isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                part.reset_parameters()
            elif not isinstance(part, _PLAIN) and any(True for _ in part.parameters(recurse=False)):
                raise InputError(
                    f"layer {name or '(the module itself)'} is a {type(part).__name__}: initialise knows linear, "
                    "convolution and batch normalisation layers; set its parameters yourself"
                )


def accuracy(module: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of ``x`` ``[N, *shape]`` whose largest output, in evaluation mode, is that of the class."""
    with in_mode(module, training=False), torch.no_grad():
        return float((module(x).argmax(1) == y).double().mean())


def _step(optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter], value: Tensor, longest: float) -> float:
    """One step; the loss as a number."""
    found = float(value.detach())
    if not math.isfinite(found):
        raise InputError("the loss is no longer finite: a smaller rate, or a slower ramp, may help")
    optimiser.zero_grad()
    value.backward()
    nn.utils.clip_grad_norm_(parameters, longest)
    optimiser.step()
    return found


def _check(module: nn.Module, x: Tensor, y: Tensor) -> None:
    if x.ndim < 2 or not len(x):
        raise InputError(f"x of shape {list(x.shape)}: the first axis must count examples, of one at least")
    if not x.is_floating_point():
        raise InputError(f"x of type {x.dtype}: floating-point inputs are needed")
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise InputError(f"y of shape {list(y.shape)} and type {y.dtype}: {len(x)} classes of type int64 are needed")
    if not any(p.requires_grad for p in module.parameters()):
        raise InputError("the module has no parameters that may be trained (requires_grad)")
