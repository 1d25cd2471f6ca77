"""From a document to a ``Specification``: clauses grouped by the exact box that their input bounds span.

A literal on a single input is a bound: it shapes the box of its clause and disappears (a strict one shapes the closed
box and stays). Ranks stand for exact numbers, so that every comparison here is exact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from verifier.errors import InputError, UnsupportedError
from verifier.property.clauses import MAX_CLAUSES, Clauses, expand
from verifier.property.document import GREATER, STRICT, Document
from verifier.property.numbers import Numbers, rank
from verifier.query import Form, Specification, Variable

_MAX_BOUNDS = 40_000_000
_CHUNK_BOUNDS = 2_000_000
_MAX_CHUNK = 32_768
_MAX_LITERALS = 50_000_000


def specify(document: Document, max_clauses: int = MAX_CLAUSES) -> Specification:
    """Expand, resolve and group. Raises ``InputError`` for an input without both bounds (naming it),
    ``UnsupportedError`` where the expansion exceeds ``max_clauses`` or the boxes do not fit in memory."""
    clauses = expand(document, max_clauses)
    literals = _Literals.of(document)
    grouping = _Grouping(document, literals)
    if grouping.start(clauses):
        for pointers, members in clauses.chunks(grouping.chunk):
            grouping.take(pointers, members)
    return grouping.finish()


@dataclass(frozen=True, slots=True, eq=False)
class _Literals:
    """The literals as columns ``[L]``. ``variable``: the input that a bound bounds, else -1. ``number``: it compares
    numbers only, and ``false``: it does so wrongly."""

    form: np.ndarray
    greater: np.ndarray
    strict: np.ndarray
    rhs: np.ndarray
    variable: np.ndarray
    number: np.ndarray
    false: np.ndarray
    numbers: Numbers

    @staticmethod
    def of(document: Document) -> _Literals:
        """Columns of a document."""
        numbers, ranks = rank(document.values)
        form, code = document.head >> 2, document.head & 3
        greater, strict, rhs = code & GREATER != 0, code & STRICT != 0, ranks[document.rhs]
        variable = np.array([_bounded(f) for f in document.forms], dtype=np.int64)[form]
        number = np.array([not f.outputs and not f.inputs for f in document.forms], dtype=bool)[form]
        false = np.zeros(len(form), dtype=bool)
        for i in np.flatnonzero(number).tolist():
            slack = -numbers[rhs[i]] if greater[i] else numbers[rhs[i]]
            false[i] = slack < 0 or (slack == 0 and bool(strict[i]))
        return _Literals(form, greater, strict, rhs, variable, number, false, numbers)


def _bounded(form: Form) -> int:
    return form.inputs[0][0] if not form.outputs and len(form.inputs) == 1 else -1


@dataclass(slots=True)
class _Grouping:
    """Collects, chunk by chunk, the clauses that are not false, their boxes and their literals."""

    document: Document
    literals: _Literals
    rows: list[np.ndarray] = field(default_factory=list)
    index: dict[bytes, int] = field(default_factory=dict)
    base: np.ndarray = field(default_factory=lambda: np.empty((2, 0), dtype=np.int32))
    common: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    boxes: list[np.ndarray] = field(default_factory=list)
    members: list[np.ndarray] = field(default_factory=list)
    counts: list[np.ndarray] = field(default_factory=list)
    total: int = 0
    empty: int = 0
    false: int = 0

    @property
    def chunk(self) -> int:
        """How many clauses are worked on together."""
        return max(1, min(_MAX_CHUNK, _CHUNK_BOUNDS // max(1, self.base.size)))

    def start(self, clauses: Clauses) -> bool:
        """Resolve the common literals; False where they alone refute every clause."""
        size = sum(v.size for n in self.document.networks for v in n.inputs)
        if size > _MAX_BOUNDS:
            raise UnsupportedError(f"{self.document.name}: {size} inputs are declared; the limit is {_MAX_BOUNDS}")
        columns = self.literals
        pieces = [np.arange(a, b) for a, b in zip(clauses.common[::2], clauses.common[1::2], strict=True)]
        common = np.concatenate([np.empty(0, dtype=np.int64), *pieces])
        free = np.array([[-1], [len(columns.numbers)]], dtype=np.int32)
        self.base = self._rows(np.repeat(free, size, axis=1), 1, np.zeros(len(common), dtype=np.int64), common)[0]
        self.common = common[(columns.variable[common] < 0) & ~columns.number[common] | self._strict_bound(common)]
        if bool(columns.false[common].any()):
            self.false = clauses.count
        elif self._is_empty(self.base[None], np.zeros(len(common), dtype=np.int64), common)[0]:
            self.empty = clauses.count
        else:
            return True
        return False

    def take(self, pointers: np.ndarray, members: np.ndarray) -> None:
        """Add a chunk of clauses, given without the common literals."""
        columns, count = self.literals, len(pointers) - 1
        owner = np.repeat(np.arange(count), np.diff(pointers))
        false = np.zeros(count, dtype=bool)
        false[owner[columns.false[members]]] = True
        own = np.zeros(count, dtype=bool)
        own[owner[columns.variable[members] >= 0]] = True
        place = np.cumsum(own) - 1
        mine = own[owner]
        rows = self._rows(self.base, int(own.sum()), place[owner[mine]], members[mine])
        empty = np.zeros(count, dtype=bool)
        strict = self.common[self._strict_bound(self.common)]
        everywhere = np.repeat(np.arange(len(rows)), len(strict)), np.tile(strict, len(rows))
        empty[own] = self._is_empty(
            rows, np.concatenate([place[owner[mine]], everywhere[0]]), np.concatenate([members[mine], everywhere[1]])
        )
        kept = ~false & ~empty
        self.false += int(false.sum())
        self.empty += int((empty & ~false).sum())
        box = np.empty(count, dtype=np.int64)
        box[~own] = self._box(self.base) if bool((~own & kept).any()) else -1
        box[own] = [self._box(row) if k else -1 for row, k in zip(rows, kept[own].tolist(), strict=True)]
        stays = kept[owner] & ~columns.number[members]
        stays &= (columns.variable[members] < 0) | columns.strict[members]
        self.boxes.append(box[kept])
        self.members.append(members[stays])
        self.counts.append(np.bincount(owner[stays], minlength=count)[kept])
        self.total += int(stays.sum()) + int(kept.sum()) * len(self.common)
        if self.total > _MAX_LITERALS:
            raise UnsupportedError(f"{self.document.name}: more than {_MAX_LITERALS} literals remain in its clauses")

    def _rows(self, base: np.ndarray, count: int, place: np.ndarray, members: np.ndarray) -> np.ndarray:
        """``[count, 2, n]`` ranks: ``base`` tightened, in row ``place[i]``, by the bound ``members[i]``."""
        columns = self.literals
        rows = np.repeat(base[None], count, axis=0)
        bounds = columns.variable[members] >= 0
        for side, greater, tighten in ((0, True, np.maximum), (1, False, np.minimum)):
            some = bounds & (columns.greater[members] == greater)
            chosen = members[some]
            tighten.at(rows[:, side], (place[some], columns.variable[chosen]), columns.rhs[chosen])
        return rows

    def _is_empty(self, rows: np.ndarray, place: np.ndarray, members: np.ndarray) -> np.ndarray:
        """``[count]``: lower > upper somewhere, or a strict bound that the whole box misses."""
        columns = self.literals
        empty = np.any(rows[:, 0] > rows[:, 1], axis=1)
        strict = self._strict_bound(members)
        chosen, place = members[strict], place[strict]
        variable, rhs, greater = columns.variable[chosen], columns.rhs[chosen], columns.greater[chosen]
        missed = np.where(greater, rows[place, 1, variable] <= rhs, rows[place, 0, variable] >= rhs)
        empty[place[missed]] = True
        return empty

    def _strict_bound(self, members: np.ndarray) -> np.ndarray:
        strict: np.ndarray = (self.literals.variable[members] >= 0) & self.literals.strict[members]
        return strict

    def _box(self, row: np.ndarray) -> int:
        key = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
        found = self.index.setdefault(key, len(self.rows))
        if found == len(self.rows):
            self._demand_bounds(row)
            self.rows.append(row.copy())
            if row.size // 2 * len(self.rows) > _MAX_BOUNDS:
                raise UnsupportedError(
                    f"{self.document.name}: more than {len(self.rows) - 1} different boxes over {row.size // 2} "
                    f"inputs; the limit is {_MAX_BOUNDS} bounds in all"
                )
        return found

    def _demand_bounds(self, row: np.ndarray) -> None:
        for side, missing, word in ((0, -1, "lower"), (1, len(self.literals.numbers), "upper")):
            free = np.flatnonzero(row[side] == missing)
            if free.size:
                more = f" (nor have {free.size - 1} others)" if free.size > 1 else ""
                raise InputError(
                    f"{self.document.name}: unbounded input {self._name(int(free[0]))}: it has no {word} bound{more}; "
                    "every input needs both in every case"
                )

    def _name(self, flat: int) -> str:
        return element_name(self.document.version, [v for n in self.document.networks for v in n.inputs], flat)

    def finish(self) -> Specification:
        """The specification: clauses by box, used forms only, those of a single output first."""
        columns, document, size = self.literals, self.document, self.base.shape[1]
        box = np.concatenate([np.empty(0, dtype=np.int64), *self.boxes])
        counts = np.concatenate([np.empty(0, dtype=np.int64), *self.counts])
        members = np.concatenate([np.empty(0, dtype=np.int64), *self.members])
        order = np.argsort(box, kind="stable")
        literals = _ordered(members, counts, order, self.common)
        forms, form = _renumber(document.forms, columns.form[literals])
        rows = np.array(self.rows, dtype=np.int32).reshape(len(self.rows), 2, size)
        return Specification(
            constants=columns.numbers,
            lower=rows[:, 0],
            upper=rows[:, 1],
            clauses_of=np.searchsorted(box[order], np.arange(len(self.rows) + 1)),
            literals_of=np.concatenate([[0], np.cumsum(counts[order] + len(self.common))]),
            form=form,
            sign=np.where(columns.greater[literals], -1, 1).astype(np.int8),
            rhs=columns.rhs[literals],
            strict=columns.strict[literals],
            forms=forms,
            inputs=tuple(v for n in document.networks for v in n.inputs),
            outputs=tuple(v for n in document.networks for v in n.outputs),
            version=document.version,
            networks=document.networks,
            refuted=self.empty + self.false,
            notes=tuple(self._notes()),
        )

    def _notes(self) -> Iterator[str]:
        whole = "every clause" if not self.rows else None
        if self.empty:
            yield f"{whole or f'{self.empty} clauses'} of the property: lower > upper, no input satisfies it"
        if self.false:
            yield f"{whole or f'{self.false} clauses'} of the property: false by comparing its constants"


def element_name(version: str, variables: list[Variable], flat: int) -> str:
    """How a property writes the flat element of its inputs (or outputs): ``X_3``, ``X[0,3]``, ``X``."""
    variable = next(v for v in reversed(variables) if v.start <= flat)
    if version[0] == "1":
        return f"{variable.name}_{flat}"
    index = np.unravel_index(flat - variable.start, variable.shape) if variable.shape else ()
    return variable.name + (f"[{','.join(str(int(i)) for i in index)}]" if variable.shape else "")


def _ordered(members: np.ndarray, counts: np.ndarray, order: np.ndarray, common: np.ndarray) -> np.ndarray:
    """The clauses' literals with the clauses in ``order``, each with the common literals first."""
    starts = np.cumsum(counts) - counts
    lengths = counts[order]
    ends = np.cumsum(lengths)
    own = members[np.arange(len(members)) + np.repeat(starts[order] - (ends - lengths), lengths)]
    before = np.repeat(ends - lengths, common.size)
    joined: np.ndarray = np.insert(own, before, np.tile(common, len(order)))
    return joined


def _renumber(forms: tuple[Form, ...], used: np.ndarray) -> tuple[tuple[Form, ...], np.ndarray]:
    """The forms that occur, those of a single output first, and the literals' new numbers."""
    occurring = np.flatnonzero(np.bincount(used, minlength=len(forms))) if len(used) else np.empty(0, dtype=np.int64)
    # Single outputs in the order of the outputs: picking them is then a plain slice more often.
    chosen = sorted(occurring.tolist(), key=lambda i: (*_place(forms[i]), i))
    number = np.zeros(max(1, len(forms)), dtype=np.int32)
    number[chosen] = np.arange(len(chosen), dtype=np.int32)
    return tuple(forms[i] for i in chosen), number[used]


def _place(form: Form) -> tuple[bool, int]:
    single = not form.inputs and len(form.outputs) == 1
    return not single, form.outputs[0][0] if single else 0
