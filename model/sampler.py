"""Logits of one step -> one token per sequence.

The order in which a request's wishes act: logit_bias, repetition / presence / frequency penalties,
min_tokens, grammar; there greedy stops; temperature, top_k, top_p, min_p, and one draw from what is
left (model/draw.py).

A token that the grammar does not allow is never chosen, whatever speaks for it, and one of those
that it allows always is, whatever speaks against them: min_tokens forbids an end only where the
grammar can go on.

The draw depends on the logits, the seed and the position alone (model/noise.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from model.draw import best, draw
from model.guide import Mask, allows, barrier
from model.guide import masks as masks_of
from model.logits import Logits
from model.noise import key
from model.request import Request
from model.tally import Tally


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen token, and where asked for, log-probabilities: its own and the likeliest ones."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@torch.inference_mode()
def sample(
    logits: Logits, requests: Sequence[Request], eos_token_ids: tuple[int, ...]
) -> list[Choice | None]:
    """The next token of each request; row i belongs to request i. None where the row has failed.

    A request that wants the argmax and nothing else costs no look at its logits.
    """
    tokens: list[int | None] = [
        token if finite else None for token, finite in zip(logits.best, logits.finite, strict=True)
    ]
    wishing = [
        i
        for i, request in enumerate(requests)
        if tokens[i] is not None and (not request.params.plain or request.forced_token is not None)
    ]
    known = _forced(wishing, requests)
    masks = _masks([i for i in wishing if i not in known], requests)
    known |= _allowed_best(logits, masks, requests)
    for i, known_token in known.items():
        tokens[i] = known_token
    if free := [i for i in wishing if i not in known]:
        for i, token in _next_tokens(logits, free, requests, eos_token_ids, masks):
            tokens[i] = token
    choices = [None if token is None else Choice(token) for token in tokens]
    logged = [i for i in wishing if choices[i] and requests[i].params.logprobs is not None]
    if logged:
        for i, choice in _logged(logits.rows[logged], logged, choices, requests):
            choices[i] = choice
    return choices


def _forced(which: list[int], requests: Sequence[Request]) -> dict[int, int]:
    """The tokens of those requests that were given one, or whose grammar allows but one."""
    tokens = ((i, requests[i].forced_token) for i in which)
    return {i: token for i, token in tokens if token is not None}


def _masks(which: list[int], requests: Sequence[Request]) -> dict[int, Mask]:
    """What the grammars of those requests allow, for those that have one."""
    guides = {i: guide for i in which if (guide := requests[i].guide)}
    found = masks_of(list(guides.values())) if guides else []
    return dict(zip(guides, found, strict=True))


def _allowed_best(
    logits: Logits, masks: Mapping[int, Mask], requests: Sequence[Request]
) -> dict[int, int]:
    """The argmax of those that want no more than that, where their grammar allows it."""
    best = {i: logits.best[i] for i in masks if requests[i].params.greedy}
    return {
        i: token
        for i, token in best.items()
        if not _adjusts(requests[i]) and allows(masks[i], token)
    }


def _next_tokens(
    logits: Logits,
    which: list[int],
    requests: Sequence[Request],
    eos_token_ids: tuple[int, ...],
    masks: Mapping[int, Mask],
) -> list[tuple[int, int | None]]:
    """Row and token, for those of the requests. None where nothing is left to choose from."""
    changes = {i: i in masks or _adjusts(requests[i]) for i in which}
    changed = [i for i in which if changes[i]]
    others = [i for i in which if not changes[i]]
    some = [requests[i] for i in changed]
    rows = adjust(logits.rows[changed], some, eos_token_ids, [masks.get(i) for i in changed])
    adjusted = Logits.of(rows)
    alive = [n for n, finite in enumerate(adjusted.finite) if finite]
    tokens = dict(zip(alive, _choose(adjusted, alive, some), strict=True))
    return [
        *zip(others, _choose(logits, others, requests), strict=True),
        *((i, tokens.get(n)) for n, i in enumerate(changed)),
    ]


def _choose(logits: Logits, which: Sequence[int], requests: Sequence[Request]) -> list[int]:
    """Of each of those rows, the argmax or a draw."""
    drawn = [i for i in which if not requests[i].params.greedy]
    params = [requests[i].params for i in drawn]
    keys = [key(requests[i].params.seed, len(requests[i].token_ids)) for i in drawn]
    tokens = dict(zip(drawn, draw(logits.rows, drawn, params, keys), strict=True))
    return [tokens[i] if i in tokens else logits.best[i] for i in which]


# ---- what changes the logits


def _adjusts(request: Request) -> bool:
    params = request.params
    return bool(params.logit_bias) or params.penalizes or request.num_output < params.min_tokens


def adjust(
    rows: Tensor,
    requests: Sequence[Request],
    eos_token_ids: tuple[int, ...],
    masks: Iterable[Mask | None] = repeat(None),
) -> Tensor:
    """Each row of logits (R, vocabulary), in place, with bias, penalties and forbidden tokens.

    Repetition divides positive logits and multiplies negative ones of every token that the prompt
    or the output holds (Keskar et al. 2019, section 4.1). Presence subtracts once, frequency once
    per occurrence, both over the output only (OpenAI's definition). `masks` are those of grammars.
    """
    for row, request, mask in zip(rows, requests, masks, strict=False):
        params = request.params
        if params.logit_bias:
            row[_ids(list(params.logit_bias), row)] += _numbers(
                list(params.logit_bias.values()), row
            )
        if params.penalizes:
            _penalize(row, request)
        early = _early_ends(request, eos_token_ids)
        if mask is not None:
            _keep_to(row, mask, early)
        elif early:
            row[_ids(early, row)] = -torch.inf
    return rows


def _early_ends(request: Request, eos_token_ids: tuple[int, ...]) -> list[int]:
    """The tokens that must not come before min_tokens."""
    params = request.params
    if request.num_output >= params.min_tokens:
        return []
    return [*params.stop_token_ids, *(() if params.ignore_eos else eos_token_ids)]


def _keep_to(row: Tensor, mask: Mask, early: list[int]) -> None:
    """Forbid what the grammar does not allow, and early ends where it allows anything else."""
    limits = torch.from_numpy(barrier(mask))[: len(row)]
    if early:
        stricter = limits.clone()
        stricter[early] = -torch.inf
        limits = stricter if stricter.max() == 0 else limits
    row += limits.to(row.device)


def _penalize(row: Tensor, request: Request) -> None:
    params = request.params
    tally = request.tally = request.tally or Tally()
    tally.follow(request.token_ids, request.num_prompt)
    ids = _ids(tally.ids, row)
    logits = row[ids]
    factor = params.repetition_penalty
    logits = torch.where(logits > 0, logits / factor, logits * factor)
    counts = _numbers(tally.counts, row)
    logits -= params.presence_penalty * (counts > 0) + params.frequency_penalty * counts
    row[ids] = logits


def _ids(values: ArrayLike, row: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.int64)).to(row.device)


def _numbers(values: ArrayLike, row: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32)).to(row.device)


# ---- log-probabilities


def _logged(
    rows: Tensor, which: list[int], choices: Sequence[Choice | None], requests: Sequence[Request]
) -> list[tuple[int, Choice]]:
    """Those choices with log-probabilities of the model's own distribution: `rows` are theirs."""
    logprobs = rows.log_softmax(dim=-1)
    tops = [requests[i].params.logprobs or 0 for i in which]
    ids, values = best(logprobs, max(1, *tops))
    tokens = [choice.token_id for i in which if (choice := choices[i])]
    chosen = logprobs.gather(1, torch.tensor(tokens, device=rows.device).unsqueeze(-1))[:, 0]
    table = zip(which, tokens, chosen.tolist(), ids.tolist(), values.tolist(), tops, strict=True)
    return [
        (i, Choice(token, logprob, tuple(zip(ids[:top], values[:top], strict=True))))
        for i, token, logprob, ids, values, top in table
    ]
