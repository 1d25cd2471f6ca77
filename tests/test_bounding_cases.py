"""Which instances the comparison of bounds takes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "bounding" / "case.py"
    spec = importlib.util.spec_from_file_location("bounding_case", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


case = _load()


def test_a_second_word_chooses_the_property(tmp_path: Path) -> None:
    rows = [("net_a", "prop_1_0.03"), ("net_b", "prop_13_0.05"), ("net_b", "prop_3_0.05"), ("net_b", "prop_4_0.05")]
    (tmp_path / "suite").mkdir()
    lines = [f"onnx/{model}.onnx,vnnlib/{specification}.vnnlib,60" for model, specification in rows]
    (tmp_path / "suite" / "instances.csv").write_text("\n".join(lines), encoding="utf-8")
    for part, model, specification in (
        ("", "net_a", "prop_1_0.03"),
        ("b", "net_b", "prop_13_0.05"),
        ("b prop_3_0.05", "net_b", "prop_3_0.05"),
        ("b 0.05", "net_b", "prop_13_0.05"),
    ):
        found = case.instance(tmp_path, "suite", part)
        assert [p.name for p in found] == [f"{model}.onnx.gz", f"{specification}.vnnlib.gz"]
    with pytest.raises(FileNotFoundError, match=r"\*net_a\* and a property called \*0.05\*"):
        case.instance(tmp_path, "suite", "net_a 0.05")


def test_every_row_has_its_instance(vnncomp_dir: Path) -> None:
    """The rows that come first keep their numbers, by which results name them."""
    assert case.NETWORKS[:3] == (("mnist_fc", "256x4"), ("mnist_fc", "256x6"), ("oval21", "wide"))
    for benchmark, part in case.NETWORKS:
        if (vnncomp_dir / benchmark).exists():
            for path in case.instance(vnncomp_dir, benchmark, part):
                assert path.exists()
