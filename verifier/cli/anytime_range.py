"""``verifier range --method anytime``: ends of the outputs that close in from both sides, as table, arrays, JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from decimal import ROUND_CEILING, ROUND_FLOOR
from typing import TYPE_CHECKING, Any

from verifier import limits
from verifier.cli import INTERRUPTED, four_ends
from verifier.cli.search import Ending, follow, in_time, not_written
from verifier.cli.text import aligned, answered
from verifier.errors import InputError

if TYPE_CHECKING:
    from bounds import Box, LpBall
    from verifier.anytime.turns import TurnProgress, Turns
    from verifier.network import Network

GAP, SECONDS, MEMORY = 1e-6, 10.0, 1.0
OWN = ("functional", "memory", "checkpoint", "plot")
"""Options that no other method has."""

WAYS = (ROUND_FLOOR, ROUND_CEILING, ROUND_CEILING, ROUND_FLOOR)
"""The minimum lies between lower and least, the maximum between greatest and upper, as printed too."""


def check(arguments: argparse.Namespace) -> None:
    """Raise ``InputError`` where options do not go with the method."""
    anytime = arguments.method == "anytime"
    for option in OWN:
        if getattr(arguments, option) is not None and not anytime:
            raise InputError(f"--{option} goes with --method anytime, not with {arguments.method}")
    if not anytime:
        return
    if arguments.functional is not None and arguments.label is not None:
        raise InputError("--functional and --label: one of the two (y[LABEL] - max(...) is a functional too)")
    if arguments.envelope is not None:
        raise InputError("--envelope goes with --method exact: anytime encloses every operator by itself")
    if arguments.semantics != "real":
        raise InputError(
            "--semantics float32 goes with the methods interval, forward, crown and alpha: anytime is about exact "
            "arithmetic over the stored weights"
        )
    if arguments.device not in ("auto", "cpu"):
        raise InputError(f"--device {arguments.device}: --method anytime works on the processor (cpu)")


def answer(
    arguments: argparse.Namespace, network: Network, region: Box | LpBall, names: list[str], record: dict[str, Any]
) -> int:
    """Refine, write, print; the exit code. ``record`` has what every method's result has."""
    start, gap = limits.process_start(), GAP if arguments.gap is None else arguments.gap
    if region.size > 1 or len(names) > 1:
        for option in ("checkpoint", "plot"):
            if getattr(arguments, option) is not None:
                raise InputError(
                    f"--{option} is about one value over one region; these are {len(names)} over {region.size}: name "
                    "one, such as --functional 'y[0]'"
                )
    first, turns = _begun(arguments, network, region, gap)
    if arguments.timeout is None:  # the first bounds are always waited for
        start, seconds = limits.now(), SECONDS
        if not arguments.quiet:
            print(f"verifier: {SECONDS:g} s for all values together; --timeout gives more or less", file=sys.stderr)
    else:
        seconds = arguments.timeout
    ending: Ending = "limit"
    found: four_ends.FourEnds = first or four_ends.unknown(region.size, len(names))
    if turns is not None:
        ending = follow(turns, start, seconds, arguments.quiet, lambda p: _describe(p, names))
        found = turns.found()
    spent = limits.now() - start
    _write(arguments, network, found, turns)
    if not arguments.quiet:
        for line in (*_weaker(network), *_summary(arguments, found, gap, ending, spent, turns is not None)):
            print(f"verifier: {line}", file=sys.stderr)
    record |= four_ends.record(found, gap, ending, spent)
    answered(aligned(four_ends.table(found, names, WAYS)), record, arguments.json)
    return INTERRUPTED if ending == "interrupted" else 0


def _begun(
    arguments: argparse.Namespace, network: Network, region: Box | LpBall, gap: float
) -> tuple[four_ends.Outside | None, Turns | None]:
    """The refinements; where the time is short, before them bounds that are there at once. None: not in time."""
    start, timeout, first = limits.process_start(), arguments.timeout, None
    if timeout is not None:
        first = in_time(start, timeout, lambda: _first(arguments, network, region))
        if first is None:
            return None, None
    return first, in_time(start, timeout, lambda: _turns(arguments, network, region, gap))


def _first(arguments: argparse.Namespace, network: Network, region: Box | LpBall) -> four_ends.Outside:
    from verifier.anytime.functional import with_expression
    from verifier.ranges import rows_of

    functional, label = arguments.functional, arguments.label
    graph = network.graph if functional is None else with_expression(network.graph, functional)
    return four_ends.outside(graph, region, None if label is None else rows_of(network, label))


def _turns(arguments: argparse.Namespace, network: Network, region: Box | LpBall, gap: float) -> Turns:
    from verifier.anytime.turns import Effort, Turns

    memory = int((MEMORY if arguments.memory is None else arguments.memory) * limits.GIGABYTE)
    effort = Effort(gap, memory, arguments.checkpoint)
    return Turns(network, region, label=arguments.label, functional=arguments.functional, effort=effort)


def _describe(progress: TurnProgress, names: list[str]) -> str:
    gap = max(progress.least - progress.lower, progress.upper - progress.greatest)
    region, value = progress.place
    return (
        f"{progress.done} of {progress.total} done; region {region}, {names[value]}: minimum {progress.lower:.6g} to "
        f"{progress.least:.6g}, maximum {progress.greatest:.6g} to {progress.upper:.6g}, gap {gap:.3g}, "
        f"{progress.open} open boxes"
    )


def _weaker(network: Network) -> Iterator[str]:
    from verifier.ranges import jumps

    if places := jumps(network.graph):
        yield (
            f"the network jumps at {', '.join(places)}, so that it has no Lipschitz constant: the other bounds do alone"
        )


def _summary(
    arguments: argparse.Namespace, found: four_ends.FourEnds, gap: float, ending: Ending, seconds: float, drawn: bool
) -> Iterator[str]:
    states = [state for region in found.status for state in region]
    what = f"{'interval' if isinstance(found, four_ends.Outside) else 'anytime'} bounds of {four_ends.counted(found)}"
    left = sum(state != "exact" for state in states)
    if left:
        done = "the memory is used up (--memory)" if "limit" in states else "nothing more could be done"
        why = {"limit": "the time is up", "interrupted": "interrupted", "done": done}[ending]
        yield (
            f"{what} in {seconds:.1f} s; {why}: {left} of {len(states)} are not known to within {gap:g}; all ends are "
            "proven in real arithmetic"
        )
    else:
        yield f"{what}, known to within {gap:g}, in {seconds:.1f} s; all ends are proven in real arithmetic"
    if arguments.plot is not None and not drawn:
        yield not_written(arguments.plot)
    if arguments.checkpoint is not None and arguments.checkpoint.exists():
        yield f"the same command goes on from {arguments.checkpoint}"


def _write(arguments: argparse.Namespace, network: Network, found: four_ends.FourEnds, turns: Turns | None) -> None:
    """The arrays, shaped as the other methods' ones, and the picture."""
    if arguments.output is not None:
        import numpy as np

        outputs = arguments.label is None and arguments.functional is None
        shape = network.graph.nodes[network.graph.outputs[0]].shape if outputs else found.lower.shape[1:]
        sides = {name: getattr(found, name) for name in ("lower", "upper", "least", "greatest")}
        with open(arguments.output, "wb") as target:  # numpy would add its own ending to a name
            np.savez(target, **{name: side.reshape(-1, *shape).numpy() for name, side in sides.items()})
    if arguments.plot is not None and turns is not None:
        from verifier.anytime.plot import svg

        arguments.plot.write_text(svg(turns.history), encoding="utf-8")
