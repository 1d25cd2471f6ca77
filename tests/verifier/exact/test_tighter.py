"""The exact stage with better bounds of neurons on the way: the same verdicts, and records that prove these bounds."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from bounds import Box
from bounds.graph import Graph
from milp.optimum import minimum
from verifier import pipeline
from verifier.pipeline import verify
from verifier.query import Query, read
from verifier.record.frames import MAGIC, Frame, read_frames, write_frame
from verifier.record.programs import KIND, TIGHTENED, arrays_of, of_arrays
from verifier.record.recheck import recheck
from verifier.run import Run
from verifier.strategy import ProgramPlan, Strategy, TightenPlan, choose, features

CORPUS = Path(__file__).resolve().parents[2] / "corpus"
with (CORPUS / "instances.csv").open(newline="", encoding="utf-8") as _file:
    INSTANCES = [(row[0].removesuffix(".onnx"), row[3]) for row in csv.reader(_file) if row[0].split("_")[1] == "deep"]


def tightening(query: Query, processes: int = 0) -> Strategy:
    """Every clause that is open after its first linear program waits for better bounds; the solver is not asked."""
    plan = TightenPlan(nodes=5, processes=processes)
    return replace(choose(features(query)), programs=ProgramPlan(nodes=1, share=0.0, tighten=plan))


@pytest.fixture(autouse=True)
def no_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing finds a counterexample before the programs do."""
    monkeypatch.setattr(Run, "attack", lambda *_: None)


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize(("name", "expected"), INSTANCES)
def test_the_verdict_is_the_enumerated_one(name: str, expected: str, processes: int, tmp_path: Path) -> None:
    query, path = read(CORPUS / f"{name}.onnx", CORPUS / f"{name}.vnnlib"), tmp_path / "record"
    verdict = verify(query, strategy=tightening(query, processes), record=path)
    if name.startswith("touching"):
        assert verdict.word in (expected, "unknown")
    else:
        assert verdict.word == expected
    if verdict.word == "unsat":
        report = recheck(query, path)
        assert report.proved, report.failures


Proof = tuple[Query, list[Frame]]


@pytest.fixture(scope="module")
def lasting(planted: ModuleType, three_layers: Graph) -> Query:
    """A query of two clauses that hold by little, and no network file: nothing can be replayed."""
    graph = three_layers
    low, high = np.array([-1, -0.5], dtype=np.float32), np.array([1, 1.5], dtype=np.float32)
    box, one = Box(*(torch.from_numpy(end)[None] for end in (low, high))), torch.ones(1, dtype=torch.float64)
    least, most = (minimum(graph, box, sign * one).value for sign in (1.0, -1.0))
    return cast(Query, planted.query(graph, [(low, high)], [(0, [(0, 1, least - 0.02)]), (0, [(0, -1, most - 0.02)])]))


def frames_of(query: Query, strategy: Strategy, path: Path) -> list[Frame]:
    """The frames of a proof."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "attack", lambda *_: None)
        patch.setattr(Run, "replay", lambda *_: None)
        patch.setattr(pipeline, "Replayer", lambda *_: None)
        assert verify(query, strategy=strategy, record=path).word == "unsat"
    return list(read_frames(path))


@pytest.fixture(scope="module")
def proof(lasting: Query, tmp_path_factory: pytest.TempPathFactory) -> Proof:
    """With better bounds."""
    frames = frames_of(lasting, tightening(lasting), tmp_path_factory.mktemp("proof") / "record")
    assert any(f.kind == TIGHTENED for f in frames)
    return lasting, frames


def written(frames: list[Frame], target: Path) -> Path:
    """A record of these frames, whose end counts them."""
    frames = [*frames[:-1], replace(frames[-1], more={"counts": {"entries": len(frames) - 2}})]
    with open(target, "wb") as stream:
        stream.write(MAGIC)
        for frame in frames:
            write_frame(stream, frame)
    return target


def forged(frame: Frame, **changes: Tensor) -> Frame:
    return replace(frame, arrays=frame.arrays | changes)


def test_better_bounds_are_proved_again_from_the_record(proof: Proof, tmp_path: Path) -> None:
    """Without them, or with multipliers that prove none, the leaves that rest on them prove nothing."""
    query, frames = proof
    assert recheck(query, written(frames, tmp_path / "whole")).proved
    again = [f for f in frames if f.kind == TIGHTENED]
    assert all(f.arrays["element"].numel() for f in again)
    assert not recheck(query, written([f for f in frames if f.kind != KIND], tmp_path / "leafless")).proved
    lies = [forged(f, dual=torch.zeros_like(f.arrays["dual"])) if f.kind == TIGHTENED else f for f in frames]
    after = frames.index(again[-1])
    alone = [*frames[:1], *[f for f in frames[1:after] if f.kind == TIGHTENED], *frames[after + 1 :]]
    assert not recheck(query, written(alone, tmp_path / "one less")).proved
    assert recheck(query, written(lies, tmp_path / "lies")).leaves >= 0  # any answer is sound; it must be one


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task", torch.tensor([99])),
        ("node", torch.tensor([0])),
        ("node", torch.tensor([10_000])),
        ("node", torch.tensor([-1])),
        ("element", None),
        ("count", None),
        ("dual", torch.zeros(3)),
        ("task", torch.tensor([0, 0])),
        ("node", torch.tensor([7.5])),
    ],
)
def test_entries_that_are_none_fail(name: str, value: Tensor | None, proof: Proof, tmp_path: Path) -> None:
    query, frames = proof[0], list(proof[1])
    place = next(k for k, f in enumerate(frames) if f.kind == TIGHTENED)
    frames[place] = forged(frames[place], **{name: frames[place].arrays[name] + 1000 if value is None else value})
    report = recheck(query, written(frames, tmp_path / "forged"))
    assert not report.proved and report.failures


@pytest.mark.parametrize("kind", [KIND, TIGHTENED])
def test_an_array_that_is_missing_is_named(kind: str, proof: Proof, tmp_path: Path) -> None:
    query, frames = proof
    place = next(k for k, f in enumerate(frames) if f.kind == kind)
    for name in ("task", "dual"):
        less = {key: array for key, array in frames[place].arrays.items() if key != name}
        forged = [*frames[:place], replace(frames[place], arrays=less), *frames[place + 1 :]]
        report = recheck(query, written(forged, tmp_path / name))
        assert not report.proved and f"without '{name}'" in report.failures[0]


def test_entries_of_several_clauses_may_alternate(lasting: Query, tmp_path: Path) -> None:
    """Clauses that last are left and taken up again; what stands between two parts of a proof does not matter."""
    query, path = lasting, tmp_path / "record"
    strategy = replace(choose(features(query)), programs=ProgramPlan())
    frames = frames_of(query, strategy, path)
    inner = [f for f in frames[1:-1] if f.kind == KIND]
    others = [f for f in frames[1:-1] if f.kind != KIND]
    parts = [one for f in inner for one in singly(f)]
    assert len(parts) > len(inner)
    order = parts[::2] + parts[1::2]
    assert recheck(query, written([frames[0], *others, *order, frames[-1]], tmp_path / "mixed")).proved
    assert not recheck(query, written([frames[0], *others, *order[1:], frames[-1]], tmp_path / "hole")).proved


def singly(frame: Frame) -> list[Frame]:
    """An entry's leaves, each in one of its own."""
    rows = frame.arrays["dual"].shape[1]
    leaves = of_arrays(frame.arrays, 1 << 30, rows)
    return [replace(frame, arrays=frame.arrays | arrays_of([leaf])) for leaf in leaves]
