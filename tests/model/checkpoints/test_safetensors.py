"""Model directories as transformers writes them, and directories that must be refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from model.checkpoints.checkpoint import open_checkpoint
from model.checkpoints.safetensors import canonical_name
from model.protocol.errors import ModelLoadError

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama with biases": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, head_dim=16)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)),
}


def tokenizer_json() -> str:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({token: id for id, token in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return str(backend.to_str())


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A complete tiny llama."""
    monkeypatch.setenv("TQDM_DISABLE", "1")
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny/tokenizer.json").write_text(tokenizer_json())
    return tmp_path / "tiny"


def edit_json(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**value, **changes}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_reads_what_transformers_saves(
    tmp_path: Path, make: Callable[[], PreTrainedModel], shard: str, dtype: torch.dtype
) -> None:
    model = make().to(dtype)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.tie_embeddings == model.config.tie_word_embeddings
    assert checkpoint.config.eos_token_ids == ((2,) if model.config.eos_token_id else ())
    loaded = list(checkpoint.weights())
    expected = {canonical_name(name): tensor for name, tensor in model.state_dict().items()}
    if checkpoint.config.tie_embeddings:
        del expected["head.weight"]
    assert sorted(name for name, _ in loaded) == sorted(expected)
    for name, tensor in loaded:
        assert tensor.dtype == dtype
        assert torch.equal(tensor, expected[name]), name


def test_what_lies_beside_the_weights(directory: Path) -> None:
    edit_json(directory / "generation_config.json", eos_token_id=[7, 2])
    edit_json(
        directory / "tokenizer_config.json",
        chat_template=[{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}],
        bos_token={"content": "<s>"},
        eos_token="</s>",
    )
    checkpoint = open_checkpoint(directory)
    assert checkpoint.name == "tiny"
    assert checkpoint.config.eos_token_ids == (7, 2)
    assert checkpoint.chat_template == "d"
    tokenizer = checkpoint.tokenizer()
    assert tokenizer.decode(tokenizer.encode("naïve 🙂")) == "naïve 🙂"
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    (directory / "chat_template.jinja").write_text("own file")
    assert open_checkpoint(directory).chat_template == "own file"


def test_a_snapshot_is_named_after_its_repository(directory: Path) -> None:
    snapshot = directory.parent / "models--some-org--a--model" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    directory.rename(snapshot)
    assert open_checkpoint(snapshot).name == "some-org/a--model"


def test_pickles_are_refused_with_the_reason(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="pickles"):
        open_checkpoint(directory)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "x.bin", "..", "", 3, None]
)
def test_an_index_cannot_reach_outside(directory: Path, name: Any) -> None:
    (directory.parent / "secret.safetensors").write_bytes(b"")
    edit_json(directory / "model.safetensors.index.json", weight_map={"lm_head.weight": name})
    with pytest.raises(ModelLoadError, match="not a file beside it"):
        open_checkpoint(directory)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "config.json is missing"),
        ("config.json", b"{", "not valid JSON"),
        ("config.json", b"[]", "JSON object"),
        ("config.json", b"[" * 100_000, "not valid JSON"),
        ("config.json", b"\xff", "UTF-8"),
        ("generation_config.json", b"nonsense", "generation_config.json"),
        ("model.safetensors", None, r"no \*.safetensors"),
        ("model.safetensors", b"", r"model\.safetensors: .*empty; fetch"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("config.json", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("config.json", b"", "empty; fetch"),
        ("config.json", b"<!doctype html>", "fetch the file itself"),
        ("model.safetensors.index.json", b"{}", "weight_map"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "b.safetensors"}}', "missing"),
    ],
)
def test_broken_directories_do_not_open(
    directory: Path, file: str, content: bytes | None, message: str
) -> None:
    (directory / file).unlink(missing_ok=True)
    if content is not None:
        (directory / file).write_bytes(content)
    with pytest.raises(ModelLoadError, match=message) as raised:
        open_checkpoint(directory)
    assert str(directory) in str(raised.value)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelLoadError, match=r"LoRA adapter.*merge"):
        open_checkpoint(tmp_path)


def test_a_directory_of_ggufs_is_told_to_name_one(tmp_path: Path) -> None:
    for name in ("b.GGUF", "a.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ModelLoadError, match=r"path of a file in it: a\.gguf, b\.GGUF"):
        open_checkpoint(tmp_path)


def test_without_a_tokenizer_it_is_told_how_to_get_one(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json is missing; .*save_pretrained"):
        open_checkpoint(directory).tokenizer()


def test_the_end_of_a_turn_is_an_end_though_no_config_names_it(directory: Path) -> None:
    backend = Backend.from_str(tokenizer_json())
    backend.add_tokens([AddedToken("<|im_end|>", special=False)])
    (directory / "tokenizer.json").write_text(backend.to_str())
    edit_json(directory / "generation_config.json", eos_token_id=[2])
    tokenizer = open_checkpoint(directory).tokenizer()
    assert tokenizer.end_ids == (2, 256)
    assert tokenizer.token_bytes(256) == b""


def test_several_files_need_an_index(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "a.safetensors")
    assert dict(open_checkpoint(directory).weights())
    (directory / "b.safetensors").write_bytes(b"")
    with pytest.raises(ModelLoadError, match="index"):
        open_checkpoint(directory)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"version": "1.0"}', b"\xff"])
def test_a_broken_tokenizer_is_an_error(directory: Path, content: bytes) -> None:
    (directory / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json"):
        open_checkpoint(directory).tokenizer()


def test_damaged_weights_are_an_error(directory: Path) -> None:
    path = directory / "model.safetensors"
    whole = path.read_bytes()
    for length in [*range(0, 4000, 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelLoadError, match=r"model\.safetensors: "):
            dict(open_checkpoint(directory).weights())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model.layers.0.self_attn.q_proj.qweight": torch.ones(2)}, "qweight"),
        ({"model.layers.0.mlp.experts.0.up_proj.weight": torch.ones(2)}, "experts"),
        ({"model.norm.weight": torch.ones(2, dtype=torch.int8)}, "I8"),
    ],
)
def test_foreign_weights_are_refused(
    directory: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(ModelLoadError, match=message):
        dict(open_checkpoint(directory).weights())


def test_derived_buffers_of_old_checkpoints_are_skipped(directory: Path) -> None:
    inv_freq = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(inv_freq, directory / "model.safetensors")
    assert not dict(open_checkpoint(directory).weights())


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ModelLoadError, match="expected"):
        open_checkpoint(tmp_path / "model.onnx")
