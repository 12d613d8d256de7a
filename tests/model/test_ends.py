"""An answer ends with its turn, whatever the model file calls the token that ends it."""

import json
from pathlib import Path

import pytest

from model.protocol.messages import Generate
from model.protocol.sampling_params import SamplingParams
from tests.model.harness import load_engine, run_all
from tests.tiny import tiny_llama

TURN = 255  # the id of <|im_end|>; the configuration names another end


@pytest.mark.parametrize("special", [True, False], ids=["a control token", "text"])
def test_the_end_of_a_turn_ends_the_answer_and_is_no_text(tmp_path: Path, special: bool) -> None:
    path = with_turns(tiny_llama(tmp_path / "tiny"), special=special)
    engine = load_engine(path, kv_cache_bytes=8 << 20)
    params = SamplingParams(max_tokens=20, seed=0, temperature=0.0, logit_bias={TURN: 100.0})
    engine.submit(Generate("one", [10, 11], params))
    tokens, ends = run_all(engine)
    assert ends["one"].reason == "stop"
    assert [(token.token_id, token.text) for token in tokens["one"]] == [(TURN, "")]


def with_turns(path: Path, *, special: bool) -> Path:
    """Rename the last token of the vocabulary, which is a byte, to <|im_end|>."""
    file = path / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    del vocabulary[next(token for token, id in vocabulary.items() if id == TURN)]
    vocabulary["<|im_end|>"] = TURN
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer["added_tokens"] = [{"id": TURN, "content": "<|im_end|>", "special": special, **flags}]
    file.write_text(json.dumps(tokenizer))
    return path
