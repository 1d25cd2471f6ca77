"""CBC, the solver that PuLP brings along: an engine independent of HiGHS, for comparisons.

It is run as a process on a file that ``write`` makes, so the model it reads has the very numbers (PuLP's own way to it
rounds them). CBC prints points in 8 digits; what is said about values holds to that.
"""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from milp.export import write
from milp.model import Model, Solution, Status
from milp.names import readable_names

_GRACE = 5.0  # seconds beyond its limit after which the process is killed
_BOUND = re.compile(r"^Lower bound:\s*(\S+)", re.MULTILINE)


def solve_with_cbc(model: Model, seconds: float = math.inf) -> Solution:
    """Minimise the model by CBC, in a process that is killed soon after ``seconds``.

    ``OPTIMAL`` only where CBC says so; where it was stopped with a point, or without one, ``LIMIT``; ``FAILED``, with
    the reason, where it says anything else, has crashed, or is not there. Its files stand in a temporary folder and are
    removed. ``ValueError`` as for ``write``.
    """
    with TemporaryDirectory() as folder:
        file, found = Path(folder, "model.mps"), Path(folder, "solution.txt")
        write(model, file)
        limit = [] if math.isinf(seconds) else ["-sec", str(seconds), "-timeMode", "elapsed"]
        words = [str(file), *limit, "-ratioGap", "0", "-solve", "-printingOptions", "all", "-solution", str(found)]
        try:
            log = _run(words, seconds)
        except subprocess.TimeoutExpired:
            return _without_point(Status.LIMIT, "CBC did not keep to its time limit")
        except OSError as error:
            return _without_point(Status.FAILED, f"CBC could not be run: {error}")
        if not found.is_file():
            return _without_point(Status.FAILED, f"CBC found no solution: {_last_line(log)}")
        return _solution(model, found.read_text(encoding="utf-8").splitlines(), log)


def _run(words: Sequence[str], seconds: float) -> str:
    """What CBC prints."""
    import pulp

    timeout = None if math.isinf(seconds) else seconds + _GRACE
    done = subprocess.run(
        [pulp.PULP_CBC_CMD.pulp_cbc_path, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
        check=False,
    )
    return done.stdout.decode(errors="replace")


def _solution(model: Model, lines: Sequence[str], log: str) -> Solution:
    """The solution in a file: a line that says how it ended, then a line for each row and each column."""
    word = lines[0].strip() if lines else ""
    if word.startswith("Optimal"):
        x = _point(model, lines)
        value = _value(model, x)
        return Solution(Status.OPTIMAL, value, value, x)
    if word.startswith(("Infeasible", "Integer infeasible")):
        return Solution(Status.INFEASIBLE, math.inf, math.inf)
    if not word.startswith("Stopped"):
        return _without_point(Status.FAILED, f"CBC says: {word}")
    stated = _BOUND.search(log)
    bound = -math.inf if stated is None else float(stated[1])
    # Without an integer solution the file holds the point of a relaxation.
    if "no integer solution" in word or not bool(model.integer.any()):
        return Solution(Status.LIMIT, math.inf, bound, reason=word)
    x = _point(model, lines)
    return Solution(Status.LIMIT, _value(model, x), bound, x, reason=word)


def _point(model: Model, lines: Sequence[str]) -> Tensor:
    values = {}
    for line in lines[1:]:
        _, name, value, _ = line.removeprefix("**").split()
        values[name] = float(value)
    return torch.tensor([values[name] for name in readable_names(model).columns], dtype=torch.float64)


def _value(model: Model, x: Tensor) -> float:
    return float(model.cost @ x) + model.offset


def _without_point(status: Status, reason: str) -> Solution:
    return Solution(status, math.inf, -math.inf, reason=reason)


def _last_line(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"
