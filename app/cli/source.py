"""Where answers come from: a running server, or the model in this process."""

from typing import TYPE_CHECKING, Any

from app.client import Client
from app.options import SettingsError, load
from app.settings import EngineSettings

if TYPE_CHECKING:
    from app.local import LocalModel


def source(url: str | None, api_key: str | None, flags: dict[str, Any]) -> "Client | LocalModel":
    """To be entered with `async with`. Raises SettingsError for flags of the other."""
    if url is None:
        from app.local import LocalModel

        return LocalModel(load(EngineSettings, flags))
    if ignored := [
        f"--{name.replace('_', '-')}" for name, value in flags.items() if value is not None
    ]:
        raise SettingsError(f"{', '.join(ignored)}: the server at --url decides that; leave out")
    return Client(url, api_key=api_key)


def named(url: str | None, flags: dict[str, Any]) -> str:
    """What to call it while it is not there yet."""
    return url or str(load(EngineSettings, flags).model)
