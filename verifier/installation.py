"""Is what is installed beside us ours?

``bounds`` and ``milp`` are short names that another distribution may carry too. Which files would be imported is
looked up without importing them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from verifier.errors import InputError

COMPANIONS = ("bounds", "milp")
_HOME = Path(__file__).resolve().parents[1]


def check(companions: tuple[str, ...] = COMPANIONS, home: Path = _HOME) -> None:
    """Raise ``InputError``, saying what to uninstall, where a companion package is missing or another one's.

    A companion is ours where it lies in ``home``, beside this package.
    """
    for name in companions:
        found = _folder(name)
        if found is None:
            raise InputError(f"package {name!r} is missing beside {home / 'verifier'}: reinstall nn-verifier")
        if found != home / name:
            raise InputError(
                f"package {name!r} would be imported from {found}, which is not part of nn-verifier "
                f"(ours is {home / name}): {_advice(name, found)}"
            )


def _folder(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin).resolve() if spec.origin else None


def _advice(name: str, found: Path) -> str:
    from importlib import metadata

    owners = sorted(set(metadata.packages_distributions().get(name, [])) - {"nn-verifier"})
    if owners:
        return f"pip uninstall {' '.join(owners)}, then pip install --force-reinstall --no-deps nn-verifier"
    return f"rename or remove {found}, or take its folder off the module path"
