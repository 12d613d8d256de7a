"""A Hugging Face model directory: config.json, tokenizer.json and *.safetensors.

Other weight formats are refused: PyTorch's are pickles, and opening one can run its author's code.
"""

import json
import re
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from model.checkpoints.families.known import config_from_hf
from model.checkpoints.sampling_defaults import from_generation_config
from model.checkpoints.stored import StoredTensor
from model.checkpoints.strangers import head_of, is_stranger, what_it_is
from model.protocol.errors import ModelLoadError, errors_name
from model.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

_INDEX = "model.safetensors.index.json"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
_FLOATS = {"F32", "BF16", "F16"}
_WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2}
_MAX_JSON_BYTES = 256 << 20

_FETCH = "fetch the model again"
_HOW_TO_GET = {
    "tokenizer.json": (
        "fetch it, or write it with transformers: "
        "AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)"
    )
}

_GLOBAL_NAMES = {
    "model.embed_tokens.weight": "embed.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "head.weight",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn.q",
    "self_attn.k_proj": "attn.k",
    "self_attn.v_proj": "attn.v",
    "self_attn.o_proj": "attn.o",
    "self_attn.q_norm": "attn.q_norm",
    "self_attn.k_norm": "attn.k_norm",
    "post_attention_layernorm": "mlp_norm",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
}
_LAYER_TENSOR = re.compile(r"model\.layers\.(\d{1,4})\.([\w.]+)\.(weight|bias)", re.ASCII)
# A buffer that old checkpoints store although it follows from the config.
_DERIVED = re.compile(r"model\.layers\.\d{1,4}\.self_attn\.rotary_emb\.inv_freq", re.ASCII)


class SafetensorsCheckpoint:
    """A model in a directory. Opening it reads the small JSON files only."""

    def __init__(self, directory: Path) -> None:
        """Raises ModelLoadError if the directory does not hold a model of a known family."""
        self._directory = directory
        self.name = _name(directory)
        with errors_name(directory):
            _refuse_other_directories(directory)
            self._files = _weight_files(directory)
            for file in self._files:
                if is_stranger(head := head_of(file)):
                    raise ModelLoadError(
                        f"{file.name}: this is not a safetensors file{what_it_is(head)}"
                    )
            self._tokenizer_config = _read_json(directory / "tokenizer_config.json", optional=True)
            generation_config = _read_json(directory / "generation_config.json", optional=True)
            self.config = config_from_hf(
                _read_json(directory / "config.json"),
                name=self.name,
                generation_config=generation_config,
            )
            self.sampling_defaults = from_generation_config(generation_config)
            self.chat_template = _chat_template(directory, self._tokenizer_config)

    def tokenizer(self) -> Tokenizer:
        """Build the tokenizer. Raises ModelLoadError."""
        path = self._directory / "tokenizer.json"
        with errors_name(path):
            return Tokenizer.from_json(
                _read_text(path),
                bos_token=_token_text(self._tokenizer_config, "bos_token"),
                eos_token=_token_text(self._tokenizer_config, "eos_token"),
                end_ids=self.config.eos_token_ids,
            )

    def stored(self) -> list[StoredTensor]:
        """Every tensor that the headers of the files name. Raises ModelLoadError."""
        return [tensor for path in self._files for tensor in _stored_in(path)]

    def weights(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """Canonical names and tensors as stored, one at a time.

        Raises:
            ModelLoadError: a broken file, or a tensor that no family here has a place for.
        """
        for path in self._files:
            yield from self._weights_of(path)

    def _weights_of(self, path: Path) -> "Iterator[tuple[str, torch.Tensor]]":
        with errors_name(path):
            try:
                with safe_open(path, framework="pt") as file:
                    for stored_name in file.keys():  # noqa: SIM118 - not a dict
                        name = canonical_name(stored_name)
                        if name is None or (name == "head.weight" and self.config.tie_embeddings):
                            continue
                        if (kind := file.get_slice(stored_name).get_dtype()) not in _FLOATS:
                            raise ModelLoadError(f"{stored_name!r:.80} has type {kind}: refused")
                        yield name, file.get_tensor(stored_name)
            except SafetensorError as error:
                raise ModelLoadError(
                    f"the file is corrupt ({error!s:.120}); fetch it again"
                ) from error


def _stored_in(path: Path) -> Iterator[StoredTensor]:
    with errors_name(path):
        try:
            with safe_open(path, framework="np") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    tensor = file.get_slice(name)
                    shape, kind = tuple(tensor.get_shape()), str(tensor.get_dtype())
                    yield StoredTensor(name, shape, kind, prod(shape) * _WIDTHS.get(kind, 1))
        except SafetensorError as error:
            raise ModelLoadError(f"the file is corrupt ({error!s:.120}); fetch it again") from error


def canonical_name(name: str) -> str | None:
    """Our name for a Hugging Face tensor; None for one that follows from the config.

    Raises:
        ModelLoadError: no family here has such a tensor.
    """
    if name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[name]
    if (match := _LAYER_TENSOR.fullmatch(name)) and match[2] in _LAYER_NAMES:
        return f"layers.{int(match[1])}.{_LAYER_NAMES[match[2]]}.{match[3]}"
    if _DERIVED.fullmatch(name):
        return None
    raise ModelLoadError(f"tensor {name!r:.80} belongs to no model family that is implemented")


def _name(directory: Path) -> str:
    """The directory's name, or org/model for a snapshot in the cache of huggingface_hub."""
    directory = directory.absolute()
    repository = directory.parent.parent.name
    if directory.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/", 1)
    return directory.name


def _refuse_other_directories(directory: Path) -> None:
    """Raises ModelLoadError for what people take for a model's directory, which it is not."""
    if (directory / "config.json").exists():
        return
    if (directory / "adapter_config.json").is_file():
        raise ModelLoadError(
            "this is a LoRA adapter, not a model; merge it into its base model (peft: "
            "merge_and_unload, then save_pretrained) and give that directory"
        )
    if ggufs := sorted(file.name for file in directory.glob("*.[gG][gG][uU][fF]")):
        raise ModelLoadError(f"give the path of a file in it: {', '.join(ggufs)[:300]}")


def _weight_files(directory: Path) -> list[Path]:
    """The shards that the index names, or the single file."""
    if (directory / _INDEX).is_file():
        return _indexed_files(directory)
    files = sorted(directory.glob("*.safetensors"))
    single = [file for file in files if file.name == "model.safetensors"] or files
    if len(single) == 1:
        return single
    if files:
        raise ModelLoadError(f"there are {len(files)} *.safetensors files, but no {_INDEX}")
    if any(file.suffix in _PICKLES for file in directory.iterdir()):
        raise ModelLoadError(
            "only *.safetensors are read: .bin and .pt files are pickles, which can run code when "
            "opened; take a converted model, or save it again with transformers"
        )
    raise ModelLoadError("there is no *.safetensors file here")


def _indexed_files(directory: Path) -> list[Path]:
    shards = _read_json(directory / _INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelLoadError(f"{_INDEX} has no weight_map")
    names = dict.fromkeys(shards.values())
    for name in names:
        # Only plain names: an index must not reach outside of the directory.
        if (
            not isinstance(name, str)
            or Path(name).name != name
            or not name.endswith(".safetensors")
        ):
            raise ModelLoadError(f"{_INDEX} names {name!r:.80}, which is not a file beside it")
        if not (directory / name).is_file():
            raise ModelLoadError(f"the shard {name} is missing; fetch the model again")
    return [directory / name for name in names]


def _chat_template(directory: Path, tokenizer_config: dict[str, Any]) -> str | None:
    if (directory / "chat_template.jinja").is_file():
        return _read_text(directory / "chat_template.jinja")
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {
            item.get("name"): item.get("template") for item in template if isinstance(item, dict)
        }
        template = named.get("default")
    return template if isinstance(template, str) else None


def _token_text(tokenizer_config: dict[str, Any], key: str) -> str | None:
    """A token that the file gives as its text, or as an object with the text inside."""
    token = tokenizer_config.get(key)
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise ModelLoadError(f"{path.name} is missing; {_HOW_TO_GET.get(path.name, _FETCH)}")
    if is_stranger(head := head_of(path)):
        raise ModelLoadError(f"{path.name} is no text{what_it_is(head)}")
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ModelLoadError(f"{path.name} is absurdly large")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"{path.name} is not UTF-8 text") from error


def _read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """A JSON object. An optional file that is absent reads as an empty one."""
    if optional and not path.exists():
        return {}
    try:
        value = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path.name} is not valid JSON ({error!s:.120})") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path.name} must hold a JSON object")
    return value
