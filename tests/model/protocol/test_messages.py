"""The process boundary: every message survives it, however it is cut; nothing is pickled."""

import ast
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import model
from model.protocol.messages import (
    MAX_FRAME,
    Cancel,
    Command,
    Configure,
    Failed,
    Finished,
    FrameError,
    Gauges,
    Generate,
    Logprob,
    Pause,
    Ready,
    Report,
    Started,
    StepReport,
    Token,
    TopLogprob,
    Unpacker,
    Unpause,
    command_decoder,
    pack,
    report_decoder,
)
from model.protocol.sampling_params import SamplingParams

TEXT = st.text(max_size=20)
COUNT = st.integers(0, 2**40)
OPTIONAL = st.none() | COUNT
NUMBER = st.floats(allow_nan=False)
PARAMS = st.builds(
    SamplingParams,
    max_tokens=COUNT,
    seed=st.integers(-(2**63), 2**64 - 1),
    temperature=NUMBER,
    top_k=COUNT,
    logit_bias=st.dictionaries(COUNT, NUMBER, max_size=3),
    stop=st.lists(TEXT, max_size=3).map(tuple),
    stop_token_ids=st.lists(COUNT, max_size=3).map(tuple),
    ignore_eos=st.booleans(),
    logprobs=st.none() | st.integers(0, 20),
)
COMMANDS = (
    st.builds(Configure, TEXT, TEXT, COUNT, COUNT, OPTIONAL, COUNT, OPTIONAL, st.booleans())
    | st.builds(Generate, TEXT, st.lists(COUNT, max_size=5), PARAMS, st.integers(-9, 9), TEXT)
    | st.builds(Cancel, TEXT)
    | st.builds(Pause, TEXT)
    | st.builds(Unpause, TEXT)
)
LOGPROBS = st.builds(
    Logprob, COUNT, TEXT, NUMBER, st.lists(st.builds(TopLogprob, COUNT, TEXT, NUMBER), max_size=3)
)
REASONS = st.sampled_from(["stop", "length", "cancelled", "timeout", "shutdown", "error"])
REPORTS = (
    st.builds(Ready, TEXT, TEXT, COUNT, COUNT, NUMBER, TEXT)
    | st.builds(Failed, TEXT)
    | st.builds(
        StepReport,
        st.builds(Gauges, COUNT, COUNT, COUNT, COUNT),
        st.lists(st.builds(Started, TEXT, NUMBER, COUNT), max_size=3),
        st.lists(st.builds(Token, TEXT, COUNT, TEXT, st.none() | LOGPROBS), max_size=3),
        st.lists(st.builds(Finished, TEXT, REASONS, st.none() | TEXT), max_size=3),
    )
)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({position % (len(data) + 1) for position in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(ends)]


def unpacked(pieces: list[bytes]) -> list[bytes]:
    unpacker = Unpacker()
    return [body for piece in pieces for body in unpacker.feed(piece)]


def check_every_cut(frames: list[bytes], bodies: list[bytes], cuts: list[int]) -> None:
    data = b"".join(frames)
    assert unpacked([data]) == bodies
    assert unpacked([bytes([byte]) for byte in data]) == bodies
    assert unpacked(cut(data, cuts)) == bodies


CUTS = st.lists(st.integers(0, 10_000), max_size=10)


@settings(deadline=None)
@given(messages=st.lists(COMMANDS, max_size=4), cuts=CUTS)
def test_commands_come_back_whole_from_any_cuts(messages: list[Command], cuts: list[int]) -> None:
    frames = [pack(message) for message in messages]
    check_every_cut(frames, [frame[4:] for frame in frames], cuts)
    assert [command_decoder.decode(frame[4:]) for frame in frames] == messages


@settings(deadline=None)
@given(messages=st.lists(REPORTS, max_size=4), cuts=CUTS)
def test_reports_come_back_whole_from_any_cuts(messages: list[Report], cuts: list[int]) -> None:
    frames = [pack(message) for message in messages]
    check_every_cut(frames, [frame[4:] for frame in frames], cuts)
    assert [report_decoder.decode(frame[4:]) for frame in frames] == messages


def test_frames_are_yielded_as_soon_as_they_are_whole() -> None:
    frame = pack(Cancel("a"))
    unpacker = Unpacker()
    assert list(unpacker.feed(frame[:-1])) == []
    assert list(unpacker.feed(frame[-1:] + frame[:3])) == [frame[4:]]
    assert list(unpacker.feed(frame[3:])) == [frame[4:]]


@pytest.mark.parametrize("length", [MAX_FRAME + 1, 2**32 - 1])
def test_a_frame_that_claims_too_much_is_refused_at_its_length(length: int) -> None:
    """Only the four bytes of the length have come: nothing was allocated for the rest."""
    unpacker = Unpacker()
    header = length.to_bytes(4, "big")
    assert list(unpacker.feed(header[:3])) == []
    with pytest.raises(FrameError, match=f"{length} bytes is larger than {MAX_FRAME}"):
        list(unpacker.feed(header[3:]))


def test_a_frame_of_the_largest_size_is_waited_for() -> None:
    assert list(Unpacker().feed(MAX_FRAME.to_bytes(4, "big") + b"some")) == []


PICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def unpickling(source: str) -> list[str]:
    """What in this source can execute data: imports of picklers, `torch.load`, `allow_pickle`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names):
                found += [name.name for name in names if name.name.split(".")[0] in PICKLERS]
            case ast.ImportFrom(module=str(name)) if name.split(".")[0] in PICKLERS:
                found.append(name)
            case ast.ImportFrom(module="torch", names=names):
                found += ["torch.load" for name in names if name.name == "load"]
            case ast.Attribute(ast.Name("torch"), "load"):
                found.append("torch.load")
            case ast.keyword("allow_pickle"):
                found.append("allow_pickle")
    return found


def test_nothing_in_the_source_unpickles() -> None:
    """By syntax, not by grep: a docstring may say that nothing is pickled."""
    root = Path(model.__file__).parents[1]
    files = [file for part in ("app", "model") for file in (root / part).rglob("*.py")]
    assert len(files) > 30
    assert {file: found for file in files if (found := unpickling(file.read_text()))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "import torch\ntorch.load('x')",
        "from torch import load",
        "numpy.load('x', allow_pickle=True)",
    ],
)
def test_unpickling_is_found(source: str) -> None:
    """The negative control."""
    assert unpickling(source)
