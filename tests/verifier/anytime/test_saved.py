"""Refinements that are stopped and go on."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bounds import Box, Graph, trace
from verifier.anytime.functional import with_expression
from verifier.anytime.refinement import refine
from verifier.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

ONE = torch.ones(1, 1, 2, dtype=torch.float64)
BOX = Box(-ONE * 9, ONE * 8)


def wavy(text: str = "y[0]") -> Graph:
    torch.manual_seed(3)
    layers = [nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 2)]
    return with_expression(trace(nn.Sequential(*layers), torch.zeros(1, 2)), text)


def stopped(path: Path, steps: int) -> None:
    """Leave a checkpoint after some steps."""
    for _ in zip(range(steps), run := refine(wavy(), BOX, gap=1e-4, checkpoint=path), strict=False):
        pass
    run.close()  # type: ignore[attr-defined]
    assert path.exists()


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_what_goes_on_ends_as_what_was_never_stopped(tmp_path: Path, steps: int) -> None:
    path = tmp_path / "state.npz"
    stopped(path, steps)
    whole = list(refine(wavy(), BOX, gap=1e-4))
    rest = list(refine(wavy(), BOX, gap=1e-4, checkpoint=path))
    assert len(whole) > steps + 1 and not path.exists()
    assert rest[0].boxes >= whole[steps - 1].boxes and rest[0].lower >= whole[steps - 1].lower
    for one, two in itertools.pairwise([whole[steps - 1], *rest]):
        assert one.lower <= two.lower <= two.least <= one.least and one.greatest <= two.greatest <= one.upper
    assert rest[-1].status == whole[-1].status == "exact"
    assert (rest[-1].lower, rest[-1].upper) == pytest.approx((whole[-1].lower, whole[-1].upper), abs=2e-4)


def test_states_of_other_refinements_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    stopped(path, 3)
    for graph, box, options in (
        (wavy("y[1]"), BOX, {}),
        (wavy(), Box(-ONE, ONE * 2), {}),
        (wavy(), BOX, {"seed": 1}),
        (wavy(), BOX, {"gap": 1e-5}),
        (wavy(), BOX, {"of": "max"}),
    ):
        with pytest.raises(InputError, match=r"another|seed|gap"):
            next(refine(graph, box, checkpoint=path, **{"gap": 1e-4, **options}))  # type: ignore[arg-type]
        assert path.exists()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    stopped(path, 6)
    whole = path.read_bytes()
    middle = len(whole) // 2
    with np.load(path) as saved:  # a byte of some values (others of a file's bytes, such as its date, say nothing)
        values = whole.index(saved["state/0.lower"].tobytes())
    for damaged in (b"", whole[:middle], whole[:values] + b"\xff" + whole[values + 1 :], b"PK" + bytes(100)):
        path.write_bytes(damaged)
        with pytest.raises(InputError):
            next(refine(wavy(), BOX, gap=1e-4, checkpoint=path))
        assert path.read_bytes() == damaged
