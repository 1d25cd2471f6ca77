"""What onnxruntime says of an input that another class wins in exact arithmetic.

The nearest such input lies where two classes meet, so that rounding alone, of the input and of the network, decides
what a runtime returns there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnxruntime

from verifier.cases import dtype_of
from verifier.network import Network
from verifier.replay import open_session


@dataclass(frozen=True, slots=True)
class Confirmation:
    """At the input, rounded to the model's element type ``dtype``, this ``version`` of onnxruntime returns the class
    ``label``, and the label that was asked about is ahead of all others by ``lead`` (at most 0: ``reached``)."""

    version: str
    dtype: str
    label: int
    lead: float

    @property
    def reached(self) -> bool:
        """Whether some other class scores at least as much there too."""
        return self.lead <= 0


def confirm(network: Network, point: np.ndarray, label: int) -> Confirmation:
    """Run a network of one input and one output on a ``point`` of as many elements as its input."""
    variable = network.inputs[0]
    dtype = np.dtype(dtype_of(variable))
    feed = {variable.name: point.astype(dtype).reshape(variable.shape)}
    scores = open_session(network.model).run([network.outputs[0].name], feed)[0].reshape(-1).astype(np.float64)
    lead = scores[label] - np.delete(scores, label).max()
    return Confirmation(onnxruntime.__version__, dtype.name, int(scores.argmax()), float(lead))
