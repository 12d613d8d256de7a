"""When matchers are made, for whom and in which order; nobody who needs none waits for one.

A gate stands in front of llguidance's compiler, so that a test knows what is being made and what
waits. It opens by itself after some seconds: what waits for a matcher fails, and does not hang.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from model.engine import Engine
from model.protocol.messages import Generate
from model.protocol.sampling_params import SamplingParams
from model.sampling import grammar_matcher as grammar_matcher
from model.sampling.grammar_matcher import LLMatcher
from model.text.grammar import json_schema, lark
from tests.model.harness import load_engine, run_all
from tests.model.schemas import closed, text
from tests.tiny import tiny_llama

PROMPT = list(b"What is it?")
PERSON = json_schema(closed({"name": text(6, minLength=1), "age": {"type": "integer"}}))
GATE_SECONDS = 20


@dataclass
class Compiler:
    """In place of LLMatcher: notes what it compiles, and does so while its gate is open."""

    compiled: list[str] = field(default_factory=list)
    began: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    gate: threading.Event = field(default_factory=threading.Event)

    def __call__(self, vocabulary: object, grammar: str, **options: Any) -> LLMatcher:
        self.compiled.append(grammar)
        self.began.release()
        self.gate.wait(GATE_SECONDS)
        return LLMatcher(vocabulary, grammar, **options)

    def wait_until_it_compiles(self) -> None:
        assert self.began.acquire(timeout=GATE_SECONDS)


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny(tiny_path: Path) -> Engine:
    return load_engine(tiny_path, kv_cache_bytes=8 << 20)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    compiler = Compiler()
    monkeypatch.setattr(grammar_matcher, "LLMatcher", compiler)
    yield compiler
    compiler.gate.set()


def word(name: str) -> str:
    return lark(f'start: "{name}"')


def guided(engine: Engine, id: str, grammar: str, client: str = "") -> None:
    params = SamplingParams(max_tokens=200, temperature=1.0, seed=1, grammar=grammar)
    engine.submit(Generate(id, PROMPT, params, client=client))


def free(engine: Engine, id: str) -> None:
    params = SamplingParams(max_tokens=300, temperature=0.0, seed=1, ignore_eos=True)
    engine.submit(Generate(id, PROMPT, params))


@pytest.mark.parametrize("leave", [Engine.pause, Engine.cancel], ids=["pause", "cancel"])
def test_streams_go_on_while_others_leave_before_their_grammars_are_made(
    tiny: Engine, compiler: Compiler, leave: Callable[[Engine, str], None]
) -> None:
    free(tiny, "bystander")
    for number in range(40):
        guided(tiny, str(number), word(f"w{number}"), "flood")
    compiler.wait_until_it_compiles()
    for number in range(40):
        leave(tiny, str(number))
        assert [token.id for token in tiny.step().tokens] == ["bystander"]
    assert not compiler.gate.is_set(), "nothing was made meanwhile"
    assert (tiny.gauges.waiting, tiny.gauges.running) == (0, 1)
    assert tiny.gauges.paused == (40 if leave is Engine.pause else 0)
    guided(tiny, "later", word("later"))
    compiler.gate.set()
    _, ends = run_all(tiny)
    assert set(ends) == {"bystander", "later"}
    assert compiler.compiled == [word("w0"), word("later")], "nobody wants the others"


def test_one_paused_before_its_guide_is_made_answers_as_if_it_had_not_been(tiny: Engine) -> None:
    def answer(*events: Callable[[str], None]) -> list[int]:
        guided(tiny, "one", PERSON)
        for event in events:
            event("one")
        tokens, ends = run_all(tiny)
        assert ends["one"].reason == "stop"
        return [token.token_id for token in tokens["one"]]

    undisturbed = answer()
    assert answer(tiny.pause, tiny.unpause) == undisturbed
    assert answer(tiny.pause, tiny.pause, tiny.unpause, tiny.unpause) == undisturbed
    assert tiny.gauges.paused == tiny.gauges.waiting == tiny.gauges.kv_blocks_used == 0


def test_paused_without_a_guide_it_counts_as_paused_and_can_be_cancelled(
    tiny: Engine, compiler: Compiler
) -> None:
    guided(tiny, "one", PERSON)
    assert (tiny.gauges.waiting, tiny.gauges.paused) == (1, 0)
    tiny.pause("one")
    assert (tiny.gauges.waiting, tiny.gauges.paused) == (0, 1)
    assert not tiny.has_work
    tiny.cancel("one")
    assert (tiny.gauges.waiting, tiny.gauges.paused) == (0, 0)
    tiny.unpause("one")
    assert not tiny.has_work


def test_one_that_is_paused_after_its_first_token_is_so_although_it_waits_for_a_guide(
    tiny: Engine,
) -> None:
    params = SamplingParams(max_tokens=200, seed=1, grammar=PERSON)
    tiny.submit(Generate("one", PROMPT, params, pause_after_one=True))
    tokens, ends = run_all(tiny)
    assert (len(tokens["one"]), ends, tiny.gauges.paused) == (1, {}, 1)
    tiny.unpause("one")
    assert run_all(tiny)[1]["one"].reason == "stop"


def test_clients_take_turns_and_each_ones_grammars_are_made_in_order(
    tiny: Engine, compiler: Compiler
) -> None:
    guided(tiny, "first", word("first"), "flood")
    compiler.wait_until_it_compiles()
    for number in range(4):
        guided(tiny, f"flood {number}", word(f"flood {number}"), "flood")
    for client in ("a", "b"):
        for number in range(2):
            guided(tiny, f"{client} {number}", word(f"{client} {number}"), client)
    compiler.gate.set()
    run_all(tiny)
    order = ["first", "flood 0", "a 0", "b 0", "flood 1", "a 1", "b 1", "flood 2", "flood 3"]
    assert compiler.compiled == [word(name) for name in order]


def test_a_grammar_is_compiled_once_for_all_that_follow_it(
    tiny: Engine, compiler: Compiler
) -> None:
    compiler.gate.set()
    for number in range(10):
        guided(tiny, str(number), PERSON, f"client {number % 2}")
    tokens, ends = run_all(tiny)
    answers = {tuple(token.token_id for token in one) for one in tokens.values()}
    assert (len(answers), len(ends)) == (1, 10), "equal seeds, equal answers: they share no place"
    assert compiler.compiled == [PERSON]


def test_only_the_last_grammars_are_kept_by_number_and_by_size(
    tiny: Engine, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*names: str) -> list[str]:
        del compiler.compiled[:]
        for name in names:
            guided(tiny, name, word(name))
            run_all(tiny)
        return compiler.compiled

    compiler.gate.set()
    monkeypatch.setattr(grammar_matcher, "_KEPT", 2)
    assert asked("a", "b", "a", "c", "a", "b") == [word(name) for name in ("a", "b", "c", "b")]
    monkeypatch.setattr(grammar_matcher, "_KEPT_BYTES", len(word("a")) + 1)
    assert asked("d", "d", "e", "d") == [word(name) for name in ("d", "e", "d")]


def test_what_waits_for_a_guide_and_leaves_again_and_again_leaves_nothing_behind(
    tiny: Engine, compiler: Compiler
) -> None:
    assert tiny._grammars
    guided(tiny, "made", word("made"))
    compiler.wait_until_it_compiles()
    for number in range(1000):
        guided(tiny, "one", word(f"w{number}"), f"client {number}")
        tiny.cancel("one")
    assert not tiny._grammars._jobs._lines
    assert tiny._grammars._thread._work_queue.empty()
