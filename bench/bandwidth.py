"""How fast this machine reads memory with all its cores: the bound of every decode step."""

import time

import torch

# Beyond every last-level cache of the machines this runs on; the larger one is the check.
SIZES = (256 << 20, 512 << 20)
REPEATS = 8


def read_bandwidth() -> dict[int, float]:
    """Bytes of a tensor -> bytes per second at which its sum reads it, the best of some."""
    return {size: _best(torch.ones(size // 4)) for size in SIZES}


def _best(tensor: torch.Tensor) -> float:
    return max(tensor.nbytes / _seconds(tensor) for _ in range(REPEATS))


def _seconds(tensor: torch.Tensor) -> float:
    began = time.perf_counter()
    tensor.sum()
    return time.perf_counter() - began
