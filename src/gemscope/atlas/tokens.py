"""From what a token reads to the token, and from there to the features whose examples peak on it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from gemscope.atlas.dashboard import Summary
from gemscope.atlas.files import hits
from gemscope.atlas.files.database import Database
from gemscope.atlas.lists import Lists
from gemscope.atlas.text import Text


@dataclass(frozen=True)
class TokenHit:
    """A feature that fires on a token."""

    summary: Summary
    strength: float
    """The strongest of its examples on the token, as a share of the feature's maximum."""
    examples: int
    """How many of its examples peak there."""


class ByToken:
    """How many features each token has is kept."""

    def __init__(self, text: Text, database: Database, lists: Lists) -> None:
        self._text, self._database, self._lists = text, database, lists

    def like(self, text: str, limit: int) -> list[tuple[int, str, int]]:
        """Tokens that read so: id, text and number of features; the closest first, then those with the most."""
        vocabulary, found = self._text.vocabulary, list[tuple[int, str, int]]()
        for ids in vocabulary.like(text):
            counted = [(id_, vocabulary.alone(id_), self._features.get(id_, 0)) for id_ in ids]
            found += sorted(counted, key=lambda one: (-one[2], len(one[1]), one[0]))
        return found[:limit]

    @cached_property
    def _features(self) -> dict[int, int]:
        with self._database.reading() as db:
            return dict(db.execute("SELECT token, features FROM token_feature"))

    def hits(self, token_id: int, limit: int) -> list[TokenHit]:
        """Most examples first, then the strongest. Raises CorruptFile."""
        with self._database.reading() as db:
            row = db.execute(
                "SELECT packed, features FROM token_feature WHERE token = ?", (max(-1, min(int(token_id), 1 << 62)),)
            ).fetchone()
        if row is None:
            return []
        with self._database.undamaged(f"token {token_id}"):
            packed, features = row
            found = hits.unpack(packed, features, self._text.manifest.d_sae)[:limit]
        summaries = self._lists.of(found["feature"].tolist())
        return list(map(TokenHit, summaries, found["strength"].tolist(), found["examples"].tolist()))
