"""Exact answers about a computation graph by mixed-integer linear programming.

    from milp import distortion, minimum

    found = minimum(graph, box, row)           # the least row . output over the box
    print(found.bound, found.value, found.point)

What a solver says is used and never believed: every bound that is called proven was re-checked from multipliers.
Names are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from milp.adversarial import distortion
    from milp.encode import UnboundedError, with_cost
    from milp.exact import Outcome
    from milp.export import write
    from milp.highs import InProcess, Limits, solve
    from milp.model import Model, Solution, Status
    from milp.optimum import Optimum, minimum
    from milp.process import ProcessRunner
    from milp.recheck import lower_bound
    from milp.settle import Standing
    from milp.tighten import tightened

__all__ = [
    "InProcess",
    "Limits",
    "Model",
    "Optimum",
    "Outcome",
    "ProcessRunner",
    "Solution",
    "Standing",
    "Status",
    "UnboundedError",
    "distortion",
    "lower_bound",
    "minimum",
    "solve",
    "tightened",
    "with_cost",
    "write",
]

_HOMES = (
    ("milp.adversarial", ("distortion",)),
    ("milp.encode", ("UnboundedError", "with_cost")),
    ("milp.exact", ("Outcome",)),
    ("milp.export", ("write",)),
    ("milp.highs", ("InProcess", "Limits", "solve")),
    ("milp.model", ("Model", "Solution", "Status")),
    ("milp.optimum", ("Optimum", "minimum")),
    ("milp.process", ("ProcessRunner",)),
    ("milp.recheck", ("lower_bound",)),
    ("milp.settle", ("Standing",)),
    ("milp.tighten", ("tightened",)),
)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    for home, names in _HOMES:
        if name in names:
            from importlib import import_module

            return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return list(__all__)
