"""The JSON record of a verdict, schema ``nn-verifier/result/1``.

Numbers whose exact value matters (bounds, margins, the values of a counterexample) are strings: the exact decimal
expansion of the floating-point number, which no JSON reader can round. Times and shares are plain numbers. The schema
``result-1.schema.json`` lies beside this file; it is only ever extended.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier import __version__

if TYPE_CHECKING:
    import numpy as np

    from verifier.query import Query, Variable
    from verifier.verdict import Counterexample, Verdict

SCHEMA = "nn-verifier/result/1"


def number(value: float) -> str | None:
    """The exact decimal expansion of a finite float; None for an infinity, which says nothing."""
    value = float(value)
    if math.isnan(value):
        raise ValueError("NaN in a result")
    return None if math.isinf(value) else format(Decimal(value), "f")


def record(word: str, *, stage: str, seconds: float, **more: Any) -> dict[str, Any]:
    """A record with what every result has; further fields as in the schema."""
    return {
        "schema": SCHEMA,
        "verifier": __version__,
        "result": word,
        "stage": stage,
        "seconds": round(seconds, 3),
        **more,
    }


def verdict_record(verdict: Verdict, query: Query | None = None) -> dict[str, Any]:
    """A verdict as data. With ``query`` the counterexample's values are listed, without it they are left out."""
    from verifier.verdict import Unknown, Verified, Violated

    more: dict[str, Any] = {"notes": list(verdict.notes)}
    if isinstance(verdict, Violated):
        more["counterexample"] = _counterexample(verdict.counterexample, query)
    elif isinstance(verdict, Verified):
        more |= {
            "semantics": verdict.semantics,
            "lower_bound": number(verdict.margin),
            "subproblems": verdict.subproblems,
            "float32_error": number(verdict.float32_error),
            "real_only": verdict.real_only,
        }
        if verdict.record is not None:
            more["record"] = verdict.record
    elif isinstance(verdict, Unknown):
        more |= {
            "reason": verdict.reason,
            "lower_bound": number(verdict.best_bound),
            "upper_bound": number(verdict.upper_bound),
            "open_share": verdict.open_share,
        }
    return record(verdict.word, stage=verdict.stage, seconds=verdict.seconds, **more)


def schema() -> dict[str, Any]:
    """The JSON Schema of a record."""
    text = Path(__file__).with_name("result-1.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def _counterexample(found: Counterexample, query: Query | None) -> dict[str, Any]:
    listed: dict[str, Any] = {
        "clause": found.clause,
        "margin": number(found.margin),
        "replayed_with": found.replayed_with,
        "real": found.real,
    }
    if query is not None:
        listed["inputs"] = _variables(query.specification.inputs, found.inputs)
        listed["outputs"] = _variables(query.specification.outputs, found.outputs)
    return listed


def _variables(declared: tuple[Variable, ...], values: tuple[np.ndarray, ...]) -> list[dict[str, Any]]:
    return [
        {
            "name": variable.name,
            "dtype": array.dtype.name,
            "shape": list(variable.shape),
            "values": [_exact(value) for value in array.reshape(-1)],
        }
        for variable, array in zip(declared, values, strict=True)
    ]


def _exact(value: np.generic) -> str:
    plain = value.item()
    if isinstance(plain, float) and not math.isfinite(plain):
        return repr(plain)
    return format(Decimal(plain), "f")
