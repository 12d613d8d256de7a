"""The arrows of the house point one way, and the client is light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The rooms of each house, top to bottom. A module imports none of a room above its own.
FLOORS = [
    "app.cli",
    "app.cluster",
    "app.start",
    "app.server",
    "app.main",
    "app.local_model",
    "app.api",
    "app.services",
    "app.admission",
    "app.sampling_defaults",
    "app.readers",
    "app.sockets",
    "app.observability",
    "app.sse",
    "app.caller",
    "app.tapes",
    "app.processes",
    "app.guard",
    "app.settings",
    "app.errors",
    "model.tokenizer_process",
    "model.process",
    "model.engine",
    "model.backends",
    "model.native",
    "model.decoder",
    "model.scheduling",
    "model.sampling",
    "model.processors",
    "model.checkpoints",
    "model.text",
    "model.protocol",
    "tickertape",
]

# What the service may use of the machine: it needs no torch.
OF_THE_MODEL = {"protocol", "text", "checkpoints"}

# Who may use the client.
WITH_CLIENT = ("app.cli", "app.local_model")


def modules() -> list[Path]:
    return [
        path
        for top in ("app", "model", "tickertape")
        for path in sorted((ROOT / top).rglob("*.py"))
    ]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports anywhere, in functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "absolute imports only"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor(module: str) -> int | None:
    for number, room in enumerate(FLOORS):
        if module == room or module.startswith(f"{room}."):
            return number
    return None


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_no_module_imports_one_above_it(path: Path) -> None:
    own = floor(name_of(path))
    if own is None:
        assert path.name == "__init__.py", f"{name_of(path)} has no floor in the house"
        return
    for module in imported(path):
        other = floor(module)
        assert other is None or other >= own, f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_each_process_keeps_to_its_libraries(path: Path) -> None:
    mine = name_of(path)
    found = set(imported(path))
    tops = {module.partition(".")[0] for module in found}
    if mine.startswith("app"):
        assert not tops & {"torch", "safetensors", "gguf"}
        assert {m.split(".")[1] for m in found if m.startswith("model.")} <= OF_THE_MODEL
        assert "tickertape" not in tops or mine.startswith(WITH_CLIENT)
    elif mine.startswith("model"):
        assert not tops & {"asyncio", "fastapi", "starlette", "uvicorn", "httpx"}
        assert not tops & {"app", "tickertape"}
    else:
        assert not tops & {"app", "model"}


@pytest.mark.parametrize("folder", [path for path in modules() if path.name == "__init__.py"])
def test_each_room_says_what_it_is(folder: Path) -> None:
    assert ast.get_docstring(ast.parse(folder.read_text())), folder


@pytest.mark.parametrize(("top", "most"), [("app", 12), ("model", 6), ("tickertape", 6)])
def test_few_files_lie_outside_of_rooms(top: str, most: int) -> None:
    assert len(list((ROOT / top).glob("*.py"))) <= most


def test_a_wrong_arrow_would_be_found(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def late():\n    from app.api.native import generate\n")
    assert "app.api.native.generate" in set(imported(wrong))
    above, below = floor("app.api.native.generate"), floor("app.tapes.tape")
    assert above is not None
    assert below is not None
    assert above < below


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("tickertape.client", {"torch", "fastapi", "starlette", "uvicorn", "pydantic"}),
        ("app.main", {"torch", "transformers"}),
        ("app.server", {"torch", "transformers"}),
        ("app.cli", {"torch", "fastapi"}),
        ("app.start", {"torch", "fastapi", "gguf"}),
        ("model.process", {"fastapi", "starlette", "uvicorn", "httpx"}),
    ],
)
def test_what_a_fresh_interpreter_loads(module: str, forbidden: set[str]) -> None:
    code = f"import {module}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not forbidden & set(loaded.stdout.split())
