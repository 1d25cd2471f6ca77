"""Write ``tests/corpus``: tiny networks and properties whose verdicts are known by enumeration.

Every network has one or two inputs and weights that are multiples of 1/8; ``corpus.regions`` decides its property in
exact fractions. A verdict enters the corpus only if it stays the same when every threshold moves by a thousandth in
either direction, and onnxruntime agrees: a witness replays, and no sampled point contradicts ``unsat``. The few
instances called ``touching`` hold or fail exactly at the extreme value; there ``unknown`` is an honest answer, the
other verdict a wrong one.

``python benchmarks/make_corpus.py`` rewrites the folder; ``instances.csv`` has the columns of the competition and a
fourth one, the verdict.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnxruntime
from corpus import networks
from corpus.networks import Sketch
from corpus.properties import Case, Instance, Literal
from corpus.regions import box_piece, pieces

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "corpus"
Box = tuple[tuple[str, ...], tuple[str, ...]]


def draw_box(chance: random.Random, inputs: int, width: str = "1") -> Box:
    """A random box around the origin's neighbourhood, in decimals, each side at least a fifth of ``width`` long."""
    lower, upper = [], []
    for _ in range(inputs):
        centre = Decimal(chance.randint(-8, 8)) / 10
        radius = Decimal(chance.randint(2, 10)) / 10 * Decimal(width)
        lower.append(f"{centre - radius:f}")
        upper.append(f"{centre + radius:f}")
    return tuple(lower), tuple(upper)


def extreme(sketch: Sketch, box: Box, output: int, sign: int) -> Fraction:
    """The exact largest (sign 1) or smallest (sign -1) value of an output over a box."""
    start = box_piece(tuple(map(Fraction, box[0])), tuple(map(Fraction, box[1])))
    assert start is not None
    return sign * max(
        sign * piece.forms[output].at(c) for piece in pieces(sketch.layers, start) for c in piece.corners
    )


def number(value: Fraction) -> str:
    """A decimal within 1e-6 of a value."""
    return f"{Decimal(round(value * 10**6)) / 10**6:f}"


# ---- kinds of property: each draws an instance on a network --------------------------------------------------------


def threshold(chance: random.Random, sketch: Sketch) -> Instance:
    """``Y_0`` reaches a value just below or just above its largest one."""
    box = draw_box(chance, sketch.inputs)
    shift = Fraction(chance.choice([-1, 1]), chance.choice([4, 20, 100]))
    bound = number(extreme(sketch, box, 0, 1) + shift)
    return Instance(sketch, (Case(*box, ((Literal("Y_0", ">=", bound),),)),))


def ranking(chance: random.Random, sketch: Sketch) -> Instance:
    """Some other output reaches ``Y_0``: the usual robustness property."""
    box = draw_box(chance, sketch.inputs, "0.6")
    clauses = tuple((Literal(f"Y_{k}", ">=", "Y_0"),) for k in range(1, sketch.width))
    return Instance(sketch, (Case(*box, clauses),))


def joint(chance: random.Random, sketch: Sketch) -> Instance:
    """Two literals that can each be met; whether both can at once is the question."""
    box = draw_box(chance, sketch.inputs)
    bounds = []
    for output in (0, 1):
        low, high = extreme(sketch, box, output, -1), extreme(sketch, box, output, 1)
        bounds.append(number(high - (high - low) * Fraction(chance.randint(1, 9), 20)))
    return Instance(sketch, (Case(*box, (tuple(Literal(f"Y_{i}", ">=", b) for i, b in enumerate(bounds)),)),))


def regions(chance: random.Random, sketch: Sketch) -> Instance:
    """Three boxes, each with a threshold of its own."""
    cases = []
    for _ in range(3):
        box = draw_box(chance, sketch.inputs, "0.5")
        shift = Fraction(chance.choice([-1, 1, 1, 1]), 20)
        bound = number(extreme(sketch, box, 0, -1) - shift)
        cases.append(Case(*box, ((Literal("Y_0", "<=", bound),),)))
    return Instance(sketch, tuple(cases))


def mixed(chance: random.Random, sketch: Sketch) -> Instance:
    """A literal over an output and an input, beside one over two outputs."""
    box = draw_box(chance, sketch.inputs)
    bound = number(extreme(sketch, box, 0, -1) + Fraction(chance.randint(-4, 4), 8))
    distance = number(Fraction(chance.randint(0, 16), 8))
    literals = (Literal("(- Y_0 X_0)", "<=", bound), Literal("(- Y_1 Y_0)", ">=", distance))
    return Instance(sketch, (Case(*box, (literals,)),))


def empty(chance: random.Random, sketch: Sketch) -> Instance:
    """A box whose lower end lies above the upper one by less than float32 can tell: unsat."""
    lower, upper = draw_box(chance, sketch.inputs)
    lower = (f"{Decimal(upper[0]) + Decimal('0.00000000001'):f}", *lower[1:])
    return Instance(sketch, (Case(lower, upper, ((Literal("Y_0", ">=", "-1000"),),)),))


def point(chance: random.Random, sketch: Sketch) -> Instance:
    """A box of one point, in multiples of 1/8."""
    at = tuple(f"{Decimal(chance.randint(-8, 8)) / 8:f}" for _ in range(sketch.inputs))
    bound = number(extreme(sketch, (at, at), 0, 1) + Fraction(chance.choice([-1, 1]), 50))
    return Instance(sketch, (Case(at, at, ((Literal("Y_0", ">=", bound),),)),))


def equality(chance: random.Random, sketch: Sketch) -> Instance:
    """An output equals a value that it passes over or never reaches."""
    box = draw_box(chance, sketch.inputs)
    bound = number(extreme(sketch, box, 0, 1) + Fraction(1, chance.choice([8, 50])))
    return Instance(sketch, (Case(*box, ((Literal("Y_0", "=", bound),),)),))


def touching(chance: random.Random, sketch: Sketch) -> Instance:
    """The largest value exactly, on a box in eighths: ``>=`` is met at one point, ``>`` nowhere."""
    lower = tuple(f"{Decimal(chance.randint(-8, 0)) / 8:f}" for _ in range(sketch.inputs))
    upper = tuple(f"{Decimal(chance.randint(1, 8)) / 8:f}" for _ in range(sketch.inputs))
    bound = extreme(sketch, (lower, upper), 0, 1)
    relation = chance.choice([">=", ">"])
    return Instance(sketch, (Case(lower, upper, ((Literal("Y_0", relation, number(bound)),),)),))


Kind = Callable[[random.Random, Sketch], Instance]
BOTH = ("sat", "unsat")

# name of the network, the network, kind of property, wanted verdicts
PLAN: tuple[tuple[str, Callable[[random.Random], Sketch], Kind, tuple[str, ...]], ...] = (
    ("line", networks.dense("Relu", 1, (4, 3), 1), threshold, BOTH),
    ("plane", networks.dense("Relu", 2, (4, 3), 2), threshold, BOTH),
    ("deep", networks.dense("Relu", 2, (3, 3, 3), 3), ranking, BOTH),
    ("leaky", networks.dense("LeakyRelu", 2, (4, 3), 3), ranking, BOTH),
    ("absolute", networks.dense("Abs", 2, (3, 2), 2), threshold, BOTH),
    ("clip", networks.dense("Clip", 2, (4, 3), 2), threshold, BOTH),
    ("unbatched", networks.unbatched, threshold, BOTH),
    ("symbolic", networks.symbolic, ranking, BOTH),
    ("maximum", networks.convolved(average=False), threshold, BOTH),
    ("average", networks.convolved(average=True), ranking, BOTH),
    ("skip", networks.skipping, threshold, BOTH),
    ("line", networks.dense("Relu", 1, (4, 3), 2), joint, BOTH),
    ("plane", networks.dense("Relu", 2, (4, 3), 2), joint, BOTH),
    ("skip", networks.skipping, joint, BOTH),
    ("plane", networks.dense("Relu", 2, (4,), 2), regions, BOTH),
    ("maximum", networks.convolved(average=False), regions, BOTH),
    ("plane", networks.dense("Relu", 2, (4, 3), 2), mixed, BOTH),
    ("plane", networks.dense("Relu", 2, (3,), 1), empty, ("unsat",)),
    ("plane", networks.dense("Relu", 2, (3,), 1), point, BOTH),
    ("plane", networks.dense("Relu", 2, (4, 3), 1), equality, ("unsat",)),
    ("line", networks.dense("Relu", 1, (3,), 1), touching, BOTH),
    ("plane", networks.dense("Relu", 2, (3,), 1), touching, BOTH),
)


# ---- checks and writing --------------------------------------------------------------------------------------------


def find(build: Callable[[random.Random], Sketch], kind: Kind, wanted: str, seed: int) -> Instance:
    """The first instance, seed by seed, that has the wanted verdict, varies on its box, and is not trivial."""
    for attempt in range(2000):
        chance = random.Random(1000 * seed + attempt)
        instance = kind(chance, build(chance))
        if kind is touching and Fraction(last_number(instance)) != reached(instance):
            continue  # the largest value is no short decimal
        if instance.verdict(touching=kind is touching) != wanted:
            continue
        if kind in (empty, point) or pieces_of(instance) >= 4:
            return instance
    raise RuntimeError(f"no {wanted} instance of {kind.__name__} found")


def last_number(instance: Instance) -> str:
    """The right side of the first literal."""
    return instance.cases[0].clauses[0][0].right


def reached(instance: Instance) -> Fraction:
    """The exact largest value of the first output on the first box."""
    case = instance.cases[0]
    return extreme(instance.sketch, (case.lower, case.upper), 0, 1)


def pieces_of(instance: Instance) -> int:
    """Number of linear pieces on the first box."""
    case = instance.cases[0]
    start = box_piece(tuple(map(Fraction, case.lower)), tuple(map(Fraction, case.upper)))
    return sum(1 for _ in pieces(instance.sketch.layers, start)) if start else 0


def confirm(instance: Instance, model: bytes, wanted: str) -> None:
    """Compare the enumeration with onnxruntime: a witness replays, samples do not contradict ``unsat``."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    shape = [1 if isinstance(d, str) else d for d in session.get_inputs()[0].shape]

    def outputs(x: np.ndarray) -> list[Fraction]:
        return [Fraction(float(v)) for v in session.run(None, {"x": x.astype(np.float32).reshape(shape)})[0].flat]

    chance = np.random.default_rng(0)
    if wanted == "sat":
        witness = instance.witness(Fraction(-1, 2000))
        assert witness is not None
        x = np.array([float(v) for v in witness], dtype=np.float32)
        assert any(holds(c, x, outputs(x)) for case in instance.cases for c in case.clauses), "no witness replays"
        return
    for case in instance.cases:
        lower, upper = np.array(case.lower, dtype=float), np.array(case.upper, dtype=float)
        for _ in range(200 if (lower <= upper).all() else 0):
            x = (lower + (upper - lower) * chance.random(len(lower))).astype(np.float32)
            assert not any(holds(clause, x, outputs(x)) for clause in case.clauses), "a sample contradicts unsat"


def holds(clause: tuple[Literal, ...], x: np.ndarray, y: list[Fraction]) -> bool:
    """Whether numbers meet a clause."""
    def value(text: str) -> Fraction:
        if text.startswith("(- "):
            left, right = text[3:-1].split()
            return value(left) - value(right)
        if text[:2] in ("X_", "Y_"):
            return y[int(text[2:])] if text[0] == "Y" else Fraction(float(x[int(text[2:])]))
        return Fraction(text)

    def literal(it: Literal) -> bool:
        left, right = value(it.left), value(it.right)
        return {"<=": left <= right, "<": left < right, ">=": left >= right, ">": left > right, "=": left == right}[
            it.relation
        ]

    return all(literal(it) for it in clause)


def main() -> None:
    """Write networks, properties and ``instances.csv``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder to write (default: %(default)s)")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed, (network, build, kind, verdicts) in enumerate(PLAN, 1):
        for wanted in verdicts:
            instance = find(build, kind, wanted, seed)
            stem = f"{kind.__name__}_{network}_{wanted}"
            model = instance.sketch.model().SerializeToString(deterministic=True)
            if kind is not touching:
                confirm(instance, model, wanted)
            (out / f"{stem}.onnx").write_bytes(model)
            (out / f"{stem}.vnnlib").write_text(instance.text(), encoding="utf-8")
            rows.append(f"{stem}.onnx,{stem}.vnnlib,20,{wanted}")
            print(f"{stem}: {pieces_of(instance)} pieces")
    (out / "instances.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
