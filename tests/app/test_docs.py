"""What the documents say of the code is there: options, fields, files and functions."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from app.api.native.types import GenerateBody
from app.settings import ClusterSettings

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "docs" / "settings.md"
COMMAND_LINE = ROOT / "docs" / "command-line.md"
WIRE = ROOT / "docs" / "wire.md"
HOW_IT_WORKS = ROOT / "docs" / "how-it-works.md"

# [text](target), <img src="target">, and [label]: target on a line of its own.
LINK = re.compile(r'\]\(([^)\s]+)|(?:src|href)="([^"]+)"|^\[[^\]]+\]:\s*(\S+)', re.MULTILINE)
# `name` in [text](target)
MENTION = re.compile(r"`([\w.]+)`\s+in\s+\[[^\]]+\]\(([^)\s#]+\.py)\)")


def markdown_files() -> list[Path]:
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "."]
    nested = (path for folder in folders for path in folder.rglob("*.md"))
    nested = (path for path in nested if "node_modules" not in path.parts)
    return sorted([*ROOT.glob("*.md"), *nested])


def prose(path: Path) -> str:
    """The text of a document without its code blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def rows(path: Path) -> dict[str, list[str]]:
    """The cells of every table row that begins with a `code` cell, by that cell."""
    lines = (line.strip() for line in prose(path).splitlines())
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return {row[0].strip("`"): row for row in cells if row[0].startswith("`")}


def broken_links(path: Path) -> list[str]:
    """The relative links of a Markdown file that lead to no file."""
    targets = [next(filter(None, match)) for match in LINK.findall(prose(path))]
    local = [target for target in targets if not re.match(r"[a-z][a-z0-9+.-]*:|#|//", target)]
    return [target for target in local if not (path.parent / target.partition("#")[0]).exists()]


def undefined_names(path: Path) -> list[str]:
    """Each `name` in [file](file.py) that the file does not define."""
    return [
        f"{name} in {target}"
        for name, target in MENTION.findall(prose(path))
        if name not in set(definitions(ast.parse((path.parent / target).read_text())))
    ]


def definitions(scope: ast.AST, prefix: str = "") -> Iterator[str]:
    """The functions and classes of a module, and what those classes define as Class.name."""
    for node in ast.iter_child_nodes(scope):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from definitions(node, f"{node.name}.")


def bounds(model: type[BaseModel], name: str) -> str | None:
    """'low to high' as the schema has it, or None for a field that is no bounded number."""
    schema: dict[str, Any] = model.model_json_schema()["properties"][name]
    number = schema.get("anyOf", [schema])[0]
    return f"{number['minimum']} to {number['maximum']}" if "minimum" in number else None


def test_each_room_is_described_as_it_says_itself() -> None:
    rooms = [
        path.parent
        for top in ("tickertape", "app", "model")
        for path in (ROOT / top).rglob("__init__.py")
    ]
    described = rows(HOW_IT_WORKS)
    for room in rooms:
        said = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
        assert said
        sentence = " ".join(said.partition("\n\n")[0].split())
        assert described[f"{room.relative_to(ROOT)}/"][1] == sentence


@pytest.mark.parametrize("name", ClusterSettings.model_fields)
def test_every_setting_is_documented(name: str) -> None:
    row = rows(SETTINGS).get(f"--{name.replace('_', '-')}")
    assert row, f"docs/settings.md has no row for {name}"
    default = ClusterSettings.model_fields[name].default
    shown = "none" if default is None else f"`{default}`"
    assert row[1:4] == [f"`TICKERTAPE_{name.upper()}`", f"`{name}`", shown]


def test_no_setting_is_documented_that_does_not_exist() -> None:
    documented = {name for name in rows(SETTINGS) if name.startswith("--")}
    assert documented == {f"--{name.replace('_', '-')}" for name in ClusterSettings.model_fields}


def test_every_command_and_its_own_flags_are_documented() -> None:
    from app.cli import app
    from app.cli.chat_commands import HELP
    from app.cli.options import SAMPLING

    documented = set(rows(COMMAND_LINE))
    commands = {command.name for command in app.registered_commands}
    flags = {f"--{name.replace('_', '-')}" for name in SAMPLING}
    own = {"--url", "--api-key", "--system"}
    in_chat = set(re.findall(r"^/\w+", HELP, re.MULTILINE))
    assert documented == commands | flags | own | in_chat


@pytest.mark.parametrize("name", GenerateBody.model_fields)  # GenerateFields, and stream
def test_every_request_field_is_documented(name: str) -> None:
    row = rows(WIRE).get(name)
    assert row, f"docs/wire.md has no row for {name}"
    field = GenerateBody.model_fields[name]
    shown = field.default if isinstance(field.default, str) else None
    default = f"`{shown or json.dumps(field.default)}`"
    if name in ("prompt", "messages"):
        default = "one of the two"
    assert row[3] == default
    assert (bounds(GenerateBody, name) or "") in row[2]


@pytest.mark.parametrize("path", markdown_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(path: Path) -> None:
    assert broken_links(path) == []


def test_functions_are_where_the_text_says() -> None:
    assert undefined_names(HOW_IT_WORKS) == []


@pytest.mark.parametrize(
    "name",
    ["masked_attention", "visible", "rotate", "KVCache.read", "best", "draw", "rng_key", "gumbel"],
)
def test_the_mathematics_is_explained(name: str) -> None:
    assert name in {mentioned for mentioned, _ in MENTION.findall(prose(HOW_IT_WORKS))}


def test_what_is_wrong_would_be_found(tmp_path: Path) -> None:
    """The negative control for links and names."""
    (tmp_path / "code.py").write_text("class Here:\n    def method(self): ...\n")
    document = tmp_path / "document.md"
    document.write_text(
        "`Here.method` in [code](code.py), `gone` in\n[code](code.py), [no](no.md#part), "
        '[web](https://example.org), [own](#part), <img src="no.png">\n\n[label]: no.txt\n'
        "```\n[not](a-link)\n```\n"
    )
    assert undefined_names(document) == ["gone in code.py"]
    assert broken_links(document) == ["no.md#part", "no.png", "no.txt"]
