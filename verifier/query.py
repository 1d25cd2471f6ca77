"""The query: one graph from a flat input to distinct scalar forms, and the cases as arrays.

Polarity (here and nowhere else): a property file describes the *counterexample*.

    Unsafe: some box, some clause of that box, some x in the box, with every literal of the clause true.

A literal is ``sign * (form(x) - rhs) <= 0`` (``< 0`` where strict): sign +1 for ``form <= rhs``, -1 for
``form >= rhs``. It is refuted on a set where ``lower(sign * form) > sign * rhs``; a clause is refuted when one of its
literals is, or some non-negative combination of them; the property holds (``unsat``) when all clauses are refuted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from bounds.graph import Graph
    from verifier.network import Network


@dataclass(frozen=True, slots=True)
class Variable:
    """A declared tensor: its name in the property, element type ("float32", ...), shape, and place in the flat
    vector ``[start, start + size)`` of all inputs (or of all outputs)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Form:
    """An exact affine form of the flat outputs and flat inputs: ``sum c_i y_i + sum d_j x_j``."""

    outputs: tuple[tuple[int, Fraction], ...]
    inputs: tuple[tuple[int, Fraction], ...] = ()


@dataclass(frozen=True, slots=True)
class NetworkDeclaration:
    """A network as a property declares it: its tensors in order, and the ONNX names given to them ("": none).

    ``equal_to`` names the network whose model it shares, ``isomorphic_to`` one of the same structure. VNN-LIB 1.0
    declares one network without a name.
    """

    name: str
    inputs: tuple[Variable, ...]
    outputs: tuple[Variable, ...]
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    equal_to: str = ""
    isomorphic_to: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Specification:
    """A property by itself, exact, without a network: numbers are indices into ``constants``, which ascend.

    M boxes over n flat inputs; K clauses sorted by box (``clauses_of[m]:clauses_of[m+1]`` are box m's); L literals
    (``literals_of[k]:literals_of[k+1]`` are clause k's). ``lower``/``upper`` ``[M, n]``: indices of exact bounds.
    A clause with no literals is true everywhere in its box. ``refuted`` counts the clauses that were left out because
    they are false by exact arithmetic alone (an empty box, a false comparison of numbers); ``notes`` says so. With
    M = 0 nothing is left: the property holds. Forms of a single output come first (``single_forms`` of them).
    """

    constants: Sequence[Fraction]
    lower: np.ndarray
    upper: np.ndarray
    clauses_of: np.ndarray
    literals_of: np.ndarray
    form: np.ndarray
    sign: np.ndarray
    rhs: np.ndarray
    strict: np.ndarray
    forms: tuple[Form, ...]
    inputs: tuple[Variable, ...]
    outputs: tuple[Variable, ...]
    version: str = "1.0"
    networks: tuple[NetworkDeclaration, ...] = ()
    refuted: int = 0
    notes: tuple[str, ...] = ()

    @property
    def single_forms(self) -> int:
        """How many of the first forms are one output with coefficient 1."""
        single = [len(f.outputs) == 1 and not f.inputs and f.outputs[0][1] == 1 for f in self.forms]
        return single.index(False) if False in single else len(single)


@dataclass(frozen=True, slots=True, eq=False)
class Cases:
    """The specification in floating point, each number on its safe side.

    ``lower, upper`` ``[M, n]`` float64 contain the exact box (after widening). ``inner_lower, inner_upper`` ``[M, n]``
    are the ends of the same set in the model's dtype: a vector of that dtype lies in the set exactly where it lies
    between them. ``varying`` ``[M, n]``: exact lower < exact upper; only these are ever split. ``form, sign`` ``[L]``
    and the CSR pointers as in ``Specification``. ``threshold`` ``[L]`` float64: at least ``sign * rhs`` (refuted
    where ``lower(sign * form) > threshold``).
    """

    lower: np.ndarray
    upper: np.ndarray
    inner_lower: np.ndarray
    inner_upper: np.ndarray
    varying: np.ndarray
    clauses_of: np.ndarray
    literals_of: np.ndarray
    form: np.ndarray
    sign: np.ndarray
    threshold: np.ndarray
    strict: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """One network of a query for onnxruntime: the ONNX bytes, and its tensors under their ONNX names, with their own
    shapes and element types, placed in the flat vectors of all inputs and of all outputs."""

    name: str
    onnx: bytes
    inputs: tuple[Variable, ...]
    outputs: tuple[Variable, ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Query:
    """A question for ``verify``.

    ``graph``: one flat input ``[n]`` to one output ``[F]`` of forms. ``specification`` is the exact property (replay
    evaluates it), ``cases`` its arrays, ``model`` the ONNX bytes of the first network and ``models`` all of them in the
    order of their declaration, ``notes`` what every verdict must repeat ("176 of 400 inputs widened, by at most
    1.2e-7"). ``order_only``: the graph leaves out a last activation that does not change the order of the outputs.
    """

    graph: Graph
    cases: Cases
    specification: Specification
    model: bytes
    notes: tuple[str, ...] = ()
    source: Path | None = None
    models: tuple[Model, ...] = ()
    order_only: bool = False

    def __repr__(self) -> str:
        inputs = sum(v.size for m in self.models for v in m.inputs)
        boxes, clauses = len(self.cases.lower), len(self.cases.literals_of) - 1
        return f"<Query: {inputs} inputs, {len(self.specification.forms)} forms, {boxes} boxes, {clauses} clauses>"


def read(
    model: str | Path | Mapping[str, str | Path],
    property_file: str | Path,
    *,
    max_bytes: int | None = None,
    max_clauses: int | None = None,
    dims: Mapping[str, int] | None = None,
) -> Query:
    """Read a model and a VNN-LIB property (plain or gzip each) into a query.

    ``model`` is a path, or paths by the names of the networks that the property declares. ``max_bytes`` limits each
    decompressed file, ``max_clauses`` the clauses after multiplying out, ``dims`` gives symbolic dimensions sizes.
    Raises ``InputError`` for files that are wrong or do not fit together, ``UnsupportedError`` for what is not covered.
    """
    from verifier import property as reader
    from verifier.network import read_network

    specification = reader.read_property(
        property_file,
        max_bytes=reader.MAX_BYTES if max_bytes is None else max_bytes,
        max_clauses=reader.MAX_CLAUSES if max_clauses is None else max_clauses,
    )
    paths = model if isinstance(model, Mapping) else {"": model}
    options: dict[str, Any] = {} if max_bytes is None else {"max_bytes": max_bytes}
    networks = {name: read_network(path, dims=dims, **options) for name, path in paths.items()}
    return build_query(networks, specification, source=Path(property_file))


def build_query(
    networks: Mapping[str, Network] | Network,
    specification: Specification,
    *,
    source: Path | None = None,
    notes: Sequence[str] = (),
) -> Query:
    """The query for networks that were read and an exact property.

    A single network needs no name. Raises ``InputError`` where they do not fit (it says both sizes), and
    ``UnsupportedError`` for element types that are not floating point.
    """
    from verifier.assembly import assemble
    from verifier.cases import float_cases
    from verifier.matching import match_networks
    from verifier.network.normalise import without_increasing_end

    given = networks if isinstance(networks, Mapping) else {"": networks}
    models, chosen = match_networks(given, specification)
    inputs = [v for m in models for v in m.inputs]
    cases, widened = float_cases(specification, inputs)
    size = sum(v.size for v in inputs)
    graphs, order_only = [n.graph for n in chosen], False
    if len(graphs) == 1 and len(models[0].outputs) == 1 and _only_order(specification):
        ordered = without_increasing_end(graphs[0])
        order_only = ordered.outputs != graphs[0].outputs
        if order_only:
            notes = ("only the order of the outputs matters: margins are those before the last activation", *notes)
        graphs = [ordered]
    graph = assemble(models, graphs, specification.forms, size)
    notes = (*specification.notes, *widened, *_consent(specification), *notes)
    return Query(graph, cases, specification, models[0].onnx, notes, source, models, order_only)


def _only_order(specification: Specification) -> bool:
    """Whether every literal compares two outputs with each other: ``c (y_i - y_j)`` with 0."""
    differences = all(len(f.outputs) == 2 and not f.inputs and sum(c for _, c in f.outputs) == 0
                      for f in specification.forms)  # fmt: skip
    return differences and all(specification.constants[i] == 0 for i in np.unique(specification.rhs))


def _consent(specification: Specification) -> tuple[str, ...]:
    """A note where the property declares a machine type: what is proven is proven for real numbers."""
    declared = {v.dtype for v in (*specification.inputs, *specification.outputs)} - {"real"}
    if specification.version.startswith("1") or not declared:
        return ()
    return (f"declared as {', '.join(sorted(declared))}: a proof holds for exact arithmetic over the stored weights",)
