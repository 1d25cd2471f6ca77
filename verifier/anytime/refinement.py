"""``verifier.refine``: the range of a model's output over a region, closing in from both sides."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import Size, Tensor

from bounds import Box, DomainError, Graph, LpBall
from verifier import limits
from verifier.anytime import saved
from verifier.anytime.bounding import Function, without_bounds
from verifier.anytime.domain import Domain
from verifier.anytime.enclosure import Enclosure, Status
from verifier.anytime.fixed import Reduced
from verifier.anytime.functional import margin, with_expression, with_row
from verifier.anytime.refiner import Refiner
from verifier.checkpoint import Saver
from verifier.errors import InputError
from verifier.ranges import single

if TYPE_CHECKING:
    from verifier.network import Network

_LOG = logging.getLogger(__name__)


def refine(  # noqa: PLR0913 - the questions that a caller may ask
    model: str | Path | bytes | Network | Graph,
    region: Box | LpBall,
    functional: Tensor | str | None = None,
    *,
    label: int | None = None,
    of: Literal["both", "min", "max"] = "both",
    gap: float = 1e-6,
    timeout: float | None = None,
    memory: int = 1 << 30,
    checkpoint: str | Path | None = None,
    seed: int = 0,
) -> Iterator[Enclosure]:
    """Enclose the minimum and the maximum of a functional of a model's output over one box or ball, ever more closely.

    ``functional``: a row of the output's shape (exact numbers), or an expression in ``y``, the flat output
    (``verifier/anytime/functional.py``); ``label``: the label's margin, ``y[label] - max`` of the others (where that is
    above 0 the label wins); neither: the model's output, where that is one number. ``of`` names the ends that are
    wanted.

    Every ``Enclosure`` holds, whenever the iteration is stopped: see there. It ends where both gaps are at most
    ``gap``, after ``timeout`` seconds (counted from the first step, looked at between steps), where the boxes would
    take more than ``memory`` bytes, or where nothing can be split any more. For networks that are piecewise linear
    without jumps the gaps close after finitely many steps, up to rounding; one that jumps has no Lipschitz constant and
    is bounded without. Where ends are infinite the log names the node without finite bounds.

    ``checkpoint`` names a file that the state is written to every ten seconds and at the limit; a refinement of the
    same function over the same region goes on from it, and it is removed once nothing is left to do.

    Raises ``InputError`` and ``UnsupportedError`` at the first step.
    """
    start, until = limits.now(), limits.deadline(timeout)
    reduced = Reduced.of(functional_graph(model, functional, label), region)
    function = _function(reduced)
    signs = {"both": (1.0, -1.0), "min": (1.0,), "max": (-1.0,)}.get(of)
    if signs is None:
        raise InputError(f"of={of!r}: 'both', 'min' or 'max'")
    if not gap >= 0:
        raise InputError(f"gap={gap}: a number of at least 0, how near both ends have to come")
    if not memory > 0:
        raise InputError(f"memory={memory}: bytes, more than 0")
    writer = None if checkpoint is None else saved.saver(Path(checkpoint), function, seed)
    refiner = Refiner(function, signs, gap, memory=memory, until=until, seed=seed)
    for found in _followed(refiner, writer, start):
        yield replace(found, least_at=reduced.whole(found.least_at), greatest_at=reduced.whole(found.greatest_at))


def _function(reduced: Reduced) -> Function:
    try:
        return Function.of(reduced.graph, Domain.of(reduced.region))
    except ValueError as error:  # what bounds say of a region or a graph that does not fit
        raise InputError(str(error)) from error


def functional_graph(
    model: str | Path | bytes | Network | Graph, functional: Tensor | str | None, label: int | None
) -> Graph:
    """The graph whose output is what is asked about, as ``refine`` takes it. Raises ``InputError``."""
    graph = model if isinstance(model, Graph) else single(model).graph
    if functional is not None and label is not None:
        raise InputError("a functional or a label: one of the two")
    if label is not None:
        functional = margin(graph, label)
    if isinstance(functional, str):
        graph = with_expression(graph, functional)
    elif functional is not None:
        graph = with_row(graph, functional)
    if (size := Size(graph.nodes[graph.outputs[0]].shape).numel()) != 1:
        raise InputError(
            f"the model's output has {size} elements and one number is needed: name a functional, such as 'y[0]', or a "
            "label"
        )
    return graph


def _followed(refiner: Refiner, writer: Saver | None, start: float) -> Iterator[Enclosure]:
    """The states of a refinement as enclosures, the last one with the reason why it is the last."""
    known = None if writer is None else writer.load()
    first, state = None if known is None else saved.restored(refiner, known), None
    said, domain = False, refiner.function.domain
    try:
        for state in refiner.run(first):
            ended: Status = "limit" if refiner.exhausted(state) or limits.now() >= refiner.until else "open"
            enclosure = refiner.terminate(state, limits.now() - start, ended)
            if not said and math.isinf(enclosure.gap) and (node := without_bounds(refiner.function.graph, domain)):
                _LOG.warning("%s has no finite bounds on the region: ends stay infinite where splits do not help", node)
            said = True
            yield enclosure
            if writer is not None and limits.now() >= writer.due:
                writer.save(saved.tensors(refiner, state))
    except DomainError as error:
        raise InputError(str(error)) from error
    finally:
        if writer is not None and state is not None:
            if refiner.finished(state):
                writer.remove()
            else:
                writer.save(saved.tensors(refiner, state))
