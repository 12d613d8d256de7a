"""A model on disk, whatever its format: opening is cheap, and only its weights need torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from model.checkpoints.config import ModelConfig
from model.checkpoints.gguf import GGUFCheckpoint
from model.checkpoints.safetensors import SafetensorsCheckpoint
from model.checkpoints.stored import StoredTensor
from model.protocol.errors import ModelLoadError
from model.protocol.sampling_params import SamplingDefaults
from model.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch


class Checkpoint(Protocol):
    """What every format offers. Any of it may raise ModelLoadError.

    Canonical weight names, for every family; linear weights are (out, in):
        embed.weight (vocab, hidden)        norm.weight (hidden,)
        head.weight (vocab, hidden), absent when tied
        rope.factors (head_dim / 2,), in some GGUF files: divisors of the inverse frequencies
        layers.{i}.attn_norm.weight, layers.{i}.mlp_norm.weight (hidden,)
        layers.{i}.attn.{q,k,v,o}.weight, and .bias where the config says so
        layers.{i}.attn.{q,k}_norm.weight (head_dim,), in Qwen3
        layers.{i}.mlp.{gate,up,down}.weight, and .bias where the config says so
    """

    @property
    def name(self) -> str:
        """What to call the model when nobody chose a name."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the model's chat format, if it has one."""

    @property
    def sampling_defaults(self) -> SamplingDefaults:
        """What the file advises for sampling."""

    def tokenizer(self) -> Tokenizer: ...

    def stored(self) -> list[StoredTensor]:
        """Every tensor of the file, under the file's names; none of them is read."""

    def weights(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """(canonical name, tensor on the CPU), one at a time so that memory stays bounded.

        float32 from GGUF; float32, bfloat16 or float16 as stored from safetensors.
        """


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a .gguf file, or a directory with config.json, tokenizer.json and *.safetensors.

    Raises:
        ModelLoadError: it is neither, or broken, or needs what is not implemented.
    """
    if path.is_dir():
        return SafetensorsCheckpoint(path)
    if path.suffix.lower() == ".gguf":
        return GGUFCheckpoint(path)
    raise ModelLoadError(f"{path}: expected a .gguf file or a directory with *.safetensors")
