"""A hub on the loopback: the file API that huggingface_hub speaks, over folders, with every request written down.

As on the real one, configs come from the hub itself, while weights are redirected to another host ("localhost" beside
"127.0.0.1") that knows them by their SHA-256 and must never see a token.
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

WEIGHTS = (".safetensors", ".bin", ".onnx", ".onnx_data", ".msgpack", ".ckpt")


@dataclass(frozen=True, kw_only=True)
class Request:
    method: str
    repo: str  # empty for a blob of the other host
    what: str  # "api", the name of a file, or the digest of a blob
    revision: str
    range: str | None
    token: str | None


@dataclass(kw_only=True)
class Repository:
    """Branch or commit -> folder. `refuse` is (status, X-Error-Code) for every file, the list of files stays open."""

    revisions: dict[str, Path] = field(default_factory=dict)
    refuse: tuple[int, str] | None = None

    def commit(self, revision: str) -> str | None:
        """The commit of a branch: the digest of its folder's path, so that two branches differ."""
        for branch, folder in self.revisions.items():
            commit = hashlib.sha1(str(folder).encode()).hexdigest()
            if revision in (branch, commit):
                return commit
        return None

    def folder(self, revision: str) -> Path:
        return next(f for b, f in self.revisions.items() if revision in (b, self.commit(b)))


class Hub:
    """The server; `requests` is what was asked, `cut` the bytes after which the next answer of a file breaks off."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.cut: dict[str, int] = {}
        self.corrupt: set[str] = set()
        self.blobs: dict[str, Path] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.port = self.server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def add(self, repo: str, folder: Path, branch: str = "main", refuse: tuple[int, str] | None = None) -> str:
        """Serve a folder as a branch of a repository; the commit that it is."""
        result = self.repositories.setdefault(repo, Repository())
        result.revisions[branch], result.refuse = folder, refuse
        return result.commit(branch)

    def fetched(self, repo: str) -> list[str]:
        """The files of a repository whose bytes were asked for, in order, each once."""
        digests = {hashlib.sha256(p.read_bytes()).hexdigest(): p for p in self.blobs.values()}
        names = []
        for request in self.requests:
            if request.method == "GET" and request.what != "api":
                if request.repo == repo:
                    names.append(request.what)
                for folder in self.repositories[repo].revisions.values():
                    path = digests.get(request.what)
                    if not request.repo and path and path.is_relative_to(folder):
                        names.append(path.relative_to(folder).as_posix())
        return list(dict.fromkeys(names))

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _note(self, repo: str, what: str, revision: str = "") -> None:
        headers = self.headers
        self.hub.requests.append(
            Request(
                method=self.command,
                repo=repo,
                what=what,
                revision=revision,
                range=headers.get("Range"),
                token=headers.get("Authorization"),
            )
        )

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if result := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(result[1], result[2] or "main")
        elif result := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(result[1], result[2], result[3])
        elif result := re.fullmatch(r"/blobs/([0-9a-f]{64})", path):
            self._note("", result[1])
            self._bytes(self.hub.blobs[result[1]])
        elif path.startswith("/login"):
            self._body(b"<html>Welcome to the hotel</html>", "text/html")
        else:
            self._refuse(404, "")

    def _body(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _repository(self, repo: str, revision: str) -> Repository | None:
        """The repository if it has this revision; otherwise the answer is given and the result is None."""
        result = self.hub.repositories.get(repo)
        if result is None:
            self._refuse(401, "RepoNotFound")  # what the hub says to a visitor whose name it does not know
        elif result.commit(revision) is None:
            self._refuse(404, "RevisionNotFound")
        else:
            return result
        return None

    def _info(self, repo: str, revision: str) -> None:
        self._note(repo, "api", revision)
        result = self._repository(repo, revision)
        if result is None:
            return
        folder = result.folder(revision)
        siblings = []
        for file in sorted(f for f in folder.rglob("*") if f.is_file()):
            size, data = file.stat().st_size, file.read_bytes()
            entry = {"rfilename": file.relative_to(folder).as_posix(), "size": size}
            entry["blobId"] = hashlib.sha1(f"blob {size}\0".encode() + data).hexdigest()
            if file.suffix in WEIGHTS:
                entry["lfs"] = {"size": size, "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 134}
            siblings.append(entry)
        answer = {"id": repo, "sha": result.commit(revision), "siblings": siblings}
        self._body(json.dumps(answer).encode(), "application/json")

    def _file(self, repo: str, revision: str, name: str) -> None:
        self._note(repo, name, revision)
        result = self._repository(repo, revision)
        if result is None:
            return
        if result.refuse:
            return self._refuse(*result.refuse)
        file = result.folder(revision) / name
        if not file.is_file():
            return self._refuse(404, "EntryNotFound")
        data = file.read_bytes()
        headers = {"X-Repo-Commit": result.commit(revision)}
        if file.suffix in WEIGHTS:
            digest = hashlib.sha256(data).hexdigest()
            self.hub.blobs[digest] = file
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            headers |= {"Location": f"http://localhost:{self.hub.port}/blobs/{digest}", "Content-Length": "0"}
            self.send_response(302)
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
        else:
            headers["ETag"] = f'"{hashlib.sha1(data).hexdigest()}"'
            self._bytes(file, headers)

    def _bytes(self, file: Path, headers: dict[str, str] | None = None) -> None:
        data = file.read_bytes()
        if file.name in self.hub.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start, size = 0, len(data)
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start = int(asked[1])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.cut.pop(file.name, None)
        self.wfile.write(data[start : start + cut if cut is not None else size])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
