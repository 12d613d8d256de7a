"""A hub on this machine: what huggingface_hub asks of one, for a model in a folder."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 40


@contextlib.contextmanager
def hub(models: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the paths of the files that were fetched from it, in order."""
    fetched: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            for name, folder in models.items():
                if path.startswith(f"/api/models/{name}"):
                    return self._send(json.dumps(_listing(path, name, folder)).encode(), body=body)
                prefix, _, file = path.partition("/resolve/")
                file = file.partition("/")[2]
                if prefix == f"/{name}" and (folder / file).is_file():
                    if body:
                        fetched.append(file)
                    return self._send((folder / file).read_bytes(), body=body)
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            return self.end_headers()

        def _send(self, content: bytes, *, body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", fetched
    finally:
        server.shutdown()
        server.server_close()


def _listing(path: str, name: str, folder: Path) -> object:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    if "/tree/" in path:
        return [
            {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": COMMIT}
            for file in files
        ]
    return {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file.name} for file in files]}
