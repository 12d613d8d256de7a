"""What a model file advises for sampling: hints, so what makes no sense is passed over."""

from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

from model.sampling import SamplingDefaults

# Of 60 answers of the built-in model none was empty and none ran to 1,000 tokens; without the
# penalty five to ten did, with repetition_penalty instead it knew less (docs/decisions.md).
BUILT_IN: Final = SamplingDefaults(
    temperature=0.6, top_k=40, top_p=0.95, min_p=0.1, frequency_penalty=0.2
)

# The keys of llama.cpp (general.sampling.*), by our names.
_GGUF_KEYS: Final = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
    "frequency_penalty": "general.sampling.penalty_freq",
}

# From, to: the same as requests may ask for (app/schemas/sampling.py).
_RANGES: Final = {
    "temperature": (0, 2),
    "top_k": (0, 2**20),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 10),
    "frequency_penalty": (-2, 2),
}


def from_generation_config(config: Mapping[str, Any]) -> SamplingDefaults:
    """Of a generation_config.json, as transformers writes it."""
    return _checked({name: config.get(name) for name in _RANGES})


def from_gguf(metadata: Mapping[str, Any]) -> SamplingDefaults:
    """Of a GGUF file's metadata."""
    return _checked({name: metadata.get(key) for name, key in _GGUF_KEYS.items()})


def _checked(found: Mapping[str, Any]) -> SamplingDefaults:
    """-1 for top_k is an older way to say 0: all tokens."""
    values: dict[str, Any] = {}
    for name, value in found.items():
        if name == "top_k" and value == -1:
            value = 0
        low, high = _RANGES[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if isfinite(value) and low <= value <= high and (name != "top_k" or value == int(value)):
            # GGUF has floats of 32 bits: 0.95 is 0.949999988.
            values[name] = int(value) if name == "top_k" else float(f"{value:.6g}")
    return SamplingDefaults(**values)
