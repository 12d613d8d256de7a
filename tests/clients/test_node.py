"""Clients in JavaScript: npm's openai and Vercel's ai, each in one run of tests/clients/node/."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.server import RunningServer
from tests.speed import patience

NODE = shutil.which("node")
SCRIPTS = Path(__file__).parent / "node"

pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")


def run(script: str, *servers: RunningServer) -> Any:
    """What the script prints. Where node is there, its packages must be: `make test` sees to it."""
    assert NODE
    assert (SCRIPTS / "node_modules").is_dir(), "run scripts/install-node-clients.sh"
    command = [NODE, str(SCRIPTS / script), *(server.url for server in servers)]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=patience(100), check=False
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.fixture(scope="module")
def openai(server: RunningServer) -> Any:
    return run("openai.mjs", server)


@pytest.fixture(scope="module")
def vercel(server: RunningServer) -> Any:
    return run("vercel.mjs", server)


@pytest.fixture(scope="module")
def history(server: RunningServer, calling: RunningServer) -> Any:
    return run("history.mjs", server, calling)


@pytest.fixture(scope="module")
def conversation(server: RunningServer) -> Any:
    return run("vercel-responses.mjs", server)


@pytest.mark.parametrize(("kind", "count"), [("chat", 1), ("threeChats", 3), ("completions", 2)])
def test_openai_streams_what_it_gets_whole(openai: Any, kind: str, count: int) -> None:
    whole, streamed = openai[kind]["whole"], openai[kind]["streamed"]
    assert streamed["choices"] == whole["choices"]
    assert len({choice["text"] for choice in whole["choices"]}) == count
    assert all(choice["reason"] == "length" for choice in whole["choices"])
    for usage in (whole["usage"], streamed["usage"]):
        assert usage["completion_tokens"] == 12 * count
    assert streamed["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]


def test_openai_counts_the_prompt_of_three_choices_once(openai: Any) -> None:
    one, three = (openai[kind]["whole"]["usage"] for kind in ("chat", "threeChats"))
    assert one["prompt_tokens"] == three["prompt_tokens"]


def test_openai_reads_a_response_again_after_every_event(openai: Any) -> None:
    responses = openai["responses"]
    events = responses["events"]
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    for number, rest in enumerate(responses["resumed"]):
        assert rest == events[number + 1 :]
    deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert len(deltas) == 12
    assert "".join(deltas) == responses["whole"] == responses["background"]


def test_openai_raises_the_right_class(openai: Any) -> None:
    assert openai["failures"] == {
        "range": {
            "kind": "BadRequestError",
            "status": 400,
            "param": "temperature",
            "code": "invalid_value",
        },
        "model": {
            "kind": "NotFoundError",
            "status": 404,
            "param": "model",
            "code": "model_not_found",
        },
        "response": {
            "kind": "NotFoundError",
            "status": 404,
            "param": None,
            "code": "tape_not_found",
        },
        "late": {"kind": "APIError", "param": None, "code": "timeout"},
    }


def test_vercels_streamed_text_is_the_generated_one(vercel: Any) -> None:
    whole, streamed = vercel["whole"], vercel["streamed"]
    assert "sea" in whole["text"]
    assert streamed["text"] == whole["text"] == "".join(vercel["pieces"])
    assert len(vercel["pieces"]) > 1
    for answer in (whole, streamed):
        assert answer["finishReason"] == "length"
        assert answer["usage"]["outputTokens"] == 12
        assert answer["usage"]["inputTokens"] == whole["usage"]["inputTokens"] > 0


def test_vercel_tells_of_a_failure_in_the_middle(vercel: Any) -> None:
    assert len(vercel["errors"]) == 1
    assert "timeout" in vercel["errors"][0]


def test_express_with_compression_hands_on_each_token(server: RunningServer) -> None:
    """It holds back what it compresses; `no-transform` (RFC 9111, 5.2.2.6) keeps it from that."""
    came = run("proxy.mjs", server)
    kept, lost = came["kept"], came["lost"]
    assert kept["encoding"] is None
    assert kept["frames"] > 20
    assert kept["chunks"] >= 0.8 * kept["frames"]
    assert lost["encoding"] is not None
    assert lost["chunks"] <= 0.2 * kept["chunks"], "what would be without it"


@pytest.mark.parametrize("kind", ["plain", "parsed", "called"])
def test_openais_answers_go_back_as_they_are(history: Any, kind: str) -> None:
    """However the SDK gave them: the conversation is the same."""
    ways = history[kind].values()
    assert len({way["prompt"] for way in ways}) == 1
    assert any("parsed" in way["keys"] for way in ways)


def test_openais_runner_of_tools_sends_its_history(history: Any) -> None:
    assert {"assistant", "tool"} <= {*history["runTools"]["roles"]}
    assert history["runTools"]["prompt"] > 0


def test_vercels_responses_have_several_turns(conversation: Any) -> None:
    """It names the answers that were stored, and sends the others: the conversation is the same."""
    assert conversation["stored"] == conversation["unstored"]
    assert [turn["text"] for turn in conversation["stored"]][1] == conversation["streamed"]
    tokens = [turn["tokens"] for turn in conversation["stored"]]
    assert tokens == sorted(set(tokens))
    assert conversation["kinds"][2] == [
        "user",
        "item_reference",
        "user",
        "item_reference",
        "user",
    ]
