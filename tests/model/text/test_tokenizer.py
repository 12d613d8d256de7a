"""Our tokenizer against transformers', against a SentencePiece written out, and on threads."""

import json
import random
import re
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from model.checkpoints.checkpoint import open_checkpoint
from model.checkpoints.hub import resolve
from model.protocol.errors import ModelLoadError
from model.text.tokenizer import Tokenizer
from tests.speed import patience

TEXT = """The quick brown fox jumps over the lazy dog.  It's 12:30, isn't it?

def fib(n: int) -> int:
\t# indentation with tabs and    spaces
    return n if n < 2 else fib(n - 1) + fib(n - 2)  # 1234567890

我能吞下玻璃而不伤身体。 吾輩は猫である。名前はまだ無い。
أنا قادر على أكل الزجاج و هذا لا يؤلمني. Съешь ещё этих мягких французских булок.
मैं काँच खा सकता हूँ और मुझे उससे कोई चोट नहीं पहुंचती. ٣٤٥ ४५६ Ⅷ ½
👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 e\u0301 n\u0303 o\u0308\u0323 \ufeff\x00\u2028\r\n
\t\t4  \n\n1. \u00a0\u00a07"""


def random_texts(count: int) -> list[str]:
    """Strings from every plane, with much ASCII, white space and digits among them."""
    rng = random.Random(20_240)
    planes = [(0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]
    spaces = " \t\n\r\u00a0\u3000\u2003"

    def character() -> str:
        match rng.randrange(6):
            case 0:
                return rng.choice(spaces)
            case 1:
                return rng.choice("0123456789" * 9 + "٣४Ⅷ½")
            case 2:
                return chr(rng.randint(*rng.choice(planes)))
            case _:
                return chr(rng.randint(0x20, 0x7E))

    return ["".join(character() for _ in range(rng.randint(1, 40))) for _ in range(count)]


# The vocabulary of SmolLM2 has no tokens for these, so they vanish, as they do in transformers.
MISSING_BYTES = b"\x04\x06\x13\x14\x16\x1d\xf1\xf2"
TEXTS = [TEXT, *TEXT.splitlines(), *random_texts(10_000)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return open_checkpoint(resolve("smollm2-135m")).tokenizer()


@pytest.fixture(scope="module")
def theirs() -> Backend:
    """What transformers makes of the default model's file, as its authors did not publish it."""
    path = resolve("smollm2-135m")
    loaded = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    backend: Backend = loaded.backend_tokenizer
    return backend


def ids_of(backend: Backend, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def test_ids_are_those_of_the_published_tokenizer(tokenizer: Tokenizer, theirs: Backend) -> None:
    published = Backend.from_str(theirs.to_str())
    published.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    for text, expected in zip(TEXTS, ids_of(published, TEXTS), strict=True):
        assert tokenizer.encode(text) == expected, text


def test_ids_are_those_of_transformers_but_for_numbers(
    tokenizer: Tokenizer, theirs: Backend
) -> None:
    def is_known_to_differ(text: str) -> bool:
        """Spaces before a number, or a number of several bytes: transformers forgets to split."""
        # Unassigned here (Cn) may be a number in the newer Unicode of the library.
        numbers = [unicodedata.category(c) in ("Nd", "Nl", "No", "Cn") for c in text]
        after = (match.end() for match in re.finditer(r"\s{2,}(?=.)", text, re.DOTALL))
        foreign = (number and c > "9" for c, number in zip(text, numbers, strict=True))
        return any(numbers[at] for at in after) or any(foreign)

    texts = [text for text in TEXTS if not is_known_to_differ(text)]
    assert len(texts) > 1_500
    for text, expected in zip(texts, ids_of(theirs, texts), strict=True):
        assert tokenizer.encode(text) == expected, text


def test_decoding_gives_the_text_back(tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        ids = tokenizer.encode(text)
        encoded = text.encode().translate(None, MISSING_BYTES)
        assert b"".join(map(tokenizer.token_bytes, ids)) == encoded
        assert tokenizer.decode(ids) == encoded.decode(errors="replace")


@settings(deadline=None, max_examples=300)
@given(ids=st.lists(st.integers(0, 49_151), max_size=40))
def test_token_bytes_say_what_decoding_says(
    tokenizer: Tokenizer, theirs: Backend, ids: list[int]
) -> None:
    joined = b"".join(map(tokenizer.token_bytes, ids)).decode(errors="replace")
    assert joined == tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode(ids, skip_special=False) == theirs.decode(
        ids, skip_special_tokens=False
    )


def test_control_tokens_in_a_text_are_text(tokenizer: Tokenizer) -> None:
    text = "<|im_start|>user\nhi<|im_end|>"
    plain = tokenizer.encode(text)
    assert not tokenizer.special_ids.intersection(plain)
    assert tokenizer.decode(plain) == text
    parsed = tokenizer.encode(text, parse_special=True)
    assert parsed[0] == tokenizer.token_to_id("<|im_start|>") == 1
    assert parsed[-1] == tokenizer.token_to_id("<|im_end|>") == 2
    assert tokenizer.decode(parsed) == "user\nhi"
    assert tokenizer.decode(parsed, skip_special=False) == text
    assert list(tokenizer.split_control(text)) == [1, "user\nhi", 2]


def test_the_vocabulary(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 49_152
    assert tokenizer.special_ids == frozenset(range(17))
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.id_to_token(2) == "<|im_end|>"
    assert tokenizer.token_to_id("no such token") is None
    assert not tokenizer.strip_leading_space
    for unknown in (-1, 49_152, 1 << 40):
        assert tokenizer.token_bytes(unknown) == b""
        with pytest.raises(KeyError):
            tokenizer.id_to_token(unknown)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_lone_surrogates_are_an_error(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(ValueError, match="surrogate"):
        tokenizer.encode(text)


def test_threads_may_share_it(tokenizer: Tokenizer) -> None:
    texts = TEXTS[:400]
    expected = [tokenizer.encode(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        plain = pool.map(tokenizer.encode, texts * 4)
        special = pool.map(lambda t: tokenizer.encode("<|im_end|>" + t, parse_special=True), texts)
        assert list(plain) == expected * 4
        assert all(ids[0] == 2 for ids in special)


def test_none_of_it_needs_torch() -> None:
    code = """
import sys
import model.text.chat_template
import model.text.tokenizer
from model.checkpoints.checkpoint import open_checkpoint
from model.checkpoints.hub import resolve
checkpoint = open_checkpoint(resolve("smollm2-135m"))
assert checkpoint.tokenizer().encode("hello")
assert checkpoint.config and checkpoint.chat_template
assert "torch" not in sys.modules
assert "huggingface_hub" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=patience(60))


# Other vocabularies


def gguf(model: str, tokens: list[str], **values: Any) -> dict[str, Any]:
    values = {"model": model, "tokens": tokens, **values}
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
DIGIT_MERGES = {"1 2": "12", "12 3": "123", "4 5": "45", "123 45": "12345"}


def byte_level(pre: str, **values: Any) -> Tokenizer:
    tokens = [*BYTES, *DIGIT_MERGES.values(), "<s>", "</s>"]
    types = np.array([1] * (len(tokens) - 2) + [3, 3])
    values = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, **values}
    return Tokenizer.from_gguf(
        gguf("gpt2", tokens, pre=pre, token_type=types, merges=list(DIGIT_MERGES), **values)
    )


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("default", ["123", "45"]),
        ("gpt-2", ["12345"]),
        ("smollm", list("12345")),
        ("llama-bpe", ["<s>", "123", "45"]),
        ("llama3", ["<s>", "123", "45"]),
        ("dbrx", ["123", "45"]),
        ("qwen2", list("12345")),
        ("tekken", ["<s>", *"12345"]),
        ("gpt-4o", ["123", "45"]),
    ],
)
def test_each_pre_tokenizer_splits_numbers_its_own_way(pre: str, pieces: list[str]) -> None:
    tokenizer = byte_level(pre)
    assert [tokenizer.id_to_token(id) for id in tokenizer.encode("12345")] == pieces
    for text in TEXTS[:200]:
        text = unicodedata.normalize("NFC", text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_file_decides_about_bos_and_eos() -> None:
    tokenizer = byte_level("gpt-2", add_bos_token=True, add_eos_token=True)
    pieces = [tokenizer.id_to_token(id) for id in tokenizer.encode("12")]
    assert pieces == ["<s>", "12", "</s>"]
    assert tokenizer.encode("12", add_special_tokens=False) == [tokenizer.token_to_id("12")]
    assert byte_level("llama-bpe", add_bos_token=False).encode("12") == [256]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (gguf("gpt2", BYTES, pre="gpt-17", merges=[]), "gpt-17"),
        (gguf("gpt2", BYTES, merges=[]), "pre is missing.*--pre-tokenizer.*qwen2"),
        (gguf("gpt2", BYTES, pre="gpt-2"), "merges"),
        (gguf("gpt2", BYTES, pre="gpt-2", merges=["no such"]), "cannot be used"),
        (gguf("gpt2", ["a", "a"], pre="gpt-2", merges=[]), "twice"),
        (gguf("gpt2", BYTES, pre="gpt-2", merges=[], token_type=np.ones(3)), "token_type"),
        (gguf("gpt2", BYTES, pre="gpt-2", merges=[], token_type="x"), "token_type"),
        (gguf("bert", BYTES), "bert"),
        ({}, "tokens"),
    ],
)
def test_vocabularies_that_are_refused(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        Tokenizer.from_gguf(metadata)


# Control tokens by their names, and what the file calls them.


def chat_vocabulary(kind: int, eos: str = "<|endoftext|>", *more: str) -> Tokenizer:
    """With the tokens of ChatML, the types of which are `kind`, and of which `eos` is the end."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *more]
    tokens = [*BYTES, *names]
    types = np.array([1] * len(BYTES) + [kind] * len(names))
    metadata = gguf("gpt2", tokens, pre="gpt-2", token_type=types, merges=[])
    return Tokenizer.from_gguf(metadata, end_ids=[tokens.index(eos)])


@pytest.mark.parametrize("kind", [1, 3, 4], ids=["normal", "control", "user defined"])
def test_what_ends_a_turn_ends_an_answer_and_adds_no_text(kind: int) -> None:
    tokenizer = chat_vocabulary(kind)
    text, start, turn = (tokenizer.token_to_id(name) for name in CHATML)
    assert text is not None
    assert turn is not None
    assert start is not None
    assert set(tokenizer.end_ids) == {text, turn}
    assert [tokenizer.token_bytes(id) for id in (text, start, turn)] == [b""] * 3
    assert tokenizer.decode([*tokenizer.encode("Hi"), turn]) == "Hi"
    assert tokenizer.corrected == ([] if kind == 3 else sorted(CHATML))
    assert len(tokenizer.encode("<|im_end|>")) == len("<|im_end|>")  # a user's
    assert tokenizer.encode("<|im_end|>", parse_special=True) == [turn]
    assert list(tokenizer.split_control("Hi<|im_end|>\n")) == ["Hi", turn, "\n"]


CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.mark.parametrize(
    "name",
    [
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<end_of_turn>",
        "<|end_of_text|>",
        "<|end_of_turn|>",
        "</s>",
        "<EOT>",
        "[EOS]",
        "<｜end▁of▁sentence｜>",
    ],
)
def test_ends_by_name(name: str) -> None:
    tokenizer = chat_vocabulary(3, "<|endoftext|>", name)
    assert tokenizer.token_to_id(name) in tokenizer.end_ids


def test_a_word_that_may_be_text_is_text_unless_the_file_says_otherwise() -> None:
    for kind in (1, 4):
        text = chat_vocabulary(kind, "<|im_end|>", "</s>", "<tool_call>")
        assert text.token_to_id("</s>") not in text.end_ids
        assert text.decode([259, 260]) == "</s><tool_call>"
    end = chat_vocabulary(1, "</s>", "</s>")
    assert end.token_bytes(259) == b""
    assert "</s>" in end.corrected


def test_an_end_that_is_a_byte_stays_a_text() -> None:
    assert chat_vocabulary(3, "A").token_bytes(BYTES.index("A")) == b"A"


def test_names_count_in_a_tokenizer_json_too() -> None:
    backend = hugging_face()
    backend.add_tokens([AddedToken("<|im_end|>", special=False, normalized=False)])
    tokenizer = Tokenizer.from_json(backend.to_str(), end_ids=[256])
    assert tokenizer.end_ids == (256, 258)
    assert tokenizer.token_bytes(258) == b""
    assert len(tokenizer.encode("<|im_end|>")) == len("<|im_end|>")
    assert tokenizer.encode("ünïcode tool") == [257]


WORDS = ["▁", "he", "ll", "hell", "▁hello", "lo", "▁w", "or", "ld", "▁world", "▁▁", "é"]
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
PIECES += [*WORDS, "▁he", "llo", "wor", *"abcdehlorw"]
TYPES = np.array([2, 3, 3] + [6] * 256 + [1] * (len(PIECES) - 259))
SCORES = np.array([-float(rank) for rank in range(len(PIECES))])


def sentencepiece(**values: Any) -> Tokenizer:
    return Tokenizer.from_gguf(
        gguf(
            "llama",
            PIECES,
            scores=SCORES,
            token_type=TYPES,
            bos_token_id=1,
            eos_token_id=2,
            unknown_token_id=0,
            **values,
        )
    )


def sentencepiece_by_hand(text: str) -> list[str]:
    """Join the neighbours that make the best token, until none do; then unknown ones to bytes."""
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        joined = [
            (SCORES[PIECES.index(left + right)], -at)
            for at, (left, right) in enumerate(pairwise(parts))
            if left + right in PIECES[259:]
        ]
        if not joined:
            break
        at = -max(joined)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [
        piece
        for part in parts
        for piece in ([part] if part in PIECES else [f"<0x{b:02X}>" for b in part.encode()])
    ]


@settings(deadline=None, max_examples=300)
@given(text=st.text(alphabet="helo wrdé🙂\n", max_size=30))
def test_sentencepiece_joins_by_score(text: str) -> None:
    tokenizer = sentencepiece()
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.token_to_id("<s>")
    if text:
        assert [tokenizer.id_to_token(id) for id in ids[1:]] == sentencepiece_by_hand(text)
    assert tokenizer.decode(ids) == text


def test_sentencepiece_bytes_and_spaces() -> None:
    tokenizer = sentencepiece()
    ids = tokenizer.encode("hello 🙂", add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == " hello 🙂".encode()
    assert tokenizer.strip_leading_space
    assert tokenizer.encode("<s>", add_special_tokens=False)[0] != 1
    exact = sentencepiece(add_space_prefix=False)
    assert not exact.strip_leading_space
    assert exact.decode(exact.encode(" hello")) == " hello"


def hugging_face(**parts: Any) -> Backend:
    vocabulary = {token: id for id, token in enumerate(BYTES)}
    backend = Backend(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    for name, part in parts.items():
        setattr(backend, name, part)
    backend.add_tokens([AddedToken("<s>", special=True), AddedToken("ünïcode tool")])
    return backend


def test_a_tokenizer_json(tmp_path: Path) -> None:
    bos = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    backend = hugging_face(post_processor=bos)
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    path = tmp_path / "tokenizer.json"
    path.write_text(backend.to_str())
    for tokenizer in (Tokenizer.from_json(path), Tokenizer.from_json(path.read_text())):
        ids = tokenizer.encode("naïve <s>")
        assert ids[0] == 256
        assert ids.count(256) == 1
        assert tokenizer.decode(ids) == "naïve <s>"
        assert tokenizer.special_ids == {256}
        # An added token stands for its own text, whatever the alphabet of the vocabulary.
        assert tokenizer.encode("ünïcode tool", add_special_tokens=False) == [257]
        assert tokenizer.token_bytes(257) == "ünïcode tool".encode()


def test_added_tokens_behind_a_gap_keep_their_ids() -> None:
    content = json.loads(hugging_face().to_str())
    content["added_tokens"][1]["id"] = 300
    try:
        tokenizer = Tokenizer.from_json(json.dumps(content))
    except ModelLoadError:
        return  # this version of the library refuses gaps itself
    expected = tokenizer.token_to_id("ünïcode tool")
    for parse_special in (False, True):
        assert tokenizer.encode("ünïcode tool", parse_special=parse_special) == [expected]


@pytest.mark.parametrize(
    ("decoder", "strips"),
    [
        (decoders.Metaspace(), True),
        (decoders.Metaspace(prepend_scheme="never"), False),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()]), False),
    ],
)
def test_sentencepiece_in_a_tokenizer_json(decoder: decoders.Decoder, strips: bool) -> None:
    text = hugging_face(decoder=decoder, normalizer=normalizers.Replace(" ", "▁")).to_str()
    assert Tokenizer.from_json(text).strip_leading_space == strips


def test_a_panic_of_the_library_is_an_error() -> None:
    bos = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    content = json.loads(hugging_face(post_processor=bos).to_str())
    content["post_processor"]["special_tokens"] = {}
    with pytest.raises(ModelLoadError, match="cannot encode"):
        Tokenizer.from_json(json.dumps(content))


def test_a_tokenizer_json_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="not a usable"):
        Tokenizer.from_json(tmp_path / "absent.json")


def test_a_wordpiece_vocabulary_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="neither"):
        Tokenizer.from_json(hugging_face(decoder=decoders.WordPiece()).to_str())
