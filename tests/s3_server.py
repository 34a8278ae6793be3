"""A small S3 on loopback: objects in memory, the calls that a client of a folder makes (GET with a range, HEAD, PUT, also
if there is none yet and in parts, LIST in pages, DELETE), and faults to order. It asks for a key and does not check what
is signed; that a client gets on with other servers is shown elsewhere.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

KEY, SECRET = "AKIATESTKEY00000000", "a-secret-that-stands-nowhere"


@dataclass
class Request:
    """What was asked for."""

    method: str
    key: str
    """Of the object, with its bucket; of a list what it is of."""
    query: dict[str, str]
    headers: dict[str, str]
    number: int
    """How often this object was asked for in this way, this time among them."""


Fault = Callable[[Request], "int | str | None"]
"""What befalls a request: a status to answer with; "cut", a body that breaks off in its middle; "lost", an answer that
never comes to what was done; "held", none before the server ends; None, nothing.
"""


@dataclass
class S3:
    """The server's objects, and what was asked of it."""

    address: str
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[Request] = field(default_factory=list)
    fault: Fault = field(default=lambda request: None)
    page: int = 1000
    """How many names a list has at most."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def environment(self) -> dict[str, str]:
        """What leads a client here."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def count(self, method: str, pattern: str = "") -> int:
        """How many requests of a kind there were for what the pattern is found in."""
        return sum(one.method == method and re.search(pattern, one.key) is not None for one in self.asked)

    def names(self, prefix: str) -> dict[str, bytes]:
        """The objects below a folder, by their path from it."""
        return {key.removeprefix(prefix): data for key, data in self.objects.items() if key.startswith(prefix)}


@contextmanager
def s3_server() -> Iterator[S3]:
    """One that runs while the block does."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        server.s3 = s3 = S3(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield s3
        finally:
            s3.ended.set()
            server.shutdown()
            thread.join()


class _Cut(Exception):
    """The connection ends here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *args: object) -> None:
        pass

    @property
    def s3(self) -> S3:
        return self.server.s3  # type: ignore[attr-defined, no-any-return]

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (_Cut, ConnectionError):
            self.close_connection = True

    def _any(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        key = unquote(url.path).lstrip("/")
        self._body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.s3.lock:
            number = 1 + Counter((one.method, one.key) for one in self.s3.asked)[self.command, key]
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, key, query, headers, number)
            self.s3.asked.append(request)
        self._fault = self.s3.fault(request)
        if self._fault == "held":
            self.s3.ended.wait(60)
            raise _Cut
        if isinstance(self._fault, int):
            return self._refuse(
                self._fault, {503: "SlowDown", 412: "PreconditionFailed"}.get(self._fault, "InternalError")
            )
        if f"Credential={KEY}/" not in self.headers.get("Authorization", ""):
            return self._refuse(403, "InvalidAccessKeyId")
        with self.s3.lock:
            answer = {"GET": self._get, "HEAD": self._get, "PUT": self._put, "DELETE": self._delete, "POST": self._post}
            answer[self.command](key, query)
        return None

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = _any

    def _get(self, key: str, query: dict[str, str]) -> None:
        if "list-type" in query:
            return self._list(key, query)
        data = self.s3.objects.get(key)
        if data is None:
            return self._refuse(404, "NoSuchKey")
        headers = {"ETag": _etag(data), "Last-Modified": "Sun, 29 Nov 2026 00:00:00 GMT", "Accept-Ranges": "bytes"}
        if self.headers.get("If-Match", _etag(data)) != _etag(data):
            return self._refuse(412, "PreconditionFailed")
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(found[1]), min(int(found[2] or len(data) - 1), len(data) - 1)
            if start >= len(data):
                return self._refuse(416, "InvalidRange")
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            return self._answer(206, data[start : end + 1], headers)
        return self._answer(200, data, headers)

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        keys = sorted(
            key.removeprefix(f"{bucket.strip('/')}/")
            for key in self.s3.objects
            if key.startswith(bucket.strip("/") + "/")
        )
        keys = [key for key in keys if key.startswith(prefix) and key > query.get("continuation-token", "")]
        shown, more = keys[: self.s3.page], len(keys) > self.s3.page
        folders = {
            key[: key.index(delimiter, len(prefix)) + 1]
            for key in shown
            if delimiter and delimiter in key[len(prefix) :]
        }
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.s3.objects[f'{bucket}/{key}'])}</Size>"
            f"<ETag>{escape(_etag(self.s3.objects[f'{bucket}/{key}']))}</ETag>"
            "<LastModified>2026-11-29T00:00:00.000Z</LastModified></Contents>"
            for key in shown
            if not any(key.startswith(folder) for folder in folders)
        ) + "".join(f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in sorted(folders))
        token = f"<NextContinuationToken>{escape(shown[-1])}</NextContinuationToken>" if more else ""
        self._xml("ListBucketResult", f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}")

    def _put(self, key: str, query: dict[str, str]) -> None:
        if "partNumber" in query:
            self.s3.parts[query["uploadId"]][int(query["partNumber"])] = self._body
        elif self.headers.get("If-None-Match") == "*" and key in self.s3.objects:
            return self._refuse(412, "PreconditionFailed")
        else:
            self.s3.objects[key] = self._body
        return self._answer(200, b"", {"ETag": _etag(self._body)})

    def _post(self, key: str, query: dict[str, str]) -> None:
        if "uploads" in query:
            upload = f"upload-{len(self.s3.parts)}"
            self.s3.parts[upload] = {}
            return self._xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")
        if "delete" in query:
            keys = re.findall(rb"<Key>([^<]*)</Key>", self._body)
            for one in keys:
                self.s3.objects.pop(f"{key.rstrip('/')}/{one.decode()}", None)
            return self._xml("DeleteResult", "".join(f"<Deleted><Key>{one.decode()}</Key></Deleted>" for one in keys))
        data = b"".join(part for _, part in sorted(self.s3.parts.pop(query["uploadId"]).items()))
        self.s3.objects[key] = data
        return self._xml("CompleteMultipartUploadResult", f"<ETag>{escape(_etag(data))}</ETag>")

    def _delete(self, key: str, query: dict[str, str]) -> None:
        self.s3.parts.pop(query.get("uploadId", ""), None) if "uploadId" in query else self.s3.objects.pop(key, None)
        self._answer(204, b"")

    def _refuse(self, status: int, code: str) -> None:
        # As S3 does: what was signed, and by which key, stands in the answer.
        text = f"<Error><Code>{code}</Code><Message>no</Message><AWSAccessKeyId>{KEY}</AWSAccessKeyId></Error>"
        self._answer(status, text.encode(), {"Content-Type": "application/xml"})

    def _xml(self, name: str, inside: str) -> None:
        self._answer(200, f'<?xml version="1.0" encoding="UTF-8"?><{name}>{inside}</{name}>'.encode())

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        if self._fault == "lost":
            raise _Cut
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if self._fault == "cut" else body)
        self.wfile.flush()
        if self._fault == "cut":
            raise _Cut


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
