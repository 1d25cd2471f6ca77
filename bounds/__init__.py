"""Sound bounds of a computation graph over a set of inputs.

    from bounds import Alpha, Box, compute_bounds, margins

    found = compute_bounds(graph, Box.around(x, 0.1), Alpha(steps=20), rows=margins(graph, label))
    print(found.lower)

Names are imported on first use: importing a part of the package does not load the rest of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bounds.box import Box, LpBall
    from bounds.compute import Bounds, Prepared, compute_bounds, margins, prepare
    from bounds.graph import Builder, Graph
    from bounds.jacobian import JacobianBounds, jacobian_bounds
    from bounds.methods import Alpha, Crown, Forward, Interval, Lines
    from bounds.ops.base import DomainError, NoDerivativeError
    from bounds.tracing import Live, TraceError, live, trace

__all__ = [
    "Alpha",
    "Bounds",
    "Box",
    "Builder",
    "Crown",
    "DomainError",
    "Forward",
    "Graph",
    "Interval",
    "JacobianBounds",
    "Lines",
    "Live",
    "LpBall",
    "NoDerivativeError",
    "Prepared",
    "TraceError",
    "compute_bounds",
    "jacobian_bounds",
    "live",
    "margins",
    "prepare",
    "trace",
]

_HOMES = (
    ("bounds.box", ("Box", "LpBall")),
    ("bounds.compute", ("Bounds", "Prepared", "compute_bounds", "margins", "prepare")),
    ("bounds.graph", ("Builder", "Graph")),
    ("bounds.jacobian", ("JacobianBounds", "jacobian_bounds")),
    ("bounds.methods", ("Alpha", "Crown", "Forward", "Interval", "Lines")),
    ("bounds.ops.base", ("DomainError", "NoDerivativeError")),
    ("bounds.tracing", ("Live", "TraceError", "live", "trace")),
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
