"""Queries without a property file: a class must win everywhere in a ball around a point, or in a box.

The counterexample is "some other class has at least the label's output". All numbers are taken exactly: a float is
the binary number it is, ``"8/255"`` a fraction.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from verifier.errors import InputError, UnsupportedError
from verifier.property.numbers import exact, rank
from verifier.query import Form, NetworkDeclaration, Query, Specification, Variable, build_query

if TYPE_CHECKING:
    from verifier.network import Network

Number = int | float | str | Fraction
"""Anything ``verifier.property.numbers.exact`` takes (``Decimal`` and numpy scalars too)."""


def check_norm(norm: str) -> None:
    """Raise ``InputError`` for what is no name of a ball's norm."""
    if norm not in ("inf", "2", "1"):
        raise InputError(f"norm {norm!r}: the known ones are inf, 2 and 1")


def robustness(
    model: str | Path | bytes | Network,
    x: np.ndarray,
    epsilon: Number,
    norm: str = "inf",
    label: int | None = None,
    data_range: tuple[Number, Number] | None = None,
) -> Query:
    """Whether a model with one input and one output keeps its class in the ball of radius ``epsilon`` around ``x``.

    ``x`` has as many elements as the model's input, in its order. ``data_range`` ``(low, high)`` bounds every element
    further. ``label`` defaults to the model's own class at ``x`` (computed by onnxruntime; a note says which). For a
    normalisation in front of the model see ``normalised``; ``x``, ``epsilon`` and ``data_range`` are then in its units.
    Raises ``InputError`` for arguments that are wrong, ``UnsupportedError`` for norms other than "inf".
    """
    if norm != "inf":
        raise UnsupportedError(f"norm {norm!r} is not supported yet; the norm 'inf' is")
    radius = exact(epsilon, "epsilon")
    if radius < 0:
        raise InputError(f"epsilon: {epsilon} is negative")
    network = _network(model)
    point = fitting(x, network, "the point")
    values, inverse = np.unique(point, return_inverse=True)
    centres = [Fraction(v) for v in values.tolist()]
    lows, highs = [c - radius for c in centres], [c + radius for c in centres]
    if data_range is not None:
        low, high = exact_range(data_range)
        lows, highs = [max(v, low) for v in lows], [min(v, high) for v in highs]
        outside = next((c for c, a, b in zip(centres, lows, highs, strict=True) if a > b), None)
        if outside is not None:
            raise InputError(
                f"the point has an element {float(outside)} that is outside the data range [{low}, {high}]"
            )
    return _query(network, ([lows[i] for i in inverse], [highs[i] for i in inverse]), label, point)


def exact_range(data_range: tuple[Number, Number]) -> tuple[Fraction, Fraction]:
    """The ends of a range as exact numbers. Raises ``InputError`` where they are crossed."""
    try:
        low, high = data_range
    except (TypeError, ValueError):
        raise InputError(f"data range {data_range!r}: two numbers are needed, (low, high)") from None
    low, high = exact(low, "data range"), exact(high, "data range")
    if low > high:
        raise InputError(f"data range: the low end {low} is above the high end {high}")
    return low, high


def from_box(
    model: str | Path | bytes | Network, lower: np.ndarray, upper: np.ndarray, label: int | None = None
) -> Query:
    """Whether a model keeps its class in the box ``lower <= x <= upper`` (each as many elements as its input).

    ``label`` defaults to the model's class at the centre. A box with ``lower > upper`` somewhere is empty: the query
    then has no case left, and its notes say so. Raises ``InputError``.
    """
    network = _network(model)
    low, high = fitting(lower, network, "lower"), fitting(upper, network, "upper")
    box = [Fraction(v) for v in low.tolist()], [Fraction(v) for v in high.tolist()]
    return _query(network, box, label, low + (high - low) / 2)


def normalised(
    model: str | Path | bytes | Network, mean: Number | Sequence[Number], std: Number | Sequence[Number]
) -> Network:
    """The network ``x -> model((x - mean) / std)``, as ONNX nodes in front of the model.

    ``mean`` and ``std``: one number, one a channel, or one an element; they are stored in the model's element type,
    rounded, like weights. onnxruntime replays the result as a whole, so regions and counterexamples are in
    the units of ``x``. Raises ``InputError``.
    """
    from verifier.network import read_network
    from verifier.normalisation import with_normalisation

    given = model if isinstance(model, str | Path | bytes) else model.model
    means, stds = _numbers(mean, "mean"), _numbers(std, "std")
    if any(s == 0 for s in stds):
        raise InputError("std: must not be zero")
    return read_network(with_normalisation(given, means, stds))


def _numbers(given: Number | Sequence[Number], what: str) -> list[Fraction]:
    if isinstance(given, Sequence | np.ndarray) and not isinstance(given, str):
        return [exact(v, what) for v in given]
    return [exact(given, what)]


def _network(model: str | Path | bytes | Network) -> Network:
    from verifier.network import read_network

    network = read_network(model) if isinstance(model, str | Path | bytes) else model
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        raise UnsupportedError(
            f"a region needs a model with one input and one output; this one has {len(network.inputs)} and "
            f"{len(network.outputs)} (write a VNN-LIB property instead)"
        )
    if network.outputs[0].size < 2:
        raise InputError("a region asks for a class: the model needs at least two outputs")
    return network


def fitting(x: np.ndarray, network: Network, what: str) -> np.ndarray:
    """``x`` as flat float64 (exact for every narrower type), checked against the model's input."""
    array, variable = np.asarray(x), network.inputs[0]
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        raise InputError(f"{what}: an array of numbers is needed, not of type {array.dtype}")
    if array.size != variable.size:
        raise InputError(
            f"{what} has {array.size} elements (shape {list(array.shape)}), the model's input {variable.name!r} has "
            f"{variable.size} (shape {list(variable.shape)})"
        )
    flat = array.reshape(-1).astype(np.float64)
    if not np.isfinite(flat).all():
        raise InputError(f"{what}: element {int(np.flatnonzero(~np.isfinite(flat))[0])} is NaN or infinite")
    return flat


def _query(
    network: Network, box: tuple[list[Fraction], list[Fraction]], label: int | None, centre: np.ndarray
) -> Query:
    count = network.outputs[0].size
    notes: tuple[str, ...] = ()
    if label is None:
        label = class_at(network, centre)
        notes = (f"label {label}: the model's own class",)
    if not 0 <= label < count:
        raise InputError(f"label {label}: the model has the classes 0 to {count - 1}")
    return build_query(network, _specification(box, count, label), notes=notes)


def class_at(network: Network, point: np.ndarray) -> int:
    """The model's class at a flat point, in the model's own element type, by onnxruntime."""
    from verifier.cases import dtype_of
    from verifier.replay import open_session

    variable = network.inputs[0]
    feed = {variable.name: point.astype(dtype_of(variable)).reshape(variable.shape)}
    outputs = open_session(network.model).run([network.outputs[0].name], feed)[0]
    return int(np.argmax(outputs))


def _specification(box: tuple[list[Fraction], list[Fraction]], count: int, label: int) -> Specification:
    """One box; one clause ``Y_i >= Y_label`` for each other class."""
    size = len(box[0])
    numbers, ranks = rank([Fraction(0), *box[0], *box[1]])
    lower, upper = ranks[1 : size + 1], ranks[size + 1 :]
    empty = bool((lower > upper).any())
    others = np.array([] if empty else [i for i in range(count) if i != label], dtype=np.int64)
    one = Fraction(1)
    pairs = [(min(i, label), max(i, label)) for i in others.tolist()]
    inputs, outputs = Variable("X", "real", (size,), 0), Variable("Y", "real", (count,), 0)
    boxes = 0 if empty else 1
    return Specification(
        constants=numbers,
        lower=lower[None][:boxes],
        upper=upper[None][:boxes],
        clauses_of=np.array([0] if empty else [0, len(others)], dtype=np.int64),
        literals_of=np.arange(len(others) + 1),
        form=np.arange(len(others), dtype=np.int32),
        sign=np.where(others < label, -1, 1).astype(np.int8),
        rhs=np.full(len(others), ranks[0], dtype=np.int32),
        strict=np.zeros(len(others), dtype=bool),
        forms=tuple(Form(((a, one), (b, -one))) for a, b in pairs),
        inputs=(inputs,),
        outputs=(outputs,),
        networks=(NetworkDeclaration("", (inputs,), (outputs,)),),
        refuted=count - 1 if empty else 0,
        notes=("the box is empty (lower > upper): no input satisfies it",) if empty else (),
    )
