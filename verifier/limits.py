"""Time, memory and threads of the processes that do the work.

A deadline is a moment on the system's monotonic clock, which all processes of a machine share, so a parent can hand
it to a worker as a number. Memory is measured from outside: an address-space limit would count the gigabytes that
torch reserves and never touches.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time

from verifier.errors import InputError

GIGABYTE = 10**9


def now() -> float:
    """Seconds on the monotonic clock."""
    return time.monotonic()


def deadline(timeout: float | None) -> float:
    """The moment in so many seconds (None: inf, there is no limit). Raises ``InputError`` for fewer than 0."""
    if timeout is None:
        return math.inf
    if not timeout >= 0:
        raise InputError(f"timeout={timeout}: seconds, at least 0")
    return now() + timeout


def process_start() -> float:
    """The moment on the monotonic clock at which this process started (where the system does not tell: now)."""
    try:
        with open("/proc/self/stat", "rb") as stat:
            # The second field, the command's name in parentheses, may itself hold spaces and parentheses.
            ticks = int(stat.read().rpartition(b")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return now()
    return now() - max(age, 0.0)


def soft_deadline(start: float, deadline: float) -> float:
    """The moment at which a worker should stop by itself, so that its answer arrives before it is killed."""
    return deadline - min(0.5, 0.03 * max(deadline - start, 0.0))


def cores() -> int:
    """The number of processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def free_cores() -> int:
    """The number of cores to work on: those that this process may use, at most OMP_NUM_THREADS where that is set."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores(), int(said))) if said.isdecimal() else cores()


def thread_environment(threads: int) -> dict[str, str]:
    """The process environment with the numerical libraries held to ``threads`` threads.

    They read these variables when they are loaded, so they must stand before the process starts. A variable that the
    user has set is left alone; OMP_NUM_THREADS, where set, is the number for all. Waiting threads sleep: by default
    they spin, which on a machine with other work to do took two to four times the processor time of the work itself.
    """
    number = os.environ.get("OMP_NUM_THREADS", str(threads))
    return exactly(number) | {"OMP_WAIT_POLICY": "PASSIVE"} | dict(os.environ)


def exactly(threads: int | str) -> dict[str, str]:
    """The variables that hold the numerical libraries to ``threads`` threads, whatever the user has set."""
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))


def resident_bytes(pid: int) -> int:
    """Physical memory that a process holds, in bytes; 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def peak_bytes(pid: int) -> int:
    """The most physical memory that a process has held since its start, in bytes; 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            lines = dict(line.split(b":", 1) for line in status if b":" in line)
        return int(lines[b"VmHWM"].split()[0]) * 1024
    except (OSError, ValueError, KeyError, IndexError):
        return 0


def die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when the process ``parent`` ends, however it ends; exit if it has ended."""
    if sys.platform != "linux":
        return
    import ctypes

    set_parent_death_signal = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
