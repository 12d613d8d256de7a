"""`tickertape COMMAND`: which commands there are, and how a fault ends one."""

import io
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from app.cli import chat, completion, generate, models, ps, pull, serve, show, standard_streams
from app.cli.terminal import say
from app.settings import SettingsError
from app.sockets.listening import AddressError
from model.protocol.errors import ModelLoadError
from tickertape import TickertapeError

app = typer.Typer(
    name="tickertape",
    help="Serve a language model whose every answer is a tape, and talk to it.",
    no_args_is_help=True,
    add_completion=False,  # app/cli/completion.py writes scripts that need no Python at each Tab
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# In the order of the help. All arguments of the benchmark are its own, --help too.
app.command("serve")(serve.serve)
app.command("chat")(chat.chat)
app.command("generate")(generate.generate)
app.command("models")(models.models)
app.command("pull")(pull.pull)
app.command("show")(show.show)
app.command("ps")(ps.ps)
app.command("cluster")(serve.cluster)
app.command(
    "bench",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(serve.bench)
app.command("completion")(completion.completion)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tickertape {version('tickertape')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line.

    A user's mistake is one line: exit code 2 for options that cannot be used, 1 for a failure.
    """
    standard_streams.open_missing()
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):  # a closed one is None
            stream.reconfigure(errors="replace")
    try:
        app(prog_name="tickertape")
    except SettingsError as error:
        say(str(error))
        raise SystemExit(2) from None
    except (AddressError, ModelLoadError, TickertapeError) as error:
        say(str(error))
        raise SystemExit(1) from None
    except BrokenPipeError:  # as in `tickertape models | head -1`
        raise SystemExit(141) from None
