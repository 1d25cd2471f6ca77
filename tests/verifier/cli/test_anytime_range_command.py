"""``verifier range``, by its default method: ends against a grid, turns, what is known when it ends early, errors."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import onnx
import pytest
import torch

import verifier
from bounds import Box
from verifier import limits
from verifier.anytime import turns
from verifier.anytime.enclosure import Enclosure
from verifier.anytime.turns import Effort, Turns
from verifier.cli import anytime_range, exact_range, main
from verifier.cli.search import OutOfTime
from verifier.network import read_network

SCHEMA = resources.files("verifier").joinpath("report/range-1.schema.json")
Capture = pytest.CaptureFixture[str]


def table(text: str) -> list[list[str]]:
    """The cells of the table below its head."""
    return [line.split() for line in text.splitlines()[1:]]


def grid(model: str, centre: tuple[float, float], radius: float, count: int = 201) -> torch.Tensor:
    """Outputs ``[points, scores]`` on a grid over the box, its corners included."""
    sides = [torch.linspace(c - radius, c + radius, count, dtype=torch.float64) for c in centre]
    return verifier.load(model).evaluate(torch.cartesian_prod(*sides).unsqueeze(1))[0].flatten(1)


def test_the_ends_close_in_on_those_of_a_grid(model: str, point: str, tmp_path: Path, capsys: Capture) -> None:
    files = [str(tmp_path / "found.npz"), str(tmp_path / "found.json")]
    asked = ["range", model, "--input", point, "--epsilon", "1/2", "--gap", "1e-4"]
    assert main([*asked, "--output", files[0], "--json", files[1]]) == 0
    captured = capsys.readouterr()
    assert captured.out.split("\n")[0].split() == ["output", "lower", "upper", "least", "greatest", "status"]
    assert "10 s for all values together; --timeout gives more or less" in captured.err
    assert "anytime bounds of 3 values over 1 region, known to within 0.0001" in captured.err
    values = grid(model, (0.25, -0.5), 0.5)
    arrays, record = np.load(files[0]), json.loads(Path(files[1]).read_text(encoding="utf-8"))
    jsonschema.validate(record, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert record["method"] == "anytime" and record["ending"] == "done" and record["gap"] == 1e-4
    for r, (_, *cells, status) in enumerate(table(captured.out)):
        lower, upper, least, greatest = map(float, cells)
        assert status == "exact" and 0 <= least - lower <= 1.01e-4 >= upper - greatest >= 0
        assert lower <= values[:, r].min() <= least + 0.02 and upper >= values[:, r].max() >= greatest - 0.02
        # What is printed is proven as well: outer ends are rounded outward, inner ones inward.
        full = [Fraction(record[side][0][r]) for side in ("lower", "upper", "least", "greatest")]
        printed = [Fraction(cell) for cell in cells]
        assert printed[0] <= full[0] and printed[1] >= full[1] and printed[2] >= full[2] and printed[3] <= full[3]
        stored = [arrays[side].reshape(-1)[r] for side in ("lower", "upper", "least", "greatest")]
        assert full == [Fraction(float(value)) for value in stored]
    assert arrays["lower"].shape == (1, *verifier.load(model).nodes[-1].shape)


def test_a_network_that_jumps_has_no_lipschitz_constant(point: str, tmp_path: Path, capsys: Capture) -> None:
    model = tmp_path / "sign.onnx"
    nodes = [onnx.helper.make_node("Sign", ["x"], ["y"])]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 2]) for name in "xy"]
    graph = onnx.helper.make_graph(nodes, "sign", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), model)
    assert main(["range", str(model), "--input", point, "--epsilon", "1"]) == 0
    out, err = capsys.readouterr()
    assert [line[-1] for line in table(out)] == ["exact", "exact"]
    assert "verifier: the network jumps at node 1 (Step), so that it has no Lipschitz constant" in err


def test_a_functional_is_drawn(model: str, point: str, tmp_path: Path, capsys: Capture) -> None:
    """The least probability of a class, with a picture of how it closed in."""
    picture = tmp_path / "a.svg"
    asked = ["range", model, "--input", point, "--epsilon", "1/4", "--functional", "softmax(y)[2]", "--gap", "1e-2"]
    assert main([*asked, "--plot", str(picture), "-q"]) == 0
    ((name, *cells, status),) = table(capsys.readouterr().out)
    shares = grid(model, (0.25, -0.5), 0.25).softmax(1)[:, 2]
    lower, upper, least, greatest = map(float, cells)
    assert name == "softmax(y)[2]" and status == "exact"
    assert lower <= shares.min() <= least + 1e-2 and greatest - 1e-2 <= shares.max() <= upper
    assert ElementTree.parse(picture).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_several_regions_and_margins(model: str, tmp_path: Path, capsys: Capture) -> None:
    x = np.array([[0.25, -0.5], [0.0, 1.0]])
    np.savez(tmp_path / "box.npz", lower=x - 0.25, upper=x + 0.25)
    assert main(["range", model, "--box", str(tmp_path / "box.npz"), "--label", "2", "-q", "--gap", "1e-3"]) == 0
    rows = [line.rsplit(maxsplit=5) for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0].split() for row in rows] == [[region, "2", "-", other] for region in "01" for other in "01"]
    for k, (_, lower, upper, least, greatest, status) in enumerate(rows):
        region, other = divmod(k, 2)
        values = grid(model, tuple(x[region]), 0.25)
        margin = values[:, 2] - values[:, other]
        assert status == "exact" and float(lower) <= margin.min() <= float(least) + 0.02
        assert float(upper) >= margin.max() >= float(greatest) - 0.02


@pytest.mark.parametrize("norm", ["2", "1"])
def test_balls(model: str, point: str, norm: str, capsys: Capture) -> None:
    asked = ["range", model, "--input", point, "--epsilon", "1/2", "--norm", norm, "-q", "--gap", "1e-2"]
    assert main(asked) == 0
    draw = torch.randn((2000, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draw = 0.5 * draw / draw.norm(p=float(norm), dim=1, keepdim=True)
    values = verifier.load(model).evaluate((torch.tensor([0.25, -0.5]) + draw).unsqueeze(1))[0].flatten(1)
    for r, (_, lower, upper, *_) in enumerate(table(capsys.readouterr().out)):
        assert float(lower) <= values[:, r].min() <= float(lower) + 0.05
        assert float(upper) - 0.05 <= values[:, r].max() <= float(upper)


@pytest.mark.parametrize("ending", ["interrupted", "limit"])
def test_what_is_known_is_printed_when_it_ends_early(
    model: str, point: str, ending: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The first bounds, and points that were tried, stand without any refinement."""

    def late(self: Turns, *arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt if ending == "interrupted" else OutOfTime

    monkeypatch.setattr(Turns, "_turn", late)
    assert main(["range", model, "--input", point, "--epsilon", "8"]) == (130 if ending == "interrupted" else 0)
    captured = capsys.readouterr()
    words = {"interrupted": "interrupted: 3 of 3", "limit": "the time is up: 3 of 3"}
    assert words[ending] in captured.err
    values = grid(model, (0.25, -0.5), 8.0, count=41)
    for r, (_, *cells, status) in enumerate(table(captured.out)):
        lower, upper, least, greatest = map(float, cells)
        assert status == "limit" and lower <= values[:, r].min() and values[:, r].max() <= upper
        assert lower < least <= greatest < upper


@pytest.mark.parametrize("options", [[], ["--label", "2"], ["--functional", "norm2(y)"], ["--method", "exact"]])
def test_a_time_that_is_up_before_the_search_leaves_a_weak_answer(
    model: str, point: str, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Interval bounds are there at once; an exact search has said nothing yet."""

    def late(*arguments: Any) -> Any:
        raise OutOfTime

    monkeypatch.setattr(anytime_range, "_turns", late)
    monkeypatch.setattr(exact_range, "_search", late)
    start = limits.now()
    monkeypatch.setattr(limits, "process_start", lambda: start)
    files = [str(tmp_path / name) for name in ("found.json", "found.npz")]
    asked = ["range", model, "--input", point, "--epsilon", "1/8", *options, "--timeout", "1000"]
    assert main([*asked, "--json", files[0], "--output", files[1]]) == 0
    captured = capsys.readouterr()
    record = json.loads(Path(files[0]).read_text(encoding="utf-8"))
    jsonschema.validate(record, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert record["ending"] == "limit" and "the time is up" in captured.err
    outputs = grid(model, (0.25, -0.5), 0.125, count=41)
    values = {"--label": outputs[:, 2:] - outputs[:, :2], "--functional": outputs.norm(dim=1, keepdim=True)}
    known = values.get(options[0] if options else "", outputs)
    rows = captured.out.splitlines()[1:]
    assert len(rows) == known.shape[1] and {row.split()[-1] for row in rows} == {"limit"}
    for row, column in zip(rows, known.unbind(1), strict=True):
        lower, upper, least, greatest = map(float, row.split()[-5:-1])
        assert lower <= column.min() and column.max() <= upper and (least, greatest) == (math.inf, -math.inf)
        assert math.isfinite(upper - lower) == ("exact" not in options)


@pytest.mark.parametrize("options", [[], ["--method", "exact"], ["--json", "-"]])
def test_a_time_that_is_up_before_the_model_is_read(
    model: str, point: str, options: list[str], capsys: Capture
) -> None:
    assert main(["range", model, "--input", point, "--epsilon", "1/8", *options, "--timeout", "1e-3"]) == 0
    captured = capsys.readouterr()
    assert "the time was up before the model was read, so that nothing is known of its outputs" in captured.err
    if "-" in options:
        record = json.loads(captured.out)
        jsonschema.validate(record, json.loads(SCHEMA.read_text(encoding="utf-8")))
        assert record["values"] == record["lower"] == [] and record["ending"] == "limit"
    else:
        assert captured.out.split() == ["output", "lower", "upper", "least", "greatest", "status"]
    assert main(["range", model, "--input", point, "--epsilon", "1/8", *options, "--timeout", "1e-3", "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_many_values_share_the_time(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value has its turn in a round, widest first; where nothing fits into memory they start again."""
    clock, order = [0.0], []
    monkeypatch.setattr(limits, "now", lambda: clock[0])

    def slow(graph: Any, region: Box, row: torch.Tensor, **options: Any) -> Iterator[Enclosure]:
        at = int(row.flatten().argmax())
        for _ in range(1000):
            clock[0] += 0.05
            order.append((float(region.lower[0].min()), at))
            yield Enclosure(-1e9, 1e9, -1e9, 1e9, None, None, "open", 1, 1, 0, 1, clock[0])

    monkeypatch.setattr(turns, "refine", slow)
    centres = torch.tensor([[[0.25, -0.5]], [[0.0, 1.0]]], dtype=torch.float64)
    box = Box(centres - 8, centres + 8)
    for memory in (1 << 30, 1):
        work = Turns(read_network(model), box, effort=Effort(memory=memory))
        assert (len(work.waiting), work._room() > 0) == (0, memory > 1)
        order.clear()
        work.run(clock[0] + 30)
        firsts = [place for k, place in enumerate(order) if place not in order[:k]]
        turns_of = [order.count(place) for place in firsts]
        assert len(firsts) == 6 and max(turns_of) <= 2 * min(turns_of)
        least = min(low for low, _ in firsts)
        gaps = [work._gap((int(low != least), at)) for low, at in firsts]
        assert gaps == sorted(gaps, reverse=True)
        assert {state for states in work.found().status for state in states} == {"limit"} and not work.waiting


def test_a_thousand_outputs_have_an_answer_at_once() -> None:
    """No refinement is begun before the deadline has been looked at."""
    network, box = wide_network(1000)
    work = Turns(network, box)
    work.run(limits.now())
    found = work.found()
    values = network.graph.evaluate(torch.rand(50, 1, 3))[0].flatten(1)
    assert bool((found.lower[0] <= values.amin(0)).all() and (values.amax(0) <= found.upper[0]).all())
    assert bool((found.lower <= found.least).all() and (found.greatest <= found.upper).all())


def wide_network(outputs: int) -> tuple[Any, Box]:
    """Three inputs, so many outputs; the unit box."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(3, 8)).astype("f4"), rng.normal(size=(8, outputs)).astype("f4")]
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
             helper.make_node("MatMul", ["r", "w1"], ["y"])]  # fmt: skip
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, s]) for n, s in (("x", 3), ("y", outputs))]
    stored = [numpy_helper.from_array(w, f"w{k}") for k, w in enumerate(weights)]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], stored))
    model.opset_import[0].version, model.ir_version = 13, 8
    return read_network(onnx.load_from_string(model.SerializeToString()).SerializeToString()), Box(
        torch.zeros(1, 1, 3, dtype=torch.float64), torch.ones(1, 1, 3, dtype=torch.float64)
    )


def test_a_checkpoint_goes_on(model: str, point: str, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "state.npz"
    asked = ["range", model, "--input", point, "--epsilon", "2", "--functional", "norm2(y)", "--checkpoint", str(file)]
    # Nothing is left to do at a wide gap: the file is removed. At a narrow one the memory is used up first.
    assert main([*asked, "--gap", "1e-9", "--memory", "1e-6", "--timeout", "600"]) == 0
    captured = capsys.readouterr()
    assert file.exists() and f"the same command goes on from {file}" in captured.err
    assert "the memory is used up (--memory): 1 of 1 are not known to within 1e-09" in captured.err
    ((_, *first, status),) = table(captured.out)
    assert status == "limit"
    assert main([*asked, "--gap", "0.5", "-q"]) == 0
    ((_, *second, status),) = table(capsys.readouterr().out)
    assert status == "exact" and not file.exists()
    assert float(first[0]) <= float(second[0]) and float(second[1]) <= float(first[1])


def test_a_missing_file_is_named_before_the_time_is_up(model: str, point: str, capsys: Capture) -> None:
    for asked in ([model, "--input", "no.npy"], ["no.onnx", "--input", point]):
        assert main(["range", *asked, "--epsilon", "1", "--timeout", "1e-3"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and "no such file" in err


@pytest.mark.parametrize("stands", [True, False])
def test_a_file_for_which_there_is_nothing_is_said(
    model: str, point: str, stands: bool, tmp_path: Path, capsys: Capture
) -> None:
    picture = tmp_path / "ends.svg"
    if stands:
        picture.write_text("older", encoding="utf-8")
    asked = ["range", model, "--input", point, "--epsilon", "1", "--functional", "y[0]", "--timeout", "1e-3"]
    assert main([*asked, "--plot", str(picture)]) == 0
    said = "what is there is older" if stands else "no file is there"
    assert f"{picture}: not written, since nothing was found; {said}" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["-q"]])
def test_what_is_logged_is_a_line_unless_quiet_is_asked(
    model: str, point: str, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def run(self: Turns, *arguments: Any, **others: Any) -> None:
        logging.getLogger("verifier.anytime.refinement").warning("node 3 has no finite bounds")

    monkeypatch.setattr(Turns, "run", run)
    for _ in range(2):  # a second command in one process says it once, too
        assert main(["range", model, "--input", point, "--epsilon", "1", *options]) == 0
        said = [line for line in capsys.readouterr().err.splitlines() if "no finite bounds" in line]
        assert said == ([] if options else ["verifier: node 3 has no finite bounds"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "crown", "--functional", "y[0]"], "--functional goes with --method anytime, not with crown"),
        (["--method", "exact", "--memory", "1"], "--memory goes with --method anytime"),
        (["--method", "crown", "--timeout", "1"], "--timeout goes with --method exact and anytime"),
        (["--functional", "y[0]", "--label", "1"], "--functional and --label: one of the two"),
        (["--functional", "y[9]"], "there are the elements 0 to 2"),
        (["--semantics", "float32"], "goes with the methods interval, forward, crown and alpha"),
        (["--envelope", "0.1"], "--envelope goes with --method exact"),
        (["--device", "cuda:0"], "--method anytime works on the processor"),
        (["--checkpoint", "c.npz"], "--checkpoint is about one value over one region; these are 3 over 1"),
        (["--plot", "p.svg"], "--plot is about one value over one region"),
    ],
)
def test_what_is_wrong_is_named(model: str, point: str, options: list[str], message: str, capsys: Capture) -> None:
    assert main(["range", model, "--input", point, "--epsilon", "1/8", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and captured.err.count("\n") == 1
