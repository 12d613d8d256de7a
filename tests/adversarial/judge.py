"""Sends attempts while a bystander streams, and says what was wrong."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from tests.adversarial.bodies import RESPONSE, TAPE, Attempt
from tests.adversarial.bystander import Bystander, Window
from tests.adversarial.wire import ATTACKER, Answer, Headers, Request, ask

TAKEN = {200, 201, 202, 204, 304}
REFUSED = {400, 401, 403, 404, 405, 408, 409, 411, 413, 414, 415, 421, 422, 429, 431}
TRIES, REPEATED = 3, 2  # of so many tries, what is wrong in so many is no accident


@dataclass(frozen=True)
class Bounds:
    """`health` milliseconds, `gap` times the longest gap of the twin; `hang` seconds.

    With `health_times` an answer of /health is also in time when it took at most so many times what
    it takes beside the twin at that moment: a machine may have become slower meanwhile.
    """

    health: float
    gap: float
    hang: float = 60.0
    health_times: float = 0.0


@dataclass(frozen=True)
class Violation:
    """`timed`: something took too long."""

    attempt: str
    what: str
    timed: bool = False

    def __str__(self) -> str:
        return f"{self.attempt}: {self.what}"


@dataclass
class Report:
    sent: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    slowest_health: float = 0.0  # of what repeated, or passed at once: accidents are left out
    slowest_name: str = ""
    worst_ratio: float = 0.0
    worst_name: str = ""
    gaps: list[float] = field(default_factory=list)
    retried: int = 0
    violations: list[Violation] = field(default_factory=list)


class Judge:
    """One server, one attacker, one bystander."""

    def __init__(self, port: int, bystander: Bystander, bounds: Bounds, key: str | None) -> None:
        self._port = port
        self._bystander = bystander
        self.bounds = bounds
        self._key = key
        self._headers: Headers = (("Authorization", f"Bearer {key}"),) if key else ()
        self._ids: dict[str, str] = {}
        self._made = 0.0
        self._before = 0.0  # the bystander's gaps' p99 under harmless load
        self.report = Report()

    # ---- before

    def accustom(self, attempts: list[Attempt], rounds: int = 1) -> Window:
        """The bystander's window while harmless twins of all sizes are sent."""
        self._bystander.window()
        seen = Window()
        for _ in range(rounds):
            for attempt in attempts:
                size = len(self._built(attempt.build()))
                seen.add(self._during(attempt.twin(size, 0))[1])
        self._before = percentile(seen.gaps, 99)
        return seen

    @property
    def before(self) -> float:
        return self._before

    # ---- one

    def judge(self, attempt: Attempt) -> list[Violation]:
        request = attempt.build()
        answer, window = self._during(request)
        self.report.sent += 1
        self.report.statuses[answer.status] = self.report.statuses.get(answer.status, 0) + 1
        self.report.gaps += window.gaps
        found = [Violation(attempt.name, what) for what in self._wrong(answer)]
        found += [Violation(attempt.name, f"bystander: {fault}") for fault in window.faults]
        if self._suspicious(window):
            found += self._again(attempt, request, answer)
        else:
            self._note(attempt, window.slowest_health, window.longest_gap / self._before)
        self.report.violations += found
        return found

    def _suspicious(self, window: Window) -> bool:
        late = window.slowest_health > self.bounds.health
        return late or window.longest_gap > self.bounds.gap * self._before

    def _again(self, attempt: Attempt, request: Request, answer: Answer) -> list[Violation]:
        """Alone, next to its twin. A stall that comes only after the answer is seen, too."""
        self.report.retried += 1
        twin = attempt.twin(len(self._built(request)), tokens_of(answer))
        healths: list[float] = []
        ratios: list[float] = []
        fine = 0
        while len(healths) < TRIES and fine < REPEATED:
            hostile = self._watched(request)
            if self._suspicious(hostile):
                beside = self._watched(twin)
                ratios.append(hostile.longest_gap / max(beside.longest_gap, self._before))
                usual = self.bounds.health_times * beside.slowest_health
                in_time = hostile.slowest_health <= usual
                healths.append(0.0 if in_time else hostile.slowest_health)
            else:
                healths.append(hostile.slowest_health)
                ratios.append(hostile.longest_gap / self._before)
                fine += 1
        health, ratio = sorted(healths)[-REPEATED], sorted(ratios)[-REPEATED]
        self._note(attempt, health, ratio)
        found = []
        if health > self.bounds.health:
            found.append(Violation(attempt.name, f"/health took {health:.0f} ms", timed=True))
        if ratio > self.bounds.gap:
            what = f"the stream stood still, {ratio:.1f} times as long as beside its twin"
            found.append(Violation(attempt.name, what, timed=True))
        return found

    def _watched(self, request: Request) -> Window:
        """While it is answered, and until thirty tokens have come since it began."""
        self._bystander.window()
        _, window = self._during(request)
        deadline = time.monotonic() + 60
        while len(window.gaps) < 30 and time.monotonic() < deadline:
            time.sleep(0.05)
            window.add(self._bystander.window())
        return window

    def _during(self, request: Request) -> tuple[Answer, Window]:
        answer = ask(self._port, self._built(request), self.bounds.hang)
        return answer, self._bystander.window()

    def _built(self, request: Request) -> bytes:
        target = request.target
        if TAPE in target or RESPONSE in target:
            self._make_ids()
            for name, value in self._ids.items():
                target = target.replace(name, value)
        more = () if any(name == "Authorization" for name, _ in request.headers) else self._headers
        return Request(request.method, target, request.headers, request.body).written(more)

    def _make_ids(self) -> None:
        """A tape and a response that are there: they are kept for minutes."""
        if time.monotonic() - self._made < 60:
            return
        transport = httpx.HTTPTransport(local_address=ATTACKER)
        url = f"http://127.0.0.1:{self._port}"
        headers = dict(self._headers)
        with httpx.Client(base_url=url, headers=headers, timeout=300, transport=transport) as http:
            body: dict[str, Any] = {"prompt": "a", "max_length": 2}
            self._ids[TAPE] = http.post("/v1/tapes", json=body).json()["tape"]
            body = {"input": "a", "max_output_tokens": 2}
            self._ids[RESPONSE] = http.post("/v1/responses", json=body).json()["id"]
        self._made = time.monotonic()

    def _note(self, attempt: Attempt, health: float, ratio: float) -> None:
        if health > self.report.slowest_health:
            self.report.slowest_health, self.report.slowest_name = health, attempt.name
        if ratio > self.report.worst_ratio:
            self.report.worst_ratio, self.report.worst_name = ratio, attempt.name

    # ---- answers

    def _wrong(self, answer: Answer) -> Iterator[str]:
        if not answer.whole:
            yield f"no whole answer in {answer.seconds:.0f} s (status {answer.status})"
        elif answer.status in TAKEN:
            yield from _unfinished(answer)
        elif answer.status == 503:
            if b"retry-after" not in answer.head.lower():
                yield "503 without Retry-After"
        elif answer.status not in REFUSED:
            yield f"status {answer.status}: {answer.body[:200]!r}"
        elif answer.body and answer.status != 405:
            yield from _unnamed(answer)


def _unfinished(answer: Answer) -> Iterator[str]:
    if b"text/event-stream" in answer.head and b"data:" in answer.body:
        ends = (b"event: done", b"[DONE]", b"event: end", b"event: response.")
        if not any(end in answer.body[-20_000:] for end in ends):
            yield f"a stream without its end: {answer.body[-100:]!r}"


def _unnamed(answer: Answer) -> Iterator[str]:
    """A refusal has the shape of all errors, and its message is short."""
    read = answer.json()
    error = read.get("error") if isinstance(read, dict) else None
    if not isinstance(error, dict) or not error.get("message"):
        yield f"status {answer.status} without a message: {answer.body[:100]!r}"
    elif len(error["message"]) > 1000:
        yield f"a message of {len(error['message'])} characters"


def tokens_of(answer: Answer) -> int:
    """Of its prompt; 0 where it does not say."""
    read = answer.json()
    usage = read.get("usage") if isinstance(read, dict) else None
    if not isinstance(usage, dict):
        return 0
    return int(usage.get("prompt_tokens") or usage.get("input_tokens") or 0)


def percentile(values: list[float], p: float) -> float:
    return float(np.percentile(values, p)) if values else 0.0
