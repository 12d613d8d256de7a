"""Which sequences compute which positions in the next step. Policy only: no tensors.

States: waiting -> running (prefill in chunks, then decode), paused, gone. Decodes come first, so
that running streams keep their pace; what is left of the step's token budget goes to prefill.
"""

from collections import deque
from dataclasses import dataclass

from model.block_pool import BlockPool
from model.request import Request


@dataclass(frozen=True, slots=True)
class Chunk:
    """Compute positions [start, start + count) of `request` in this step."""

    request: Request
    start: int
    count: int

    @property
    def samples(self) -> bool:
        """Whether the chunk reaches the last token, so that its logits give the next one."""
        return self.start + self.count == len(self.request.token_ids)


class Scheduler:
    """Continuous batching over a fixed pool of KV blocks.

    When blocks run out, sequences that do not run give theirs up first, then the youngest running
    one goes back to waiting and is recomputed later; its tokens do not change.
    """

    def __init__(self, pool: BlockPool, *, max_num_seqs: int, max_step_tokens: int) -> None:
        self._pool = pool
        self._max_num_seqs = max_num_seqs
        self._max_step_tokens = max_step_tokens
        self._requests: dict[str, Request] = {}
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.paused: list[Request] = []

    def add(self, request: Request) -> None:
        self._requests[request.id] = request
        self.waiting.append(request)

    def remove(self, request_id: str) -> None:
        """Forget a sequence, whatever its state; its blocks are free at once."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return
        self._take_out(request)
        self._release(request)

    def pause(self, request_id: str) -> None:
        """No more compute for this sequence until `resume`; its blocks stay while there is room."""
        request = self._requests.get(request_id)
        if request is None or request in self.paused:
            return
        self._take_out(request)
        self.paused.append(request)

    def resume(self, request_id: str) -> None:
        """Back into the queue, at its head: it has waited before."""
        request = self._requests.get(request_id)
        if request is None or request not in self.paused:
            return
        self.paused.remove(request)
        self.waiting.appendleft(request)

    def schedule(self) -> list[Chunk]:
        """The next step's work, decodes before prefills; empty when nothing can run."""
        budget = self._max_step_tokens
        chunks: list[Chunk] = []
        for request in self._by_pending():
            if budget == 0:
                break
            if request in self.running and self._reserve(request):
                chunks.append(self._chunk(request, budget))
                budget -= chunks[-1].count
        chunks = [chunk for chunk in chunks if chunk.request in self.running]
        while budget and self._admit_next():
            chunks.append(self._chunk(self.running[-1], budget))
            budget -= chunks[-1].count
        return chunks

    def _by_pending(self) -> list[Request]:
        """Running sequences, decodes (one pending token) before prefills, each oldest first."""
        return sorted(self.running, key=lambda request: request.num_pending > 1)

    def _chunk(self, request: Request, budget: int) -> Chunk:
        return Chunk(request, request.num_computed, min(request.num_pending, budget))

    def _admit_next(self) -> bool:
        """Let the head of the queue run, if a seat and blocks for all its tokens are free."""
        if not self.waiting or len(self.running) >= self._max_num_seqs:
            return False
        request = self.waiting[0]
        while self._missing(request) > self._pool.num_free:
            if not self._evict_idle(request):
                return False
        self.waiting.popleft()
        self.running.append(request)
        self._grow(request)
        return True

    def _reserve(self, request: Request) -> bool:
        """Blocks for every token of a running sequence, at the cost of idle and younger ones.

        False when the sequence itself was the youngest and had to go back to waiting.
        """
        while self._missing(request) > self._pool.num_free:
            if self._evict_idle(request):
                continue
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is request:
                return False
        self._grow(request)
        return True

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._release(request)
        self.waiting.appendleft(request)

    def _evict_idle(self, wanting: Request) -> bool:
        """Take the blocks of a sequence that does not run; False when no other one holds any.

        The one paused first, else the last in the queue: a resumed one waits with its blocks.
        """
        for request in (*self.paused, *reversed(self.waiting)):
            if request.block_table and request is not wanting:
                self._release(request)
                return True
        return False

    def _missing(self, request: Request) -> int:
        return self._pool.blocks_for(len(request.token_ids)) - len(request.block_table)

    def _grow(self, request: Request) -> None:
        request.block_table += self._pool.allocate(self._missing(request))

    def _release(self, request: Request) -> None:
        self._pool.release(request.block_table)
        request.block_table = []
        request.num_computed = 0

    def _take_out(self, request: Request) -> None:
        if request in self.running:
            self.running.remove(request)
        elif request in self.paused:
            self.paused.remove(request)
        else:
            self.waiting.remove(request)
