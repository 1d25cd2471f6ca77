"""The attacks by the names that tables and the command line use, and the ensemble that is run where none is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from verifier.attacks import apgd, gradient
from verifier.attacks.losses import Dlr, Margin
from verifier.attacks.trial import Attack
from verifier.errors import InputError

ATTACKS: Mapping[str, Callable[[], Attack]] = MappingProxyType({
    "fgsm": gradient.fgsm,
    "pgd": lambda: gradient.pgd(100),
    "pgd-margin": lambda: gradient.pgd_margin(100),
    "mi-fgsm": gradient.mi_fgsm,
    "adam-pgd": gradient.adam_pgd,
    "multi-targeted": gradient.multi_targeted,
    "apgd-ce": apgd.apgd_ce,
    "apgd-margin": apgd.apgd_margin,
    "apgd-dlr": lambda: apgd.Apgd("apgd-dlr", Dlr()),
    "apgd-t": apgd.apgd_targeted,
    "apgd-mt": apgd.apgd_multi_targeted,
})  # fmt: skip


def named(names: str) -> tuple[Attack, ...]:
    """The attacks of a list such as "pgd,apgd-t". Raises ``InputError``, naming the known ones."""
    chosen = [name.strip() for name in names.split(",")]
    unknown = next((name for name in chosen if name not in ATTACKS), None)
    if unknown is not None:
        raise InputError(f"attack {unknown!r}: the known ones are {', '.join(ATTACKS)}")
    return tuple(ATTACKS[name]() for name in chosen)


def ensemble(differentiable: bool, norm: str) -> tuple[Attack, ...]:
    """What is run where nothing is named, the cheap ones first, each on the examples that the ones before left: in the
    manner of AutoAttack (Croce and Hein, ICML 2020), with a short descent and Auto-PGD on several margins in
    front. Without gradients: what works by queries alone."""
    if not differentiable:
        raise NotImplementedError(norm)
    quick = gradient.Pgd("pgd-10", Margin(), start=gradient.Centre(), steps=10, rate=0.5, decay=0.8)
    return quick, apgd.apgd_multi_targeted(), apgd.apgd_ce(), apgd.apgd_targeted()
