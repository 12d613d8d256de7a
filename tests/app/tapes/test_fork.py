"""POST /v1/tapes/{id}/fork: a tape that begins as another one, and goes on differently."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server import RunningServer, parse_frames, read_stream, running
from tickertape import Client, Done, Token

TOKENS = 24
CHAT = [{"role": "user", "content": "Name three colours."}]


async def begin(http: httpx.AsyncClient, **body: Any) -> str:
    """A tape that has ended."""
    answer = await http.post("/v1/tapes", json={"max_length": TOKENS} | body)
    assert answer.status_code == 201, answer.text
    tape: str = answer.json()["tape"]
    await http.get(f"/v1/tapes/{tape}")
    return tape


async def entries(http: httpx.AsyncClient, tape: str, **wanted: Any) -> list[tuple[int, int]]:
    """Choice and token id of every entry, read to the end."""
    response = await http.get(f"/v1/tapes/{tape}")
    found = []
    for frame in parse_frames(response.text):
        if frame.event == "token":
            data = json.loads(frame.data or "")
            found += [(data["index"], token) for token in data["token_ids"]]
    return found


async def fork(http: httpx.AsyncClient, tape: str, after: int, **changes: Any) -> str:
    answer = await http.post(f"/v1/tapes/{tape}/fork", json={"after": after, **changes})
    assert answer.status_code == 201, answer.text
    assert answer.json()["parent"] == tape
    assert answer.json()["forked_at"] == after
    forked: str = answer.json()["tape"]
    assert answer.headers["X-Tape"] == forked
    assert answer.headers["Location"] == f"/v1/tapes/{forked}"
    return forked


async def text_of(http: httpx.AsyncClient, tape: str) -> str:
    snapshot = await http.get(f"/v1/tapes/{tape}", headers={"Accept": "application/json"})
    text: str = snapshot.json()["generated_text"]
    return text


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0},
        {"temperature": 1.0, "seed": 5, "top_k": 50},
        {"temperature": 0, "repetition_penalty": 1.3, "presence_penalty": 0.5},
        {"temperature": 0, "stop": ["zzz", "and the"]},
    ],
)
async def test_a_fork_without_changes_is_the_same_tape(
    http: httpx.AsyncClient, sampling: dict[str, Any]
) -> None:
    tape = await begin(http, prompt="The sea was", **sampling)
    whole, text = await entries(http, tape), await text_of(http, tape)
    for after in range(len(whole)):
        forked = await fork(http, tape, after)
        assert await entries(http, forked) == whole, after
        assert await text_of(http, forked) == text


@pytest.mark.long
async def test_a_fork_after_each_of_sixty_entries(http: httpx.AsyncClient) -> None:
    tape = await begin(http, messages=CHAT, temperature=0, ignore_eos=True, max_length=60)
    whole = await entries(http, tape)
    for after in range(60):
        assert await entries(http, await fork(http, tape, after)) == whole, after
        drawn = await fork(http, tape, after, seed=after, temperature=1.0)
        assert (await entries(http, drawn))[:after] == whole[:after]


async def test_what_comes_after_the_copies_is_drawn_with_the_changes(
    http: httpx.AsyncClient,
) -> None:
    tape = await begin(http, prompt="The sea was", temperature=1.0, seed=1, ignore_eos=True)
    whole = await entries(http, tape)
    for changes in ({"seed": 2}, {"temperature": 0}, {"logit_bias": {str(whole[9][1]): -100}}):
        found = await entries(http, await fork(http, tape, 8, **changes))
        assert found[:8] == whole[:8]
        assert found != whole
    longer = await entries(http, await fork(http, tape, TOKENS, max_length=TOKENS + 8))
    assert longer[:TOKENS] == whole
    assert len(longer) == TOKENS + 8


async def test_the_next_token_can_be_chosen(http: httpx.AsyncClient) -> None:
    tape = await begin(http, prompt="The sea was", temperature=0, ignore_eos=True)
    whole = await entries(http, tape)
    forked = await fork(http, tape, 5, token_id=260, logprobs=2)
    found = await entries(http, forked)
    assert found[:5] == whole[:5]
    assert found[5] == (0, 260)
    assert len(found) == TOKENS
    again = await fork(http, forked, 8)
    assert await entries(http, again) == found, "the chosen token is among the copies"
    earlier = await fork(http, forked, 3)
    assert (await entries(http, earlier))[5] == (0, 260), "it is still to come"


async def test_log_probabilities_are_copied(http: httpx.AsyncClient) -> None:
    tape = await begin(http, prompt="The sea was", temperature=0, logprobs=2)
    forked = await fork(http, tape, 12)

    async def logprobs(tape: str) -> list[Any]:
        response = await http.get(f"/v1/tapes/{tape}")
        frames = [f for f in parse_frames(response.text) if f.event == "token"]
        datas = [json.loads(frame.data or "") for frame in frames]
        return [one for data in datas for one in data["logprobs"]]

    assert await logprobs(forked) == await logprobs(tape)


async def test_turns_can_follow_the_copies(http: httpx.AsyncClient) -> None:
    """The same answer as to the whole conversation, where the model ended its turn itself."""
    tape = await begin(http, messages=CHAT, temperature=0, max_length=200)
    first = await entries(http, tape)
    text = await text_of(http, tape)
    more = [{"role": "user", "content": "And three animals?"}]
    forked = await fork(http, tape, len(first), messages=more, max_length=len(first) + 20)
    found = await entries(http, forked)
    assert found[: len(first)] == first
    asked = [*CHAT, {"role": "assistant", "content": text}, *more]
    whole = await begin(http, messages=asked, temperature=0, max_length=20)
    assert found[len(first) :] == await entries(http, whole)
    # A fork of it, in the second turn and in the first.
    assert await entries(http, await fork(http, forked, len(first) + 3)) == found
    back = await entries(http, await fork(http, forked, 3, max_length=200))
    assert back == first


async def test_a_seed_that_is_null_is_a_fresh_one(http: httpx.AsyncClient) -> None:
    tape = await begin(http, prompt="The sea was", temperature=1.5, seed=1, ignore_eos=True)
    whole = await entries(http, tape)
    drawn = [await entries(http, await fork(http, tape, 2, seed=None)) for _ in range(2)]
    assert [found[:2] for found in drawn] == [whole[:2]] * 2
    assert whole != drawn[0] != drawn[1]


async def test_turns_may_follow_where_the_length_was_left_to_the_context(
    http: httpx.AsyncClient,
) -> None:
    """As chat completions do: with more of a prompt, less fits."""
    asked = {"messages": CHAT, "temperature": 0, "stream": True}
    response = await http.post("/v1/chat/completions", json=asked)
    tape = response.headers["X-Tape"]
    first = await entries(http, tape)
    more = [{"role": "user", "content": "And three animals?"}]
    forked = await fork(http, tape, len(first), messages=more, seed=1)
    await http.delete(f"/v1/tapes/{forked}")


async def test_each_choice_of_a_tape_goes_on(http: httpx.AsyncClient) -> None:
    body = {"prompt": ["The sea", "A bird"], "n": 2, "max_tokens": 8, "seed": 3, "stream": True}
    response = await http.post("/v1/completions", json=body)
    tape = response.headers["X-Tape"]
    whole = await entries(http, tape)
    assert {index for index, _ in whole} == {0, 1, 2, 3}
    for after in (0, 7, 20, 30):
        found = await entries(http, await fork(http, tape, after))
        assert found[:after] == whole[:after]
        for choice in range(4):
            assert [t for i, t in found if i == choice] == [t for i, t in whole if i == choice]
    refused = await http.post(f"/v1/tapes/{tape}/fork", json={"after": 3, "token_id": 5})
    assert refused.status_code == 422
    assert refused.json()["error"]["param"] == "token_id"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_a_tape_of_any_surface_can_be_forked(http: httpx.AsyncClient, path: str) -> None:
    asked = {"messages": CHAT} if "chat" in path else {"input": CHAT}
    response = await http.post(path, json=asked | {"temperature": 0, "stream": True})
    tape = response.headers["X-Tape"]
    whole = await entries(http, tape)
    assert await entries(http, await fork(http, tape, 3)) == whole


async def test_a_running_tape_can_be_forked(http: httpx.AsyncClient) -> None:
    body = {"prompt": "The sea was", "temperature": 0, "max_length": 200, "ignore_eos": True}
    async with http.stream("POST", "/generate", json=body | {"stream": True}) as response:
        tape = response.headers["X-Tape"]
        async for frame in read_stream(response):
            if frame.event == "token":
                break
        forked = await fork(http, tape, 1)
        found = await entries(http, forked)
    assert await entries(http, tape) == found


async def test_it_begins_with_its_copies_and_says_whose_they_are(http: httpx.AsyncClient) -> None:
    tape = await begin(http, prompt="The sea was", temperature=0, ignore_eos=True)
    forked = await fork(http, tape, 10, on_disconnect="continue")
    await http.get(f"/v1/tapes/{forked}")
    accept = {"Accept": "application/json"}
    snapshot = (await http.get(f"/v1/tapes/{forked}", headers=accept)).json()
    assert (snapshot["parent"], snapshot["forked_at"]) == (tape, 10)
    assert snapshot["usage"]["completion_tokens"] == TOKENS
    plain = (await http.get(f"/v1/tapes/{tape}", headers=accept)).json()
    assert "parent" not in plain


async def test_what_cannot_be_forked_is_refused_with_the_reason(http: httpx.AsyncClient) -> None:
    tape = await begin(http, prompt="The sea was", temperature=0, ignore_eos=True)
    cases: list[tuple[dict[str, Any], int, str, str]] = [
        ({"after": TOKENS + 1}, 422, "after", "fork after one from 0 to 24"),
        ({"after": TOKENS}, 422, "after", "give a max_length above 24"),
        ({"after": 10, "max_length": 10}, 422, "max_length", "above 10"),
        ({"after": -1}, 422, "after", "from 0"),
        ({}, 422, "after", "required"),
        ({"after": 1, "stop": ["x"]}, 422, "stop", "not a field"),
        ({"after": 1, "token_id": 10**6}, 422, "token_id", "token ids go from 0"),
        ({"after": 1, "logit_bias": {"49152": 1}}, 422, "logit_bias", "from 0 to 49151"),
        ({"after": 1, "max_length": 10_000}, 422, "max_length", "8192"),
        ({"after": 1, "messages": []}, 422, "messages", "at least 1"),
    ]
    for body, status, param, words in cases:
        answer = await http.post(f"/v1/tapes/{tape}/fork", json=body)
        assert answer.status_code == status, (body, answer.text)
        error = answer.json()["error"]
        assert error["param"] == param, (body, error)
        assert words in error["message"], (body, error)
    unknown = await http.post(f"/v1/tapes/{'A' * 22}/fork", json={"after": 0})
    assert unknown.status_code == 404


async def test_its_first_token_takes_two_steps_at_most(http: httpx.AsyncClient) -> None:
    """Copied positions come from the prefix cache, but for those of the last block."""

    async def steps() -> int:
        text = (await http.get("/metrics")).text
        (count,) = re.findall(r"iteration_tokens_total_count\S* ([0-9.]+)", text)
        return int(float(count))

    body = {"prompt": "word " * 1500, "temperature": 0, "ignore_eos": True, "max_length": 60}
    tape = await begin(http, **body)
    for after in (1, 17, 40, 59):
        before = await steps()
        await entries(http, await fork(http, tape, after, max_length=after + 1))
        taken = await steps() - before
        print(f"after {after} entries: the first token in {taken} steps")
        assert 1 <= taken <= 2


async def test_the_same_key_is_the_same_fork(http: httpx.AsyncClient) -> None:
    tape = await begin(http, prompt="The sea was", temperature=0)
    key = {"Idempotency-Key": f"fork of {tape}"}
    ask = f"/v1/tapes/{tape}/fork"
    first, again = [await http.post(ask, json={"after": 3}, headers=key) for _ in range(2)]
    assert first.json() == again.json()
    other = await http.post(ask, json={"after": 4}, headers=key)
    assert other.status_code == 409


async def test_the_client_forks(server: RunningServer) -> None:
    async with Client(server.url) as client:
        events = [event async for event in client.generate("The sea", temperature=0, max_length=9)]
        done = events[-1]
        assert isinstance(done, Done)
        forked = await client.fork(done.tape, 4, temperature=0, token_id=260)
        ids: list[int] = []
        async for event in client.attach(forked):
            if isinstance(event, Token):
                ids += event.token_ids
    assert ids[4] == 260
    assert len(ids) == 9


async def test_gone_entries_and_foreign_tapes(tmp_path: Path, tiny_model: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\nother\n")
    flags = ("--model", str(tiny_model), "--api-key-file", str(keys))
    with running(tmp_path / "log", *flags, "--max-tape-memory", "16KiB") as server:
        one, other = ({"Authorization": f"Bearer {key}"} for key in ("one", "other"))
        async with httpx.AsyncClient(base_url=server.url, headers=one, timeout=60) as http:
            tape = await begin(http, prompt="a", max_length=100, ignore_eos=True)
            gone = await http.post(f"/v1/tapes/{tape}/fork", json={"after": 90})
            assert gone.status_code == 409
            assert gone.json()["error"]["code"] == "entries_gone"
            assert len(await entries(http, await fork(http, tape, 0))) > 0
            foreign = await http.post(f"/v1/tapes/{tape}/fork", json={"after": 0}, headers=other)
            assert foreign.status_code == 404
