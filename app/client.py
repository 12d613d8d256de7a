"""The async Python client. Importing it loads neither torch nor FastAPI.

    async with Client("http://127.0.0.1:8000") as client:
        async for event in client.generate("Once upon a time"):
            if isinstance(event, Token):
                print(event.text, end="", flush=True)

Exceptions:

    TickertapeError
      RefusedError          the server said no: status, type, message, param, code
        OverloadedError     429 or 503: `retry_after` says when to try again
      GenerationError       the generation failed after it had begun
      ConnectionLostError   the stream broke off; `attach(tape, after)` reads on
"""

import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack

import httpx
from httpx_sse import EventSource, ServerSentEvent, SSEError

# Three of the server's pings may be missed before silence counts as a lost connection.
_TIMEOUT = httpx.Timeout(connect=5.0, read=45.0, write=30.0, pool=None)


class Options(TypedDict, total=False):
    """What `generate` takes beside the prompt; the server's /docs describes each."""

    max_length: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int
    stop: str | list[str]
    stop_token_ids: list[int]
    ignore_eos: bool
    min_tokens: int
    logprobs: int
    priority: int
    cache_salt: str
    on_disconnect: Literal["pause", "abort", "continue"]
    grace: float


@dataclass(frozen=True, slots=True)
class Token:
    """New text: one token, or several when this reader was behind; `n` numbers the last."""

    text: str
    token_ids: list[int]
    tape: str
    n: int
    logprobs: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """Not there yet: queued (position), prefill (done of total), recovering."""

    state: str
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Gap:
    """Entries `first` to `last` are no longer to be had."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Done:
    """The end of every stream."""

    finish_reason: str
    usage: dict[str, int]
    timings: dict[str, float | None]
    tape: str
    error: dict[str, Any] | None = None


Event = Token | Status | Gap | Done


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer at once."""

    generated_text: str
    finish_reason: str
    usage: dict[str, int]
    timings: dict[str, float | None]
    tape: str
    logprobs: list[dict[str, Any]] | None = None


class TickertapeError(Exception):
    """Anything that went wrong between this client and an answer."""


class RefusedError(TickertapeError):
    """The server refused the request; `message` says why and what to do."""

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        self.status = status
        self.type: str | None = error.get("type")
        self.message: str = error.get("message") or f"HTTP status {status}"
        self.param: str | None = error.get("param")
        self.code: str | None = error.get("code")
        super().__init__(f"{self.message} (HTTP {status})")


class OverloadedError(RefusedError):
    """429 or 503: not now. `retry_after` is in seconds."""

    def __init__(self, status: int, error: Mapping[str, Any], retry_after: float) -> None:
        super().__init__(status, error)
        self.retry_after = retry_after


class GenerationError(TickertapeError):
    """The generation ended with finish_reason 'error'; `done` holds the terminal frame."""

    def __init__(self, done: Done) -> None:
        super().__init__((done.error or {}).get("message", "the generation failed"))
        self.done = done


class ConnectionLostError(TickertapeError):
    """The connection failed. `tape` and `after` say where to read on, if it came to that."""

    def __init__(self, message: str, tape: str | None = None, after: int = 0) -> None:
        super().__init__(message)
        self.tape = tape
        self.after = after


@dataclass(slots=True, eq=False)
class _Reading:
    """One open stream: what it reads, how far it is."""

    cancel_on_close: bool
    tape: str | None = None
    after: int = 0
    ended: bool = False


class Client:
    """A connection pool to one Tickertape server; use it with `async with`."""

    def __init__(self, url: str = "http://127.0.0.1:8000") -> None:
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=_TIMEOUT,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
        )
        self._readings: set[_Reading] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel the generations whose loops were left, then close every connection."""
        for reading in list(self._readings):
            await self._leave(reading)
        await self._http.aclose()

    async def generate(
        self, prompt: str, **options: Unpack[Options]
    ) -> AsyncGenerator[Event, None]:
        """Stream the continuation of a prompt; leaving the loop early cancels the generation.

        Raises RefusedError, OverloadedError, GenerationError or ConnectionLostError.
        """
        body = {"prompt": prompt, "stream": True, **options}
        reading = _Reading(cancel_on_close=True)
        async with contextlib.aclosing(self._events("POST", "/generate", reading, body)) as events:
            async for event in events:
                yield event

    async def attach(self, tape: str, after: int = 0) -> AsyncGenerator[Event, None]:
        """Read a tape after entry `after`, from its start by default. Leaving only stops reading.

        Raises RefusedError (404: no such tape), GenerationError or ConnectionLostError.
        """
        reading = _Reading(cancel_on_close=False, tape=tape, after=after)
        path = f"/v1/tapes/{tape}"
        async with contextlib.aclosing(
            self._events("GET", path, reading, None, {"Last-Event-ID": f"{tape}:{after}"})
        ) as events:
            async for event in events:
                yield event

    async def complete(self, prompt: str, **options: Unpack[Options]) -> Answer:
        """The whole continuation at once. Raises like `generate`."""
        # It takes as long as its generation does, so there is no bound on the wait.
        response = await self._request(
            "POST", "/generate", {"prompt": prompt, **options}, patience=None
        )
        try:
            return Answer(**_object(response))
        except TypeError as error:
            raise ConnectionLostError(f"the answer is none of a Tickertape's: {error}") from error

    async def cancel(self, tape: str) -> None:
        """End a generation; all its readers get their terminal event."""
        await self._request("DELETE", f"/v1/tapes/{tape}")

    async def snapshot(self, tape: str) -> dict[str, Any]:
        """A tape as it is now: text so far, status, finish_reason, usage, timings."""
        response = await self._request(
            "GET", f"/v1/tapes/{tape}", headers={"Accept": "application/json"}
        )
        return _object(response)

    async def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        patience: httpx.Timeout | None = _TIMEOUT,
    ) -> httpx.Response:
        try:
            response = await self._http.request(
                method, path, json=_jsonable(body), headers=headers, timeout=patience
            )
        except httpx.TransportError as error:
            raise ConnectionLostError(_describe(error, self._http.base_url)) from error
        _raise_for_refusal(response)
        return response

    async def _events(
        self,
        method: str,
        path: str,
        reading: _Reading,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[Event, None]:
        """One streamed response as typed events, up to and with its Done."""
        self._readings.add(reading)
        accept = {"Accept": "text/event-stream", **(headers or {})}
        try:
            async with self._http.stream(
                method, path, json=_jsonable(body), headers=accept
            ) as response:
                if not response.is_success:
                    await response.aread()
                _raise_for_refusal(response)
                reading.tape = response.headers.get("X-Tape", reading.tape)
                if response.status_code == 204:
                    reading.ended = True
                    return
                async for frame in EventSource(response).aiter_sse():
                    if not frame.data:  # the opening block; httpx-sse yields it, the spec does not
                        continue
                    event = _event(frame, reading)
                    if event:
                        yield event
                    if reading.ended:
                        return
            raise _lost(reading, "the stream ended without its done frame")
        except (httpx.TransportError, SSEError, ValueError, KeyError) as error:
            raise _lost(reading, _describe(error, self._http.base_url)) from error
        finally:
            await self._leave(reading)

    async def _leave(self, reading: _Reading) -> None:
        """The loop over this stream is over; what it started and did not finish is cancelled."""
        self._readings.discard(reading)
        if reading.cancel_on_close and reading.tape and not reading.ended:
            reading.ended = True
            # Gone already, or the server is: either way nothing is left to cancel.
            with contextlib.suppress(TickertapeError):
                await self.cancel(reading.tape)


def _event(frame: ServerSentEvent, reading: _Reading) -> Event | None:
    """None for a kind of event that is newer than this client, as SSE has it.

    Raises GenerationError on the terminal frame of a failed generation, and ValueError or KeyError
    for a frame that is none of a Tickertape's.
    """
    data = frame.json()
    if frame.id:
        reading.after = int(frame.id.rpartition(":")[2])
    match frame.event:
        case "token":
            return Token(
                data["text"],
                data["token_ids"],
                reading.tape or "",
                reading.after,
                data.get("logprobs"),
            )
        case "status":
            return Status(data.pop("state"), data)
        case "gap":
            return Gap(data["from"], data["to"])
        case "done":
            reading.ended = True
            done = Done(
                data["finish_reason"],
                data["usage"],
                data["timings"],
                reading.tape or "",
                data.get("error"),
            )
            if done.finish_reason == "error":
                raise GenerationError(done)
            return done
    return None


def _lost(reading: _Reading, message: str) -> ConnectionLostError:
    """The generation is left alone: it can be read on from where the connection broke."""
    reading.cancel_on_close = False
    return ConnectionLostError(message, reading.tape, reading.after)


def _jsonable(body: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """JSON has only string keys, so those of logit_bias become strings."""
    if body is None:
        return None
    if "logit_bias" not in body:
        return dict(body)
    return {**body, "logit_bias": {str(k): v for k, v in body["logit_bias"].items()}}


def _object(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of a successful answer. Raises ConnectionLostError when it is none."""
    try:
        return dict(response.json())
    except (ValueError, TypeError) as error:
        raise ConnectionLostError(f"the answer is none of a Tickertape's: {error}") from error


def _raise_for_refusal(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        error = dict(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        error = {"message": f"HTTP {response.status_code} from something that is no Tickertape"}
    if response.status_code in (429, 503):
        retry_after = response.headers.get("Retry-After", "")
        seconds = float(retry_after) if retry_after.isdigit() else 1.0
        raise OverloadedError(response.status_code, error, seconds)
    raise RefusedError(response.status_code, error)


def _describe(error: Exception, url: httpx.URL) -> str:
    if isinstance(error, httpx.ConnectError):
        return f"nothing answers at {url}; is the server running? (`tickertape serve`)"
    return f"the connection to {url} failed: {error or type(error).__name__}"
