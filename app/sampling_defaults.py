"""What stands for the sampling fields that a request leaves out."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from app.guard import strict_json
from app.settings import EngineSettings, SettingsError
from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.hub import is_built_in
from model.checkpoints.sampling_defaults import BUILT_IN, from_generation_config
from model.protocol.sampling_params import SamplingDefaults, SamplingParams


def sampling_defaults(settings: EngineSettings, checkpoint: Checkpoint) -> SamplingDefaults:
    """As --generation-config wants them. Raises SettingsError when its file cannot be read."""
    match settings.generation_config:
        case "auto":
            return BUILT_IN if is_built_in(settings.model) else checkpoint.sampling_defaults
        case "none":
            return SamplingDefaults()
        case path:
            return from_generation_config(_read(Path(path)))


def _read(path: Path) -> Mapping[str, Any]:
    file = path
    try:
        file = path / "generation_config.json" if path.is_dir() else path
        found = strict_json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"--generation-config (or TICKERTAPE_GENERATION_CONFIG): {file} cannot be read "
            f"({error}); give auto, none, or the path of a generation_config.json"
        ) from None
    if not isinstance(found, dict):
        raise SettingsError(
            f"--generation-config (or TICKERTAPE_GENERATION_CONFIG): {file} has no JSON object; "
            "give auto, none, or the path of a generation_config.json"
        )
    return found


def chosen(
    params: SamplingParams, given: Collection[str], defaults: SamplingDefaults
) -> dict[str, Any]:
    """The sampler's options for a request: as `given`, else the model's own, else as in `params`.

    A greedy answer is the argmax: of the model's own nothing counts for it.
    """
    own = msgspec.structs.asdict(defaults)
    found = {
        name: getattr(params, name) if name in given or value is None else value
        for name, value in own.items()
    }
    if found["temperature"] == 0:
        return {name: getattr(params, name) for name in own} | {"temperature": 0.0}
    return found
