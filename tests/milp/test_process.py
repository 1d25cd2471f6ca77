"""A solver in a process of its own: the same answers, a deadline that holds, and crashes that are only a status."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from milp.engine import Limits
from milp.highs import Progress, solve
from milp.model import Model, Status
from milp.process import ProcessRunner

PATIENCE = 60.0
"""Seconds after which a test gives up waiting for something that is to come."""


def fake(*lines: str) -> ProcessRunner:
    """A worker that reads one request and then does this. ``say(type, array, ...)`` sends a message."""
    code = [
        "import os, signal, sys, time",
        "from milp import protocol",
        "def say(kind, x=None, **rest): protocol.send(sys.stdout.buffer, {'type': kind, **rest}, [x])",
        "header, arrays = protocol.receive(sys.stdin.buffer)",
        *lines,
    ]
    return ProcessRunner(command=[sys.executable, "-c", "\n".join(code)])


@pytest.fixture(scope="module")
def long(programs: ModuleType) -> Model:
    """A search that no test waits for."""
    return programs.Network.random(0, [8, 40, 40, 40]).model()


def test_answers_as_in_this_process(programs: ModuleType) -> None:
    with ProcessRunner() as run:
        for seed in range(12):
            model = programs.random_program(seed)
            if seed % 3 == 0:
                model = replace(model, integer=torch.zeros_like(model.integer))
            here, there = solve(model), run(model)
            assert (there.status, there.value, there.bound) == (here.status, here.value, here.bound)
            for own, other in ((here.x, there.x), (here.dual, there.dual)):
                assert (own is None) == (other is None)
                assert own is None or other is None or torch.equal(own, other)


def test_limits_start_and_progress_cross_over(programs: ModuleType) -> None:
    model = programs.Network.random(3, [3, 6, 6]).model()
    best = solve(model)
    said: list[Progress] = []
    with ProcessRunner() as run:
        assert run(model, Limits(nodes=0)).value == math.inf
        started = run(model, Limits(nodes=0), start=best.x)
        assert started.status is Status.LIMIT and started.value == pytest.approx(best.value, abs=1e-6)
        assert run(model, Limits(bound=best.value - 0.3)).status is Status.STOPPED
        assert run(model, Limits(seconds=1e-9)).status is Status.LIMIT
        assert run(model, Limits(seconds=PATIENCE), watch=said.append).status is Status.OPTIMAL
    points = [p for p in said if p.x is not None]
    assert len(points) > 1 and points[-1].value == pytest.approx(best.value, abs=1e-6)
    assert all(
        float(model.cost @ p.x) + model.offset == pytest.approx(p.value, abs=1e-6) for p in points if p.x is not None
    )


def test_without_rows_columns_or_entries(programs: ModuleType) -> None:
    ends = (torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    none = torch.zeros(0, dtype=torch.float64)
    whole = torch.ones(2, dtype=torch.bool)
    free = programs.program(-ends[1], torch.zeros((0, 2), dtype=torch.float64), (none, none), ends, whole)
    with ProcessRunner() as run:
        assert run(free).value == pytest.approx(-2)
        empty = programs.program(none, torch.zeros((0, 0), dtype=torch.float64), (none, none), (none, none), offset=3.0)
        assert run(empty).value == 3


def test_what_is_wrong_with_a_model_is_said_without_a_process(programs: ModuleType) -> None:
    model = programs.random_program(0)
    with ProcessRunner(command=["/there/is/no/such/program"]) as run:
        with pytest.raises(ValueError, match="cost is"):
            run(replace(model, cost=model.cost.float()))
        with pytest.raises(ValueError, match="one finite number"):
            run(model, start=torch.zeros(1))
        assert run(replace(model, cost=model.cost * math.nan)).status is Status.FAILED
        assert run(replace(model, row_lower=model.row_upper + 1)).status is not Status.OPTIMAL


def test_out_of_time(long: Model) -> None:
    """Whether it stops by itself or, on a busy machine, is killed: the bound is there."""
    with ProcessRunner() as run:
        run(long, Limits(nodes=0))
        found = run(long, Limits(seconds=2.0))
        assert found.status is Status.LIMIT and found.reason.startswith("time limit")
        assert -math.inf < found.bound < found.value


def test_killed_at_the_deadline() -> None:
    """A worker that hangs after a while: what it had told of is kept."""
    model = two_columns()
    with fake(
        "import array",
        "say('progress', bound=-7.5, value=float('inf'), seconds=0.0)",
        "say('progress', array.array('d', [1, 2]).tobytes(), bound=-5.0, value=-3.0, seconds=0.1)",
        "say('progress', bound=-4.0, value=-3.0, seconds=0.2)",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        "time.sleep(1000)",
    ) as run:
        said: list[Progress] = []
        found = run(model, Limits(seconds=3.0), watch=said.append)
        assert (found.status, found.value, found.bound) == (Status.LIMIT, -3, -4) and "killed" in found.reason
        assert found.x is not None and found.x.tolist() == [1, 2]
        assert [p.bound for p in said] == [-7.5, -5, -4]
        again = run(model, Limits(seconds=3.0, bound=-4.5))
        assert again.status is Status.STOPPED and again.bound == -4


def test_killed_where_it_does_not_even_read(programs: ModuleType) -> None:
    """The request is larger than a pipe holds."""
    model = programs.Network.random(0, [8, 60, 60]).model()
    with ProcessRunner(command=[sys.executable, "-c", "import time; time.sleep(1000)"]) as run:
        found = run(model, Limits(seconds=0.5))
    assert found.status is Status.LIMIT and found.bound == -math.inf and found.x is None


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "crashed (SIGSEGV)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "want of memory"),
        ("sys.exit(3)", "exit code 3"),
        ("raise ArithmeticError('too small')", "too small"),
        ("sys.stdout.buffer.write(b'x' * 100); sys.stdout.flush(); time.sleep(0.1)", "exit code 0"),
        ("say('outcome')", "exit code 0"),
    ],
)
def test_a_crash_is_a_status(last: str, reason: str) -> None:
    with fake("say('progress', bound=-4.0, value=float('inf'), seconds=0.2)", last) as run:
        found = run(two_columns(), Limits(seconds=PATIENCE))
    assert found.status is Status.FAILED and reason in found.reason
    assert (found.bound, found.value) == (-4, math.inf)


def test_a_real_worker_is_killed_in_the_middle(long: Model) -> None:
    """And the next call has a new one."""
    seen: list[float] = []

    def watch(progress: Progress) -> None:
        seen.append(progress.bound)
        if len(seen) == 3:
            for child in children():
                os.kill(child, signal.SIGKILL)

    with ProcessRunner() as run:
        found = run(long, Limits(seconds=PATIENCE), watch=watch)
        assert found.status is Status.FAILED and "SIGKILL" in found.reason
        assert found.bound >= max(seen) > -math.inf
        assert run(long, Limits(nodes=0)).status is Status.LIMIT


def test_an_error_of_the_watcher_ends_the_worker(long: Model) -> None:
    before = children()

    def watch(_: Progress) -> None:
        raise KeyboardInterrupt

    with ProcessRunner() as run:
        with pytest.raises(KeyboardInterrupt):
            run(long, Limits(seconds=PATIENCE), watch=watch)
        assert children() == before


def test_a_worker_does_not_outlive_its_parent(long: Model) -> None:
    """The end of its stdin, which is what a worker sees of its parent's end, ends it in the middle of a search."""
    with ProcessRunner() as run:

        def watch(_: Progress) -> None:
            assert run._worker is not None and run._worker._process.stdin is not None
            run._worker._process.stdin.close()

        found = run(long, Limits(seconds=PATIENCE), watch=watch)
    assert found.status is Status.FAILED and "exit code 0" in found.reason


def test_the_worker_loads_no_torch(checkout: Path) -> None:
    code = "import sys, milp.worker; assert 'highspy' in sys.modules and 'torch' not in sys.modules"
    environment = dict(os.environ, PYTHONPATH=str(checkout))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def two_columns() -> Model:
    """A model of two columns, one row."""
    zero = torch.zeros(2, dtype=torch.float64)
    return Model(
        cost=zero - 1,
        offset=0.0,
        start=torch.tensor([0, 2]),
        index=torch.tensor([0, 1]),
        value=zero + 1,
        row_lower=torch.full((1,), -math.inf, dtype=torch.float64),
        row_upper=torch.full((1,), 3.0, dtype=torch.float64),
        row_error=zero[:1],
        lower=zero,
        upper=zero + 2,
        integer=torch.ones(2, dtype=torch.bool),
        node=torch.zeros(2, dtype=torch.int64),
        element=torch.arange(2),
        columns={0: torch.arange(2)},
    )


def children() -> set[int]:
    """The running processes that this one has started."""
    listed = Path(f"/proc/{os.getpid()}/task")
    if not listed.is_dir():
        pytest.skip("the system does not list processes in /proc")
    found = {int(pid) for task in listed.iterdir() for pid in (task / "children").read_text().split()}
    return {pid for pid in found if is_running(pid)}


def is_running(pid: int) -> bool:
    """Whether there is a process of this number that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
