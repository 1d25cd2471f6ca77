"""Programs of clauses and boxes: their minimum is the margin, in files for two solvers, and never above it."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import highspy
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bounds import Alpha, prepare
from milp.cbc import solve_with_cbc
from milp.export import write
from milp.model import Model, Status
from verifier.errors import InputError
from verifier.exact.programs import EncodedBox, Program, box_program, clause_program
from verifier.query import Query, read

CORPUS = Path(__file__).resolve().parents[2] / "corpus"
with (CORPUS / "instances.csv").open(newline="", encoding="utf-8") as _file:
    INSTANCES = [(row[0].removesuffix(".onnx"), row[3]) for row in csv.reader(_file) if not row[0].startswith("empty")]


def encoded(query: Query, number: int = 0) -> EncodedBox:
    return EncodedBox.of(query, prepare(query.graph, torch.float64), number)


def by_highs(program: Program, path: Path) -> tuple[float, dict[str, float]]:
    """The optimum of the program's file, and the point by the names of columns."""
    write(program.model, path, program.graph, named=program.named)
    highs = highspy.Highs()
    for option, value in (("output_flag", False), ("mip_rel_gap", 0.0), ("mip_abs_gap", 1e-9)):
        highs.setOptionValue(option, value)
    assert highs.readModel(str(path)) == highspy.HighsStatus.kOk
    highs.run()
    assert highs.getModelStatus() == highspy.HighsModelStatus.kOptimal
    values = highs.getSolution().col_value
    return float(highs.getInfo().objective_function_value), dict(zip(highs.getLp().col_names_, values, strict=True))


@pytest.mark.parametrize(("name", "expected"), INSTANCES)
def test_minima_agree_with_the_enumerated_verdict(name: str, expected: str, tmp_path: Path) -> None:
    query = read(CORPUS / f"{name}.onnx", CORPUS / f"{name}.vnnlib")
    least = math.inf
    for number in range(len(query.cases.lower)):
        box = encoded(query, number)
        minima = [by_highs(clause_program(box, k), tmp_path / "clause.lp")[0] for k in box.clauses]
        whole, _ = by_highs(box_program(box), tmp_path / "box.mps")
        assert whole == pytest.approx(min(minima), abs=3e-6)  # each program's rows hold to the solver's 1e-6
        least = min(least, whole)
    if name.startswith("touching"):
        assert least == pytest.approx(0, abs=1e-6)
    else:
        assert (least > 1e-6) == (expected == "unsat") and abs(least) > 1e-6


ONE = "(assert (<= Y_0 {0}))"
JOINT = "(assert (<= Y_0 {0}))(assert (>= Y_1 {1}))(assert (<= (+ Y_0 Y_2) Y_1))"
SEVERAL = """(assert (or (and (<= Y_0 {0}) (<= Y_0 {1}) (>= Y_2 Y_1)) (<= Y_1 {1}) (>= Y_2 5.5)
  (and (>= Y_0 Y_1) (<= (- X_0 Y_1) 0.25))))"""


def random_query(folder: Path, seed: int, lines: str) -> Query:
    """Three inputs, two layers of ReLUs, three outputs."""
    rng = np.random.default_rng(seed)
    sizes = (3, 6, 4, 3)
    weights, nodes, before = [], [], "x"
    for k, (n, m) in enumerate(pairwise(sizes)):
        weights += [
            numpy_helper.from_array(rng.normal(size=(n, m)).astype(np.float32), f"w{k}"),
            numpy_helper.from_array((rng.normal(size=m) * 0.3).astype(np.float32), f"b{k}"),
        ]
        nodes.append(helper.make_node("Gemm", [before, f"w{k}", f"b{k}"], [f"a{k}"], name=f"/layer.{k}/Gemm"))
        before = f"a{k}"
        if k < 2:
            nodes.append(helper.make_node("Relu", [before], [f"r{k}"], name=f"/layer.{k}/Relu"))
            before = f"r{k}"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n]) for name, n in (("x", sizes[0]), (before, 3))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    declared = [f"(declare-const X_{k} Real)(assert (>= X_{k} -1))(assert (<= X_{k} 0.7))" for k in range(3)]
    declared += [f"(declare-const Y_{k} Real)" for k in range(3)]
    (folder / "p.vnnlib").write_text("\n".join([*declared, lines.format(*rng.normal(size=2))]))
    return read(folder / "m.onnx", folder / "p.vnnlib")


def margins(query: Query, clauses: list[int] | range, x: torch.Tensor) -> torch.Tensor:
    """The least over clauses of the largest literal at points ``[P, n]``."""
    cases = query.cases
    forms = query.graph.evaluate(x)[0]
    found = []
    for k in clauses:
        part = slice(*cases.literals_of[k : k + 2].tolist())
        values = torch.from_numpy(cases.sign[part] * 1.0) * forms[:, cases.form[part].tolist()]
        found.append((values - torch.from_numpy(cases.threshold[part])).amax(1))
    return torch.stack(found).amin(0)


@pytest.mark.parametrize("lines", [ONE, JOINT, SEVERAL])
@pytest.mark.parametrize("seed", range(3))
def test_the_minimum_is_the_margin(lines: str, seed: int, tmp_path: Path) -> None:
    """Both solvers find it, no sample lies below it, and the network has it at the point that they return."""
    query = random_query(tmp_path, seed, lines)
    box = encoded(query)
    program = box_program(box)
    least, point = by_highs(program, tmp_path / "box.lp")
    second = solve_with_cbc(program.model)
    assert second.status is Status.OPTIMAL and second.value == pytest.approx(least, abs=1e-5)
    x = torch.tensor([[point[f"X_{k}"] for k in range(3)]], dtype=torch.float64)
    assert float(margins(query, box.clauses, x)) == pytest.approx(least, abs=1e-5)
    low, high = torch.from_numpy(query.cases.lower[0]), torch.from_numpy(query.cases.upper[0])
    share = torch.rand((3000, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sampled = margins(query, box.clauses, low + (high - low) * share)
    assert least - 1e-6 <= float(sampled.min())
    model = program.model
    if lines is not ONE:
        margin = next(k for k, name in program.named.items() if name == "margin")
        assert model.lower[margin] <= sampled.min() and sampled.max() <= model.upper[margin]
    if lines is SEVERAL:
        assert {name for name in program.named.values() if "X_" not in name} == {
            "margin", *(f"clause_{k}" for k in range(4))
        }  # fmt: skip
        chosen = [k for k in range(4) if point[f"clause_{k}"] > 0.5]
        assert len(chosen) == 1
        assert float(margins(query, chosen, x)) == pytest.approx(least, abs=1e-5)


def test_names_are_those_of_the_property_and_of_the_model(tmp_path: Path) -> None:
    program = box_program(encoded(random_query(tmp_path, 0, SEVERAL)))
    _, point = by_highs(program, tmp_path / "box.lp")
    assert {"X_0", "X_1", "X_2", "margin", "clause_0", "clause_3"} <= {*point}
    assert any(name.startswith("r0.phase.") for name in point)


def test_tighter_bounds_make_a_program_with_the_same_minimum(tmp_path: Path) -> None:
    query = random_query(tmp_path, 1, JOINT)
    tight = EncodedBox.of(query, prepare(query.graph, torch.float64), 0, Alpha(steps=5))
    optima = [by_highs(clause_program(box, 0), tmp_path / "x.lp")[0] for box in (tight, encoded(query))]
    assert optima[0] == pytest.approx(optima[1], abs=1e-6)


def test_what_there_is_not_is_refused(tmp_path: Path) -> None:
    query = random_query(tmp_path, 0, SEVERAL)
    with pytest.raises(ValueError, match=r"box 0 has the clauses range\(0, 4\), not 4"):
        clause_program(encoded(query), 4)
    cases = replace(query.cases, literals_of=np.array([0, 0, *query.cases.literals_of[2:]]))
    with pytest.raises(InputError, match="clause 0 has no literals: every input of its box is a counterexample"):
        box_program(encoded(replace(query, cases=cases)))


def holds(model: Model, rows: range, values: list[Fraction]) -> bool:
    """Whether the point satisfies rows and ends in exact arithmetic."""
    for r in rows:
        part = slice(int(model.start[r]), int(model.start[r + 1]))
        entries = zip(model.index[part].tolist(), model.value[part].tolist(), strict=True)
        total = sum((Fraction(v) * values[c] for c, v in entries), Fraction(0))
        low, high = float(model.row_lower[r]), float(model.row_upper[r])
        if (math.isfinite(low) and total < Fraction(low)) or (math.isfinite(high) and total > Fraction(high)):
            return False
    ends = zip(model.lower.tolist(), values, model.upper.tolist(), strict=True)
    return all(Fraction(low) <= v <= Fraction(high) for low, v, high in ends)


@pytest.mark.parametrize("seed", range(40))
def test_no_rounding_cuts_off_the_margin(seed: int) -> None:
    """Forms anywhere in their bounds, thresholds of all sizes: the exact margin, with the clause that has it chosen,
    satisfies every row exactly."""
    rng = np.random.default_rng(seed)
    size = 4
    ends = np.sort(rng.normal(size=(2, size)) * 10.0 ** rng.integers(-6, 6, size=(2, size)), axis=0)
    empty = torch.zeros(0, dtype=torch.float64)
    whole = torch.zeros(0, dtype=torch.int64)
    model = Model(
        cost=torch.zeros(size, dtype=torch.float64), offset=0.0, start=torch.zeros(1, dtype=torch.int64), index=whole,
        value=empty, row_lower=empty, row_upper=empty, row_error=empty, lower=torch.from_numpy(ends[0]),
        upper=torch.from_numpy(ends[1]), integer=torch.zeros(size).bool(), node=torch.zeros(size, dtype=torch.int64),
        element=torch.arange(size), columns={0: torch.arange(size)},
    )  # fmt: skip
    counts = rng.integers(1, 4, size=3) + 1
    literals = int(counts.sum())
    query = read(CORPUS / "joint_plane_sat.onnx", CORPUS / "joint_plane_sat.vnnlib")
    cases = replace(
        query.cases,
        clauses_of=np.array([0, 3]),
        literals_of=np.cumsum([0, *counts]),
        form=rng.integers(0, size, literals),
        sign=rng.choice([-1, 1], literals),
        threshold=rng.normal(size=literals) * 10.0 ** rng.integers(-9, 9, literals),
    )
    forms = torch.tensor([-1, 1, 2, 3])  # the first form is 0
    query = replace(query, cases=cases)
    program = box_program(EncodedBox(query, 0, replace(query.graph, inputs=(0,)), model, forms))
    for _ in range(20):
        share = rng.choice([0.0, 1.0, rng.random()], size)
        point = [
            min(max(Fraction(a * (1 - s) + b * s), Fraction(a)), Fraction(b))
            for a, b, s in zip(*ends, share, strict=True)
        ]
        value = [Fraction(0), *point[1:]]
        worst = []
        for k in range(3):
            part = range(*cases.literals_of[k : k + 2].tolist())
            worst.append(max(int(cases.sign[i]) * value[cases.form[i]] - Fraction(cases.threshold[i]) for i in part))
        chosen = worst.index(min(worst))
        filled = [*point, min(worst), *(Fraction(k == chosen) for k in range(3))]
        assert holds(program.model, range(len(program.model.row_lower)), filled)
