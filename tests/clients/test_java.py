"""Java's own HttpClient, which asks for HTTP/2; tests/app/sockets/test_upgrade.py has the bytes."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.server import RunningServer
from tests.speed import patience

JAVA = shutil.which("java")
JAVAC = shutil.which("javac")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not (JAVA and JAVAC), reason="no JDK (Debian: default-jdk-headless)"),
]


def test_answers_streams_and_kept_connections(server: RunningServer) -> None:
    assert JAVA
    source = Path(__file__).parent / "java" / "Ask.java"
    command = [JAVA, str(source), server.url]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=patience(100), check=False
    )
    assert ended.returncode == 0, ended.stderr
    answers = [line.split(" ", 3) for line in ended.stdout.splitlines()]
    assert [answer[0] for answer in answers] == ["whole", "whole", "stream", "models"]
    assert all(answer[1:3] == ["200", "HTTP_1_1"] for answer in answers)
    texts = [json.loads(answer[3])["generated_text"] for answer in answers[:2]]
    assert texts[0] == texts[1] != ""
    events = answers[2][3].split("event: ")
    assert events[-1] == "done"
    assert "token " in events
    assert json.loads(answers[3][3])["object"] == "list"
