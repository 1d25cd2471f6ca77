"""``verifier export`` in process: files whose optimum tells the verdict, and honest errors."""

from __future__ import annotations

from pathlib import Path

import highspy
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import verifier
from verifier.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def corpus(checkout: Path) -> Path:
    return checkout / "tests" / "corpus"


def optimum(path: Path) -> float:
    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    assert highs.readModel(str(path)) == highspy.HighsStatus.kOk
    highs.run()
    assert highs.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return float(highs.getInfo().objective_function_value)


def files(corpus: Path, name: str) -> list[str]:
    return [str(corpus / f"{name}.onnx"), str(corpus / f"{name}.vnnlib")]


@pytest.mark.parametrize("ending", ["lp", "mps"])
@pytest.mark.parametrize("verdict", ["sat", "unsat"])
def test_the_optimum_tells_the_verdict(
    corpus: Path, tmp_path: Path, ending: str, verdict: str, capsys: Capture
) -> None:
    out = tmp_path / f"query.{ending}"
    assert main(["export", *files(corpus, f"ranking_deep_{verdict}"), str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}\n"
    assert captured.err.startswith("verifier: 1 program, ") and captured.err.endswith("s; exact\n")
    assert (optimum(out) > 0) == (verdict == "unsat")
    head = out.read_text(encoding="ascii").splitlines()[:4]
    assert "box 0" in head[0] and "above 0, no input of the box makes one of them true" in head[1]
    assert [*tmp_path.iterdir()] == [out]


def test_a_file_for_each_clause_or_box(corpus: Path, tmp_path: Path, capsys: Capture) -> None:
    """The least of the clauses' optima is that of the boxes; one clause alone is the same program."""
    given, out = files(corpus, "regions_plane_unsat"), tmp_path / "query.lp"
    assert main(["export", *given, str(out)]) == 2
    message = capsys.readouterr().err
    assert "boxes with" in message and "query-box0.lp" in message and "--each clause" in message
    optima = {}
    for each in ("box", "clause"):
        assert main(["export", *given, str(out), "--each", each, "-q"]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        paths = [Path(line) for line in captured.out.splitlines()]
        assert paths == [tmp_path / f"query-{each}{k}.lp" for k in range(len(paths))] and len(paths) > 1
        optima[each] = [optimum(path) for path in paths]
    assert min(optima["box"]) == pytest.approx(min(optima["clause"]), abs=1e-6)
    assert main(["export", *given, str(out), "--clause", "1"]) == 0
    one, same = (path.read_text(encoding="ascii") for path in (out, tmp_path / "query-clause1.lp"))
    assert one == same


def test_bounds_of_other_methods_make_another_program_of_the_same_optimum(corpus: Path, tmp_path: Path) -> None:
    texts, optima = set(), []
    for method in ("interval", "alpha"):
        out = tmp_path / f"{method}.lp"
        assert main(["export", *files(corpus, "ranking_deep_sat"), str(out), "--method", method, "-q"]) == 0
        texts.add(out.read_text(encoding="ascii"))
        optima.append(optimum(out))
    assert len(texts) == 2 and optima[0] == pytest.approx(optima[1], abs=1e-6)


def sigmoid_query(folder: Path) -> list[str]:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["s"], name="squash"),
        helper.make_node("MatMul", ["s", "v"], ["y"]),
    ]
    arrays = {"w": [[1.0, -2.0], [0.5, 1.0]], "v": [[1.0], [1.0]]}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(np.array(w, dtype=np.float32), name) for name, w in arrays.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    (folder / "p.vnnlib").write_text(
        "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)"
        "(assert (>= X_0 -1))(assert (<= X_0 1))(assert (>= X_1 -1))(assert (<= X_1 1))(assert (<= Y_0 0.75))"
    )
    return [str(folder / "m.onnx"), str(folder / "p.vnnlib")]


def test_an_operator_without_an_exact_form_needs_an_envelope(tmp_path: Path, capsys: Capture) -> None:
    given, out = sigmoid_query(tmp_path), tmp_path / "q.lp"
    assert main(["export", *given, str(out)]) == 3
    captured = capsys.readouterr()
    assert captured.out == "" and "Sigmoid" in captured.err and "node s" in captured.err
    assert "--envelope ERROR" in captured.err and captured.err.count("\n") == 1 and not out.exists()
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (20000, 2))
    sampled = (1 / (1 + np.exp(-x @ np.array([[1.0, -2.0], [0.5, 1.0]])))).sum(1).min() - 0.75
    found = []
    for error in ("0.5", "0.01"):
        assert main(["export", *given, str(out), "--envelope", error]) == 0
        captured = capsys.readouterr()
        assert captured.err.endswith("; an over-approximation\n")
        assert "the margin may lie above the minimum" in out.read_text(encoding="ascii")
        found.append(optimum(out))
    assert found[0] <= found[1] <= sampled and sampled - found[1] < 0.1


def test_a_query_of_two_networks(corpus: Path, tmp_path: Path, capsys: Capture) -> None:
    """A network and itself at another input: the columns are named as both inputs are declared."""
    query, out = tmp_path / "q.vnnlib", tmp_path / "q.mps"
    model = files(corpus, "threshold_line_sat")[0]
    query.write_text("""(vnnlib-version <2.0>)
(declare-network f (declare-input X float32 [1,1]) (declare-output Y float32 [1,1]))
(declare-network g (equal-to f) (declare-input U float32 [1,1]) (declare-output V float32 [1,1]))
(assert (and (>= X[0,0] -1.0) (<= X[0,0] 1.0)))(assert (and (>= U[0,0] -1.0) (<= U[0,0] 0.5)))
(assert (<= Y[0,0] (- V[0,0] 0.125)))""")
    assert main(["export", str(query), str(out), "--network", f"f={model}"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    x = np.linspace(-1, 1, 4001)
    y = verifier.load(model).evaluate(torch.from_numpy(x)[:, None, None])[0].flatten().numpy()
    assert optimum(out) == pytest.approx(y.min() - y[x <= 0.5].max() + 0.125, abs=1e-2)
    text = out.read_text(encoding="ascii")
    assert "BND X_0 -1.0" in text and "BND U_0 0.5" in text


def test_a_clause_without_literals_is_said(corpus: Path, tmp_path: Path, capsys: Capture) -> None:
    box = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 0))(assert (<= X_0 1))"
    (tmp_path / "box.vnnlib").write_text(box)
    model = files(corpus, "threshold_line_sat")[0]
    assert main(["export", model, str(tmp_path / "box.vnnlib"), str(tmp_path / "q.lp")]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "clause 0 has no literals: every input of its box is a counterexample" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "PROPERTY"], "expected MODEL.onnx PROPERTY.vnnlib OUT.lp (or .mps), got 2 file(s)"),
        (["PROPERTY", "--network", "n=MODEL"], "expected QUERY.vnnlib OUT.lp (or .mps), got 1 file(s)"),
        (["MODEL", "PROPERTY", "FOLDER/out.txt"], "its ending says how: .lp or .mps"),
        (["MODEL", "PROPERTY", "FOLDER/nowhere/out.lp"], "nowhere does not exist"),
        (["MODEL", "PROPERTY", "FOLDER/out.lp", "--clause", "99"], "--clause 99: the property has the clauses 0 to"),
        (["MODEL", "FOLDER/none.vnnlib", "FOLDER/out.lp"], "none.vnnlib"),
        (["EMPTY", "EMPTY", "FOLDER/out.lp"], "the property holds, there is nothing to write"),
    ],
)
def test_what_is_wrong_is_named(
    corpus: Path, tmp_path: Path, arguments: list[str], message: str, capsys: Capture
) -> None:
    model, prop = files(corpus, "ranking_deep_sat")
    if arguments[0] == "EMPTY":
        model, prop = files(corpus, "empty_plane_unsat")
        arguments = ["MODEL", "PROPERTY", *arguments[2:]]
    words = [a.replace("MODEL", model).replace("PROPERTY", prop).replace("FOLDER", str(tmp_path)) for a in arguments]
    assert main(["export", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and captured.err.count("\n") == 1
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("options", [["--clause", "-1"], ["--clause", "0", "--each", "box"], ["--envelope", "0"]])
def test_wrong_options_are_usage_errors(corpus: Path, options: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["export", *files(corpus, "ranking_deep_sat"), "out.lp", *options])
    assert caught.value.code == 2 and options[-2] in capsys.readouterr().err
