"""Streams of OpenAI's routes over plain HTTP: openai-python does not show the ids of blocks."""

import json
from typing import Any

from tests.server import parse_frames

Fields = dict[str, Any]
Block = tuple[str, Fields]


def blocks_of(raw: str) -> list[Block]:
    """Ids and data; that of [DONE] is {}."""
    frames = parse_frames(raw)
    assert all(frame.data for frame in frames), "openai-python reads every block as an event"
    return [(f.id or "", {} if f.data == "[DONE]" else json.loads(f.data or "")) for f in frames]


def told(blocks: list[Block]) -> dict[int, Fields]:
    """What the chunks tell of each choice, of chats and of completions."""
    known: dict[int, Fields] = {}
    for _, chunk in blocks:
        for choice in chunk.get("choices", []):
            one = known.setdefault(choice["index"], {"text": "", "logprobs": [], "reason": None})
            one["text"] += choice.get("text") or choice.get("delta", {}).get("content", "")
            one["logprobs"] += (choice["logprobs"] or {}).get("content", [])
            one["reason"] = choice["finish_reason"]
    return known
