"""Small mixed-integer programs: from dense rows, at random, and of small ReLU networks with big-M rows.

With what to compare: the safe bound of multipliers in fractions, the minimum over every choice of the whole numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import highspy
import numpy as np
import torch
from torch import Tensor

from milp.model import Model, Solution, Status


def program(
    cost: Tensor,
    rows: Tensor,
    sides: tuple[Tensor, Tensor],
    ends: tuple[Tensor, Tensor],
    integer: Tensor | None = None,
    offset: float = 0.0,
) -> Model:
    """The model with these dense rows ``[R, C]``; zeros are no entries; no row errors."""
    row, index = rows.nonzero(as_tuple=True)
    columns = cost.shape[0]
    return Model(
        cost=cost,
        offset=offset,
        start=torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(row, minlength=rows.shape[0]).cumsum(0)]),
        index=index,
        value=rows[row, index],
        row_lower=sides[0],
        row_upper=sides[1],
        row_error=torch.zeros_like(sides[0]),
        lower=ends[0],
        upper=ends[1],
        integer=torch.zeros(columns, dtype=torch.bool) if integer is None else integer,
        node=torch.zeros(columns, dtype=torch.int64),
        element=torch.arange(columns),
        columns={0: torch.arange(columns)},
    )


def random_program(seed: int, integers: int = 5, reals: int = 4, rows: int = 6) -> Model:
    """Rows through a neighbourhood of a point, some sides infinite; for odd seeds a narrow one of a point whose values
    are not whole, so that there may be no solution."""
    draw = torch.Generator().manual_seed(seed)
    columns = integers + reals

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    matrix = normal(rows, columns) * (torch.rand((rows, columns), generator=draw) < 0.7)
    integer = torch.arange(columns) < integers
    upper = torch.where(integer, torch.randint(1, 3, (columns,), generator=draw).double(), 2.0)
    lower = torch.where(integer, torch.randint(-1, 1, (columns,), generator=draw).double(), -1.0)
    center = matrix @ torch.where(integer, (normal(columns) > 0).double() - seed % 2 / 2, normal(columns) / 2)
    width = normal(2, rows).abs() / (400 if seed % 2 else 2)
    low, high = center - width[0], center + width[1]
    low[::3], high[1::3] = -torch.inf, torch.inf
    return program(normal(columns), matrix, (low, high), (lower, upper), integer, float(normal(1)))


def exact_bound(model: Model, dual: Tensor, lower: Tensor, upper: Tensor) -> Fraction:
    """The safe bound of multipliers in exact arithmetic; they and the ends must be finite."""
    total = Fraction(model.offset)
    reduced = [Fraction(c) for c in model.cost.tolist()]
    start = model.start.tolist()
    for i, y in enumerate(Fraction(y) for y in dual.tolist()):
        low, high, error = (float(end[i]) for end in (model.row_lower, model.row_upper, model.row_error))
        side = low if y > 0 else high
        if y == 0 or math.isinf(side):
            continue
        total += y * Fraction(side) - abs(y) * Fraction(error)
        for entry in range(start[i], start[i + 1]):
            reduced[int(model.index[entry])] -= y * Fraction(float(model.value[entry]))
    ends = zip(lower.tolist(), upper.tolist(), strict=True)
    return total + sum(min(d * Fraction(l), d * Fraction(u)) for d, (l, u) in zip(reduced, ends, strict=True))


class PlainSimplex:
    """The linear relaxation of a model by HiGHS, warm from one call to the next."""

    def __init__(self, model: Model) -> None:
        self.solver, self.model, self.calls = highspy.Highs(), model, 0
        self.solver.setOptionValue("output_flag", False)
        self.solver.setOptionValue("presolve", "off")
        program = highspy.HighsLp()
        program.num_col_, program.num_row_ = model.cost.shape[0], model.row_lower.shape[0]
        program.col_cost_, program.offset_ = model.cost.numpy(), model.offset
        program.col_lower_, program.col_upper_ = model.lower.numpy(), model.upper.numpy()
        program.row_lower_, program.row_upper_ = model.row_lower.numpy(), model.row_upper.numpy()
        program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        program.a_matrix_.start_ = model.start.numpy()
        program.a_matrix_.index_, program.a_matrix_.value_ = model.index.numpy(), model.value.numpy()
        self.solver.passModel(program)

    def solve(self, lower: Tensor, upper: Tensor) -> Solution:
        """For these column ends."""
        self.calls += 1
        columns = np.arange(lower.shape[0], dtype=np.int32)
        self.solver.changeColsBounds(len(columns), columns, lower.numpy(), upper.numpy())
        self.solver.run()
        status = self.solver.getModelStatus()
        if status == highspy.HighsModelStatus.kOptimal:
            found = self.solver.getSolution()
            x, dual = (torch.tensor(list(v), dtype=torch.float64) for v in (found.col_value, found.row_dual))
            value = self.solver.getInfo().objective_function_value
            return Solution(Status.OPTIMAL, value, value, x, dual)
        if status == highspy.HighsModelStatus.kInfeasible:
            _, there, ray = self.solver.getDualRay()
            dual = torch.tensor(ray) if there else None
            return Solution(Status.INFEASIBLE, math.inf, math.inf, None, dual)
        return Solution(Status.FAILED, math.inf, -math.inf, reason=str(status))


def least(model: Model) -> float:
    """The minimum over every choice of the whole numbers, each a linear program of its own (inf: no point)."""
    whole = model.integer.nonzero().flatten()
    ranges = [range(int(model.lower[j]), int(model.upper[j]) + 1) for j in whole.tolist()]
    best, solver = math.inf, PlainSimplex(model)
    for choice in itertools.product(*ranges):
        lower, upper = model.lower.clone(), model.upper.clone()
        lower[whole] = upper[whole] = torch.tensor(choice, dtype=torch.float64)
        best = min(best, solver.solve(lower, upper).value)
    return best


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A chain of affine layers with ReLUs between them, one output, on the box [-1, 1]^n."""

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]

    @staticmethod
    def random(seed: int, sizes: Sequence[int], spread: float = 1.0) -> Network:
        """Gaussian weights with two summands' variance in all."""
        draw = torch.Generator().manual_seed(seed)
        pairs = list(itertools.pairwise([*sizes, 1]))
        weights = [torch.randn((n, m), generator=draw, dtype=torch.float64) * spread * (2 / m) ** 0.5 for m, n in pairs]
        return Network(weights, [torch.randn(n, generator=draw, dtype=torch.float64) / 4 for _, n in pairs])

    def __call__(self, x: Tensor) -> float:
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = (weight @ x + bias).clamp(min=0)
        return float(self.weights[-1] @ x + self.biases[-1])

    def model(self) -> Model:
        """Minimise the output: every neuron with big-M rows from interval bounds, stable ones with a fixed phase.

        Columns: inputs, then for each hidden layer its activations and its phases."""
        low, high = (torch.full((self.weights[0].shape[1],), end, dtype=torch.float64) for end in (-1.0, 1.0))
        width = low.shape[0] + 2 * sum(b.shape[0] for b in self.biases[:-1])
        lower, upper, integer = [low], [high], [torch.zeros(low.shape[0], dtype=torch.bool)]
        rows, sides, before, first = [], [], slice(0, low.shape[0]), low.shape[0]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            n, middle, radius = bias.shape[0], (low + high) / 2, (high - low) / 2
            reach = weight.abs() @ radius + 1e-9
            l, u = (weight @ middle + bias - reach).clamp(max=0), (weight @ middle + bias + reach).clamp(min=0)
            own, phase = slice(first, first + n), slice(first + n, first + 2 * n)
            for terms, low_side, high_side in (
                (((own, 1.0), (before, -weight)), bias, None),  # y >= z
                (((own, 1.0), (phase, -u)), None, torch.zeros(n)),  # y <= u phase
                (((own, 1.0), (before, -weight), (phase, -l)), None, bias - l),  # y <= z - l (1 - phase)
            ):
                block = torch.zeros((n, width), dtype=torch.float64)
                for columns, value in terms:
                    value = torch.as_tensor(value, dtype=torch.float64)
                    block[:, columns] = value if value.dim() == 2 else torch.diag(value.expand(n))
                rows.append(block)
                low_side = torch.full((n,), -torch.inf) if low_side is None else low_side
                high_side = torch.full((n,), torch.inf) if high_side is None else high_side
                sides.append((low_side, high_side))
            lower += [torch.zeros(n), (l >= 0).double()]
            upper += [u, (u > 0).double()]
            integer += [torch.zeros(n, dtype=torch.bool), torch.ones(n, dtype=torch.bool)]
            low, high, before, first = torch.zeros(n, dtype=torch.float64), u, own, first + 2 * n
        cost = torch.zeros(width, dtype=torch.float64)
        cost[before] = self.weights[-1][0]
        made = program(
            cost,
            torch.cat(rows),
            (torch.cat([s for s, _ in sides]).double(), torch.cat([s for _, s in sides]).double()),
            (torch.cat(lower).double(), torch.cat(upper).double()),
            torch.cat(integer),
            float(self.biases[-1]),
        )
        return replace(made, row_error=torch.full_like(made.row_lower, 1e-12))
