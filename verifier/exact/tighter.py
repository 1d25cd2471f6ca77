"""Better bounds of a box's neurons by programs, for clauses whose search lasts: the box encoded anew over them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from bounds import Prepared
from milp.process import ProcessRunner
from milp.simplex import Simplex
from milp.tighten import End, candidates, tightened
from verifier.exact.programs import EncodedBox, box_of, clause_program
from verifier.record import programs as entries
from verifier.record.entries import Write
from verifier.strategy import TightenPlan


def tighter(
    prepared: Prepared,
    encoded: EncodedBox,
    place: tuple[int, int],
    plan: TightenPlan,
    until: float,
    write: Write | None,
) -> EncodedBox | None:
    """A box over better bounds of the neurons that the bound of one clause depends on most, found until the time
    ``until`` (``time.monotonic()``); None where there are none.

    ``place``: (task, clause). ``write`` is told what proves the better bounds.
    """
    task, clause = place
    query, number, known = encoded.query, encoded.number, encoded.bounds
    assert known is not None
    model = clause_program(encoded, clause).model
    dual = Simplex(model).solve().dual
    if dual is None:
        return None
    chosen = candidates(prepared, known, model, dual)
    neurons = {node: elements[: plan.most] for node, elements in chosen.items()}
    kept = list[tuple[int, Sequence[End]]]()
    with contextlib.ExitStack() as stack:
        runners = [stack.enter_context(ProcessRunner()) for _ in range(plan.processes)]
        found = tightened(
            prepared,
            box_of(query, number),
            known,
            neurons,
            nodes=plan.nodes,
            seconds=max(until - time.monotonic(), 0.0),
            runners=runners,
            keep=lambda node, ends: kept.append((node, ends)),
        )
    if not kept:
        return None
    if write is not None:
        for node, ends in kept:
            write(entries.TIGHTENED, entries.of_ends(task, node, ends))
    return EncodedBox.over(query, prepared, number, found)
