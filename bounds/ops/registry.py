"""The registry: which operators there are, found among the subclasses of ``Op`` that have been imported.

``bounds.ops`` imports every family, so that what it lists is complete.
"""

from __future__ import annotations

import sys

from bounds.ops.base import Op


def operators() -> tuple[type[Op], ...]:
    """Every concrete operator class, in name order: the registry."""
    return tuple(cls for cls in _classes() if not getattr(cls, "__abstractmethods__", None))


def onnx_readers() -> dict[str, type[Op]]:
    """The class that reads each ONNX operator, by the operator's name."""
    return {name.name: cls for cls in _classes() for name in vars(cls).get("onnx", ())}


def _classes() -> list[type[Op]]:
    """All subclasses in name order."""
    found: dict[str, type[Op]] = {}
    stack: list[type[Op]] = list(Op.__subclasses__())
    while stack:
        cls = stack.pop()
        stack.extend(cls.__subclasses__())
        # A dataclass with slots is a copy of the class it decorates, and the original may still be alive.
        if getattr(sys.modules[cls.__module__], cls.__name__, None) is cls:
            found[cls.__name__] = cls
    return [found[name] for name in sorted(found)]
