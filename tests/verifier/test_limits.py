"""Deadlines, the environment of workers, and what is measured about processes; the messages between them."""

from __future__ import annotations

import io
import math
import os

import pytest

from verifier import limits, protocol
from verifier.errors import InputError
from verifier.report.result import number


def test_the_process_started_before_now() -> None:
    assert limits.now() - 24 * 3600 < limits.process_start() <= limits.now()


def test_deadlines_are_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "now", lambda: 100.0)
    assert (limits.deadline(None), limits.deadline(0), limits.deadline(2.5)) == (math.inf, 100.0, 102.5)
    for wrong in (-1.0, math.nan):
        with pytest.raises(InputError, match="seconds, at least 0"):
            limits.deadline(wrong)


def test_a_worker_stops_before_it_is_killed() -> None:
    for seconds in (0.1, 1.0, 20.0, 3600.0):
        soft = limits.soft_deadline(100.0, 100.0 + seconds)
        assert 100.0 < soft < 100.0 + seconds and seconds - (soft - 100.0) <= 0.5


def test_threads_are_held_for_all_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    environment = limits.thread_environment(3)
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    environment = limits.thread_environment(3)
    assert environment["MKL_NUM_THREADS"] == "1" and environment["OMP_WAIT_POLICY"] == "ACTIVE"


def test_memory_is_measured() -> None:
    assert limits.resident_bytes(os.getpid()) > 10**6
    assert limits.resident_bytes(2**30) == 0


def test_the_most_memory_held_outlives_its_release() -> None:
    block = bytearray(b"x") * (64 << 20)
    del block
    assert limits.peak_bytes(os.getpid()) >= max(64 << 20, limits.resident_bytes(os.getpid()))
    assert limits.peak_bytes(2**30) == 0


def test_messages_come_back_as_they_were_sent() -> None:
    stream = io.BytesIO()
    messages = [{"type": "a", "text": "ü\n"}, {"bound": -math.inf}, {}]
    for message in messages:
        protocol.send(stream, message)
    stream.seek(0)
    assert [protocol.receive(stream) for _ in range(4)] == [*messages, None]


def test_a_cut_message_is_the_end() -> None:
    stream = io.BytesIO()
    protocol.send(stream, {"type": "verdict"})
    whole = stream.getvalue()
    for length in range(len(whole)):
        assert protocol.receive(io.BytesIO(whole[:length])) is None
    with pytest.raises(ValueError, match="JSON object"):
        protocol.receive(io.BytesIO(b"\0\0\0\1" + b"5"))


def test_numbers_are_written_exactly() -> None:
    assert number(0.1) == "0.1000000000000000055511151231257827021181583404541015625"
    assert number(-2.0) == "-2" and number(1e300).startswith("1000000000000000052504760255204420248704468581108159")
    assert number(math.inf) is None and number(-math.inf) is None
    with pytest.raises(ValueError, match="NaN"):
        number(math.nan)
