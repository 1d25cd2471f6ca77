"""CBC as a second engine: the same optimum as HiGHS, and a status that says no more than CBC does."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import highspy
import pulp
import pytest
import torch

from milp.cbc import solve_with_cbc
from milp.export import to_pulp, write
from milp.model import Model, Status


def random_model(seed: int, columns: int, rows: int, whole: int, slack: float = 0.5) -> Model:
    """A model with a feasible point (for ``slack`` >= 0); without one for a negative ``slack``."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    value, point = random(rows, columns), random(columns).mul(2).round()
    middle = value @ point
    return Model(
        cost=random(columns),
        offset=float(random(1)),
        start=columns * torch.arange(rows + 1),
        index=torch.arange(columns).repeat(rows),
        value=value.flatten(),
        row_lower=torch.where(torch.arange(rows) % 3 == 0, -math.inf, middle - slack),
        row_upper=torch.where(torch.arange(rows) % 3 == 1, math.inf, middle + slack),
        row_error=torch.zeros(rows, dtype=torch.float64),
        lower=point - 3,
        upper=point + 4,
        integer=torch.arange(columns) < whole,
        node=torch.zeros(columns, dtype=torch.int64),
        element=torch.arange(columns),
        columns={},
    )


def by_highs(path: Path) -> float:
    """The optimum of a file (inf: it is infeasible)."""
    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    highs.setOptionValue("mip_rel_gap", 0.0)
    highs.readModel(str(path))
    highs.run()
    if highs.getModelStatus() == highspy.HighsModelStatus.kInfeasible:
        return math.inf
    assert highs.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return float(highs.getInfo().objective_function_value)


@pytest.mark.parametrize("seed", range(12))
def test_both_solvers_find_the_same_optimum(seed: int, tmp_path: Path) -> None:
    """And so does PuLP's own way to CBC, from the same model."""
    model = random_model(seed, columns=4 + seed, rows=3 + seed // 2, whole=seed)
    found = solve_with_cbc(model)
    assert found.status is Status.OPTIMAL and found.x is not None
    assert found.value == found.bound == pytest.approx(float(model.cost @ found.x) + model.offset, abs=1e-12)
    inside = model.value.reshape(len(model.row_lower), -1) @ found.x
    assert (inside >= model.row_lower - 1e-5).all() and (inside <= model.row_upper + 1e-5).all()
    assert (found.x >= model.lower - 1e-6).all() and (found.x <= model.upper + 1e-6).all()
    for ending in (".lp", ".mps"):
        write(model, path := tmp_path / f"model{ending}")
        assert by_highs(path) == pytest.approx(found.value, abs=1e-5)
    problem = to_pulp(model)
    problem.solve(pulp.COIN_CMD(path=pulp.PULP_CBC_CMD.pulp_cbc_path, msg=False))
    assert pulp.value(problem.objective) == pytest.approx(found.value, abs=1e-5)


@pytest.mark.parametrize("whole", [0, 3])
def test_infeasible_is_said(whole: int, tmp_path: Path) -> None:
    model = random_model(0, columns=6, rows=6, whole=whole)
    low = model.row_upper.clone()
    model = replace(model, row_lower=torch.full_like(low, 1e3), row_upper=torch.full_like(low, 1e4))
    found = solve_with_cbc(model)
    assert found.status is Status.INFEASIBLE and found.x is None and found.value == math.inf
    write(model, path := tmp_path / "model.mps")
    assert by_highs(path) == math.inf


def test_no_whole_number_is_infeasible_too() -> None:
    """The relaxation has a solution, the program has none."""
    one = torch.ones(1, dtype=torch.float64)
    model = replace(random_model(0, 2, 1, 2), value=2 * one.repeat(2), row_lower=one, row_upper=one)
    assert solve_with_cbc(model).status is Status.INFEASIBLE


def test_the_point_of_a_relaxation_is_no_incumbent() -> None:
    """CBC, stopped before it has an integer solution, prints the point of the relaxation with an objective value."""
    model = random_model(1, columns=60, rows=40, whole=60, slack=0.05)
    found = solve_with_cbc(model, 0.4)
    assert found.status is Status.LIMIT and "Stopped" in found.reason
    assert found.x is None and found.value == math.inf and math.isfinite(found.bound)


def a_program(path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let this script run in place of CBC; the file for the solution is its last argument."""
    path.write_text(f"#!{sys.executable}\nimport pathlib, sys\nanswer = pathlib.Path(sys.argv[-1])\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(pulp.PULP_CBC_CMD, "pulp_cbc_path", str(path))


@pytest.mark.parametrize("found_one", [True, False])
def test_stopped_is_not_optimal(found_one: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(0, columns=2, rows=1, whole=1)
    word = "Stopped on time" + ("" if found_one else " (no integer solution - continuous used)")
    lines = ["0 node_0.row.1 0.5 0", "0 node_0.0 -1 0", "** 1 node_0.1 2.5 0", "2 constant 1 0"]
    text = "\n".join([f"{word} - objective value -7", *lines])
    script = f"print('Lower bound:    -8.25')\nanswer.write_text({text!r})"
    a_program(tmp_path / "cbc", monkeypatch, script)
    found = solve_with_cbc(model, 20)
    assert found.status is Status.LIMIT and found.bound == -8.25 and found.reason.startswith("Stopped on time")
    if found_one:
        assert found.x is not None and found.x.tolist() == [-1.0, 2.5]
        assert found.value == pytest.approx(2.5 * float(model.cost[1]) - float(model.cost[0]) + model.offset)
    else:
        assert found.x is None and found.value == math.inf


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("print('out of luck'); sys.exit(3)", "CBC found no solution: out of luck"),
        ("answer.write_text('Unbounded - objective value 0')", "CBC says: Unbounded"),
        ("answer.write_text('')", "CBC says: "),
    ],
)
def test_what_is_not_understood_has_failed(
    script: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_program(tmp_path / "cbc", monkeypatch, script)
    found = solve_with_cbc(random_model(0, 3, 2, 1), 20)
    assert found.status is Status.FAILED and reason in found.reason and found.bound == -math.inf


def test_without_cbc_it_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulp.PULP_CBC_CMD, "pulp_cbc_path", str(tmp_path / "nowhere"))
    found = solve_with_cbc(random_model(0, 3, 2, 1))
    assert found.status is Status.FAILED and "CBC could not be run" in found.reason


def test_no_file_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    solve_with_cbc(random_model(0, 4, 3, 2))
    assert not list(tmp_path.iterdir())
