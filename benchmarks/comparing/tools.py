"""The programs that are compared: how each is found, called, and what its answer means.

Other programs are used as their users would: they are looked for where the user says, run by their own Python, and
none of their code is imported here. A model and its property are given as plain files in a folder that is thrown away.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks.comparing.processes import Finished

ROOT = Path(__file__).resolve().parents[2]
PROBE_SECONDS = 120
VERDICTS = ("sat", "unsat", "timeout", "unknown")
_ASSIGNED = re.compile(r"\(\s*(X_\d+)\s+([^\s()]+)\s*\)")


@dataclass(frozen=True, slots=True)
class Job:
    """One instance as a program gets it: plain files, seconds, processor cores, and a folder to write into."""

    benchmark: str
    model: Path
    query: Path
    limit: float
    cores: int
    device: str
    folder: Path

    @property
    def results(self) -> Path:
        """A file for the answer, for programs that write one."""
        return self.folder / "results.txt"


@dataclass(frozen=True, slots=True)
class Answer:
    """``word`` is sat, unsat, timeout, unknown or error; ``values`` the inputs X_i of a counterexample as written
    (empty: none was given); ``reason`` why there is no verdict."""

    word: str
    values: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""


class Tool(Protocol):
    """A program that decides instances."""

    @property
    def name(self) -> str:
        """The name in tables."""

    def missing(self) -> str:
        """Why it cannot take part; empty where it can."""

    def refusal(self, job: Job) -> str:
        """Why it is not asked this instance; empty where it is."""

    def command(self, job: Job) -> list[str]:
        """The command line."""

    def environment(self, job: Job) -> dict[str, str]:
        """The environment of the process."""

    def answer(self, job: Job, finished: Finished) -> Answer:
        """What it said; only called for a process that ended in time."""


@dataclass(frozen=True, slots=True)
class Ours:
    """This project, by the Python that runs the comparison; ``programs``: with its mixed-integer programs alone."""

    name: str = "nn-verifier"
    programs: bool = False

    def missing(self) -> str:
        """Never."""
        return ""

    def refusal(self, job: Job) -> str:
        """None: what is not supported it says itself."""
        return ""

    def command(self, job: Job) -> list[str]:
        """``verifier verify``, or the script that stands for it."""
        if self.programs:
            script = [sys.executable, "-P", "-m", "benchmarks.by_programs"]
            return [*script, str(job.model), str(job.query), f"{job.limit:g}"]
        return [sys.executable, "-P", "-m", "verifier", "verify", str(job.model), str(job.query), "--timeout",
                f"{job.limit:g}", "--device", job.device]

    def environment(self, job: Job) -> dict[str, str]:
        """With this checkout on the path."""
        return environment(job.cores) | {"PYTHONPATH": str(ROOT)}

    def answer(self, job: Job, finished: Finished) -> Answer:
        """The word and the counterexample are on stdout."""
        word = finished.output.partition("\n")[0].replace("timed-out", "timeout")
        return _answer(word, finished, dict(_ASSIGNED.findall(finished.output)))


@dataclass(frozen=True, slots=True)
class AlphaBetaCrown:
    """A checkout of alpha-beta-CROWN, with its competition's configuration of the benchmark: ``configurations`` maps
    benchmarks to files of the user's own."""

    folder: Path | None
    python: str
    configurations: Mapping[str, Path] = field(default_factory=dict)
    name: str = "alpha-beta-CROWN"

    def missing(self) -> str:
        """No checkout was named, or its program does not start."""
        if self.folder is None:
            return "no checkout named: use --abcrown FOLDER or ABCROWN_DIR"
        if not self._program().is_file():
            return f"{self._program()} does not exist: --abcrown names the folder of a checkout"
        return probe([self.python, str(self._program()), "--help"], self._path())

    def refusal(self, job: Job) -> str:
        """A benchmark whose configuration is not known."""
        if self.configuration(job) is None:
            return f"no configuration known for {job.benchmark}: name one with --abcrown-config {job.benchmark}=FILE"
        return ""

    def configuration(self, job: Job) -> Path | None:
        """The user's file, else the first one of the competition's that exists in the checkout."""
        assert self.folder is not None
        if job.benchmark in self.configurations:
            return self.configurations[job.benchmark]
        for benchmark, part, path in CONFIGURATIONS:
            found = self.folder / "complete_verifier" / "exp_configs" / path
            if job.benchmark.startswith(benchmark) and part in job.model.name and found.is_file():
                return found.absolute()
        return None

    def command(self, job: Job) -> list[str]:
        """``abcrown.py`` with the configuration, as its competition script calls it."""
        return [self.python, str(self._program()), "--config", str(self.configuration(job)), "--device", job.device,
                "--onnx_path", str(job.model), "--vnnlib_path", str(job.query), "--timeout", f"{job.limit:g}",
                "--results_file", str(job.results), "--save_adv_example"]

    def environment(self, job: Job) -> dict[str, str]:
        """With the checkout on the path, as its installation has it."""
        return environment(job.cores) | self._path()

    def answer(self, job: Job, finished: Finished) -> Answer:
        """The results file: the word, then the counterexample."""
        text = job.results.read_text(errors="replace") if job.results.is_file() else ""
        return _answer(text.split(maxsplit=1)[0] if text.split() else "", finished, dict(_ASSIGNED.findall(text)))

    def _program(self) -> Path:
        assert self.folder is not None
        return self.folder.absolute() / "complete_verifier" / "abcrown.py"

    def _path(self) -> dict[str, str]:
        assert self.folder is not None
        return {"PYTHONPATH": str(self.folder.absolute())}


@dataclass(frozen=True, slots=True)
class Nnenum:
    """A checkout of nnenum; one single-threaded process a core, as its authors run it."""

    folder: Path | None
    python: str
    name: str = "nnenum"

    def missing(self) -> str:
        """No checkout was named, or it cannot be imported."""
        if self.folder is None:
            return "no checkout named: use --nnenum FOLDER or NNENUM_DIR"
        if not (self.folder / "src" / "nnenum").is_dir():
            return f"{self.folder / 'src' / 'nnenum'} does not exist: --nnenum names the folder of a checkout"
        return probe([self.python, "-c", "import nnenum.nnenum"], self._path())

    def refusal(self, job: Job) -> str:
        """None."""
        return ""

    def command(self, job: Job) -> list[str]:
        """Its module, with the number of processes."""
        return [self.python, "-m", "nnenum.nnenum", str(job.model), str(job.query), f"{job.limit:g}", str(job.results),
                str(job.cores)]

    def environment(self, job: Job) -> dict[str, str]:
        """One thread a process."""
        return environment(1) | self._path()

    def answer(self, job: Job, finished: Finished) -> Answer:
        """The results file has the word in its own spelling; stdout the counterexample's inputs."""
        said = job.results.read_text(errors="replace").strip() if job.results.is_file() else ""
        word = {"holds": "unsat", "violated": "sat"}.get(said, said)
        inputs = re.findall(r"^Input: \[([^\]]*)\]", finished.output, re.MULTILINE)
        values = {f"X_{i}": text.strip() for i, text in enumerate(inputs[-1].split(","))} if inputs else {}
        return _answer(word, finished, values)

    def _path(self) -> dict[str, str]:
        assert self.folder is not None
        return {"PYTHONPATH": str(self.folder.absolute() / "src")}


@dataclass(frozen=True, slots=True)
class Marabou:
    """Marabou, from the package maraboupy of some Python. It prints six digits of a counterexample."""

    python: str
    name: str = "Marabou"

    def missing(self) -> str:
        """The package cannot be imported."""
        why = probe([self.python, "-c", "import maraboupy.MarabouMain"], {})
        return why and f"{why} (pip install maraboupy, or --marabou-python with a Python that has it)"

    def refusal(self, job: Job) -> str:
        """None."""
        return ""

    def command(self, job: Job) -> list[str]:
        """Its own command line; split and conquer where there are several cores."""
        several = ["--snc", "--num-workers", str(job.cores)] if job.cores > 1 else []
        return [self.python, "-m", "maraboupy", str(job.model), str(job.query), "--verbosity", "0", "--timeout",
                str(math.ceil(job.limit)), *several]

    def environment(self, job: Job) -> dict[str, str]:
        """Only the number of threads."""
        return environment(job.cores)

    def answer(self, job: Job, finished: Finished) -> Answer:
        """Word and inputs are on stdout, among other lines."""
        lines = [line.strip().lower() for line in finished.output.splitlines()]
        word = next((line for line in lines if line in VERDICTS), "")
        values = {f"X_{i}": v for i, v in re.findall(r"^\s*x(\d+) = (\S+)$", finished.output, re.MULTILINE)}
        return _answer(word, finished, values)


CONFIGURATIONS = (
    ("acasxu", "", "vnncomp21/acasxu.yaml"),
    ("cgan", "", "vnncomp23/cgan.yaml"),
    ("cifar10_resnet", "", "vnncomp21/cifar10-resnet.yaml"),
    ("cifar100", "", "vnncomp25/cifar100.yaml"),
    ("collins_rul_cnn", "", "vnncomp23/collins-rul-cnn.yaml"),
    ("cora", "", "vnncomp25/cora.yaml"),
    ("dist_shift", "", "vnncomp23/dist-shift.yaml"),
    ("linearizenn", "", "vnncomp24/linearizenn.yaml"),
    ("lsnc_relu", "", "vnncomp25/lsnc_relu.yaml"),
    ("lsnc", "", "vnncomp24/lsnc.yaml"),
    ("metaroom", "", "vnncomp23/metaroom.yaml"),
    ("ml4acopf", "", "vnncomp24/ml4acopf.yaml"),
    ("mnist_fc", "256x2", "vnncomp22/mnistfc_small.yaml"),
    ("mnist_fc", "", "vnncomp22/mnistfc.yaml"),
    ("nn4sys", "", "vnncomp23/nn4sys.yaml"),
    ("oval21", "", "vnncomp22/oval22.yaml"),
    ("reach_prob_density", "gcas", "vnncomp22/reach_probability_gcas.yaml"),
    ("reach_prob_density", "", "vnncomp22/reach_probability.yaml"),
    ("rl_benchmarks", "cartpole", "vnncomp22/cartpole.yaml"),
    ("rl_benchmarks", "lunarlander", "vnncomp22/lunarlander.yaml"),
    ("rl_benchmarks", "", "vnncomp22/dubins-rejoin.yaml"),
    ("safenlp", "", "vnncomp24/safenlp.yaml"),
    ("sri_resnet_a", "", "vnncomp22/resnet_A.yaml"),
    ("sri_resnet_b", "", "vnncomp22/resnet_B.yaml"),
    ("tinyimagenet", "", "vnncomp25/tinyimagenet.yaml"),
    ("tllverifybench", "", "vnncomp23/tllVerifyBench.yaml"),
    ("traffic_signs", "", "vnncomp23/gtrsb.yaml"),
    ("vggnet16", "", "vnncomp23/vggnet16.yaml"),
    ("vit", "", "vnncomp23/vit.yaml"),
    ("yolo", "", "vnncomp24/yolo-xiangruzh.yaml"),
)
"""Start of a benchmark's name, part of the network's, and where a checkout of alpha-beta-CROWN has the configuration
that it used in the competition. The first that exists counts."""


def environment(threads: int) -> dict[str, str]:
    """The environment with every numerical library held to a number of threads, and no foreign module path."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    return kept | dict.fromkeys(names, str(threads))


def probe(command: list[str], extra: Mapping[str, str]) -> str:
    """Why a command cannot be run: the last line that it leaves; empty where it can."""
    try:
        done = subprocess.run(
            command, env=environment(1) | dict(extra), stdin=subprocess.DEVNULL, capture_output=True,
            timeout=PROBE_SECONDS, check=False,
        )
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"{command[0]} did not start within {PROBE_SECONDS} s"
    return "" if done.returncode == 0 else last_line(done.stderr.decode(errors="replace")) or "does not start"


def last_line(text: str) -> str:
    """The last line that is not blank."""
    return text.strip().rpartition("\n")[2].strip()


def _answer(word: str, finished: Finished, values: Mapping[str, str]) -> Answer:
    word = word.strip().lower()
    why = last_line(finished.errors) or last_line(finished.output)
    if word not in VERDICTS:
        return Answer("error", reason=f"exit code {finished.code}: {why}"[:300])
    return Answer(word, values if word == "sat" else {}, why[:300] if word == "unknown" else "")
