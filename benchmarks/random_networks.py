"""Random small networks over all operators that bounds know, for tests of soundness.

A network is drawn block by block. Flat ones mix fully connected layers, residual sums, maxima of two branches, slices
joined again, scalings and folded batch normalisations (constants with error bounds); image ones add convolutions of
all geometries, poolings, padding, transposed convolutions. ``Scales`` says how nasty the numbers are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from bounds.graph import Builder, Graph
from bounds.ops.arithmetic import Add, Div, Mul, Neg, Sub
from bounds.ops.base import Op
from bounds.ops.bilinear import MatrixProduct, Product
from bounds.ops.comparison import Select
from bounds.ops.conv import Conv, ConvTranspose
from bounds.ops.exponential import Exp
from bounds.ops.extremum import Max, Min
from bounds.ops.gemm import Gemm
from bounds.ops.indexing import Concat, Expand, Gather, Pad, Slice
from bounds.ops.jumps import Floor, Round, Step
from bounds.ops.periodic import Cos, Sin
from bounds.ops.piecewise import Abs, Clip, LeakyRelu, PRelu
from bounds.ops.pooling import AveragePool
from bounds.ops.powers import Power, Reciprocal
from bounds.ops.reduction import ReduceMean, ReduceSum
from bounds.ops.relu import Relu
from bounds.ops.shaping import Reshape, Transpose
from bounds.ops.softmax import Softmax
from bounds.ops.sshape import Sigmoid, Tanh


@dataclass(frozen=True, slots=True)
class Scales:
    """``weight``: gain of the weights (1: outputs of the size of the inputs). ``single``: numbers that float32 holds.
    ``cancel``: some rows are nearly the negative of others, around large offsets. ``smooth``: S-shaped functions too.
    ``jumps``, ``products``, ``waves``: steps and staircases, products of two values, and other smooth functions too.
    """

    weight: float = 1.0
    single: bool = True
    cancel: bool = False
    smooth: bool = True
    jumps: bool = False
    products: bool = False
    waves: bool = False


@dataclass(slots=True)
class _Draw:
    rng: np.random.Generator
    build: Builder
    scales: Scales

    def numbers(self, *shape: int, gain: float = 1.0) -> torch.Tensor:
        values = self.rng.normal(size=shape) * gain
        return torch.from_numpy(values.astype(np.float32).astype(np.float64) if self.scales.single else values)

    def constant(self, *shape: int, gain: float = 1.0) -> int:
        return self.build.constant(self.numbers(*shape, gain=gain))

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def among(self, low: int, high: int) -> int:
        """A number in ``low .. high``, both included."""
        return int(self.rng.integers(low, high + 1))

    def choose(self, *options: Callable[[int], int]) -> Callable[[int], int]:
        return options[int(self.rng.integers(len(options)))]

    def shape(self, x: int) -> tuple[int, ...]:
        return self.build.shape(x)

    # Layers ---------------------------------------------------------------------------------------------------------

    def dense(self, x: int, width: int) -> int:
        before = self.shape(x)[-1]
        weight = self.numbers(before, width, gain=self.scales.weight * (1.5 / before) ** 0.5)
        bias = self.numbers(width, gain=0.5 * self.scales.weight)
        if self.scales.cancel and width > 1:
            weight[:, 1] = -weight[:, 0] * (1 + 2.0**-18)
            bias[0], bias[1] = 1e6 * self.scales.weight, -1e6 * self.scales.weight
        operands = [self.build.constant(weight)] + ([self.build.constant(bias)] if self.chance(0.8) else [])
        return self.build.add(Gemm(), x, *operands)

    def activation(self, x: int) -> int:
        options = [*self.kinked(), *(self.smooth() if self.scales.smooth else ())]
        options += self.jumping() * 2 if self.scales.jumps else ()
        options += self.waves() if self.scales.waves else ()
        return self.choose(*options)(x)

    def kinked(self) -> tuple[Callable[[int], int], ...]:
        add = self.build.add
        low = float(self.numbers(1).item())
        high = low + abs(float(self.numbers(1).item()))
        alpha = float(self.numbers(1, gain=0.5).item())
        relu: Callable[[int], int] = lambda x: add(Relu(), x)  # noqa: E731 - one of a list
        return (
            relu,
            relu,
            relu,
            relu,
            lambda x: add(LeakyRelu(alpha), x),
            lambda x: add(Abs(), x),
            lambda x: add(Clip(low, high), x),
            lambda x: add(Clip(None, high), x),
            lambda x: add(PRelu(), x, self.constant(*self.shape(x), gain=0.7)),
        )

    def smooth(self) -> tuple[Callable[[int], int], ...]:
        return (lambda x: self.build.add(Sigmoid(), x), lambda x: self.build.add(Tanh(), x))

    def jumping(self) -> tuple[Callable[[int], int], ...]:
        add = self.build.add
        return (
            lambda x: add(Step(-1.0, 0.0, 1.0), x),
            lambda x: add(Step(0.0, float(self.among(0, 1)), 1.0), x),
            lambda x: add(Step(0.5, -0.25, 0.75), x),
            lambda x: add(Floor(), x),
            lambda x: add(Round(), x),
            lambda x: add(Select(), self.mask(x), add(Floor(), add(Neg(), x)), x),
        )

    def mask(self, x: int) -> int:
        return self.build.constant(torch.from_numpy(self.rng.integers(0, 2, self.shape(x))))

    def waves(self) -> tuple[Callable[[int], int], ...]:
        add = self.build.add
        return (
            lambda x: add(Sin(), x),
            lambda x: add(Cos(), x),
            lambda x: add(Power(self.among(2, 3)), add(Clip(-2.0, 2.0), x)),
            lambda x: add(Exp(), add(Clip(-3.0, 2.0), x)),
            lambda x: add(Softmax(-1), x),
            lambda x: add(Reciprocal(), add(Clip(0.25, 4.0), x)),
        )

    def product(self, x: int) -> int:
        """Elementwise, of a value with itself, or of two small matrices."""
        one = self.activation(self.dense(x, 4))
        two = one if self.chance(0.2) else self.dense(x, 4)
        if self.chance(0.5):
            return self.build.add(Product(), one, two)
        square = [self.build.add(Reshape((2, 2)), i) for i in (one, two)]
        return self.build.add(Reshape((4,)), self.build.add(MatrixProduct(), *square))

    def normalised(self, x: int) -> int:
        """A factor and a shift for each channel (or element), as a folded batch normalisation has them: inexact."""
        shape = self.shape(x)
        shape = (1, shape[1], *(1,) * (len(shape) - 2)) if len(shape) > 2 else shape
        variance = self.numbers(*shape).abs() + 0.3
        factor = self.numbers(*shape) / (variance + 1e-5).sqrt()
        slope = self.build.constant(factor, factor.abs() * 2.0**-50)
        shift = self.build.add(Mul(), self.constant(*shape), slope)
        return self.build.add(Add(), self.build.add(Mul(), x, slope), shift)

    def scaled(self, x: int) -> int:
        shape = tuple(1 if self.chance(0.3) else n for n in self.shape(x))
        divisor = self.numbers(*shape).abs().to(torch.float32).to(torch.float64) + 0.5
        op: Op = Div() if self.chance(0.5) else Mul()
        y = self.build.add(op, x, self.build.constant(divisor))
        if self.chance(0.3):
            y = self.build.add(Sub(), self.constant(*self.shape(y)), y)
        return self.build.add(Neg(), y) if self.chance(0.2) else y

    # Blocks ---------------------------------------------------------------------------------------------------------

    def flat_block(self, x: int) -> int:
        width = self.among(3, 7)
        plain = lambda x: self.activation(self.dense(x, width))  # noqa: E731
        products = (self.product, self.product) if self.scales.products else ()
        return self.choose(plain, plain, self.residual, self.extremum, self.shuffled, self.batch, *products)(x)

    def batch(self, x: int) -> int:
        return self.activation(self.scaled(self.normalised(self.dense(x, self.among(3, 6)))))

    def residual(self, x: int) -> int:
        width = self.shape(x)[-1]
        y = self.dense(self.activation(self.dense(x, self.among(2, 5))), width)
        y = self.build.add(Sub() if self.chance(0.3) else Add(), x, y)
        return self.activation(y) if self.chance(0.7) else y

    def extremum(self, x: int) -> int:
        width = self.among(2, 5)
        one, two = self.dense(x, width), self.activation(self.dense(x, width))
        return self.build.add(Max() if self.chance(0.6) else Min(), one, two)

    def shuffled(self, x: int) -> int:
        y = self.activation(self.dense(x, 6))
        left = self.build.add(Slice((0,), (6,), (0,), (2,)), y)
        right = self.build.add(Slice((5,), (1,), (0,), (-2,)), y)
        picked = self.build.add(Gather(0), y, self.build.constant(torch.tensor([3, 0, 3])))
        joined = self.build.add(Concat(0, (3, 2, 3)), left, self.activation(right), picked)
        grid = self.build.add(Transpose((1, 0)), self.build.add(Reshape((2, 4)), joined))
        flat = self.build.add(Reshape((8,)), self.activation(grid))
        total = self.build.add(Reshape((1,)), self.build.add(ReduceSum((0,), False), flat))
        return self.build.add(Add(), flat, self.build.add(Expand((8,)), total)) if self.chance(0.5) else flat

    def image_block(self, x: int) -> int:
        y = self.choose(self.conv, self.conv, self.conv, self.transposed)(x)
        if self.chance(0.3):
            y = self.normalised(y)
        y = self.activation(y)
        if self.chance(0.3):
            channels = self.shape(y)[1]
            z = self.build.add(Conv((1, 1), (1, 1), (1, 1, 1, 1)), y, self.constant(channels, channels, 3, 3, gain=0.3))
            y = self.activation(self.build.add(Add(), z, y))
        if self.chance(0.2):  # an operand that is repeated over the image
            y = self.activation(self.build.add(Add(), y, self.build.add(ReduceMean((2, 3), True), y)))
        return self.pooled(y) if min(self.shape(y)[2:]) >= 3 and self.chance(0.4) else y

    def conv(self, x: int) -> int:
        _, channels, height, width = self.shape(x)
        kernel, dilation = self.among(1, 3), self.among(1, 2)
        pads = tuple(self.among(0, 2) for _ in range(4))
        extent = (kernel - 1) * dilation + 1
        if min(height + pads[0] + pads[2], width + pads[1] + pads[3]) < extent:
            pads = (2, 2, 2, 2)
        groups = channels if self.chance(0.3) else 1
        out = groups * self.among(1, 2)
        gain = self.scales.weight * (1.5 / (channels // groups * kernel * kernel)) ** 0.5
        weight = self.constant(out, channels // groups, kernel, kernel, gain=gain)
        op = Conv((self.among(1, 2), self.among(1, 2)), (dilation, dilation), pads, groups)
        return self.build.add(op, x, weight, self.constant(out, gain=0.3 * self.scales.weight))

    def transposed(self, x: int) -> int:
        channels = self.shape(x)[1]
        op = ConvTranspose((self.among(1, 2),) * 2, (1, 1), (self.among(0, 1), 0, 0, self.among(0, 1)))
        weight = self.constant(channels, 2, 2, 2, gain=self.scales.weight * 0.5)
        return self.build.add(op, x, weight, self.constant(2, gain=0.3))

    def pooled(self, x: int) -> int:
        if self.chance(0.5):
            y = self.build.add(Pad((0, 0, 1, 0, 0, 0, 0, 1)), x) if self.chance(0.5) else x
            return self.build.add(AveragePool((2, 2), (self.among(1, 2), 1)), y)
        height, width = self.shape(x)[2:]
        rows = [self.build.add(Slice((k,), (height - 1 + k,), (2,), (1,)), x) for k in range(2)]
        y = self.build.add(Max(), *rows)
        columns = [self.build.add(Slice((k,), (width - 1 + k,), (3,), (1,)), y) for k in range(2)]
        return self.build.add(Max(), *columns)


def dense_graph(rng: np.random.Generator) -> Graph:
    """A graph of 2 to 6 inputs, one or two layers of 6 to 24 ReLUs, and 1 to 3 outputs: nothing but products, sums and
    ReLUs, which the other graphs seldom are."""
    build = Builder()
    draw = _Draw(rng, build, Scales())
    x = build.input((draw.among(2, 6),), "x")
    for _ in range(draw.among(1, 2)):
        x = build.add(Relu(), draw.dense(x, draw.among(6, 24)))
    return build.finish([draw.dense(x, draw.among(1, 3))])


def random_graph(rng: np.random.Generator, scales: Scales | None = None, image: bool | None = None) -> Graph:
    """A graph of one flat input and one flat output (1 to 3 elements) of one to three blocks."""
    build = Builder()
    draw = _Draw(rng, build, scales or Scales())
    image = draw.chance(0.3) if image is None else image
    if image:
        shape = (1, draw.among(1, 2), draw.among(2, 4), draw.among(2, 4))
        x = build.add(Reshape(shape), build.input((int(np.prod(shape)),), "x"))
        for _ in range(draw.among(1, 2)):
            x = draw.image_block(x)
        x = build.add(Reshape((int(np.prod(build.shape(x))),)), x)
    else:
        x = build.input((draw.among(1, 5),), "x")
        for _ in range(draw.among(1, 3)):
            x = draw.flat_block(x)
    return build.finish([draw.dense(x, draw.among(1, 3))])
