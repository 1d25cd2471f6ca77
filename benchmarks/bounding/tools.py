"""The tools that are compared: each bounds a case's margins from below.

``ours`` computes without error terms in float32, like the other; ``ours, proven`` in float64 with error terms.
``auto_LiRPA`` gets the same graph as a module, patches for convolutions, the margins as its specification matrix
(lower side only), and its best setting of the ascent: slopes of intermediate bounds are optimised too.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from benchmarks.bounding.case import Case
from benchmarks.bounding.translate import Module
from bounds.box import Box
from bounds.compute import Alpha, Crown, Interval, Method, compute_bounds, prepare


class Tool(ABC):
    """Made once for a case; ``lower`` is what is timed."""

    @abstractmethod
    def lower(self, box: Box, method: str, steps: int) -> Tensor:
        """Lower bounds ``[N, R]`` of the margins; ``method`` is interval, crown or alpha."""


class Ours(Tool):
    """``bounds.compute_bounds`` on a prepared graph."""

    def __init__(self, case: Case, device: str, proven: bool) -> None:
        self.semantics: Any = "real" if proven else None
        self.dtype = torch.float64 if proven else torch.float32
        self.plan = prepare(case.graph, self.dtype, device, semantics=self.semantics)
        self.rows = case.rows.to(device=device, dtype=self.dtype)

    def lower(self, box: Box, method: str, steps: int) -> Tensor:
        chosen: Method = {"interval": Interval(), "crown": Crown(), "alpha": Alpha(steps=steps)}[method]
        return compute_bounds(self.plan, box, chosen, rows=self.rows, semantics=self.semantics).lower


class AutoLirpa(Tool):
    """``auto_LiRPA.BoundedModule.compute_bounds``."""

    def __init__(self, case: Case, device: str) -> None:
        from auto_LiRPA import BoundedModule

        module = Module(case.graph, torch.float32).to(device).eval()
        example = case.box.lower[0].to(device=device, dtype=torch.float32)
        expected = case.graph.evaluate(example.unsqueeze(0).cpu())[0][0]
        torch.testing.assert_close(module(example).cpu(), expected, rtol=1e-3, atol=1e-3)
        ascent = {"lr_alpha": 0.1, "fix_interm_bounds": False}
        options = {"conv_mode": "patches", "optimize_bound_args": ascent}
        self.ascent = ascent
        self.module = BoundedModule(module, torch.zeros_like(example), bound_opts=options, device=device)
        self.rows = case.rows.flatten(1).unsqueeze(0).to(device=device, dtype=torch.float32)

    def lower(self, box: Box, method: str, steps: int) -> Tensor:
        from auto_LiRPA import BoundedTensor, PerturbationLpNorm

        low, high = box.lower.squeeze(1), box.upper.squeeze(1)
        given = BoundedTensor((low + high) / 2, PerturbationLpNorm(norm=float("inf"), x_L=low, x_U=high))
        rows = self.rows.expand(low.shape[0], -1, -1)
        if method == "alpha":
            self.module.set_bound_opts({"optimize_bound_args": {**self.ascent, "iteration": steps}})
        name = {"interval": "IBP", "crown": "CROWN", "alpha": "CROWN-Optimized"}[method]
        if method == "alpha":
            return self.module.compute_bounds(x=(given,), C=rows, method=name, bound_upper=False)[0].detach()
        with torch.no_grad():
            return self.module.compute_bounds(x=(given,), C=rows, method=name, bound_upper=False)[0]


NAMES = ("ours", "ours, proven", "auto_LiRPA")


def missing() -> str:
    """Why auto_LiRPA takes no part; empty where it can be imported."""
    if importlib.util.find_spec("auto_LiRPA") is None:
        return "auto_LiRPA is not installed"
    try:
        importlib.import_module("auto_LiRPA")
    except ImportError as error:
        return f"auto_LiRPA cannot be imported: {error}"
    return ""


def make(name: str, case: Case, device: str) -> Tool:
    """The tool of this name for a case."""
    if name == "auto_LiRPA":
        return AutoLirpa(case, device)
    return Ours(case, device, proven=name != "ours")
