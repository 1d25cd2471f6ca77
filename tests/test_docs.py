"""The examples in the README and the documentation, run as a reader would.

The ```python blocks of a page run first, in order, in one fresh interpreter; what a ``print(...)  # text`` line prints
is compared with the comment. In ```console blocks the lines after ``$`` run in a shell, and the output (both streams)
is compared with what follows; ``...`` stands for anything. A block after an HTML comment ``<!-- not run: reason -->``
is left out.
"""

from __future__ import annotations

import argparse
import doctest
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
PAGES = (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md")))
BLOCK = re.compile(r"(?P<skip><!-- not run: [^>]*\S -->\s*\n)?```(?P<kind>python|console)\n(?P<body>.*?)```", re.DOTALL)
PRINTED = re.compile(r"^ *print\(.*\)  # (?P<text>.*)$")
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a page that is to be run."""

    kind: str
    body: str


def blocks(text: str) -> list[Block]:
    """The blocks of a page, or of a part of one, that are run, in order."""
    found = BLOCK.finditer(text)
    return [Block(match["kind"], match["body"]) for match in found if not match["skip"]]


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a process in a folder, both streams together, with the packages importable and ``verifier`` on the path."""
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join([str(folder / "bin"), environment.get("PATH", "")])
    if not os.environ.get("NN_VERIFIER_INSTALLED"):
        environment["PYTHONPATH"] = str(CHECKOUT)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(arguments, cwd=folder, env=environment, text=True, timeout=120, **streams)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with the shipped example and the commands ``verifier`` and ``python`` of this interpreter."""
    shutil.copytree(CHECKOUT / "benchmarks" / "digits", tmp_path / "benchmarks" / "digits")
    (tmp_path / "bin").mkdir()
    for name, module in (("verifier", "-m verifier"), ("python", "")):
        command = tmp_path / "bin" / name
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n', encoding="utf-8")
        command.chmod(0o755)
    return tmp_path


def same(expected: str, found: str) -> bool:
    """Whether an output is the expected one."""
    return doctest.OutputChecker().check_output(expected, found, OPTIONS)


def check_python(body: str, folder: Path) -> None:
    """Run a page's Python; compare what is printed with the comments."""
    script = folder / "example.py"
    script.write_text(body, encoding="utf-8")
    done = run([sys.executable, script.name], folder)
    assert done.returncode == 0, done.stdout
    expected = [match["text"] for line in body.splitlines() if (match := PRINTED.match(line))]
    found = done.stdout.splitlines()
    assert len(found) == len(expected), done.stdout
    for want, got in zip(expected, found, strict=True):
        assert same(want + "\n", got + "\n"), f"expected {want!r}, printed {got!r}"


def check_console(body: str, folder: Path) -> None:
    """Run each command and compare its output with the lines below it."""
    for entry in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        command, _, expected = entry.partition("\n")
        command = re.sub(r"^python3 -m venv .*&& (?=\.venv/bin/)", "", command).replace(".venv/bin/", "")
        done = run(["sh", "-c", command], folder)
        assert same(expected, done.stdout), f"$ {command}\n{done.stdout}"


def parts() -> Iterator[Any]:
    """The pages whose examples are run: whole where there is Python, whose blocks go on with one another, else section
    by section."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        whole = any(block.kind == "python" for block in blocks(text))
        sections = [text] if whole else re.split(r"^(?=## )", text, flags=re.MULTILINE)
        for section in sections:
            if blocks(section):
                title = "" if whole else section.partition("\n")[0].strip("# ")
                yield pytest.param(section, id=f"{page.stem} {title}".strip())


@pytest.mark.parametrize("text", parts())
def test_examples_run(text: str, folder: Path) -> None:
    python = [block.body for block in blocks(text) if block.kind == "python"]
    if python:
        check_python("\n".join(python), folder)
    for block in blocks(text):
        if block.kind == "console":
            check_console(block.body, folder)


def test_blocks_that_are_not_run_say_why() -> None:
    """Every page with code has its blocks run, or a reason beside each that is not."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        marked = len(re.findall(r"<!-- not run: [^>]*\S -->", text))
        total = len(re.findall(r"^```(?:python|console)$", text, flags=re.MULTILINE))
        assert len(blocks(text)) == total - marked, page.name


def option_strings(parser: argparse.ArgumentParser) -> set[str]:
    """All long options of a parser and of its commands."""
    found = set()
    for action in parser._actions:
        found |= {o for o in action.option_strings if o.startswith("--")}
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                found |= option_strings(command)
    return found


def test_every_option_is_described() -> None:
    from verifier.cli.parser import build

    text = (CHECKOUT / "docs" / "command-line.md").read_text(encoding="utf-8")
    described = set(re.findall(r"--[a-z](?:[a-z0-9-]*[a-z0-9])?", text))
    options = option_strings(build())
    assert options <= described, f"not in docs/command-line.md: {sorted(options - described)}"
    assert described <= options, f"docs/command-line.md describes what does not exist: {sorted(described - options)}"


def test_continuous_integration_runs_what_the_readme_says() -> None:
    second = "bash tests/run.sh"
    assert second in (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert (CHECKOUT / ".ci" / "run").read_text(encoding="utf-8").rstrip().endswith(f"exec {second}")


def test_pages_build(tmp_path: Path) -> None:
    """Sphinx finds nothing to complain about."""
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(CHECKOUT / "docs"), str(tmp_path)],
        capture_output=True, text=True, timeout=120,
    )
    assert done.returncode == 0, done.stderr
