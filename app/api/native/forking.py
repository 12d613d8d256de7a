"""What it takes to fork a tape: the request is checked as any that generates."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from app.admission import check_token_ids
from app.api.native.fork_types import ForkBody
from app.api.respond import claim_of, policy_of
from app.caller import Caller
from app.errors import APIError, context_exceeded
from app.services import Services
from app.tapes.fork import Fork
from app.tapes.plan import Plan
from app.tapes.tape import Beginning, Entry, Tape, pages


async def fork(
    services: Services, caller: Caller, tape: Tape, body: ForkBody, key: str | None
) -> Tape:
    """The new tape, or the one that this request has begun before. Raises APIError."""
    claim = claim_of(caller, key, body, of=tape.id)
    if claim and (begun := await services.registry.claimed(claim)):
        return begun
    if tape.recipe is None:
        raise APIError(409, "this tape cannot be forked; ask again for it", code="entries_gone")
    with services.limits.begin(caller.client, len(tape.choices)) as place:
        services.admission.check_load(caller.client, len(tape.choices))
        tail = await _checked(services, caller, body)
        ends = services.admission.tokenizer.end_ids
        wanted = Fork(tape, body.after, body.changes(), body.token_id, tail, ends)
        policy = policy_of(services.settings, body)
        entries = wanted.entries()
        plan = wanted.plan(tape.recipe, entries, client=caller.client, policy=policy, claim=claim)
        plan = _fitting(
            plan, services.admission.context, exact="max_length" in body.model_fields_set
        )
        size, counts = await _measured(services, caller, entries)
        beginning = Beginning(entries, size, counts, wanted.ends_among(counts, plan))
        services.admission.check_load(caller.client, len(tape.choices))
        forked = await services.registry.create(plan, tape, beginning)
        place.hold(forked)
        if services.tracing:
            services.tracing.forked(forked, plan.params)
        return forked


async def _measured(
    services: Services, caller: Caller, entries: Sequence[Entry]
) -> tuple[int, Counter[int]]:
    """How many bytes they take, and how many each choice has; a page at a time."""
    size, counts = 0, Counter[int]()
    for page in pages(entries):
        await services.turns.take(caller.client)
        size += sum(entry.size for entry in page)
        counts.update(entry.index for entry in page)
    return size, counts


async def _checked(services: Services, caller: Caller, body: ForkBody) -> Sequence[int]:
    """The tokens of later turns. Raises APIError for ids that the model does not have."""
    admission = services.admission
    check_token_ids(body, admission.config.vocab_size)
    if body.token_id is not None:
        admission.check_ids([body.token_id], "token_id")
    conversation = body.conversation()
    if conversation is None:
        return ()
    (tail,) = await admission.token_ids([conversation], "messages", caller)
    return tail


def _fitting(plan: Plan, context: int, *, exact: bool) -> Plan:
    """As with any request, a length that was given must fit; else it is lowered to what does."""
    longest = max(map(len, plan.prompts))
    wanted, room = plan.params.max_tokens, context - longest
    if wanted <= room:
        return plan
    if exact or room < 1:
        raise context_exceeded(
            "max_length" if exact else "messages",
            context,
            f"the fork has {longest} tokens of prompt and asks for {wanted} more; give a smaller "
            "max_length, or fewer messages",
        )
    return replace(plan, params=msgspec.structs.replace(plan.params, max_tokens=room))
