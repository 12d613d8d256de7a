"""Where answers come from: a running server, or the model in this process."""

from typing import TYPE_CHECKING, Any

from app.settings import EngineSettings, SettingsError, load
from tickertape import Client

if TYPE_CHECKING:
    from app.local_model import LocalModel


def source(url: str | None, api_key: str | None, flags: dict[str, Any]) -> "Client | LocalModel":
    """To be entered with `async with`. Raises SettingsError for flags of the other."""
    if url is None:
        from app.local_model import LocalModel

        return LocalModel(load(EngineSettings, flags))
    if ignored := [
        f"--{name.replace('_', '-')}" for name, value in flags.items() if value is not None
    ]:
        raise SettingsError(f"{', '.join(ignored)}: the server at --url decides that; leave out")
    return Client(url, api_key=api_key)


def named(url: str | None, flags: dict[str, Any]) -> str:
    """What to call it while it is not there yet."""
    return url or str(load(EngineSettings, flags).model)
