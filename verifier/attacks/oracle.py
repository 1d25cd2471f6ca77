"""What an attack may ask of a model: its outputs at points, and where it can be differentiated, their gradients.

An oracle knows no attack and counts nothing; ``trial.Trial`` does. The one here runs the computation graph in torch;
``session.SessionOracle`` runs onnxruntime, so that models with operators that cannot be read are attacked too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bounds.box import Box
from bounds.graph import Graph
from verifier.attacks.search import cost
from verifier.attacks.straight_through import surrogate

ELEMENTS = 6e7
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
    def of(
        graph: Graph,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        box: Box | None = None,
    ) -> GraphOracle:
        """The oracle of a graph; ``dtype`` float32 or float64. ``box``: where points will lie, for ``surrogate``."""
        _, elements = cost(graph)
        place = torch.device(device)
        room = ELEMENTS if place.type == "cpu" else 64 * ELEMENTS
        return GraphOracle(surrogate(graph.to(dtype, place), box), int(np.clip(room / elements, 1, 65536)), place)

    @property
    def differentiable(self) -> bool:
        """True: jumps have a surrogate."""
        return True

    def outputs(self, points: Tensor) -> Tensor:
        """See ``Oracle``."""
        shape = self.graph.nodes[self.graph.inputs[0]].shape
        return self.graph.evaluate(points.reshape(-1, *shape))[0].flatten(1)
