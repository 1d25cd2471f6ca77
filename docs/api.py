"""Write ``docs/api.txt``: every public name of the packages, and of those inside that are imported by name, with its
signature.

``python docs/api.py`` rewrites the file; ``tests/test_house.py`` compares it with the packages. A change of the public
interface is therefore always seen in a diff. Public is what stands in a package's ``__all__``.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

PACKAGES = (
    "bounds", "milp", "verifier", "verifier.coverage", "verifier.smoothing", "verifier.statistics", "verifier.training",
)  # fmt: skip
TARGET = Path(__file__).with_name("api.txt")


def lines() -> Iterator[str]:
    """The lines of ``docs/api.txt``."""
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in sorted(getattr(module, "__all__", ())):
            yield from describe(f"{package}.{name}", getattr(module, name))


def describe(name: str, value: object) -> Iterator[str]:
    """One line for a function or a value, one for a class and each of its own public methods and properties."""
    if inspect.isclass(value):
        yield f"{name}{signature(value)}"
        for member, item in sorted(vars(value).items()):
            if member.startswith("_"):
                continue
            if isinstance(item, property):
                yield f"{name}.{member} -> {inspect.signature(item.fget).return_annotation if item.fget else '?'}"
            elif isinstance(item, staticmethod | classmethod) or inspect.isfunction(item):
                yield f"{name}.{member}{signature(getattr(value, member))}"
    elif callable(value):
        yield f"{name}{signature(value)}"
    else:
        yield f"{name}: {type(value).__name__}"


class _Written(str):
    """An annotation that is shown as it stands in the source, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def signature(value: object) -> str:
    """The signature as written in the source; empty where there is none (exceptions)."""
    try:
        found = inspect.signature(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    parameters = [p.replace(annotation=written(p.annotation)) for p in found.parameters.values()]
    return str(found.replace(parameters=parameters, return_annotation=written(found.return_annotation)))


def written(annotation: object) -> object:
    """An annotation without the quotes of its postponed evaluation."""
    return _Written(annotation) if isinstance(annotation, str) else annotation


def text() -> str:
    """The whole file."""
    return "\n".join(lines()) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
