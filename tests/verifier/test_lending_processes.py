"""A second process of a shared search: it ends with the run and with its worker, and its memory is counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch

import verifier
from verifier import pipeline, protocol
from verifier.lending import Lender
from verifier.process import Event, WorkerProcess, worker_command
from verifier.strategy import Strategy
from verifier.tasks import read_task

Ask = Callable[[str], protocol.Message]
Choose = Callable[[verifier.Query], Strategy]

pytestmark = pytest.mark.usefixtures("one_thread")

SCRIPT = """
import os, signal, sys, time
from verifier.worker import serve
def respond(request, send):
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)
serve(sys.argv[2:], lambda: None, respond)
"""


def scripted(mode: str) -> Callable[[SimpleQueue[Event]], WorkerProcess]:
    command = [sys.executable, "-c", SCRIPT, mode, str(os.getpid())]
    return lambda events: WorkerProcess(events, threads=1, command=command, leader=False)


def alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_ready(lender: Lender) -> None:
    while not lender.ready():
        assert lender.hear(0.1) is None


@pytest.mark.parametrize("mode", ["borrower", "killed"])
def test_a_second_process_ends_with_the_run(
    ask: Ask, strategy_of: Choose, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "verifier.lending")
    task, said = ask("0.103"), list[protocol.Message]()
    query, threads = read_task(task), torch.get_num_threads()
    lender = Lender(task, said.append, None if mode == "borrower" else scripted(mode))
    wait_until_ready(lender)
    assert alive(said[0]["pid"])
    verdict = pipeline.verify(query, timeout=300, strategy=strategy_of(query), lender=lender)
    assert isinstance(verdict, verifier.Verified)
    assert "are lent" in caplog.text
    assert ("is closed" if mode == "borrower" else "has ended") in caplog.text
    assert not alive(said[0]["pid"]) and said[-1] == {"type": "second", "pid": None}
    assert torch.get_num_threads() == threads


def test_the_deadline_does_not_wait_for_a_borrower(
    ask: Ask, strategy_of: Choose, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that sleeps: its half stays open, and the process is gone. The clock jumps."""
    caplog.set_level("INFO", "verifier.lending")
    clock, late = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock() + late[0])

    def watch(progress: verifier.Progress) -> None:
        if " lent" in caplog.text:
            late[0] = 50.0

    task, said = ask("0.103"), list[protocol.Message]()
    query = read_task(task)
    lender = Lender(task, said.append, scripted("asleep"))
    wait_until_ready(lender)
    verdict = pipeline.verify(query, timeout=50, strategy=strategy_of(query), lender=lender, report=watch)
    assert isinstance(verdict, verifier.TimedOut) and verdict.best_bound <= 0
    assert 0 < verdict.open_share <= 1
    assert not alive(said[0]["pid"])


PARENT = """
import sys, time
from verifier.lending import Lender
lender = Lender({}, lambda message: print(message["pid"], flush=True))
while not lender.ready():
    lender.hear(0.1)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the end of its stdin ends it")
def test_a_borrower_dies_with_a_killed_worker() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert parent.stdout.readline() == "ready\n" and alive(pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(200):
        if not alive(pid):
            break
        time.sleep(0.05)
    assert not alive(pid)


def test_memory_of_both_is_counted() -> None:
    events = SimpleQueue[Event]()
    one, two = (WorkerProcess(events, threads=1, command=[sys.executable, "-c", "input()"]) for _ in range(2))
    try:
        alone = one.resident_bytes()
        one.second = two.process.pid
        assert one.resident_bytes() > alone > 0
    finally:
        one.kill()
        two.kill()


def test_a_borrower_has_one_thread_whatever_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    events = SimpleQueue[Event]()
    say = "import os, sys; sys.exit(int(os.environ['OMP_NUM_THREADS']) + 10 * (os.getpgid(0) == os.getpid()))"
    ends = []
    for leader in (False, True):
        process = WorkerProcess(events, threads=1, command=[sys.executable, "-c", say], leader=leader)
        ends.append(process.process.wait())
    assert ends == [1, 17]
    assert worker_command("verifier.borrower")[3] == "verifier.borrower"
