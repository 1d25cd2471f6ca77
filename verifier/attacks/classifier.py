"""A classifier as attacks see it: its class at points by onnxruntime, and oracles to search with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bounds.graph import Graph
from verifier.attacks.oracle import GraphOracle, Oracle
from verifier.attacks.session import SessionOracle
from verifier.errors import InputError, UnsupportedError, UnsupportedModelError
from verifier.network import Network, read_network
from verifier.network.files import load_model
from verifier.paths import existing_file
from verifier.regions import Number, normalised


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """``graph``: None where an operator cannot be read (then ``why`` says which); ``session`` answers for onnxruntime,
    whose word counts. ``shape``: of the model's input."""

    graph: Graph | None
    session: SessionOracle
    classes: int
    why: str = ""

    @staticmethod
    def of(
        model: str | Path | bytes | Network,
        mean: Number | Sequence[Number] | None = None,
        std: Number | Sequence[Number] | None = None,
    ) -> Classifier:
        """Read a model with one input and one output of at least two classes; ``mean`` and ``std`` put a normalisation
        in front of it. A model with operators that are not supported can be asked, though not differentiated. Raises
        ``InputError`` and ``UnsupportedError``."""
        if (mean is None) != (std is None):
            raise InputError("mean and std belong together")
        try:
            network = read_network(model) if isinstance(model, str | Path | bytes) else model
            network = network if mean is None or std is None else normalised(network, mean, std)
            graph, data, why = network.graph, network.model, ""
            if len(network.inputs) != 1 or len(network.outputs) != 1:
                raise UnsupportedError(
                    f"a classifier has one input and one output; this model has {len(network.inputs)} and "
                    f"{len(network.outputs)}"
                )
            if not graph.variable[graph.outputs[0]]:
                raise InputError("the model's output does not depend on its input: no change reaches another class")
            _check_one_input(graph)
        except UnsupportedModelError as error:
            if mean is not None or isinstance(model, Network):
                raise
            source = model if isinstance(model, bytes) else existing_file(model, ".onnx")
            graph, data, why = None, load_model(source)[0].SerializeToString(), str(error)
        session = SessionOracle.of(data).whole()
        if session.dtype == np.float16:
            raise UnsupportedError("an attack on classes takes models of float and double inputs, not of float16")
        size = int(np.prod(session.shape))
        outputs = session.outputs(torch.zeros((1, size), dtype=torch.float64 if _wide(session) else torch.float32))
        if outputs.shape[1] < 2:
            raise InputError("an attack on classes needs a model with at least two outputs")
        return Classifier(graph, session, outputs.shape[1], why)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the model's input."""
        return self.session.input_shape

    @property
    def dtype(self) -> type[np.floating]:
        """Of the model's input."""
        return np.float64 if _wide(self.session) else np.float32

    def oracle(self, device: torch.device | str = "cpu") -> Oracle:
        """What gradients come from; the session where there are none."""
        wide = torch.float64 if _wide(self.session) else torch.float32
        return self.session if self.graph is None else GraphOracle.of(self.graph, wide, device)

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Outputs ``[N, classes]`` at points ``[N, n]`` by onnxruntime, each run by itself as in a replay: with
        several threads the last digits of several run at once are others."""
        return np.concatenate([self.session.values(x[k : k + 1]) for k in range(len(x))])


def _check_one_input(graph: Graph) -> None:
    """Refuse the outputs of a batch that the model fixes: they would be taken for the classes of one input."""
    given, out = (graph.nodes[ends[0]].shape for ends in (graph.inputs, graph.outputs))
    if len(given) > 1 and len(out) > 1 and out[0] == given[0] > 1:
        raise UnsupportedError(
            f"the model takes {out[0]} inputs at once, in all {list(given)}: export it for 1, or any number"
        )


def best_other(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The class ``[N]`` with the greatest of the scores ``[N, classes]`` that are not the label's."""
    others = scores.astype(np.float64, copy=True)
    others[np.arange(len(labels)), labels] = -np.inf
    found: np.ndarray = others.argmax(1)
    return found


def lead(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """By how much each label's score ``[N]`` is above the greatest of the others (NaN where scores are): another class
    has been reached exactly where it is at most 0."""
    every, wide = np.arange(len(labels)), scores.astype(np.float64)
    found: np.ndarray = wide[every, labels] - wide[every, best_other(scores, labels)]
    return found


def _wide(session: SessionOracle) -> bool:
    return session.dtype == np.float64
