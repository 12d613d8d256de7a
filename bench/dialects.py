"""The two wire formats that can be measured: what to send, and what the frames say."""

from typing import Any, Protocol

Data = dict[str, Any]


class Dialect(Protocol):
    path: str

    def body(self, prompt: str, new_tokens: int) -> Data:
        """A request for exactly so many tokens: greedy, streamed, past any end of text."""

    def tokens(self, data: Data) -> int:
        """How many tokens a frame carries."""

    def usage(self, data: Data) -> Data | None:
        """Prompt, cached and completion tokens, in the frame that has them."""


class Native:
    """POST /generate of a Tickertape."""

    path = "/generate"

    def body(self, prompt: str, new_tokens: int) -> Data:
        return {
            "prompt": prompt,
            "max_length": new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "on_disconnect": "abort",
        }

    def tokens(self, data: Data) -> int:
        return len(data.get("token_ids", ()))

    def usage(self, data: Data) -> Data | None:
        usage: Data | None = data.get("usage")
        return usage


class OpenAI:
    """POST /v1/completions, as vLLM, SGLang, llama.cpp and others serve it."""

    path = "/v1/completions"

    def __init__(self, model: str) -> None:
        self._model = model

    def body(self, prompt: str, new_tokens: int) -> Data:
        return {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def tokens(self, data: Data) -> int:
        """One a chunk; a server that merges chunks says the sum at the end."""
        return sum(bool(choice.get("text")) for choice in data.get("choices", ()))

    def usage(self, data: Data) -> Data | None:
        usage: Data | None = data.get("usage")
        if not usage:
            return None
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return usage | {"cached_tokens": cached}
