"""What is bounded: a network, boxes, and the margins that a property asks about."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import verifier
from bounds.box import Box
from bounds.graph import Graph
from verifier.query import Query

NETWORKS = (
    ("mnist_fc", "256x4"),
    ("mnist_fc", "256x6"),
    ("oval21", "wide"),
    ("oval21", "deep"),
    ("cifar10_resnet", "2b"),
    ("cifar10_resnet", "4b"),
    ("sri_resnet_a", ""),
    ("dist_shift", ""),
    ("vit", "pgd"),
    ("mnist_fc", "256x4 prop_3_0.05"),
    ("mnist_fc", "256x4 prop_5_0.05"),
    ("mnist_fc", "256x6 prop_3_0.05"),
    ("cifar10_resnet", "2b prop_22_"),
    ("cifar10_resnet", "4b prop_8_"),
)
"""Benchmark, and a part of the file name of the network meant: its first property is bounded, or where a second word
follows the first one whose file name holds that. The rows with one are harder: no or few margins are proven there, so
that tightness can differ.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """``graph`` with the network's own output; ``rows`` ``[R, *output]`` whose lower bounds must exceed ``limits``."""

    name: str
    graph: Graph
    box: Box
    rows: Tensor
    limits: Tensor

    def boxes(self, count: int) -> Box:
        """The property's box, and ``count - 1`` others of its size, each moved by up to half a radius."""
        if count == 1:
            return self.box
        draw = torch.Generator().manual_seed(0)
        radius = (self.box.upper - self.box.lower) / 2
        shift = (torch.rand((count, *radius.shape[1:]), generator=draw, dtype=radius.dtype) - 0.5) * radius
        shift[0] = 0
        return Box(self.box.lower + shift, self.box.upper + shift)


def instance(folder: Path, benchmark: str, part: str) -> tuple[Path, Path]:
    """Paths of the first instance of a benchmark whose network's name contains the first word of ``part``, and whose
    property's name the second one where there is one."""
    network, _, asked = part.partition(" ")
    with (folder / benchmark / "instances.csv").open(newline="") as lines:
        for model, specification, *_ in csv.reader(lines):
            if network in Path(model).name and asked in Path(specification).name:
                return _present(folder / benchmark / model), _present(folder / benchmark / specification)
    raise FileNotFoundError(
        f"{folder / benchmark}: no instance with a network called *{network}* and a property called *{asked}*"
    )


def _present(path: Path) -> Path:
    return path if path.exists() else path.with_name(path.name + ".gz")


def load(folder: Path, benchmark: str, part: str) -> Case:
    """The case of one entry of ``NETWORKS``."""
    model, specification = instance(folder, benchmark, part)
    query = verifier.read(model, specification)
    graph = verifier.load(model)
    shape, output = graph.nodes[graph.inputs[0]].shape, graph.nodes[graph.outputs[0]].shape
    box = Box(*(torch.from_numpy(ends[:1]).reshape(1, *shape) for ends in (query.cases.lower, query.cases.upper)))
    rows, limits = _margins(query, int(np.prod(output)))
    return Case(" ".join(filter(None, (benchmark, part))), graph, box, rows.reshape(-1, *output), limits)


def _margins(query: Query, outputs: int) -> tuple[Tensor, Tensor]:
    """One row for each distinct pair of form and sign in the first box's clauses."""
    cases = query.cases
    last = cases.literals_of[cases.clauses_of[1]]
    found: dict[tuple[int, int], float] = {}
    for form, sign, limit in zip(cases.form[:last], cases.sign[:last], cases.threshold[:last], strict=True):
        key = int(form), int(sign)
        found[key] = max(float(limit), found.get(key, float(limit)))
    rows = torch.zeros((len(found), outputs), dtype=torch.float64)
    for row, (form, sign) in zip(rows, found, strict=True):
        for output, factor in query.specification.forms[form].outputs:
            row[output] = sign * float(factor)
    return rows, torch.tensor(list(found.values()), dtype=torch.float64)
