"""Random sampling and gradient search for the same requirements: what concolic generation is measured against."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from verifier.coverage.requirements import Condition, Requirements
from verifier.coverage.suite import Budget, Generated, Suite
from verifier.errors import InputError
from verifier.query import Query

_SLACK = 1e-3
_FIRST_STEP = 0.25
"""The first step of a descent as a share of the region's widths; the last one is a hundredth of it."""


def sampled(
    requirements: Requirements,
    inputs: np.ndarray,
    *,
    query: Query | None = None,
    budget: Budget = Budget(),  # noqa: B008 - a frozen value
    seed: int = 0,
    draws: int = 1,
) -> Iterator[Generated]:
    """Inputs that are uniformly distributed over the region, whatever they meet; of ``draws`` at a time the one that
    meets most open requirements (of equal ones the first). Raises ``InputError`` as ``concolic`` does."""
    if draws < 1:
        raise InputError(f"draws = {draws}: a whole number from 1 on is needed")
    return _samples(Suite(requirements, inputs, query, budget), np.random.default_rng(seed), draws)


def _samples(suite: Suite, generator: np.random.Generator, draws: int) -> Iterator[Generated]:
    domain = suite.requirements.domain
    low, high = domain.lower.astype(np.float64), domain.upper.astype(np.float64)
    while not suite.done:
        points = domain.moved(low + generator.random((draws, *low.shape)) * (high - low))
        values = suite.requirements.subject.values(points) if draws > 1 else {}
        news = [suite.news({n: v[k : k + 1] for n, v in values.items()}) for k in range(draws)] if draws > 1 else [0]
        best = int(np.argmax(news))
        found = suite.tried(points[best], "random", None, None, always=True)
        assert found is not None
        yield found


def descended(
    requirements: Requirements,
    inputs: np.ndarray,
    *,
    query: Query | None = None,
    budget: Budget = Budget(),  # noqa: B008 - a frozen value
    seed: int = 0,
) -> Iterator[Generated]:
    """As ``concolic``, with projected gradient descent (``budget.steps`` signed steps in float64, from long to short)
    in place of a program: from the nearest input, and from a random one where that fails. Raises ``InputError`` as
    ``concolic`` does."""
    return _descents(Suite(requirements, inputs, query, budget), np.random.default_rng(seed))


def _descents(suite: Suite, generator: np.random.Generator) -> Iterator[Generated]:
    requirements = suite.requirements
    low, high = (end.astype(np.float64) for end in (requirements.domain.lower, requirements.domain.upper))
    while not suite.done and (target := suite.nearest()) is not None:
        number, start, _ = target
        beside = suite.beside(start)
        condition = requirements.condition(number, beside.values, _SLACK)
        for first in (beside.point.astype(np.float64), low + generator.random(low.shape) * (high - low)):
            point = requirements.domain.moved(_descend(requirements, condition, first, suite.budget.steps))
            found = suite.tried(point, "gradient", number, start)
            if found is not None:
                yield found
            if suite.done or suite.covered[number]:
                break
        if not suite.covered[number]:
            suite.failed(number)


def _descend(requirements: Requirements, condition: Condition, first: np.ndarray, steps: int) -> np.ndarray:
    """The first point on the way that meets the condition, else the one that misses it least."""
    box, graph = requirements.domain.box, requirements.subject.graph
    x, width = torch.from_numpy(first)[None], box.upper - box.lower
    best, least = x, torch.inf
    for k in range(steps + 1):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            values = graph.values(x)
            violation = condition.violation({n: _flat(values[n]) for n in condition.nodes})
        if float(violation.detach()) < least:
            best, least = x.detach(), float(violation.detach())
        if least == 0 or k == steps:
            break
        (slope,) = torch.autograd.grad(violation.sum(), x)
        step = _FIRST_STEP * 10 ** (-2 * k / steps)
        x = (x.detach() - step * width * slope.sign()).clamp(box.lower, box.upper)
    return best[0].numpy()


def _flat(value: Tensor) -> Tensor:
    return value.flatten(1)
