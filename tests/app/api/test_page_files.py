"""The page's files: whole, from memory, as they are now."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from app.api.page_files import PageFiles, hold

LARGE = bytes(range(256)) * 1000


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    (tmp_path / "large.bin").write_bytes(LARGE)
    (tmp_path / "empty.txt").touch()
    transport = httpx.ASGITransport(PageFiles(directory=tmp_path))
    async with httpx.AsyncClient(transport=transport, base_url="http://files") as http:
        yield http


async def test_a_file_comes_whole(files: httpx.AsyncClient) -> None:
    answer = await files.get("/large.bin")
    assert answer.content == LARGE
    assert answer.headers["Content-Length"] == str(len(LARGE))
    part = await files.get("/large.bin", headers={"Range": "bytes=0-9"})
    assert part.status_code == 200
    assert part.content == LARGE
    assert "Accept-Ranges" not in part.headers
    assert (await files.get("/empty.txt")).content == b""


async def test_a_head_has_the_length_and_no_body(files: httpx.AsyncClient) -> None:
    answer = await files.head("/large.bin")
    assert answer.headers["Content-Length"] == str(len(LARGE))
    assert answer.content == b""


async def test_who_has_it_is_told_so(files: httpx.AsyncClient) -> None:
    etag = (await files.get("/large.bin")).headers["ETag"]
    again = await files.get("/large.bin", headers={"If-None-Match": etag})
    assert again.status_code == 304
    assert again.content == b""


async def test_a_file_that_was_edited_is_read_again(
    files: httpx.AsyncClient, tmp_path: Path
) -> None:
    hold(tmp_path)
    assert (await files.get("/empty.txt")).content == b""
    (tmp_path / "empty.txt").write_text("no longer")
    answer = await files.get("/empty.txt")
    assert answer.text == "no longer"
    assert answer.headers["Content-Length"] == "9"
