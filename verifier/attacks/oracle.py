"""What an attack may ask of a model: its outputs at points, and where it can be differentiated, their gradients.

An oracle knows no attack and counts nothing; ``trial.Trial`` does. One runs the computation graph in torch, the other
an onnxruntime session, so that models with operators that are not differentiable here can be attacked too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bounds.graph import Graph
from verifier.attacks.search import cost
from verifier.attacks.straight_through import surrogate
from verifier.replay import open_session

_ELEMENTS = 6e7
"""Elements that the values of all nodes may take at once (about 0.25 GB in float32)."""


class Oracle(Protocol):
    """``outputs`` ``[P, n] -> [P, F]``; ``differentiable``: autograd may pass through it. ``rows``: the points of one
    evaluation at most."""

    @property
    def differentiable(self) -> bool:
        """Whether autograd may pass through ``outputs``."""

    @property
    def rows(self) -> int:
        """The points of one evaluation at most."""

    @property
    def device(self) -> torch.device:
        """Where the points have to be."""

    def outputs(self, points: Tensor) -> Tensor:
        """The flat outputs ``[P, F]`` at flat points ``[P, n]``, each point by itself."""


@dataclass(frozen=True, slots=True, eq=False)
class GraphOracle:
    """A graph with one input and one output, in the element type and on the device of its constants; jumps pass on
    gradients of smooth functions near them (``straight_through``)."""

    graph: Graph
    rows: int
    device: torch.device

    @staticmethod
    def of(graph: Graph, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> GraphOracle:
        """The oracle of a graph; ``dtype`` float32 or float64."""
        _, elements = cost(graph)
        place = torch.device(device)
        room = _ELEMENTS if place.type == "cpu" else 64 * _ELEMENTS
        return GraphOracle(surrogate(graph.to(dtype, place)), int(np.clip(room / elements, 1, 65536)), place)

    @property
    def differentiable(self) -> bool:
        """True: jumps have a surrogate."""
        return True

    def outputs(self, points: Tensor) -> Tensor:
        """See ``Oracle``."""
        shape = self.graph.nodes[self.graph.inputs[0]].shape
        return self.graph.evaluate(points.reshape(-1, *shape))[0].flatten(1)


@dataclass(frozen=True, slots=True, eq=False)
class SessionOracle:
    """An onnxruntime session with one input, asked for one output; models whose first dimension is fixed are run once
    a point."""

    session: Any
    input_name: str
    output_name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    batched: bool

    @staticmethod
    def of(model: bytes) -> SessionOracle:
        """Open a session on a model's bytes; symbolic dimensions but a leading one count as 1."""
        session = open_session(model)
        given, asked = session.get_inputs()[0], session.get_outputs()[0]
        shape = tuple(d if isinstance(d, int) and d > 0 else 1 for d in given.shape)
        batched = bool(given.shape) and not isinstance(given.shape[0], int)
        names = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}
        return SessionOracle(session, given.name, asked.name, shape, np.dtype(names[given.type]), batched)

    @property
    def differentiable(self) -> bool:
        """False: only outputs can be had."""
        return False

    @property
    def rows(self) -> int:
        """The points of one evaluation at most."""
        return 256 if self.batched else 1

    @property
    def device(self) -> torch.device:
        """The processor."""
        return torch.device("cpu")

    def outputs(self, points: Tensor) -> Tensor:
        """See ``Oracle``."""
        array = points.detach().numpy().astype(self.dtype)
        if self.batched:
            found = self.session.run([self.output_name], {self.input_name: array.reshape(-1, *self.shape[1:])})[0]
            flat = np.asarray(found).reshape(len(array), -1)
        else:
            runs = [self.session.run([self.output_name], {self.input_name: a.reshape(self.shape)})[0] for a in array]
            flat = np.stack([np.asarray(r).reshape(-1) for r in runs])
        return torch.from_numpy(flat.astype(np.promote_types(flat.dtype, np.float32))).to(points.dtype)
