"""One token from each row of logits: temperature, top_k, top_p, min_p, and a key for the noise.

Whatever the batch, a row's token is a function of that row, its parameters and its key alone:
nothing is summed over rows, and of equal logits the one of the lower token id comes first.

The draw is argmax_i (log p_i + g_i) with Gumbel noise g, which gives i with probability p_i
(Gumbel 1954; Maddison, Tarlow and Minka 2014). Where logits are rounded a little differently, in
another batch or after a restart, only a gap between the two best that is as small can change the
token. To look up one number in the running sums of 49,152 tokens would let any of them do so.

Only what is needed is sorted: nothing for a row that has neither top_k nor top_p, the k best for
one with top_k, and for one with top_p a few, or all where these do not reach p.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model.protocol.sampling_params import SamplingParams
from model.sampling.gumbel import gumbel

_BLOCK: Final = 64  # neighbouring tokens whose maximum, or sum, is taken at once
_FEW: Final = 64  # rows with a top_k up to this go together; top_p is first looked for here
_NUCLEUS: Final = (256, 4096)  # and then among so many, before everything is sorted
_MANY: Final = 4  # to find the best of more than one in so many takes as long as to sort all
_CHUNK: Final = 2  # rows of 49,152 logits that, with their copies, fit in a core's own cache
# exp(-80) = 2e-35: nothing that noise of 53 bits could lift to the top. Where float32 underflows,
# below exp(-87), exp takes a hundred times as long.
_NEVER: Final = -80.0
_BLOCKS: Final = 1 << 32  # the candidates' numbers of blocks; those of tokens are their ids
_NOTHING: Final = 1e-32  # more than a block of such tokens weighs


@dataclass(frozen=True, slots=True)
class Truncation:
    """What the rows ask for: columns (R, 1) in float64, and keys (R, 1) of 64 bits."""

    temperature: Tensor
    top_k: Tensor  # the vocabulary where there is none
    top_p: Tensor
    min_p: Tensor
    keys: NDArray[np.uint64]

    @classmethod
    def of(
        cls, params: Sequence[SamplingParams], keys: Sequence[int], rows: Tensor
    ) -> "Truncation":
        vocabulary = rows.shape[1]
        values = [(p.temperature, p.top_k or vocabulary, p.top_p, p.min_p) for p in params]
        table = torch.tensor(values, dtype=_F64).to(rows.device).unsqueeze(-1)
        temperature, top_k, top_p, min_p = table.unbind(1)
        column = np.array(keys, dtype=np.uint64)[:, None]
        return cls(temperature, top_k, top_p, min_p, column)

    def at(self, places: Sequence[int]) -> "Truncation":
        index = list(places)
        return Truncation(
            self.temperature[index],
            self.top_k[index],
            self.top_p[index],
            self.min_p[index],
            self.keys[index],
        )


_F64: Final = torch.float64
_Way = Callable[[Tensor, Truncation, int], Tensor]


def draw(
    rows: Tensor, which: Sequence[int], params: Sequence[SamplingParams], keys: Sequence[int]
) -> list[int]:
    """A token id for each of those rows of float32 logits (R, vocabulary).

    `params` and `keys`, 64 bits each, are theirs, in the order of `which`.

    top_k: p_i = exp(z_i / t) / sum over the k largest logits only, 0 for all others (Fan et al.
    2018). top_p keeps the fewest likeliest tokens whose sum reaches p (Holtzman et al. 2020);
    min_p those of at least p times the likeliest (Nguyen et al. 2024). Each renormalizes.
    """
    if not which:
        return []
    truncation = Truncation.of(params, keys, rows)
    groups: dict[tuple[_Way, int], list[int]] = defaultdict(list)
    for place, one in enumerate(params):
        groups[_way(one, rows.shape[1])].append(place)
    drawn = torch.empty(len(which), dtype=torch.long, device=rows.device)
    for (way, width), places in groups.items():
        members = _take(rows, [which[place] for place in places])
        drawn[places] = way(members, truncation.at(places), width)
    return drawn.tolist()


def _way(params: SamplingParams, vocabulary: int) -> tuple[_Way, int]:
    """How a row is drawn, and among how many of its best tokens."""
    if 0 < params.top_k < vocabulary:
        power_of_two = 1 << (params.top_k - 1).bit_length()
        return _from_top_k, min(max(power_of_two, _FEW), vocabulary)
    if params.top_p < 1.0:
        return _from_nucleus, min(_FEW, vocabulary)
    return _from_all, vocabulary


def _take(rows: Tensor, which: list[int]) -> Tensor:
    """Those rows; no copy where they are all there are."""
    return rows if which == list(range(len(rows))) else rows[which]


def _from_all(rows: Tensor, truncation: Truncation, vocabulary: int) -> Tensor:
    """A block first, by what its tokens weigh together, and then one of these: (R,)."""
    inverse, floors = _inverse(truncation.temperature), _floors(truncation.min_p)
    peaks, masses = _block_masses(rows, inverse, floors)
    block = _pick(masses.log_(), truncation.keys, _BLOCKS + _arange(masses.shape[1], rows)[None])
    ids = block * _BLOCK + _arange(_BLOCK, rows)
    logits = rows.gather(1, ids.clamp(max=vocabulary - 1))
    logits[ids >= vocabulary] = -torch.inf
    scaled = _scaled(logits, peaks, inverse, floors)
    within = _pick(scaled.double(), truncation.keys, ids)
    return ids.gather(1, within)[:, 0]


def _from_top_k(rows: Tensor, truncation: Truncation, width: int) -> Tensor:
    """Among each row's own top_k, which is at most `width`: (R,)."""
    ids, weights = _likeliest(rows, truncation, width)
    weights[_arange(width, rows) >= truncation.top_k] = 0.0
    return _cut_and_draw(ids, weights, truncation, weights.cumsum(dim=-1)[:, -1:])


def _from_nucleus(rows: Tensor, truncation: Truncation, width: int) -> Tensor:
    """Among the `width` likeliest where these reach top_p of all, else among more: (R,)."""
    _, masses = _block_masses(rows, _inverse(truncation.temperature), [-math.inf] * len(rows))
    ids, weights = _likeliest(rows, truncation, width)
    total = masses.sum(dim=-1, keepdim=True)
    drawn = _cut_and_draw(ids, weights, truncation, total)
    reached = weights.sum(dim=-1, keepdim=True) >= truncation.top_p * total
    short = (~reached[:, 0]).nonzero()[:, 0].tolist()
    if short and width < rows.shape[1]:
        vocabulary = rows.shape[1]
        wider = next((size for size in _NUCLEUS if width < size < vocabulary), vocabulary)
        drawn[short] = _from_nucleus(rows[short], truncation.at(short), wider)
    return drawn


def _likeliest(rows: Tensor, truncation: Truncation, width: int) -> tuple[Tensor, Tensor]:
    """The `width` best tokens of each row, best first: ids and weights exp(z / t), in float64.

    The best has weight 1.
    """
    ids, logits = best(rows, width)
    logits = logits.double()
    return ids, ((logits - logits[:, :1]) / truncation.temperature).exp()


def _cut_and_draw(ids: Tensor, weights: Tensor, truncation: Truncation, total: Tensor) -> Tensor:
    """Draw among ids (R, n) of descending weights, top_p and min_p first; all weigh `total`."""
    before = weights.cumsum(dim=-1) - weights
    kept = (before < truncation.top_p * total) & (weights >= truncation.min_p)
    kept[:, 0] = True
    most = int(kept.sum(dim=-1).max())  # those that are kept come first
    index = _pick((weights * kept)[:, :most].log_(), truncation.keys, ids[:, :most])
    return ids.gather(1, index)[:, 0]


def _inverse(temperature: Tensor) -> Tensor:
    """1 / t in float32, and no infinity."""
    return temperature.clamp(min=1e-30).reciprocal().float()


def _floors(min_p: Tensor) -> list[float]:
    """What (z - max z) / t must exceed for its exp to reach min_p."""
    logs = min_p[:, 0].log().float()
    return torch.nextafter(logs, torch.full_like(logs, -torch.inf)).tolist()


def _block_masses(rows: Tensor, inverse: Tensor, floors: list[float]) -> tuple[Tensor, Tensor]:
    """The largest logits (R, 1), and what blocks weigh (R, blocks) where the largest weighs 1."""
    peaks, masses = [], []
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        peaks.append(rows[part].amax(dim=-1, keepdim=True))
        scaled = _scaled(rows[part], peaks[-1], inverse[part], floors[part])
        masses.append(_blocks(scaled.clamp_(min=_NEVER).exp_(), 0.0).sum(dim=-1))
    # A block of which nothing is above _NEVER holds nothing.
    return torch.cat(peaks), F.threshold(torch.cat(masses).double(), _NOTHING, 0.0)


def _scaled(logits: Tensor, peaks: Tensor, inverse: Tensor, floors: list[float]) -> Tensor:
    """(z - max z) / t in float32; -inf where that does not exceed the row's floor."""
    scaled = (logits - peaks).mul_(inverse)
    for row, floor in enumerate(floors):
        if floor > -math.inf:
            F.threshold(scaled[row], floor, -torch.inf, inplace=True)
    return scaled


def _pick(logs: Tensor, keys: NDArray[np.uint64], candidates: Tensor) -> Tensor:
    """The place (R, 1) of one of n candidates (R or 1, n) whose weights have these logs (R, n)."""
    noise = gumbel(keys, candidates.cpu().numpy().astype(np.uint64))
    return (logs + torch.from_numpy(noise).to(logs.device)).argmax(dim=-1, keepdim=True)


def best(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Ids and values (R, k) of the k largest, best first; among equals, the lower id first.

    Of blocks in the order of their maxima, only the first k can hold one of them: every further
    block has k greater tokens before it.
    """
    blocks = _blocks(rows, -torch.inf)
    if k > blocks.shape[1] // 2:
        keys = _keys(rows, _arange(rows.shape[1], rows))
        many = k > rows.shape[1] // _MANY
        ids = _decode(_descending(keys)[:, :k] if many else keys.topk(k).values)
        return ids, rows.gather(1, ids)
    maxima = blocks.amax(dim=-1)
    chosen = _decode(_keys(maxima, _arange(blocks.shape[1], rows)).topk(k).values).unsqueeze(-1)
    candidates = (chosen * _BLOCK + _arange(_BLOCK, rows)).flatten(1)
    values = blocks.gather(1, chosen.expand(-1, -1, _BLOCK)).flatten(1)
    ids = _decode(_keys(values, candidates).topk(k).values)
    return ids, rows.gather(1, ids)


def _arange(end: int, like: Tensor) -> Tensor:
    return torch.arange(end, device=like.device)


def _blocks(rows: Tensor, fill: float) -> Tensor:
    """(R, vocabulary) -> (R, blocks, _BLOCK); a last block that is not full is filled up."""
    if missing := -rows.shape[1] % _BLOCK:
        rows = F.pad(rows, (0, missing), value=fill)
    return rows.view(len(rows), -1, _BLOCK)


def _keys(values: Tensor, ids: Tensor) -> Tensor:
    """int64 that order as the float32 values do, and among equals against the ids.

    The bits of a float that is not negative order as it does, those of a negative one the other
    way round.
    """
    bits = values.view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) - ids


def _decode(keys: Tensor) -> Tensor:
    """The ids of `_keys`."""
    return -keys & 0xFFFFFFFF


def _descending(keys: Tensor) -> Tensor:
    """Sorted. On a CPU by numpy, whose sort of plain integers is ten times as fast as torch's."""
    if keys.device.type != "cpu":
        return keys.sort(descending=True).values
    return torch.from_numpy(np.sort(keys.neg_().numpy())).neg_()
