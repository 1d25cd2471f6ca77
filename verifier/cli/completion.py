"""``verifier completion SHELL``: a completion script for bash, zsh or fish, written from the parser itself.

The scripts complete commands, options and their choices; for everything else the shell offers files.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a command: its spellings, its help, the values it can take (empty: free), whether it takes one."""

    flags: tuple[str, ...]
    help: str
    choices: tuple[str, ...]
    takes_value: bool


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its name, its help, its options, and the choices of its first argument (empty: files)."""

    name: str
    help: str
    options: tuple[Option, ...]
    choices: tuple[str, ...]


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "completion",
        allow_abbrev=False,
        help="a completion script for your shell",
        description="Print a completion script. bash: add `source <(verifier completion bash)` to ~/.bashrc; zsh: "
        "the same with zsh in ~/.zshrc; fish: `verifier completion fish > ~/.config/fish/completions/verifier.fish`.",
    )
    parser.add_argument("shell", choices=SHELLS)


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Print the script for the shell; the exit code."""
    print(script(arguments.shell, parser))
    return 0


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """The completion script."""
    commands = list(commands_of(parser))
    match shell:
        case "bash":
            return _bash(commands)
        case "zsh":
            return "#compdef verifier\nautoload -U +X bashcompinit && bashcompinit\n" + _bash(commands)
        case _:
            return _fish(commands)


def commands_of(parser: argparse.ArgumentParser) -> Iterator[Command]:
    """The commands, read off the parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, child in action.choices.items():
                yield Command(name, helps.get(name, ""), tuple(_options(child)), _first_choices(child))


def _options(parser: argparse.ArgumentParser) -> Iterator[Option]:
    for action in parser._actions:
        if action.option_strings:
            choices = tuple(map(str, action.choices or ()))
            yield Option(tuple(action.option_strings), action.help or "", choices, action.nargs != 0)


def _first_choices(parser: argparse.ArgumentParser) -> tuple[str, ...]:
    for action in parser._actions:
        if not action.option_strings:
            return tuple(map(str, action.choices or ()))
    return ()


def _bash(commands: list[Command]) -> str:
    cases = []
    for command in commands:
        words = [flag for option in command.options for flag in option.flags]
        cases.append(f"    {command.name}) words={_quoted(' '.join(words))} ;;")
    chosen = {command.name: command.choices for command in commands if command.choices} | {
        flag: option.choices for command in commands for option in command.options if option.choices
        for flag in option.flags
    }
    values = [f"    {flag}) words={_quoted(' '.join(choices))} ;;" for flag, choices in chosen.items()]
    return "\n".join([
        "_verifier() {",
        '  local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words=""',
        "  if [ \"$COMP_CWORD\" -eq 1 ]; then",
        f"    words={_quoted(' '.join([*(command.name for command in commands), '--help', '--version', '--name']))}",
        '    COMPREPLY=($(compgen -W "$words" -- "$current")); return',
        "  fi",
        '  case "$before" in',
        *values,
        "  esac",
        '  if [ -n "$words" ]; then COMPREPLY=($(compgen -W "$words" -- "$current")); return; fi',
        '  case "${COMP_WORDS[1]}" in',
        *cases,
        "  esac",
        '  if [[ "$current" == -* ]]; then COMPREPLY=($(compgen -W "$words" -- "$current"))',
        """  else local IFS=$'\\n'; COMPREPLY=($(compgen -f -- "$current")); fi""",
        "}",
        "complete -o filenames -F _verifier verifier",
    ])


def _fish(commands: list[Command]) -> str:
    lines = [
        f"complete -c verifier -n __fish_use_subcommand -f -a {command.name} -d {_quoted(command.help)}"
        for command in commands
    ]
    for command in commands:
        seen = f"-n '__fish_seen_subcommand_from {command.name}'"
        if command.choices:
            lines.append(f"complete -c verifier {seen} -f -a {_quoted(' '.join(command.choices))}")
        for option in command.options:
            lines.append(f"complete -c verifier {seen} {_fish_option(option)}")
    return "\n".join(lines)


def _fish_option(option: Option) -> str:
    parts = [f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags]
    if option.takes_value:
        parts.append("-r")
    if option.choices:
        parts.append(f"-f -a {_quoted(' '.join(option.choices))}")
    parts.append(f"-d {_quoted(option.help)}")
    return " ".join(parts)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "'\\''") + "'"
