"""GGUF files: the real one against transformers, tiny ones of every kind, and broken ones."""

import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from model.checkpoints import safetensors
from model.checkpoints.checkpoint import open_checkpoint
from model.checkpoints.gguf import canonical_name
from model.checkpoints.hub import resolve
from model.protocol.errors import ModelLoadError
from tests.model.harness import transformers_llama

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 32, 64, 2, 4, 2, 8
F32 = GGMLQuantizationType.F32
UNDECODABLE = ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K", "Q1_0")
TOKENS = ["<|end|>", *map(chr, range(0x21, 0x7F)), "Ġ", "Ċ", "ab"]


def shapes(family: str, *, tied: bool = True) -> dict[str, tuple[int, ...]]:
    """Every tensor of a tiny model by its GGUF name, rows first."""
    queries, keys, vocab = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, len(TOKENS)
    tensors: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, HIDDEN)}
    if not tied:
        tensors["output.weight"] = (vocab, HIDDEN)
    for layer in range(LAYERS):
        block: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (HIDDEN,),
            "attn_q.weight": (queries, HIDDEN),
            "attn_k.weight": (keys, HIDDEN),
            "attn_v.weight": (keys, HIDDEN),
            "attn_output.weight": (HIDDEN, queries),
            "ffn_norm.weight": (HIDDEN,),
            "ffn_gate.weight": (INNER, HIDDEN),
            "ffn_up.weight": (INNER, HIDDEN),
            "ffn_down.weight": (HIDDEN, INNER),
        }
        if family == "qwen2":
            block |= {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
        if family == "qwen3":
            block |= {"attn_q_norm.weight": (HEAD_DIM,), "attn_k_norm.weight": (HEAD_DIM,)}
        tensors |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    return tensors | {"output_norm.weight": (HIDDEN,)}


def random_weights(family: str, **options: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in shapes(family, **options).items()
    }


def write(
    path: Path,
    family: str = "llama",
    weights: dict[str, np.ndarray] | None = None,
    kind: GGMLQuantizationType = F32,
    change: Callable[[GGUFWriter], Any] = lambda writer: None,
) -> Path:
    """A complete tiny model; matrices are stored as `kind`, vectors as float32."""
    writer = GGUFWriter(path, family)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] + [1] * (len(TOKENS) - 1))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_chat_template("{{ messages }}")
    change(writer)
    for name, array in (random_weights(family) if weights is None else weights).items():
        stored = kind if array.ndim > 1 else F32
        writer.add_tensor(name, quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def interleaved(array: np.ndarray, heads: int) -> np.ndarray:
    """The row order of llama files, as llama.cpp's convert_hf_to_gguf.py makes it (`permute`)."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def as_stored(name: str, array: np.ndarray) -> np.ndarray:
    if ".attn_q." in name:
        return interleaved(array, HEADS)
    return interleaved(array, KV_HEADS) if ".attn_k." in name else array


def load_all(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(path)
    checkpoint.tokenizer()
    return dict(checkpoint.weights())


def test_the_default_model_is_what_transformers_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    path = resolve("smollm2-135m")
    checkpoint = open_checkpoint(path)
    config = checkpoint.config
    model = transformers_llama(config)
    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
    for key, value in theirs["config"].items():
        if key in (ours := {"rope_theta": config.rope_theta, "rms_norm_eps": config.norm_eps}):
            assert ours[key] == value
    assert theirs["config"]["max_position_embeddings"] == config.max_model_len
    expected = {safetensors.canonical_name(name): t for name, t in theirs["tensors"].items()}
    for name, tensor in checkpoint.weights():
        assert torch.equal(tensor, expected.pop(name)), name
    assert not expected


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "smollm3"])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_arrive_in_our_layout(tmp_path: Path, family: str, tied: bool) -> None:
    weights = random_weights(family, tied=tied)
    stored = weights
    if family in ("llama", "smollm3"):
        stored = {name: as_stored(name, array) for name, array in weights.items()}
    path = write(tmp_path / "tiny.gguf", family, stored)
    config = open_checkpoint(path).config
    assert (config.tie_embeddings, config.qkv_bias) == (tied, family == "qwen2")
    loaded = load_all(path)
    assert loaded.keys() == {canonical_name(name) for name in weights}
    for name, array in weights.items():
        assert torch.equal(loaded[canonical_name(name)], torch.from_numpy(array)), name


def test_llama_biases_are_permuted_too(tmp_path: Path) -> None:
    weights = random_weights("llama")
    bias = np.arange(HEADS * HEAD_DIM, dtype=np.float32)
    weights["blk.0.attn_q.bias"] = interleaved(bias, HEADS)
    loaded = load_all(write(tmp_path / "tiny.gguf", "llama", weights))
    assert torch.equal(loaded["layers.0.attn.q.bias"], torch.from_numpy(bias))


def test_rope_frequencies_are_passed_on(tmp_path: Path) -> None:
    factors = np.array([1, 1, 4, 8], dtype=np.float32)
    weights = {**random_weights("llama"), "rope_freqs.weight": factors}
    loaded = load_all(write(tmp_path / "tiny.gguf", "llama", weights))
    assert loaded["rope.factors"].tolist() == factors.tolist()


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantized_weights(tmp_path: Path, kind: str) -> None:
    type_ = GGMLQuantizationType[kind]
    weights = random_weights("qwen3")
    loaded = load_all(write(tmp_path / "tiny.gguf", "qwen3", weights, type_))
    for name, array in weights.items():
        tensor = loaded[canonical_name(name)]
        assert tensor.dtype == torch.float32
        if array.ndim > 1:
            array = dequantize(quantize(array, type_), type_)
        assert torch.equal(tensor, torch.from_numpy(array)), name


@pytest.mark.parametrize("kind", GGML_QUANT_SIZES)
def test_any_type_is_decoded_or_refused(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    block, size = GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(1).integers(0, 256, (8, 256 // block * size), dtype=np.uint8)
    writer = GGUFWriter(tmp_path / "tiny.gguf", "qwen2")
    writer.add_tensor("token_embd.weight", data, raw_dtype=kind)
    for add in (writer.add_block_count, writer.add_head_count, writer.add_context_length):
        add(2)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(256)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(tmp_path / "tiny.gguf")
    if kind.name in UNDECODABLE:
        with pytest.raises(ModelLoadError, match=rf"type {kind.name}, which cannot be decoded"):
            dict(checkpoint.weights())
    else:
        assert dict(checkpoint.weights())["embed.weight"].shape == (8, 256)


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    header = len(whole) - sum(array.nbytes for array in random_weights("llama").values())
    lengths = [*range(0, header, 17), *range(header, len(whole) - 32, 997), len(whole) - 33]
    for length in lengths:
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelLoadError, match=r"cut\.gguf: ") as raised:
            open_checkpoint(cut)
        assert "\n" not in str(raised.value)


def test_flipped_bytes_never_do_worse_than_an_error(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.gguf").read_bytes()
    flipped = tmp_path / "flipped.gguf"
    rng = random.Random(0)
    refused = 0
    for _ in range(800):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(whole) // 4)] = rng.choice((0, 1, 127, 255, rng.randrange(256)))
        flipped.write_bytes(data)
        try:
            load_all(flipped)
        except ModelLoadError:
            refused += 1
    assert 100 < refused < 800


def entry(key: str, kind: int, value: bytes) -> bytes:
    name = key.encode()
    return len(name).to_bytes(8, "little") + name + kind.to_bytes(4, "little") + value


def number(value: int, size: int = 8) -> bytes:
    return value.to_bytes(size, "little")


def header(tensors: int, entries: int, body: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + number(version, 4) + number(tensors) + number(entries) + body


HOSTILE = {
    "empty": b"",
    "not GGUF": b"PK\3\4" + bytes(100),
    "version 1": header(0, 0, version=1),
    "big-endian": b"GGUF" + (3).to_bytes(4, "big") + bytes(16),
    "no metadata": header(0, 0),
    "entries": header(0, 2**60),
    "tensors": header(2**60, 0),
    "key length": header(0, 1, number(2**64 - 1) + bytes(64)),
    "string length": header(0, 1, entry("a", 8, number(2**63)) + bytes(64)),
    "strings": header(0, 1, entry("a", 9, number(8, 4) + number(2**60)) + bytes(64)),
    "string in strings": header(
        0, 1, entry("a", 9, number(8, 4) + number(3) + number(2**64 - 9)) + bytes(64)
    ),
    "numbers": header(0, 1, entry("a", 9, number(0, 4) + number(2**40)) + bytes(64)),
    "arrays": header(0, 1, entry("a", 9, (number(9, 4) + number(1)) * 1000)),
    "value type": header(0, 1, entry("a", 99, bytes(64))),
    "bad UTF-8": header(0, 1, entry("a", 8, number(2) + b"\xff\xfe") + bytes(64)),
    "twice": header(0, 2, entry("a", 7, b"\1") * 2),
    "alignment": header(0, 1, entry("general.alignment", 4, number(0, 4)) + bytes(64)),
    "dimensions": header(1, 0, number(1) + b"t" + number(99, 4) + bytes(900)),
    "elements": header(
        1, 0, number(1) + b"t" + number(2, 4) + number(2**40) * 2 + number(0, 4) + bytes(64)
    ),
    "offset": header(
        1, 0, number(1) + b"t" + number(1, 4) + number(1) + number(0, 4) + number(2**63) + bytes(64)
    ),
    "tensor type": header(
        1, 0, number(1) + b"t" + number(1, 4) + number(1) + number(77, 4) + bytes(64)
    ),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_headers_cost_nothing(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ModelLoadError, match=r"hostile\.gguf: "):
            open_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.add_uint16("split.count", 2), "split"),
        (lambda w: w.add_expert_count(8), "expert_count"),
        (lambda w: w.add_tensor("blk.0.attn_sub_norm.weight", np.ones(4, np.float32)), "sub_norm"),
        (lambda w: w.add_tensor("token_types.weight", np.ones(4, np.float32)), "token_types"),
    ],
)
def test_unknown_variants_are_refused(
    tmp_path: Path, change: Callable[[GGUFWriter], Any], message: str
) -> None:
    with pytest.raises(ModelLoadError, match=message):
        load_all(write(tmp_path / "tiny.gguf", change=change))


def test_rows_that_do_not_fit_the_heads_are_refused(tmp_path: Path) -> None:
    weights = random_weights("llama")
    weights["blk.1.attn_q.weight"] = weights["blk.1.attn_q.weight"][:-2]
    with pytest.raises(ModelLoadError, match="heads"):
        load_all(write(tmp_path / "tiny.gguf", "llama", weights))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty; fetch it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"PK\x03\x04rest", "zip archive"),
        (b"\x1f\x8brest", "gzip archive; unpack"),
        (b"tjggrest", "before GGUF; convert"),
        (b"<html>", "fetch the file itself"),
        (b"nothing at all", "not a GGUF file; fetch it again"),
    ],
)
def test_what_is_no_gguf_is_told_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=message) as error:
        open_checkpoint(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_part_of_a_split_model_is_told_how_to_join(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m-00001-of-00003.gguf",
        change=lambda writer: writer.add_uint16("split.count", 3),
    )
    with pytest.raises(ModelLoadError, match="llama-gguf-split --merge"):
        open_checkpoint(path)


def test_capitals_in_the_suffix(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf").rename(tmp_path / "MODEL.GGUF")
    assert open_checkpoint(path).name == "MODEL"


def test_a_missing_file_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"absent\.gguf: cannot be read"):
        open_checkpoint(tmp_path / "absent.gguf")
