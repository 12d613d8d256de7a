"""The engine with the default model: how sequences end, what they show, pause and cancel.

Most requests are served together, once, because steps of a real model are what takes time here.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from model.engine import Engine
from model.protocol.messages import Finished, Generate, Prefilling, Queued, Token
from model.protocol.sampling_params import SamplingParams
from model.text.tokenizer import Tokenizer
from tests.model.harness import generate, greedy, load_engine, run_all
from tests.tiny import tiny_llama

PROMPT = "The capital of France is"
LENGTH = 10


@dataclass(frozen=True)
class Answer:
    tokens: list[Token]
    end: Finished

    @property
    def ids(self) -> list[int]:
        return [token.token_id for token in self.tokens]

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)


def serve(
    engine: Engine, prompt: list[int], wishes: dict[str, SamplingParams]
) -> dict[str, Answer]:
    for id, params in wishes.items():
        engine.submit(Generate(id, prompt, params))
    tokens, ends = run_all(engine)
    assert engine.gauges.kv_blocks_used == 0
    return {id: Answer(tokens.get(id, []), ends[id]) for id in wishes}


def seeded(seed: int, **fields: object) -> SamplingParams:
    return greedy(LENGTH, **({"temperature": 1.0, "seed": seed} | fields))


@pytest.fixture(scope="module")
def prompt(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(PROMPT)


@pytest.fixture(scope="module")
def eos(tokenizer: Tokenizer) -> int:
    assert tokenizer.eos_token
    id = tokenizer.token_to_id(tokenizer.eos_token)
    assert id is not None
    return id


@pytest.fixture(scope="module")
def plain(engine: Engine, prompt: list[int]) -> Answer:
    """What the model says when nothing stops it."""
    return serve(engine, prompt, {"plain": greedy(LENGTH)})["plain"]


@pytest.fixture(scope="module")
def wishes(plain: Answer, eos: int, tokenizer: Tokenizer) -> dict[str, SamplingParams]:
    middle = tokenizer.decode(plain.ids[2:5])
    forced = {eos: 100.0}
    return {
        "plain": greedy(LENGTH),
        "one": greedy(1),
        "eos": greedy(LENGTH, ignore_eos=False, logit_bias=forced),
        "eos later": greedy(LENGTH, ignore_eos=False, logit_bias=forced, min_tokens=3),
        "eos ignored": greedy(3, logit_bias=forced),
        "stop": greedy(LENGTH, stop=("never", middle[1:-1])),
        "stop too early": greedy(LENGTH, stop=(middle[1:-1],), min_tokens=LENGTH),
        "stop held back": greedy(LENGTH, stop=(plain.text[-4:] + "!",)),
        "stop token": greedy(LENGTH, stop_token_ids=(plain.ids[4],)),
        "stop token, held back": greedy(
            LENGTH,
            stop=(tokenizer.decode(plain.ids[4:5]) + "!",),
            stop_token_ids=(plain.ids[4],),
        ),
        "stop token later": greedy(LENGTH, stop_token_ids=(plain.ids[0],), min_tokens=2),
        "logprobs": greedy(3, logprobs=4, logit_bias={plain.ids[0]: -100.0}),
        "logprobs 0": greedy(1, logprobs=0),
        "seed 1": seeded(1),
        "seed 2": seeded(2),
        "cut": seeded(1, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.2),
    }


@pytest.fixture(scope="module")
def answers(
    engine: Engine, prompt: list[int], wishes: dict[str, SamplingParams]
) -> dict[str, Answer]:
    """Many wishes, served together."""
    return serve(engine, prompt, wishes)


def test_max_tokens_ends_with_length(answers: dict[str, Answer]) -> None:
    assert answers["plain"].end == Finished("plain", "length")
    assert len(answers["plain"].tokens) == LENGTH
    assert answers["one"].end.reason == "length"
    assert answers["one"].ids == answers["plain"].ids[:1]


def test_eos_ends_with_stop_and_is_an_entry_without_text(
    answers: dict[str, Answer], eos: int
) -> None:
    assert answers["eos"].end.reason == "stop"
    assert [(token.token_id, token.text) for token in answers["eos"].tokens] == [(eos, "")]


def test_eos_comes_only_after_min_tokens(answers: dict[str, Answer], eos: int) -> None:
    later = answers["eos later"]
    assert later.end.reason == "stop"
    assert [id == eos for id in later.ids] == [False, False, False, True]
    assert later.tokens[-1].text == ""


def test_an_ignored_eos_ends_nothing(answers: dict[str, Answer], eos: int) -> None:
    assert answers["eos ignored"].ids == [eos] * 3
    assert answers["eos ignored"].end.reason == "length"


def test_the_text_ends_before_a_stop_string(
    answers: dict[str, Answer], plain: Answer, tokenizer: Tokenizer
) -> None:
    stop = tokenizer.decode(plain.ids[2:5])[1:-1]
    assert answers["stop"].end.reason == "stop"
    assert answers["stop"].text == plain.text[: plain.text.index(stop)]
    assert answers["stop"].ids == plain.ids[: len(answers["stop"].ids)]
    assert len(answers["stop"].ids) < LENGTH


def test_a_stop_string_before_min_tokens_is_text(answers: dict[str, Answer], plain: Answer) -> None:
    assert answers["stop too early"].text.startswith(plain.text[:-1])
    assert len(answers["stop too early"].ids) == LENGTH


def test_what_was_held_back_comes_with_the_last_token(
    answers: dict[str, Answer], plain: Answer
) -> None:
    held = answers["stop held back"]
    assert (held.text, held.end.reason) == (plain.text, "length")
    assert held.tokens[-1].text.endswith(plain.text[-4:])


def test_a_stop_token_ends_with_stop_and_is_an_entry(
    answers: dict[str, Answer], plain: Answer
) -> None:
    end = plain.ids.index(plain.ids[4]) + 1
    assert answers["stop token"].ids == plain.ids[:end]
    assert answers["stop token"].end.reason == "stop"


def test_what_was_held_back_comes_with_a_stop_token_too(
    answers: dict[str, Answer], tokenizer: Tokenizer
) -> None:
    held = answers["stop token, held back"]
    assert held.ids == answers["stop token"].ids
    assert held.text == tokenizer.decode(held.ids)
    assert held.end.reason == "stop"


def test_a_stop_token_is_not_chosen_before_min_tokens(
    answers: dict[str, Answer], plain: Answer
) -> None:
    assert plain.ids[0] not in answers["stop token later"].ids[:2]
    assert len(answers["stop token later"].ids) >= 2


def test_logprobs_name_the_chosen_token_and_the_likeliest(
    answers: dict[str, Answer], plain: Answer, tokenizer: Tokenizer
) -> None:
    for token in answers["logprobs"].tokens:
        assert token.logprob
        assert token.logprob.token_id == token.token_id
        assert token.logprob.token == tokenizer.decode([token.token_id], skip_special=False)
        values = [one.logprob for one in token.logprob.top]
        assert len(values) == 4
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-5
        assert all(one.token == tokenizer.decode([one.token_id]) for one in token.logprob.top)
    first = answers["logprobs"].tokens[0].logprob
    assert first
    assert first.top[0].token_id == plain.ids[0], "before the bias that forbids it"
    assert first.token_id != plain.ids[0]
    assert first.logprob < first.top[0].logprob


def test_logprobs_0_gives_the_chosen_token_alone(answers: dict[str, Answer]) -> None:
    (token,) = answers["logprobs 0"].tokens
    assert token.logprob
    assert token.logprob.top == []
    assert token.logprob.logprob < 0


def test_no_logprobs_unless_asked_for(answers: dict[str, Answer]) -> None:
    assert all(token.logprob is None for token in answers["plain"].tokens)


@pytest.mark.parametrize("id", ["plain", "eos", "eos later", "stop token", "seed 1", "seed 2"])
def test_the_texts_of_the_tokens_are_the_text_of_the_ids(
    id: str, answers: dict[str, Answer], tokenizer: Tokenizer
) -> None:
    assert answers[id].text == tokenizer.decode(answers[id].ids)


def test_seeded_sampling_gives_the_same_alone_and_in_a_batch(
    engine: Engine, prompt: list[int], answers: dict[str, Answer]
) -> None:
    assert generate(engine, [prompt], seeded(1)) == [answers["seed 1"].ids]


def test_another_seed_gives_other_tokens(answers: dict[str, Answer]) -> None:
    assert answers["seed 1"].ids != answers["seed 2"].ids


def test_the_others_change_nothing(answers: dict[str, Answer], plain: Answer) -> None:
    assert answers["plain"].ids == plain.ids


def test_a_request_too_big_for_the_pool_ends_with_an_error_that_names_both_counts(
    engine: Engine, prompt: list[int]
) -> None:
    engine.submit(Generate("big", prompt, greedy(10**6)))
    assert engine.has_work, "the error is still to be told"
    step = engine.step()
    total = (1 << 30) // (2 * 30 * 3 * 64 * 4 * 16)  # the fixture's cache in blocks of 16 tokens
    needed = math.ceil((10**6 + len(prompt)) / 16)
    message = f"needs {needed} KV blocks, this engine has {total}"
    assert step.finished == [Finished("big", "error", message)]
    assert not engine.has_work


@pytest.mark.parametrize("params", [greedy(LENGTH), seeded(1)], ids=["greedy", "seeded"])
def test_pause_stops_within_one_step_and_resume_gives_the_identical_continuation(
    engine: Engine, prompt: list[int], answers: dict[str, Answer], params: SamplingParams
) -> None:
    engine.submit(Generate("one", prompt, params))
    ids = [token.token_id for _ in range(4) for token in engine.step().tokens]
    used = engine.gauges.kv_blocks_used
    engine.pause("one")
    assert not engine.has_work
    paused = engine.step()
    assert (paused.tokens, paused.gauges.paused) == ([], 1)
    assert paused.gauges.kv_blocks_used == used > 0
    engine.unpause("one")
    tokens, ends = run_all(engine)
    ids += [token.token_id for token in tokens["one"]]
    assert ids == answers["plain" if params.greedy else "seed 1"].ids
    assert ends["one"].reason == "length"


@pytest.mark.parametrize("state", ["waiting", "running", "paused"])
def test_cancel_frees_the_blocks_at_once_in_every_state(
    engine: Engine, prompt: list[int], state: str
) -> None:
    engine.submit(Generate("one", prompt, greedy(LENGTH)))
    if state != "waiting":
        engine.step()
        assert engine.gauges.kv_blocks_used > 0
    if state == "paused":
        engine.pause("one")
    engine.cancel("one")
    gauges = engine.gauges
    assert (gauges.running, gauges.waiting, gauges.paused, gauges.kv_blocks_used) == (0, 0, 0, 0)
    assert not engine.has_work
    assert engine.step().tokens == []


def test_another_engine_goes_on_from_any_token_as_the_first_would_have(
    engine: Engine,
    prompt: list[int],
    wishes: dict[str, SamplingParams],
    answers: dict[str, Answer],
) -> None:
    """Tokens, texts, log-probabilities and ends, with stop strings held back and penalties."""
    cuts = {
        f"{name} after {cut}": (name, cut)
        for name, answer in answers.items()
        for cut in range(len(answer.ids))
    }
    for id, (name, cut) in cuts.items():
        done = answers[name].ids[:cut]
        engine.submit(Generate(id, prompt, wishes[name], output_ids=done))
    tokens, ends = run_all(engine)
    for id, (name, cut) in cuts.items():
        rest = [(token.token_id, token.text) for token in tokens[id]]
        assert rest == [(token.token_id, token.text) for token in answers[name].tokens[cut:]], id
        assert ends[id].reason == answers[name].end.reason
    for cut in range(3):
        (told, *_), first = tokens[f"logprobs after {cut}"], answers["logprobs"].tokens[cut]
        assert told.logprob
        assert first.logprob
        assert told.logprob.logprob == pytest.approx(first.logprob.logprob, abs=1e-4)


def test_paused_after_one_token_it_goes_on_when_told(
    engine: Engine, prompt: list[int], plain: Answer
) -> None:
    engine.submit(Generate("one", prompt, greedy(LENGTH), pause_after_one=True))
    tokens, _ = run_all(engine)
    assert [token.token_id for token in tokens["one"]] == plain.ids[:1]
    assert engine.gauges.paused == 1
    engine.unpause("one")
    tokens, ends = run_all(engine)
    assert [token.token_id for token in tokens["one"]] == plain.ids[1:]
    assert ends["one"].reason == "length"


def test_paused_before_that_token_it_is_not_paused_again(
    engine: Engine, prompt: list[int], plain: Answer
) -> None:
    engine.submit(Generate("one", prompt, greedy(LENGTH), pause_after_one=True))
    engine.pause("one")
    engine.unpause("one")
    tokens, _ = run_all(engine)
    assert [token.token_id for token in tokens["one"]] == plain.ids


def test_who_waits_and_who_reads_a_long_prompt_is_told_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.engine._PROGRESS_INTERVAL", 0.0)
    engine = load_engine(
        tiny_llama(tmp_path), max_num_seqs=1, max_step_tokens=16, kv_cache_bytes=1 << 20
    )
    for id in ("first", "second", "third"):
        engine.submit(Generate(id, [7] * 40, greedy(2)))
    waiting = [Queued("second", 1), Queued("third", 2)]
    assert engine.step().progress == [*waiting, Prefilling("first", 16, 40)]
    assert engine.step().progress == [*waiting, Prefilling("first", 32, 40)]
    assert engine.step().progress == waiting, "the last chunk brings a token"
    while engine.gauges.waiting == 2:
        engine.step()
    assert engine.step().progress[0] == Queued("third", 1)
    run_all(engine)
