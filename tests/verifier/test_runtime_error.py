"""A proof says how far float32 may be off, and whether its margin is larger."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import verifier
from verifier.report.result import schema, verdict_record
from verifier.runtime_error import float32_error
from verifier.verdict import Verified


def proof(checkout: Path, name: str) -> tuple[verifier.Query, Verified]:
    corpus = checkout / "tests" / "corpus"
    query = verifier.read(corpus / f"{name}.onnx", corpus / f"{name}.vnnlib")
    verdict = verifier.verify(query, timeout=60)
    assert isinstance(verdict, Verified)
    return query, verdict


def test_a_wide_margin_covers_float32(checkout: Path) -> None:
    query, verdict = proof(checkout, "ranking_deep_unsat")
    assert 0 < verdict.float32_error == float32_error(query) < 1e-2
    assert verdict.real_only == (verdict.margin <= verdict.float32_error)
    record = verdict_record(verdict)
    assert record["real_only"] is verdict.real_only and float(record["float32_error"]) == verdict.float32_error
    assert {"real_only", "float32_error"} <= set(schema()["properties"])


@pytest.mark.parametrize(
    ("margin", "error", "label"),
    [(1e-3, 1e-6, False), (1e-6, 1e-6, True), (1e-3, math.inf, True), (math.inf, 1.0, False)],
)
def test_the_label(margin: float, error: float, label: bool) -> None:
    verdict = Verified(stage="", margin=margin, float32_error=error)
    assert verdict.real_only is label
    assert verdict_record(verdict)["float32_error"] == (
        None if math.isinf(error) else verdict_record(verdict)["float32_error"]
    )
