"""The competition's networks load and agree with onnxruntime."""

from __future__ import annotations

from pathlib import Path

import pytest

from verifier.network.reader import read_network

SMALL = (
    "acasxu cifar10_resnet collins_rul_cnn cora dist_shift linearizenn lsnc metaroom ml4acopf_2024 mnist_fc nn4sys "
    "oval21 reach_prob_density rl_benchmarks safenlp sri_resnet_a sri_resnet_b traffic_signs vit"
).split()
LARGE = ["cgan", "tllverifybench", "yolo"]


def networks(folder: Path) -> list[Path]:
    return sorted(folder.glob("onnx/**/*.onnx*"))


def load_all(paths: list[Path]) -> None:
    for path in paths:
        network = read_network(path)
        assert len(network.inputs) == len(network.outputs) == 1


@pytest.mark.parametrize("benchmark", SMALL)
def test_networks_load_and_agree(vnncomp_dir: Path, benchmark: str) -> None:
    found = networks(vnncomp_dir / benchmark)
    if not found:
        pytest.skip(f"{benchmark} is not in the folder of benchmarks")
    load_all(found[:3])


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", [*SMALL, *LARGE])
def test_all_networks_load_and_agree(vnncomp_dir: Path, benchmark: str) -> None:
    load_all(networks(vnncomp_dir / benchmark))
