"""The engine: requests in, one Step of tokens out per call. No sockets, no clocks but one."""

import contextlib
import queue
import time
from collections.abc import Sequence
from concurrent.futures import Future

from model.block_pool import BlockPool
from model.detokenizer import Detokenizer
from model.grammar import GrammarError
from model.guide import Guide, Guides
from model.messages import (
    Finished,
    FinishReason,
    Gauges,
    Generate,
    Logprob,
    Prefilling,
    Queued,
    Started,
    Step,
    Token,
    TopLogprob,
    Totals,
)
from model.pace import Pace
from model.request import Request
from model.runner import Runner
from model.sampler import Choice, sample
from model.scheduler import Chunk, Plan, Scheduler
from model.tokenizer import Tokenizer

_PROGRESS_INTERVAL = 0.1  # seconds; people read these, programs do not
_GUIDE_INTERVAL = 0.01  # seconds without a look at new commands while nothing but guides is made


class Engine:
    """Schedule, run, sample, detokenize: `step` is those four, and what was learned from them."""

    def __init__(
        self,
        scheduler: Scheduler,
        pool: BlockPool,
        runner: Runner,
        tokenizer: Tokenizer,
        eos_token_ids: tuple[int, ...],
        guides: Guides | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._pool = pool
        self._runner = runner
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._guides = guides
        # Sequences with a grammar: those that wait for their guide, and those paused without one.
        self._unguided: dict[str, tuple[Request, Future[Guide]]] = {}
        self._paused_unguided: dict[str, Request] = {}
        self._made: queue.SimpleQueue[str] = queue.SimpleQueue()  # ids of guides that have ended
        self._pace = Pace()
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
        request = Request(
            command.id,
            list(command.prompt_ids),  # it grows, and the command is the caller's
            params,
            Detokenizer(self._tokenizer, params.stop),
            arrived=time.monotonic(),
            priority=command.priority,
            salt=command.salt,
            client=command.client,
            pause_after_one=command.pause_after_one,
        )
        for token_id in command.output_ids:
            _append(request, token_id)
        if params.grammar is None:
            self._scheduler.add(request)
        else:
            self._begin_guide(request, params.grammar)

    def switch(self, runner: Runner) -> None:
        """Go on with another runner, whose KV cache is empty: all is computed again."""
        self._scheduler.restart()
        self._runner = runner
        self._pace = Pace()

    def cancel(self, request_id: str) -> None:
        """Forget a sequence. A guide that is not begun yet is not made."""
        self._paused_unguided.pop(request_id, None)
        self._stop_guide(request_id)
        self._scheduler.remove(request_id)

    def pause(self, request_id: str) -> None:
        """No more compute for this sequence until `resume`: no guide is made for it either."""
        self._join_guided()
        if request := self._stop_guide(request_id):
            request.pause_after_one = False
            self._paused_unguided[request_id] = request
        else:
            self._scheduler.pause(request_id)

    def resume(self, request_id: str) -> None:
        request = self._paused_unguided.pop(request_id, None)
        if request and request.params.grammar is not None:
            self._begin_guide(request, request.params.grammar)
        else:
            self._scheduler.resume(request_id)

    def _begin_guide(self, request: Request, grammar: str) -> None:
        assert self._guides, "an engine for grammars is made with guides"
        guide = self._guides.begin(grammar, request.output_ids, request.client)
        self._unguided[request.id] = request, guide
        guide.add_done_callback(lambda _: self._made.put(request.id))

    def _stop_guide(self, request_id: str) -> Request | None:
        """The sequence, if it waited for its guide: it does no longer."""
        if request_id not in self._unguided:
            return None
        request, guide = self._unguided.pop(request_id)
        guide.cancel()
        return request

    def _join(self, request_id: str) -> None:
        """Let a sequence take part whose guide is made."""
        waiting = self._unguided.get(request_id)
        if waiting is None or not waiting[1].done():  # it left, or has begun another guide since
            return
        request, guide = self._unguided.pop(request_id)
        try:
            request.guide = guide.result()
        except GrammarError as error:
            self._refused.append(Finished(request_id, "error", f"grammar: {error}"))
        else:
            self._scheduler.add(request)

    def _join_guided(self) -> None:
        """Let all take part whose guides are made."""
        while not self._made.empty():
            self._join(self._made.get())

    def _wait_for_a_guide(self) -> None:
        with contextlib.suppress(queue.Empty):
            self._join(self._made.get(timeout=_GUIDE_INTERVAL))

    @property
    def has_work(self) -> bool:
        scheduler = self._scheduler
        return bool(scheduler.running or scheduler.waiting or self._unguided or self._refused)

    @property
    def gauges(self) -> Gauges:
        return Gauges(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting) + len(self._unguided),
            paused=len(self._scheduler.paused) + len(self._paused_unguided),
            kv_blocks_used=self._pool.num_used,
        )

    @property
    def totals(self) -> Totals:
        return Totals(self._prefix_queries, self._prefix_hits, self._scheduler.num_preemptions)

    def step(self) -> Step:
        """One token for every sequence that is ready for one."""
        self._join_guided()
        refused, self._refused = self._refused, []
        plan = self._scheduler.schedule(self._pace)
        progress = self._progress(plan)
        if not plan.chunks:
            if self._unguided and not refused:
                self._wait_for_a_guide()
            return Step(self.gauges, finished=refused, progress=progress, totals=self.totals)
        began = time.monotonic()
        started = [self._start(chunk, began) for chunk in plan.chunks if not chunk.request.started]
        sampling, choices = self._run(plan)
        self._scheduler.computed(plan.chunks)
        tokens, finished = self._advance_all(sampling, choices)
        seconds = time.monotonic() - began
        self._pace.observe(plan.num_decoding, plan.num_prefill_tokens, seconds)
        num_tokens = plan.num_decoding + plan.num_prefill_tokens
        return Step(
            self.gauges, started, tokens, refused + finished, progress, self.totals, num_tokens
        )

    def _start(self, chunk: Chunk, now: float) -> Started:
        request = chunk.request
        request.started = True
        if self._scheduler.has_prefix_cache:
            self._prefix_queries += len(request.token_ids)
            self._prefix_hits += chunk.start
        return Started(request.id, (now - request.arrived) * 1000, cached_tokens=chunk.start)

    def _progress(self, plan: Plan) -> list[Queued | Prefilling]:
        """Now and then: who waits at which place for some time, and how far long prompts are."""
        now = time.monotonic()
        if now < self._progress_due:
            return []
        self._progress_due = now + _PROGRESS_INTERVAL
        queued = [
            Queued(request.id, place)
            for place, request in enumerate(self._scheduler.waiting, start=1)
            if now - request.arrived > _PROGRESS_INTERVAL
        ]
        return queued + [_prefilling(chunk) for chunk in plan.chunks if not chunk.samples]

    def _run(self, plan: Plan) -> tuple[list[Request], Sequence[Choice | None]]:
        """Compute the plan; which requests get a token, and which one: None where a row failed."""
        sampling = [chunk.request for chunk in plan.chunks if chunk.samples]
        logits = self._runner.run(plan.chunks, plan.copies)
        return sampling, sample(logits, sampling, self._eos_token_ids) if sampling else []

    def _advance_all(
        self, requests: Sequence[Request], choices: Sequence[Choice | None]
    ) -> tuple[list[Token], list[Finished]]:
        """What the choices bring about; whoever has ended is forgotten."""
        tokens, finished = [], []
        for request, choice in zip(requests, choices, strict=True):
            if choice is None:
                finished.append(self._fail(request))
                continue
            token, end = self._advance(request, choice)
            tokens.append(token)
            if end:
                finished.append(end)
                self._scheduler.remove(request.id)
            elif request.pause_after_one:
                self._scheduler.pause(request.id)
        return tokens, finished

    def _fail(self, request: Request) -> Finished:
        """Forget a sequence that got no token. What is wrong with a grammar spoils no blocks."""
        if problem := _grammar_problem(request):
            self._scheduler.remove(request.id)
            return Finished(request.id, "error", problem)
        self._scheduler.fail(request.id)
        return Finished(request.id, "error", "the model gave no usable numbers")

    def _advance(self, request: Request, choice: Choice) -> tuple[Token, Finished | None]:
        """Append the chosen token; say what may be shown, and whether it was the last."""
        text = _append(request, choice.token_id)
        if request.guide:
            request.guide.advance(choice.token_id)
        problem = _grammar_problem(request)
        reason = "error" if problem else self._finish_reason(request, choice.token_id)
        if reason:
            text += request.detokenizer.finish()
        token = Token(request.id, choice.token_id, text, self._logprob(choice))
        return token, Finished(request.id, reason, problem) if reason else None

    def _finish_reason(self, request: Request, token_id: int) -> FinishReason | None:
        params = request.params
        if request.guide and request.guide.over:
            return "stop"
        if request.num_output < params.min_tokens:
            return None
        is_eos = token_id in self._eos_token_ids and not params.ignore_eos
        if is_eos or token_id in params.stop_token_ids or request.detokenizer.stopped:
            return "stop"
        return "length" if request.num_output >= params.max_tokens else None

    def _logprob(self, choice: Choice) -> Logprob | None:
        if choice.logprob is None:
            return None
        top = [TopLogprob(i, self._tokenizer.piece(i), logprob) for i, logprob in choice.top]
        return Logprob(choice.token_id, self._tokenizer.piece(choice.token_id), choice.logprob, top)


def _append(request: Request, token_id: int) -> str:
    """One more token of the output; the text that may be shown with it."""
    request.token_ids.append(token_id)
    enough = request.num_output >= request.params.min_tokens
    return request.detokenizer.push(token_id, check_stop=enough)


def _grammar_problem(request: Request) -> str | None:
    """Why this sequence can no longer follow its grammar, if so."""
    problem = request.guide and request.guide.error
    return f"grammar: {problem}" if problem else None


def _prefilling(chunk: Chunk) -> Prefilling:
    return Prefilling(chunk.request.id, chunk.start + chunk.count, len(chunk.request.token_ids))
