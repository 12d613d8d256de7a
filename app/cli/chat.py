"""`tickertape chat`: a conversation with a model on the terminal.

The prompt is read by the main thread, where Ctrl-C arrives, and the event loop runs only while the
model loads or answers: so a Ctrl-C stops what runs, and the conversation goes on.
"""

import asyncio
import contextlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.chat_commands import ChatCommands, Leave
from app.cli.conversation import Conversation, ConversationError
from app.cli.line_editor import LineEditor
from app.cli.options import ApiKey, Url, with_options, with_sampling
from app.cli.source import named, source
from app.cli.terminal import Typed, ends_as_a_shell_expects, note, notes, say, type_text, waiting
from app.settings import EngineSettings
from tickertape import Client, Options, TickertapeError

if TYPE_CHECKING:
    from app.local_model import LocalModel


@with_options(EngineSettings)
@with_sampling(chat=True)
def chat(
    flags: dict[str, Any],
    options: Options,
    url: Url = None,
    api_key: ApiKey = None,
    system: Annotated[str | None, typer.Option(help="What the model is told about itself.")] = None,
) -> None:
    """Talk with a model. /help lists what else it understands; Ctrl-D or /bye ends it."""
    conversation = Conversation(system, options)
    with ends_as_a_shell_expects(), asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        with waiting(f"loading {named(url, flags)}"):
            model = source(url, api_key, flags)
            runner.run(stack.enter_async_context(model))
            title = runner.run(_title(model))
        if notes.is_terminal:
            note(f"{title}. /help lists commands, Ctrl-D leaves.")
        try:
            _Chat(conversation, model, runner).run()
        finally:
            runner.run(stack.aclose())


async def _title(model: "Client | LocalModel") -> str:
    about = await model.version()
    return (
        f"{about['model']}, {about['dtype'] or 'loading'}, context {about['max_model_len']} tokens"
    )


class _Chat:
    """Question and answer, until the user leaves."""

    def __init__(
        self, conversation: Conversation, model: "Client | LocalModel", runner: asyncio.Runner
    ) -> None:
        self._conversation = conversation
        self._commands = ChatCommands(conversation, note)
        self._model = model
        self._runner = runner
        self._editor = LineEditor()

    def run(self) -> None:
        try:
            while (line := self._next()) is not None:
                if line:
                    self._do(line)
        except Leave:
            pass
        finally:
            self._editor.keep_history()

    def _next(self) -> str | None:
        """The next message, None at the end of the input. A second Ctrl-C in a row leaves."""
        try:
            return self._read()
        except KeyboardInterrupt:
            note("\nCtrl-C again, Ctrl-D or /bye leaves")
        return self._read()

    def _read(self) -> str | None:
        try:
            return self._editor.message("you:")
        except EOFError:
            if notes.is_terminal:
                notes.print()
            return None

    def _do(self, line: str) -> None:
        """What goes wrong is told, and the conversation goes on."""
        try:
            if not line.startswith("/"):
                self._conversation.ask(line)
            elif not self._commands.run(line):
                return
            self._answer()
        except (ConversationError, TickertapeError) as error:
            say(str(error))

    def _answer(self) -> None:
        """The model's turn. What was typed before a Ctrl-C or a failure stays its answer."""
        typed = Typed()
        try:
            messages, options = self._conversation.messages(), self._conversation.options
            self._runner.run(typed.type_all(self._model.chat(messages, **options)))
        except KeyboardInterrupt:
            type_text("\n")
            note("stopped" if typed.text else "stopped before the first token: nothing was asked")
        finally:
            self._keep(typed)

    def _keep(self, typed: Typed) -> None:
        if typed.text or typed.done:
            self._conversation.answer(typed.text)
        else:
            self._conversation.take_back()
        if typed.done and not typed.text.strip():
            note("the answer is empty: the model ended it at once; /regenerate, or ask otherwise")
