"""A record proved again: the question is the query's, the answers are recomputed, the record says only what to compute.

Nothing of a search runs here: bounds with error terms (the passes that decide) over what the record says was split.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bounds.plan import Plan, prepare
from bounds.rounding import Rounding, plain_products
from verifier.branch.box_bounds import BoxBounds
from verifier.branch.problem import Problem
from verifier.query import Query
from verifier.record import boxes, programs
from verifier.record.box_walk import BoxWalk
from verifier.record.frames import Frame, RecordError, read_frames
from verifier.record.packing import unpacked, whole
from verifier.record.program_walk import ProgramWalk
from verifier.record.report import Checks, Report
from verifier.record.split_walk import MOST_STEPS, SplitWalk
from verifier.record.writer import FORMAT, question
from verifier.strategy import SplitPlan

MEMORY = 1 << 30
"""Bytes that bounds kept for later rounds may take, where nothing else is said: what a search may keep."""


def recheck(query: Query, path: str | Path, *, memory: int = MEMORY) -> Report:
    """Prove a record of ``query`` again, leaf by leaf.

    ``proved`` in the report: every case of the query is refuted by bounds that were computed here with error terms, on
    parts that cover it. Never raises for what is in the file: a record that is damaged, unfinished or of another query
    is a report with a failure.
    """
    path, checks, start = Path(path), Checks(), time.process_time()
    try:
        size = os.stat(path).st_size
        outline = _outline(path)
        _same_question(query, outline.about)
        if len(query.cases.lower):
            with torch.no_grad(), plain_products():
                _walk(query, path, outline, checks, memory)
    except (RecordError, OSError) as error:
        size = 0 if isinstance(error, OSError) else size
        checks.fail(str(error))
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:  # arrays that do not fit
        checks.fail(f"an entry that nobody wrote, or a fault of ours: {type(error).__name__}: {error}")
    seconds, failed = time.process_time() - start, checks.failed
    return Report(failed == 0, checks.leaves, checks.proved, failed, tuple(checks.failures), size, seconds)


@dataclass(frozen=True, slots=True, eq=False)
class _Outline:
    """What a first look at a record finds: what it is about, and numbers of boxes that inherit nothing."""

    about: Mapping[str, Any]
    forgotten: Tensor

    def flag(self, *names: str) -> bool:
        """A yes or no of the strategy. Raises ``RecordError``."""
        value: Any = self.about.get("strategy")
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        if not isinstance(value, bool):
            raise RecordError(f"the strategy does not say {'.'.join(names)}")
        return value

    def program_steps(self, *names: str) -> int | None:
        """Steps of ascent behind the programs of a plan of the strategy, such as ``programs``; None where it has none.
        Raises ``RecordError``."""
        plan: Any = self.about.get("strategy")
        for name in names:
            plan = plan.get(name) if isinstance(plan, dict) else None
        if plan is None:
            return None
        steps = plan.get("steps") if isinstance(plan, dict) else None
        if not isinstance(steps, int) or not 0 <= steps <= MOST_STEPS:
            raise RecordError(f"programs after other than 0 to {MOST_STEPS} steps of ascent")
        return steps


def _outline(path: Path) -> _Outline:
    """Raises ``RecordError`` where the file is damaged, or has no end."""
    frames = read_frames(path)
    first = next(frames, None)
    about = None if first is None or first.kind != "about" else first.more.get("about")
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise RecordError(f"a record begins with what it is about, in the format {FORMAT}")
    forgotten, entries, ended = [torch.zeros(0, dtype=torch.int64)], 0, False
    for frame in frames:
        if ended:
            raise RecordError("an entry after the end")
        if frame.kind == "end":
            ended = True
            if frame.more.get("counts") != {"entries": entries}:
                raise RecordError(f"the end counts other entries than the {entries} that there are")
            continue
        entries += 1
        if frame.kind == boxes.KIND:
            number = frame.array("number")
            mask = unpacked(frame.array("fresh"), number.numel())
            forgotten.append(whole(number, number.numel(), 1 << 40)[mask])
    if not ended:
        raise RecordError("the record has no end: its run did not finish")
    return _Outline(about, torch.cat(forgotten))


def _same_question(query: Query, about: Mapping[str, Any]) -> None:
    asked, found = question(query), about.get("question")
    for part in ("models", "cases"):
        if not isinstance(found, dict) or found.get(part) != asked[part]:
            raise RecordError(f"the record is about another query: its {part} differ")


def _walk(query: Query, path: Path, outline: _Outline, checks: Checks, memory: int) -> None:
    problem, exact = Problem.of(query), prepare(query.graph, torch.float64, rounding=Rounding.of(torch.float64))
    steps = outline.program_steps("programs")
    if steps is not None:
        _walk_programs(ProgramWalk(problem, exact, steps, checks), path, checks)
        return
    if not outline.flag("split_inputs"):
        steps = outline.program_steps("activation_split", "ahead")
        refuted = frozenset[tuple[int, int]]()
        if steps is not None:
            refuted = _walk_ahead(problem, exact, steps, path, checks)
        _walk_splits(SplitWalk(problem, exact, refuted), path, checks, steps is not None)
        return
    quick = prepare(query.graph, torch.float32, rounding=Rounding.of(torch.float32))
    forward, backward = (outline.flag("input_split", name) for name in ("forward", "backward"))
    options = replace(SplitPlan(), forward=forward, backward=backward)
    walk = BoxWalk(BoxBounds(problem, (quick, exact), options), checks, outline.forgotten, memory)
    for entry in _entries(path):
        if entry.kind != boxes.KIND:
            raise RecordError(f"an entry of kind {entry.kind!r} in a split of inputs")
        walk.step(entry)
    if walk.waiting.size:
        checks.fail(f"{walk.waiting.size} boxes are left open")


def _walk_programs(walk: ProgramWalk, path: Path, checks: Checks) -> None:
    checks.add(walk.refuted)
    try:
        for entry in _entries(path):
            walk.step(entry.kind, entry.arrays)
        walk.finish()
    except ValueError as error:
        raise RecordError(str(error)) from None


def _walk_ahead(problem: Problem, exact: Plan, steps: int, path: Path, checks: Checks) -> frozenset[tuple[int, int]]:
    """The clauses (by task) that the programs before a split of activations refute."""
    ahead = list(takewhile(_of_programs, _entries(path)))
    if not ahead:
        return frozenset()
    walk = ProgramWalk(problem, exact, steps, checks)
    try:
        for entry in ahead:
            walk.step(entry.kind, entry.arrays)
        return walk.proven()
    except ValueError as error:
        raise RecordError(str(error)) from None


def _walk_splits(walk: SplitWalk, path: Path, checks: Checks, ahead: bool) -> None:
    checks.add(walk.refuted)
    entries = _entries(path)
    for entry in dropwhile(_of_programs, entries) if ahead else entries:
        try:
            leaves, bad = walk.step(entry.kind, entry.arrays)
        except ValueError as error:
            raise RecordError(str(error)) from None
        checks.add(leaves, bad.shape[0])
        for bound in bad.tolist():
            checks.fail(f"a leaf is not refuted, its bound is {bound:.3g}")
    for reason in walk.open_trees():
        checks.fail(reason)


def _of_programs(entry: Frame) -> bool:
    return entry.kind in (programs.KIND, programs.CUTS)


def _entries(path: Path) -> Iterator[Frame]:
    return (frame for frame in read_frames(path) if frame.kind not in ("about", "end"))
