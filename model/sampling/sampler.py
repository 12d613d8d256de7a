"""Logits of one step -> one token per sequence.

The order in which a request's options act: logit_bias, repetition / presence / frequency penalties,
min_tokens, grammar; there greedy stops; temperature, top_k, top_p, min_p, and one draw from what is
left (model/sampling/draw.py).

A token that the grammar does not allow is never chosen, whatever speaks for it, and one of those
that it allows always is, whatever speaks against them: min_tokens forbids an end only where the
grammar can go on.

The draw depends on the logits, the seed and the position alone (model/sampling/gumbel.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from model.sampling.draw import best, draw
from model.sampling.grammar_matcher import Mask, allows, mask_bias
from model.sampling.grammar_matcher import masks as masks_of
from model.sampling.gumbel import rng_key
from model.sampling.logits import Logits
from model.sampling.state import SamplerState
from model.sampling.token_counts import TokenCounts


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The chosen token, and where asked for, log-probabilities: its own and the likeliest ones."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@torch.inference_mode()
def sample(
    logits: Logits, states: Sequence[SamplerState], eos_token_ids: tuple[int, ...]
) -> list[SampledToken | None]:
    """The next token of each sequence; row i belongs to state i. None where the row has failed.

    A sequence that wants the argmax and nothing else costs no look at its logits.
    """
    tokens: list[int | None] = [
        token if finite else None for token, finite in zip(logits.best, logits.finite, strict=True)
    ]
    wishing = [
        i
        for i, state in enumerate(states)
        if tokens[i] is not None
        and (not state.params.argmax_only or state.forced_token is not None)
    ]
    known = _forced(wishing, states)
    masks = _masks([i for i in wishing if i not in known], states)
    known |= _allowed_best(logits, masks, states)
    for i, known_token in known.items():
        tokens[i] = known_token
    if free := [i for i in wishing if i not in known]:
        for i, token in _next_tokens(logits, free, states, eos_token_ids, masks):
            tokens[i] = token
    sampled = [None if token is None else SampledToken(token) for token in tokens]
    logged = [i for i in wishing if sampled[i] and states[i].params.logprobs is not None]
    if logged:
        for i, one in _logged(logits.rows[logged], logged, sampled, states):
            sampled[i] = one
    return sampled


def _forced(which: list[int], states: Sequence[SamplerState]) -> dict[int, int]:
    """The tokens of those sequences that were given one, or whose grammar allows but one."""
    tokens = ((i, states[i].forced_token) for i in which)
    return {i: token for i, token in tokens if token is not None}


def _masks(which: list[int], states: Sequence[SamplerState]) -> dict[int, Mask]:
    """What the grammars of those sequences allow, for those that have one."""
    matchers = {i: matcher for i in which if (matcher := states[i].matcher)}
    found = masks_of(list(matchers.values())) if matchers else []
    return dict(zip(matchers, found, strict=True))


def _allowed_best(
    logits: Logits, masks: Mapping[int, Mask], states: Sequence[SamplerState]
) -> dict[int, int]:
    """The argmax of those that want no more than that, where their grammar allows it."""
    best = {i: logits.best[i] for i in masks if states[i].params.greedy}
    return {
        i: token for i, token in best.items() if not _adjusts(states[i]) and allows(masks[i], token)
    }


def _next_tokens(
    logits: Logits,
    which: list[int],
    states: Sequence[SamplerState],
    eos_token_ids: tuple[int, ...],
    masks: Mapping[int, Mask],
) -> list[tuple[int, int | None]]:
    """Row and token, for those of the sequences. None where nothing is left to choose from."""
    changes = {i: i in masks or _adjusts(states[i]) for i in which}
    changed = [i for i in which if changes[i]]
    others = [i for i in which if not changes[i]]
    some = [states[i] for i in changed]
    rows = adjust(logits.rows[changed], some, eos_token_ids, [masks.get(i) for i in changed])
    adjusted = Logits.of(rows)
    alive = [n for n, finite in enumerate(adjusted.finite) if finite]
    tokens = dict(zip(alive, _choose(adjusted, alive, some), strict=True))
    return [
        *zip(others, _choose(logits, others, states), strict=True),
        *((i, tokens.get(n)) for n, i in enumerate(changed)),
    ]


def _choose(logits: Logits, which: Sequence[int], states: Sequence[SamplerState]) -> list[int]:
    """Of each of those rows, the argmax or a draw."""
    drawn = [i for i in which if not states[i].params.greedy]
    params = [states[i].params for i in drawn]
    keys = [rng_key(states[i].params.seed, len(states[i].token_ids)) for i in drawn]
    tokens = dict(zip(drawn, draw(logits.rows, drawn, params, keys), strict=True))
    return [tokens[i] if i in tokens else logits.best[i] for i in which]


# ---- what changes the logits


def _adjusts(state: SamplerState) -> bool:
    params = state.params
    return bool(params.logit_bias) or params.penalizes or state.num_output < params.min_tokens


def adjust(
    rows: Tensor,
    states: Sequence[SamplerState],
    eos_token_ids: tuple[int, ...],
    masks: Iterable[Mask | None] = repeat(None),
) -> Tensor:
    """Each row of logits (R, vocabulary), in place, with bias, penalties and forbidden tokens.

    Repetition divides positive logits and multiplies negative ones of every token that the prompt
    or the output holds (Keskar et al. 2019, section 4.1). Presence subtracts once, frequency once
    per occurrence, both over the output only (OpenAI's definition). `masks` are those of grammars.
    """
    for row, state, mask in zip(rows, states, masks, strict=False):
        params = state.params
        if params.logit_bias:
            row[_ids(list(params.logit_bias), row)] += _numbers(
                list(params.logit_bias.values()), row
            )
        if params.penalizes:
            _penalize(row, state)
        early = _early_ends(state, eos_token_ids)
        if mask is not None:
            _keep_to(row, mask, early)
        elif early:
            row[_ids(early, row)] = -torch.inf
    return rows


def _early_ends(state: SamplerState, eos_token_ids: tuple[int, ...]) -> list[int]:
    """The tokens that must not come before min_tokens."""
    params = state.params
    if state.num_output >= params.min_tokens:
        return []
    return [*params.stop_token_ids, *(() if params.ignore_eos else eos_token_ids)]


def _keep_to(row: Tensor, mask: Mask, early: list[int]) -> None:
    """Forbid what the grammar does not allow, and early ends where it allows anything else."""
    limits = torch.from_numpy(mask_bias(mask))[: len(row)]
    if early:
        stricter = limits.clone()
        stricter[early] = -torch.inf
        limits = stricter if stricter.max() == 0 else limits
    row += limits.to(row.device)


def _penalize(row: Tensor, state: SamplerState) -> None:
    params = state.params
    token_counts = state.token_counts = state.token_counts or TokenCounts()
    token_counts.follow(state.token_ids, state.num_prompt)
    ids = _ids(token_counts.ids, row)
    logits = row[ids]
    factor = params.repetition_penalty
    logits = torch.where(logits > 0, logits / factor, logits * factor)
    counts = _numbers(token_counts.counts, row)
    logits -= params.presence_penalty * (counts > 0) + params.frequency_penalty * counts
    row[ids] = logits


def _ids(values: ArrayLike, row: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.int64)).to(row.device)


def _numbers(values: ArrayLike, row: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32)).to(row.device)


# ---- log-probabilities


def _logged(
    rows: Tensor,
    which: list[int],
    sampled: Sequence[SampledToken | None],
    states: Sequence[SamplerState],
) -> list[tuple[int, SampledToken]]:
    """Those sampled with log-probabilities of the model's own distribution: `rows` are theirs."""
    logprobs = rows.log_softmax(dim=-1)
    tops = [states[i].params.logprobs or 0 for i in which]
    ids, values = best(logprobs, max(1, *tops))
    tokens = [one.token_id for i in which if (one := sampled[i])]
    chosen = logprobs.gather(1, torch.tensor(tokens, device=rows.device).unsqueeze(-1))[:, 0]
    table = zip(which, tokens, chosen.tolist(), ids.tolist(), values.tolist(), tops, strict=True)
    return [
        (i, SampledToken(token, logprob, tuple(zip(ids[:top], values[:top], strict=True))))
        for i, token, logprob, ids, values, top in table
    ]
