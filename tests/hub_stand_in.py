"""A server on loopback with the endpoints of the Hugging Face hub that its client uses to make, fill and read repositories.

Regular files come within a commit, weights through Git LFS (xet is another protocol; HF_HUB_DISABLE_XET turns it off).
Faults are put in a queue: each is given, once, to the next request whose method and path fit.
"""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote

WRITER, READER = "hf_writer_of_the_tests", "hf_reader_of_the_tests"


class Fault(NamedTuple):
    """What the next fitting request gets instead of an answer; status 0 drops the connection."""

    method: str
    path: str
    status: int
    message: str = "no"


class File(NamedTuple):
    data: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        """What git calls the content, or what LFS does."""
        if self.lfs:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


class Repo:
    """A repository: every branch has its files, and its commits' messages."""

    def __init__(self, *, private: bool) -> None:
        self.private = private
        self.branches: dict[str, dict[str, File]] = {"main": {".gitattributes": File(b"", lfs=False)}}
        self.messages: list[str] = []

    def sha(self, branch: str) -> str:
        content = sorted((path, file.oid) for path, file in self.branches[branch].items())
        return hashlib.sha1(json.dumps(content).encode()).hexdigest()

    def find(self, revision: str) -> str | None:
        return next((name for name in self.branches if revision in (name, self.sha(name))), None)


class HttpError(Exception):
    def __init__(self, status: int, message: str, code: str = "", name: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.name = status, message, code, name


class Hub:
    """The hub; a context manager. `me` may write to what is below its own name. Data sets are `datasets/me/name`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.asked: Counter[str] = Counter()
        self.lock = threading.RLock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def answer(self) -> None:
                outer.handle(self)

            do_GET = do_HEAD = do_POST = do_PUT = answer

            def log_message(self, *_: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None: ...

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        return {path: file.data for path, file in self.repos[repo].branches[branch].items() if path[0] != "."}

    def put(self, repo: str, files: dict[str, bytes]) -> None:
        """Have a repository with these files."""
        made = self.repos.setdefault(repo, Repo(private=False))
        made.branches["main"] |= {path: File(data, path.endswith(".safetensors")) for path, data in files.items()}

    def handle(self, http: Any) -> None:
        body = _body(http)
        path = unquote(http.path.partition("?")[0])
        with self.lock:
            self.asked[f"{http.command} {path}"] += 1
            fits = (f for f in self.faults if f.method == http.command and path.startswith(f.path))
            fault = next(fits, None)
            if fault:
                self.faults.remove(fault)
            if fault and fault.status == 0:
                http.close_connection = True
                http.connection.close()
                return
            headers: dict[str, str] = {}
            try:
                if fault:
                    raise HttpError(fault.status, fault.message)
                status, content, headers = 200, *self.answer(http, path, body)
            except HttpError as error:
                status, content = error.status, {"error": error.message, "errors": [{"message": error.message}]}
                content["url"] = f"{self.url}/{error.name}"
                headers = {"X-Error-Message": error.message, "X-Error-Code": error.code}
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        http.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            http.send_header(name, value)
        http.end_headers()
        if http.command != "HEAD":
            http.wfile.write(data)

    def answer(self, http: Any, path: str, body: bytes) -> tuple[Any, dict[str, str]]:
        token = (http.headers["authorization"] or "").removeprefix("Bearer ")
        if token and token not in (WRITER, READER):
            raise HttpError(401, "Invalid credentials in Authorization header")
        if found := re.fullmatch(r"/lfs/(\w+)", path):
            assert hashlib.sha256(body).hexdigest() == found[1]
            self.stored[found[1]] = body
            return {}, {}
        if path == "/api/validate-yaml":
            if "license: nonsense" in json.loads(body)["content"]:
                raise HttpError(400, '"license" must be one of [apache-2.0, mit]')
            return {"errors": [], "warnings": []}, {}
        if path == "/api/repos/create":
            return self.create(token, json.loads(body)), {}
        if re.fullmatch(r"/(datasets/)?[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            return self.batch(json.loads(body)), {}
        if found := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(self.repo(found[1], token), found[2], found[3])
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(\w+)(?:/(.+))?)?", path):
            kind, name, what, rest = found.groups()
            name = _name(kind.removesuffix("s"), name)
            repo = self.repo(name, token)
            if what in ("branch", "preupload", "commit"):
                self.may_write(token, name)
            if what == "branch":
                if rest in repo.branches:
                    raise HttpError(409, "it is there")
                repo.branches[rest] = dict(repo.branches["main"])
                return {}, {}
            branch, _, below = (rest or "main").partition("/")
            known = repo.find(branch)
            if known is None:
                raise HttpError(404, "no such revision", "RevisionNotFound")
            files = repo.branches[known]
            if what == "preupload":
                return self.modes(files, json.loads(body)), {}
            if what == "commit":
                return self.commit(name, repo, known, body), {}
            if what == "tree":
                inside = {p: f for p, f in files.items() if p.startswith(f"{below}/" if below else "")}
                if below and not inside:
                    raise HttpError(404, "no such folder", "EntryNotFound")
                return [{"type": "file", "path": p, "size": len(f.data), "oid": f.oid} for p, f in inside.items()], {}
            siblings = [{"rfilename": path} for path in files]
            return {"id": name, "sha": repo.sha(known), "private": repo.private, "siblings": siblings}, {}
        raise HttpError(404, f"no {path}")

    def repo(self, name: str, token: str) -> Repo:
        repo = self.repos.get(name)
        if repo is None or (repo.private and not token):
            raise HttpError(404 if token else 401, "Repository not found", "RepoNotFound")
        return repo

    def may_write(self, token: str, name: str) -> None:
        if not token:
            raise HttpError(401, "Invalid username or password.")
        if token != WRITER or not name.removeprefix("datasets/").startswith("me/"):
            raise HttpError(403, "you have no write permission here")

    def create(self, token: str, asked: dict[str, Any]) -> dict[str, str]:
        name = _name(asked.get("type", "model"), f"{asked['organization']}/{asked['name']}")
        self.may_write(token, name)
        if name in self.repos:
            raise HttpError(409, "You already created this model repo", name=name)
        self.repos[name] = Repo(private=asked.get("visibility") == "private")
        return {"url": f"{self.url}/{name}"}

    def modes(self, files: dict[str, File], asked: dict[str, Any]) -> dict[str, Any]:
        def mode(path: str) -> dict[str, Any]:
            oid = files[path].oid if path in files else None
            return {
                "path": path,
                "uploadMode": "lfs" if path.endswith((".safetensors", ".parquet")) else "regular",
                "shouldIgnore": False,
                "oid": oid,
            }

        return {"files": [mode(file["path"]) for file in asked["files"]]}

    def batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        def one(oid: str, size: int) -> dict[str, Any]:
            upload = {} if oid in self.stored else {"actions": {"upload": {"href": f"{self.url}/lfs/{oid}"}}}
            return {"oid": oid, "size": size, **upload}

        return {"transfer": "basic", "objects": [one(each["oid"], each["size"]) for each in asked["objects"]]}

    def commit(self, name: str, repo: Repo, branch: str, body: bytes) -> dict[str, str]:
        files = dict(repo.branches[branch])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repo.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
            elif line["key"] == "lfsFile":
                files[value["path"]] = File(self.stored[value["oid"]], lfs=True)
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        repo.branches[branch] = files
        return {"commitUrl": f"{self.url}/{name}/commit/{repo.sha(branch)}", "commitOid": repo.sha(branch)}

    def resolve(self, repo: Repo, revision: str, path: str) -> tuple[bytes, dict[str, str]]:
        branch = repo.find(revision)
        if branch is None:
            raise HttpError(404, "no such revision", "RevisionNotFound")
        file = repo.branches[branch].get(path)
        if file is None:
            raise HttpError(404, "Entry not found", "EntryNotFound")
        return file.data, {"X-Repo-Commit": repo.sha(branch), "ETag": f'"{file.oid}"'}


def _name(kind: str, name: str) -> str:
    return f"datasets/{name}" if kind == "dataset" else name


def _body(http: Any) -> bytes:
    if http.headers["transfer-encoding"] != "chunked":
        return http.rfile.read(int(http.headers["content-length"] or 0))
    chunks = []
    while size := int(http.rfile.readline(), 16):
        chunks.append(http.rfile.read(size))
        http.rfile.readline()
    http.rfile.readline()
    return b"".join(chunks)
