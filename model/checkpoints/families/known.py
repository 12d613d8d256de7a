"""Which family a model is of: the one that its file names."""

from collections.abc import Collection, Mapping
from typing import Any, Final

from model.checkpoints.config import ModelConfig
from model.checkpoints.families import llama, qwen2, qwen3, smollm3
from model.checkpoints.families.family import Directory, Family, GGUFFile
from model.checkpoints.fields import Fields, refuse

FAMILIES: Final[tuple[Family, ...]] = (
    llama.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    smollm3.FAMILY,
)

_BY_TYPE: Final = {hf_type: family for family in FAMILIES for hf_type in family.hf_types}
BY_ARCH: Final = {family.gguf_arch: family for family in FAMILIES}


def config_from_hf(
    config: Mapping[str, Any],
    *,
    name: str,
    generation_config: Mapping[str, Any] | None = None,
) -> ModelConfig:
    """Read a config.json. Raises ModelLoadError."""
    fields = Fields(config)
    model_type = fields.text("model_type")
    if model_type not in _BY_TYPE:
        refuse("model type", model_type, _BY_TYPE)
    return _BY_TYPE[model_type].from_hf(Directory(name, fields, Fields(generation_config or {})))


def config_from_gguf(
    metadata: Mapping[str, Any], *, name: str, tensor_names: Collection[str]
) -> ModelConfig:
    """Read the metadata of a GGUF file. Raises ModelLoadError."""
    arch = Fields(metadata).text("general.architecture")
    if arch not in BY_ARCH:
        refuse("architecture", arch, BY_ARCH)
    fields = Fields(metadata, prefix=f"{arch}.")
    return BY_ARCH[arch].from_gguf(GGUFFile(name, metadata, fields, tensor_names))
