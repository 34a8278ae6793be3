"""An imitation of the Hugging Face Hub on the loopback, for the real client to talk to. It knows the Hub's addresses,
headers and refusals, and keeps a record of what was asked; what the repositories hold is left to `hub_content`. It takes
files too, by the protocol of git's large-file storage, and makes a commit of them.

    with hub({"google/gemma-2-2b": Repo(files, gated=True)}) as server:
        done = child("import gemscope ...; print(json.dumps(...))", env=server.env(tmp_path, token=GRANTED))
        assert done.json() == {...}
        assert server.requests == []        # everything came out of the cache

The client reads HF_ENDPOINT when it is imported, so it runs in a child process. A child costs seconds of import: ask
several things of one. After the `with` block nobody listens at `server.url` any more: there, "the network is down".
"""

import base64
import functools
import hashlib
import json
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from processes import Done, python

GRANTED = "hf_granted"
"""The token that may read what is gated or private. Any other belongs to somebody who was granted nothing."""
WRITER = "hf_writer"
"""That of `AUTHOR`, who may do that too, and write what is below that name."""
AUTHOR = "a-writer"
EXPIRED = "hf_expired"
"""A token no more: the Hub refuses it everywhere, for public repositories too."""

LARGE = (
    ".safetensors",
    ".npz",
    ".npy",
    ".bin",
    ".gguf",
    ".parquet",
    ".sqlite",
)  # kept in large-file storage: served from another host


@dataclass(frozen=True)
class Repo:
    """One model repository. `files` is its main revision, path to bytes; `revisions` holds any others by name.
    To publish a new commit while the server runs, put another `Repo` in `server.repos`."""

    files: Mapping[str, bytes]
    gated: bool = False
    private: bool = False
    revisions: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)

    @functools.cached_property
    def snapshots(self) -> dict[str, "Snapshot"]:
        named = {"main": Snapshot(self.files)} | {name: Snapshot(files) for name, files in self.revisions.items()}
        return named | {snapshot.commit: snapshot for snapshot in named.values()}


class Snapshot:
    """The files of one commit, with the ids that git and large-file storage give them."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = {path: files[path] for path in sorted(files)}
        self.oids = {path: _git_id("blob", data) for path, data in self.files.items()}
        self.sha256 = {path: hashlib.sha256(self.files[path]).hexdigest() for path in files if path.endswith(LARGE)}
        self.commit = _git_id("commit", json.dumps(self.oids).encode())

    def entry(self, path: str) -> dict[str, Any]:
        size = len(self.files[path])
        lfs = {"oid": self.sha256[path], "size": size, "pointerSize": 134} if path in self.sha256 else None
        return {"type": "file", "path": path, "oid": self.oids[path], "size": size} | ({"lfs": lfs} if lfs else {})

    def folder(self, path: str) -> dict[str, Any]:
        return {"type": "directory", "path": path, "oid": _git_id("tree", path.encode()), "size": 0}

    def tree(self, under: str, recursive: bool) -> list[dict[str, Any]]:
        """Files and folders below `under` ("" is the root), as the Hub lists them: by path, a folder before its own."""
        prefix = f"{under}/" if under else ""
        found = set()
        for path in (path for path in self.files if path.startswith(prefix)):
            parts = path.removeprefix(prefix).split("/")
            found |= {prefix + "/".join(parts[:depth]) for depth in range(1, len(parts) + 1 if recursive else 2)}
        return [self.entry(path) if path in self.files else self.folder(path) for path in sorted(found)]


class Question(NamedTuple):
    """What a client asks for. `path` is without the query and still percent-encoded: a revision may hold a slash."""

    method: str
    path: str
    query: dict[str, str]
    token: str | None
    byte_range: str | None
    body: bytes

    def says(self, option: str) -> bool:
        return self.query.get(option, "").lower() == "true"


class Request(NamedTuple):
    """One request as it arrived, and the status it was answered with."""

    method: str
    path: str
    """Without the query, percent-decoded."""
    status: int
    byte_range: str | None
    """The Range header: says that a download was resumed."""
    token: str | None


@dataclass
class Reply:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """The Hub says no: the client turns status and code into its own exception."""

    def __init__(self, status: int, code: str | None, message: str, **headers: str) -> None:
        code_header = {"X-Error-Code": code} if code else {}
        body = json.dumps({"error": message}).encode()
        self.reply = Reply(status, body, code_header | {"X-Error-Message": message} | headers)


class HubServer(ThreadingHTTPServer):
    """Serves `repos` (`org/name` to `Repo`, may be changed while it runs) from a free port of the loopback."""

    def __init__(self, repos: Mapping[str, Repo], page_size: int = 1000) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos = dict(repos)
        self.page_size = page_size
        self.requests: list[Request] = []
        self.cuts: dict[tuple[str, str], list[int]] = {}
        """(repository, path) to the points, in bytes of the body, where its next downloads break off; used up one by
        one, then the file is served whole."""
        self.failing: list[tuple[str, str, int | None]] = []
        """Method, ending of the path, and the status that the next such request is refused with; None for a connection
        that breaks off. Used up one by one."""
        self.objects: dict[str, bytes] = {}
        """Large files that have arrived, by SHA-256, whether in a commit yet or not."""
        self.faults: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.storage_url = f"http://localhost:{self.server_port}"  # another host to the client: it sends no token there

    def env(self, home: Path, *, token: str | None = None, offline: bool = False) -> dict[str, str]:
        """A child's environment: all its caches below `home`, this server for a Hub, nothing of the user's own."""
        foreign = re.compile(r"HF_|HUGGING|TRANSFORMERS_|XDG_|PYTEST_|\w*_proxy$", re.IGNORECASE)
        ours = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home / "huggingface"),
            "XDG_CACHE_HOME": str(home / "cache"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "1",  # its protocol of uploading, which is not imitated
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        chosen = ({"HF_TOKEN": token} if token else {}) | ({"HF_HUB_OFFLINE": "1"} if offline else {})
        return {name: value for name, value in os.environ.items() if not foreign.match(name)} | ours | chosen

    def asked(self, method: str, ending: str = "") -> list[Request]:
        """The requests so far by `method` for paths that end so."""
        return [request for request in self.requests if request.method == method and request.path.endswith(ending)]

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client may leave when it likes
            self.faults.append(traceback.format_exc())

    def answer(self, question: "Question") -> Reply:
        """Raises `Refusal`, or ConnectionError for an answer that never comes."""
        for failing in self.failing:
            method, ending, status = failing
            if question.method == method and unquote(question.path).endswith(ending):
                self.failing.remove(failing)
                if status is None:
                    raise ConnectionResetError
                raise Refusal(status, None, "told to fail")
        if match := re.fullmatch(r"/received/([0-9a-f]{64})", question.path):
            return self._received(question, match[1])
        if match := re.fullmatch(r"/storage/([^/]+/[^/]+)/([^/]+)/(.+)", question.path):
            return self._stored(question, *map(unquote, match.groups()))
        if question.token == EXPIRED:
            raise Refusal(401, None, "Invalid credentials in Authorization header")
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", question.path):
            return self._resolve(question, *map(unquote, match.groups()))
        if question.path == "/api/repos/create":
            return self._create(question)
        if question.path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", question.path):
            return self._large(question, match[1])
        if question.method == "POST" and (
            match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit)/([^/]+)", question.path)
        ):
            return self._change(question, match[1], match[2], unquote(match[3]))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/([a-z-]+))?(?:/([^/]+))?(?:/(.+))?", question.path):
            return self._listing(question, *(unquote(part or "") for part in match.groups()))
        raise Refusal(404, None, "Sorry, we can't find the page you are looking for.")

    def _stored(self, question: "Question", name: str, commit: str, path: str) -> Reply:
        if question.token:  # a signed address and a token too is one proof too many for the storage
            raise Refusal(400, None, "Only one auth mechanism allowed")
        return _content(path, self.repos[name].snapshots[commit], question.byte_range)

    def _resolve(self, question: "Question", name: str, revision: str, path: str) -> Reply:
        repo = self._repo(name, question.token)
        if repo.gated and question.token != GRANTED:
            told = "is not among those granted it" if question.token else "must log in and be granted it"
            status = 403 if question.token else 401
            raise Refusal(status, "GatedRepo", f"Access to model {name} is restricted: the reader {told}.")
        snapshot = _snapshot(repo, revision)
        if path not in snapshot.files:
            raise Refusal(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": snapshot.commit})
        if path not in snapshot.sha256:
            return _content(path, snapshot, question.byte_range)
        headers = {
            "Location": f"{self.storage_url}/storage/{name}/{snapshot.commit}/{quote(path)}?signed=yes",
            "X-Repo-Commit": snapshot.commit,
            "X-Linked-Size": str(len(snapshot.files[path])),
            "X-Linked-Etag": f'"{snapshot.sha256[path]}"',
        }
        return Reply(302, b"Found. Redirecting to large-file storage", headers)

    def _listing(self, question: "Question", name: str, verb: str, revision: str, path: str) -> Reply:
        """What a repository is and holds. Open for a gated one too, as on the Hub."""
        repo = self._repo(name, question.token)
        snapshot = _snapshot(repo, revision or "main")
        match question.method, verb:
            case "GET", "" | "revision":
                return _json(_model_info(name, repo, snapshot, with_blobs=question.says("blobs")))
            case "GET", "tree":
                return self._page(question, snapshot.tree(path, recursive=question.says("recursive")))
            case "POST", "paths-info":
                tree = {entry["path"]: entry for entry in snapshot.tree("", recursive=True)}
                return _json([tree[path] for path in parse_qs(question.body.decode())["paths"] if path in tree])
            case "GET", "refs":
                return _json(_refs(repo))
        raise Refusal(404, None, "Sorry, we can't find the page you are looking for.")

    # --- what is sent -----------------------------------------------------------------------------------------------

    def _create(self, question: "Question") -> Reply:
        asked = json.loads(question.body)
        name = f"{asked.get('organization') or AUTHOR}/{asked['name']}"
        self._require_writer(name, question.token)
        if name in self.repos:
            raise Refusal(409, None, "You already created this model repo")
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.repos[name] = Repo({".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
        return _json({"url": f"{self.url}/{name}", "id": name, "name": name})

    def _change(self, question: "Question", name: str, verb: str, revision: str) -> Reply:
        repo = self._repo(name, question.token)
        self._require_writer(name, question.token)
        if verb == "branch":
            if revision in repo.snapshots:
                raise Refusal(409, None, "Reference already exists")
            self.repos[name] = replace(repo, revisions={**repo.revisions, revision: repo.files})
            return Reply(201)
        snapshot = _snapshot(repo, revision)
        if verb == "preupload":
            return _json({"files": [_way(file, snapshot) for file in json.loads(question.body)["files"]]})
        files = self._committed(question.body, snapshot)
        changed = {"files": files} if revision == "main" else {"revisions": {**repo.revisions, revision: files}}
        self.repos[name] = replace(repo, **changed)
        commit = self.repos[name].snapshots[revision].commit
        return _json({"commitUrl": f"{self.url}/{name}/commit/{commit}", "commitOid": commit, "hookOutput": ""})

    def _committed(self, body: bytes, snapshot: "Snapshot") -> dict[str, bytes]:
        """The files of a commit upon another: all that its lines say, or none."""
        files = dict(snapshot.files)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    if value.get("parentCommit") not in (None, snapshot.commit):
                        raise Refusal(412, None, "A commit has happened since. Please refresh and try again.")
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.objects:
                        raise Refusal(400, None, f"Your push was rejected: no LFS object {value['oid']}")
                    files[value["path"]] = self.objects[value["oid"]]
                case "deletedFile":
                    if files.pop(value["path"], None) is None:
                        raise Refusal(400, None, f"A file with the name {value['path']} does not exist")
                case other:
                    raise Refusal(400, None, f"unknown operation {other}")
        return files

    def _large(self, question: "Question", name: str) -> Reply:
        """Where large files are to be sent; nowhere, for those that are here."""
        self._repo(name, question.token)
        self._require_writer(name, question.token)
        files = [(one["oid"], one["size"]) for one in json.loads(question.body)["objects"]]
        return _json(
            {
                "transfer": "basic",
                "objects": [
                    {"oid": oid, "size": size}
                    if oid in self.objects
                    else {
                        "oid": oid,
                        "size": size,
                        "actions": {"upload": {"href": f"{self.storage_url}/received/{oid}?signed=yes"}},
                    }
                    for oid, size in files
                ],
            }
        )

    def _received(self, question: "Question", oid: str) -> Reply:
        if question.token:
            raise Refusal(400, None, "Only one auth mechanism allowed")
        if hashlib.sha256(question.body).hexdigest() != oid:
            raise Refusal(400, None, "content does not have this SHA-256")
        self.objects[oid] = question.body
        return Reply(200)

    def _require_writer(self, name: str, token: str | None) -> None:
        if token is None:
            raise Refusal(401, None, "Invalid username or password.")
        if token != WRITER or not name.startswith(f"{AUTHOR}/"):
            raise Refusal(403, None, f"You don't have the rights to write to {name}")

    def _page(self, question: "Question", entries: list[dict[str, Any]]) -> Reply:
        if not entries:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        start = int(question.query.get("cursor", 0))
        stop = start + self.page_size
        following = f"{self.url}{question.path}?{urlencode(question.query | {'cursor': stop})}"
        return _json(entries[start:stop], **({"Link": f'<{following}>; rel="next"'} if stop < len(entries) else {}))

    def _repo(self, name: str, token: str | None) -> Repo:
        repo = self.repos.get(name)
        if repo is None or (
            repo.private and token not in (GRANTED, WRITER)
        ):  # who may not see it is not told that it exists
            if token:
                raise Refusal(404, "RepoNotFound", "Repository not found")
            raise Refusal(401, "RepoNotFound", "Invalid username or password.")
        return repo


class _Handler(BaseHTTPRequestHandler):
    """The wire: reads a request, has it answered, records both, writes the reply."""

    server: HubServer
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        address = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ") or None
        byte_range = self.headers["Range"]
        body = self._body()
        try:
            reply = self.server.answer(Question(self.command, address.path, query, token, byte_range, body))
        except Refusal as refusal:
            reply = refusal.reply
        except ConnectionResetError:
            self.close_connection = True
            return
        except Exception:  # a fault of this imitation: `hub` raises it at the end
            self.server.faults.append(traceback.format_exc())
            reply = Reply(500, b"fault")
        path = unquote(address.path)
        self.server.requests.append(Request(self.command, path, reply.status, byte_range, token))
        self._write(reply, self._cut(path, reply))

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _body(self) -> bytes:
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _cut(self, path: str, reply: Reply) -> int | None:
        address = re.fullmatch(r"/(?:storage/)?([^/]+/[^/]+)/(?:resolve/)?[^/]+/(.+)", path)
        if self.command != "GET" or reply.status not in (200, 206) or not address:
            return None
        points = self.server.cuts.get((address[1], address[2]))
        return points.pop(0) if points else None

    def _write(self, reply: Reply, cut: int | None) -> None:
        self.send_response(reply.status)
        for name, value in ({"Content-Type": "application/octet-stream"} | reply.headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[:cut])
            self.close_connection |= cut is not None

    def log_message(self, format: str, *args: object) -> None:
        """`server.requests` is the log."""


@contextmanager
def hub(repos: Mapping[str, Repo], *, page_size: int = 1000) -> Iterator[HubServer]:
    """A running Hub with these repositories (`hub_content.published()` is a set to read). `page_size` is how many
    entries one page of a listing holds. A fault of the imitation itself is an AssertionError at the end."""
    server = HubServer(repos, page_size)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert not server.faults, "\n".join(server.faults)


def child(*arguments: str, env: Mapping[str, str]) -> Done:
    """Runs this Python in a process of its own: one argument is a snippet (with `json` and `raised` at hand, see below),
    several are the interpreter's own (`"-m", "gemscope", "look", ...`).

    `raised(function, *arguments, **options)` calls and returns the exception's class names, its own first, up to
    Exception (without it), or [] when nothing was raised: `assert "GatedRepoError" in raised(...)`.
    """
    return python(*(("-c", _PRELUDE + arguments[0]) if len(arguments) == 1 else arguments), env=env)


_PRELUDE = """
import json
def raised(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except Exception as error:
        return [kind.__name__ for kind in type(error).__mro__ if kind not in (Exception, BaseException, object)]
    return []
"""


def _way(file: Mapping[str, Any], snapshot: Snapshot) -> dict[str, Any]:
    """How a file is to be sent, and what lies there under its name."""
    path = file["path"]
    oid = snapshot.sha256.get(path, snapshot.oids.get(path))
    way = "lfs" if path.endswith(LARGE) else "regular"
    return {"path": path, "uploadMode": way, "shouldIgnore": False} | ({"oid": oid} if oid else {})


def _snapshot(repo: Repo, revision: str) -> Snapshot:
    if revision not in repo.snapshots:
        raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return repo.snapshots[revision]


def _content(path: str, snapshot: Snapshot, byte_range: str | None) -> Reply:
    data, etag = snapshot.files[path], snapshot.sha256.get(path, snapshot.oids[path])
    headers = {
        "ETag": f'"{etag}"',
        "X-Repo-Commit": snapshot.commit,
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'inline; filename="{path.rpartition("/")[2]}";',
    }
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", byte_range or "")
    if not wanted:
        return Reply(200, data, headers)
    first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
    if first >= len(data):
        raise Refusal(416, None, "Range not satisfiable", **{"Content-Range": f"bytes */{len(data)}"})
    return Reply(206, data[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"})


def _refs(repo: Repo) -> dict[str, Any]:
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": repo.snapshots[name].commit}
        for name in ("main", *repo.revisions)
    ]
    return {"branches": branches, "converts": [], "tags": [], "pullRequests": []}


def _model_info(name: str, repo: Repo, snapshot: Snapshot, *, with_blobs: bool) -> dict[str, Any]:
    def sibling(path: str) -> dict[str, Any]:
        entry = snapshot.entry(path)
        lfs = {"sha256": entry["lfs"]["oid"], "size": entry["size"], "pointerSize": 134} if "lfs" in entry else None
        blob = {"blobId": entry["oid"], "size": entry["size"]} | ({"lfs": lfs} if lfs else {})
        return {"rfilename": path} | (blob if with_blobs else {})

    return {
        "id": name,
        "modelId": name,
        "author": name.partition("/")[0],
        "sha": snapshot.commit,
        "lastModified": "2024-08-01T00:00:00.000Z",
        "createdAt": "2024-07-01T00:00:00.000Z",
        "private": repo.private,
        "gated": "manual" if repo.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [sibling(path) for path in snapshot.files],
    }


def _json(value: object, **headers: str) -> Reply:
    return Reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"} | headers)


def _git_id(kind: str, data: bytes) -> str:
    return hashlib.sha1(b"%s %d\0" % (kind.encode(), len(data)) + data).hexdigest()
