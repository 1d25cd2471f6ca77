"""What all tests share: the hypothesis profile of a reproducible run, and the folder of competition instances.

``VNNCOMP_DIR`` names a folder of VNN-COMP benchmarks, each with its ``instances.csv``. The project does not carry
them; tests that read them stand out where the variable is not set, and one closing line counts them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

CHECKOUT = Path(__file__).resolve().parents[1]
WITHOUT_INSTANCES = "VNNCOMP_DIR is not set to a folder of competition benchmarks"

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The folder of the project's sources: ``pyproject.toml``, ``docs``, ``tests``."""
    return CHECKOUT


@pytest.fixture(scope="session")
def vnncomp_dir() -> Path:
    """The folder of competition benchmarks; the test is skipped where there is none."""
    named = os.environ.get("VNNCOMP_DIR", "")
    if not named or not Path(named).is_dir():
        pytest.skip(WITHOUT_INSTANCES)
    return Path(named)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line how many tests stood out for want of the competition benchmarks."""
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum(WITHOUT_INSTANCES in str(report.longrepr) for report in skipped)
    if count:
        terminalreporter.write_line(f"{count} tests stood out: {WITHOUT_INSTANCES}")
