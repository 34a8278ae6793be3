"""Features by the words of their explanations."""

from __future__ import annotations

from gemscope.atlas.files.database import Database
from gemscope.errors import CorruptFile

_WORDS = 32
"""Words of a search that are looked for."""


def best(text: str, many: int, database: Database) -> list[int]:
    """Features, those first whose explanations fit best (BM25). Raises CorruptFile."""
    query = _query(text)
    if not query or not many:
        return []
    found: dict[int, None] = {}  # features in order: one with several explanations comes once
    with database.reading() as db:
        ranked = db.execute("SELECT rowid FROM label_text WHERE label_text MATCH ? ORDER BY rank", (query,))
        for (id_,) in ranked:
            said = db.execute("SELECT feature FROM explanation WHERE id = ?", (id_,)).fetchone()
            if said is None:
                raise CorruptFile(f"{database.path} is damaged: its search finds explanation {id_}, which is gone")
            found.setdefault(said[0])
            if len(found) >= many:
                break
        ranked.close()
    return list(found)


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


def _query(text: str) -> str:
    """Words as FTS5 takes them, each quoted so that none is an operator; the last may be the beginning of one."""
    # A NUL would end the query early, half a surrogate pair cannot be sent.
    words = text.replace("\0", " ").encode(errors="replace").decode().split()[:_WORDS]
    words = [word for word in words if any(map(str.isalnum, word))]
    quoted = ['"' + word.replace('"', '""') + '"' for word in words]
    return " ".join(quoted) + "*" if quoted else ""
