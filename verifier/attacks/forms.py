"""A property on a model that only onnxruntime can run: its forms, computed from the outputs of a session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from verifier.attacks.oracle import Oracle
from verifier.attacks.problems import of_cases
from verifier.attacks.session import SessionOracle
from verifier.attacks.trial import Problem
from verifier.cases import float_cases
from verifier.errors import InputError
from verifier.query import Specification


@dataclass(frozen=True, slots=True, eq=False)
class FormsOracle:
    """Affine forms of an oracle's outputs and points: ``outputs @ of_outputs + points @ of_inputs`` in float64."""

    model: Oracle
    of_outputs: Tensor
    of_inputs: Tensor

    @property
    def differentiable(self) -> bool:
        """As the model's."""
        return self.model.differentiable

    @property
    def rows(self) -> int:
        """As the model's."""
        return self.model.rows

    @property
    def device(self) -> torch.device:
        """As the model's."""
        return self.model.device

    def outputs(self, points: Tensor) -> Tensor:
        """See ``Oracle``. Raises ``InputError`` where the model has another number of outputs."""
        found = self.model.outputs(points).double()
        if found.shape[1] != len(self.of_outputs):
            raise InputError(
                f"the property does not fit the model: it declares {len(self.of_outputs)} outputs, the model has "
                f"{found.shape[1]}"
            )
        return found @ self.of_outputs + points.double() @ self.of_inputs


def of_specification(oracle: SessionOracle, specification: Specification) -> Problem:
    """The clauses of a property on a model of one input and one output, each an example in its box. Raises
    ``InputError`` where their sizes differ."""
    given, asked = (sum(v.size for v in side) for side in (specification.inputs, specification.outputs))
    if given != oracle.size:
        raise InputError(
            f"the property does not fit the model: it declares {given} inputs, the model has {oracle.size}"
        )
    typed = [replace(v, dtype=oracle.dtype.name) for v in specification.inputs]
    cases, _ = float_cases(specification, typed)
    forms = FormsOracle(
        oracle, _matrix([f.outputs for f in specification.forms], asked),
        _matrix([f.inputs for f in specification.forms], given),
    )  # fmt: skip
    return of_cases(cases, forms)


def _matrix(rows: Sequence[Sequence[tuple[int, Fraction]]], size: int) -> Tensor:
    """``[size, len(rows)]``: the coefficients, each rounded to the nearest float64."""
    matrix = np.zeros((size, len(rows)))
    for k, row in enumerate(rows):
        for i, coefficient in row:
            matrix[i, k] = float(coefficient)
    return torch.from_numpy(matrix)
