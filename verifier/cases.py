"""The exact cases of a property in floating point, each number on its safe side.

Every distinct constant is rounded once; the arrays then pick by rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from verifier.errors import InputError, UnsupportedError
from verifier.property.numbers import Numbers
from verifier.query import Cases, Specification, Variable

_DTYPES: Mapping[str, type[np.floating]] = MappingProxyType(
    {"float16": np.float16, "float32": np.float32, "float64": np.float64}
)


def float_cases(specification: Specification, inputs: Sequence[Variable]) -> tuple[Cases, tuple[str, ...]]:
    """The specification's cases, and notes on what was widened.

    ``inputs`` are the model's, with their element types, in the order of the flat vector. A coordinate whose exact
    interval holds no number of its type is widened to the two neighbouring ones, so that search, bounds and replay
    speak of one set. Raises ``InputError`` where an interval lies outside the range of the type, ``UnsupportedError``
    for a type that is not floating point.
    """
    lower, upper = specification.lower, specification.upper
    numbers = Numbers(specification.constants).rounded()
    down, up = numbers.enclose(np.float64)
    low, high = down[lower], up[upper]
    dtype = np.result_type(*(dtype_of(v) for v in inputs))
    inner_low, inner_high = np.empty(lower.shape, dtype=dtype), np.empty(upper.shape, dtype=dtype)
    widened = np.zeros(lower.shape, dtype=bool)
    for kind in {dtype_of(v) for v in inputs}:
        below, above = numbers.enclose(kind)
        for variable in inputs:
            if dtype_of(variable) is not kind:
                continue
            part = slice(variable.start, variable.start + variable.size)
            first, last = above[lower[:, part]], below[upper[:, part]]
            missing = first > last
            inner_low[:, part] = np.where(missing, below[lower[:, part]], first)
            inner_high[:, part] = np.where(missing, above[upper[:, part]], last)
            widened[:, part] = missing
    _demand_finite(low, high, inner_low, inner_high)
    amount = 0.0
    if widened.any():
        moved = np.maximum(up[lower] - inner_low, inner_high - down[upper])
        amount = float(moved[widened].max())
        low, high = np.where(widened, inner_low, low), np.where(widened, inner_high, high)
    cases = Cases(
        lower=low,
        upper=high,
        inner_lower=inner_low,
        inner_upper=inner_high,
        varying=lower < upper,
        clauses_of=specification.clauses_of,
        literals_of=specification.literals_of,
        form=specification.form,
        sign=specification.sign,
        threshold=np.where(specification.sign > 0, up[specification.rhs], -down[specification.rhs]) + 0.0,
        strict=specification.strict,
    )
    return cases, _notes(widened, amount)


def dtype_of(variable: Variable) -> type[np.floating]:
    """The numpy type of a tensor's elements; raises ``UnsupportedError`` where it is not floating point."""
    if variable.dtype not in _DTYPES:
        raise UnsupportedError(f"{variable.name}: element type {variable.dtype} is not supported")
    return _DTYPES[variable.dtype]


def _demand_finite(*ends: np.ndarray) -> None:
    for end in ends:
        beyond = np.flatnonzero(~np.isfinite(end).all(axis=0))
        if beyond.size:
            raise InputError(f"unbounded input {int(beyond[0])}: its bounds lie beyond the range of {end.dtype}")


def _notes(widened: np.ndarray, amount: float) -> tuple[str, ...]:
    if not widened.any():
        return ()
    count, size = int(widened.any(axis=0).sum()), widened.shape[1]
    where = "" if len(widened) == 1 else f" in {int(widened.any(axis=1).sum())} of {len(widened)} boxes"
    # Two digits, rounded up: 5% more covers what printing may round away.
    return (f"{count} of {size} inputs widened{where}, by at most {amount * 1.05:.1e}: their decimals are no floats",)
