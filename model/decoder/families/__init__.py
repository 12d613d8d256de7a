"""One file per model family; `build` finds the one that a config names."""

from model.checkpoints.config import ModelConfig
from model.decoder.families.llama import Llama
from model.decoder.families.qwen import Qwen2, Qwen3
from model.decoder.weights import Weights

FAMILIES: dict[str, type[Llama]] = {"llama": Llama, "qwen2": Qwen2, "qwen3": Qwen3}


def build(config: ModelConfig, weights: Weights) -> Llama:
    """The decoder for this config, its weights taken from `weights`, none left over.

    Raises ModelLoadError when a weight is missing, misshapen or superfluous.
    """
    decoder = FAMILIES[config.family](config, weights)
    weights.expect_all_taken()
    return decoder
