"""The command line: one file a command, and nothing heavy imported before it is needed.

stdout carries the answer and nothing else; errors and progress go to stderr. Exit codes: 0 an answer, whichever;
1 ``bench`` found a wrong answer; 2 the input or the usage is wrong; 3 valid but not supported; 4 we are wrong;
130 interrupted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. ``arguments`` default to those of the process."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return _dispatch(list(arguments))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone: what is left in the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def command() -> NoReturn:
    """The process of one command: it ends without taking torch down, which would take most of a second."""
    code = main()
    try:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
    finally:
        os._exit(code)


def _dispatch(arguments: list[str]) -> int:
    """Answer the two instant questions, start the worker that ``verify`` and ``attack`` will need, parse, run."""
    from verifier import __version__
    from verifier.errors import VerifierError

    try:
        if arguments in (["--version"], ["--name"]):
            print(__version__ if arguments == ["--version"] else "nn-verifier", flush=True)
            return 0
        return _command(arguments)
    except VerifierError as error:
        return _complain("error", error, error.exit_code)
    except BrokenPipeError:
        raise
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        return _complain("error", f"{where}{error.strerror or error}", 2)
    except Exception as error:
        if {"-v", "--verbose"} & set(arguments):
            raise
        return _complain(f"internal error: {type(error).__name__}", error, 4)


def _complain(label: str, error: Exception | str, exit_code: int) -> int:
    """One line on stderr; the exit code."""
    print(f"verifier: {label}: {' '.join(str(error).split())}", file=sys.stderr)
    return exit_code


@contextlib.contextmanager
def _log(quiet: bool, verbose: bool) -> Iterator[None]:
    """What the package logs in this process, as lines on stderr: warnings, with -v more, with -q none."""
    logger, handler = logging.getLogger("verifier"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("verifier: %(message)s"))
    before = logger.level, logger.propagate
    logger.setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


def _command(arguments: list[str]) -> int:
    from verifier import installation

    installation.check()
    early = None
    # Of the options that matter here none may be shortened; with --data the attack needs no worker.
    data = any(a.partition("=")[0] == "--data" for a in arguments)
    if arguments[:1] in (["verify"], ["attack"]) and not data and not {"-h", "--help"} & set(arguments):
        from verifier.cli.session import Session

        # Loading torch takes the worker a second, so it starts before the options are looked at.
        early = Session(echo=bool({"-v", "--verbose"} & set(arguments)))
    try:
        from verifier.cli import parser
        from verifier.cli.options import shield_negative_numbers

        options = parser.build().parse_args(shield_negative_numbers(arguments))
        with _log(vars(options).get("quiet", False), vars(options).get("verbose", False)):
            return parser.run(options, early)
    except KeyboardInterrupt:
        if early is not None and not early.asked:
            print("unknown")
        raise
    finally:
        if early is not None:
            early.close()
