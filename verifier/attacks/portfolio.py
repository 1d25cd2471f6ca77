"""The attacks by the names that tables and the command line use, and the ensemble that is run where none is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from verifier.attacks import apgd, gradient
from verifier.attacks.blackbox import estimate
from verifier.attacks.blackbox.sparse import SparseRs
from verifier.attacks.blackbox.square import Square
from verifier.attacks.blackbox.windows import Shape
from verifier.attacks.losses import Dlr, Margin
from verifier.attacks.nearby.deepfool import DeepFool
from verifier.attacks.nearby.fab import Fab
from verifier.attacks.nearby.measure import Norm
from verifier.attacks.transforms.layout import Layout
from verifier.attacks.trial import Attack
from verifier.errors import InputError


@dataclass(frozen=True, slots=True)
class Target:
    """What attacks are chosen for: the ``norm`` of the balls, and of image models with channels first the ``shape``
    (None: inputs are taken as flat)."""

    norm: Norm
    shape: Shape | None = None

    @staticmethod
    def of(norm: str, shape: tuple[int, ...]) -> Target:
        """Of balls around inputs of a shape. Raises ``InputError`` for an unknown norm."""
        match norm:
            case "inf" | "2" | "1" | "0":
                return Target(norm, _image(shape))
        raise InputError(f"norm {norm!r}: the known ones are inf, 2, 1 and 0")


ATTACKS: Mapping[str, Callable[[Target], Attack]] = MappingProxyType({
    "fgsm": lambda _: gradient.fgsm(),
    "pgd": lambda _: gradient.pgd(100),
    "pgd-margin": lambda _: gradient.pgd_margin(100),
    "mi-fgsm": lambda _: gradient.mi_fgsm(),
    "adam-pgd": lambda _: gradient.adam_pgd(),
    "multi-targeted": lambda _: gradient.multi_targeted(),
    "apgd-ce": lambda _: apgd.apgd_ce(),
    "apgd-margin": lambda _: apgd.apgd_margin(),
    "apgd-dlr": lambda _: apgd.Apgd("apgd-dlr", Dlr()),
    "apgd-t": lambda _: apgd.apgd_targeted(),
    "apgd-mt": lambda _: apgd.apgd_multi_targeted(),
    "deepfool": lambda target: DeepFool(target.norm),
    "fab": lambda target: Fab(target.norm),
    "square": lambda target: Square(shape=target.shape),
    "sparse-rs": lambda _: SparseRs(),
    "nes": lambda _: replace(estimate.nes(), steps=200),
    "spsa": lambda _: replace(estimate.spsa(), steps=80),
    "zoo": lambda _: estimate.Zoo(steps=150),
})  # fmt: skip
"""Those by queries alone ask an example 5,000 (square, sparse-rs) or about 10,000 times."""


def named(names: str, target: Target) -> tuple[Attack, ...]:
    """The attacks of a list such as "pgd,apgd-t". Raises ``InputError``, naming the known ones."""
    chosen = [name.strip() for name in names.split(",")]
    unknown = next((name for name in chosen if name not in ATTACKS), None)
    if unknown is not None:
        raise InputError(f"attack {unknown!r}: the known ones are {', '.join(ATTACKS)}")
    return tuple(ATTACKS[name](target) for name in chosen)


def ensemble(differentiable: bool, target: Target) -> tuple[Attack, ...]:
    """What is run where nothing is named, the cheap ones first, each on the examples that the ones before left: in the
    manner of AutoAttack (Croce and Hein, ICML 2020), with a short descent and Auto-PGD on several margins in front, and
    queries at the end, for gradients that lead nowhere. Without gradients: queries alone."""
    match target.norm:
        case "inf" | "2":
            queries: tuple[Attack, ...] = (Square(shape=target.shape, steps=1000 if differentiable else 5000),)
        case "0":
            queries = (SparseRs(steps=1000 if differentiable else 5000),)
        case _:
            queries = ()
    if not differentiable:
        return queries if target.norm == "0" else (*queries, ATTACKS["nes"](target))
    quick = gradient.Pgd("pgd-10", Margin(), start=gradient.Centre(), steps=10, rate=0.5, decay=0.8)
    return quick, apgd.apgd_multi_targeted(), apgd.apgd_ce(), apgd.apgd_targeted(), *queries


def _image(shape: tuple[int, ...]) -> Shape | None:
    """[C, H, W] of inputs that look like images with their channels first."""
    try:
        layout = Layout.of(shape)
    except InputError:
        return None
    flat = len([d for d in shape if d != 1]) < 2
    return None if layout.last or flat else (layout.channels, layout.height, layout.width)
