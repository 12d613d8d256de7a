"""A tiny model is measured here: whether the benchmark is right does not depend on its size."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import RunningServer, running
from tests.tiny import tiny_llama


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token is a byte; its context has room for a prompt of 64 words and 200 tokens after it."""
    return tiny_llama(tmp_path_factory.mktemp("tiny"), context=1024)


@pytest.fixture(scope="session")
def server(tiny_model: Path) -> Iterator[RunningServer]:
    """In place of the default model's."""
    with running(tiny_model / "log", "--model", str(tiny_model)) as server:
        yield server
        assert server.stop() == 0, server.log.read_text()
