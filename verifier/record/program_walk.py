"""Programs proved again from their entries: each open clause's program is built anew, and its leaves are re-checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bounds import Alpha, Bounds, Prepared
from bounds import prepare as prepare_graph
from bounds.plan import Plan
from milp import recheck
from milp.model import Model
from milp.tighten import Layer
from verifier.branch.problem import OpenTask, Problem
from verifier.branch.root import screen
from verifier.exact.programs import EncodedBox, box_of, clause_program
from verifier.record import programs
from verifier.record.report import Checks


@dataclass(slots=True)
class _Proof:
    """What is known of a clause. State: the least that one of its leaves proves, and the splits that lead to each."""

    least: float = math.inf
    paths: list[tuple[recheck.Split, ...]] = field(default_factory=list)

    def bound(self, model: Model) -> float:
        """What the leaves together prove; -inf where they leave a part open."""
        return self.least if recheck.covers(model, self.paths) else -math.inf


class ProgramWalk:
    """Feed it the entries in order, of several clauses in any order; ``finish`` says which are not proved. State: the
    box at hand and the program of the clause at hand, what leaves have proved so far, and better bounds of boxes.
    ``refuted``: how many clauses' boxes the first look refuted."""

    def __init__(self, problem: Problem, exact: Plan, steps: int, checks: Checks) -> None:
        self.problem, self.checks, self.method = problem, checks, Alpha(steps=steps)
        self.prepared: Prepared = prepare_graph(problem.query.graph)
        self.tasks: dict[int, OpenTask] = {}
        self.better: dict[int, Bounds] = {}
        self.encoded: tuple[int, EncodedBox] | None = None
        self.model: tuple[tuple[int, int], Model] | None = None
        self.proofs: dict[tuple[int, int], _Proof] = {}
        self.proved: set[tuple[int, int]] = set()
        self.cuts: dict[tuple[int, int], Mapping[str, Tensor]] = {}
        self.refuted = 0
        for _, part in screen(problem, exact):
            self.refuted += part.refuted
            self.tasks.update({task.task: task for task in part.open})

    def step(self, kind: str, entry: Mapping[str, Tensor]) -> None:
        """Take an entry. Raises ``ValueError`` for one that is none, or is about nothing that is open."""
        try:
            self._step(kind, entry)
        except KeyError as error:
            raise ValueError(f"an entry of kind {kind!r} without {error}") from None

    def _step(self, kind: str, entry: Mapping[str, Tensor]) -> None:
        if kind == programs.TIGHTENED:
            self._tighten(_number(entry, "task"), _number(entry, "node"), entry)
            return
        if kind not in (programs.KIND, programs.CUTS):
            raise ValueError(f"an entry of kind {kind!r} among programs")
        place = _number(entry, "task"), _number(entry, "clause")
        if place not in self._open():
            raise ValueError(f"an entry about clause {place[1]} of task {place[0]}, which is not open")
        if kind == programs.CUTS:
            if place in self.proofs or place in self.cuts:
                raise ValueError("cuts behind leaves of the program without them")
            self.cuts[place], self.model = entry, None
            self._model(place)
            return
        model = self._model(place)
        leaves = programs.of_arrays(entry, model.lower.shape[0], model.row_lower.shape[0])
        proof = self.proofs.setdefault(place, _Proof())
        proof.least = min(proof.least, recheck.least(model, leaves))
        proof.paths += [leaf.splits for leaf in leaves]

    def proven(self) -> frozenset[tuple[int, int]]:
        """The clauses (task and number) that the leaves so far refute; others may be refuted in other ways."""
        for place, proof in sorted(self.proofs.items()):
            if proof.bound(self._model(place)) > 0:
                self._done(place)
        return frozenset(self.proved)

    def finish(self) -> None:
        """After the last entry."""
        self._close()
        for task, clause in sorted(self._open() - self.proofs.keys()):
            self.checks.fail(f"nothing refutes clause {clause} of task {task}")

    def _open(self) -> set[tuple[int, int]]:
        return {
            (number, int(clause))
            for number, task in self.tasks.items()
            for clause in self.problem.clauses[number][task.alive]
            if (number, int(clause)) not in self.proved
        }

    def _tighten(self, task: int, node: int, entry: Mapping[str, Tensor]) -> None:
        """Take better ends of a task's neurons. What the leaves so far do not prove is to be proved anew."""
        if task not in self.tasks or node not in self.prepared.plan.watched:
            raise ValueError(f"better bounds of node {node} in task {task}, where there are none")
        for place in [place for place in self.proofs if place[0] == task]:
            if self.proofs[place].bound(self._model(place)) > 0:
                self._done(place)
            self.proofs.pop(place, None)
        self.cuts = {place: entry for place, entry in self.cuts.items() if place[0] != task}
        encoded = self._encoded(task)
        assert encoded.bounds is not None
        layer = Layer.of(self.prepared, box_of(self.problem.query, encoded.number), encoded.bounds, node)
        self.better[task] = layer.applied(programs.ends_of(entry, layer))
        self.encoded = self.model = None

    def _encoded(self, task: int) -> EncodedBox:
        if self.encoded is None or self.encoded[0] != task:
            query, box = self.problem.query, int(self.problem.box[task])
            found = self.better.get(task)
            encoded = (
                EncodedBox.of(query, self.prepared, box, self.method)
                if found is None
                else EncodedBox.over(query, self.prepared, box, found)
            )
            self.encoded = task, encoded
        return self.encoded[1]

    def _model(self, place: tuple[int, int]) -> Model:
        if self.model is None or self.model[0] != place:
            model = clause_program(self._encoded(place[0]), place[1]).model
            self.model = place, programs.cut_by(model, self.cuts[place]) if place in self.cuts else model
        return self.model[1]

    def _done(self, place: tuple[int, int]) -> None:
        self.checks.add(len(self.proofs[place].paths))
        self.proved.add(place)

    def _close(self) -> None:
        """Prove the clauses that have leaves."""
        for place, proof in sorted(self.proofs.items()):
            bound, count = proof.bound(self._model(place)), len(proof.paths)
            if bound > 0:
                self._done(place)
                continue
            self.checks.add(count, count)
            self.checks.fail(f"the leaves of clause {place[1]} in task {place[0]} prove no more than {bound:.3g}")


def _number(entry: Mapping[str, Tensor], name: str) -> int:
    """Raises ``ValueError`` where it is not one whole number."""
    if entry[name].dtype != torch.int64 or entry[name].numel() != 1:
        raise ValueError(f"an entry with more or other than one whole number as its {name}")
    return int(entry[name])
