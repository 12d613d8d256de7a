"""What streams carry, for the documentation; the dialects write it.

FastAPI collects the models of whole answers by itself. These it does not see, so they are handed to
the document with names of their own: `DEFINITIONS`.
"""

from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.api.native.types import ErrorBody, ErrorDetail, Gap, Logprob, Timings, Usage
from app.api.openai.answers import ChatChunk, CompletionChunk, ResponseEvent
from app.observability.dashboard_types import EndEvent, HistoryEvent, SampleEvent
from model.protocol.messages import FinishReason

Object = dict[str, Any]


class TokenFrame(BaseModel):
    text: str
    token_ids: list[int]
    index: int
    logprobs: list[Logprob] = []


class StatusFrame(BaseModel):
    """`position` where it is queued, `done` and `total` where it is prefill."""

    state: Literal["queued", "prefill", "recovering"]
    position: int | None = None
    done: int | None = None
    total: int | None = None


class DoneFrame(BaseModel):
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    error: ErrorDetail | None = None
    note: str | None = None


_FRAMES: dict[str, type[BaseModel]] = {
    "token": TokenFrame,
    "status": StatusFrame,
    "gap": Gap,
    "done": DoneFrame,
}
_DASH: dict[str, type[BaseModel]] = {
    "history": HistoryEvent,
    "sample": SampleEvent,
    "end": EndEvent,
}
_CHUNKS: tuple[type[BaseModel], ...] = (CompletionChunk, ChatChunk, ResponseEvent, ErrorBody)

_REFS, _TOGETHER = models_json_schema(
    [(model, "serialization") for model in (*_FRAMES.values(), *_DASH.values(), *_CHUNKS)],
    ref_template="#/components/schemas/frame.{model}",
)
DEFINITIONS: dict[str, Object] = {
    f"frame.{name}": schema for name, schema in _TOGETHER["$defs"].items()
}


def _content(*alternatives: Object) -> Object:
    """Of a response: one event of its stream is one of these."""
    return {"text/event-stream": {"itemSchema": {"anyOf": list(alternatives)}}}


def _json(model: type[BaseModel]) -> Object:
    schema = _REFS[model, "serialization"]
    return {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}


def _event(data: Object, **fields: Object) -> Object:
    properties = {"id": {"type": "string"}, "data": data, **fields}
    return {"type": "object", "properties": properties, "required": ["data", *fields]}


def _openai(chunk: type[BaseModel]) -> Object:
    """After the last one comes [DONE]; what fails on the way is an error."""
    return _content(
        _event({"type": "string", "const": "[DONE]"}),
        _event(_json(chunk)),
        _event(_json(ErrorBody)),
    )


def _named(models: dict[str, type[BaseModel]]) -> Object:
    return _content(*(_event(_json(model), event={"const": e}) for e, model in models.items()))


NATIVE = _named(_FRAMES)
DASH = _named(_DASH)
COMPLETION = _openai(CompletionChunk)
CHAT = _openai(ChatChunk)
RESPONSE = _openai(ResponseEvent)
