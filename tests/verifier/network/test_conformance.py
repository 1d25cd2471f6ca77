"""The cases that the onnx package ships for our operators: passed, or skipped with a reason."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _load() -> ModuleType:
    path = Path(__file__).resolve().parents[3] / "benchmarks" / "onnx_conformance.py"
    spec = importlib.util.spec_from_file_location("onnx_conformance", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


conformance = _load()
CASES = conformance.cases()


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_case(case: Any) -> None:
    outcome = conformance.run(case)
    if outcome.result == "skipped":
        pytest.skip(outcome.reason)
    assert outcome.result == "passed", outcome.reason


@pytest.mark.slow
def test_no_case_is_overlooked() -> None:
    assert {c.name for c in conformance.cases(everything=True)} == {c.name for c in CASES}
