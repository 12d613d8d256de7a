"""`tickertape serve | cluster | generate | chat | bench`: the command line.

Only what a command needs is imported, inside it: `tickertape generate --url ...` loads no torch.
"""

import asyncio
import contextlib
import io
import os
import sys
import threading
from collections.abc import AsyncGenerator, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from app import standard_streams
from app.client import Client, Done, Event, Options, TickertapeError, Token
from app.options import SettingsError, load, with_options
from app.settings import ClusterSettings, EngineSettings, Settings
from model.errors import ModelLoadError

if TYPE_CHECKING:
    from app.local import LocalModel

app = typer.Typer(
    name="tickertape",
    help="Serve a language model whose every answer is a tape, and talk to it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
notes = Console(stderr=True, highlight=False)

Url = Annotated[
    str | None, typer.Option(help="A running server; by default the model is loaded right here.")
]
ApiKey = Annotated[
    str | None, typer.Option(envvar="TICKERTAPE_API_KEY", help="For a server that wants one.")
]
MaxLength = Annotated[int, typer.Option(min=1, help="New tokens at most.")]
Temperature = Annotated[float, typer.Option(min=0, max=2, help="0 is greedy.")]
TopK = Annotated[int, typer.Option(min=0, help="Draw among the k likeliest only; 0 is all.")]
TopP = Annotated[float, typer.Option(min=0, max=1, help="Draw among the likeliest that reach p.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same text.")]


@app.command()
@with_options(Settings)
def serve(flags: dict[str, Any]) -> None:
    """Serve a model over HTTP, with a live page at / and the API's documentation at /docs."""
    from app.start import run

    run(load(Settings, flags))


@app.command()
@with_options(ClusterSettings)
def cluster(flags: dict[str, Any]) -> None:
    """Serve a model by several replicas on Ray Serve, with Redis for the tapes."""
    from app.cluster import run

    run(partial(load, ClusterSettings, flags))


@app.command()
@with_options(EngineSettings)
def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    flags: dict[str, Any],
    url: Url = None,
    api_key: ApiKey = None,
    max_length: MaxLength = 100,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = None,
) -> None:
    """Continue a prompt, typing as the tokens come."""
    options = _options(max_length, temperature, top_k, top_p, seed)
    text = prompt.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    _run(_print_all(_events(text, url, api_key, flags, options)))


@app.command()
@with_options(EngineSettings)
def chat(
    flags: dict[str, Any],
    url: Url = None,
    api_key: ApiKey = None,
    system: Annotated[str | None, typer.Option(help="What the model is told about itself.")] = None,
    max_length: MaxLength = 400,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = None,
) -> None:
    """Talk with a model. An empty line or Ctrl-D ends the conversation."""
    options = _options(max_length, temperature, top_k, top_p, seed)
    _run(_chat(url, api_key, flags, system, options))


@app.command(
    add_help_option=False,  # --help too is for the benchmark, which knows its options
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def bench(context: typer.Context) -> None:
    """Measure speed and memory on this machine, beside other servers if you like."""
    from bench.serve import main

    main(context.args)


def _run(work: Coroutine[Any, Any, object]) -> None:
    """Until it is done, interrupted, or nobody reads what it types; then as a shell expects it."""
    try:
        asyncio.run(work)
    except KeyboardInterrupt:
        _leave(130)  # 128 + SIGINT
    except BrokenPipeError:
        _leave(141)  # 128 + SIGPIPE
    except OSError as error:
        _say(f"what comes cannot be written: {error}")
        _leave(1)


def _leave(code: int) -> NoReturn:
    """At once: a thread may wait for a line, and what is left to write has no reader."""
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


def _options(
    max_length: int, temperature: float, top_k: int, top_p: float, seed: int | None
) -> Options:
    options = Options(max_length=max_length, temperature=temperature, top_k=top_k, top_p=top_p)
    if seed is not None:
        options["seed"] = seed
    return options


async def _events(
    prompt: str, url: str | None, api_key: str | None, flags: dict[str, Any], options: Options
) -> AsyncGenerator[Event, None]:
    async with (
        _model(url, api_key, flags) as model,
        contextlib.aclosing(model.generate(prompt, **options)) as events,
    ):
        async for event in events:
            yield event


def _model(
    url: str | None, api_key: str | None, flags: dict[str, Any]
) -> "contextlib.AbstractAsyncContextManager[Client | LocalModel]":
    """A running server, or the model right here. Raises SettingsError for flags of the other."""
    if url is None:
        from app.local import LocalModel

        return LocalModel(load(EngineSettings, flags))
    if ignored := [
        f"--{name.replace('_', '-')}" for name, value in flags.items() if value is not None
    ]:
        raise SettingsError(f"{', '.join(ignored)}: the server at --url decides that; leave out")
    return Client(url, api_key=api_key)


async def _chat(
    url: str | None,
    api_key: str | None,
    flags: dict[str, Any],
    system: str | None,
    options: Options,
) -> None:
    messages = [{"role": "system", "content": system}] if system else []
    async with _model(url, api_key, flags) as model:
        while line := await _asked():
            messages.append({"role": "user", "content": line})
            text = await _print_all(model.chat(messages, **options))
            messages.append({"role": "assistant", "content": text})


async def _asked() -> str:
    """What the user says next; nothing at the end of the input.

    Read by a thread of its own: asyncio would wait for one of its own threads at the end, and a
    Ctrl-C would need a line behind it.
    """
    loop = asyncio.get_running_loop()
    said: asyncio.Future[str] = loop.create_future()

    def ask() -> None:
        line = ""
        with contextlib.suppress(EOFError, RuntimeError):  # the latter: there is no stdin
            line = notes.input("[bold]you:[/bold] ").strip()
        with contextlib.suppress(RuntimeError):  # the loop has been left meanwhile
            loop.call_soon_threadsafe(said.set_result, line)

    threading.Thread(target=ask, daemon=True).start()
    return await said


async def _print_all(stream: AsyncGenerator[Event, None]) -> str:
    """Type the tokens as they come, then one line of figures; return the text."""
    text = ""
    async with contextlib.aclosing(stream) as events:
        async for event in events:
            if isinstance(event, Token):
                text += event.text
                _type(event.text)
            elif isinstance(event, Done):
                _type("\n")
                notes.print(_figures(event), style="dim")
    return text


def _type(text: str) -> None:
    """As it is: rich would replace :emoji: names, and click writes UTF-8 where ASCII is wanted."""
    if sys.stdout:  # None where it was closed
        sys.stdout.write(text)
        sys.stdout.flush()


def _figures(done: Done) -> str:
    figures = [f"{done.usage['completion_tokens']} tokens"]
    if (ttft := done.timings["ttft_ms"]) is not None:
        figures.append(f"first after {ttft:.0f} ms")
    if (rate := done.timings["tokens_per_second"]) is not None:
        figures.append(f"{rate:.0f} tokens/s")
    return " · ".join([*figures, done.finish_reason])


def main() -> None:
    """Run the command line; what a user can mend is one line and exit code 1, not a traceback."""
    standard_streams.open_missing()
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):  # a closed one is None
            stream.reconfigure(errors="replace")
    try:
        app()
    except (SettingsError, ModelLoadError, TickertapeError) as error:
        _say(str(error))
        raise SystemExit(1) from None


def _say(fault: str) -> None:
    notes.print(f"tickertape: {fault}", style="red", markup=False, emoji=False, soft_wrap=True)
