"""A loopback server that answers for one model as Hugging Face and ModelScope do."""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.parse
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Serves a folder's files as the model ``owner/name``.

    Attributes:
        refuse: HTTP status for everything, or None; ``refuse_code``: Hugging Face's word for it.
        cut: file name → bytes after which its first transfer breaks off.
        revisions: the branches and commits that exist.
        requests: (method, path, Range header) of all that was asked.
    """

    daemon_threads = True

    def __init__(self, folder: Path, name: str):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.name = folder, name
        self.reset()

    def reset(self) -> None:
        paths = sorted(self.folder.iterdir())
        self.files = {path.name: path.read_bytes() for path in paths if path.is_file()}
        self.refuse: int | None = None
        self.refuse_code = ""
        self.cut: dict[str, int] = {}
        self.revisions = {"main", "master", COMMIT}
        self.requests: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # a client that went away


@contextmanager
def running(server):
    """A server that answers in a thread of its own, until the block ends."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def serve(folder: Path, name: str):
    return running(HubServer(folder, name))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def _answer(self) -> None:
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        parts = urllib.parse.urlsplit(self.path)
        path, query = urllib.parse.unquote(parts.path), urllib.parse.parse_qs(parts.query)
        if self.server.refuse:
            self._send_json({"error": "no"}, self.server.refuse)
        elif path.startswith("/api/v1/"):
            self._answer_as_modelscope(path, query)
        else:
            self._answer_as_hugging_face(path)

    def _answer_as_hugging_face(self, path: str) -> None:
        name, files = self.server.name, self.server.files
        api, revision = f"/api/models/{name}", path.rsplit("/", 1)[-1]
        if path == api or (path.startswith(f"{api}/revision/") and revision in self._revisions):
            siblings = [{"rfilename": file} for file in files]
            self._send_json({"id": name, "sha": COMMIT, "private": False, "siblings": siblings})
        elif path == f"{api}/tree/{COMMIT}":
            rows = [
                {"type": "file", "path": file, "size": len(data), "oid": _digest(data)[:40]}
                for file, data in files.items()
            ]
            self._send_json(rows)
        elif path.startswith(f"{api}/revision/"):
            self._send_json({}, 404, {"X-Error-Code": "RevisionNotFound"})
        elif (file := path.removeprefix(f"/{name}/resolve/{COMMIT}/")) in files:
            self._send_file(file, {"X-Repo-Commit": COMMIT})
        else:
            self._send_json({"error": "Not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def _answer_as_modelscope(self, path: str, query: dict) -> None:
        api, files = f"/api/v1/models/{self.server.name}", self.server.files
        revision = query.get("Revision", ["master"])[0]
        if path == "/api/v1/repos/internalAccelerationInfo":
            self._send_json({"Data": {}})
        elif not path.startswith(api) or revision not in self._revisions:
            self._send_json({"Code": 404, "Message": "not found", "Success": False}, 404)
        elif path == f"{api}/repo/files":
            rows = [
                {"Path": file, "Type": "blob", "Size": len(data), "Sha256": _digest(data)}
                for file, data in files.items()
            ]
            self._send_json({"Code": 200, "Success": True, "Data": {"Files": rows}})
        elif path == f"{api}/repo":
            self._send_file(query["FilePath"][0])
        else:
            self._send_json({"Code": 200, "Success": True, "Data": {"Name": self.server.name}})

    @property
    def _revisions(self) -> set[str]:
        return self.server.revisions

    def _send_json(self, content, status: int = 200, headers: dict | None = None) -> None:
        if self.server.refuse_code:
            headers = {"X-Error-Code": self.server.refuse_code}
        self._send(json.dumps(content).encode(), status, headers or {})

    def _send_file(self, file: str, headers: dict | None = None) -> None:
        data = self.server.files[file]
        headers = {"ETag": f'"{_digest(data)}"', "Accept-Ranges": "bytes", **(headers or {})}
        wanted = self.headers.get("Range")
        if wanted:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self._send(data[start:], 206, headers)
        elif file in self.server.cut and self.command == "GET":
            self._send(data, 200, headers, stop_after=self.server.cut.pop(file))
        else:
            self._send(data, 200, headers)

    def _send(self, body: bytes, status: int, headers: dict, stop_after: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:stop_after])
        if stop_after is not None:
            self.wfile.flush()
            self.close_connection = True


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
