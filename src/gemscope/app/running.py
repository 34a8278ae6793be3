"""Which servers of this user's run on this machine, and what they serve: so that a shell can say where a page lies.

A server leaves a note in a folder of its user's while it runs. Nothing secret stands in it: where a server asks for a
token, a browser that brought it once has its cookie.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from gemscope.activations.bundled import cache_dir
from gemscope.atlas.files.manifest import Manifest
from gemscope.checked import read_json
from gemscope.disk import written_aside
from gemscope.errors import GemscopeError
from gemscope.pages.links import ServerLinks

_SECONDS = 0.5
"""For a server on this very machine to answer."""
_LOOPBACK = re.compile(r"http://(127\.0\.0\.1|localhost|\[::1\]):([0-9]{1,5})")


@dataclass(frozen=True, kw_only=True)
class Served:
    """An atlas that a server shows, and what its pages are called there."""

    model: str
    source: str
    contents: str
    """What tells it from other atlases (`contents_of`)."""


@dataclass(frozen=True, kw_only=True)
class Note:
    """What one server says of itself."""

    url: str
    atlases: tuple[Served, ...]


def contents_of(manifest: Manifest) -> str:
    """What tells an atlas from others, wherever copies of it lie and whatever is said of its features."""
    return " ".join((manifest.model, manifest.sae, manifest.sae_digest, *(part.digest for part in manifest.parts)))


def noted(url: str, manifests: Iterable[Manifest]) -> Path | None:
    """Notes that a server at `url` shows these atlases; where. None for one that is not of this machine alone, or where
    nothing can be written: a server does without.
    """
    if not _LOOPBACK.fullmatch(url):
        return None
    atlases = tuple(
        Served(
            model=one.model_id,
            source=one.source_id,
            contents=contents_of(one),
        )
        for one in manifests
    )
    try:
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"{re.sub('[^a-z0-9]+', '-', url)}.json"
        with written_aside(path) as aside:
            aside.write_text(json.dumps(asdict(Note(url=url, atlases=atlases))), encoding="utf-8", errors="replace")
    except (OSError, RuntimeError, GemscopeError):
        return None
    return path


def links_to(manifest: Manifest) -> ServerLinks | None:
    """To the pages of an atlas, on a server of this user's that runs now; None where there is none.

    Notes of servers that ended without a word are taken away.
    """
    wanted = contents_of(manifest)
    for path, note in _notes():
        for one in note.atlases:
            if one.contents == wanted and _answers(path, note.url):
                return ServerLinks(one.model, one.source, note.url)
    return None


def _folder() -> Path:
    """Raises RuntimeError where this user has no place of their own."""
    own = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(own) / "gemscope" if Path(own).is_absolute() else cache_dir() / "running"


def _notes() -> Iterator[tuple[Path, Note]]:
    with suppress(OSError, RuntimeError):
        for path in sorted(_folder().glob("*.json")):
            with suppress(GemscopeError):
                note = read_json(path, Note, closed=True)
                if _LOOPBACK.fullmatch(note.url):
                    yield path, note


def _answers(path: Path, url: str) -> bool:
    """Whether a server of ours is there: it says how it is, or that it asks for its token."""
    import http.client

    found = _LOOPBACK.fullmatch(url)
    assert found is not None
    try:
        asked = http.client.HTTPConnection(found[1].strip("[]"), int(found[2]), timeout=_SECONDS)
        try:
            asked.request("GET", "/health")
            answer = asked.getresponse()
            said = answer.read(100)
        finally:
            asked.close()
    except ConnectionRefusedError:  # nobody is there any more
        with suppress(OSError):
            path.unlink()
        return False
    except (OSError, http.client.HTTPException):
        return False
    if answer.status == 401:
        return 'realm="gemscope"' in (answer.getheader("www-authenticate") or "")
    return answer.status == 200 and said.startswith(b'{"ok":true')
