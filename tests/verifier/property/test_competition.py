"""Every property of the competition benchmarks in ``VNNCOMP_DIR`` is read, and its arrays make sense."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from verifier.property import read_property

LARGE = 150_000
"""Bytes of a gzip file from which a test counts as slow (all of them together, not one)."""


def check(path: Path) -> None:
    s = read_property(path)
    boxes, clauses, literals = len(s.lower), len(s.literals_of) - 1, len(s.form)
    assert s.version == "1.0" and boxes and clauses and s.refuted == 0, path
    assert s.lower.shape == s.upper.shape == (boxes, s.inputs[0].size) and bool((s.lower <= s.upper).all()), path
    assert s.clauses_of[0] == 0 and s.clauses_of[-1] == clauses and bool((np.diff(s.clauses_of) > 0).all()), path
    assert s.literals_of[0] == 0 and s.literals_of[-1] == literals and bool((np.diff(s.literals_of) > 0).all()), path
    assert not s.strict.any() and all(0 <= i < s.outputs[0].size for f in s.forms for i, _ in f.outputs), path
    assert not any(f.inputs for f in s.forms), path


def files(folder: Path, large: bool) -> list[Path]:
    found = sorted(folder.glob("*/vnnlib/**/*.vnnlib*"))
    assert found
    return [p for p in found if (p.stat().st_size >= LARGE) == large]


def test_one_property_of_each_benchmark_is_read(vnncomp_dir: Path) -> None:
    first = {p.relative_to(vnncomp_dir).parts[0]: p for p in reversed(files(vnncomp_dir, False))}
    assert len(first) >= 20
    for path in first.values():
        check(path)


@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True])
def test_every_property_is_read(vnncomp_dir: Path, large: bool) -> None:
    for path in files(vnncomp_dir, large):
        check(path)


def test_a_conjunction_of_two_disjunctions(vnncomp_dir: Path) -> None:
    path = vnncomp_dir / "acasxu" / "vnnlib" / "prop_6.vnnlib.gz"
    if not path.exists():
        pytest.skip("this set has no prop_6")
    s = read_property(path)
    assert s.clauses_of.tolist() == [0, 4, 8] and len(s.forms) == 4


def test_14000_literals_on_one_form(vnncomp_dir: Path) -> None:
    s = read_property(vnncomp_dir / "nn4sys" / "vnnlib" / "lindex_7000.vnnlib")
    assert s.lower.shape == (7000, 1) and len(s.form) == 14_000 and len(s.forms) == 1
