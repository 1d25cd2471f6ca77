"""Queries decided by programs alone: the enumerated verdict, a record that proves it again, and none that is forged."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from milp.model import Solution, Status
from milp.recheck import Prover
from verifier.exact import claims, stage
from verifier.exact.claims import Claim, claim_of
from verifier.pipeline import verify
from verifier.query import Query, read
from verifier.record import programs
from verifier.record.frames import MAGIC, Frame, read_frames, write_frame
from verifier.record.programs import CUTS, KIND
from verifier.record.recheck import recheck
from verifier.run import Run
from verifier.strategy import ProgramPlan, Strategy, choose, features
from verifier.verdict import TO_TOLERANCE, Unknown

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


def _of_other_neurons(frame: Frame) -> Frame:
    return replace(frame, arrays=frame.arrays | {"phase": frame.arrays["phase"] * 0})


def _of_fewer_columns(frame: Frame) -> Frame:
    return replace(frame, arrays=frame.arrays | {"member": frame.arrays["member"][:-1]})


def _of_other_columns(frame: Frame) -> Frame:
    return replace(frame, arrays=frame.arrays | {"member": 255 - frame.arrays["member"]})


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


def cut(tmp_path: Path) -> tuple[Query, Path]:
    """A query whose proof has cuts."""
    for name, expected in INSTANCES:
        if expected == "unsat":
            query, path = read(CORPUS / f"{name}.onnx", CORPUS / f"{name}.vnnlib"), tmp_path / name
            verify(query, strategy=by_programs(query), record=path)
            if any(f.kind == CUTS for f in read_frames(path)):
                return query, path
    raise AssertionError("no record has cuts")


@pytest.mark.parametrize("forge", [_of_other_neurons, _of_fewer_columns, _of_another_clause])
def test_forged_cuts_prove_nothing(forge: Callable[[Frame], Frame], tmp_path: Path) -> None:
    query, path = cut(tmp_path)
    assert recheck(query, path).proved
    _written([forge(f) if f.kind == CUTS else f for f in read_frames(path)], tmp_path / "forged")
    assert not recheck(query, tmp_path / "forged").proved


def test_cuts_of_other_columns_are_other_rows(tmp_path: Path) -> None:
    """They hold too: what the leaves then prove is another matter."""
    query, path = cut(tmp_path)
    frames = list(read_frames(path))
    _written([f for f in frames if f.kind != CUTS], tmp_path / "without")
    assert not recheck(query, tmp_path / "without").proved
    _written([_of_other_columns(f) if f.kind == CUTS else f for f in frames], tmp_path / "forged")
    recheck(query, tmp_path / "forged")  # either way it is no error
    places = [k for k, f in enumerate(frames) if f.kind in (CUTS, KIND)]
    moved = [frames[k] for k in range(len(frames)) if frames[k].kind != CUTS]
    moved.insert(len(moved) - 1, frames[places[0]])
    _written(moved, tmp_path / "behind")
    assert not recheck(query, tmp_path / "behind").proved


def test_leaves_of_a_clause_may_be_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run leaves a clause after some linear programs and takes it up again behind the others."""
    monkeypatch.setattr(programs, "LEAVES", 1)
    query, path = named("unsat", "regions_plane"), tmp_path / "record"
    plan = ProgramPlan(nodes=2)
    assert verify(query, strategy=replace(choose(features(query)), programs=plan), record=path).word == "unsat"
    assert recheck(query, path).proved


def test_without_cuts_the_verdicts_are_the_same(tmp_path: Path) -> None:
    query, path = cut(tmp_path)
    verdict = verify(query, strategy=replace(choose(features(query)), programs=ProgramPlan(cuts=0)), record=path)
    assert verdict.word == "unsat"
    assert not any(f.kind == CUTS for f in read_frames(path))
    assert recheck(query, path).proved
    with pytest.raises(ValueError, match="at least 0 is needed"):
        ProgramPlan(cuts=-1)


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


def named(word: str, part: str) -> Query:
    """A query of the corpus with this verdict."""
    name = next(name for name, expected in INSTANCES if expected == word and part in name)
    return read(CORPUS / f"{name}.onnx", CORPUS / f"{name}.vnnlib")


def asking(query: Query, *, process: bool = False) -> Strategy:
    """The solver is asked about every clause before anything is proven of it."""
    return replace(choose(features(query)), programs=ProgramPlan(nodes=0, process=process))


@pytest.fixture
def no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """No multipliers prove anything."""
    nothing = torch.full((1,), -torch.inf, dtype=torch.float64)
    monkeypatch.setattr(Prover, "bounds", lambda _self, dual, *_: nothing.expand(dual.shape[0]))


@pytest.mark.parametrize("process", [False, True])
def test_what_the_solver_alone_refutes_is_unknown(no_proof: None, process: bool) -> None:
    query = named("unsat", "deep")
    verdict = verify(query, strategy=asking(query, process=process), timeout=60)
    assert isinstance(verdict, Unknown) and verdict.word == "unknown"
    assert verdict.reason == TO_TOLERANCE == "refuted to solver tolerance 1e-6"
    assert verdict.best_bound < 0


def test_a_claim_is_told_where_the_time_is_up(no_proof: None, monkeypatch: pytest.MonkeyPatch) -> None:
    query = named("unsat", "deep")

    def late(self: stage._Stage) -> None:
        self.run.deadline = 0.0

    monkeypatch.setattr(stage._Stage, "finish", late)
    verdict = verify(query, strategy=asking(query), timeout=60)
    assert isinstance(verdict, Unknown) and (verdict.word, verdict.reason) == ("unknown", TO_TOLERANCE)


@pytest.mark.parametrize("name", [name for name, expected in INSTANCES if expected == "unsat"])
def test_a_claim_does_not_take_the_place_of_a_proof(name: str, tmp_path: Path) -> None:
    query, path = read(CORPUS / f"{name}.onnx", CORPUS / f"{name}.vnnlib"), tmp_path / "record"
    if not name.startswith("touching"):
        assert verify(query, strategy=asking(query), record=path).word == "unsat"
        assert recheck(query, path).proved


@pytest.mark.parametrize("process", [False, True])
def test_points_of_the_solver_are_replayed(process: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage._Stage, "finish", lambda _: None)
    words = []
    for name, expected in INSTANCES:
        query = read(CORPUS / f"{name}.onnx", CORPUS / f"{name}.vnnlib")
        if expected == "sat" and not name.startswith("touching"):
            verdict = verify(query, strategy=asking(query, process=process), timeout=60)
            words.append((verdict.word, verdict.stage))
    assert ("sat", "solver") in words and {word for word, _ in words} == {"sat"}


def test_a_solver_that_fails_is_named(no_proof: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any, **__: Any) -> Solution:
        return Solution(Status.FAILED, math.inf, -math.inf, reason="the solver's process crashed (SIGSEGV)")

    monkeypatch.setattr(claims, "InProcess", lambda: crash)
    query = named("unsat", "deep")
    verdict = verify(query, strategy=asking(query), timeout=60)
    assert isinstance(verdict, Unknown) and verdict.word == "unknown"
    assert "stay open" in verdict.reason and "the solver failed: the solver's process crashed" in verdict.reason


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Solution(Status.OPTIMAL, 0.1, 0.1), Claim(refuted=True)),
        (Solution(Status.STOPPED, math.inf, 1e-3), Claim(refuted=True)),
        (Solution(Status.STOPPED, -1e-3, -1.0), Claim()),
        (Solution(Status.OPTIMAL, 0.0, 0.0), Claim()),
        (Solution(Status.STOPPED, 0.0, 1e-9), Claim()),
        (Solution(Status.LIMIT, math.inf, 0.1), Claim()),
        (Solution(Status.FAILED, math.inf, 0.1, reason="r"), Claim(failed="r")),
    ],
)
def test_what_a_status_says(found: Solution, expected: Claim) -> None:
    assert claim_of(found) == expected


def test_infeasible_is_a_failure() -> None:
    claim = claim_of(Solution(Status.INFEASIBLE, math.inf, math.inf))
    assert not claim.refuted and "infeasible" in claim.failed
