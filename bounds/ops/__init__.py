"""The operators: one file for each family; ``bounds.ops.base`` says what an operator is.

Importing this package imports every family, so that the registry is complete.
"""

from __future__ import annotations

from bounds.ops import (
    argmax,
    arithmetic,
    bilinear,
    comparison,
    composed,
    conv,
    einsum,
    exponential,
    extremum,
    gates,
    gemm,
    indexing,
    jumps,
    normalization,
    periodic,
    piecewise,
    pooling,
    powers,
    reduction,
    relu,
    resize,
    scattering,
    shape_arithmetic,
    shaping,
    smooth,
    softmax,
    sshape,
)
from bounds.ops.base import Op
from bounds.ops.registry import onnx_readers, operators

__all__ = ["families", "operators", "readers", "supported"]


def families() -> tuple[str, ...]:
    """The modules that define operators."""
    modules = (
        argmax, arithmetic, bilinear, comparison, composed, conv, einsum, exponential, extremum, gates, gemm,
        indexing, jumps, normalization, periodic, piecewise, pooling, powers, reduction, relu, resize,
        scattering, shape_arithmetic, shaping, smooth, softmax, sshape,
    )  # fmt: skip
    return tuple(module.__name__ for module in modules)


def readers() -> dict[str, type[Op]]:
    """The class whose ``from_onnx`` reads each supported ONNX operator, by the operator's name."""
    return onnx_readers()


def supported() -> dict[str, dict[str, int]]:
    """The supported ONNX operators as plain data, by name; ``since``: the first operator set whose form is read."""
    found = {name.name: name.since for cls in readers().values() for name in cls.onnx}
    return {name: {"since": found[name]} for name in sorted(found)}
