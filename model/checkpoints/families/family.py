"""What a family is: the files that name it, and what sets its config apart."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from model.checkpoints.config import ModelConfig
from model.checkpoints.fields import Fields


@dataclass(frozen=True, slots=True)
class Directory:
    """A Hugging Face model directory, as far as its config tells."""

    name: str
    config: Fields  # of config.json
    generation: Fields  # of generation_config.json, which may be absent


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """A GGUF file, as far as its header tells."""

    name: str
    metadata: Mapping[str, Any]
    config: Fields  # the keys of its architecture
    tensor_names: Collection[str]


@dataclass(frozen=True, slots=True)
class Family:
    """Readers raise ModelLoadError: a value is missing, absurd, or asks for other mathematics."""

    name: str  # as people are shown it
    hf_types: Collection[str]  # `model_type` of config.json
    from_hf: Callable[[Directory], ModelConfig]
    gguf_arch: str  # `general.architecture`
    from_gguf: Callable[[GGUFFile], ModelConfig]
    # Whether its GGUF files hold the rows of queries and keys as llama.cpp rotates them: dimension
    # pair i is (2i, 2i + 1) of a head, not (i, i + d / 2).
    gguf_interleaves: bool = False
