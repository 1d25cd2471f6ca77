"""From a model and a property to a query: the cases in floating point, and the graph of the forms."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from verifier.cases import float_cases
from verifier.errors import InputError, UnsupportedError
from verifier.property import Source, parse, specify
from verifier.query import Query, Specification, Variable, read

WEIGHT = np.array([[1.0, -2.0, 0.5], [3.0, 1.0, -1.0]], dtype=np.float32)


def save(
    path: Path, nodes: Sequence[onnx.NodeProto], tensors: Sequence[tuple[str, int, list[int]]], inputs: int
) -> Path:
    """A model of these nodes; ``tensors`` are (name, type, shape), the first ``inputs`` of them its inputs."""
    infos = [helper.make_tensor_value_info(n, t, s) for n, t, s in tensors]
    constants = [numpy_helper.from_array(WEIGHT, "W"), numpy_helper.from_array(np.array([0.5], np.float32), "half")]
    used = {i for node in nodes for i in node.input}
    graph = helper.make_graph(nodes, "g", infos[:inputs], infos[inputs:], [c for c in constants if c.name in used])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """y = x W with x [1, 2] and y [1, 3]."""
    node = helper.make_node("MatMul", ["x", "W"], ["y"])
    return save(tmp_path / "m.onnx", [node], [("x", TensorProto.FLOAT, [1, 2]), ("y", TensorProto.FLOAT, [1, 3])], 1)


def property_file(folder: Path, *assertions: str, inputs: int = 2, outputs: int = 3) -> Path:
    names = [f"X_{i}" for i in range(inputs)] + [f"Y_{i}" for i in range(outputs)]
    text = "".join(f"(declare-const {n} Real)\n" for n in names) + "".join(f"(assert {a})\n" for a in assertions)
    path = folder / "p.vnnlib"
    path.write_text(text)
    return path


BOX = ("(>= X_0 -1)", "(<= X_0 2)", "(>= X_1 0)", "(<= X_1 1)")


def test_forms_of_every_kind(linear: Path, tmp_path: Path) -> None:
    query = read(
        linear,
        property_file(
            tmp_path,
            *BOX,
            "(<= Y_2 1)",
            "(>= Y_0 1)",
            "(<= Y_0 Y_2)",
            "(<= (+ (* 3 Y_0) Y_1 (- X_1)) 1)",
            "(< X_0 X_1)",
        ),
    )
    assert query.model == query.models[0].onnx and query.source == tmp_path / "p.vnnlib"
    x = torch.tensor([[0.25, 1.0], [-1.0, 0.5]], dtype=torch.float64)
    y, found = x.numpy() @ WEIGHT.astype(np.float64), query.graph.evaluate(x)[0].numpy()
    assert found.shape == (2, len(query.specification.forms)) == (2, 5)
    for k, form in enumerate(query.specification.forms):
        expected = sum(float(c) * y[:, i] for i, c in form.outputs) + sum(
            float(d) * x.numpy()[:, j] for j, d in form.inputs
        )
        np.testing.assert_allclose(found[:, k], expected, rtol=1e-14)
    assert [len(f.outputs) for f in query.specification.forms[: query.specification.single_forms]] == [1, 1]


def test_a_coefficient_that_is_no_double_carries_its_error(linear: Path, tmp_path: Path) -> None:
    query = read(linear, property_file(tmp_path, *BOX, "(<= (+ (* 3 Y_0) Y_1) 1)"))
    inexact = [c for c in query.graph.constants.values() if c.error is not None]
    assert len(inexact) == 1
    value, error = inexact[0].value.flatten().tolist(), inexact[0].error
    assert error is not None
    for form_coefficient, near, bound in zip(
        (Fraction(1), Fraction(1, 3)), value, error.flatten().tolist(), strict=True
    ):
        assert abs(Fraction(near) - form_coefficient) <= Fraction(bound)


def test_outputs_that_nothing_reads_are_left_out(linear: Path, tmp_path: Path) -> None:
    query = read(linear, property_file(tmp_path, *BOX, "(<= X_0 X_1)"))
    assert not any(type(n.op).__name__ in ("Gemm", "MatMul") and n.shape == (1, 3) for n in query.graph.nodes)
    empty = read(linear, property_file(tmp_path, *BOX))
    assert empty.graph.evaluate(torch.zeros(4, 2, dtype=torch.float64))[0].shape == (4, 0)
    assert empty.cases.literals_of.tolist() == [0, 0] and empty.cases.clauses_of.tolist() == [0, 1]


def test_the_empty_box_has_no_cases_and_says_so(linear: Path, tmp_path: Path) -> None:
    query = read(linear, property_file(tmp_path, *BOX, "(>= X_0 2.0000000000000001)", "(<= Y_0 0)"))
    assert query.cases.lower.shape == (0, 2) and "lower > upper" in query.notes[0]


@pytest.mark.parametrize(
    ("counts", "what"),
    [((3, 3), r"declares 3 inputs \(X_0 to X_2\), the model has 2 \(x \[1, 2\]\)"), ((2, 4), "4 outputs .* has 3")],
)
def test_sizes_that_do_not_fit_are_both_said(linear: Path, tmp_path: Path, counts: tuple[int, int], what: str) -> None:
    box = [f"(and (>= X_{i} 0) (<= X_{i} 1))" for i in range(counts[0])]
    path = property_file(tmp_path, *box, "(<= Y_0 0)", inputs=counts[0], outputs=counts[1])
    with pytest.raises(InputError, match=what):
        read(linear, path)


def two_inputs(folder: Path) -> Path:
    """s = a / 2 + b, d = a - b for a, b of shape [2]."""
    nodes = [
        helper.make_node("Mul", ["a", "half"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["s"]),
        helper.make_node("Sub", ["a", "b"], ["d"]),
    ]
    return save(folder / "two.onnx", nodes, [(n, TensorProto.FLOAT, [2]) for n in "absd"], 2)


TWO = """(vnnlib-version <2.0>)
(declare-network f (declare-input B real [2] "b") (declare-input A real [2] "a")
  (declare-output D float32 [1,2] "d") (declare-output S real [2] "s"))
(declare-network g (equal-to f) (declare-input B2 real [2] "b") (declare-input A2 real [2] "a")
  (declare-output D2 real [1,2] "d") (declare-output S2 real [2] "s"))
"""
BOUNDS = "".join(f"(assert (and (>= {n}[{i}] 0.0) (<= {n}[{i}] 1.0)))" for n in ("A", "B", "A2", "B2") for i in (0, 1))


def test_version_2_with_names_and_two_networks(tmp_path: Path) -> None:
    model, path = two_inputs(tmp_path), tmp_path / "p.vnnlib"
    path.write_text(TWO + BOUNDS + "(assert (<= (+ S[0] D[0,1]) (+ S2[1] 0.25)))(assert (>= D2[0,0] B2[0]))")
    query = read({"f": model}, path)
    assert [m.name for m in query.models] == ["f", "g"] and query.models[0].onnx == query.models[1].onnx
    assert [(v.name, v.start) for v in query.models[1].inputs] == [("a", 6), ("b", 4)]
    b, a, b2, a2 = np.random.default_rng(0).uniform(size=(4, 2))
    x = torch.from_numpy(np.concatenate([b, a, b2, a2]))[None]
    first, second = query.graph.evaluate(x)[0][0].tolist()
    sums = (a / 2 + b)[0] + (a - b)[1] - (a2 / 2 + b2)[1]
    forms = query.specification.forms
    expected = {3: sums, 2: (a2 - b2)[0] - b2[0]}
    found = dict(zip((len(f.outputs) + len(f.inputs) for f in forms), (first, second), strict=True))
    assert found == pytest.approx(expected)


def test_a_declared_machine_type_is_noted(tmp_path: Path) -> None:
    """Proofs are over the reals: where the property says float32 (here of D alone), the verdict says so."""
    model, path = two_inputs(tmp_path), tmp_path / "p.vnnlib"
    rest = BOUNDS + "(assert (<= S[0] 0.0))"
    path.write_text(TWO + rest)
    assert any("declared as float32" in note for note in read({"f": model}, path).notes)
    path.write_text(TWO.replace("float32", "real") + rest)
    assert read({"f": model}, path).notes == ()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (('[2] "b") (declare-input A', '[3] "b") (declare-input A'), "B is declared with shape .3., the model's b has"),
        (('"d") (declare-output S real', '"e") (declare-output S real'), "has no output 'e'"),
        (("D float32", "D float64"), "D is declared float64, the model's d is float32"),
        ((' "s"))\n(declare-network g', "))\n(declare-network g"), "either all of its outputs"),
        (
            (' (declare-output S real [2] "s"))\n(declare-network g', ")\n(declare-network g"),
            "differ|declares 1 outputs",
        ),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, change: tuple[str, str], what: str) -> None:
    text = TWO.split("(declare-network g")[0] + "(declare-network g"
    assert change[0] in text
    text = text.replace(*change).split("(declare-network g")[0]
    bounds = BOUNDS.split("(assert (and (>= A2")[0]
    path = tmp_path / "p.vnnlib"
    path.write_text(text + bounds + "(assert (== B[0] 1.0))" + ("(assert (== B[2] 1.0))" if "[3]" in text else ""))
    with pytest.raises(InputError, match=what):
        read(two_inputs(tmp_path), path)


def test_networks_are_named(tmp_path: Path) -> None:
    path = tmp_path / "p.vnnlib"
    path.write_text(TWO.replace("(equal-to f)", "(isomorphic-to f)") + BOUNDS)
    with pytest.raises(InputError, match="declares 2 networks and 1 are given.*--network f=FILE, --network g=FILE"):
        read({"f": two_inputs(tmp_path)}, path)


def test_reading_a_property_imports_no_torch() -> None:
    program = (
        "import sys, verifier.query, verifier.property, verifier.cases, verifier.regions; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# The cases in floating point


def cases_of(text: str, dtype: str = "float32", size: int = 1) -> tuple[Specification, Query]:
    specification = specify(parse(Source(text, "p")))
    cases, notes = float_cases(specification, [Variable("x", dtype, (size,), 0)])
    return specification, Query(None, cases, specification, b"", notes)  # type: ignore[arg-type]


NUMBER = st.one_of(
    st.decimals(min_value=-2, max_value=2, places=9).map(str),
    st.floats(width=32, min_value=-2, max_value=2).map(lambda v: np.format_float_positional(v, trim="0")),
    st.sampled_from(["0", "1e-46", "-1e-46", "0.1", "0.10000000149011612", "16777217", "1e-320", "3e38"]),
)


@settings(max_examples=150)
@given(NUMBER, NUMBER, st.sampled_from(["float32", "float64", "float16"]))
def test_ends_are_safe_and_membership_is_exact(a: str, b: str, dtype: str) -> None:
    low, high = sorted((a, b), key=Fraction)
    if dtype == "float16" and max(abs(Fraction(v)) for v in (a, b)) > 60000:
        return
    text = f"(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 {low}))(assert (<= X_0 {high}))"
    _, query = cases_of(text + f"(assert (or (<= Y_0 {a}) (>= Y_0 {b})))", dtype)
    cases, kind = query.cases, np.dtype(dtype).type
    ends = [c[0, 0] for c in (cases.lower, cases.inner_lower, cases.inner_upper, cases.upper)]
    lower, inner_lower, inner_upper, upper = (Fraction(float(e)) for e in ends)
    assert cases.lower.dtype == cases.upper.dtype == np.float64 and ends[1].dtype == ends[2].dtype == kind
    assert lower <= Fraction(low) and Fraction(high) <= upper and lower <= inner_lower <= inner_upper <= upper
    before = Fraction(float(np.nextafter(ends[1], kind(-np.inf))))
    after = Fraction(float(np.nextafter(ends[2], kind(np.inf))))
    if query.notes:
        # Widened: the two ends are neighbours around the exact interval, which holds no number of the type.
        assert inner_lower < Fraction(low) and Fraction(high) < inner_upper
        assert np.nextafter(ends[1], kind(np.inf)) == ends[2] and (lower, upper) == (inner_lower, inner_upper)
        said = Fraction(query.notes[0].split("at most ")[1].split(":")[0])
        assert max(Fraction(low) - inner_lower, inner_upper - Fraction(high)) <= said
    else:
        assert Fraction(low) <= inner_lower and inner_upper <= Fraction(high)
        assert before < Fraction(low) and Fraction(high) < after
    assert cases.varying[0, 0] == (Fraction(low) < Fraction(high))
    for threshold, sign, rhs in zip(cases.threshold, cases.sign, (a, b), strict=True):
        assert Fraction(float(threshold)) >= int(sign) * Fraction(rhs)
        assert Fraction(float(np.nextafter(threshold, -np.inf))) < int(sign) * Fraction(rhs)


def test_the_note_counts_widened_inputs() -> None:
    names = "".join(f"(declare-const X_{i} Real)" for i in range(4)) + "(declare-const Y_0 Real)(assert (<= Y_0 0))"
    fixed = "".join(f"(assert (and (<= X_{i} {v}) (>= X_{i} {v})))" for i, v in enumerate(("0.1", "0.5", "0.7", "1")))
    _, query = cases_of(names + fixed, size=4)
    assert query.notes[0].startswith("2 of 4 inputs widened, by at most") and not query.cases.varying.any()


@pytest.mark.parametrize(("low", "high"), [("0", "1e400"), ("4e38", "5e38"), ("-1e400", "-1e399")])
def test_bounds_beyond_the_type_are_refused(low: str, high: str) -> None:
    text = f"(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 {low}))(assert (<= X_0 {high}))"
    with pytest.raises(InputError, match="unbounded input 0: its bounds lie beyond the range"):
        cases_of(text)


def test_integer_inputs_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="element type int64"):
        cases_of("(declare-const X_0 Real)(declare-const Y_0 Real)(assert (== X_0 1))", "int64")
