"""`tickertape completion SHELL`: a script that completes commands, options and their values.

The script is made from the command line itself and holds all words: a Tab starts no Python.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer

from app.cli.terminal import type_text


class Shell(StrEnum):
    bash = "bash"
    zsh = "zsh"
    fish = "fish"


@dataclass(frozen=True, slots=True)
class _Option:
    """All names of one option. `values` are what it may be; it `takes_value` of any kind else."""

    names: tuple[str, ...]
    help: str
    takes_value: bool
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Command:
    name: str
    help: str
    options: tuple[_Option, ...]
    words: tuple[str, ...]  # that its argument may be


def completion(
    context: typer.Context,
    shell: Annotated[Shell, typer.Argument(help="Whose script to print.", metavar="|".join(Shell))],
) -> None:
    """Print a completion script: `source <(tickertape completion bash)` completes from then on.

    For zsh the same; for fish `tickertape completion fish | source`.
    """
    assert context.parent
    commands = [_command(command) for command in context.parent.command.commands.values()]  # type: ignore[attr-defined]
    scripts = {Shell.bash: _bash, Shell.zsh: _zsh, Shell.fish: _fish}
    type_text("\n".join(scripts[shell](commands)) + "\n")


def _command(command: Any) -> _Command:
    """What the parser knows of a command."""
    options = [_option(parameter) for parameter in command.params if _is_option(parameter)]
    options.append(_Option(("--help", "-h"), "Show the help.", False, ()))
    words = [
        w for parameter in command.params if not _is_option(parameter) for w in _values(parameter)
    ]
    return _Command(command.name, _first_sentence(command.help), tuple(options), tuple(words))


def _is_option(parameter: Any) -> bool:
    return str(parameter.param_type_name) == "option"


def _option(option: Any) -> _Option:
    names = (*option.opts, *option.secondary_opts)
    return _Option(names, _first_sentence(option.help), not option.is_flag, _values(option))


def _values(parameter: Any) -> tuple[str, ...]:
    """What the metavar names, as in int8|float32."""
    choices = (parameter.metavar or "").split("|")
    return tuple(choices) if len(choices) > 1 else ()


def _first_sentence(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def _bash(commands: list[_Command]) -> Iterator[str]:
    yield "_tickertape() {"
    yield '    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words='
    yield '    case "${COMP_WORDS[1]} $before" in'
    for command in commands:
        for option in command.options:
            if option.values:
                patterns = "|".join(f'"{command.name} {name}"' for name in option.names)
                yield f'        {patterns}) words="{" ".join(option.values)}" ;;'
            elif option.takes_value:
                patterns = "|".join(f'"{command.name} {name}"' for name in option.names)
                yield f'        {patterns}) COMPREPLY=($(compgen -f -- "$word")); return ;;'
    yield "    esac"
    yield '    if [ "$COMP_CWORD" = 1 ]; then'
    names = " ".join([*(command.name for command in commands), "--help", "--version"])
    yield f'        words="{names}"'
    yield '    elif [ -z "$words" ]; then'
    yield '        case "${COMP_WORDS[1]}" in'
    for command in commands:
        yield f'            {command.name}) words="{" ".join(_all_words(command))}" ;;'
    yield "        esac"
    yield "    fi"
    yield '    COMPREPLY=($(compgen -W "$words" -- "$word"))'
    yield "}"
    yield "complete -o default -F _tickertape tickertape"


def _all_words(command: _Command) -> list[str]:
    return [*command.words, *(name for option in command.options for name in option.names)]


def _zsh(commands: list[_Command]) -> Iterator[str]:
    yield "#compdef tickertape"
    yield "_tickertape() {"
    yield "    local -a commands=("
    for command in commands:
        yield f"        {shlex.quote(f'{command.name}:{command.help}')}"
    yield "    )"
    yield "    if (( CURRENT == 2 )); then"
    yield "        _describe command commands"
    yield "        _arguments '--version[Show the version.]' '--help[Show the help.]'"
    yield "        return"
    yield "    fi"
    yield "    local name=${words[2]}"
    yield "    words=(${words[2,-1]}); (( CURRENT-- ))"
    yield "    case $name in"
    for command in commands:
        yield f"        {command.name})"
        yield f"            _arguments {' '.join(map(shlex.quote, _zsh_specs(command)))} ;;"
    yield "    esac"
    yield "}"
    yield "(( $+functions[compdef] )) && compdef _tickertape tickertape"


def _zsh_specs(command: _Command) -> Iterator[str]:
    for option in command.options:
        action = f"({' '.join(option.values)})" if option.values else "_files"
        value = f": :{action}" if option.takes_value else ""
        for name in option.names:
            yield f"{name}[{_without(option.help, '[]:')}]{value}"
    yield f"*: :({' '.join(command.words)})" if command.words else "*: :_files"


def _without(text: str, unwanted: str) -> str:
    return text.translate({ord(character): " " for character in unwanted})


def _fish(commands: list[_Command]) -> Iterator[str]:
    yield "complete -c tickertape -f -n __fish_use_subcommand -l version -d 'Show the version.'"
    for command in commands:
        words = f"-a {command.name} -d {_fish_quoted(command.help)}"
        yield f"complete -c tickertape -f -n __fish_use_subcommand {words}"
        condition = f"-n '__fish_seen_subcommand_from {command.name}'"
        if command.words:
            yield f"complete -c tickertape -f {condition} -a '{' '.join(command.words)}'"
        for option in command.options:
            yield f"complete -c tickertape {condition} {_fish_option(option)}"


def _fish_option(option: _Option) -> str:
    long = [f"-l {name[2:]}" for name in option.names if name.startswith("--")]
    short = [f"-s {name[1:]}" for name in option.names if not name.startswith("--")]
    value = ["-r"] if option.takes_value else []
    if option.values:
        value = ["-x", f"-a '{' '.join(option.values)}'"]
    return " ".join([*long, *short, *value, f"-d {_fish_quoted(option.help)}"])


def _fish_quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
