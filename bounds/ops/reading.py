"""What every ``from_onnx`` needs: operands, attributes and constant integers of a node, and its error messages.

An operator's reading changes with the opset (an attribute becomes an operand); these helpers read either form.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bounds.ops.base import BuilderLike, OnnxNode, Shape, UnsupportedOperatorError


def unsupported(node: OnnxNode, why: str) -> UnsupportedOperatorError:
    """The error for a valid form that is not covered; ``why`` says which form."""
    return UnsupportedOperatorError(f"{node.op_type} node {node.name!r} (opset {node.opset}): {why}", why)


def invalid(node: OnnxNode, why: str) -> ValueError:
    """The error for a node that breaks the operator's specification."""
    return ValueError(f"{node.op_type} node {node.name!r} is not valid: {why}")


def present(node: OnnxNode, position: int) -> bool:
    """Whether an (optional) operand is given."""
    return position < len(node.inputs) and node.inputs[position] is not None


def operand(node: OnnxNode, position: int) -> int:
    """The builder id of an operand that must be there."""
    index = node.inputs[position] if position < len(node.inputs) else None
    if index is None:
        raise invalid(node, f"operand {position} is missing")
    return index


def constant(node: OnnxNode, build: BuilderLike, position: int) -> Tensor:
    """The value of an operand that must be a constant."""
    value = build.value(operand(node, position))
    if value is None:
        raise unsupported(node, f"operand {position} depends on the network's input; only a constant is supported")
    return value


def integers(node: OnnxNode, build: BuilderLike, position: int) -> tuple[int, ...]:
    """A constant operand as plain integers."""
    return tuple(int(v) for v in constant(node, build, position).flatten().tolist())


def ints(node: OnnxNode, name: str, default: Sequence[int]) -> tuple[int, ...]:
    """An attribute that is a list of integers."""
    return tuple(int(v) for v in node.attributes.get(name, default))


def flag(node: OnnxNode, name: str, default: int = 0) -> int:
    """An integer attribute."""
    return int(node.attributes.get(name, default))


def text(node: OnnxNode, name: str, default: str) -> str:
    """A string attribute (decoded where the model's bytes were kept)."""
    value = node.attributes.get(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def axis_of(node: OnnxNode, axis: int, rank: int) -> int:
    """A non-negative axis of a tensor of ``rank`` dimensions."""
    if not -rank <= axis < rank:
        raise invalid(node, f"axis {axis} is outside a tensor of {rank} dimensions")
    return axis % rank


def axes(node: OnnxNode, build: BuilderLike, position: int, rank: int) -> tuple[int, ...] | None:
    """Sorted non-negative axes, from operand ``position`` or else the attribute ``axes``; None: not given."""
    if present(node, position):
        given = integers(node, build, position)
    elif "axes" in node.attributes:
        given = ints(node, "axes", ())
    else:
        return None
    return tuple(sorted({axis_of(node, a, rank) for a in given}))


def scalar(node: OnnxNode, build: BuilderLike, position: int) -> float:
    """A constant operand of one element as a number."""
    value = constant(node, build, position)
    if value.numel() != 1:
        raise invalid(node, f"operand {position} must be one number, not of shape {tuple(value.shape)}")
    return float(value.item())


def indices(values: Sequence[int]) -> Tensor:
    """An index operand."""
    return torch.tensor(list(values), dtype=torch.int64)


def product(values: Shape) -> int:
    """The product of sizes (1 for none)."""
    result = 1
    for value in values:
        result *= value
    return result
