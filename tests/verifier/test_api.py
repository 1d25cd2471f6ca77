"""The functions of ``import verifier``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import verifier

DIGITS = Path("benchmarks") / "digits"


@pytest.fixture(scope="module")
def digits(checkout: Path) -> Path:
    return checkout / DIGITS


def test_verify_takes_paths_or_a_query(digits: Path) -> None:
    seen: list[verifier.Progress] = []
    verdict = verifier.verify(digits / "digits.onnx", digits / "fragile.vnnlib", timeout=60, report=seen.append)
    assert isinstance(verdict, verifier.Violated) and verdict.word == "sat"
    (inputs,) = verdict.counterexample.inputs
    assert inputs.shape == (64,) and seen and seen[0].stage
    query = verifier.read(digits / "digits.onnx", digits / "robust.vnnlib")
    verdict = verifier.verify(query, timeout=60)
    assert isinstance(verdict, verifier.Verified) and verdict.margin > 0 and verdict.semantics == "real"


def test_verify_of_a_region(digits: Path) -> None:
    query = verifier.robustness(digits / "digits.onnx", np.full((1, 1, 8, 8), 0.5, dtype=np.float32), "1/1000")
    assert isinstance(verifier.verify(query, timeout=60), verifier.Verified)


def test_no_time_is_a_timeout(digits: Path) -> None:
    query = verifier.read(digits / "digits.onnx", digits / "robust.vnnlib")
    verdict = verifier.verify(query, timeout=0.0)
    assert isinstance(verdict, verifier.TimedOut) and verdict.word == "timeout"


def test_wrong_arguments(digits: Path) -> None:
    with pytest.raises(verifier.InputError, match="a model and a property"):
        verifier.verify(digits / "digits.onnx")
    query = verifier.read(digits / "digits.onnx", digits / "robust.vnnlib")
    with pytest.raises(verifier.InputError, match="has its property already"):
        verifier.verify(query, digits / "robust.vnnlib")
    for timeout in (-1.0, float("nan"), "5"):
        with pytest.raises(verifier.InputError, match="not a number of seconds"):
            verifier.verify(query, timeout=timeout)  # type: ignore[arg-type]
    for seed in (0.5, "1", None):
        with pytest.raises(verifier.InputError, match="not a whole number"):
            verifier.verify(query, seed=seed)  # type: ignore[arg-type]
    for device in ("gpu", None):
        with pytest.raises(verifier.InputError, match="unknown device"):
            verifier.verify(query, device=device)  # type: ignore[arg-type]
    with pytest.raises(verifier.InputError):
        verifier.load(digits / "missing.onnx")


def test_what_a_reader_prints_is_short(digits: Path) -> None:
    query = verifier.read(digits / "digits.onnx", digits / "robust.vnnlib")
    assert repr(query) == "<Query: 64 inputs, 9 forms, 1 boxes, 9 clauses>"
    assert repr(query.graph).endswith("nodes, (64,) -> (9,)>")


def test_load_gives_the_graph(digits: Path) -> None:
    graph = verifier.load(digits / "digits.onnx")
    shape = graph.nodes[graph.inputs[0]].shape
    (out,) = graph.evaluate(torch.zeros(2, *shape, dtype=torch.float64))
    assert shape == (1, 1, 8, 8) and out.shape == (2, 1, 10)
