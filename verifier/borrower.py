"""The process that works on half of another one's search (``lending.py``): one loan at a time, over a pipe.

Run as ``python -m verifier.borrower PARENT_PID`` by a worker, with which it ends. It reads the query by itself and
keeps it between loans. Its answer repeats the hash of what it has worked on.
"""

from __future__ import annotations

import io
import math
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from verifier import limits, protocol
from verifier.worker import Send, failure, load_libraries, serve, throttled

if TYPE_CHECKING:
    import numpy as np

    from verifier.checkpoint import Saved
    from verifier.query import Query
    from verifier.run import Run
    from verifier.verdict import Counterexample

Returned = dict[str, Any]


class Borrower:
    """Answers requests to borrow; ``run`` is kept from one to the next, for they are of one query."""

    def __init__(self) -> None:
        self.run: Run | None = None

    def answer(self, request: protocol.Message, send: Send) -> protocol.Message:
        """The closing message to a request; never raises."""
        try:
            return self._work(request, send)
        except Exception as error:  # noqa: BLE001 - whatever it is, the half is open, and its lender must hear of it
            return failure("internal", 4, f"{type(error).__name__}: {' '.join(str(error).split())}")

    def _work(self, request: protocol.Message, send: Send) -> Returned:
        import numpy as np
        import torch

        from bounds.rounding import plain_products
        from verifier.checkpoint import digest_of, identity

        start = limits.now()
        deadline = math.inf if request["seconds"] is None else start + request["seconds"]
        with np.load(io.BytesIO(request["data"]), allow_pickle=False) as file:
            arrays = dict(file)
        with torch.no_grad(), plain_products():
            if self.run is None:
                self.run = _read(request)
            run = replace(self.run, start=start, deadline=deadline, report=throttled(send, start))
            half = digest_of(identity(run.query, run.strategy), arrays)
            result = worked(run, {name: torch.from_numpy(values) for name, values in arrays.items()})
        return {"type": "returned", "half": half, **result}


def _read(request: protocol.Message) -> Run:
    """The query of a request, as a run that has not begun."""
    import torch

    from verifier.pipeline import prepared
    from verifier.strategy import choose, features
    from verifier.tasks import read_task

    query = read_task(request["task"])
    strategy = choose(features(query), request["seed"])
    return prepared(query, (0.0, math.inf), torch.device("cpu"), strategy)


def worked(run: Run, saved: Saved) -> Returned:
    """Work on what was lent until it is closed, a counterexample is found, or the time is up."""
    from verifier.activation_stage import resumed
    from verifier.branch.waiting import Waiting
    from verifier.run import Decided

    result: Returned = {"closed": False, "points": None, "tally": None}
    try:
        begun = resumed(run, Waiting.restored(saved, run.exact.device).task, saved)
        run.enter("activation split")
        state = run.follow(begun.search, begun.state, 1.0, (math.inf, 0.0))
    except Decided as decided:
        return result | {"points": [flat(run.query, decided.counterexample).tolist()]}
    closed = state.finished and not state.stuck.size
    return result | {"closed": closed, "tally": state.tally.tensor().tolist()}


def flat(query: Query, found: Counterexample) -> np.ndarray:
    """The inputs of a counterexample as one vector ``[n]`` in the order of the query's input."""
    point = query.cases.inner_lower[0].copy()
    for variable, values in zip(query.specification.inputs, found.inputs, strict=True):
        point[variable.start : variable.start + variable.size] = values
    return point


if __name__ == "__main__":
    serve(sys.argv[1:], load_libraries, Borrower().answer)
