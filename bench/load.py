"""What one run asks for, and when: random prompts, closed-loop or Poisson arrivals. No sockets."""

import random
from collections.abc import Iterator

import msgspec

# Common words, each one token of most vocabularies, so that n words are about n tokens.
_COMMON = """
time year people way day man thing woman life child world school state family student group
country problem hand part place case week company system program question work government number
night point home water room mother area money story fact month lot right study book eye job word
business issue side kind head house service friend father power hour game line end member law car
city community name president team minute idea body information back parent face others level
office door health person art war history party result change morning reason research girl guy
moment air teacher force education foot boy age policy music market sense nation plan college
interest death experience effect class control field road table court ground street image paper
space society value model data process river green stone light color sound winter summer island
forest mountain north south train ship bridge letter window garden animal horse bird fish tree
flower bread coffee sugar salt gold silver iron glass rock sand rain snow wind cloud storm fire
earth
"""
WORDS = _COMMON.split()


class Load(msgspec.Struct, frozen=True):
    """One run of greedy requests that all go to their full length.

    In a closed loop, `concurrency` streams each ask again as soon as they are served. With a
    `rate`, requests arrive at that many a second on average, however many are being served.
    `seed` decides the prompts and the arrivals: another seed, and no prefix cache can help.
    """

    requests: int
    concurrency: int = 1
    rate: float | None = None
    words: int = 64
    new_tokens: int = 128
    seed: str = ""

    @property
    def label(self) -> str:
        return f"{self.rate:g}/s" if self.rate else str(self.concurrency)

    def prompts(self) -> list[str]:
        draw = random.Random(f"prompts {self.seed}")
        return [" ".join(draw.choices(WORDS, k=self.words)) for _ in range(self.requests)]

    def arrivals(self) -> Iterator[float]:
        """When each request comes, in seconds after the start: exponential gaps (Poisson)."""
        assert self.rate, "only an open loop has a timetable"
        draw = random.Random(f"arrivals {self.seed}")
        when = 0.0
        for _ in range(self.requests):
            when += draw.expovariate(self.rate)
            yield when
