"""What the sampler knows of one sequence."""

from dataclasses import dataclass, field

from model.protocol.sampling_params import SamplingParams
from model.sampling.grammar_matcher import GrammarMatcher
from model.sampling.token_counts import TokenCounts


@dataclass(slots=True, eq=False)
class SamplerState:
    """The tokens of a sequence so far, and how the next one is chosen."""

    token_ids: list[int]  # the prompt, then the output
    params: SamplingParams
    num_prompt: int = field(init=False)  # how many tokens the prompt has
    token_counts: TokenCounts | None = field(init=False, default=None)  # where penalties need it
    matcher: GrammarMatcher | None = field(init=False, default=None)  # where there is a grammar

    def __post_init__(self) -> None:
        self.num_prompt = len(self.token_ids)

    @property
    def num_output(self) -> int:
        return len(self.token_ids) - self.num_prompt

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt :]

    @property
    def forced_token(self) -> int | None:
        """The next token, where it is known without the logits."""
        forced = self.params.forced
        if forced and forced[0] == self.num_output:
            return forced[1]
        return self.matcher.forced[0] if self.matcher and self.matcher.forced else None

    @property
    def argmax_only(self) -> bool:
        """Whether the next token is known from the argmax alone, or without it."""
        if self.params.argmax_only:
            return True
        return self.params.logprobs is None and self.forced_token is not None
