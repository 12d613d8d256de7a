"""Four lists of one length, whatever candidates and entries there are."""

from app.api.openai.completions_chunks import logprobs_data
from app.tapes.tape import Entry
from model.protocol.messages import Logprob, TopLogprob


def entry(text: str, logprob: Logprob | None) -> Entry:
    return Entry(text, 7, logprob)


def test_of_candidates_with_one_text_the_likeliest_is_told() -> None:
    """Parts of characters are different tokens with one text."""
    tops = (TopLogprob(1, "\ufffd", -0.5), TopLogprob(2, "a", -1.0), TopLogprob(3, "\ufffd", -2.0))
    for order in (tops, tops[::-1]):
        found = logprobs_data([entry("b", Logprob(9, "b", -4.0, order))], 0)
        assert found
        assert found["top_logprobs"] == [{"\ufffd": -0.5, "a": -1.0, "b": -4.0}]
        assert [*found["top_logprobs"][0]] == ["\ufffd", "a", "b"], "likeliest first"
    sampled = logprobs_data([entry("\ufffd", Logprob(3, "\ufffd", -2.0, tops))], 0)
    assert sampled
    assert sampled["top_logprobs"] == [{"\ufffd": -0.5, "a": -1.0}]
    assert sampled["token_logprobs"] == [-2.0], "its own"


def test_without_candidates_the_token_is_the_only_one() -> None:
    found = logprobs_data([entry("b", Logprob(9, "b", -4.0, ()))], 3)
    assert found == {
        "tokens": ["b"],
        "token_logprobs": [-4.0],
        "top_logprobs": [{"b": -4.0}],
        "text_offset": [3],
    }


def test_an_entry_without_logprob_moves_the_offset_alone() -> None:
    one = Logprob(9, "b", -4.0, ())
    found = logprobs_data([entry("xy", None), entry("b", one), entry("", None), entry("b", one)], 1)
    assert found
    assert found["text_offset"] == [3, 4]
    assert {len(values) for values in found.values()} == {2}
    assert logprobs_data([entry("xy", None)], 0) is None
