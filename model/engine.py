"""The engine: requests in, one StepReport of tokens out per call. No sockets, no clocks but one."""

import contextlib
import queue
import time
from concurrent.futures import Future

from model.decoder.runner import Runner
from model.protocol.messages import (
    Finished,
    FinishReason,
    Gauges,
    Generate,
    Logprob,
    Prefilling,
    Queued,
    Started,
    StepReport,
    Token,
    TopLogprob,
    Totals,
)
from model.sampling.grammar_matcher import GrammarCompiler, GrammarMatcher
from model.sampling.sampler import SampledToken, sample
from model.scheduling.block_pool import BlockPool
from model.scheduling.forward_batch import ForwardBatch
from model.scheduling.prefill_budget import PrefillBudget
from model.scheduling.scheduler import Chunk, Scheduler, SchedulerOutput
from model.scheduling.sequence import Sequence
from model.text.detokenizer import Detokenizer
from model.text.grammar import GrammarError
from model.text.tokenizer import Tokenizer

_PROGRESS_INTERVAL = 0.1  # seconds; people read these, programs do not
# Seconds without a look at new commands while the engine waits for nothing but matchers.
_MATCHER_INTERVAL = 0.01


class Engine:
    """Schedule, run, sample, detokenize: `step` is those four, and what was learned from them."""

    def __init__(
        self,
        scheduler: Scheduler,
        pool: BlockPool,
        runner: Runner,
        tokenizer: Tokenizer,
        eos_token_ids: tuple[int, ...],
        grammars: GrammarCompiler | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._pool = pool
        self._runner = runner
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._grammars = grammars
        # Sequences with a grammar: those that wait for their matcher, and those paused without one.
        self._without_matcher: dict[str, tuple[Sequence, Future[GrammarMatcher]]] = {}
        self._paused_without_matcher: dict[str, Sequence] = {}
        self._made: queue.SimpleQueue[str] = queue.SimpleQueue()  # ids of matchers that have ended
        self._prefill_budget = PrefillBudget()
        self._refused: list[Finished] = []
        self._progress_due = 0.0
        self._prefix_queries = 0
        self._prefix_hits = 0

    def submit(self, command: Generate) -> None:
        """Queue a request; one that can never fit the KV cache ends with an error instead."""
        params = command.params
        needed = self._pool.blocks_for(len(command.prompt_ids) + params.max_tokens)
        if needed > self._pool.total:
            message = f"needs {needed} KV blocks, this engine has {self._pool.total}"
            self._refused.append(Finished(command.id, "error", message))
            return
        sequence = Sequence(
            token_ids=list(command.prompt_ids),  # it grows, and the command is the caller's
            params=params,
            id=command.id,
            detokenizer=Detokenizer(self._tokenizer, params.stop),
            arrived=time.monotonic(),
            priority=command.priority,
            salt=command.salt,
            client=command.client,
            pause_after_one=command.pause_after_one,
        )
        for token_id in command.output_ids:
            _append(sequence, token_id)
        if params.grammar is None:
            self._scheduler.add(sequence)
        else:
            self._begin_matcher(sequence, params.grammar)

    def switch(self, runner: Runner) -> None:
        """Go on with another runner, whose KV cache is empty: all is computed again."""
        self._scheduler.restart()
        self._runner = runner
        self._prefill_budget = PrefillBudget()

    def cancel(self, sequence_id: str) -> None:
        """Forget a sequence. A matcher that is not begun yet is not made."""
        self._paused_without_matcher.pop(sequence_id, None)
        self._stop_matcher(sequence_id)
        self._scheduler.remove(sequence_id)

    def pause(self, sequence_id: str) -> None:
        """No more compute for this sequence until `unpause`: no matcher is made for it either."""
        self._join_matched()
        if sequence := self._stop_matcher(sequence_id):
            sequence.pause_after_one = False
            self._paused_without_matcher[sequence_id] = sequence
        else:
            self._scheduler.pause(sequence_id)

    def unpause(self, sequence_id: str) -> None:
        sequence = self._paused_without_matcher.pop(sequence_id, None)
        if sequence and sequence.params.grammar is not None:
            self._begin_matcher(sequence, sequence.params.grammar)
        else:
            self._scheduler.unpause(sequence_id)

    def _begin_matcher(self, sequence: Sequence, grammar: str) -> None:
        assert self._grammars, "an engine for grammars is made with their compiler"
        matcher = self._grammars.begin(grammar, sequence.output_ids, sequence.client)
        self._without_matcher[sequence.id] = sequence, matcher
        matcher.add_done_callback(lambda _: self._made.put(sequence.id))

    def _stop_matcher(self, sequence_id: str) -> Sequence | None:
        """The sequence, if it waited for its matcher: it does no longer."""
        if sequence_id not in self._without_matcher:
            return None
        sequence, matcher = self._without_matcher.pop(sequence_id)
        matcher.cancel()
        return sequence

    def _join(self, sequence_id: str) -> None:
        """Let a sequence take part whose matcher is made."""
        waiting = self._without_matcher.get(sequence_id)
        if waiting is None or not waiting[1].done():  # it left, or has begun another matcher since
            return
        sequence, matcher = self._without_matcher.pop(sequence_id)
        try:
            sequence.matcher = matcher.result()
        except GrammarError as error:
            self._refused.append(Finished(sequence_id, "error", f"grammar: {error}"))
        else:
            self._scheduler.add(sequence)

    def _join_matched(self) -> None:
        """Let all take part whose matchers are made."""
        while not self._made.empty():
            self._join(self._made.get())

    def _wait_for_a_matcher(self) -> None:
        with contextlib.suppress(queue.Empty):
            self._join(self._made.get(timeout=_MATCHER_INTERVAL))

    @property
    def has_work(self) -> bool:
        scheduler = self._scheduler
        return bool(
            scheduler.running or scheduler.waiting or self._without_matcher or self._refused
        )

    @property
    def gauges(self) -> Gauges:
        return Gauges(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting) + len(self._without_matcher),
            paused=len(self._scheduler.paused) + len(self._paused_without_matcher),
            kv_blocks_used=self._pool.num_used,
        )

    @property
    def totals(self) -> Totals:
        return Totals(self._prefix_queries, self._prefix_hits, self._scheduler.num_preemptions)

    def step(self) -> StepReport:
        """One token for every sequence that is ready for one."""
        self._join_matched()
        refused, self._refused = self._refused, []
        scheduled = self._scheduler.schedule(self._prefill_budget)
        progress = self._progress(scheduled)
        if not scheduled.chunks:
            if self._without_matcher and not refused:
                self._wait_for_a_matcher()
            return StepReport(self.gauges, finished=refused, progress=progress, totals=self.totals)
        began = time.monotonic()
        started = [
            self._start(chunk, began) for chunk in scheduled.chunks if not chunk.sequence.started
        ]
        sampling, sampled_tokens = self._run(scheduled)
        self._scheduler.computed(scheduled.chunks)
        tokens, finished = self._advance_all(sampling, sampled_tokens)
        seconds = time.monotonic() - began
        self._prefill_budget.observe(scheduled.num_decoding, scheduled.num_prefill_tokens, seconds)
        num_tokens = scheduled.num_decoding + scheduled.num_prefill_tokens
        return StepReport(
            self.gauges, started, tokens, refused + finished, progress, self.totals, num_tokens
        )

    def _start(self, chunk: Chunk, now: float) -> Started:
        sequence = chunk.sequence
        sequence.started = True
        if self._scheduler.has_prefix_cache:
            self._prefix_queries += len(sequence.token_ids)
            self._prefix_hits += chunk.start
        return Started(sequence.id, (now - sequence.arrived) * 1000, cached_tokens=chunk.start)

    def _progress(self, scheduled: SchedulerOutput) -> list[Queued | Prefilling]:
        """Now and then: who waits at which place for some time, and how far long prompts are."""
        now = time.monotonic()
        if now < self._progress_due:
            return []
        self._progress_due = now + _PROGRESS_INTERVAL
        queued = [
            Queued(sequence.id, place)
            for place, sequence in enumerate(self._scheduler.waiting, start=1)
            if now - sequence.arrived > _PROGRESS_INTERVAL
        ]
        return queued + [_prefilling(chunk) for chunk in scheduled.chunks if not chunk.num_logits]

    def _run(self, scheduled: SchedulerOutput) -> tuple[list[Sequence], list[SampledToken | None]]:
        """Compute the chunks: which sequences sample, and each one's token or None if it failed."""
        batch = ForwardBatch.of(scheduled.chunks, scheduled.copies)
        logits, sampling = self._runner.run(batch), batch.sampling
        return sampling, sample(logits, sampling, self._eos_token_ids) if sampling else []

    def _advance_all(
        self, sequences: list[Sequence], sampled_tokens: list[SampledToken | None]
    ) -> tuple[list[Token], list[Finished]]:
        """Append the sampled tokens, and forget the sequences that have ended."""
        tokens, finished = [], []
        for sequence, sampled in zip(sequences, sampled_tokens, strict=True):
            if sampled is None:
                finished.append(self._fail(sequence))
                continue
            token, end = self._advance(sequence, sampled)
            tokens.append(token)
            if end:
                finished.append(end)
                self._scheduler.remove(sequence.id)
            elif sequence.pause_after_one:
                self._scheduler.pause(sequence.id)
        return tokens, finished

    def _fail(self, sequence: Sequence) -> Finished:
        """Forget a sequence that got no token. What is wrong with a grammar spoils no blocks."""
        if problem := _grammar_problem(sequence):
            self._scheduler.remove(sequence.id)
            return Finished(sequence.id, "error", problem)
        self._scheduler.fail(sequence.id)
        return Finished(sequence.id, "error", "the model gave no usable numbers")

    def _advance(self, sequence: Sequence, sampled: SampledToken) -> tuple[Token, Finished | None]:
        """Append the chosen token; say what may be shown, and whether it was the last."""
        text = _append(sequence, sampled.token_id)
        if sequence.matcher:
            sequence.matcher.advance(sampled.token_id)
        problem = _grammar_problem(sequence)
        reason = "error" if problem else self._finish_reason(sequence, sampled.token_id)
        if reason:
            text += sequence.detokenizer.finish()
        token = Token(sequence.id, sampled.token_id, text, self._logprob(sampled))
        return token, Finished(sequence.id, reason, problem) if reason else None

    def _finish_reason(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        params = sequence.params
        if sequence.matcher and sequence.matcher.over:
            return "stop"
        if sequence.num_output < params.min_tokens:
            return None
        is_eos = token_id in self._eos_token_ids and not params.ignore_eos
        if is_eos or token_id in params.stop_token_ids or sequence.detokenizer.stopped:
            return "stop"
        return "length" if sequence.num_output >= params.max_tokens else None

    def _logprob(self, sampled: SampledToken) -> Logprob | None:
        if sampled.logprob is None:
            return None
        top = [TopLogprob(i, self._tokenizer.piece(i), logprob) for i, logprob in sampled.top]
        return Logprob(
            sampled.token_id, self._tokenizer.piece(sampled.token_id), sampled.logprob, top
        )


def _append(sequence: Sequence, token_id: int) -> str:
    """One more token of the output; the text that may be shown with it."""
    sequence.token_ids.append(token_id)
    enough = sequence.num_output >= sequence.params.min_tokens
    return sequence.detokenizer.push(token_id, check_stop=enough)


def _grammar_problem(sequence: Sequence) -> str | None:
    """Why this sequence can no longer follow its grammar, if so."""
    problem = sequence.matcher and sequence.matcher.error
    return f"grammar: {problem}" if problem else None


def _prefilling(chunk: Chunk) -> Prefilling:
    return Prefilling(chunk.sequence.id, chunk.start + chunk.count, len(chunk.sequence.token_ids))
