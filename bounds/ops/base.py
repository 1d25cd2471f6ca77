"""What an operator is.

An operator is a frozen value without tensors: weights are constant *operands* of its node. Everything that
bounding needs to know about an operator is said once, in its class: how to compute it, how to enclose it, and (for
a nonlinear one) which lines lie below and above it. No list elsewhere names operators; the registry
(``bounds.ops.registry``) is the set of concrete subclasses.

Leading dimension. Every data operand carries the box dimension N in front, ``[N, *shape]`` (a constant data operand
has N = 1); a *parameter* (a weight, a bias, an index) has no N. ``parameters`` names the positions without N.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from bounds.ops.lines import lines_block
from bounds.rounding import Rounding

if TYPE_CHECKING:
    from bounds.constraints import LinearBlock

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OnnxName:
    """The ONNX operator that a class reads, and the first opset in which this reading holds."""

    name: str
    since: int = 1


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """One node of an ONNX model as plain values: attributes decoded, operands as builder ids (None: left out)."""

    op_type: str
    name: str
    attributes: Mapping[str, Any]
    inputs: tuple[int | None, ...]
    outputs: int
    opset: int


def broadcast(*shapes: Shape) -> Shape:
    """The shape that shapes of equal rank broadcast to (``torch.broadcast_shapes`` would import sympy)."""
    zero = torch.zeros(())
    return tuple(torch.broadcast_tensors(*(zero.expand(s) for s in shapes))[0].shape)


def sum_of(parts: Sequence[Tensor]) -> Tensor:
    """The sum of one or more tensors."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


class UnsupportedOperatorError(ValueError):
    """A valid model uses an operator, or a form of one, that is not supported; ``why`` leaves out which node it is."""

    def __init__(self, message: str, why: str = "") -> None:
        super().__init__(message)
        self.why = why or message


class NoDerivativeError(ValueError):
    """An operator whose derivative is not bounded, or not known here; ``why`` says which of both."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class DomainError(ValueError):
    """A box reaches points at which an operator of the graph has no value (``Op.outside``)."""


class BuilderLike(Protocol):
    """What ``from_onnx`` may ask of the builder (``bounds.graph.Builder``)."""

    def shape(self, index: int) -> Shape: ...
    def value(self, index: int) -> Tensor | None: ...
    def error(self, index: int) -> Tensor | None: ...
    def constant(self, value: Tensor, error: Tensor | None = None, name: str = "") -> int: ...
    def add(self, op: Op, *inputs: int, name: str = "") -> int: ...


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """``sum_i slopes[i] * operand_i + offset``, elementwise over the node; tensors are ``[N, *node shape]``.

    Operators that are not elementwise have slopes of other shapes: ``Nonlinear.along`` says what they mean.
    """

    slopes: tuple[Tensor, ...]
    offset: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Relaxation:
    """Sound lines around a nonlinear operator on a box: every ``lower`` line <= op <= every ``upper`` line there.

    Backward bounds use the first line of each side; a linear program may use all of them.
    """

    lower: tuple[Line, ...]
    upper: tuple[Line, ...]


Interval = tuple[Tensor, Tensor]

Parameters = tuple[Tensor | None, Tensor | None]
"""Free parameters of the first lower and the first upper line, ``[N, *node shape]``; None: the operator chooses."""


@dataclass(frozen=True, slots=True, eq=False)
class Freedom:
    """The parameter of one side's line: where it starts, and the range outside which no value is better.

    Every value is sound (an operator clamps what it cannot use); tensors are ``[N, *node shape]`` or broadcast to it.
    ``least == greatest`` where there is nothing to choose.
    """

    start: Tensor
    least: Tensor
    greatest: Tensor


class Op(ABC):
    """An operation of a graph. Subclasses are frozen dataclasses with plain (hashable) fields."""

    __slots__ = ()
    onnx: ClassVar[tuple[OnnxName, ...]] = ()
    parameters: ClassVar[frozenset[int]] = frozenset()

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        """Add this node to the graph under construction and return the ids of its outputs.

        Raises ``UnsupportedOperatorError`` for a form that is not covered (the message says which and why).
        """
        raise UnsupportedOperatorError(f"{cls.__name__} is not read from ONNX")

    @abstractmethod
    def forward(self, *operands: Tensor) -> Tensor:
        """The operation itself: data operands ``[N, *shape]``, parameters ``[*shape]``; returns ``[N, *out]``."""

    @abstractmethod
    def is_affine(self, variable: Sequence[bool]) -> bool:
        """Whether the result is affine in the operands that depend on the graph's input (``variable``)."""

    @abstractmethod
    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        """Bounds of the result when each operand lies in its interval (a constant: two equal ends).

        With ``rounding`` they enclose the exact real result in spite of floating point.
        """

    def outside(self, operands: Sequence[Interval]) -> Tensor | None:
        """Which elements of the result may have no value on the operands' intervals (the logarithm of a number that is
        not positive): bool ``[N, *out]``; None, the default: every element has one everywhere.

        ``interval`` says nothing there (infinite ends). ``compute_bounds`` raises ``DomainError`` for such a box; in
        branch and bound it stays open and is split.
        """
        return None

    def shape(self, *shapes: Shape) -> Shape:
        """Static shape of the result (without N), by running ``forward`` once on zeros.

        Not on the meta device: its first use imports torch's compiler, which takes longer than most verifications.
        """
        zero = torch.zeros((), dtype=torch.float64)
        operands = [zero.expand(s if i in self.parameters else (1, *s)) for i, s in enumerate(shapes)]
        return tuple(self.forward(*operands).shape[1:])


class Nonlinear(Op):
    """Enclosed by lines: whatever reads bounds of its operands and can be relaxed.

    A line's slopes are tensors ``[N, ...]``, one for each variable operand. Where ``elementwise``, each is one number
    per element of the node; else ``along`` and ``across`` say what they mean (a matrix product, a softmax).
    """

    __slots__ = ()
    elementwise: ClassVar[bool] = True
    through_origin: ClassVar[bool] = False
    """Whether the only parameter is the slope of a lower line that passes through 0 wherever there is a choice, so that
    the rest of the lines never changes with it."""

    @abstractmethod
    def relaxation(
        self,
        operands: Sequence[Interval],
        rounding: Rounding | None,
        chosen: Parameters = (None, None),
    ) -> Relaxation:
        """Lines below and above on the operands' intervals; ``chosen`` replaces the initial parameters (a slope, or a
        mixing weight: see ``freedom``). With ``rounding`` they hold in exact arithmetic as they are returned."""

    def freedom(self, operands: Sequence[Interval]) -> tuple[Freedom | None, Freedom | None]:
        """What an ascent may choose below and above (None: nothing on that side, the default)."""
        return None, None

    def ascent(self, operands: Sequence[Interval], chosen: Parameters, values: Sequence[Tensor]) -> Parameters:
        """Derivatives, by its parameter, of the value that the lower and the upper line take at a point.

        ``values`` are the variable operands there. Only sides with a ``freedom`` are asked for; None elsewhere.
        """
        raise NotImplementedError(f"{type(self).__name__} has no free parameters")

    def derivatives(self, operands: Sequence[Interval], rounding: Rounding | None) -> tuple[Interval, ...]:
        """Ranges of the partial derivatives by each data operand while the operands stay in their intervals.

        Elementwise, ``[N, *node shape]``; at a kink Clarke's derivative counts, so a range is closed: ReLU has [0, 1]
        where 0 is in the interval. With ``rounding`` the ranges hold in exact arithmetic; infinite ends say that
        nothing is known. Raises ``NoDerivativeError`` (the default), as operators with jumps do.
        """
        raise NoDerivativeError(f"bounds of derivatives of {type(self).__name__} are not available")

    def gradients(
        self, rows: Interval, operands: Sequence[Interval], rounding: Rounding | None
    ) -> tuple[Interval, ...]:
        """Where not ``elementwise``: the chain rule for coefficient rows within ``rows``, both ``[N, R, *node shape]``.

        Ranges of the rows of each data operand, ``[N, R, *its shape]``, else as ``derivatives``.
        """
        raise NoDerivativeError(f"bounds of derivatives of {type(self).__name__} are not available")

    def along(self, slopes: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        """The linear part of a line at values of the variable operands; leading dimensions broadcast.

        Absolute values in place of ``slopes`` and ``values`` give a bound of its size.
        """
        return sum_of([s * v for s, v in zip(slopes, values, strict=True)])

    def across(self, slopes: Sequence[Tensor], rows: Tensor) -> tuple[Tensor, ...]:
        """The transpose of ``along``: coefficient rows of the node to those of its variable operands."""
        return tuple(rows * s for s in slopes)

    def roundoff(self, operands: Sequence[Interval], result: Interval, machine: Rounding) -> Tensor | None:
        """``[N, *node shape]``: how far a machine of that rounding model can be off when it computes the operator from
        operands in their intervals, with exact results in ``result``. None: it is exact (a selection).

        Raises ``UnsupportedOperatorError`` where there is no model (the default).
        """
        raise UnsupportedOperatorError(f"no model of how {type(self).__name__} rounds in float32 (semantics 'float32')")

    def terms(self, *shapes: Shape) -> int:
        """Upper bound of the number of products that ``along`` and ``across`` sum into one element."""
        return 2

    def split_point(self, low: Tensor, high: Tensor) -> Tensor:
        """Where an operand between ``low`` and ``high`` (finite, of any shape) is best split in two; NaN where nothing
        is gained. Here: in the middle.

        Any point is sound as long as both children have it.
        """
        return torch.where(high > low, low / 2 + high / 2, torch.nan)

    def exact(self, operands: Sequence[Interval]) -> LinearBlock:
        """Rows and phases that only the operation itself satisfies, on one box (N = 1) with finite, proven ends.

        Raises ``UnsupportedOperatorError`` where there is no such form (the default); ``envelope`` holds nevertheless.
        """
        name = type(self).__name__
        raise UnsupportedOperatorError(f"{name} has no exact form as linear rows and phases", "no exact form")

    def envelope(self, operands: Sequence[Interval], error: float) -> LinearBlock:
        """Rows that the operation satisfies, for one that has no exact form: here its lines on the whole intervals.

        ``error``: how far results that the rows leave may be from the operation's own. Functions of one variable keep
        to it where they can; others, and these lines, take no notice of it.
        """
        return lines_block(self, self.relaxation(operands, Rounding.of(torch.float64)), operands)

    @abstractmethod
    def loose(self, low: Tensor, high: Tensor, *others: Tensor) -> Tensor:
        """Which elements gain from better bounds of an operand in ``[low, high]``: bool, like ``low``.

        ``others``: the parameters, or both ends of the other operand where they are known.
        """


class Rewritten(Op):
    """An ONNX operator that is read as other operators: ``from_onnx`` is all it has, it never stands in a graph."""

    __slots__ = ()
