"""Whatever the bytes are: a specification, or an error that explains itself; never another exception."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.errors import InputError, UnsupportedError
from verifier.property import decode, parse, specify

V1 = """(declare-const X_0 Real) ; one input
(declare-const Y_0 Real)
(declare-const Y_1 Real)
(assert (<= X_0 0.5))(assert (>= X_0 -1e-2))
(assert (or (and (<= Y_0 Y_1) (>= Y_0 .5)) (and (<= (+ Y_0 (* 2 Y_1) (- X_0)) 3))))
"""
V2 = """(vnnlib-version <2.0>)
(declare-network f (declare-input X float32 [1,2]) (declare-output Y float32 [3] "out"))
(assert (and (>= X[0,0] 0.0) (<= X[0,0] 1.0) (== X[0,1] 0.0)))
(assert (or (<= Y[0] Y[1]) (and (!= Y[2] 1.5) (< (+ Y[0] (* 2.0 X[0,1]) (- Y[2])) 0.0))))
"""
PIECES = [
    *"()[]<>;\"\n ,.+-*/=\0é", "(assert ", "(and ", "(or ", "(<= ", "X_0", "Y_0", " 1", "X[0,0]", "Y[9]", "1e9999",
    "(declare-const ", "Real", "(vnnlib-version <2.0>)", "(declare-network f ", "(declare-input ", "-", "nan",
    "(declare-input A float32 [99999999999999999999])", "(* X_0 Y_0)", "(set-logic QF_LRA)",
    "(declare-fun X_1 () Real)",
    "<=", " 0 0)", "(not ",
]  # fmt: skip


def survives(data: bytes) -> None:
    message = "p: read"
    try:
        specify(parse(decode(data, "p")), max_clauses=1000)
    except (InputError, UnsupportedError) as error:
        message = str(error)
    assert message.startswith("p:") and len(message) < 600


@settings(max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=30))
def test_soup_of_tokens(pieces: list[str]) -> None:
    survives("".join(pieces).encode())


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    survives(data)


@pytest.mark.parametrize("text", [V1, V2])
def test_damaged_files(text: str) -> None:
    source = random.Random(0)
    survives(text.encode())
    for _ in range(600):
        damaged = text
        for _ in range(source.randint(1, 3)):
            i, j = sorted(source.randrange(len(damaged) + 1) for _ in range(2))
            match source.randrange(4):
                case 0:
                    damaged = damaged[:i] + source.choice(PIECES) + damaged[i:]
                case 1:
                    damaged = damaged[:i] + damaged[min(j, i + 12) :]
                case 2:
                    damaged = damaged[:i] + damaged[i : i + 20] + damaged[i:]
                case _:
                    damaged = damaged[: max(j, len(damaged) // 2)]
        survives(damaged.encode())


@pytest.mark.parametrize(
    "text",
    [
        "(" + "a" * 3_000_000,
        "(assert (<= X_0" + " " * 3_000_000,
        "(assert (<= X_0 [" + "1," * 1_000_000,
        "(assert (<= X_0 " + "9" * 3_000_000 + "))",
        "( " * 1_000_000,
        ";" * 3_000_000,
        '(set-info "' + "a" * 3_000_000,
        V1 + "(assert (<= (* " + "1e9999 " * 10_000 + ") 1))",
        V1 + "(assert (<= (+ " + "Y_0 " * 300_000 + ") 1))",
        V1 + "(assert " + "(or (<= Y_0 0) (and (<= Y_1 0) " * 3_000 + "(<= Y_0 1)" + "))" * 3_000 + ")",
    ],
)
def test_long_and_deep_things_take_linear_time(text: str) -> None:
    start = time.process_time()
    survives(text.encode())
    assert time.process_time() - start < 5
