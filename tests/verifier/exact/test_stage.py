"""Queries decided by programs alone: the enumerated verdict, a record that proves it again, and none that is forged."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from verifier.pipeline import verify
from verifier.query import Query, read
from verifier.record.frames import MAGIC, Frame, read_frames, write_frame
from verifier.record.programs import KIND
from verifier.record.recheck import recheck
from verifier.run import Run
from verifier.strategy import ProgramPlan, Strategy, choose, features

CORPUS = Path(__file__).resolve().parents[2] / "corpus"
RELU_ONLY = ("line", "plane", "deep", "average", "symbolic", "unbatched")
with (CORPUS / "instances.csv").open(newline="", encoding="utf-8") as _file:
    INSTANCES = [
        (row[0].removesuffix(".onnx"), row[3])
        for row in csv.reader(_file)
        if row[0].split("_")[1] in RELU_ONLY and not row[0].startswith("empty")
    ]


def by_programs(query: Query) -> Strategy:
    """Programs, whatever would be chosen."""
    return replace(choose(features(query)), programs=ProgramPlan())


@pytest.fixture(autouse=True)
def no_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing finds a counterexample before the programs do."""
    monkeypatch.setattr(Run, "attack", lambda *_: None)


@pytest.mark.parametrize(("name", "expected"), INSTANCES)
def test_the_verdict_is_the_enumerated_one(name: str, expected: str, tmp_path: Path) -> None:
    query, path = read(CORPUS / f"{name}.onnx", CORPUS / f"{name}.vnnlib"), tmp_path / "record"
    verdict = verify(query, strategy=by_programs(query), record=path)
    if name.startswith("touching"):  # by less than the solver's tolerances: open is right, the contrary is not
        assert verdict.word in (expected, "unknown")
        return
    assert verdict.word == expected
    assert path.exists() == (expected == "unsat")
    if expected == "unsat":
        report = recheck(query, path)
        assert report.proved, report.failures


def recorded(tmp_path: Path) -> tuple[Query, Path]:
    """A query whose proof has leaves of programs."""
    for name, expected in INSTANCES:
        if expected == "unsat":
            query, path = read(CORPUS / f"{name}.onnx", CORPUS / f"{name}.vnnlib"), tmp_path / name
            verify(query, strategy=by_programs(query), record=path)
            if any(f.kind == KIND and f.arrays["dual"].shape[0] > 1 for f in read_frames(path)):
                return query, path
    raise AssertionError("no record has a program with several leaves")


def _halved(frame: Frame) -> Frame:
    return replace(frame, arrays=frame.arrays | {"dual": frame.arrays["dual"] * 0})


def _without_a_leaf(frame: Frame) -> Frame:
    arrays, last = frame.arrays, int(frame.arrays["depth"][-1])
    count, left = arrays["depth"].shape[0] - 1, arrays["column"].shape[0] - last
    cut = {"depth": arrays["depth"][:count], "dual": arrays["dual"][:count]}
    cut |= {name: arrays[name][:left] for name in ("column", "value")}
    cut["up"], cut["ray"] = arrays["up"][: -(-left // 8)], arrays["ray"][: -(-count // 8)]
    return replace(frame, arrays=arrays | cut)


def _of_another_clause(frame: Frame) -> Frame:
    return replace(frame, arrays=frame.arrays | {"clause": frame.arrays["clause"] + 1000})


def _shifted(frame: Frame) -> Frame:
    return replace(frame, arrays=frame.arrays | {"value": frame.arrays["value"] - 1})


@pytest.mark.parametrize("forge", [_halved, _without_a_leaf, _of_another_clause, _shifted])
def test_a_forged_record_proves_nothing(forge: Callable[[Frame], Frame], tmp_path: Path) -> None:
    query, path = recorded(tmp_path)
    assert recheck(query, path).proved
    frames = [forge(f) if f.kind == KIND and f.arrays["dual"].shape[0] > 1 else f for f in read_frames(path)]
    forged = tmp_path / "forged"
    _written(frames, forged)
    assert not recheck(query, forged).proved


def test_a_clause_without_leaves_is_open(tmp_path: Path) -> None:
    query, path = recorded(tmp_path)
    _written([f for f in read_frames(path) if f.kind != KIND], tmp_path / "forged")
    assert any("nothing refutes" in reason for reason in recheck(query, tmp_path / "forged").failures)


def _written(frames: list[Frame], target: Path) -> None:
    """A record of these frames, whose end counts them."""
    frames[-1] = replace(frames[-1], more={"counts": {"entries": len(frames) - 2}})
    with open(target, "wb") as stream:
        stream.write(MAGIC)
        for frame in frames:
            write_frame(stream, frame)


def test_bounds_of_neurons_are_ascended() -> None:
    with pytest.raises(ValueError, match="at least 1 is needed"):
        ProgramPlan(steps=0)
