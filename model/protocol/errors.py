"""The one way in which a model on disk fails. Knows nothing of formats."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ModelLoadError(Exception):
    """A model that cannot be served: one readable line that tells the reader what to do."""


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Put `path` in front of every ModelLoadError raised inside: inner code need not know it.

    Raises:
        ModelLoadError: the one raised inside, with the path; also for an OSError on the way.
    """
    try:
        yield
    except ModelLoadError as error:
        raise ModelLoadError(f"{path}: {error}") from error.__cause__
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read ({error.strerror or error})") from error
