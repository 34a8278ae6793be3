"""A folder of objects in a bucket, s3:// or gs://: whole and in ranges, put whole or if there is none yet. What breaks
is tried again until a deadline, and then said in one line. The only file that knows obstore.

Nothing of a key, nor of what a server says of one, gets into a message, a manifest or a file.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from gemscope.activations import cached
from gemscope.disk import room
from gemscope.errors import AccessError, CorruptFile, InputError, MissingDependency, NotFound, StoreUnreachable

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")
U = TypeVar("U")

_SCHEMES = ("s3", "gs")
LAST = "manifest.json"
"""What is written last: with it a folder is whole."""
PATIENCE = "GEMSCOPE_PATIENCE"
_PATIENCE = 300.0
"""Seconds to go on trying."""
_FIRST = 15.0
"""The same of a store that has never answered yet: its name, the network or a key may be wrong."""
_SILENCE = 30.0
"""Seconds without a byte after which a reading is broken off."""
_LONGEST_WAIT = 10.0
_AT_ONCE = 16
"""Requests at a time."""
_LATER = {408, 409, 425, 429}
"""Of the refusals those that are worth another try; so are all faults of a server's own."""


def is_bucket(address: str) -> bool:
    """Whether an address is of a bucket."""
    return address.partition("://")[0] in _SCHEMES and "://" in address


class Bucket:
    """A folder in a bucket. Who may read and write it, and where its server is, the environment says, as for other
    tools (AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL, ...; a machine's own role; GOOGLE_APPLICATION_CREDENTIALS).
    """

    def __init__(self, scheme: str, bucket: str, folder: str, patience: float) -> None:
        self._scheme, self._bucket, self._folder, self._patience = scheme, bucket, folder, patience
        self._answered = False

    @classmethod
    def at(cls, address: str) -> Bucket:
        """Raises InputError for what names no folder in a bucket, MissingDependency."""
        url = urlsplit(address)
        if "@" in url.netloc or url.query or url.fragment:  # not repeated here: it may hold a key
            raise InputError(
                f"an address of {url.scheme}:// holds no keys, nor ? or #: set them in the environment "
                "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)"
            )
        names = url.path.strip("/").split("/")
        if not re.fullmatch(r"[\w.-]+", url.netloc) or {"", ".", ".."} & set(names):
            raise InputError(f"{address} names no folder in a bucket: expected {url.scheme}://BUCKET/FOLDER")
        text = os.environ.get(PATIENCE, "")
        try:
            patience = float(text) if text else _PATIENCE
        except ValueError:
            patience = math.nan
        if not patience > 0:
            raise InputError(f"{PATIENCE}={text}: expected seconds")
        return cls(url.scheme, url.netloc, "/".join(names), patience)

    def __str__(self) -> str:
        return f"{self._scheme}://{self._bucket}/{self._folder}"

    @property
    def inside(self) -> str:
        """The bucket and the folder in it."""
        return f"{self._bucket}/{self._folder}"

    # --- what is there --------------------------------------------------------------------------------------------

    def names(self, under: str = "") -> list[str]:
        """All objects below it, or below a folder in it, by their paths from it."""

        def listed() -> list[str]:
            pages = self._library.list(self._reading, f"{self._folder}/{under}")
            return [one["path"].removeprefix(f"{self._folder}/") for page in pages for one in page]

        return self._tried("", listed)

    def has(self, name: str) -> bool:
        return self.about(name) is not None

    def about(self, name: str) -> tuple[int, str] | None:
        """How many bytes an object has, and what tells it from what had its name before; None where there is none."""
        try:
            found = self._tried(name, lambda: self._library.head(self._reading, self._key(name)))
        except NotFound:
            return None
        return int(found["size"]), str(found["e_tag"] or found["last_modified"])

    # --- reading --------------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        with TemporaryDirectory(prefix="gemscope-") as folder:
            path = Path(folder, name.rpartition("/")[2])
            with room(path):
                self.copy(name, path)
            yield path

    def kept(self, name: str, digest: str = "") -> Path:
        found = self.cached(name, digest)
        if found is None:
            raise cached.no_room(f"{self}/{name}")
        return found

    def cached(self, name: str, digest: str = "") -> Path | None:
        """The object in the cache, fetched if it is not there; None where there is no room for it. Raises as `kept`."""
        key = digest
        if digest and (found := cached.found(digest, name)) is not None:
            return found
        if (about := self.about(name)) is None:
            raise NotFound(f"no object {self}/{name}")
        size, version = about
        key = key or hashlib.sha256(f"{self}/{name}\n{size}\n{version}".encode()).hexdigest()

        def write(path: Path) -> None:
            there = self.copy(name, path)
            if digest and there != digest:
                raise CorruptFile(f"{self}/{name} is damaged: its checksum is another")

        return cached.kept(key, name, size, write)

    def digest(self, name: str) -> str:
        return self.copy(name, None)

    def copy(self, name: str, to: Path | None) -> str:
        """Writes all of an object to a file, or nowhere; its SHA-256. What breaks off goes on where it broke."""
        with open(os.devnull if to is None else to, "wb") as file:
            done, version, sum_ = 0, None, hashlib.sha256()

            def rest() -> None:
                nonlocal done, version, sum_
                more = {"range": {"offset": done}, "if_match": version} if done else None
                try:
                    found = self._library.get(self._reading, self._key(name), options=more)
                except self._library.exceptions.PreconditionError:  # somebody has put another there meanwhile
                    file.seek(0)
                    file.truncate()
                    done, version, sum_ = 0, None, hashlib.sha256()
                    raise
                version, size = found.meta["e_tag"], found.meta["size"]
                for chunk in found.stream(1 << 16):
                    file.write(chunk)
                    sum_.update(chunk)
                    done += len(chunk)
                if done != size:
                    raise EOFError

            self._tried(name, rest, lambda: done)
        return sum_.hexdigest()

    def ranges(self, name: str, starts: Sequence[int], ends: Sequence[int]) -> list[bytes]:
        """Parts of an object, from each start to its end. Those that lie close to each other are asked for together."""

        def parts() -> list[bytes]:
            found = self._library.get_ranges(self._reading, self._key(name), starts=starts, ends=ends, coalesce=_CLOSE)
            if [len(one) for one in found] != [end - start for start, end in zip(starts, ends, strict=True)]:
                raise EOFError
            return [bytes(one) for one in found]

        return self._tried(name, parts)

    def each(self, do: Callable[[T], U], of: Iterable[T]) -> Iterator[U]:
        waiting: deque[Future[U]] = deque()
        for one in of:
            waiting.append(self._pool.submit(do, one))
            if len(waiting) >= 2 * _AT_ONCE:  # not all that there are: what comes is held until it is asked for
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    # --- writing --------------------------------------------------------------------------------------------------

    @contextmanager
    def making(self, name: str, *, anew: bool = False) -> Iterator[Path]:
        with TemporaryDirectory(prefix="gemscope-") as folder:
            yield Path(folder)

    def take(self, file: Path, name: str) -> None:
        self._tried(
            name, lambda: self._library.put(self._writing, self._key(name), file, max_concurrency=4, chunk_size=_CHUNK)
        )

    def put_once(self, name: str, write: Callable[[Path], None]) -> bool:
        with TemporaryDirectory(prefix="gemscope-") as folder:
            path = Path(folder, name.rpartition("/")[2])
            write(path)

            def put() -> bool:
                try:
                    self._library.put(self._writing, self._key(name), path, mode="create")
                    return True
                except self._library.exceptions.AlreadyExistsError as error:
                    told = error
                # Two who ask at the same moment may both be told so. Where an answer was lost it is there, by our own
                # hand.
                if not self.has(name):
                    raise told
                return False

            return self._tried(name, put)

    def remove(self, names: Iterable[str]) -> None:
        if keys := [self._key(name) for name in names]:
            self._tried("", lambda: self._library.delete(self._writing, keys))

    # --- of what is being made --------------------------------------------------------------------------------------

    @property
    def unfinished(self) -> Bucket:
        """There is no renaming, so it is made where it will be."""
        return self

    @property
    def is_whole(self) -> bool:
        return self.has(LAST)

    def begin(self, *folders: str) -> None:
        """There are no folders, and nothing half-written."""

    def tidy(self, kept: set[str]) -> None:
        self.remove(name for name in self.names() if name not in kept)

    def leave(self) -> None:
        """Nothing half-written is ever here."""

    def become(self, whole: object) -> None:
        """It lies there already."""

    def discard(self, under: str = "") -> None:
        self.remove(self.names(under))

    def end(self, *folders: str) -> None:
        """Nothing is ever empty."""

    def room(self, whole: object, kept: Callable[[], str]) -> AbstractContextManager[None]:
        return room(Path(str(whole)), Path(os.curdir), kept=kept)

    @property
    def free(self) -> int | None:
        return None

    # --- asking -----------------------------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        return f"{self._folder}/{name}"

    @cached_property
    def _library(self) -> Any:
        try:
            import obstore
            import obstore.exceptions
        except ImportError as error:
            raise MissingDependency(f'{self} needs the obstore package: pip install "gemscope[s3]"') from error
        return obstore

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_AT_ONCE, "bucket")

    @cached_property
    def _reading(self) -> ObjectStore:
        silence = timedelta(seconds=min(_SILENCE, self._patience))
        return self._client(read_timeout=silence, timeout=timedelta(days=1))

    @cached_property
    def _writing(self) -> ObjectStore:
        return self._client(timeout=timedelta(seconds=self._patience))  # of silence it cannot tell a long sending

    def _client(self, **options: timedelta) -> ObjectStore:
        self._library  # noqa: B018  says what is missing
        from obstore.store import from_url

        first = timedelta(seconds=min(_FIRST, self._patience))
        plain = any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)  # who says so means it
        # Not every server that speaks as S3 does takes a list of what is to be deleted.
        one_by_one: dict[str, Any] = {"disable_bulk_delete": True} if self._scheme == "s3" else {}
        return from_url(
            f"{self._scheme}://{self._bucket}",
            **one_by_one,
            client_options={"connect_timeout": first, **options, **({"allow_http": True} if plain else {})},
            retry_config={"max_retries": 0, "retry_timeout": first},  # what is tried again, and how long, is said here
        )

    def _tried(self, name: str, do: Callable[[], T], done: Callable[[], int] = lambda: 0) -> T:
        """Until it goes well, or no more of it is `done` for as long as patience lasts."""
        what = f"{self}/{name}" if name else str(self)
        began, before, wait = time.monotonic(), done(), 0.1
        while True:
            try:
                found = do()
                self._answered = True
                return found
            except Exception as error:
                if _is_ours(error):
                    raise
                self._require_another(what, error)
                reason = _reason(error)
            if done() != before:
                began, before, wait = time.monotonic(), done(), 0.1
            patience = self._patience if self._answered else min(_FIRST, self._patience)
            left = began + patience - time.monotonic()
            if left <= 0:
                raise StoreUnreachable(
                    f"{what}: given up after {patience:g} s, at last {reason}; what is done is done, start it again "
                    f"({PATIENCE} says how many seconds to go on trying)"
                )
            time.sleep(min(wait * random.uniform(0.5, 1), left))  # not all workers at the same moment
            wait = min(2 * wait, _LONGEST_WAIT)

    def _require_another(self, what: str, error: Exception) -> None:
        """Raises what no other try would mend. What the server said stands in none of it: it names the key."""
        status, kinds = _status(error), self._library.exceptions
        if status is not None:
            self._answered = self._answered or status != 403
        if isinstance(error, FileNotFoundError):
            if "NoSuchBucket" in str(error):
                raise NotFound(f"no bucket {self._scheme}://{self._bucket}") from None
            raise NotFound(f"no object {what}") from None
        if _METADATA in str(error) and not self._answered:
            raise AccessError(
                f"no key for {self._scheme}://{self._bucket}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                "AWS_SKIP_SIGNATURE=true where anybody may read"
            ) from None
        if isinstance(error, kinds.PermissionDeniedError | kinds.UnauthenticatedError):
            raise AccessError(f"{what} may not be read or written with this key ({_reason(error)})") from None
        refused = status is not None and 400 <= status < 500 and status not in (*_LATER, 412)
        if refused or status == 501 or isinstance(error, kinds.NotSupportedError) or "region" in _said(error):
            raise AccessError(
                f"{what} was refused ({_reason(error)}): see that AWS_REGION and AWS_ENDPOINT_URL are its server's"
            ) from None


_CLOSE = 1 << 16
"""Bytes between two ranges that are asked for together."""
_CHUNK = 5 << 20
_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_S3_ENDPOINT")
_METADATA = "169.254.169.254"
"""Whom a machine in a cloud asks for its role."""


def _said(error: BaseException) -> str:
    """The library's first line: behind it stands all that it knows."""
    return str(error).partition("\n")[0]


def _status(error: BaseException) -> int | None:
    found = re.search(r"status code: (\d{3})", _said(error))
    return int(found[1]) if found else None


def _reason(error: BaseException) -> str:
    """Why, in a few words; none of what was signed."""
    if (status := _status(error)) is not None:
        code = re.search(r"<Code>(\w{1,60})</Code>", str(error))
        return f"HTTP {status}{f' {code[1]}' if code else ''}"
    if isinstance(error, EOFError) or "IncompleteBody" in str(error) or "body error" in _said(error):
        return "its body broke off"
    for sign, words in _SIGNS:
        if sign in str(error):
            return words
    return type(error).__name__


_SIGNS = (
    ("BareRedirect", "it lies in another region"),
    ("dns error", "nobody knows that server"),
    ("TimedOut", "no answer in time"),
    ("kind: Timeout", "no answer in time"),
    ("kind: Connect", "no connection"),
    ("IncompleteMessage", "the connection broke off"),
    ("Interrupted", "the connection broke off"),
    ("Precondition", "another was put there meanwhile"),
    ("AlreadyExists", "others write it too"),
    ("kind: Request", "the connection broke off"),
)


def _is_ours(error: Exception) -> bool:
    """Whether it comes from this side: of a disk, say, or of what was asked."""
    library = type(error).__module__.partition(".")[0] == "obstore"
    return not (library or type(error) in (FileNotFoundError, EOFError, TimeoutError, ConnectionError))
