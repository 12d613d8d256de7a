"""The page's files, held in memory: who does not take one holds no descriptor of the server's."""

import os
from pathlib import Path

import anyio.to_thread
from starlette.datastructures import Headers
from starlette.responses import FileResponse, Response
from starlette.staticfiles import NotModifiedResponse, PathLike, StaticFiles
from starlette.types import Receive, Scope, Send

_held: dict[str, tuple[int, bytes]] = {}  # by path: when it was changed (ns), and what it holds


def hold(folder: Path) -> None:
    """Read all files below `folder`, so that a shortage of descriptors later does not matter."""
    for path in folder.rglob("*"):
        if path.is_file():
            _read(str(path))


def _read(path: str) -> bytes:
    """What the file holds now. Raises OSError."""
    changed = Path(path).stat().st_mtime_ns
    held = _held.get(path)
    if held is None or held[0] != changed:
        held = _held[path] = changed, Path(path).read_bytes()
    return held[1]


class PageFile(FileResponse):
    """One file, whole: a `Range` is ignored, as RFC 9110, 14.2 allows.

    Its pieces are handed out as the client takes them.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        content = memoryview(await anyio.to_thread.run_sync(_read, str(self.path)))
        self.headers["content-length"] = str(len(content))
        del self.headers["accept-ranges"]
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        if scope["method"] == "HEAD":
            content = content[:0]
        for begin in range(0, len(content), self.chunk_size):
            piece = bytes(content[begin : begin + self.chunk_size])
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class PageFiles(StaticFiles):
    """A folder of such files."""

    def file_response(
        self, full_path: PathLike, stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = PageFile(full_path, status_code=status_code, stat_result=stat_result)
        if self.is_not_modified(response.headers, Headers(scope=scope)):
            return NotModifiedResponse(response.headers)
        return response
