"""Progress on stderr."""

from __future__ import annotations

import sys

import pytest

from verifier import cli, limits
from verifier.cli import INTERRUPTED, parser
from verifier.cli.display import INTERVAL, Display, Mode, choose_mode, describe
from verifier.verdict import Progress


def test_without_a_terminal_a_line_every_half_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert INTERVAL == 30 and choose_mode(quiet=False) == "lines" and choose_mode(quiet=True) == "quiet"
    clock = [1000.0]
    monkeypatch.setattr(limits, "now", lambda: clock[0])
    with Display("lines") as display:
        for second in range(100):
            clock[0] = 1000.0 + second
            display.show(f"at {second}")
    assert capsys.readouterr() == ("", "at 30\nat 60\nat 90\n")


def test_quiet_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = [1000.0]
    monkeypatch.setattr(limits, "now", lambda: clock[0])
    with Display("quiet") as display:
        clock[0] += 100
        display.show("nothing")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_live_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert choose_mode(quiet=False) == "live"
    with Display("live") as display:
        display.show("first")
        display.show("[last]")
    out, err = capsys.readouterr()
    assert out == "" and "[last]" in err and "\x1b[3" not in err


@pytest.mark.parametrize("mode", ["lines", "live"])
def test_a_line_that_stays(mode: Mode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with Display(mode) as display:
        display.show("before")
        display.say("kept [whole] " + 200 * "x")
    out, err = capsys.readouterr()
    assert out == "" and "kept [whole] " + 200 * "x" + "\n" in err


def test_what_is_said() -> None:
    assert describe(Progress("load"), 0.4) == "0 s, load"
    progress = Progress("input split", -0.123456, 12, 0.25)
    assert describe(progress, 61.2) == "61 s, input split, bound -0.1235, 12 open subproblems, 25% open"
    progress = Progress("input split", -0.123456, 12, 1.0, upper_bound=0.75)
    assert describe(progress, 61.2) == "61 s, input split, bound -0.1235, at most 0.75, 12 open subproblems"


def test_ctrl_c_before_the_query_was_put(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(parser, "build", interrupt)
    assert cli.main(["verify", "a.onnx", "b.vnnlib"]) == INTERRUPTED
    assert capsys.readouterr().out == "unknown\n"
