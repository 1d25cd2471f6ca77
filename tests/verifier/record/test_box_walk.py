"""Input splits: their records prove them again, and a record that something was done to proves nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from bounds.graph import Builder
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.plan import prepare
from bounds.rounding import Rounding, plain_products
from verifier.branch.input_split import InputSplit
from verifier.branch.problem import Problem
from verifier.query import Query, Specification
from verifier.record import box_walk
from verifier.record.boxes import KIND
from verifier.record.frames import MAGIC, Frame, read_frames, write_frame
from verifier.record.packing import bits, unpacked
from verifier.record.recheck import recheck
from verifier.record.report import Report
from verifier.record.writer import Recorder, about
from verifier.strategy import SplitPlan, Strategy
from verifier.verdict import TimedOut, Verified

PLAN = SplitPlan(batch=8, fill=4)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad(), plain_products():
        yield


def specified(query: Query) -> Query:
    """With the exact property that hand-made queries lack: nothing of it is read here but its forms."""
    none = np.zeros(0, dtype=np.int64)
    return replace(query, specification=Specification([], *[none] * 8, forms=(), inputs=(), outputs=()))  # type: ignore[arg-type]


def recorded(query: Query, path: Path, options: SplitPlan = PLAN, rounds: int = 400) -> bool:
    """Whether the search refuted everything; then its record is there."""
    strategy = Strategy(split_inputs=True, input_split=options)
    recorder = Recorder(path, about(query, strategy))
    plans = tuple(prepare(query.graph, d, rounding=Rounding.of(d)) for d in (torch.float32, torch.float64))
    steps = list(itertools.islice(InputSplit(Problem.of(query), plans, options, write=recorder.write).run(), rounds))
    finished = not steps[-1].open_subproblems
    verdict = recorder.close(Verified(stage="test") if finished else TimedOut(stage="test"))
    assert path.exists() == finished == (isinstance(verdict, Verified) and verdict.record == str(path))
    return finished


def frames_of(path: Path) -> list[Frame]:
    return list(read_frames(path))


def write(path: Path, frames: list[Frame]) -> None:
    with open(path, "wb") as stream:
        stream.write(MAGIC)
        for frame in frames:
            write_frame(stream, frame)


@pytest.fixture(scope="module")
def query(planted: ModuleType) -> Query:
    """Two boxes, two clauses each of two literals, a little above the least values of a random network."""
    rng = np.random.default_rng(3)
    build = Builder()
    node = build.input((3,))
    for k, shape in enumerate([(3, 12), (12, 12), (12, 3)]):
        node = build.add(Relu(), node) if k else node
        node = build.add(Gemm(), node, build.constant(torch.from_numpy(rng.normal(size=shape))))
    graph = build.finish([node])
    boxes = [(np.full(3, -0.8, dtype=np.float32), np.full(3, 0.3, dtype=np.float32)),
             (np.full(3, -0.2, dtype=np.float32), np.full(3, 0.9, dtype=np.float32))]  # fmt: skip
    clauses = []
    for b, (low, high) in enumerate(boxes):
        points = torch.from_numpy(low + (high - low) * rng.random((20000, 3)))
        outputs = graph.evaluate(points)[0]
        for f in (0, 1):
            least = float(torch.maximum(outputs[:, f], -outputs[:, 2] / 2).amin())
            clauses.append((b, [(f, 1, least - 0.3), (2, -1, 2 * least - 0.6)]))
    return specified(planted.query(graph, boxes, clauses))


@pytest.fixture(scope="module")
def record(query: Query, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("record") / "whole"
    with torch.no_grad(), plain_products():
        assert recorded(query, path)
    return path


def test_a_record_proves_every_leaf_again(query: Query, record: Path) -> None:
    report = recheck(query, record)
    entries = [f for f in frames_of(record) if f.kind == KIND]
    leaves = sum(int((~unpacked(f.array("open"), f.array("number").numel())).sum()) for f in entries)
    leaves += sum(
        int((~unpacked(f.array("kept"), int(unpacked(f.array("open"), f.array("number").numel()).sum()))).sum())
        for f in entries
    )
    assert report.proved and not report.failures and report.failed == 0
    assert report.leaves == report.reproved == leaves > 60 and len(entries) > 5
    assert report.size == record.stat().st_size


@pytest.mark.parametrize(
    "options",
    [
        replace(PLAN, forward=True),
        replace(PLAN, forward=True, backward=False),
        replace(PLAN, memory=3000),
        replace(PLAN, batch=100, fill=50),
    ],
    ids=["forward", "forward alone", "little memory", "large batches"],
)
def test_whatever_the_options_were(query: Query, options: SplitPlan, tmp_path: Path) -> None:
    assert recorded(query, tmp_path / "r", options)
    report = recheck(query, tmp_path / "r", memory=options.memory)
    assert report.proved and report.leaves > 20, report.failures
    if options.memory < 10**4:
        forgot = [bool(f.array("fresh").any()) for f in frames_of(tmp_path / "r") if f.kind == KIND]
        assert sum(forgot) > 1


# Mutations ------------------------------------------------------------------------------------------------------------

Change = Callable[[list[Frame]], list[Frame]]


def changed(frames: list[Frame], k: int, **arrays: torch.Tensor) -> list[Frame]:
    frames = list(frames)
    frames[k] = replace(frames[k], arrays={**frames[k].arrays, **arrays})
    return frames


def first(frames: list[Frame], wanted: Callable[[Frame], bool]) -> int:
    return next(k for k, f in enumerate(frames) if f.kind == KIND and wanted(f))


def counted(frames: list[Frame]) -> list[Frame]:
    """With an end that counts what there is."""
    return [*frames[:-1], replace(frames[-1], more={"counts": {"entries": len(frames) - 2}})]


def entry_dropped(frames: list[Frame]) -> list[Frame]:
    return counted([*frames[:-2], frames[-1]])


def end_dropped(frames: list[Frame]) -> list[Frame]:
    return frames[:-1]


def leaf_dropped(frames: list[Frame]) -> list[Frame]:
    """The last entry forgets its last box."""
    last = frames[-2]
    count = last.array("number").numel()
    names = {n: last.array(n)[:-1] for n in ("number", "passes")}
    masks = {n: bits(unpacked(last.array(n), count)[:-1]) for n in ("fresh", "open")}
    return changed(frames, len(frames) - 2, **names, **masks)


def open_called_refuted(frames: list[Frame]) -> list[Frame]:
    """The first round with two open boxes of which the last is said to be a leaf: its children go."""
    entry = frames[1]
    count = entry.array("number").numel()
    assert bool(unpacked(entry.array("open"), count).all())
    nothing = torch.zeros(0, dtype=torch.uint8)
    none = {"kept": nothing, "alive": nothing, "moved": nothing, "dimension": nothing}
    ends = {n: torch.zeros(0, dtype=torch.float64) for n in ("ends", "middle")}
    return counted(
        [*changed(frames, 1, open=bits(torch.zeros(count, dtype=torch.bool)), **none, **ends)[:2], frames[-1]]
    )


def cut_box_shrunk(frames: list[Frame]) -> list[Frame]:
    """Whatever was cut is cut by a little more."""
    k = first(frames, lambda f: f.array("ends").numel() > 0)
    entry = frames[k]
    kept = unpacked(entry.array("kept"), int(unpacked(entry.array("open"), entry.array("number").numel()).sum()))
    moved = unpacked(entry.array("moved"), int(kept.sum()), 6)
    inward = torch.tensor([1.0, 1, 1, -1, -1, -1], dtype=torch.float64).expand(moved.shape)[moved]
    return changed(frames, k, ends=entry.array("ends") + 1e-3 * inward)


def cut_box_grown(frames: list[Frame]) -> list[Frame]:
    """Children that lie outside of what their bounds were inherited for."""
    k = first(frames, lambda f: f.array("ends").numel() > 0)
    return changed(frames, k, ends=torch.full_like(frames[k].array("ends"), 5.0))


def middle_outside(frames: list[Frame]) -> list[Frame]:
    k = first(frames, lambda f: f.array("middle").numel() > 0)
    return changed(frames, k, middle=frames[k].array("middle") + 50.0)


def middle_nan(frames: list[Frame]) -> list[Frame]:
    k = first(frames, lambda f: f.array("middle").numel() > 0)
    return changed(frames, k, middle=frames[k].array("middle") * torch.nan)


def child_missing(frames: list[Frame]) -> list[Frame]:
    """One box less is bisected than there are."""
    k = first(frames, lambda f: f.array("middle").numel() > 2)
    return changed(frames, k, middle=frames[k].array("middle")[:-1], dimension=frames[k].array("dimension")[:-1])


def not_kept(frames: list[Frame]) -> list[Frame]:
    """The children of an open box, and all that follows, are left out as if its cut had left nothing."""
    entry = frames[1]
    count = entry.array("number").numel()
    kept = torch.zeros(count, dtype=torch.bool)
    return counted([*open_called_refuted(changed(frames, 1))[:1], replace(entry, arrays={
        **entry.arrays, "kept": bits(kept), "alive": torch.zeros(0, dtype=torch.uint8),
        "moved": torch.zeros(0, dtype=torch.uint8), "ends": torch.zeros(0, dtype=torch.float64),
        "dimension": torch.zeros(0, dtype=torch.uint8), "middle": torch.zeros(0, dtype=torch.float64),
    }), frames[-1]])  # fmt: skip


def clause_dropped(frames: list[Frame]) -> list[Frame]:
    """Of the first box one clause is said to be refuted already, in each box that it was open in."""
    entry = frames[1]
    count = int(unpacked(entry.array("kept"), entry.array("number").numel()).sum())
    alive = unpacked(entry.array("alive"), count, 2).clone()
    assert bool(alive.all())
    alive[:, 0] = False
    return changed(frames, 1, alive=bits(alive))


def box_twice(frames: list[Frame]) -> list[Frame]:
    k = first(frames, lambda f: f.array("number").numel() > 1)
    return changed(frames, k, number=torch.zeros_like(frames[k].array("number")))


def other_kind(frames: list[Frame]) -> list[Frame]:
    return [frames[0], replace(frames[1], kind="something"), *frames[2:]]


def bounds_remembered(frames: list[Frame]) -> list[Frame]:
    """Roots that are said to inherit something."""
    return changed(frames, 1, fresh=torch.zeros_like(frames[1].array("fresh")))


def other_strategy(frames: list[Frame]) -> list[Frame]:
    about = {**frames[0].more["about"], "strategy": {"split_inputs": "yes"}}
    return [replace(frames[0], more={"about": about}), *frames[1:]]


MUTATIONS: tuple[tuple[Change, str], ...] = (
    (entry_dropped, "left open"),
    (end_dropped, "no end"),
    (leaf_dropped, "left open"),
    (open_called_refuted, "not refuted"),
    (cut_box_shrunk, "not covered"),
    (cut_box_grown, "not a part"),
    (middle_outside, "outside of its box"),
    (middle_nan, "finite"),
    (child_missing, "bisections of"),
    (not_kept, "not covered"),
    (clause_dropped, "not covered"),
    (box_twice, "twice"),
    (other_kind, "kind 'something'"),
    (bounds_remembered, "forgotten"),
    (other_strategy, "strategy"),
)


@pytest.mark.parametrize(("change", "reason"), MUTATIONS, ids=[c.__name__ for c, _ in MUTATIONS])
def test_a_mutation_is_caught(query: Query, record: Path, tmp_path: Path, change: Change, reason: str) -> None:
    write(tmp_path / "r", change(frames_of(record)))
    report = recheck(query, tmp_path / "r")
    assert not report.proved and report.failed
    assert any(reason in failure for failure in report.failures), report.failures


def test_a_record_of_another_query_proves_nothing(query: Query, record: Path) -> None:
    """A threshold that differs in its last bit is another query."""
    threshold = query.cases.threshold.copy()
    threshold[0] = np.nextafter(threshold[0], -np.inf)
    other = replace(query, cases=replace(query.cases, threshold=threshold))
    report = recheck(other, record)
    assert not report.proved and "another query" in report.failures[0]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 0.999])
def test_a_part_of_a_record_proves_nothing(query: Query, record: Path, tmp_path: Path, share: float) -> None:
    data = record.read_bytes()
    (tmp_path / "r").write_bytes(data[: int(share * len(data))])
    assert not recheck(query, tmp_path / "r").proved


def test_a_file_that_is_missing_is_a_failure(query: Query, tmp_path: Path) -> None:
    assert not recheck(query, tmp_path / "nothing").proved


def test_more_than_the_memory_is_a_failure(query: Query, record: Path) -> None:
    report = recheck(query, record, memory=2000)
    assert not report.proved and "memory" in report.failures[0]


def test_a_round_of_more_boxes_than_a_search_bounds_at_once_is_a_failure(
    query: Query, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box_walk, "ROUND_ELEMENTS", 1)
    assert recheck(query, record).proved
    monkeypatch.setattr(box_walk, "MOST_BATCH", 3)
    report = recheck(query, record)
    assert not report.proved and "at once" in report.failures[0]


@pytest.mark.parametrize("seed", range(3))
def test_planted_queries(planted: ModuleType, tmp_path: Path, seed: int) -> None:
    """Of random networks of all operators: the record of a query that holds proves it, and put under the name of one
    with a counterexample (equal but for its thresholds) it does not."""
    proved = 0
    for one in planted.instances(seed, 20):
        holds, violated = specified(one.impossible), specified(one.query)
        if not recorded(holds, tmp_path / "r", replace(PLAN, forward=seed == 1), rounds=10):
            continue
        report: Report = recheck(holds, tmp_path / "r")
        assert report.proved, report.failures
        proved += report.leaves > len(holds.cases.lower)
        frames = frames_of(tmp_path / "r")
        name = about(violated, Strategy(split_inputs=True, input_split=replace(PLAN, forward=seed == 1)))
        write(tmp_path / "s", [replace(frames[0], more={"about": name}), *frames[1:]])
        assert not recheck(violated, tmp_path / "s").proved
    assert proved >= 1
