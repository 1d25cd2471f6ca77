"""A few programs before activation splits: the enumerated verdict, and records that are made of both."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import cast

import numpy as np
import pytest
import torch

from bounds import Box
from bounds.graph import Graph
from milp.optimum import minimum
from verifier import pipeline
from verifier.pipeline import verify
from verifier.query import Query, read
from verifier.record import leaves, programs
from verifier.record.frames import MAGIC, Frame, read_frames, write_frame
from verifier.record.recheck import recheck
from verifier.run import Run
from verifier.strategy import AheadPlan, Strategy, choose, features

CORPUS = Path(__file__).resolve().parents[2] / "corpus"
with (CORPUS / "instances.csv").open(newline="", encoding="utf-8") as _file:
    INSTANCES = [
        (row[0].removesuffix(".onnx"), row[3]) for row in csv.reader(_file) if not row[0].startswith(("empty", "touch"))
    ]


def split_after(query: Query, plan: AheadPlan) -> Strategy:
    """Activation splits with programs ahead of them, whatever would be chosen."""
    strategy = choose(features(query))
    return replace(
        strategy,
        split_inputs=False,
        activation_split=replace(strategy.activation_split, ahead=plan, half_space_steps=0),
    )


@pytest.fixture(autouse=True)
def no_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing finds a counterexample before programs and splits do."""
    monkeypatch.setattr(Run, "attack", lambda *_: None)


def recorded(name: str, plan: AheadPlan, path: Path) -> tuple[Query, str]:
    """A query of the corpus, and its verdict."""
    query = read(CORPUS / f"{name}.onnx", CORPUS / f"{name}.vnnlib")
    return query, verify(query, strategy=split_after(query, plan), record=path, timeout=30).word


@pytest.mark.parametrize("plan", [AheadPlan(2, cuts=0), AheadPlan(40)], ids=["few", "usual"])
@pytest.mark.parametrize(("name", "expected"), INSTANCES)
def test_the_verdict_is_the_enumerated_one(name: str, expected: str, plan: AheadPlan, tmp_path: Path) -> None:
    query, word = recorded(name, plan, tmp_path / "record")
    assert word == expected or (expected == "sat" and word == "unknown")  # points are not this stage's
    if expected == "unsat":
        report = recheck(query, tmp_path / "record")
        assert report.proved, report.failures


@pytest.fixture
def mixed(
    planted: ModuleType, three_layers: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Query, Path]:
    """A query of two clauses, one of which a linear program refutes, and the other one splits; its record."""
    monkeypatch.setattr(Run, "replay", lambda *_: None)  # there is no network file
    monkeypatch.setattr(pipeline, "Replayer", lambda *_: None)
    graph = three_layers
    low, high = np.array([-1, -0.5], dtype=np.float32), np.array([1, 1.5], dtype=np.float32)
    box = Box(*(torch.from_numpy(end)[None] for end in (low, high)))
    least = minimum(graph, box, torch.ones(1, dtype=torch.float64)).value
    for far in np.geomspace(0.1, 100, 40):
        clauses = [(0, [(0, 1, least - far)]), (0, [(0, 1, least - 0.02)])]
        query, path = cast(Query, planted.query(graph, [(low, high)], clauses)), tmp_path / "mixed"
        plan = split_after(query, AheadPlan(1, cuts=0))
        assert pipeline.verify(query, strategy=plan, record=path, timeout=30).word == "unsat"
        if {programs.KIND, leaves.KIND} <= {frame.kind for frame in read_frames(path)}:
            return query, path
    raise AssertionError("no record is made of programs and splits")


def test_programs_and_splits_share_the_clauses_of_a_query(mixed: tuple[Query, Path]) -> None:
    query, path = mixed
    report = recheck(query, path)
    assert report.proved, report.failures


@pytest.mark.parametrize("kind", [programs.KIND, leaves.KIND])
def test_without_either_part_nothing_is_proved(kind: str, mixed: tuple[Query, Path]) -> None:
    query, path = mixed
    frames = [frame for frame in read_frames(path) if frame.kind != kind]
    _written(path, frames)
    assert not recheck(query, path).proved


def test_programs_behind_splits_are_refused(mixed: tuple[Query, Path]) -> None:
    query, path = mixed
    frames = list(read_frames(path))
    ahead = [frame for frame in frames if frame.kind == programs.KIND]
    rest = [frame for frame in frames if frame.kind != programs.KIND]
    _written(path, [*rest[:-1], *ahead, rest[-1]])
    assert not recheck(query, path).proved


def _written(path: Path, frames: list[Frame]) -> None:
    """A record of these frames, its end counting them."""
    count = sum(frame.kind not in ("about", "end") for frame in frames)
    with path.open("wb") as file:
        file.write(MAGIC)
        for frame in frames:
            if frame.kind == "end":
                frame = replace(frame, more={**frame.more, "counts": {"entries": count}})
            write_frame(file, frame)
