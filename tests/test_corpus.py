"""The corpus: tiny networks whose verdicts are known by enumeration in exact fractions (benchmarks/make_corpus.py)."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

CORPUS = Path(__file__).with_name("corpus")
GENERATOR = Path(__file__).resolve().parents[1] / "benchmarks" / "make_corpus.py"


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
    done = subprocess.run(
        [sys.executable, str(GENERATOR), "--out", str(tmp_path)], capture_output=True, text=True, timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for file in sorted(CORPUS.iterdir()):
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name
