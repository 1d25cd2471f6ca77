"""What all tests share: the hypothesis profile of a reproducible run, and the folder of competition instances.

``VNNCOMP_DIR`` names a folder of VNN-COMP benchmarks, each with its ``instances.csv``. The project does not carry
them; tests that read them stand out where the variable is not set, and one closing line counts them.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

# Tests run side by side, and torch's threads would wait for each other; set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

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


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tensors so tiny that more threads only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _module(path: Path) -> ModuleType:
    """A file of the checkout that no package holds, imported under its own name."""
    if path.stem not in sys.modules:
        specification = importlib.util.spec_from_file_location(path.stem, path)
        assert specification is not None and specification.loader is not None
        module = sys.modules[path.stem] = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
    return sys.modules[path.stem]


@pytest.fixture(scope="session")
def networks() -> ModuleType:
    """Random small networks over all operators: ``benchmarks/random_networks.py``."""
    return _module(CHECKOUT / "benchmarks" / "random_networks.py")


@pytest.fixture(scope="session")
def planted(networks: ModuleType) -> ModuleType:
    """Instances with a hidden counterexample: ``benchmarks/planted.py`` (which imports ``random_networks``)."""
    _module(CHECKOUT / "benchmarks" / "planted_engines.py")
    return _module(CHECKOUT / "benchmarks" / "planted.py")


@pytest.fixture(scope="session")
def exact() -> ModuleType:
    """Graphs evaluated in fractions: ``tests/helpers/exact.py``."""
    return _module(CHECKOUT / "tests" / "helpers" / "exact.py")


@pytest.fixture(scope="session")
def singles() -> ModuleType:
    """Graphs evaluated in float32 in many orders of summation: ``tests/helpers/singles.py``."""
    return _module(CHECKOUT / "tests" / "helpers" / "singles.py")


@pytest.fixture(scope="session")
def programs() -> ModuleType:
    """Small mixed-integer programs and their minima: ``tests/helpers/programs.py``."""
    return _module(CHECKOUT / "tests" / "helpers" / "programs.py")


@pytest.fixture(scope="session")
def examples() -> ModuleType:
    """Every elementwise nonlinear operator with a reference: ``tests/helpers/nonlinear_examples.py``."""
    _module(CHECKOUT / "tests" / "helpers" / "relaxations.py")
    return _module(CHECKOUT / "tests" / "helpers" / "nonlinear_examples.py")


@pytest.fixture(scope="session")
def program() -> Callable[[str], ModuleType]:
    """A program of ``benchmarks/`` that has parts beside it, imported as ``benchmarks.NAME``."""

    def named(name: str) -> ModuleType:
        before = list(sys.path)
        sys.path.append(str(CHECKOUT))  # last: the packages still come from where they are installed
        try:
            return importlib.import_module(f"benchmarks.{name}")
        finally:
            sys.path[:] = before

    return named


@pytest.fixture(scope="session")
def checker() -> ModuleType:
    """The check of counterexamples that shares nothing with the verifier: ``benchmarks/check_witness.py``."""
    return _module(CHECKOUT / "benchmarks" / "check_witness.py")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line how many tests stood out for want of the competition benchmarks."""
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum(WITHOUT_INSTANCES in str(report.longrepr) for report in skipped)
    if count:
        terminalreporter.write_line(f"{count} tests stood out: {WITHOUT_INSTANCES}")
