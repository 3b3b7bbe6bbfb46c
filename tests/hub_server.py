"""A Hub on the loopback: as much of the Hub's HTTP API as push and pull through the real client need.

It keeps whole repositories in memory, checks tokens, and can break off a transfer on purpose. Clients
take its address from the environment (`HubServer.environment`) or as `HfApi(endpoint=server.url)`.
"""

import base64
import hashlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from filelock import FileLock

from mtmm_training.publishing.isolation import HIDE, OURS

WRITER, READER = "hf_the_writers_token", "hf_the_readers_token"
ID = r"(?P<id>(?:datasets/)?[^/]+/[^/]+)"  # data sets are kept under datasets/OWNER/NAME
Files = dict[str, bytes]


@dataclass
class Repo:
    """One repository: every commit whole, and the names that point to commits."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[str, str] = field(default_factory=dict)

    def find(self, revision: str) -> str | None:
        """The commit of a branch, tag, pull request or commit."""
        for names in (self.branches, self.tags, self.pull_requests):
            if revision in names:
                return names[revision]
        return revision if revision in self.commits else None

    def commit(self, files: Files, message: str) -> str:
        content = repr([len(self.commits), message, sorted((n, oid(f)) for n, f in files.items())])
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits[sha] = dict(files)
        return sha


@dataclass
class Break:
    """Close the connection after so many bytes of the next matching transfer.

    Clients retry after an orderly end that comes too early, and give up after a reset.
    """

    method: str
    path: str
    after_bytes: int
    reset: bool = True


def oid(content: bytes) -> str:
    """git's name of a file's content; also its etag."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def files_in(folder: Path) -> Files:
    """A folder's files, as `HubServer.put` takes them."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


class HubServer:
    """Start with `with HubServer() as server`; everything is gone at the end."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.tokens = {WRITER: ("writer", "write"), READER: ("reader", "read")}
        self.breaks: list[Break] = []
        self.requests: list[str] = []
        self.lock = threading.Lock()
        handler = type("Handler", (HubHandler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, token: str | None = WRITER, **more: str) -> dict[str, str]:
        """A process's environment: this Hub, a cache of its own, one thread."""
        kept = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "SYSTEMROOT")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        environment |= {
            "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_ETAG_TIMEOUT": "5",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        return environment | ({} if token is None else {"HF_TOKEN": token}) | more

    def put(self, repo_id: str, files: Files, **settings: Any) -> str:
        """Make a repository with one commit, past the API."""
        repo = self.repos.setdefault(repo_id, Repo(**settings))
        repo.branches["main"] = repo.commit(files, "put")
        return repo.branches["main"]


def run_python(
    code: str, *arguments: str, environment: dict[str, str], cwd: Path, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run code in an isolated process that cannot import the checkout, installed or not."""
    return subprocess.run(
        [sys.executable, "-I", "-c", f"HIDDEN = {OURS}\n{HIDE}\n{code}", *arguments],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


class Refused(Exception):
    """An error answer: status, the Hub's error code, its message, and more of its body."""

    def __init__(self, status: int, code: str, message: str, **more: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.more = status, code, message, more


class HubHandler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", rf"/api/(?:models/)?{ID}/preupload/(?P<rev>[^/]+)", "preupload"),
        ("POST", rf"/api/(?:models/)?{ID}/commit/(?P<rev>[^/]+)", "commit"),
        ("POST", rf"/api/(?:models/)?{ID}/branch/(?P<rev>[^/]+)", "branch"),
        ("POST", rf"/api/(?:models/)?{ID}/tag/(?P<rev>[^/]+)", "tag"),
        ("POST", rf"/api/(?:models/)?{ID}/discussions", "open_request"),
        ("GET", rf"/api/(?:models/)?{ID}/discussions/(?P<number>\d+)", "opened_request"),
        ("GET", rf"/api/(?:models/)?{ID}/refs", "refs"),
        ("GET", rf"/api/(?:models/)?{ID}/tree/(?P<rev>[^/]+)(?:/(?P<path>.*))?", "tree"),
        ("GET", rf"/api/(?:models/)?{ID}(?:/revision/(?P<rev>[^/]+))?", "info"),
        ("GET", rf"/{ID}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
        ("HEAD", rf"/{ID}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def log_message(self, *args: object) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.query = parse_qs(urlsplit(self.path).query)
        self.hub.requests.append(f"{self.command} {unquote(path)}")
        body = self.read_body()
        if body is None:
            return
        try:
            for method, pattern, name in self.ROUTES:
                match = re.fullmatch(pattern, path)
                if match and method == self.command:
                    found = {k: unquote(v) if v else v for k, v in match.groupdict().items()}
                    with self.hub.lock:
                        answer = getattr(self, name)(body=body, **found)
                    break
            else:
                raise Refused(404, "", f"no such address: {self.command} {path}")
        except Refused as error:
            self.refuse(error)
        else:
            if isinstance(answer, bytes):
                self.send_file(answer, found["path"])
            else:
                self.send(200, json.dumps(answer).encode())

    do_POST = do_HEAD = do_GET

    def read_body(self) -> bytes | None:
        length = int(self.headers.get("Content-Length", 0))
        broken = self.next_break()
        if broken is not None and self.command == "POST":
            self.rfile.read(min(broken.after_bytes, length))
            self.cut_off(broken)
            return None
        return self.rfile.read(length)

    def next_break(self) -> Break | None:
        with self.hub.lock:
            for broken in self.hub.breaks:
                if broken.method == self.command and broken.path in unquote(self.path):
                    if self.command == "POST":
                        self.hub.breaks.remove(broken)
                    return broken
        return None

    def cut_off(self, broken: Break) -> None:
        self.close_connection = True
        if broken.reset:  # as a network that fails
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    # ---- answers ----

    def send(
        self, status: int, content: bytes, broken: Break | None = None, **headers: str
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if broken is not None:
            self.wfile.write(content[: broken.after_bytes])
            self.wfile.flush()
            self.cut_off(broken)
        elif self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, error: Refused) -> None:
        headers: dict[str, Any] = {"X_Error_Message": error.message}
        if error.code:
            headers["X_Error_Code"] = error.code
        content = json.dumps({"error": error.message} | error.more).encode()
        self.send(error.status, content, **headers)

    def send_file(self, content: bytes, path: str) -> None:
        start, status = 0, 200
        headers = {
            "ETag": f'"{oid(content)}"',
            "X_Repo_Commit": self.resolved,
            "Accept_Ranges": "bytes",
            "Content_Disposition": f'inline; filename="{Path(path).name}";',
        }
        whole = len(content)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            start, last = int(asked[1]), int(asked[2] or whole - 1)
            content, status = content[start : last + 1], 206
            headers["Content_Range"] = f"bytes {start}-{last}/{whole}"
        broken = self.next_break() if self.command == "GET" else None
        if broken is not None:
            with self.hub.lock:
                self.hub.breaks.remove(broken)
        self.send(status, content, broken, **headers)

    # ---- who asks, and for what ----

    def user(self) -> tuple[str, str] | None:
        given = self.headers.get("Authorization")
        if given is None:
            return None
        user = self.hub.tokens.get(given.removeprefix("Bearer "))
        if user is None:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        return user

    def writer_of(self, repo_id: str) -> None:
        user = self.user()
        if user is None:
            raise Refused(401, "", "Invalid username or password.")
        if user[1] != "write" or repo_id.split("/")[-2] != user[0]:
            raise Refused(403, "", "You don't have the rights to change this namespace's models")

    def repo(self, repo_id: str, content: bool = False) -> Repo:
        repo, user = self.hub.repos.get(repo_id), self.user()
        owner = user is not None and repo_id.split("/")[-2] == user[0]
        if repo is None or (repo.private and not owner):
            raise Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        if content and repo.gated and not owner:
            message = f"Access to model {repo_id} is restricted. Visit it to ask for access."
            raise Refused(403 if user else 401, "GatedRepo", message)
        return repo

    def commit_of(self, repo: Repo, revision: str) -> str:
        found = repo.find(revision)
        if found is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    # ---- the API ----

    def whoami(self, body: bytes) -> Any:
        user = self.user()
        if user is None:
            raise Refused(401, "", "Invalid username or password.")
        token = {"accessToken": {"displayName": user[0], "role": user[1]}, "type": "access_token"}
        return {"type": "user", "id": user[0], "name": user[0], "orgs": [], "auth": token}

    def create(self, body: bytes) -> Any:
        asked = json.loads(body)
        user = self.user()
        owner = asked.get("organization") or (user[0] if user else "")
        kind = "datasets/" if asked.get("type") == "dataset" else ""
        repo_id = f"{kind}{owner}/{asked['name']}"
        self.writer_of(repo_id)
        if repo_id in self.hub.repos:
            url = f"{self.hub.url}/{repo_id}"
            raise Refused(409, "", "You already created this model repo", url=url)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.put(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
        return {"url": f"{self.hub.url}/{repo_id}", "id": repo_id}

    def validate_yaml(self, body: bytes) -> Any:
        return {"errors": [], "warnings": []}

    def preupload(self, body: bytes, id: str, rev: str) -> Any:
        repo = self.repo(id)
        if "create_pr" not in self.query:
            self.writer_of(id)
        files = repo.commits[self.commit_of(repo, rev)]
        answers = []
        for path in (asked["path"] for asked in json.loads(body)["files"]):
            known = oid(files[path]) if path in files else None
            answers.append(
                {"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": known}
            )
        return {"files": answers}

    def commit(self, body: bytes, id: str, rev: str) -> Any:
        repo = self.repo(id)
        if rev not in repo.pull_requests:
            self.writer_of(id)
        parent = self.commit_of(repo, rev)
        files, message = dict(repo.commits[parent]), ""
        for line in body.splitlines():
            key, value = (json.loads(line)[name] for name in ("key", "value"))
            if key == "header":
                message = value["summary"]
                if value.get("parentCommit", parent) != parent:
                    raise Refused(412, "", "A commit has happened since. Please refresh.")
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                raise Refused(400, "", f"this Hub does not know the operation {key}")
        sha = repo.commit(files, message)
        names = repo.pull_requests if rev in repo.pull_requests else repo.branches
        names[rev] = sha
        url = f"{self.hub.url}/{id}/commit/{sha}"
        return {"success": True, "commitOid": sha, "commitUrl": url}

    def open_request(self, body: bytes, id: str) -> Any:
        repo = self.repo(id)
        if self.user() is None:
            raise Refused(401, "", "Invalid username or password.")
        number = len(repo.pull_requests) + 1
        repo.pull_requests[f"refs/pr/{number}"] = repo.branches["main"]
        return {"num": number}

    def opened_request(self, body: bytes, id: str, number: str) -> Any:
        return {
            "title": "a pull request", "num": int(number), "status": "draft",
            "createdAt": "2026-01-01T00:00:00.000Z", "repo": {"name": id, "type": "model"},
            "isPullRequest": True, "events": [], "filesWithConflicts": [],
            "changes": {"base": "refs/heads/main"},
        }  # fmt: skip

    def branch(self, body: bytes, id: str, rev: str) -> Any:
        self.writer_of(id)
        repo = self.repo(id)
        if rev in repo.branches:
            raise Refused(409, "", f"Reference already exists: {rev}")
        start = json.loads(body or b"{}").get("startingPoint") or "main"
        repo.branches[rev] = self.commit_of(repo, start)
        return {}

    def tag(self, body: bytes, id: str, rev: str) -> Any:
        self.writer_of(id)
        repo, name = self.repo(id), json.loads(body)["tag"]
        if name in repo.tags:
            raise Refused(409, "", f"Tag reference exists already: {name}")
        repo.tags[name] = self.commit_of(repo, rev)
        return {}

    def refs(self, body: bytes, id: str) -> Any:
        repo = self.repo(id)

        def listed(names: dict[str, str], kind: str) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"{kind}{n}", "targetCommit": c} for n, c in names.items()]

        branches, tags = listed(repo.branches, "refs/heads/"), listed(repo.tags, "refs/tags/")
        return {"branches": branches, "tags": tags, "converts": []}

    def tree(self, body: bytes, id: str, rev: str, path: str | None) -> Any:
        repo = self.repo(id)
        files = repo.commits[self.commit_of(repo, rev)]
        top = f"{path}/" if path else ""
        below = {name for name in files if name.startswith(top)}
        if not below:
            raise Refused(404, "EntryNotFound", f"{path} does not exist on {rev}")
        folders = {str(folder) for name in below for folder in PurePosixPath(name).parents}
        folders = {name for name in folders if name != "." and name.startswith(top)}
        if self.query.get("recursive", ["false"])[0].lower() != "true":
            below, folders = (
                {n for n in names if "/" not in n[len(top) :]} for names in (below, folders)
            )
        return [
            *(
                {"type": "directory", "path": name, "oid": oid(name.encode())}
                for name in sorted(folders)
            ),
            *(
                {"type": "file", "path": name, "size": len(files[name]), "oid": oid(files[name])}
                for name in sorted(below)
            ),
        ]

    def info(self, body: bytes, id: str, rev: str | None) -> Any:
        repo = self.repo(id)
        sha = self.commit_of(repo, rev or "main")
        return {
            "_id": id, "id": id, "modelId": id, "sha": sha, "private": repo.private,
            "gated": "manual" if repo.gated else False, "disabled": False, "downloads": 0,
            "likes": 0, "tags": [],
            "siblings": [{"rfilename": name} for name in sorted(repo.commits[sha])],
        }  # fmt: skip

    def resolve(self, body: bytes, id: str, rev: str, path: str) -> bytes:
        repo = self.repo(id, content=True)
        self.resolved = self.commit_of(repo, rev)
        files = repo.commits[self.resolved]
        if path not in files:
            raise Refused(404, "EntryNotFound", "Entry not found")
        return files[path]


def trained_run(base: Path) -> Path:
    """A run of train_accelerate.py on forty utterances of the embedded corpus, made once.

    Args:
        base: The temporary folder of this pytest process; all workers of a session share the run.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    with FileLock(base / "life.lock"):
        run = base / "life" / "run"
        if not (run / "results.json").is_file():
            _train(base, run)
    return run


def _train(base: Path, run: Path) -> None:
    import train_accelerate
    from mtmm_training.data.corpora.synthetic import write_corpus, write_encoders

    write_corpus(base / "life" / "corpus", utterances=40)
    audio, text = write_encoders(base / "life" / "encoders")
    small: dict[str, float] = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    # Large initial weights: the outputs must depend on the inputs after a few steps already.
    small |= {"num_bridge_tokens": 4, "initializer_range": 0.3}
    train_accelerate.main(
        ["--manifest", str(base / "life" / "corpus" / "manifest.csv"), "--out", str(run)]
        + ["--audio_encoder", str(audio), "--text_encoder", str(text), *RECIPE]
        + ["--model_config", json.dumps(small)]
    )


RECIPE = ["--protocol", "session", "--fold", "0", "--epochs", "1", "--batch_size", "8"]
RECIPE += ["--workers", "0", "--tracker", "none"]
