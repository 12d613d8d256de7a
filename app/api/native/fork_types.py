"""The wire types of POST /v1/tapes/{id}/fork."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from app.api.openai.chat_types import Messages
from app.api.sampling_fields import DrawFields, LeavingFields, TokenId, as_the_sampler_has_it
from app.api.validation import Range
from model.protocol import sampling_params
from model.protocol.messages import Conversation
from model.protocol.sampling_params import fresh_seed

_RENAMED = {"max_length": "max_tokens"}
_NOT_SAMPLING = frozenset({"after", "token_id", "messages"} | LeavingFields.model_fields.keys())


class ForkBody(DrawFields, LeavingFields):
    """What is to be different from `after` on. What is left out stays as it was."""

    model_config = ConfigDict(strict=True)

    after: Annotated[int, Range(0, 2**31 - 1)] = Field(
        description="Copy the entries up to this one; 0 copies none."
    )
    max_length: Annotated[int, Range(1, 2**20, of="length")] = Field(
        100, description="How many entries of tokens at most, the copied ones included."
    )
    logprobs: Annotated[int, Range(0, sampling_params.MAX_LOGPROBS)] = Field(
        0, description="Log-probabilities of the new tokens, with so many alternatives."
    )
    token_id: TokenId | None = Field(None, description="The next token, whatever the model says.")
    messages: Messages = Field(
        [], description="Turns that come after the copied entries; the model answers them."
    )

    def changes(self) -> dict[str, Any]:
        """The fields of SamplingParams that were given."""
        given = self.model_fields_set - _NOT_SAMPLING
        changes = {
            _RENAMED.get(name, name): as_the_sampler_has_it(getattr(self, name)) for name in given
        }
        if "seed" in given and self.seed is None:
            changes["seed"] = fresh_seed()
        return changes

    def conversation(self) -> Conversation | None:
        if not self.messages:
            return None
        return Conversation([message.turn() for message in self.messages], continues=True)


class Forked(BaseModel):
    tape: str
    parent: str
    forked_at: int
