"""One call of a torch operation, and how it becomes operators: by the same ``from_onnx`` that reads ONNX files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bounds.graph import Builder
from bounds.ops import readers
from bounds.ops.base import OnnxNode, Shape, UnsupportedOperatorError

_OPSET = 21
"""The ONNX operator set whose forms the calls speak."""


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor of the graph under construction, by its builder id."""

    index: int


Value = Ref | tuple[Ref | None, ...]
"""What a call returns: a tensor, or several (None: one that is not supported and must not be read)."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call: its arguments by name (tensors as ``Ref``); shape and dtype of its result where it is one tensor.

    ``input_dtype`` is that of the first tensor that goes in.
    """

    name: str
    arguments: Mapping[str, Any]
    shape: Shape
    dtype: torch.dtype
    build: Builder
    input_dtype: torch.dtype

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]

    def get(self, argument: str, default: Any = None) -> Any:
        """An argument that not every overload has."""
        return self.arguments.get(argument, default)

    def size(self, argument: str) -> Shape:
        """The shape of a tensor argument."""
        return self.build.shape(self.arguments[argument].index)

    def axis(self, argument: str = "dim", of: str = "self", extra: int = 0) -> int:
        """A dimension as a number from 0."""
        return int(self.arguments[argument]) % (len(self.size(of)) + extra)

    def constant(self, value: Tensor) -> Ref:
        """A constant."""
        return Ref(self.build.constant(value))

    def tensor(self, value: Any) -> Ref:
        """A tensor, or a number as the module computes with it: rounded to the result's dtype."""
        return value if isinstance(value, Ref) else self.constant(torch.tensor(value, dtype=self.dtype))

    def several(self, operator: str, *operands: Ref | None, outputs: int = 1, **attributes: Any) -> tuple[Ref, ...]:
        """Read one ONNX operator. Raises ``UnsupportedOperatorError``."""
        known = readers().get(operator)
        if known is None:
            raise UnsupportedOperatorError(f"the operator {operator} is not supported")
        ids = tuple(None if o is None else o.index for o in operands)
        node = OnnxNode(operator, self.name, attributes, ids, outputs, _OPSET)
        return tuple(Ref(i) for i in known.from_onnx(node, self.build))

    def make(self, operator: str, *operands: Ref | None, **attributes: Any) -> Ref:
        """As ``several`` for an operator of one result."""
        return self.several(operator, *operands, **attributes)[0]

    def integers(self, *values: int) -> Ref:
        """A constant list of integers."""
        return self.constant(torch.tensor(values, dtype=torch.int64))

    def reshaped(self, value: Ref, shape: Sequence[int]) -> Ref:
        """The same elements in another shape."""
        return self.make("Reshape", value, self.integers(*shape), allowzero=1)

    def refuse(self, why: str) -> UnsupportedOperatorError:
        """The error for a form that is not covered."""
        return UnsupportedOperatorError(why)


Entry = Callable[[Call], Value]
