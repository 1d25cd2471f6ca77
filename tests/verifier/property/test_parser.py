"""VNN-LIB text: what is read, and where every mistake is said to be."""

from __future__ import annotations

import gzip
import time
from fractions import Fraction
from pathlib import Path

import pytest

from verifier.errors import InputError, UnsupportedError
from verifier.property import Source, decode, parse, read_property, read_source, specify
from verifier.query import Specification

V1 = "(declare-const X_0 Real)\n(declare-const Y_0 Real)\n(declare-const Y_1 Real)\n"
BOX = "(assert (<= X_0 1))\n(assert (>= X_0 0))\n"
V2 = """(vnnlib-version <2.0>)
(declare-network N (declare-input X float32 [1,2]) (declare-output Y float32 [1,3]))
(assert (and (>= X[0,0] 0.0) (<= X[0,0] 1.0) (>= X[0,1] 0.0) (<= X[0,1] 1.0)))
"""


def read(text: str) -> Specification:
    return specify(parse(Source(text, "p.vnnlib")))


def literals(specification: Specification) -> list[list[tuple[dict[int, Fraction], int, Fraction, bool]]]:
    """Clauses in plain form: (coefficients of outputs, sign, rhs, strict)."""
    s = specification
    return [
        [
            (dict(s.forms[s.form[i]].outputs), int(s.sign[i]), s.constants[int(s.rhs[i])], bool(s.strict[i]))
            for i in range(s.literals_of[k], s.literals_of[k + 1])
        ]
        for k in range(len(s.literals_of) - 1)
    ]


def test_version_1_with_everything_the_competition_writes() -> None:
    text = V1 + "; comment ( ;\n" + BOX + "(assert (or (and (<= Y_0 Y_1)) (and (>= Y_0 1e-05) (<= Y_1 -0.5))))\n"
    found = read(text)
    assert found.version == "1.0" and [v.size for v in (*found.inputs, *found.outputs)] == [1, 2]
    assert found.lower.shape == (1, 1) and found.constants[int(found.upper[0, 0])] == 1
    one = Fraction(1)
    assert literals(found) == [
        [({0: one, 1: -one}, 1, Fraction(0), False)],
        [({0: one}, -1, Fraction(1, 100000), False), ({1: one}, 1, Fraction(-1, 2), False)],
    ]


def test_numbers_left_and_scaled_forms_are_shared() -> None:
    text = V1 + BOX + "(assert (or (>= Y_1 Y_0) (<= (* 2 (- Y_1 Y_0)) 3) (< 0 (- Y_0 Y_1))))"
    found = read(text)
    assert len(found.forms) == 1
    assert [c[0][1:] for c in literals(found)] == [
        (1, Fraction(0), False),
        (-1, Fraction(-3, 2), False),
        (-1, Fraction(0), True),
    ]


def test_equalities_and_inequality() -> None:
    both = literals(read(V1 + BOX + "(assert (= Y_0 2))"))
    assert [(sign, strict) for _, sign, _, strict in both[0]] == [(1, False), (-1, False)]
    either = literals(read(V1 + BOX + "(assert (!= Y_0 2))"))
    assert [(c[0][1], c[0][3]) for c in either] == [(1, True), (-1, True)]
    fixed = read(V1 + "(assert (== X_0 0.5))(assert (<= Y_0 0))")
    assert fixed.lower.tolist() == fixed.upper.tolist()


def test_repeated_bounds_are_intersected_and_branches_have_their_own_boxes() -> None:
    found = read(
        V1 + BOX + "(assert (<= X_0 0.75))(assert (or (and (>= X_0 0.5) (<= Y_0 0)) (<= Y_0 1) (and (<= X_0 0.750)"
        " (<= Y_0 2)) (and (<= Y_0 3) (>= (* 2 X_0) 1))))"
    )
    value = found.constants
    boxes = [(value[int(a)], value[int(b)]) for a, b in zip(found.lower[:, 0], found.upper[:, 0], strict=True)]
    assert sorted(boxes) == [(0, Fraction(3, 4)), (Fraction(1, 2), Fraction(3, 4))]
    assert found.clauses_of.tolist() == [0, 2, 4]


def test_an_empty_box_refutes_its_clause_and_is_counted() -> None:
    found = read(V1 + BOX + "(assert (or (and (>= X_0 2) (<= Y_0 0)) (<= Y_0 1) (and (<= Y_1 1) (< X_0 0))))")
    assert found.refuted == 2 and len(literals(found)) == 1 and "lower > upper" in found.notes[0]
    nothing = read(V1 + "(assert (<= X_0 0.1))(assert (>= X_0 0.1000000000000000000001))(assert (<= Y_0 1))")
    assert nothing.lower.shape == (0, 1) and nothing.clauses_of.tolist() == [0] and nothing.literals_of.tolist() == [0]
    assert nothing.refuted == 1 and "every clause" in nothing.notes[0]


def test_comparisons_of_numbers_are_resolved() -> None:
    assert literals(read(V1 + BOX + "(assert (or (and (<= 1 2) (<= Y_0 0)) (and (< 1 1) (<= Y_0 1))))"))[0][0][2] == 0
    assert read(V1 + BOX + "(assert (>= 0 1))(assert (<= Y_0 0))").refuted == 1
    everywhere = read(V1 + BOX + "(assert (<= 0 (- 1 1)))")
    assert everywhere.literals_of.tolist() == [0, 0] and everywhere.lower.shape == (1, 1)


def test_version_2() -> None:
    text = V2 + "(assert (or (<= Y[0,0] Y[0,1]) (and (!= Y[0,2] 1.5) (< (+ Y[0,0] (* 2.0 X[0,1]) (- Y[0,2])) 0.0))))"
    found = read(text)
    assert found.version == "2.0" and found.inputs[0].shape == (1, 2) and found.networks[0].name == "N"
    assert len(literals(found)) == 3
    mixed = next(f for f in found.forms if f.inputs)
    assert mixed.outputs == ((0, Fraction(1)), (2, Fraction(-1))) and mixed.inputs == ((1, Fraction(2)),)


def test_version_2_with_several_networks_and_scalars() -> None:
    found = read(
        """(vnnlib-version <2.0>) ; networks
        (declare-network f (declare-input A real []) (declare-input B float64 [ 2 ] "b") (declare-output P Real [1]))
        (declare-network g (equal-to f) (declare-input C real []) (declare-input D float64 [2])
            (declare-output Q real [1]))
        (assert (and (>= A 0.0) (<= A 1.0) (== B[0] 1.0) (== B [1] 2.0) (== C 0.5) (== D[0] 0.0) (== D[1] 0.0)))
        (assert (> P[0] Q[0]))"""
    )
    assert [v.start for v in found.inputs] == [0, 1, 3, 4] and [v.start for v in found.outputs] == [0, 1]
    assert found.networks[1].equal_to == "f" and found.networks[0].input_names == ("", "b")
    assert found.lower.shape == (1, 6)


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        (V1 + "(assert (<= X_0 1)", "4:1", "never closed"),
        (V1 + "(assert (<= X_0 1)))", "4:20", "unbalanced"),
        (V1 + "(assert (<= X_7 1))", "4:13", "'X_7' is neither a number nor a declared variable"),
        (V1 + "(assert (<= X_0 nan))", "4:17", "'nan' is neither"),
        (V1 + "(assert (<= X_0 1) (<= X_0 2))", "4:1", "assert takes 1 formula, 2 are given"),
        (V1 + "(assert)", "4:1", "assert takes 1 formula, 0 are given"),
        (V1 + "(assert (or))", "4:9", "without operands"),
        (V1 + "(assert (and (<= X_0 1) Y_0))", "4:25", "unexpected 'Y_0'"),
        (V1 + "(assert (<= X_0 1 2))", "4:9", "compares 2 operands, 3 are given"),
        (V1 + "(assert (<= (<= X_0 1) 2))", "4:13", "cannot stand here"),
        (V1 + "(assert (<= (foo X_0) (+ 1 Y_0)))", "4:13", "only + - * are supported"),
        (V1 + "(assert (<= (+) Y_0))", "4:13", "without operands"),
        (V1 + "(declare-const X_0 Real)", "4:1", "declared twice"),
        (V1 + "(declare-const Z_0 Real)", "4:1", "cannot declare"),
        (V1 + "(declare-const X_1 Int)", "4:1", "cannot declare"),
        (V1 + "(assert (or (<= X_0 1)\n(assert (<= Y_0 1))", "5:1", "is a ')' missing before it (inside (or ...))?"),
        (V1 + "(frobnicate)", "4:1", "unknown command"),
        (V1 + "X_0", "4:1", "outside of any parenthesis"),
        (V1 + "[", "4:1", "unexpected '['"),
        (V1 + '(assert (<= X_0 "a"))', "4:17", "unexpected"),
        (V2 + "(assert (<= Y[0,3] 0.0))", "4:13", "does not fit the shape"),
        (V2 + "(assert (<= Y[0] 0.0))", "4:13", "does not fit the shape"),
        (V2 + "(assert (<= Y 0.0))", "4:13", "does not fit the shape"),
        ("(declare-network N)", "1:1", "must start with (vnnlib-version <2.0>)"),
        ("(vnnlib-version 2)", "1:1", "malformed version"),
        ("(vnnlib-version <2.0>)\n(declare-const X_0 Real)", "2:1", "declare-const belongs to VNN-LIB 1.0"),
        ("(vnnlib-version <2.0>)\n(declare-network N (declare-input X float32 [1]))", "2:1", "at least one"),
        (
            "(vnnlib-version <2.0>)\n(declare-network N (declare-output Y real [1]) (declare-input X real [1]))",
            "2:1",
            "late",
        ),
        ("(vnnlib-version <2.0>)\n(declare-network N (equal-to M))", "2:1", "declared before"),
        ("(vnnlib-version <2.0>)\n(declare-network N (declare-input X decimal [1]))", "2:1", "unknown element type"),
    ],
)
def test_mistakes_are_placed(text: str, where: str, what: str) -> None:
    with pytest.raises(InputError) as caught:
        read(text)
    assert str(caught.value).startswith(f"p.vnnlib:{where}: ") and what in str(caught.value)


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        (V1 + BOX + "\n(assert (<= (* X_0 Y_0) 1))", "7:13", "product of variables"),
        (V1 + "(assert (not (<= X_0 1)))", "4:9", "'not' is not supported"),
        (V1 + "(assert (<= (/ Y_0 2) (+ 1 1)))", "4:13", "only + - *"),
        ("(vnnlib-version <3.0>)", "1:1", "version 3.0 is not supported"),
        ("(vnnlib-version <2.0>)\n(declare-network N (declare-input X int8 [1]))", "2:1", "int8 is not supported"),
        (
            '(vnnlib-version <2.0>)\n(declare-network N (declare-input X real [1]) (declare-hidden H real [1] "h"))',
            "2:1",
            "declare-hidden",
        ),
    ],
)
def test_what_is_not_covered_is_said_with_its_line(text: str, where: str, what: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        read(text)
    assert str(caught.value).startswith(f"p.vnnlib:{where}: ") and what in str(caught.value)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (V1, "nothing is asserted"),
        ("(assert (<= 1 2))", "no variable X_0 is declared"),
        (V1 + "(declare-const X_2 Real)" + BOX, "X_1 is not declared, but X_2 is"),
        (V1 + "(assert (<= X_0 1))(assert (<= Y_0 0))", "unbounded input X_0: it has no lower bound"),
        (V1 + "(assert (or (<= X_0 1) (>= X_0 0)))", "unbounded input X_0"),
        (V2.replace("(<= X[0,1] 1.0)", "(<= Y[0,1] 1.0)"), "unbounded input X[0,1]: it has no upper bound"),
        ("(vnnlib-version <2.0>)(assert (<= 1.0 2.0))", "no network is declared"),
    ],
)
def test_mistakes_of_the_whole_file(text: str, what: str) -> None:
    with pytest.raises(InputError) as caught:
        read(text)
    assert str(caught.value).startswith("p.vnnlib: ") and what in str(caught.value)


@pytest.mark.parametrize("inside", ["(and ", "(or (and "])
def test_nesting_of_200000_parentheses_is_read(inside: str) -> None:
    count = 200_000 // inside.count("(")
    text = V1 + BOX + "(assert " + inside * count + "(<= Y_0 0)" + ")" * (inside.count("(") * count) + ")"
    assert len(literals(read(text))) == 1


@pytest.mark.parametrize(
    ("text", "where"),
    [("(" * 200_000, "4:1"), ("(assert " + "(and " * 200_000 + "(<= Y_0 0)", "4:1000004"), (")" * 200_000, "4:1")],
)
def test_unbalanced_nesting_is_placed(text: str, where: str) -> None:
    with pytest.raises(InputError, match=f"p.vnnlib:{where}: "):
        read(V1 + text)


def test_deep_arithmetic_is_refused() -> None:
    text = V1 + BOX + "(assert (<= " + "(+ 1 " * 200_000 + "Y_0" + ")" * 200_000 + " 0))"
    with pytest.raises(UnsupportedError, match="nested deeper than 1000"):
        read(text)
    shallow = V1 + BOX + "(assert (<= " + "(+ 1 " * 900 + "Y_0" + ")" * 900 + " 0))"
    assert literals(read(shallow))[0][0][2] == -900


def test_an_expansion_beyond_the_limit_is_refused_with_its_count() -> None:
    pair = "(assert (or (<= Y_0 {0}) (<= Y_1 {0})))"
    with pytest.raises(UnsupportedError, match="has 16777216 clauses"):
        read(V1 + BOX + "".join(pair.format(i) for i in range(24)))
    with pytest.raises(UnsupportedError, match=r"more than 10\^30 clauses"):
        read(V1 + BOX + "".join(pair.format(i) for i in range(200_000 // 40)))
    with pytest.raises(UnsupportedError, match="the limits are 3 and"):
        specify(parse(Source(V1 + BOX + pair.format(0) * 2, "p")), max_clauses=3)
    assert len(literals(read(V1 + BOX + "".join(pair.format(i) for i in range(10))))) == 1024


def test_files(tmp_path: Path) -> None:
    text = V1 + BOX + "(assert (<= Y_0 0))"
    plain, zipped = tmp_path / "a.vnnlib", tmp_path / "b.vnnlib.gz"
    plain.write_text("\ufeff" + text)
    zipped.write_bytes(gzip.compress(text.encode()))
    assert (
        literals(read_property(plain))
        == literals(read_property(zipped))
        == literals(read_property(tmp_path / "b.vnnlib"))
    )
    cases = {
        "missing": (None, "no such file"),
        "empty": (b"", "the file is empty"),
        "blank": (b" \n", "the file is empty"),
        "binary": (b"\n(assert\xff", "not a text file (byte 8 is not UTF-8)"),
        "zero": (b"\n\0", "2: not a text file (it contains a zero byte)"),
        "cut": (gzip.compress(text.encode())[:-12], "cannot be read"),
    }
    for name, (content, what) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_property(path)
        assert str(caught.value).startswith(str(path)) and what in str(caught.value)
    with pytest.raises(InputError, match="not a file"):
        read_property(tmp_path)


def test_a_gzip_bomb_stops_at_the_limit(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(b" " * 50_000_000))
    with pytest.raises(InputError, match="more than 1000000 bytes .* raise the limit with --max-bytes"):
        read_source(bomb, max_bytes=1_000_000)


def test_time_is_linear_in_the_file() -> None:
    atoms = " ".join(f"(>= X_0 0.{i:06d}) (<= X_0 0.{i + 1:06d})" for i in range(10))
    branches = "".join(f"(and {atoms} (<= Y_0 {k}.5))\n" for k in range(20_000))
    source = decode((V1 + f"(assert (or {branches}))").encode(), "p")
    start = time.process_time()
    found = specify(parse(source))
    # 11 MB; 100 MB of this kind take some ten times as long.
    assert time.process_time() - start < 10
    assert found.refuted == 20_000
