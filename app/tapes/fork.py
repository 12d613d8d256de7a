"""A new tape that begins as another one did: its first entries are copies."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from app.errors import APIError, out_of_range
from app.tapes.plan import Plan, ReaderPolicy
from app.tapes.recipe import Recipe, Turn
from app.tapes.tape import Entry, IdempotencyClaim, Tape
from model.protocol.messages import FinishReason, ids_of
from model.protocol.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Fork:
    """Where `tape` is forked, and into what.

    `changes` are fields of SamplingParams. `token_id` is the next token. `tail` are the tokens of
    later turns; the next token is the first after them. `ends` are those that end a turn.
    """

    tape: Tape
    after: int
    changes: Mapping[str, Any]
    token_id: int | None = None
    tail: Sequence[int] = ()
    ends: Collection[int] = ()

    def entries(self) -> list[Entry]:
        """Those to copy. Raises APIError: 409 when some are gone, 422 when there are fewer."""
        tape, after = self.tape, self.after
        shown = min(tape.last, tape.num_tokens)
        if after > shown:
            now = "ended after" if tape.end else "has, up to now,"
            raise out_of_range(
                "after", f"this tape {now} {shown} entries; fork after one from 0 to {shown}"
            )
        if after and tape.num_dropped:
            raise APIError(
                409,
                f"entries 1 to {tape.num_dropped} of this tape are kept no longer; fork after 0, "
                "or raise --max-tape-memory",
                param="after",
                code="entries_gone",
            )
        return tape.entries[:after]

    def plan(
        self,
        recipe: Recipe,
        entries: Sequence[Entry],
        *,
        client: str,
        policy: ReaderPolicy,
        claim: IdempotencyClaim | None,
    ) -> Plan:
        """What the fork is to hold, after these `entries`. Raises APIError."""
        turn = _turn_at(recipe, self.after)
        prompts = [ids_of(prompt)[: turn.num_prompt or None] for prompt in recipe.prompts]
        turns = [one for one in recipe.turns if one.first <= self.after]
        if self.tail:
            self._check_one_choice("messages")
            answer = [entry.token_id for entry in entries[turn.first :]]
            if answer and answer[-1] in self.ends:  # the template writes that of an earlier answer
                answer.pop()
            turns = turns or [Turn(0, len(prompts[0]))]
            prompts = [[*prompts[0], *answer, *self.tail]]
            turn = Turn(self.after, len(prompts[0]))
            turns = [*turns, turn]
        return Plan(
            prompts,
            self._params(recipe, turn),
            policy,
            n=recipe.n,
            priority=recipe.priority,
            salt=recipe.salt,
            owner=self.tape.owner,
            client=client,
            claim=claim,
            parent=self.tape.id,
            forked_at=self.after,
            turns=turns,
        )

    def ends_among(self, counts: Mapping[int, int], plan: Plan) -> dict[int, FinishReason]:
        """The choices that are over with so many tokens. Raises APIError when all are."""
        held = plan.turns[-1].first if plan.turns else 0
        reasons: dict[int, FinishReason] = {}
        for index, choice in enumerate(self.tape.choices):
            if counts[index] - held >= plan.params.max_tokens:
                reasons[index] = "length"
            elif (
                choice.finish_reason == "stop"
                and counts[index] == len(choice.output_ids)
                and not self.tail
            ):
                reasons[index] = "stop"
        if len(reasons) == len(self.tape.choices):
            mend = "fork after an earlier one, or append messages"
            if "length" in reasons.values():
                mend = f"give a max_length above {self.after}, or fork after an earlier one"
            raise out_of_range("after", f"this tape ended after entry {self.after}; {mend}")
        return reasons

    def _params(self, recipe: Recipe, turn: Turn) -> SamplingParams:
        """`max_tokens` among the changes counts all entries of the tape, so do the request's."""
        changes = dict(self.changes)
        if (length := changes.get("max_tokens")) is not None:
            if length <= self.after:
                raise out_of_range(
                    "max_length", f"counts the copied entries, too; it must be above {self.after}"
                )
            changes["max_tokens"] = length - turn.first
        if self.token_id is not None:
            self._check_one_choice("token_id")
            changes["forced"] = self.after - turn.first, self.token_id
        else:
            changes["forced"] = _still_to_come(recipe.params.forced, self.after - turn.first)
        return msgspec.structs.replace(recipe.params, **changes)

    def _check_one_choice(self, param: str) -> None:
        if len(self.tape.choices) > 1:
            raise out_of_range(
                param, f"this tape has {len(self.tape.choices)} choices; it needs one with a single"
            )


def _turn_at(recipe: Recipe, after: int) -> Turn:
    """The turn that goes on after this entry. Without any, all of the prompt comes first."""
    turns = [one for one in recipe.turns if one.first <= after]
    return turns[-1] if turns else Turn(0, 0)


def _still_to_come(forced: tuple[int, int] | None, position: int) -> tuple[int, int] | None:
    return forced if forced and forced[0] >= position else None
