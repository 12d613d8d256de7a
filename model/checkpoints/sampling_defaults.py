"""What a model file advises for sampling: hints, so what makes no sense is passed over."""

from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

from model.protocol.sampling_params import OPTIONS, SamplingDefaults

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


def from_generation_config(config: Mapping[str, Any]) -> SamplingDefaults:
    """Of a generation_config.json, as transformers writes it."""
    return _checked({name: config.get(name) for name in SamplingDefaults.__struct_fields__})


def from_gguf(metadata: Mapping[str, Any]) -> SamplingDefaults:
    """Of a GGUF file's metadata."""
    return _checked({name: metadata.get(key) for name, key in _GGUF_KEYS.items()})


def _checked(found: Mapping[str, Any]) -> SamplingDefaults:
    """-1 for top_k is an older way to say 0: all tokens."""
    values: dict[str, Any] = {}
    for name, value in found.items():
        if name == "top_k" and value == -1:
            value = 0
        kind, option = OPTIONS[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not isfinite(value) or not option.low <= value <= option.high:
            continue
        if kind is float:  # GGUF's have 32 bits: 0.95 is 0.949999988
            values[name] = float(f"{value:.6g}")
        elif value == int(value):
            values[name] = int(value)
    return SamplingDefaults(**values)
