"""`tickertape chat` on a terminal: editing, history, commands, and Ctrl-C."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.cli.test_cli import one_line, run
from tests.server import TICKERTAPE, RunningServer, running
from tests.terminal import CTRL_C, CTRL_D, UP, Terminal, on_terminal
from tests.tiny import CHAT_TEMPLATE, tiny_llama


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes conversations and never ends an answer by itself: random bytes."""
    path = tiny_llama(tmp_path_factory.mktemp("talker"), CHAT_TEMPLATE, context=100_000)
    for file in (path / "config.json", path / "generation_config.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": None}))
    return path


@pytest.fixture(scope="module")
def talking_server(
    talker: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    log = tmp_path_factory.mktemp("talking") / "log"
    with running(log, "--model", str(talker)) as server:
        yield server
        assert server.stop() == 0, server.log.read_text()


@pytest.fixture(params=["there", "here"])
def model(request: pytest.FixtureRequest, talking_server: RunningServer, talker: Path) -> list[str]:
    """A server by host:port, and the model in the process itself."""
    if request.param == "there":
        return ["--url", talking_server.url.removeprefix("http://")]
    return ["--model", str(talker)]


@contextlib.contextmanager
def chatting(home: Path, *arguments: str) -> Iterator[Terminal]:
    """A chat whose prompt has been shown; its history lies in `home`."""
    command = [str(TICKERTAPE), "chat", "--seed", "1", *arguments]
    with on_terminal(command, {"XDG_STATE_HOME": str(home), "HOME": str(home)}) as terminal:
        terminal.until("/help lists commands")
        terminal.until("you: ")
        yield terminal


def saved(terminal: Terminal, path: Path) -> list[tuple[str, str]]:
    """The turns of the conversation."""
    terminal.enter(f"/save {path}")
    terminal.until("messages are in")
    terminal.until("you: ")
    return [(turn["role"], turn["content"]) for turn in json.loads(path.read_text())["messages"]]


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(
    model: list[str], tmp_path: Path
) -> None:
    with chatting(tmp_path, *model) as terminal:
        terminal.enter("/set max_length 3")
        terminal.until("you: ")
        terminal.enter("the first")
        terminal.until("tokens/s")
        terminal.until("you: ")
        terminal.enter("/set max_length default")
        terminal.until("you: ")
        terminal.enter("the second")
        terminal.until("the second\r\n")
        terminal.until_more_than(200)  # characters of an answer that would go on
        terminal.type(CTRL_C)
        terminal.until("stopped")
        terminal.until("you: ")
        turns = saved(terminal, tmp_path / "chat.json")
        assert [role for role, _ in turns] == ["user", "assistant"] * 2
        assert [turns[0][1], turns[2][1]] == ["the first", "the second"]
        assert len(turns[3][1]) > 100
        terminal.enter("/set max_length 3")
        terminal.until("you: ")
        terminal.enter("the third")
        terminal.until("tokens/s")
        terminal.until("you: ")
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0


def test_an_interrupted_answer_leaves_no_work_behind(
    talking_server: RunningServer, tmp_path: Path
) -> None:
    with chatting(tmp_path, "--url", talking_server.url) as terminal:
        terminal.enter("go on and on")
        terminal.until("go on and on\r\n")
        terminal.until_more_than(50)
        terminal.type(CTRL_C)
        terminal.until("stopped")
        terminal.until("you: ")
        health = talking_server.health()
        assert (health["running"], health["paused"], health["waiting"]) == (0, 0, 0)


def test_two_ctrl_c_at_the_prompt_leave(model: list[str], tmp_path: Path) -> None:
    with chatting(tmp_path, *model) as terminal:
        terminal.interrupt_at_prompt("Ctrl-C again")
        terminal.until("you: ")
        terminal.interrupt_at_end()
        assert terminal.exit_code() == 130
        assert "Traceback" not in terminal.shown


def test_the_up_arrow_brings_earlier_lines_also_of_an_earlier_chat(
    talking_server: RunningServer, tmp_path: Path
) -> None:
    arguments = ["--url", talking_server.url, "--max-length", "2"]
    with chatting(tmp_path, *arguments) as terminal:
        for line in ("first words", "second words"):
            terminal.enter(line)
            terminal.until("tokens/s")
            terminal.until("you: ")
        terminal.enter(UP + UP)
        terminal.until("tokens/s")
        terminal.until("you: ")
        asked = saved(terminal, tmp_path / "a.json")[0::2]
        assert [text for _, text in asked] == ["first words", "second words", "first words"]
        terminal.enter("/bye")
        assert terminal.exit_code() == 0
    history = tmp_path / "tickertape" / "chat_history"
    assert history.stat().st_mode & 0o077 == 0
    with chatting(tmp_path, *arguments) as terminal:
        terminal.enter(UP * 5)
        terminal.until("tokens/s")
        terminal.until("you: ")
        assert saved(terminal, tmp_path / "b.json")[0] == ("user", "first words")


def test_a_line_can_be_edited(talking_server: RunningServer, tmp_path: Path) -> None:
    with chatting(tmp_path, "--url", talking_server.url, "--max-length", "2") as terminal:
        terminal.enter("world\x01hello \x05!")  # to the beginning of the line, and to its end
        terminal.until("tokens/s")
        terminal.until("you: ")
        assert saved(terminal, tmp_path / "a.json")[0] == ("user", "hello world!")


def test_a_message_of_several_lines(talking_server: RunningServer, tmp_path: Path) -> None:
    with chatting(tmp_path, "--url", talking_server.url, "--max-length", "2") as terminal:
        terminal.enter('"""one')
        terminal.until("... ")
        terminal.enter("")
        terminal.until("... ")
        terminal.enter('  two"""')
        terminal.until("tokens/s")
        terminal.until("you: ")
        terminal.enter('"""alone"""')
        terminal.until("tokens/s")
        terminal.until("you: ")
        asked = saved(terminal, tmp_path / "a.json")[0::2]
        assert [text for _, text in asked] == ["one\n\n  two", "alone"]


def test_a_conversation_goes_on_from_a_file(talking_server: RunningServer, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    with chatting(tmp_path, "--url", talking_server.url, "--max-length", "4") as terminal:
        terminal.enter("/system You are brief.")
        terminal.until("you: ")
        terminal.enter("a question")
        terminal.until("tokens/s")
        terminal.until("you: ")
        turns = saved(terminal, file)
    with chatting(tmp_path, "--url", talking_server.url) as terminal:
        terminal.enter(f"/load {file}")
        terminal.until("2 messages")
        terminal.until("you: ")
        terminal.enter("/system")
        assert "You are brief." in terminal.until("you: ")
        terminal.enter("/set max_length")
        assert "max_length = 4" in terminal.until("you: ")
        assert saved(terminal, tmp_path / "again.json") == turns
        terminal.enter("/regenerate")
        terminal.until("tokens/s")
        terminal.until("you: ")
        again = saved(terminal, tmp_path / "again.json")
        assert again == turns, "the same seed gives the same answer to the same question"
        terminal.enter("/clear")
        terminal.until("you: ")
        assert saved(terminal, tmp_path / "none.json") == []


def test_mistakes_are_told_and_the_chat_goes_on(
    talking_server: RunningServer, tmp_path: Path
) -> None:
    (tmp_path / "junk.json").write_text("{}")
    with chatting(tmp_path, "--url", talking_server.url, "--max-length", "2") as terminal:
        for line, words in [
            ("/nothing", "/help lists them all"),
            ("/save", "wants the name of a file"),
            ("/save /no/such/folder/x", "cannot be written"),
            ("/load /no/such/file", "cannot be read"),
            (f"/load {tmp_path / 'junk.json'}", "a file that /save wrote"),
            ("/regenerate", "ask something first"),
            ("/set temperature 3", "from 0 to 2"),
            ("/set temperature nan", "from 0 to 2"),
            ("/set seed x", "a whole number"),
            ("/set colour red", "choose max_length"),
            ("/help", "/regenerate"),
        ]:
            terminal.enter(line)
            terminal.until(words)
            terminal.until("you: ")
        terminal.enter("and now")
        terminal.until("tokens/s")
        assert "Traceback" not in terminal.shown


def test_a_pipe_is_a_conversation_too(talking_server: RunningServer, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    said = f'\nhello\n\n"""two\nlines"""\n/save {file}\n/bye\nnot asked\n'
    result = run("chat", "--url", talking_server.url, "--max-length", "2", stdin=said)
    assert result.returncode == 0, result.stderr
    asked = [turn["content"] for turn in json.loads(file.read_text())["messages"][0::2]]
    assert asked == ["hello", "two\nlines"]
    assert "you:" not in result.stdout


def test_nobody_at_the_url_is_told_before_anything_is_asked() -> None:
    assert "nothing answers" in one_line(run("chat", "--url", "127.0.0.1:9"))


def test_control_characters_of_a_model_are_shown_not_obeyed() -> None:
    from app.cli.terminal import _harmless

    assert _harmless("a\x1b[2Jb\x07\r\n\tc\x9b1m") == "a\\x1b[2Jb\\x07\\r\n\tc\\x9b1m"
    assert _harmless("naïve 你好 👨‍👩‍👧 ❤️") == "naïve 你好 👨‍👩‍👧 ❤️"
