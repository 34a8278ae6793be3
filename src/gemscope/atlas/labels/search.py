"""Features by the words of their explanations."""

from __future__ import annotations

from typing import NamedTuple

from gemscope.atlas.files.database import Database
from gemscope.errors import CorruptFile

_SAID = "SELECT feature, text = label FROM explanation JOIN feature ON feature.id = feature WHERE explanation.id = ?"
_WORDS = 32
"""Words of a search that are looked for."""


class Ranked(NamedTuple):
    """A feature that a search found."""

    feature: int
    is_label: bool
    """Whether its label says so; else another of its explanations does."""
    rank: float
    """BM25, as SQLite has it: less is better."""


def best(text: str, many: int, database: Database) -> list[int]:
    """Features: those first whose label says so, then those of which something else does; the best fit first in each
    (BM25). Raises CorruptFile.
    """
    return [one.feature for one in ranked(text, many, database)]


def ranked(text: str, many: int, database: Database) -> list[Ranked]:
    """The same with what they are ranked by. Raises CorruptFile."""
    query = _query(text)
    if not query or not many:
        return []
    # Features in order: one with several explanations comes once.
    shown, other = dict[int, Ranked](), dict[int, Ranked]()
    with database.reading() as db:
        found = db.execute("SELECT rowid, rank FROM label_text WHERE label_text MATCH ? ORDER BY rank", (query,))
        for id_, rank in found:
            said = db.execute(_SAID, (id_,)).fetchone()
            if said is None:
                raise CorruptFile(f"{database.path} is damaged: its search finds explanation {id_}, which is gone")
            feature, is_label = said
            (shown if is_label else other).setdefault(feature, Ranked(feature, bool(is_label), rank))
            if len(shown) >= many:
                break
        found.close()
    return [*shown.values(), *(one for one in other.values() if one.feature not in shown)][:many]


def features_with(text: str, database: Database) -> list[int]:
    """Features with an explanation that has the words, in any order."""
    query = _query(text)
    if not query:
        return []
    with database.reading() as db:
        rows = db.execute(
            "SELECT feature FROM label_text JOIN explanation ON id = label_text.rowid WHERE label_text MATCH ?",
            (query,),
        ).fetchall()
    return [feature for (feature,) in rows]


def count_with(text: str, database: Database) -> int:
    """How many these are."""
    query = _query(text)
    if not query:
        return 0
    with database.reading() as db:
        found = db.execute(
            "SELECT count(DISTINCT feature) FROM label_text JOIN explanation ON id = label_text.rowid"
            " WHERE label_text MATCH ?",
            (query,),
        ).fetchone()
    return int(found[0])


def _query(text: str) -> str:
    """Words as FTS5 takes them, each quoted so that none is an operator; the last may be the beginning of one."""
    # A NUL would end the query early, half a surrogate pair cannot be sent.
    words = text.replace("\0", " ").encode(errors="replace").decode().split()[:_WORDS]
    words = [word for word in words if any(map(str.isalnum, word))]
    quoted = ['"' + word.replace('"', '""') + '"' for word in words]
    return " ".join(quoted) + "*" if quoted else ""
