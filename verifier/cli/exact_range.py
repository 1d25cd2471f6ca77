"""``verifier range --method exact``: the ends of the outputs from both sides, as a table, arrays and JSON."""

from __future__ import annotations

import argparse
import sys
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier import limits
from verifier.cli import INTERRUPTED, four_ends, options
from verifier.cli.search import Ending, follow, in_time, not_written
from verifier.cli.text import aligned, answered
from verifier.errors import InputError

if TYPE_CHECKING:
    from bounds import Box, LpBall
    from verifier.exact.ranges import ExactRange, RangeProgress, RangeSearch
    from verifier.network import Network

GAP = 1e-6

WAYS = (ROUND_FLOOR, ROUND_CEILING, ROUND_HALF_EVEN, ROUND_HALF_EVEN)
"""Proven ends are rounded outward, values found to nearest."""


def check(arguments: argparse.Namespace) -> None:
    """Raise ``InputError`` where options do not go with the method."""
    exact = arguments.method == "exact"
    for option, why in (
        ("timeout", "takes the time that it takes"),
        ("gap", "bounds from outside alone"),
        ("envelope", "bounds every operator without"),
    ):
        if getattr(arguments, option) is not None and not exact and arguments.method != "anytime":
            raise InputError(
                f"--{option} goes with --method {'exact' if option == 'envelope' else 'exact and anytime'}: "
                f"{arguments.method} {why}"
            )
    if exact and arguments.semantics != "real":
        raise InputError(
            "--semantics float32 goes with the other methods: --method exact is about exact arithmetic over the stored "
            "weights"
        )
    if exact and arguments.device not in ("auto", "cpu"):
        raise InputError(f"--device {arguments.device}: --method exact solves its programs on the processor (cpu)")


def answer(
    arguments: argparse.Namespace, network: Network, region: Box | LpBall, names: list[str], record: dict[str, Any]
) -> int:
    """Search, write, print; the exit code. ``record`` has what every method's result has."""
    start, gap = limits.process_start(), GAP if arguments.gap is None else arguments.gap
    search = in_time(start, arguments.timeout, lambda: _search(arguments, network, region, gap))
    if search is None:
        ending: Ending = "limit"
        found: four_ends.FourEnds = four_ends.unknown(region.size, len(names))
    else:
        ending = follow(search, start, arguments.timeout, arguments.quiet, lambda p: _describe(p, names))
        found = search.found()
        if arguments.output is not None:
            _save(arguments.output, search.found())
    seconds = limits.now() - start
    if not arguments.quiet:
        print(f"verifier: {_summary(arguments, found, gap, ending, seconds)}", file=sys.stderr)
        if search is None and arguments.output is not None:
            print(f"verifier: {not_written(arguments.output)}", file=sys.stderr)
        if search is not None and search.failed:
            print(f"verifier: the solver's own search failed: {search.failed}", file=sys.stderr)
    record = record | four_ends.record(found, gap, ending, seconds) | options.enclosed(arguments)
    answered(aligned(four_ends.table(found, names, WAYS)), record, arguments.json)
    return INTERRUPTED if ending == "interrupted" else 0


def _search(arguments: argparse.Namespace, network: Network, region: Box | LpBall, gap: float) -> RangeSearch:
    from verifier.exact.ranges import RangeSearch  # the solver takes its time to load

    return RangeSearch(network, region, label=arguments.label, gap=gap, envelope=arguments.envelope)


def _describe(progress: RangeProgress, names: list[str]) -> str:
    end = progress.end
    gap, side = abs(progress.value - progress.bound), "upper" if end.upper else "lower"
    return (
        f"{progress.done} of {progress.total} ends done; region {end.region}, {side} end of {names[end.value]}: bound "
        f"{progress.bound:.6g}, found {progress.value:.6g}, gap {gap:.3g}, {progress.open} open subproblems"
    )


def _summary(
    arguments: argparse.Namespace, found: four_ends.FourEnds, gap: float, ending: Ending, seconds: float
) -> str:
    states = [state for region in found.status for state in region]
    what = f"the range of {four_ends.counted(found)}"
    left = sum(state != "exact" for state in states)
    if not left:
        return f"{what}, exact to within {gap:g}, in {seconds:.1f} s; proven in real arithmetic"
    why = {"limit": "the time is up", "interrupted": "interrupted", "done": "the proof got stuck"}[ending]
    if ending == "done" and arguments.envelope is not None:
        why = f"no more can be proven of operators that are enclosed to within {arguments.envelope:g} (--envelope)"
    return (
        f"{what} in {seconds:.1f} s; {why}: {left} of {len(states)} are not known to within {gap:g}, and their "
        "bounds are those proven so far, in real arithmetic"
    )


def _save(path: Path, found: ExactRange) -> None:
    import numpy as np

    names = ("lower", "upper", "least", "greatest", "least_at", "greatest_at")
    with open(path, "wb") as target:  # numpy would add its own ending to a name
        np.savez(target, **{name: getattr(found, name).numpy() for name in names})
