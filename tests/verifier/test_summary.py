"""What a table of results amounts to."""

from __future__ import annotations

from dataclasses import replace

from verifier.instances import Row
from verifier.report.summary import TOTAL, as_data, as_text, shorten, summarise_rows
from verifier.verdict import TO_TOLERANCE


def row(benchmark: str, result: str, expected: str = "", seconds: str = "1.00", reason: str = "") -> Row:
    return Row(benchmark, "n.onnx", "p.vnnlib", result, seconds, expected, reason, "stage")


ROWS = [
    row("a", "sat", "sat", "3.00"),
    row("a", "unsat", "sat"),
    row("a", "unknown", "unsat", "8.00", "nothing left"),
    row("a", "unknown", "", "8.00", "nothing left"),
    row("b", "timeout", "", "20.00", "time limit"),
    row("b", "error", "sat", "0.00", "input: x.onnx: no such file"),
    row("b", "unsat", "unknown", "1.00"),
]


def test_counts() -> None:
    a, b, total = summarise_rows(ROWS)
    assert (a.benchmark, a.instances, a.solved, a.sat, a.unsat, a.unknown, a.wrong) == ("a", 4, 1, 1, 1, 2, 1)
    assert (b.instances, b.solved, b.timeout, b.error, b.wrong) == (3, 1, 1, 1, 0)
    assert a.reasons == (("nothing left", 2),) and b.reasons == (("input: no such file", 1),)
    assert (a.total_seconds, a.median_seconds) == (20.0, 5.5)
    assert (total.benchmark, total.instances, total.solved, total.wrong) == (TOTAL, 7, 2, 1)
    assert summarise_rows([]) == [] and len(summarise_rows(ROWS[:2])) == 1


def test_text_lines_up_and_gives_reasons_once() -> None:
    text = as_text(summarise_rows(ROWS))
    table = text.splitlines()[:4]
    assert len({len(line) for line in table}) == 1
    assert table[0].split()[:3] == ["benchmark", "instances", "solved"] and table[3].startswith("total")
    assert text.count("a: 2 without a verdict: nothing left") == 1 and "total: " not in text


def test_what_a_solver_alone_refutes_is_counted_apart() -> None:
    rows = [row("a", "unknown", "unsat", "9.00", TO_TOLERANCE), row("a", "unsat", "unsat"), *ROWS[2:4]]
    (summary,) = summarise_rows(rows)
    assert (summary.solved, summary.unsat, summary.unknown) == (1, 1, 3)
    assert dict(summary.reasons) == {"nothing left": 2, TO_TOLERANCE: 1}
    assert "a: 1 without a verdict: refuted to solver tolerance 1e-6" in as_text([summary]).splitlines()
    assert as_data([summary])["benchmarks"][0]["reasons"][TO_TOLERANCE] == 1


def test_the_greatest_memory_of_the_rows() -> None:
    rows = [replace(ROWS[0], peak_mb="90"), replace(ROWS[1], peak_mb="1200"), ROWS[2]]
    (summary,) = summarise_rows(rows)
    assert summary.peak_mb == 1200 and as_text([summary]).splitlines()[1].split()[-1] == "1200"
    assert summarise_rows(ROWS[:1])[0].peak_mb == 0


def test_data() -> None:
    data = as_data(summarise_rows(ROWS))
    assert data["schema"] == "nn-verifier/bench/1"
    assert [entry["benchmark"] for entry in data["benchmarks"]] == ["a", "b", "total"]
    assert data["benchmarks"][0]["reasons"] == {"nothing left": 2}


def test_reasons_are_shortened_to_what_they_have_in_common() -> None:
    listed = "MatMul (1 node, first '/1/fn'); Softmax (2)"
    reason = f"unsupported: /far/away/net_1.onnx.gz: operators not supported: {listed}"
    assert shorten(reason) == "unsupported: operators not supported: MatMul; Softmax"
    assert shorten("time limit") == "time limit"
    assert len(shorten("x" * 500)) == 80
