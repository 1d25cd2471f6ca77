"""Train the small network that the project ships, and write it with three properties and their instances.

Data: the 8 x 8 images of handwritten digits that scikit-learn carries (pixels 0..16, here divided by 16). Network: one
convolution, one hidden layer, ReLU, about 4,500 weights, written as ONNX operator by operator.

The three properties say that an image keeps its label within epsilon of each pixel, inside [0, 1]. Their truth is
established here, without the verifier: ``robust`` by interval arithmetic (unsat), ``fragile`` by a gradient attack that
onnxruntime confirms (sat); for ``close`` neither suffices, and the file of instances leaves its verdict open.

``python benchmarks/train_digits.py`` rewrites ``benchmarks/digits``; same versions and same machine, same files.
"""

from __future__ import annotations

import argparse
from decimal import Decimal
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from torch import Tensor, nn

FOLDER = Path(__file__).with_name("digits")
TRAINED_ON = 1400
ROBUST, CLOSE, FRAGILE = Decimal("0.02"), Decimal("0.05"), Decimal("0.2")


def data() -> tuple[Tensor, Tensor]:
    """Images ``[1797, 1, 8, 8]`` in [0, 1] and labels ``[1797]``."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
    return images, torch.tensor(digits.target)


def train(images: Tensor, labels: Tensor) -> nn.Sequential:
    """Fit the network on images with noise, in full batches."""
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 32), nn.ReLU(),
        nn.Linear(32, 10),
    )
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=1e-3)
    for _ in range(300):
        optimiser.zero_grad()
        noisy = (images + 0.1 * torch.randn_like(images)).clamp(0, 1)
        nn.functional.cross_entropy(net(noisy), labels).backward()
        optimiser.step()
    return net


def write_network(net: nn.Sequential, path: Path) -> None:
    """Write the network as ONNX: Conv, Relu, Flatten, Gemm, Relu, Gemm; input ``image``, output ``scores``."""
    weights = {key.replace(".", "_"): value.detach().numpy() for key, value in net.state_dict().items()}
    nodes = [
        helper.make_node(
            "Conv", ["image", "0_weight", "0_bias"], ["conv"], name="conv", kernel_shape=[3, 3], strides=[2, 2],
            pads=[1, 1, 1, 1],
        ),
        helper.make_node("Relu", ["conv"], ["features"], name="relu_0"),
        helper.make_node("Flatten", ["features"], ["flat"], name="flatten", axis=1),
        helper.make_node("Gemm", ["flat", "3_weight", "3_bias"], ["hidden"], name="gemm_0", transB=1),
        helper.make_node("Relu", ["hidden"], ["active"], name="relu_1"),
        helper.make_node("Gemm", ["active", "5_weight", "5_bias"], ["scores"], name="gemm_1", transB=1),
    ]
    graph = helper.make_graph(
        nodes, "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="")
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


@torch.no_grad()
def proven_margin(net: nn.Sequential, image: Tensor, label: int, epsilon: float) -> float:
    """A lower bound of ``score[label] - score[other]`` over the box, by interval arithmetic in float64."""
    lower, upper = (image - epsilon).clamp(0, 1).double(), (image + epsilon).clamp(0, 1).double()
    for layer in [*net[:-1]]:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            centre, radius = (lower + upper) / 2, (upper - lower) / 2
            weight, bias = layer.weight.double(), layer.bias.double()
            if isinstance(layer, nn.Conv2d):
                centre = nn.functional.conv2d(centre, weight, bias, 2, 1)
                radius = nn.functional.conv2d(radius, weight.abs(), None, 2, 1)
            else:
                centre, radius = centre @ weight.T + bias, radius @ weight.abs().T
            lower, upper = centre - radius, centre + radius
        else:
            lower, upper = layer(lower), layer(upper)
    last = net[-1]
    assert isinstance(last, nn.Linear)
    rows = (last.weight[label] - last.weight).double()
    bounds = lower @ rows.clamp(min=0).T + upper @ rows.clamp(max=0).T + (last.bias[label] - last.bias).double()
    bounds[:, label] = torch.inf
    return float(bounds.min())


def attacked(net: nn.Sequential, image: Tensor, label: int, epsilon: float) -> Tensor | None:
    """A point of the box that another class wins, by projected gradient descent from 64 starts; None if none."""
    lower, upper = (image - epsilon).clamp(0, 1), (image + epsilon).clamp(0, 1)
    points = lower + (upper - lower) * torch.rand(64, *image.shape[1:])
    for _ in range(60):
        points.requires_grad_(True)
        scores = net(points)
        others = scores.clone()
        others[:, label] = -torch.inf
        margin = scores[:, label] - others.max(1).values
        if bool((margin < -0.01).any()):
            return points.detach()[margin.argmin()].unsqueeze(0)
        gradient, = torch.autograd.grad(margin.sum(), points)
        points = (points.detach() - epsilon / 8 * gradient.sign()).clamp(lower, upper)
    return None


def write_property(image: Tensor, label: int, epsilon: Decimal, path: Path) -> None:
    """Write "some class other than the label scores at least as much" as VNN-LIB 1.0, with exact decimals."""
    lines = [f"; Image of a {label}: each pixel within {epsilon} of its value, inside [0, 1]."]
    lines += ["; Unsafe: another class scores at least as much as the label.", ""]
    lines += [f"(declare-const X_{i} Real)" for i in range(64)] + [f"(declare-const Y_{i} Real)" for i in range(10)]
    for i, pixel in enumerate(image.flatten().tolist()):
        low = max(Decimal(pixel) - epsilon, Decimal(0))
        high = min(Decimal(pixel) + epsilon, Decimal(1))
        lines += [f"(assert (>= X_{i} {low:f}))", f"(assert (<= X_{i} {high:f}))"]
    lines += ["(assert (or", *(f"    (and (>= Y_{k} Y_{label}))" for k in range(10) if k != label), "))"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def confirmed(path: Path, point: Tensor, label: int) -> bool:
    """Whether onnxruntime, too, gives the point another label."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    scores = session.run(None, {"image": point.numpy()})[0]
    return int(np.argmax(scores)) != label


def main() -> None:
    """Train, choose three images, and write everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder to write (default: %(default)s)")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    images, labels = data()
    net = train(images[:TRAINED_ON], labels[:TRAINED_ON])
    tests, truth = images[TRAINED_ON:], labels[TRAINED_ON:]
    right = net(tests).argmax(1) == truth
    print(f"accuracy on {len(tests)} images: {float(right.float().mean()):.3f}")
    write_network(net, out / "digits.onnx")

    chosen: dict[str, tuple[int, Decimal, str]] = {}
    for i in torch.nonzero(right).flatten().tolist():
        image, label = tests[i:i + 1], int(truth[i])
        if "robust" not in chosen and proven_margin(net, image, label, float(ROBUST)) > 0.01:
            chosen["robust"] = (i, ROBUST, "unsat")
        elif "close" not in chosen and proven_margin(net, image, label, float(CLOSE)) < 0 and (
            attacked(net, image, label, float(CLOSE) * 1.25) is None
        ):
            chosen["close"] = (i, CLOSE, "")
        elif "fragile" not in chosen:
            point = attacked(net, image, label, float(FRAGILE) * 0.9)
            if point is not None and confirmed(out / "digits.onnx", point, label):
                chosen["fragile"] = (i, FRAGILE, "sat")
        if len(chosen) == 3:
            break
    rows = []
    for name in ("robust", "close", "fragile"):
        i, epsilon, verdict = chosen[name]
        write_property(tests[i:i + 1], int(truth[i]), epsilon, out / f"{name}.vnnlib")
        rows.append(f"digits.onnx,{name}.vnnlib,60" + (f",{verdict}" if verdict else ""))
        print(f"{name}: image {TRAINED_ON + i} (a {int(truth[i])}), epsilon {epsilon}, {verdict or 'open'}")
    (out / "instances.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
