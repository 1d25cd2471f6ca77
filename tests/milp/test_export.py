"""Models as files and as PuLP problems: every number survives, names are unique and safe, errors teach."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import highspy
import pulp
import pytest
import torch

from bounds.graph import Graph, Input, Node
from bounds.ops.relu import Relu
from milp.export import to_pulp, write
from milp.model import Model
from milp.names import readable_names

# Doubles that few digits do not hold, subnormal ones, and those at the edge of what a reader may round.
HARD = (1 / 3, 0.1 + 0.2, -1.0000000000000002, 4.000000000000001e-7, -123456789.12345679, 2**-20 + 2**-60, 5e-324)


def a_model(seed: int = 0, columns: int = 6) -> Model:
    """Rows of every kind over hard numbers: two sides, one, none, equal ones, and a row without entries."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    value = random(6, columns)
    value[0, :3] = torch.tensor(HARD[2:5])
    value[1, 1] = HARD[5]
    inf = math.inf
    return Model(
        cost=random(columns).index_fill(0, torch.tensor([1]), 0.0),
        offset=HARD[1],
        start=torch.tensor([0, *(columns * k for k in range(1, 7)), columns * 6]),
        index=torch.arange(columns).repeat(6),
        value=value.flatten(),
        row_lower=torch.tensor([-HARD[0] - 9, -inf, 0.1, -0.7 - 9, -inf, HARD[6], -1.0], dtype=torch.float64),
        row_upper=torch.tensor([inf, HARD[0] + 9, 0.1, 0.9, inf, HARD[0] + 9, 1.0], dtype=torch.float64),
        row_error=torch.zeros(7, dtype=torch.float64),
        lower=random(columns).abs().neg().index_fill(0, torch.tensor([3]), 0.25),
        upper=random(columns).abs().index_fill(0, torch.tensor([3]), 0.25),
        integer=torch.arange(columns) >= columns - 2,
        node=torch.tensor([0, 0, 1, 1, 1, -1]),
        element=torch.tensor([0, 1, 0, 1, -1, -1]),
        columns={},
    )


Entries = dict[tuple[str, str], float]


def expected(model: Model) -> tuple[Entries, dict[str, tuple[float, float]]]:
    """Entries by row and column, and the sides of rows, as they are to be found in a file."""
    names = readable_names(model)
    entries: Entries = {}
    sides = {}
    for r, name in enumerate(names.rows):
        low, high = float(model.row_lower[r]), float(model.row_upper[r])
        parts = [(name, low, high)]
        if low != high and math.isfinite(low) and math.isfinite(high):
            parts = [(name, low, math.inf), (f"{name}.upper", -math.inf, high)]
        for part, a, b in parts:
            if math.isfinite(a) or math.isfinite(b):
                sides[part] = (a, b)
                for e in range(int(model.start[r]), int(model.start[r + 1])):
                    entries[part, names.columns[int(model.index[e])]] = float(model.value[e])
    return entries, sides


def read_by_highs(path: Path) -> highspy.HighsLp:
    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    assert highs.readModel(str(path)) == highspy.HighsStatus.kOk
    return highs.getLp()


@pytest.mark.parametrize("ending", [".lp", ".mps"])
def test_highs_reads_the_very_numbers(ending: str, tmp_path: Path) -> None:
    model, path = a_model(), tmp_path / f"model{ending}"
    write(model, path, comment="two\nlines")
    found = read_by_highs(path)
    names = readable_names(model)
    # The order of an .lp file is that of the first occurrence.
    place = [found.col_names_.index(name) for name in (*names.columns, "constant")]
    assert sorted(place) == list(range(found.num_col_))
    assert [found.col_cost_[k] for k in place] == [*model.cost.tolist(), model.offset] and found.offset_ == 0
    assert [found.col_lower_[k] for k in place] == [*model.lower.tolist(), 1.0]
    assert [found.col_upper_[k] for k in place] == [*model.upper.tolist(), 1.0]
    whole = [found.integrality_[k] == highspy.HighsVarType.kInteger for k in place]
    assert whole == [*model.integer.tolist(), False]
    entries, sides = expected(model)
    ends = zip(found.row_lower_, found.row_upper_, strict=True)
    assert dict(zip(found.row_names_, ends, strict=True)) == sides
    matrix = found.a_matrix_
    read = {
        (found.row_names_[matrix.index_[e]], found.col_names_[c]): matrix.value_[e]
        for c in range(found.num_col_)
        for e in range(matrix.start_[c], matrix.start_[c + 1])
    }
    assert {key: value for key, value in read.items() if value} == entries


def test_pulp_reads_the_very_numbers(tmp_path: Path) -> None:
    model, path = a_model(1), tmp_path / "model.MPS"
    write(model, path)
    _, read = pulp.LpProblem.fromMPS(str(path))
    compare_with_pulp(model, read, constant=True)


def test_as_a_pulp_problem() -> None:
    model = a_model(2)
    compare_with_pulp(model, to_pulp(model), constant=False)


def compare_with_pulp(model: Model, problem: pulp.LpProblem, constant: bool) -> None:
    """Equal in every number; ``constant``: the objective's constant is the cost of a fixed column."""
    names, entries, sides = readable_names(model), *expected(model)
    cost = {v.name: c for v, c in problem.objective.items() if c}
    wanted = {name: c for name, c in zip(names.columns, model.cost.tolist(), strict=True) if c}
    assert cost == wanted | ({"constant": model.offset} if constant else {})
    assert problem.objective.constant == (0 if constant else model.offset) and problem.sense == pulp.LpMinimize
    variables = {v.name: (v.lowBound, v.upBound, v.cat == "Integer") for v in problem.variables()}
    ends = zip(names.columns, model.lower.tolist(), model.upper.tolist(), model.integer.tolist(), strict=True)
    wanted_variables = {name: (low, high, whole) for name, low, high, whole in ends}
    if constant:
        wanted_variables["constant"] = (1.0, 1.0, False)
    assert variables == wanted_variables
    found: Entries = {}
    found_sides = {}
    for row in problem.constraints():
        side = -row.constant
        found_sides[row.name] = {-1: (-math.inf, side), 1: (side, math.inf), 0: (side, side)}[row.sense]
        found |= {(row.name, v.name): c for v, c in row.items()}
    assert found == entries and found_sides == sides


HOSTILE = (
    "", " ", "/features/relu 3/Relu_output_0", "a.1", "a", "a_1", "1e5", "e1", "E9", "e", "inf", "Infinity", "nano",
    "free", "st", "end", "bin", "minimize", "s.t.", "RHS", "ROWS", "<x>=[2]*^", "Größe", "\n* x", "\\ c",
    "x" * 300, "y" + "x" * 300, "constant", "objective", "n_1e5",
)  # fmt: skip


def hostile() -> tuple[Model, Graph]:
    """One column for each of two elements of nodes with names that were never meant for such files, and rows."""
    shape = (2,)
    nodes = [Node(0, Input(), (), shape, HOSTILE[0])]
    nodes += [Node(k, Relu(), (k - 1,), shape, name) for k, name in enumerate(HOSTILE) if k]
    count = 2 * len(nodes)
    model = Model(
        cost=torch.arange(1, count + 1, dtype=torch.float64),
        offset=0.5,
        start=2 * torch.arange(count),
        index=torch.stack([torch.arange(count - 1), torch.arange(1, count)], 1).flatten(),
        value=torch.arange(1, 2 * count - 1, dtype=torch.float64) / 7,
        row_lower=torch.full((count - 1,), -math.inf, dtype=torch.float64),
        row_upper=torch.full((count - 1,), 1000.0, dtype=torch.float64),
        row_error=torch.zeros(count - 1, dtype=torch.float64),
        lower=torch.full((count,), -1.0, dtype=torch.float64),
        upper=torch.full((count,), 2.0, dtype=torch.float64),
        integer=torch.arange(count) % 2 == 1,
        node=torch.arange(count) // 2,
        element=torch.arange(count) % 2,
        columns={},
    )
    return model, Graph(tuple(nodes), (0,), (len(nodes) - 1,), {})


def test_hostile_names_are_made_safe_and_stay_apart(tmp_path: Path) -> None:
    model, graph = hostile()
    names = readable_names(model, graph)
    assert len({*names.columns, *names.rows}) == len(names.columns) + len(names.rows)
    for name in (*names.columns, *names.rows):
        assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*(\.[a-z0-9]+)+", name) and len(name) <= 80, name
    assert names.columns[:2] == ("input_0.0", "input_0.1") and "features_relu_3_Relu_output_0.1" in names.columns
    for ending in (".lp", ".mps"):
        write(model, path := tmp_path / f"hostile{ending}", graph, comment="st\nend\nENDATA\n\xe4")
        found = read_by_highs(path)
        assert {*found.col_names_} == {*names.columns, "constant"} and found.row_names_ == [*names.rows]
        cost = dict(zip(found.col_names_, found.col_cost_, strict=True))
        assert [cost[name] for name in names.columns] == model.cost.tolist()
        assert sum(k == highspy.HighsVarType.kInteger for k in found.integrality_) == len(HOSTILE)
    _, read = pulp.LpProblem.fromMPS(str(path))
    assert {row.name for row in read.constraints()} == {*names.rows}


def test_phases_and_rows_are_called_after_the_element_that_they_describe() -> None:
    """Two unstable ReLUs out of three: x, y (element 1 shares x's column) and phases of the elements 0 and 2."""
    model = Model(
        cost=torch.zeros(8),
        offset=0.0,
        start=torch.tensor([0, 2, 5, 8, 9]),
        index=torch.tensor([0, 3, 0, 3, 5, 2, 4, 6, 7]),
        value=torch.ones(9),
        row_lower=torch.zeros(4),
        row_upper=torch.ones(4),
        row_error=torch.zeros(4),
        lower=torch.zeros(8),
        upper=torch.ones(8),
        integer=torch.tensor([0, 0, 0, 0, 0, 1, 1, 0]).bool(),
        node=torch.tensor([0, 0, 0, 1, 1, 1, 1, -1]),
        element=torch.tensor([0, 1, 2, 0, 2, -1, -2, -1]),
        columns={},
    )
    nodes = (Node(0, Input(), (), (3,), "x"), Node(1, Relu(), (0,), (3,), ""))
    names = readable_names(model, Graph(nodes, (0,), (1,), {}), {7: "margin of a clause"})
    assert names.columns[:5] == ("x.0", "x.1", "x.2", "relu_1.0", "relu_1.2")
    assert names.columns[5:] == ("relu_1.phase.0", "relu_1.phase.2", "margin_of_a_clause")
    assert names.rows == ("relu_1.row.0", "relu_1.row.0.2", "relu_1.row.2", "extra.row.n3")
    assert readable_names(model).columns[2:4] == ("node_0.2", "node_1.0")


def test_given_names_are_unique_too() -> None:
    names = readable_names(a_model(), None, {0: "t", 1: "t", 2: "constant", 3: "2e5", 4: ""})
    assert names.columns[:5] == ("t", "t_2", "constant_2", "n_2e5", "column")


def test_long_sums_are_folded_into_lines(tmp_path: Path) -> None:
    model = hostile()[0]
    write(model, path := tmp_path / "model.lp")
    assert max(map(len, path.read_text(encoding="ascii").splitlines())) < 400


@pytest.mark.parametrize("name", ["model.txt", "model", "model.lp.gz"])
def test_another_ending_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the ending says which format is written, \.lp or \.mps"):
        write(a_model(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_what_no_file_can_say_is_refused(tmp_path: Path) -> None:
    model, path = a_model(), tmp_path / "model.lp"
    with pytest.raises(ValueError, match=r"column node_1\.0 has no finite bounds: .* to inf"):
        write(replace(model, upper=model.upper.index_fill(0, torch.tensor([2]), math.inf)), path)
    with pytest.raises(ValueError, match="a coefficient of the model is not finite"):
        to_pulp(replace(model, offset=math.nan))
    with pytest.raises(ValueError, match="a side of a row is NaN"):
        write(replace(model, row_lower=model.row_lower * math.nan), path)
    assert not path.exists()
