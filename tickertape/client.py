"""The async Python client. Importing it loads neither torch nor FastAPI.

    async with Client("http://127.0.0.1:8000") as client:
        async for event in client.generate("Once upon a time"):
            if isinstance(event, Token):
                print(event.text, end="", flush=True)

A connection that is lost is made again, and the loop goes on with the next token: none is missing,
none comes twice. A server that is busy is asked again when it said to.

Exceptions:

    TickertapeError
      RefusedError          the server said no: status, type, message, param, code
        OverloadedError     429 or 503, after `max_retries`: `retry_after` says when to come back
      GenerationError       the generation failed after it had begun
      ConnectionLostError   not to be made again; `attach(tape, after)` reads on, later
"""

import asyncio
import contextlib
import json
import logging
import random
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack

import httpx

from tickertape.server_address import TIMEOUT, connect, proxy_of
from tickertape.sse_parser import EventStreamParser, ServerSentEvent

logger = logging.getLogger("tickertape.client")

# Seconds before the first new connection, where the server names no other; and the longest that
# the wait grows to: a server keeps a paused generation for ten, unless told otherwise.
_RETRY, _LONGEST_RETRY = 1.0, 8.0
_LONGEST_RETRY_AFTER = 60.0


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
    timeout: float


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


class _CutError(Exception):
    """A stream broke off where none of HTTP's own errors says so."""


class _StrangerError(Exception):
    """What answers is no Tickertape."""


@dataclass(slots=True, eq=False)
class _Reading:
    """One tape that is read, over however many connections: how far it is."""

    cancel_on_close: bool
    tape: str | None = None
    after: int = 0
    ended: bool = False


@dataclass(slots=True)
class _Patience:
    """How often something is tried again: `limit` times in a row without any progress.

    The wait is what the server asked for, or doubles each time; up to a quarter more, at random,
    keeps many clients from coming back together.
    """

    limit: int
    retry: float = _RETRY
    tries: int = 0

    async def wait(self, problem: TickertapeError) -> None:
        """Raises the problem when there is to be no other try."""
        seconds = min(self.retry * 2**self.tries, max(self.retry, _LONGEST_RETRY))
        if isinstance(problem, OverloadedError):
            seconds = problem.retry_after
        if self.tries >= self.limit or seconds > _LONGEST_RETRY_AFTER:
            raise problem
        self.tries += 1
        logger.info("%s; trying again in %.1f s", problem, seconds)
        await asyncio.sleep(seconds * random.uniform(1, 1.25))


class Client:
    """A connection pool to one Tickertape server; use it with `async with`.

    After a lost connection, a 429 or a 503 it tries again, up to `max_retries` times in a row.
    `api_key` is for a server that wants one. A server on this machine is reached directly, any
    other by the proxy that the environment names. Raises TickertapeError when `url`, `api_key` or
    the environment cannot be used.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        max_retries: int = 5,
    ) -> None:
        self._max_retries = max_retries
        try:
            self._http = connect(url, api_key)
        except ValueError as error:
            raise TickertapeError(str(error)) from None
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
        async with contextlib.aclosing(self._read(reading, body)) as events:
            async for event in events:
                yield event

    async def chat(
        self, messages: Sequence[Mapping[str, str]], **options: Unpack[Options]
    ) -> AsyncGenerator[Event, None]:
        """Stream the model's next turn in a conversation of {"role", "content"} messages.

        Leaving the loop early cancels it. Raises like `generate`.
        """
        body = {"input": list(messages), "background": True, "on_disconnect": "pause"}
        response = await self._request("POST", "/v1/responses", body | _as_response(options))
        reading = _Reading(cancel_on_close=True, tape=response.headers["X-Tape"])
        async with contextlib.aclosing(self._read(reading)) as events:
            async for event in events:
                yield event

    async def attach(self, tape: str, after: int = 0) -> AsyncGenerator[Event, None]:
        """Read a tape after entry `after`, from its start by default. Leaving only stops reading.

        Raises RefusedError (404: no such tape), GenerationError or ConnectionLostError.
        """
        reading = _Reading(cancel_on_close=False, tape=tape, after=after)
        async with contextlib.aclosing(self._read(reading)) as events:
            async for event in events:
                yield event

    async def complete(self, prompt: str, **options: Unpack[Options]) -> Answer:
        """The whole continuation at once. Raises like `generate`."""
        # It takes as long as its generation does, so there is no bound on the wait.
        response = await self._request(
            "POST", "/generate", {"prompt": prompt, **options}, waits=None
        )
        try:
            return Answer(**_object(response))
        except TypeError as error:
            raise ConnectionLostError(f"the answer is none of a Tickertape's: {error}") from error

    async def cancel(self, tape: str) -> None:
        """End a generation; all its readers get their terminal event."""
        await self._request("DELETE", f"/v1/tapes/{tape}")

    async def fork(
        self, tape: str, after: int, *, token_id: int | None = None, **changes: Unpack[Options]
    ) -> str:
        """Begin a tape whose first `after` entries are copies of this one's; its id.

        What comes next is drawn with the `changes`, or is `token_id`. Read it with `attach`. Raises
        RefusedError: 404 for no such tape, 409 when entries are gone, 422 after its end.
        """
        forced = {} if token_id is None else {"token_id": token_id}
        body = {"after": after, **forced, **changes}
        response = await self._request("POST", f"/v1/tapes/{tape}/fork", body)
        return str(_object(response)["tape"])

    async def snapshot(self, tape: str) -> dict[str, Any]:
        """A tape as it is now: text so far, status, finish_reason, usage, timings."""
        response = await self._request(
            "GET", f"/v1/tapes/{tape}", headers={"Accept": "application/json"}
        )
        return _object(response)

    async def version(self) -> dict[str, Any]:
        """What the server is: version, model, dtype, device, max_model_len."""
        return _object(await self._request("GET", "/version"))

    async def operations(self) -> dict[str, Any]:
        """How the server is doing now: the newest `sample`, and this key's `tapes`."""
        response = await self._request("GET", "/v1/dash?samples=1")
        frames = EventStreamParser().feed(response.content)
        for frame in frames:
            if frame.event == "sample":
                return dict(json.loads(frame.data))
        raise ConnectionLostError("the server ended before it told how it is doing; ask again")

    async def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        waits: httpx.Timeout | None = TIMEOUT,
        max_retries: int | None = None,
    ) -> httpx.Response:
        """One answer. The key makes a request that is sent again the same request."""
        patience = _Patience(self._max_retries if max_retries is None else max_retries)
        nothing_read = _Reading(cancel_on_close=False)
        if body:
            headers = {"Idempotency-Key": secrets.token_urlsafe(16), **(headers or {})}
        while True:
            try:
                response = await self._http.request(
                    method, path, json=_jsonable(body), headers=headers, timeout=waits
                )
                _raise_for_refusal(response)
                return response
            except (OverloadedError, httpx.TransportError) as error:
                await self._try_again(nothing_read, patience, error)

    async def _read(
        self, reading: _Reading, body: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[Event, None]:
        """A tape up to and with its Done; begun by `body`, where it is not known yet."""
        patience = _Patience(self._max_retries)
        key = secrets.token_urlsafe(16)
        self._readings.add(reading)
        try:
            while not reading.ended:
                stood = reading.after
                try:
                    async with contextlib.aclosing(
                        self._connection(reading, body, key, patience)
                    ) as events:
                        async for event in events:
                            yield event
                except (OverloadedError, httpx.TransportError, _CutError, _StrangerError) as error:
                    if reading.after > stood:
                        patience.tries = 0
                    await self._try_again(reading, patience, error)
        except ConnectionLostError:
            reading.cancel_on_close = False  # it can be read on from where it broke
            raise
        finally:
            await self._leave(reading)

    async def _try_again(self, reading: _Reading, patience: _Patience, error: Exception) -> None:
        """Return when it is time to. Raises what `error` means for the caller when it never is."""
        if isinstance(error, OverloadedError):
            await patience.wait(error)
            return
        message = _describe(error, self._http.base_url)
        lost = ConnectionLostError(message, reading.tape, reading.after)
        lost.__cause__ = error
        began = reading.tape is not None or patience.tries > 0
        if isinstance(error, _StrangerError) or (
            isinstance(error, httpx.ConnectError) and not began
        ):
            raise lost
        await patience.wait(lost)

    async def _connection(
        self,
        reading: _Reading,
        body: Mapping[str, Any] | None,
        key: str,
        patience: _Patience,
    ) -> AsyncGenerator[Event, None]:
        """What one connection brings: the start of a tape, or what comes after `reading.after`."""
        method, path, headers = "POST", "/generate", {"Accept": "text/event-stream"}
        if reading.tape is None:
            headers["Idempotency-Key"] = key
        else:
            method, path, body = "GET", f"/v1/tapes/{reading.tape}", None
            headers["Last-Event-ID"] = f"{reading.tape}:{reading.after}"
        async with self._http.stream(
            method, path, json=_jsonable(body), headers=headers
        ) as response:
            if not response.is_success:
                await response.aread()
            _raise_for_refusal(response)
            if response.status_code == 204:
                reading.ended = True
                return
            reading.tape = response.headers.get("X-Tape", reading.tape)
            parser = EventStreamParser()
            async for chunk in response.aiter_bytes():
                frames = list(parser.feed(chunk))
                if parser.retry is not None:
                    patience.retry = parser.retry / 1000
                for frame in frames:
                    if event := _understood(frame, reading):
                        yield event
                    if reading.ended:
                        return
        raise _CutError("the stream ended without its done frame")

    async def _leave(self, reading: _Reading) -> None:
        """The loop over this tape is over; what it started and did not finish is cancelled."""
        self._readings.discard(reading)
        if reading.cancel_on_close and reading.tape and not reading.ended:
            reading.ended = True
            # Gone already, or the server is: either way nothing is left to cancel. It is not tried
            # again: a generation that nobody reads ends by itself.
            with contextlib.suppress(TickertapeError):
                await self._request("DELETE", f"/v1/tapes/{reading.tape}", max_retries=0)


def _understood(frame: ServerSentEvent, reading: _Reading) -> Event | None:
    """Like `_event`. Raises _StrangerError for a frame that is none of a Tickertape's."""
    try:
        return _event(frame, reading)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _StrangerError(f"it sent {frame.event!r} with {frame.data:.80}") from error


def _event(frame: ServerSentEvent, reading: _Reading) -> Event | None:
    """None for what this reader has already, and for a kind of event that is newer than it.

    Raises GenerationError on the terminal frame of a failed generation, _CutError when entries are
    missing before this one, and ValueError or KeyError for a frame that is none of a Tickertape's.
    """
    if frame.event not in ("token", "status", "gap", "done"):
        return None
    data = json.loads(frame.data)
    match frame.event:
        case "status":
            return Status(data.pop("state"), data)
        case "gap":
            gap = Gap(data["from"], data["to"])
            reading.after = max(reading.after, gap.last)
            return gap
        case "token" if _moves_on(frame, reading, len(data["token_ids"])):
            tape, n = reading.tape or "", reading.after
            return Token(data["text"], data["token_ids"], tape, n, data.get("logprobs"))
        case "done" if _moves_on(frame, reading, 1):
            return _done(data, reading)
    return None


def _moves_on(frame: ServerSentEvent, reading: _Reading, count: int) -> bool:
    """Whether this frame of `count` entries is the next one; False for one that was read before."""
    last = int(frame.id.rpartition(":")[2])
    if last <= reading.after:
        return False
    if last - count != reading.after:
        raise _CutError(f"entries between {reading.after} and {last - count + 1} are missing")
    reading.after = last
    return True


def _done(data: dict[str, Any], reading: _Reading) -> Done:
    """Raises GenerationError when the generation has failed."""
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


def _as_response(options: Options) -> dict[str, Any]:
    """The options under the names that /v1/responses has for them."""
    names = {"max_length": "max_output_tokens", "logprobs": "top_logprobs"}
    return {names.get(name, name): value for name, value in options.items()}


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
    if isinstance(error, _StrangerError):
        return f"what answers at {url} is no Tickertape: {error}"
    if isinstance(error, httpx.ProxyError | httpx.ConnectError) and (proxy := proxy_of(url)):
        return f"{url} is not reached by the proxy of {proxy} ({error}); correct or unset that"
    if isinstance(error, httpx.ConnectError):
        return f"nothing answers at {url}; is the server running? (`tickertape serve`)"
    return f"the connection to {url} failed: {error or type(error).__name__}"
