"""The arrows of the house point one way, and the client is light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What lies on the way of a token, top to bottom. A module imports none of a floor above its own.
FLOORS = [
    ["app.cli"],
    ["app.start"],
    ["app.server", "app.cluster"],
    ["app.prefix_router"],
    ["app.balance"],
    ["app.local"],
    ["app.main"],
    ["app.openapi"],
    ["app.routes"],
    ["app.http_limits"],
    ["app.requests"],
    ["app.json_answer", "app.arrivals"],
    ["app.services"],
    ["app.admission", "app.security", "app.limits", "app.hosts", "app.cors"],
    ["app.sampling_defaults"],
    ["app.caller"],
    ["app.sse", "app.dash"],
    ["app.metrics", "app.logs", "app.tracing", "app.banner"],
    ["app.dialects"],
    ["app.tapes"],
    ["app.engine_link", "app.preparation"],
    [
        "app.schemas",
        "app.settings",
        "app.child_process",
        "app.engine_watchdog",
        "app.errors",
        "app.options",
        "app.loopback",
        "app.own_redis",
        "app.client",
        "app.client_http",
        "app.connections",
        "app.event_stream",
        "app.fair_share",
        "app.normal_requests",
        "app.page_files",
        "app.standard_streams",
        "app.strict_json",
        "app.frame_cache",
        "app.listening",
        "app.sending",
        "app.turns",
    ],
    ["model"],
]

# What the service may use of the machine: nothing that needs torch.
FREE_OF_TORCH = {
    "model.messages",
    "model.sampling",
    "model.tokenizer",
    "model.config",
    "model.errors",
    "model.grammar",
    "model.loading.checkpoint",
    "model.loading.hub",
    "model.loading.sampling_defaults",
    "model.loading.pulled",
    "model.loading.stored",
    "model.memory",
}


def modules() -> list[Path]:
    return [path for top in ("app", "model") for path in sorted((ROOT / top).rglob("*.py"))]


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
    for number, names in enumerate(FLOORS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
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
    tops = {module.partition(".")[0] for module in imported(path)}
    if mine.startswith("app"):
        assert not tops & {"torch", "safetensors", "gguf"}
        used = {m for m in imported(path) if m.startswith("model.") and is_module(m)}
        assert used <= FREE_OF_TORCH
    else:
        assert not tops & {"asyncio", "fastapi", "starlette", "uvicorn", "httpx", "app"}


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists()


def test_a_wrong_arrow_would_be_found(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def late():\n    from app.routes import generate\n")
    assert "app.routes.generate" in set(imported(wrong))
    above, below = floor("app.routes.generate"), floor("app.tapes.tape")
    assert above is not None
    assert below is not None
    assert above < below


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("app.client", {"torch", "fastapi", "starlette", "uvicorn", "pydantic"}),
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
