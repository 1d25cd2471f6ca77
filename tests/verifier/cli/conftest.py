"""A fake engine behind the real command line, and its files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from verifier import limits
from verifier.cli import parser, verify
from verifier.cli.session import Session


@pytest.fixture
def digits_file(tmp_path: Path) -> Callable[[int], Path]:
    """A file with so many images of digits that the shipped network was not trained on, and their classes."""

    def write(count: int) -> Path:
        digits, path = load_digits(), tmp_path / "data.npz"
        chosen = slice(1400, 1400 + count)
        np.savez(path, x=(digits.images[chosen] / 16).astype(np.float32), y=digits.target[chosen])
        return path

    return write


@pytest.fixture(scope="session")
def fake_worker() -> list[str]:
    """The command that starts the fake worker."""
    return [sys.executable, "-P", str(Path(__file__).with_name("fake_worker.py"))]


@pytest.fixture
def ask(fake_worker: list[str], tmp_path: Path) -> Callable[..., int]:
    """Run ``verifier verify`` on a property of the given kind; the exit code."""

    def run(kind: str, *options: str, text: str = "", before: Callable[[], None] = lambda: None) -> int:
        path = tmp_path / f"{kind}.vnnlib"
        path.write_text(text)
        arguments = parser.build().parse_args(["verify", "model.onnx", str(path), *options])
        session = Session(command=fake_worker)
        # The clock starts at a worker that is ready, so that a busy machine cannot eat the short limits used here.
        assert session.events.get(timeout=60).message == {"type": "ready"}
        session.start = limits.now()
        before()
        return verify.run(arguments, session)

    return run


@pytest.fixture(scope="module")
def model(checkout: Path) -> str:
    """Two inputs, three scores."""
    return str(checkout / "tests" / "corpus" / "ranking_deep_sat.onnx")


@pytest.fixture
def point(tmp_path: Path) -> str:
    """A file with a point of that model."""
    path = tmp_path / "x.npy"
    np.save(path, np.array([0.25, -0.5], dtype=np.float32))
    return str(path)
