"""From a request to a query, and from a counterexample to its text: what a worker does around the verification."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier.errors import InternalError, UnsupportedError

if TYPE_CHECKING:
    from verifier.network import Network
    from verifier.query import Query
    from verifier.verdict import Counterexample


def read_task(task: dict[str, Any]) -> Query:
    """The query that a request's ``task`` describes: ``kind`` is "property", "robustness" or "box".

    Raises ``InputError`` and ``UnsupportedError``.
    """
    match task["kind"]:
        case "property":
            from verifier.query import read

            networks = task["networks"]
            model = networks[""] if list(networks) == [""] else networks
            return read(model, task["property"], max_bytes=task["max_bytes"])
        case "robustness":
            return _ball(task)
        case "box":
            return _box(task)
        case kind:
            raise InternalError(f"unknown kind of task {kind!r}")


def write_witness(found: Counterexample, query: Query, folder: str | None) -> str:
    """The text of a counterexample in the property's version; with ``folder`` it is written there as tensor files
    and the text is empty."""
    from verifier.property.witness import format_witness, write_assignments

    if folder is None:
        return format_witness(query.specification, found)
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_assignments(query.specification, found, folder)
    return ""


def _ball(task: dict[str, Any]) -> Query:
    from verifier import arrays
    from verifier.regions import robustness

    network, shape = _network(task)
    point = arrays.read_point(task["input"], shape, task["max_bytes"] or arrays.MAX_BYTES)
    interval = None if task["data_range"] is None else tuple(task["data_range"])
    return robustness(network, point, task["epsilon"], task["norm"], task["label"], interval)


def _box(task: dict[str, Any]) -> Query:
    from verifier import arrays
    from verifier.regions import from_box

    network, _ = _network(task)
    lower, upper = arrays.read_box(task["box"], task["max_bytes"] or arrays.MAX_BYTES)
    return from_box(network, lower, upper, task["label"])


def _network(task: dict[str, Any]) -> tuple[Network, tuple[int, ...]]:
    """The model, with the normalisation in front where one is asked for, and the shape of its only input."""
    from verifier.network import read_network
    from verifier.regions import normalised

    limit = {} if task["max_bytes"] is None else {"max_bytes": task["max_bytes"]}
    network = read_network(task["networks"][""], **limit)
    if len(network.inputs) != 1:
        raise UnsupportedError(f"a region needs a model with one input; this one has {len(network.inputs)}")
    if task["mean"] is not None:
        network = normalised(network, task["mean"], task["std"])
    return network, network.inputs[0].shape
