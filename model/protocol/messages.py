"""What crosses the process boundary: msgspec structs, one MessagePack frame each, never pickle.

A frame on the socket is a 4-byte big-endian length followed by that many bytes of MessagePack.
"""

import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from model.protocol.sampling_params import SamplingParams

FinishReason = Literal["stop", "length", "cancelled", "timeout", "shutdown", "error"]


# ---- API process -> engine process


class Configure(msgspec.Struct, frozen=True, tag=True):
    """The first message: load this model. Sizes in tokens, sequences and bytes.

    `threads` compute: None is one for each processor that the engine may use.
    """

    model_path: str
    dtype: str
    max_num_seqs: int
    max_step_tokens: int
    max_model_len: int | None
    kv_cache_bytes: int
    threads: int | None = None
    prefix_cache: bool = True


class Generate(msgspec.Struct, frozen=True, tag=True):
    """Start one sequence, or go on with one. `id` is the tape's id.

    Of the sequences of one `client`, lower `priority` goes first; they share what the scheduler
    gives to each client. Only sequences with the same `salt` share cached prefixes. `output_ids`
    are the tokens that an engine has generated before it died: the next token is the one after.
    With `pause_after_one` it is paused as soon as it has its next token.
    """

    id: str
    prompt_ids: list[int]
    params: SamplingParams
    priority: int = 0
    salt: str = ""
    output_ids: list[int] = []
    pause_after_one: bool = False
    client: str = ""


class Cancel(msgspec.Struct, frozen=True, tag=True):
    id: str


class Pause(msgspec.Struct, frozen=True, tag=True):
    """Stop decoding within one step; keep the KV blocks while there is room."""

    id: str


class Unpause(msgspec.Struct, frozen=True, tag=True):
    id: str


Command = Configure | Generate | Cancel | Pause | Unpause


# ---- engine process -> API process


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded. Context length in tokens, memory in blocks, time in seconds.

    The KV cache holds `kv_tokens` positions in `kv_bytes`, over all sequences. `threads` compute.
    `weight_bytes` is what a step with one row reads of the weights, where the runner knows it.
    `note` is a line for the log. A second one follows when the way to compute has changed.
    """

    dtype: str
    device: str
    max_model_len: int
    kv_blocks_total: int
    load_seconds: float
    torch_version: str
    weight_bytes: int | None = None
    note: str | None = None
    kv_tokens: int = 0
    kv_bytes: int = 0
    threads: int = 0


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The engine cannot serve this model; the message is one line for a person."""

    message: str


class TopLogprob(msgspec.Struct, frozen=True, array_like=True):
    token_id: int
    token: str
    logprob: float


class Logprob(msgspec.Struct, frozen=True, array_like=True):
    """Natural-log probability of the chosen token and of the likeliest ones, best first.

    Taken from the model's own distribution, before temperature, penalties and cuts.
    """

    token_id: int
    token: str
    logprob: float
    top: list[TopLogprob]


class Started(msgspec.Struct, frozen=True, array_like=True):
    """The sequence left the queue; so many of its prompt's tokens were in the prefix cache."""

    id: str
    queue_ms: float
    cached_tokens: int


class Queued(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The sequence waits; 1 is the next to run."""

    id: str
    position: int


class Prefilling(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """So many of the sequence's tokens are computed; with all of them comes the next token."""

    id: str
    done: int
    total: int


class Token(msgspec.Struct, frozen=True, array_like=True):
    """One step of one sequence. `text` is whole code points, and may be empty."""

    id: str
    token_id: int
    text: str
    logprob: Logprob | None = None


class Finished(msgspec.Struct, frozen=True, array_like=True):
    id: str
    reason: FinishReason
    error: str | None = None


class Gauges(msgspec.Struct, frozen=True, array_like=True):
    """How busy the engine is: sequences by state, KV blocks in use."""

    running: int = 0
    waiting: int = 0
    paused: int = 0
    kv_blocks_used: int = 0


class Totals(msgspec.Struct, frozen=True, array_like=True):
    """What an engine has counted since it began: prompt tokens looked up in the prefix cache and
    found there, and sequences that had to give up their blocks while they ran."""

    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(
            self.prefix_queries + other.prefix_queries,
            self.prefix_hits + other.prefix_hits,
            self.preemptions + other.preemptions,
        )


class StepReport(msgspec.Struct, frozen=True, tag=True):
    """All that one step of the whole batch brought about; `num_tokens` were computed in it."""

    gauges: Gauges
    started: list[Started] = []
    tokens: list[Token] = []
    finished: list[Finished] = []
    progress: list[Queued | Prefilling] = []
    totals: Totals = Totals()
    num_tokens: int = 0


Report = Ready | Failed | StepReport


# ---- API process -> preparation process: what it takes to make a request ready for the engine


Message = Mapping[str, Any]
"""One turn of a conversation: at least its `role`, and mostly its `content`."""


class Conversation(msgspec.Struct, frozen=True, tag=True):
    """A prompt in messages; `extra` are further variables of the chat template.

    With `continues`, the messages follow an answer of the model that is not among them.
    """

    messages: Sequence[Message]
    extra: Mapping[str, Any] = {}
    continues: bool = False


class Encode(msgspec.Struct, frozen=True, tag=True):
    """Token ids of texts and conversations. Of a text with `limit` or more tokens only the number
    is wanted; None is no limit.

    The answer is Encoded, or Refused where the chat template fails.
    """

    prompts: list[str | Conversation]
    limit: int | None = None


class Tokenize(msgspec.Struct, frozen=True, tag=True):
    """As Encode for one prompt, with the text of each token. The answer is Tokenized."""

    prompt: str | Conversation


class Decode(msgspec.Struct, frozen=True, tag=True):
    """The text of each list of ids (of `id_array`s); the answer is Decoded."""

    ids: list[bytes]
    skip_special: bool = True


class JSONSchema(msgspec.Struct, frozen=True, tag=True):
    """A grammar of the JSON texts that are valid under `schema`."""

    schema: Mapping[str, Any]


class ForcedCalls(msgspec.Struct, frozen=True, tag=True):
    """A grammar of nothing but calls of `functions`: names, and JSON schemas of their arguments.

    A call stands between `opening` and `closing`.
    """

    functions: Sequence[tuple[str, Mapping[str, Any]]]
    opening: str
    closing: str
    several: bool = False


class MakeGrammar(msgspec.Struct, frozen=True, tag=True):
    """Make and check a grammar. The answer is Grammar, or Refused."""

    wanted: JSONSchema | ForcedCalls


Job = Encode | Tokenize | Decode | MakeGrammar


class Encoded(msgspec.Struct, frozen=True, tag=True):
    """Of each prompt how many tokens it has, and their ids as an `id_array`.

    Without ids where there are as many as the limit, or more: then at least `counts`.
    """

    counts: list[int]
    ids: list[bytes]


class Tokenized(msgspec.Struct, frozen=True, tag=True):
    """So many tokens; their ids and their texts as two JSON lists."""

    count: int
    ids: bytes
    pieces: bytes


class Decoded(msgspec.Struct, frozen=True, tag=True):
    texts: list[str]


class Grammar(msgspec.Struct, frozen=True, tag=True):
    """As model/text/grammar.py writes it."""

    text: str


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The job cannot be done; the message is one line for a person."""

    message: str


class Stopped(msgspec.Struct, frozen=True, tag=True):
    """The job was stopped: it took too much processor time or memory, or the worker crashed."""

    reason: Literal["time", "memory", "crash"]


Result = Encoded | Tokenized | Decoded | Grammar | Refused | Stopped


def id_array(ids: Iterable[int] = ()) -> "array[int]":
    """Token ids in 32 bits each, in the machine's order of bytes."""
    return array("I", ids)


def ids_of(data: bytes) -> list[int]:
    """The ids in the bytes of an `id_array`."""
    ids = id_array()
    ids.frombytes(data)
    return ids.tolist()


LENGTH: Final = struct.Struct(">I")
MAX_FRAME: Final = 256 * 1024 * 1024


class FrameError(Exception):
    """The other side of the boundary sent something that is no frame."""


def pack(message: Command | Report | Job | Result) -> bytes:
    """One frame, length first."""
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body


class Unpacker:
    """Bytes as they arrive from a stream socket -> the bodies of whole frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the body of every frame that `data` completes.

        Raises FrameError when a frame claims more than MAX_FRAME bytes.
        """
        self._buffer += data
        while len(self._buffer) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME:
                raise FrameError(f"a frame of {length} bytes is larger than {MAX_FRAME}")
            end = LENGTH.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[LENGTH.size : end])
            del self._buffer[:end]
            yield body


command_decoder: Final = msgspec.msgpack.Decoder(Command)
report_decoder: Final = msgspec.msgpack.Decoder(Report)
job_decoder: Final = msgspec.msgpack.Decoder(Job)
result_decoder: Final = msgspec.msgpack.Decoder(Result)
