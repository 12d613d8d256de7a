"""Random numbers that depend on (seed, position, candidate) alone, never on a generator that runs
along: the same logits give the same token in any company, and after any restart.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

_GAMMA: Final = 0x9E3779B97F4A7C15
_FACTORS: Final = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK: Final = (1 << 64) - 1


def rng_key(seed: int, position: int) -> int:
    """64 bits for one position of one seed.

    SplitMix64 (Steele, Lea and Flood 2014), whose n-th output is a function of its start and n,
    started from the mixed seed so that neighbouring seeds share nothing.
    """
    return _mix((_mix(seed & _MASK) + (position + 1) * _GAMMA) & _MASK)


def gumbel(keys: NDArray[np.uint64], candidates: NDArray[np.uint64]) -> NDArray[np.float64]:
    """-log(-log u) with u uniform in (0, 1), one for each candidate (R or 1, n) of a key (R, 1).

    u is the output of SplitMix64, started from the key, that the candidate numbers.
    """
    z = keys + (candidates + np.uint64(1)) * np.uint64(_GAMMA)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_FACTORS[0])
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_FACTORS[1])
    z ^= z >> np.uint64(31)
    u = ((z >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    noise: NDArray[np.float64] = -np.log(-np.log(u))
    return noise


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * _FACTORS[0]) & _MASK
    z = ((z ^ (z >> 27)) * _FACTORS[1]) & _MASK
    return z ^ (z >> 31)
