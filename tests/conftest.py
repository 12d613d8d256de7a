"""What tests of every kind share."""

from pathlib import Path

import pytest

from model.loading.hub import DEFAULT_MODEL, resolve


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The default model's file: real weights."""
    return resolve(DEFAULT_MODEL)
