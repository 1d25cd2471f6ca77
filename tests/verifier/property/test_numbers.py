"""Exact numbers: sorting, ranks, and the direction of every rounding, checked with fractions."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.errors import InputError
from verifier.property.numbers import Numbers, exact, parse_number, rank

DECIMALS = st.one_of(
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-10, max_value=10, places=8),
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(Decimal),
    st.floats(allow_nan=False, allow_infinity=False).map(lambda v: Decimal(repr(v))),
    st.sampled_from([Decimal(t) for t in ("0.1", "0.10", "1e-400", "-1e-46", "1e39", "-1e400", "16777217", "-0", "0")]),
)
VALUES = st.lists(st.one_of(DECIMALS, st.fractions(min_value=-3, max_value=3, max_denominator=50)), min_size=1)
HALF_UNIT = Fraction(1, 2**53)


@given(VALUES)
def test_ranks_sort_exactly_and_merge_equal_values(values: list[Decimal | Fraction]) -> None:
    numbers, ranks = rank(values)
    assert list(numbers) == sorted({Fraction(v) for v in values})
    assert [numbers[int(r)] for r in ranks] == [Fraction(v) for v in values]


def test_numbers_that_share_a_double_are_told_apart() -> None:
    values = [Decimal("0.1"), Decimal("0.10000000000000000001"), Decimal("0.09999999999999999999"), Decimal("0.100")]
    _, ranks = rank(values)
    assert ranks.tolist() == [1, 2, 0, 1]


@given(VALUES, st.sampled_from([np.float16, np.float32, np.float64]))
def test_rounding_encloses_and_is_tight(values: list[Decimal | Fraction], dtype: type[np.floating]) -> None:
    numbers, _ = rank(values)
    down, up = numbers.rounded().enclose(dtype)
    assert down.dtype == up.dtype == dtype
    for value, low, high in zip(numbers, down, up, strict=True):
        assert (low == -np.inf or Fraction(float(low)) <= value) and (high == np.inf or value <= Fraction(float(high)))
        with np.errstate(over="ignore", under="ignore"):
            assert high == low or high == np.nextafter(low, dtype(np.inf))
        if np.isfinite(low) and Fraction(float(low)) == value:
            assert low == high
        assert not np.signbit(low) or low < 0
        assert not np.signbit(high) or high < 0


def test_rounding_at_the_double_next_to_a_float32() -> None:
    # The double nearest to the number is a float32 although the number lies beside it.
    numbers = Numbers([1 - HALF_UNIT / 4, Fraction(1), 1 + HALF_UNIT / 4])
    down, up = numbers.rounded().enclose(np.float32)
    below, above = np.nextafter(np.float32(1), np.float32(0)), np.nextafter(np.float32(1), np.float32(2))
    assert down.tolist() == [below, 1, 1] and up.tolist() == [1, 1, above]


def test_literals() -> None:
    assert parse_number("-1.5e-05") == Decimal("-0.000015") and parse_number(".5") == parse_number("5e-1")
    for text in ("", "-", "1e", "1e12345", "nan", "inf", "0x1", "1_0", "1.2.3", "1" * 5000, "١"):
        assert parse_number(text) is None


def test_exact_numbers_of_a_user() -> None:
    assert exact("8/255", "epsilon") == Fraction(8, 255) and exact(" 1e-3 ", "epsilon") == Fraction(1, 1000)
    assert exact(0.1, "epsilon") == Fraction(0.1) != exact("0.1", "epsilon") and exact(np.float32(0.5), "e") == 0.5
    for wrong in ("1/0", "a", float("nan"), float("inf"), None, "1/2/3"):
        with pytest.raises(InputError, match="epsilon"):
            exact(wrong, "epsilon")
