"""Where pages lie: addresses on the server, in a folder of files, or nowhere. An empty address means: no such page."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Protocol, runtime_checkable
from urllib.parse import quote, quote_plus, urlencode

PAGE = 100
"""Features on one page of a static site's table."""
NEURONPEDIA = "https://www.neuronpedia.org"


def neuronpedia(source: str | None, index: int) -> str:
    """A feature's page there, by the SAE's id; "" for an SAE that is not there."""
    return f"{NEURONPEDIA}/{quote(source)}/{index}" if source else ""


@runtime_checkable
class Links(Protocol):
    """What a template asks for. A query's values are as for `Atlas.summaries`, a list is a name said several times;
    None and "" are left out.
    """

    def home(self) -> str: ...
    def source(self) -> str: ...
    def feature(self, index: int) -> str: ...
    def random(self) -> str:
        """Leads to some feature."""

    def browse(self, **query: object) -> str: ...
    def search(self, **query: object) -> str: ...
    def prompt(self, **query: object) -> str: ...
    def steer(self, **query: object) -> str: ...
    def attribute(self, **query: object) -> str: ...
    def map(self, part: str = "", **query: object) -> str: ...
    def lists(self, id: str = "", what: str = "") -> str: ...
    def compare(self, one: int, other: int) -> str:
        """Two features side by side."""

    def static(self, name: str) -> str: ...
    def json(self, url: str) -> str:
        """Where the data of the page at `url` lies."""


@dataclass(frozen=True)
class ServerLinks:
    """Absolute addresses, in Neuronpedia's shape: `/{model}/{source}/{index}`. Without a model: of no atlas."""

    model_id: str = ""
    source_id: str = ""
    root: str = ""
    """What a proxy puts before every address."""

    def home(self) -> str:
        return f"{self.root}/"

    def source(self) -> str:
        return self._source

    def feature(self, index: int) -> str:
        return f"{self._source}/{index}" if self._source else ""

    def random(self) -> str:
        return self._below("/random", {})

    def browse(self, **query: object) -> str:
        return self._below("", query)

    def search(self, **query: object) -> str:
        return self._below("/search", query)

    def prompt(self, **query: object) -> str:
        return self._below("/prompt", query)

    def steer(self, **query: object) -> str:
        return self._below("/steer", query)

    def attribute(self, **query: object) -> str:
        return self._below("/attribute", query)

    def map(self, part: str = "", **query: object) -> str:
        """The map of all features, or a part of what it is drawn from."""
        return self._below(f"/map/{part}" if part else "/map", query)

    def lists(self, id: str = "", what: str = "") -> str:
        """A list, or what can be done with it; all of them."""
        return "/".join([f"{self.root}/lists", *(quote(one, safe=".") for one in (id, what) if one)])

    def compare(self, one: int, other: int) -> str:
        return f"{self.root}/compare?a={self._said}/{one}&b={self._said}/{other}" if self.model_id else ""

    def texts(self, **query: object) -> str:
        """Two texts side by side."""
        return self._below("/compare", query)

    def static(self, name: str) -> str:
        return f"{self.root}/static/{name}?v={static_digest()}"

    def json(self, url: str) -> str:
        path, mark, query = url.partition("?")
        return f"{path}.json{mark}{query}" if url else ""

    @cached_property
    def _source(self) -> str:
        return f"{self.root}/{quote(self.model_id, safe='')}/{quote(self.source_id, safe='')}" if self.model_id else ""

    @cached_property
    def _said(self) -> str:
        """Model and source as a query says them."""
        return quote_plus(f"{self.model_id}/{self.source_id}", safe="/", errors="replace")

    def _below(self, path: str, query: dict[str, object]) -> str:
        return f"{self._source}{path}{_query(query)}" if self._source else ""


@dataclass(frozen=True)
class ModelLinks:
    """Of a whole model on the server: `/{model}`."""

    model_id: str
    root: str = ""

    def model(self, **query: object) -> str:
        """The SAEs by where they read."""
        return self._below("", query)

    def layers(self, **query: object) -> str:
        """A text through all layers."""
        return self._below("/prompt", query)

    def everywhere(self, **query: object) -> str:
        """A search over all atlases."""
        return f"{self.root}/search{_query(query)}"

    def compare(self, **query: object) -> str:
        """Two SAEs, or two features, side by side."""
        return f"{self.root}/compare{_query(query)}"

    def json(self, url: str) -> str:
        path, mark, query = url.partition("?")
        return f"{path}.json{mark}{query}"

    def _below(self, path: str, query: dict[str, object]) -> str:
        return f"{self.root}/{quote(self.model_id, safe='')}{path}{_query(query)}"


@dataclass(frozen=True)
class SiteLinks:
    """Relative addresses from a file that lies `depth` folders deep in a static site: they work from any file server.

    The table of features is there in its own order, `PAGE` to a file; there is no search and no prompt.
    """

    depth: int
    model_id: str = ""
    source_id: str = ""
    mapped: bool = False
    """Whether it has a map of its features."""

    def home(self) -> str:
        return f"{self._up}index.html"

    def source(self) -> str:
        return f"{self._up}{self._folder}/index.html" if self.model_id else ""

    def feature(self, index: int) -> str:
        return f"{self._up}{self._folder}/{index}/index.html"

    def random(self) -> str:
        return ""

    def browse(self, **query: object) -> str:
        """One of the table's files; "" for another order or a choice among features."""
        asked = {name: value for name, value in query.items() if value not in (None, "", False)}
        offset = asked.pop("offset", 0)
        asked.pop("limit", None)
        if asked.pop("order", "index") != "index" or asked or not isinstance(offset, int):
            return ""
        name = f"page-{offset // PAGE + 1}.html" if offset else "index.html"
        return f"{self._up}{self._folder}/{name}" if self.model_id else ""

    def search(self, **query: object) -> str:
        return ""

    def prompt(self, **query: object) -> str:
        return ""

    def steer(self, **query: object) -> str:
        return ""

    def attribute(self, **query: object) -> str:
        return ""

    def map(self, part: str = "", **query: object) -> str:
        """Its parts are scripts that call: from the disk, browsers load scripts and refuse to read data."""
        if not self.mapped:
            return ""
        place = f"{self._up}{self._folder}/map"
        return f"{place}/{part.removesuffix('.json')}.js" if part else f"{place}.html{_query(query)}"

    def lists(self, id: str = "", what: str = "") -> str:
        return ""

    def compare(self, one: int, other: int) -> str:
        return ""

    def static(self, name: str) -> str:
        return f"{self._up}static/{name}"

    def json(self, url: str) -> str:
        return f"{url.removesuffix('.html')}.json" if url else ""

    @property
    def _up(self) -> str:
        return "../" * self.depth

    @property
    def _folder(self) -> str:
        return f"{quote(self.model_id, safe='')}/{quote(self.source_id, safe='')}"


@dataclass(frozen=True)
class NoLinks:
    """For a single file: only the features `within` it can be reached."""

    within: Collection[int] = ()
    prefix: str = "feature-"
    """Of the names by which features are found within the file."""

    def home(self) -> str:
        return ""

    def source(self) -> str:
        return ""

    def feature(self, index: int) -> str:
        return f"#{self.prefix}{index}" if index in self.within else ""

    def random(self) -> str:
        return ""

    def browse(self, **query: object) -> str:
        return ""

    def search(self, **query: object) -> str:
        return ""

    def prompt(self, **query: object) -> str:
        return ""

    def steer(self, **query: object) -> str:
        return ""

    def attribute(self, **query: object) -> str:
        return ""

    def map(self, part: str = "", **query: object) -> str:
        return ""

    def lists(self, id: str = "", what: str = "") -> str:
        return ""

    def compare(self, one: int, other: int) -> str:
        return ""

    def static(self, name: str) -> str:
        return ""

    def json(self, url: str) -> str:
        return ""


@cache
def static_digest() -> str:
    """Of all static files: part of their addresses, so that they may be kept for ever."""
    digest = sha256()
    for content in _contents(files("gemscope.pages") / "static"):
        digest.update(content)
    return digest.hexdigest()[:12]


def _contents(folder: Traversable) -> Iterator[bytes]:
    for one in sorted(folder.iterdir(), key=lambda one: one.name):
        if one.is_dir():
            yield from _contents(one)
        else:
            yield one.read_bytes()


def _query(query: dict[str, object]) -> str:
    words = {True: "true", False: "false"}
    kept = {
        name: words[value] if isinstance(value, bool) else value
        for name, value in query.items()
        if value is not None and value != ""
    }
    said = urlencode(kept, doseq=True, safe="/", errors="replace")
    return f"?{said}" if said else ""
