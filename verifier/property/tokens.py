"""The tokens of VNN-LIB, one regular expression.

The two atoms that files are made of, ``(<= X_1 0.5)`` and ``(<= Y_0 Y_1)``, are one token each: a large file is then
about as many tokens as it has atoms. Every alternative takes the white space after it along.
"""

from __future__ import annotations

import re

ATOM, OPEN, CLOSE, SYMBOL, STRING, BAD = 2, 3, 4, 5, 6, 7
"""``match.lastindex`` of each token (None: a comment or white space). An atom's groups are its head ``<= X_1`` and its
right side; ``OPEN``'s group is the word after the parenthesis, which may be empty."""

TOKEN = re.compile(
    r"""
      \(\s*+ ([<>]=?\s++[A-Za-z_][\w.]*+(?:\[[\d,\s]*+\])?+) \s++ ([^\s()\[\];"]++(?:\[[\d,\s]*+\])?+) \s*+\) \s*+
    | \(\s*+ ([^\s()\[\];"]*+) \s*+
    | (\)) \s*+
    | ([^\s()\[\];"]++(?:\s*+\[[^\[\]();"]*+\])?+ | \[[^\[\]();"]*+\]) \s*+
    | ("[^"\n]*+") \s*+
    | \s++ | ;[^\n]*+
    | (.)
    """,
    re.VERBOSE | re.DOTALL,
)

_SUBSCRIPT = re.compile(r"([^\s\[]*)\s*\[([\d,\s]*)\]\Z", re.ASCII)


def split_subscript(symbol: str) -> tuple[str, tuple[int, ...] | None]:
    """``X[0, 1]`` into ``("X", (0, 1))``; a symbol without brackets into itself and None. Raises ``ValueError``."""
    if "[" not in symbol:
        return symbol, None
    match = _SUBSCRIPT.match(symbol)
    if match is None:
        raise ValueError(f"{symbol!r} is not a name followed by integers in brackets")
    inside = match.group(2).strip()
    if not inside:
        return match.group(1), ()
    parts = [p.strip() for p in inside.split(",")]
    if not all(p.isdigit() and len(p) < 19 for p in parts):
        raise ValueError(f"{symbol!r} has a malformed index")
    return match.group(1), tuple(int(p) for p in parts)
