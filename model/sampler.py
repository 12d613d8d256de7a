"""Logits of one step -> one token per sequence.

The order in which a request's wishes act: logit_bias, repetition / presence / frequency penalties,
min_tokens; there greedy stops; temperature, top_k, top_p, min_p, and one draw from what is left.

The draw uses one uniform number that depends on (seed, position) alone, never on a generator that
runs along: the same logits give the same token in any company, and after any restart.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from model.request import Request
from model.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen token, and where asked for, log-probabilities: its own and the likeliest ones."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@torch.inference_mode()
def sample(
    logits: Tensor, requests: Sequence[Request], eos_token_ids: tuple[int, ...]
) -> list[Choice]:
    """The next token of each request; row i of `logits` (R, vocabulary) belongs to request i."""
    plain = logits.argmax(dim=-1).tolist()
    return [
        _logged(_next_token(row, best, request, eos_token_ids), row, request.params.logprobs)
        for row, best, request in zip(logits, plain, requests, strict=True)
    ]


def _next_token(row: Tensor, best: int, request: Request, eos_token_ids: tuple[int, ...]) -> int:
    params = request.params
    forbidden = _forbidden(request, eos_token_ids)
    if params.logit_bias or params.penalizes or forbidden:
        row = adjust(row, request, forbidden)
        best = int(row.argmax())
    if params.greedy:
        return best
    token_ids, probabilities = candidates(row, params)
    drawn = draw(probabilities, uniform(params.seed, len(request.token_ids)))
    return drawn if token_ids is None else int(token_ids[drawn])


def _forbidden(request: Request, eos_token_ids: tuple[int, ...]) -> tuple[int, ...]:
    """Tokens that would end the sequence before it has its `min_tokens`."""
    params = request.params
    if request.num_output >= params.min_tokens:
        return ()
    return (*params.stop_token_ids, *(() if params.ignore_eos else eos_token_ids))


def adjust(row: Tensor, request: Request, forbidden: tuple[int, ...] = ()) -> Tensor:
    """A copy of the logits (vocabulary,) with bias, forbidden tokens and penalties applied.

    Repetition divides positive logits and multiplies negative ones of every token that the prompt
    or the output holds (Keskar et al. 2019, section 4.1). Presence subtracts once, frequency once
    per occurrence, both over the output only (OpenAI's definition).
    """
    params = request.params
    row = row.clone()
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=row.device)
        row[ids] += torch.tensor(list(params.logit_bias.values()), device=row.device)
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(request.token_ids)), device=row.device)
        old = row[seen]
        factor = params.repetition_penalty
        row[seen] = torch.where(old > 0, old / factor, old * factor)
    if request.num_output and (params.presence_penalty or params.frequency_penalty):
        counts = Counter(request.output_ids)
        ids = torch.tensor(list(counts), device=row.device)
        times = torch.tensor(list(counts.values()), dtype=row.dtype, device=row.device)
        row[ids] -= params.presence_penalty + params.frequency_penalty * times
    row[list(forbidden)] = -torch.inf
    return row


def candidates(row: Tensor, params: SamplingParams) -> tuple[Tensor | None, Tensor]:
    """Which tokens may be drawn, and their probabilities (n,), in float64.

    top_k: p_i = exp(z_i / t) / sum over the k largest logits only, 0 for all others (Fan et al.
    2018). top_p keeps the fewest likeliest tokens whose sum reaches p (Holtzman et al. 2020);
    min_p those of at least p times the likeliest (Nguyen et al. 2024). Each renormalizes.
    Token ids come best first, at least as many as probabilities, or None: every token, in
    vocabulary order.
    """
    cuts = params.top_p < 1.0 or params.min_p > 0.0
    token_ids: Tensor | None = None
    if 0 < params.top_k < row.shape[0]:
        row, token_ids = row.topk(params.top_k)
    elif cuts:
        row, token_ids = row.sort(descending=True)
    scaled = (row.double() - row.max()) / params.temperature
    probabilities = scaled.softmax(dim=-1)
    if cuts:
        probabilities = probabilities[: _top_p_count(probabilities, params.top_p)]
        probabilities = probabilities[: _min_p_count(probabilities, params.min_p)]
        probabilities = probabilities / probabilities.sum()
    return token_ids, probabilities


def _top_p_count(descending: Tensor, top_p: float) -> int:
    before = descending.cumsum(dim=-1) - descending
    return max(1, int((before < top_p).sum()))


def _min_p_count(descending: Tensor, min_p: float) -> int:
    return int((descending >= min_p * descending[0]).sum())


def draw(probabilities: Tensor, u: float) -> int:
    """Invert the cumulative distribution of `probabilities` (n,) at u in [0, 1)."""
    cumulative = probabilities.cumsum(dim=-1)
    index = int(torch.searchsorted(cumulative, u * cumulative[-1], right=True))
    return min(index, probabilities.shape[0] - 1)


_GAMMA: Final = 0x9E3779B97F4A7C15
_MASK: Final = (1 << 64) - 1


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) for one position of one seed.

    SplitMix64 (Steele, Lea and Flood 2014), whose n-th output is a function of its start and n,
    started from the mixed seed so that neighbouring seeds share nothing.
    """
    state = (_mix(seed & _MASK) + (position + 1) * _GAMMA) & _MASK
    return (_mix(state) >> 11) * 2.0**-53


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def _logged(token_id: int, row: Tensor, top: int | None) -> Choice:
    if top is None:
        return Choice(token_id)
    logprobs = row.log_softmax(dim=-1)
    values, ids = logprobs.topk(top)
    best = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Choice(token_id, float(logprobs[token_id]), best)
