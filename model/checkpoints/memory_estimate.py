"""How much memory a model takes, told from its header: no weight is read, no torch is loaded."""

from collections.abc import Iterable
from math import prod

from model.checkpoints.config import ModelConfig
from model.checkpoints.stored import StoredTensor

PRECISIONS = ("int8", "bfloat16", "float32")
_WIDTHS = {"int8": 1, "bfloat16": 2, "float32": 4}
_SCALE = 4  # bytes of a float32


def weight_bytes(tensors: Iterable[StoredTensor], precision: str) -> int:
    """Memory of the weights in a precision: in int8, matrices have a scale for each output."""
    return sum(_bytes_of(tensor.shape, precision) for tensor in tensors)


def _bytes_of(shape: tuple[int, ...], precision: str) -> int:
    if precision != "int8":
        return prod(shape) * _WIDTHS[precision]
    if len(shape) < 2:
        return prod(shape) * _WIDTHS["float32"]
    return prod(shape) + shape[0] * _SCALE


def kv_bytes_per_token(config: ModelConfig, precision: str) -> int:
    """Memory of one position's keys and values over all layers.

    In int8 as the compiled kernels keep it, with a scale each; in torch int8 keeps float32.
    """
    heads = config.num_layers * config.num_kv_heads
    if precision == "int8":
        return heads * 2 * (config.head_dim + _SCALE)
    return heads * 2 * config.head_dim * _WIDTHS[precision]
