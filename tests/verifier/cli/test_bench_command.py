"""``verifier bench`` against a fake engine: rows, resumption, wrong results, replaced workers, the summary."""

from __future__ import annotations

import csv
import json
import os
import signal
import threading
from pathlib import Path

import pytest

from verifier import bench
from verifier.cli import INTERRUPTED, parser
from verifier.cli import bench as command
from verifier.errors import InputError, InternalError
from verifier.instances import HEADER, Instance, Row, Table, parse_networks, read_instances

KINDS = {"sat": "sat", "unsat": "unsat", "unknown": "unsat", "crash": "", "unsupported": "sat", "input": "unknown"}


def benchmark(folder: Path, kinds: dict[str, str], limit: str = "30") -> Path:
    for name in ("onnx", "vnnlib"):
        (folder / name).mkdir(parents=True)
    (folder / "onnx" / "net.onnx.gz").touch()
    rows = []
    for kind, expected in kinds.items():
        (folder / "vnnlib" / f"{kind}.vnnlib").touch()
        rows.append(f"onnx/net.onnx,vnnlib/{kind}.vnnlib,{limit}" + (f",{expected}" if expected else ""))
    (folder / "instances.csv").write_text("\n".join(rows) + "\n")
    return folder


def run(fake_worker: list[str], *arguments: object) -> int:
    return command.run(parser.build().parse_args(["bench", *map(str, arguments)]), fake_worker)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert tuple(reader.fieldnames or ()) == HEADER
    return rows


@pytest.mark.parametrize("options", [[], ["--jobs", "2"], ["--cold", "--jobs", "2"]])
def test_every_instance_gets_its_row(
    options: list[str], fake_worker: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = benchmark(tmp_path / "mine", KINDS)
    out = tmp_path / "out.csv"
    assert run(fake_worker, folder, "--out", out, *options) == 0
    rows = {row["vnnlib"].partition("/")[2].removesuffix(".vnnlib"): row for row in rows_of(out)}
    assert {kind: row["result"] for kind, row in rows.items()} == {
        "sat": "sat",
        "unsat": "unsat",
        "unknown": "unknown",
        "crash": "unknown",
        "unsupported": "unknown",
        "input": "error",
    }
    assert {row["benchmark"] for row in rows.values()} == {"mine"}
    assert {kind: row["expected"] for kind, row in rows.items()} == KINDS
    assert "SIGSEGV" in rows["crash"]["reason"] and rows["crash"]["stage"] == "splitting"
    assert rows["unsupported"]["reason"].startswith("unsupported: ") and rows["unsupported"]["stage"] == "load"
    assert all(float(row["seconds"]) >= 0 for row in rows.values())
    text = capsys.readouterr().out
    assert "1 without a verdict: unsupported: unsupported trouble" in text
    assert text.splitlines()[1].split()[:9] == ["mine", "6", "2", "1", "1", "0", "3", "1", "0"]


def test_a_wrong_result_is_shouted_and_fails(
    fake_worker: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = benchmark(tmp_path / "mine", {"sat": "unsat", "unsat": "unsat"})
    assert run(fake_worker, folder, "--out", tmp_path / "out.csv", "--json", tmp_path / "s.json") == command.FOUND_WRONG
    assert "WRONG: mine onnx/net.onnx vnnlib/sat.vnnlib: sat, expected unsat" in capsys.readouterr().err
    (listed,) = json.loads((tmp_path / "s.json").read_text())["benchmarks"]
    assert (listed["instances"], listed["solved"], listed["wrong"]) == (2, 1, 1)


def test_the_smaller_limit_counts_and_the_worker_is_replaced(fake_worker: list[str], tmp_path: Path) -> None:
    folder = benchmark(tmp_path / "mine", {"slow": "", "unsat": ""}, limit="1")
    assert run(fake_worker, folder, "--out", tmp_path / "out.csv", "--timeout", "500") == 0
    assert [row["result"] for row in rows_of(tmp_path / "out.csv")] == ["timeout", "unsat"]
    (tmp_path / "mine" / "instances.csv").write_text("onnx/net.onnx,vnnlib/slow.vnnlib,500\n")
    assert run(fake_worker, folder, "--out", tmp_path / "out.csv", "--timeout", "1", "--overwrite") == 0
    (row,) = rows_of(tmp_path / "out.csv")
    assert row["result"] == "timeout" and float(row["seconds"]) < 100


def test_workers_never_see_what_is_expected(tmp_path: Path) -> None:
    (instance,) = read_instances([benchmark(tmp_path / "mine", {"secret": "unsat"})])
    assert instance.expected == "unsat"
    assert "unsat" not in json.dumps(bench.task(instance, 1))


def test_resumption_runs_what_is_left(fake_worker: list[str], tmp_path: Path) -> None:
    folder, out = benchmark(tmp_path / "mine", {"sat": "sat", "unsat": "unsat", "unknown": ""}), tmp_path / "out.csv"
    assert run(fake_worker, folder, "--out", out) == 0
    complete = out.read_text()
    lines = complete.splitlines(keepends=True)
    marked = lines[1].replace(",fake", ",kept")
    out.write_text(lines[0] + marked + lines[2][:15])  # the last line was cut off
    assert run(fake_worker, folder, "--out", out, "--resume") == 0
    after = rows_of(out)
    assert [row["vnnlib"] for row in after] == [f"vnnlib/{kind}.vnnlib" for kind in ("sat", "unsat", "unknown")]
    assert [row["stage"] for row in after] == ["kept", "fake", "fake"]
    before = out.read_bytes()
    assert run(fake_worker, folder, "--out", out, "--resume") == 0
    assert out.read_bytes() == before


def test_an_existing_table_is_not_overwritten_by_mistake(fake_worker: list[str], tmp_path: Path) -> None:
    folder = benchmark(tmp_path / "mine", {"sat": ""})
    (tmp_path / "out.csv").write_text("precious")
    for option in ([], ["--resume"]):
        with pytest.raises(InputError):
            run(fake_worker, folder, "--out", tmp_path / "out.csv", *option)
    assert (tmp_path / "out.csv").read_text() == "precious"


@pytest.mark.parametrize("cut", ["", "bench"])
def test_a_table_cut_in_its_header_starts_anew(cut: str, tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text(cut)
    table = Table(tmp_path / "out.csv", resume=True)
    table.append(Row("b", "o", "v", "unknown", "1.00", "", 'two\nlines, "quoted"', "load"))
    table.close()
    (row,) = Table(tmp_path / "out.csv", resume=True).rows
    assert row.reason == 'two lines, "quoted"'


def test_ctrl_c_keeps_the_rows_and_prints_the_table(
    fake_worker: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = benchmark(tmp_path / "mine", {"sat": "", "slow": ""})
    pid = os.getpid()

    def interrupt_after_the_first_row() -> None:
        for _ in range(600):
            if (tmp_path / "out.csv").exists() and len((tmp_path / "out.csv").read_text().splitlines()) == 2:
                break
            threading.Event().wait(0.1)
        os.kill(pid, signal.SIGINT)

    threading.Thread(target=interrupt_after_the_first_row).start()
    assert run(fake_worker, folder, "--out", tmp_path / "out.csv") == INTERRUPTED
    assert [row["result"] for row in rows_of(tmp_path / "out.csv")] == ["sat"]
    out, err = capsys.readouterr()
    assert "--resume" in err and out.splitlines()[1].split()[:3] == ["mine", "1", "1"]


def test_counterexamples_are_written(fake_worker: list[str], tmp_path: Path) -> None:
    folder = benchmark(tmp_path / "mine", {"sat": "sat", "unsat": ""})
    assert run(fake_worker, folder, "--out", tmp_path / "out.csv", "--witness-dir", tmp_path / "found") == 0
    (written,) = [path for path in (tmp_path / "found").rglob("*") if path.is_file()]
    assert written == tmp_path / "found" / "mine" / "net_sat.counterexample"
    assert written.read_text() == "sat\n((X_0 0.5)\n(Y_0 -1.25))\n"


def test_a_counterexample_that_cannot_be_written_is_come_back_for(fake_worker: list[str], tmp_path: Path) -> None:
    folder, out = benchmark(tmp_path / "mine", {"sat": "sat"}), tmp_path / "out.csv"
    found = tmp_path / "found"
    found.mkdir()
    (found / "mine").touch()
    with pytest.raises(InputError, match="--witness-dir .*net_sat.counterexample: .*--resume"):
        run(fake_worker, folder, "--out", out, "--witness-dir", found)
    assert rows_of(out) == []
    (found / "mine").unlink()
    assert run(fake_worker, folder, "--out", out, "--witness-dir", found, "--resume") == 0
    assert len(rows_of(out)) == 1 and (found / "mine" / "net_sat.counterexample").is_file()


def test_workers_that_do_not_start_are_our_fault(tmp_path: Path) -> None:
    instances = read_instances([benchmark(tmp_path / "mine", {"sat": ""})])
    pool = bench.Pool(instances, bench.Plan(command=["false"]))
    with pytest.raises(InternalError, match="exit code 1"):
        list(pool.run())


def test_folders_of_benchmarks_and_lists_over_them(tmp_path: Path) -> None:
    benchmark(tmp_path / "one", {"sat": ""})
    benchmark(tmp_path / "two" / "2.0", {"unsat": ""})
    assert [i.benchmark for i in read_instances([tmp_path])] == ["one", "two/2.0"]
    (tmp_path / "quick.csv").write_text("one/onnx/net.onnx,one/vnnlib/sat.vnnlib,5.5,SAT\r\n\r\n")
    (instance,) = read_instances([tmp_path / "quick.csv"])
    assert (instance.benchmark, instance.timeout, instance.expected) == ("one", 5.5, "sat")
    assert instance.networks == (("", tmp_path / "one" / "onnx" / "net.onnx.gz"),)
    assert len(read_instances([tmp_path / "one", tmp_path / "quick.csv"])) == 2
    for elsewhere in (tmp_path / "one", Path("..") / tmp_path.name / "one"):
        (tmp_path / "quick.csv").write_text(f"{elsewhere}/onnx/net.onnx,{elsewhere}/vnnlib/sat.vnnlib,5\n")
        (instance,) = read_instances([tmp_path / "quick.csv"])
        assert instance.benchmark == tmp_path.name
        row = Row(*instance.key, "sat", "1", "", "", "")
        found = bench.evidence_file(Path("w"), row.key, "counterexample")
        assert found == Path("w") / tmp_path.name / "net_sat.counterexample"


def test_several_networks_in_one_field(tmp_path: Path) -> None:
    assert parse_networks("a.onnx") == (("", "a.onnx"),)
    assert parse_networks('[("f", "a.onnx"), ("g", "b.onnx")]') == (("f", "a.onnx"), ("g", "b.onnx"))
    for wrong in ("[", "[1]", "[('f',)]", "[__import__('os')]"):
        with pytest.raises(ValueError, match="pairs"):
            parse_networks(wrong)
    (tmp_path / "instances.csv").write_text('"[(""f"", ""a.onnx""), (""g"", ""b.onnx"")]",q.vnnlib,5\n')
    (instance,) = read_instances([tmp_path])
    assert [name for name, _ in instance.networks] == ["f", "g"]
    row = Row(*instance.key, "sat", "1", "", "", "")
    assert bench.evidence_file(Path("w"), row.key, "counterexample").name.endswith("_q.counterexample")


@pytest.mark.parametrize(
    "line", ["a.onnx,p.vnnlib", "a,b,c,d,e", "a,b,soon", "a,b,-1", "a,b,nan", "a,b,5,maybe", '["f"],b,5']
)
def test_a_bad_list_names_its_line(line: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("a.onnx,p.vnnlib,5\n" + line + "\n")
    with pytest.raises(InputError, match="list.csv, line 2"):
        read_instances([tmp_path / "list.csv"])


def test_nothing_to_run_is_an_error(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError):
            read_instances([source])
    (tmp_path / "instances.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError):
        read_instances([tmp_path])


def test_an_instance_listed_twice_needs_two_rows(fake_worker: list[str], tmp_path: Path) -> None:
    folder = benchmark(tmp_path / "mine", {"unsat": ""})
    text = (folder / "instances.csv").read_text()
    (folder / "instances.csv").write_text(text * 2)
    assert run(fake_worker, folder, "--out", tmp_path / "out.csv") == 0
    assert run(fake_worker, folder, "--out", tmp_path / "out.csv", "--resume") == 0
    assert len(rows_of(tmp_path / "out.csv")) == 2


def test_instances_are_values() -> None:
    instance = Instance("b", "o", "v", (("", Path("o")),), Path("v"), 1.0)
    assert instance.key == ("b", "o", "v")
