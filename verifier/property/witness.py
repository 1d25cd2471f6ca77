"""How a counterexample is written: the forms of VNN-LIB 1.0 and 2.x, and one tensor file per variable.

Numbers are printed as the shortest decimal that reads back as the same double, without an exponent; a float32 is a
double, so it reads back exactly in either type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from verifier.errors import InputError
from verifier.query import Specification, Variable
from verifier.verdict import Counterexample


def format_witness(specification: Specification, found: Counterexample) -> str:
    """The witness in the property's own version, without a line end after the last line.

    Version 1.0: ``((X_0 0.5)`` to ``(Y_4 -0.25))``. Version 2: for each variable of each network, inputs before
    outputs, a line ``NAME type [d0,d1]`` and one value a line.
    """
    if specification.version[0] == "1":
        return witness_pairs({f"{v.name}_{v.start + k}": value for v, values in _assignments(specification, found)
                              for k, value in enumerate(values)})  # fmt: skip
    lines: list[str] = []
    for v, values in _assignments(specification, found):
        lines.append(f"{v.name} {v.dtype} [{','.join(map(str, v.shape))}]")
        lines += [_decimal(value) for value in values]
    return "\n".join(lines)


def witness_pairs(values: Mapping[str, np.floating]) -> str:
    """Names with their values in the form of VNN-LIB 1.0."""
    return "(" + "\n".join(f"({name} {_decimal(value)})" for name, value in values.items()) + ")"


def write_assignments(specification: Specification, found: Counterexample, folder: str | Path) -> tuple[Path, ...]:
    """Write ``NAME.pb``, an ONNX ``TensorProto`` of the declared shape, for each variable into an existing folder."""
    from onnx import numpy_helper

    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; create it first")
    written = []
    for v, values in _assignments(specification, found):
        path = folder / f"{v.name}.pb"
        tensor = numpy_helper.from_array(values.reshape(v.shape), v.name)
        path.write_bytes(tensor.SerializeToString())
        written.append(path)
    return tuple(written)


def _assignments(specification: Specification, found: Counterexample) -> Iterator[tuple[Variable, np.ndarray]]:
    """Variables with their values, network by network, inputs before outputs."""
    inputs = dict(zip(specification.inputs, found.inputs, strict=True))
    outputs = dict(zip(specification.outputs, found.outputs, strict=True))
    for network in specification.networks:
        yield from ((v, inputs[v]) for v in network.inputs)
        yield from ((v, outputs[v]) for v in network.outputs)


def _decimal(value: np.floating) -> str:
    return np.format_float_positional(np.float64(value), unique=True, trim="0")
