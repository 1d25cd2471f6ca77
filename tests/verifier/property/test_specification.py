"""A specification means what the text means: both are evaluated exactly at random points.

The text is evaluated by a plain recursive reader of its own, which shares nothing with the one under test.
"""

from __future__ import annotations

import operator
import re
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.errors import InputError
from verifier.property import Source, parse, specify
from verifier.query import Specification

OPERATORS = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
    "!=": operator.ne,
}
GRID = [Fraction(k, 2) for k in range(-3, 4)]
HEADER = "".join(f"(declare-const {n} Real)" for n in ("X_0", "X_1", "Y_0", "Y_1"))


def tree(text: str) -> Any:
    """Nested lists of an s-expression."""
    stack: list[list[Any]] = [[]]
    for token in re.findall(r"[()]|[^\s()]+", text):
        if token == "(":
            stack.append([])
        elif token == ")":
            stack[-2].append(stack.pop())
        else:
            stack[-1].append(token)
    return stack[0]


def value(node: Any, at: dict[str, Fraction]) -> Any:
    """The truth value of a formula or the number of a term."""
    if isinstance(node, str):
        return at[node] if node in at else Fraction(node)
    word, *operands = node
    values = [value(o, at) for o in operands]
    if word == "and":
        return all(values)
    if word == "or":
        return any(values)
    if word in OPERATORS:
        return OPERATORS[word](*values)
    if word == "-" and len(values) == 1:
        return -values[0]
    result = values[0]
    for v in values[1:]:
        result = {"+": operator.add, "-": operator.sub, "*": operator.mul}[word](result, v)
    return result


def holds(specification: Specification, x: list[Fraction], y: list[Fraction]) -> bool:
    """Some box contains x and some clause of it is true."""
    s, number = specification, specification.constants
    for m in range(len(s.lower)):
        if not all(number[int(a)] <= v <= number[int(b)] for a, b, v in zip(s.lower[m], s.upper[m], x, strict=True)):
            continue
        for k in range(s.clauses_of[m], s.clauses_of[m + 1]):
            if all(literal(s, i, x, y) for i in range(s.literals_of[k], s.literals_of[k + 1])):
                return True
    return False


def literal(s: Specification, i: int, x: list[Fraction], y: list[Fraction]) -> bool:
    form = s.forms[s.form[i]]
    total = sum((c * y[j] for j, c in form.outputs), Fraction(0)) + sum((c * x[j] for j, c in form.inputs), Fraction(0))
    signed = int(s.sign[i]) * (total - s.constants[int(s.rhs[i])])
    return signed < 0 if s.strict[i] else signed <= 0


NUMBERS = st.sampled_from(["0", "1", "-1", "0.5", "-1.50", "5e-1", "2", "-0"])
NAMES = st.sampled_from(["X_0", "X_1", "Y_0", "Y_1"])
TERMS = st.recursive(
    st.one_of(NUMBERS, NAMES),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda p: f"(+ {' '.join(p)})"),
        st.lists(inner, min_size=1, max_size=3).map(lambda p: f"(- {' '.join(p)})"),
        st.tuples(NUMBERS, inner).map(lambda p: f"(* {p[0]} {p[1]})"),
        st.tuples(inner, NUMBERS, NUMBERS).map(lambda p: f"(* {p[0]} {p[1]} {p[2]})"),
    ),
    max_leaves=4,
)
ATOMS = st.one_of(
    st.tuples(st.sampled_from(["<=", ">=", "<", ">"]), NAMES, NUMBERS).map(lambda p: f"({p[0]} {p[1]} {p[2]})"),
    st.tuples(st.sampled_from(["<=", ">="]), NAMES, NAMES).map(lambda p: f"({p[0]} {p[1]} {p[2]})"),
    st.tuples(st.sampled_from(list(OPERATORS)), TERMS, TERMS).map(lambda p: f"({p[0]} {p[1]} {p[2]})"),
)
FORMULAS = st.recursive(
    ATOMS,
    lambda inner: st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=1, max_size=4)).map(
        lambda p: f"({p[0]} {' '.join(p[1])})"
    ),
    max_leaves=12,
)
BOX = [f"({op} X_{i} {v})" for i in (0, 1) for op, v in ((">=", "-1.5"), ("<=", "1.5"))]


@settings(max_examples=120)
@given(st.lists(FORMULAS, min_size=1, max_size=3), st.data())
def test_the_specification_agrees_with_the_tree(formulas: list[str], data: st.DataObject) -> None:
    # The box comes anywhere between the other assertions.
    asserted = [*formulas, *BOX]
    text = HEADER + " ".join(f"(assert {f})" for f in data.draw(st.permutations(asserted)))
    specification = specify(parse(Source(text, "p")))
    trees = tree(" ".join(asserted))
    for _ in range(8):
        x = [data.draw(st.sampled_from(GRID)) for _ in range(2)]
        y = [data.draw(st.sampled_from(GRID)) for _ in range(2)]
        at = {"X_0": x[0], "X_1": x[1], "Y_0": y[0], "Y_1": y[1]}
        assert holds(specification, x, y) == all(value(t, at) for t in trees)


@settings(max_examples=50)
@given(st.lists(FORMULAS, min_size=1, max_size=4), st.data())
def test_boxes_that_only_the_branches_give(formulas: list[str], data: st.DataObject) -> None:
    """Each branch brings its own, overlapping or empty, box; a text without enough bounds is refused."""
    some = st.sampled_from(BOX + ["(>= X_0 0.5)", "(<= X_0 0)", "(< X_1 1)", "(= X_1 1)", "(> X_0 0.50)"])
    branches = [f"(and {f} {' '.join(data.draw(st.lists(some, min_size=4, max_size=8)))})" for f in formulas]
    text = f"(or {' '.join(branches)})"
    try:
        specification = specify(parse(Source(f"{HEADER}(assert {text})", "p")))
    except InputError:
        with pytest.raises(InputError, match="unbounded input"):
            specify(parse(Source(f"{HEADER}(assert {text})", "p")))
        return
    node = tree(text)[0]
    for _ in range(8):
        x = [data.draw(st.sampled_from(GRID)) for _ in range(2)]
        y = [data.draw(st.sampled_from(GRID)) for _ in range(2)]
        at = {"X_0": x[0], "X_1": x[1], "Y_0": y[0], "Y_1": y[1]}
        assert holds(specification, x, y) == value(node, at)


def test_arrays_are_well_formed() -> None:
    branches = " ".join(f"(and (>= X_0 {k % 3}) (<= X_0 5) (<= Y_0 {k}) (<= Y_1 Y_0))" for k in range(10))
    text = HEADER + "(assert (and (<= X_1 1) (>= X_1 0)))" + f"(assert (or {branches}))(assert (< Y_0 9))"
    s = specify(parse(Source(text, "p")))
    assert s.lower.shape == s.upper.shape == (3, 2) and s.clauses_of.tolist() == [0, 4, 7, 10]
    assert s.literals_of.tolist() == [3 * k for k in range(11)]
    assert len(s.form) == len(s.sign) == len(s.rhs) == len(s.strict) == 30
    assert s.single_forms == 1 and len(s.forms) == 2 and not s.forms[0].inputs
    assert s.strict.tolist() == [True, False, False] * 10
