"""The corpus: tiny networks whose verdicts are known by enumeration in exact fractions (benchmarks/make_corpus.py)."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import verifier

CORPUS = Path(__file__).with_name("corpus")
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def instances() -> list[list[str]]:
    """Rows of network, property, seconds, verdict."""
    with (CORPUS / "instances.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_the_corpus_is_complete() -> None:
    rows = instances()
    assert len(rows) >= 40
    assert {verdict for *_, verdict in rows} == {"sat", "unsat"}
    named = {name for row in rows for name in row[:2]}
    assert named == {p.name for p in CORPUS.iterdir()} - {"instances.csv"}


def test_enumeration_gives_the_same_corpus_again(tmp_path: Path) -> None:
    """Verdicts and properties are recomputed; a change of the generator that is not committed shows here."""
    command = [sys.executable, str(BENCHMARKS / "make_corpus.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for file in sorted(CORPUS.iterdir()):
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.fixture(scope="module")
def independent() -> ModuleType:
    """The check of counterexamples that shares nothing with the verifier."""
    specification = importlib.util.spec_from_file_location("check_witness", BENCHMARKS / "check_witness.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("row", instances(), ids=lambda row: row[0].removesuffix(".onnx"))
def test_the_verdict_is_the_enumerated_one(row: list[str], independent: ModuleType, tmp_path: Path) -> None:
    model, prop, seconds, expected = row
    touching = model.startswith("touching")
    verdict = verifier.verify(CORPUS / model, CORPUS / prop, timeout=2 if touching else float(seconds))
    if touching and isinstance(verdict, verifier.Unknown):
        return  # honest where equality decides; the other word would be wrong
    assert verdict.word == expected
    if isinstance(verdict, verifier.Violated):
        values = [v for array in verdict.counterexample.inputs for v in array.reshape(-1).tolist()]
        witness = tmp_path / "witness"
        witness.write_text("\n".join(f"(X_{i} {v!r})" for i, v in enumerate(values)), encoding="utf-8")
        assert independent.check(CORPUS / model, CORPUS / prop, witness) == (0, 0)
