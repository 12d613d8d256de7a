"""What a chat has said so far, and how it is kept in a file."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tickertape import Options

_FORMAT = "tickertape chat 1"


class ConversationError(Exception):
    """A file that holds no conversation, or cannot be written; one line for the user."""


@dataclass
class Conversation:
    """Turns of user and assistant in order; `options` are those of every request."""

    system: str | None = None
    options: Options = field(default_factory=Options)
    turns: list[dict[str, str]] = field(default_factory=list)

    def messages(self) -> list[dict[str, str]]:
        """All that the model is given for its next turn."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self.turns]

    def ask(self, text: str) -> None:
        self.turns.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        self.turns.append({"role": "assistant", "content": text})

    def take_back(self) -> None:
        """Forget a question that got no answer: the next one does not follow it."""
        if self.turns and self.turns[-1]["role"] == "user":
            self.turns.pop()

    def forget_answer(self) -> bool:
        """Forget the last answer, so that its question is the last turn; False if there is none."""
        if not self.turns or self.turns[-1]["role"] != "assistant":
            return False
        self.turns.pop()
        return True

    def save(self, path: Path) -> None:
        """Raises ConversationError."""
        kept = {
            "format": _FORMAT,
            "system": self.system,
            "options": self.options,
            "messages": self.turns,
        }
        try:
            path.write_text(json.dumps(kept, ensure_ascii=False, indent=1) + "\n", "utf-8")
        except (OSError, UnicodeError, ValueError) as error:
            raise ConversationError(f"{path} cannot be written: {_why(error)}") from None


def load(path: Path) -> Conversation:
    """A conversation that `save` wrote. Raises ConversationError."""
    try:
        kept = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConversationError(f"{path} cannot be read: {_why(error)}") from None
    if not isinstance(kept, dict) or kept.get("format") != _FORMAT:
        raise ConversationError(f"{path} holds no conversation; give a file that /save wrote")
    turns, options, system = kept.get("messages"), kept.get("options"), kept.get("system")
    if not (
        isinstance(turns, list)
        and all(map(_is_turn, turns))
        and isinstance(options, dict)
        and isinstance(system, str | None)
    ):
        raise ConversationError(f"{path} is damaged; give another file that /save wrote")
    return Conversation(system, cast(Options, options), turns)


def _is_turn(turn: Any) -> bool:
    return (
        isinstance(turn, dict)
        and turn.keys() == {"role", "content"}
        and turn["role"] in ("user", "assistant")
        and isinstance(turn["content"], str)
    )


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
