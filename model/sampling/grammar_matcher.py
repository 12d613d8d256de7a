"""Grammars at work: which tokens a sequence may choose next. llguidance does the parsing.

A grammar speaks of bytes, a model of tokens. The bytes of a token are those that the detokenizer
adds to the text for it, so what is shown is what was checked. Control tokens and the model's ends
are no text: where the grammar may end, the ends are allowed, and where it must, it is over.

Where the grammar leaves one way only, `{"name": "` for example, the tokens are those that the
tokenizer makes of that text. They are known at once, and neither parser nor logits are asked.
"""

import contextlib
import os
import sys
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from threading import Lock, get_native_id
from typing import Final

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.numpy import (
    allocate_token_bitmask,
    fill_next_token_bitmask,
    fill_next_token_bitmask_par,
)
from numpy.typing import NDArray

from model import processors
from model.checkpoints.config import ModelConfig
from model.text.grammar import LIMITS, GrammarError, explain
from model.text.tokenizer import Tokenizer

Mask = NDArray[np.uint8]
"""Eight tokens a byte, the lowest id in the lowest bit; 1 for those that may come next."""

_BITS: Final = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_BIASES: Final = np.where(_BITS, np.float32(0), np.float32(-np.inf))  # of each byte

# Tokens of at most so many characters of a JSON string: where all of these may come, they need no
# look. The library's own are of 10 and 30; with 20 characters left to a string, these are twice
# as fast.
_CHARACTER: Final = r'[^"\\\x00-\x1F\x7F]'
_SLICES: Final = [
    *(f"{_CHARACTER}{{1,{most}}}" for most in (2, 4, 7, 11, 16, 32)),
    f"{_CHARACTER}+",
]

_NICE: Final = 5  # of the thread that compiles grammars
_FEW: Final = 4  # masks up to this many are made in turn: to wake threads takes as long
_MOST_THREADS: Final = 8

# Compiled grammars that are kept: half a megabyte each as a rule, 6 for the largest accepted one.
_KEPT: Final = 16
_KEPT_BYTES: Final = 256 * 1024  # of their sources


class GrammarMatcher:
    """The place of one sequence in its grammar.

    Attributes:
        vocabulary: how many tokens the grammar knows of.
        forced: the tokens that must come next, as far as they are known.
    """

    def __init__(self, parser: LLMatcher, vocabulary: int) -> None:
        self.parser = parser
        self.vocabulary = vocabulary
        self.forced: deque[int] = deque()

    @property
    def error(self) -> str | None:
        """Why the grammar can no longer be followed, if so: a limit was reached, for example."""
        return explain(self.parser.get_error()) if self.parser.is_error() else None

    @property
    def over(self) -> bool:
        """Whether the text is complete, and nothing may follow."""
        return bool(self.parser.is_stopped()) and not self.parser.is_error()

    def advance(self, token_id: int) -> None:
        """The sequence has this token now."""
        if self.forced:
            self.forced.popleft()
        self.parser.consume_token(token_id)

    def look_ahead(self) -> None:
        """Find out what is forced. It takes a third of the time of a mask."""
        self.forced = deque(self.parser.compute_ff_tokens())


def masks(matchers: Sequence[GrammarMatcher]) -> list[Mask]:
    """For each matcher which tokens may come next; all matchers are of one vocabulary.

    One that has failed in this says so in its `error`, and allows nothing. One that allows a single
    token looks ahead.
    """
    words = allocate_token_bitmask(len(matchers), matchers[0].vocabulary)
    if len(matchers) <= _FEW:
        for row, matcher in enumerate(matchers):
            fill_next_token_bitmask(matcher.parser, words, row)
    else:
        rows = [(matcher.parser, row) for row, matcher in enumerate(matchers)]
        fill_next_token_bitmask_par(_executor(), rows, words)
    for row in (np.count_nonzero(words, axis=1) == 1).nonzero()[0]:
        matchers[row].look_ahead()
    words[[row for row, matcher in enumerate(matchers) if matcher.error]] = 0
    return list(words.view(np.uint8))


def allows(mask: Mask, token_id: int) -> bool:
    """Whether this token may come next."""
    return bool(mask[token_id >> 3] >> (token_id & 7) & 1)


def mask_bias(mask: Mask) -> NDArray[np.float32]:
    """What to add to the logits: 0 where a token may come next, else -inf.

    (vocabulary or a few more). Three times as fast as numpy's own unpacking and a choice by it.
    """
    found = np.empty((len(mask), 8), np.float32)
    np.take(_BIASES, mask, axis=0, out=found, mode="clip")  # without a check of the indices
    return found.reshape(-1)


@cache
def _executor() -> LLExecutor:
    return LLExecutor(num_threads=min(processors.usable(), _MOST_THREADS))


@dataclass(frozen=True, slots=True)
class _Job:
    """A matcher to make: at the place behind `token_ids`, for a sequence of `client`."""

    grammar: str
    token_ids: tuple[int, ...]
    client: str
    matcher: Future[GrammarMatcher]


class _Jobs:
    """Jobs that wait for the thread that makes matchers. Clients take turns; each one's in order.

    Any thread may call.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._busy = False
        self._lines: OrderedDict[str, dict[Future[GrammarMatcher], _Job]] = OrderedDict()

    def put(self, job: _Job) -> bool:
        """Whether nobody takes jobs at present: the caller must see to it that somebody does."""
        with self._lock:
            self._lines.setdefault(job.client, {})[job.matcher] = job
            idle, self._busy = not self._busy, True
            return idle

    def take(self) -> _Job | None:
        """The next job; None when there is none, and then the one who took them stops."""
        with self._lock:
            if not self._lines:
                self._busy = False
                return None
            client, line = self._lines.popitem(last=False)
            job = line.pop(next(iter(line)))
            if line:
                self._lines[client] = line  # behind the other clients
            return job

    def drop(self, client: str, matcher: Future[GrammarMatcher]) -> None:
        """Forget the job of this matcher, if it still waits."""
        with self._lock:
            line = self._lines.get(client, {})
            if line.pop(matcher, None) and not line:
                del self._lines[client]


class GrammarCompiler:
    """Makes matchers for one model, in a thread: a large grammar takes tenths of a second.

    The vocabulary is prepared first, and that holds the interpreter lock: make this object before
    anybody waits for tokens. To compile a grammar does not hold it.
    """

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig) -> None:
        self._thread = ThreadPoolExecutor(1, "matchers", _step_back)
        self._vocabulary = self._thread.submit(_prepare, tokenizer, config)
        self._jobs = _Jobs()
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()  # least recently used first

    def begin(
        self, grammar: str, token_ids: Sequence[int] = (), client: str = ""
    ) -> Future[GrammarMatcher]:
        """A matcher at the place behind `token_ids`; clients take turns.

        The future raises GrammarError for a grammar that this model cannot follow, or tokens that
        do not. When it is cancelled before its turn, nothing is left of it.
        """
        matcher: Future[GrammarMatcher] = Future()
        matcher.add_done_callback(partial(self._jobs.drop, client))
        if self._jobs.put(_Job(grammar, tuple(token_ids), client, matcher)):
            self._thread.submit(self._work)
        return matcher

    def _work(self) -> None:
        while job := self._jobs.take():
            if job.matcher.set_running_or_notify_cancel():
                self._fulfil(job)

    def _fulfil(self, job: _Job) -> None:
        try:
            matcher = self._make(job.grammar, job.token_ids)
        except Exception as error:
            job.matcher.set_exception(error)
        else:
            job.matcher.set_result(matcher)

    def _make(self, grammar: str, token_ids: tuple[int, ...]) -> GrammarMatcher:
        vocabulary = self._vocabulary.result()
        parser = self._compile(grammar, vocabulary).deep_copy()
        parser.consume_tokens(list(token_ids))
        matcher = GrammarMatcher(parser, vocabulary.vocab_size)
        matcher.look_ahead()
        if matcher.error:
            raise GrammarError(matcher.error)
        return matcher

    def _compile(self, grammar: str, vocabulary: LLTokenizer) -> LLMatcher:
        """The grammar at its beginning. The last ones are kept: to copy one takes microseconds."""
        parser = self._compiled.pop(grammar, None)
        if parser is None:
            parser = LLMatcher(vocabulary, grammar, log_level=0, limits=LIMITS)
        self._compiled[grammar] = parser
        while len(self._compiled) > _KEPT or sum(map(len, self._compiled)) > _KEPT_BYTES:
            self._compiled.popitem(last=False)
        return parser


def _step_back() -> None:
    """Let the threads that compute steps go before this one, where threads have a nice of their own
    (Linux). While it works it holds no lock that they want."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, get_native_id(), _NICE)


def _prepare(tokenizer: Tokenizer, config: ModelConfig) -> LLTokenizer:
    """Raises GrammarError for a vocabulary that the library does not take."""
    spelling = _Spelling(tokenizer, config.vocab_size, config.eos_token_ids)
    wrapper = TokenizerWrapper(spelling)
    try:
        return LLTokenizer(wrapper, eos_token=list(spelling.eos_token_ids), slices=_SLICES)
    except ValueError as error:
        raise GrammarError(f"this model's vocabulary takes no grammar ({error})") from error
    finally:
        del spelling.tokens, wrapper.tokens  # the library has a copy


class _Spelling:
    """A tokenizer as llguidance wants it: the bytes of each token, and a text's tokens.

    It has the tokens that the model can choose, no matter how many the tokenizer knows. A model
    without ends gets one that it can not.
    """

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self._size = size
        self.eos_token_ids = eos_token_ids or (size,)
        self.eos_token_id = self.eos_token_ids[0]
        ids = range(max(size, max(self.eos_token_ids) + 1))
        special = tokenizer.special_ids.union(self.eos_token_ids)
        self.special_token_ids = [id for id in ids if id in special]
        self.tokens = [tokenizer.token_bytes(id) for id in ids]
        self._bytes = {token: id for id, token in enumerate(self.tokens) if len(token) == 1}
        for id in self.special_token_ids:
            self.tokens[id] = self._name(id)

    def _name(self, id: int) -> bytes:
        """What Lark calls a control token."""
        try:
            return self._tokenizer.id_to_token(id).encode()
        except KeyError:
            return b"<%d>" % id

    def __call__(self, text: bytes | str) -> list[int]:
        """The tokens of a text that stands in the middle of an answer."""
        text = text.decode() if isinstance(text, bytes) else text
        ids = self._encode(text)
        spelled = b"".join(map(self._tokenizer.token_bytes, ids))
        if spelled == text.encode() and max(ids, default=0) < self._size:
            return ids
        return [self._bytes[bytes([byte])] for byte in text.encode()]

    def _encode(self, text: str) -> list[int]:
        encode = self._tokenizer.encode
        if not self._tokenizer.strip_leading_space:
            return encode(text, add_special_tokens=False)
        # A text's first token gets a space that is none of its own, unless it follows a line.
        line = encode("\n", add_special_tokens=False)
        return encode("\n" + text, add_special_tokens=False)[len(line) :]
