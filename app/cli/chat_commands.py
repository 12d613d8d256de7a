"""What begins with / in a chat: each command is a function from its argument to what happens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from app.cli import conversation as files
from app.cli.conversation import Conversation, ConversationError
from app.cli.options import SAMPLING, sampling_field
from tickertape import Options

HELP = """\
/help                 show this list
/system [TEXT]        tell the model about itself; without TEXT, show it
/set [NAME [VALUE]]   change a sampling option; VALUE `default` leaves it to the model
/regenerate           answer the last question again
/clear                forget the conversation, keep system and options
/save FILE            write the conversation to a file
/load FILE            go on with a conversation from a file
/bye                  leave; Ctrl-D does it too
\"\"\"                   begin a message of several lines; \"\"\" again ends it
Ctrl-C                stop the answer and keep the conversation"""


class Leave(Exception):
    """The user wants to end the chat."""


class ChatCommands:
    """Runs commands on a conversation. What they say goes to `tell`."""

    def __init__(self, conversation: Conversation, tell: Callable[[str], None]) -> None:
        self.conversation = conversation
        self._tell = tell
        self._commands: dict[str, Callable[[str], bool | None]] = {
            "/help": lambda _: tell(HELP),
            "/system": self._system,
            "/set": self._set,
            "/regenerate": self._regenerate,
            "/clear": self._clear,
            "/save": self._save,
            "/load": self._load,
            "/bye": self._leave,
        }
        self._commands |= {"/?": self._commands["/help"], "/exit": self._leave}

    def run(self, line: str) -> bool:
        """Whether the model shall answer now. Raises ConversationError, Leave."""
        name, _, argument = line.partition(" ")
        if name not in self._commands:
            raise ConversationError(f"there is no command {name}; /help lists them all")
        return bool(self._commands[name](argument.strip()))

    def _system(self, text: str) -> None:
        if text:
            self.conversation.system = text
        self._tell(self.conversation.system or "no system message; set one with /system TEXT")

    def _set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        name = name.replace("-", "_")
        if name and name not in SAMPLING:
            raise ConversationError(f"there is no option {name}; choose {', '.join(SAMPLING)}")
        options = cast(dict[str, Any], self.conversation.options)
        if value.strip() == "default":
            options.pop(name, None)
        elif value:
            options[name] = _value(name, value.strip())
        for shown in [name] if name else SAMPLING:
            self._tell(f"{shown} = {options.get(shown, 'default')}")

    def _regenerate(self, _: str) -> bool:
        if not self.conversation.forget_answer():
            raise ConversationError("there is no answer yet; ask something first")
        return True

    def _clear(self, _: str) -> None:
        self.conversation.turns.clear()
        self._tell("the conversation is empty")

    def _save(self, name: str) -> None:
        path = _path("/save", name)
        self.conversation.save(path)
        self._tell(f"{len(self.conversation.turns)} messages are in {path}")

    def _load(self, name: str) -> None:
        loaded = files.load(_path("/load", name))
        self.conversation.system = loaded.system
        self.conversation.turns = loaded.turns
        self.conversation.options = cast(
            Options, {name: value for name, value in loaded.options.items() if name in SAMPLING}
        )
        self._tell(f"{len(loaded.turns)} messages; ask on, or /regenerate")

    def _leave(self, _: str) -> None:
        raise Leave


def _path(command: str, name: str) -> Path:
    if not name:
        raise ConversationError(f"{command} wants the name of a file, such as {command} chat.json")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # ~ of nobody
        raise ConversationError(f"{name}: {error}") from None


def _value(name: str, text: str) -> Any:
    """Raises ConversationError for what is not in the option's range."""
    kind, low, high = sampling_field(name)
    if name == "stop":
        return [text]
    try:
        value = kind(text)
    except ValueError:
        word = "a whole number" if kind is int else "a number"
        raise ConversationError(f"{name} must be {word}, not {text}") from None
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        raise ConversationError(f"{name} must be from {low:g} to {high:g}, not {text}")
    return value
