"""Sound bounds of a computation graph over a set of inputs.

    from bounds import Alpha, Box, compute_bounds, margins

    found = compute_bounds(graph, Box.around(x, 0.1), Alpha(steps=20), rows=margins(graph, label))
    print(found.lower)

Names are imported on first use: importing a part of the package does not load the rest of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bounds.box import Box
    from bounds.compute import Alpha, Bounds, Crown, Interval, compute_bounds, margins
    from bounds.graph import Builder, Graph

__all__ = ["Alpha", "Bounds", "Box", "Builder", "Crown", "Graph", "Interval", "compute_bounds", "margins"]

_HOMES = (
    ("bounds.box", ("Box",)),
    ("bounds.compute", ("Alpha", "Bounds", "Crown", "Interval", "compute_bounds", "margins")),
    ("bounds.graph", ("Builder", "Graph")),
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
