"""From what a token reads to the token, and from there to the features whose examples peak on it, or that promote
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gemscope.atlas.dashboard import Summary
from gemscope.atlas.files import hits, written
from gemscope.atlas.files.database import Database
from gemscope.atlas.lists import Lists
from gemscope.atlas.text import Text
from gemscope.errors import CorruptFile


@dataclass(frozen=True)
class TokenHit:
    """A feature that fires on a token."""

    summary: Summary
    strength: float
    """The strongest of its examples on the token, as a share of the feature's maximum."""
    examples: int
    """How many of its examples peak there."""


@dataclass(frozen=True)
class Promoter:
    """A feature that promotes a token, by the measured effect of its site."""

    summary: Summary
    value: float
    """By how much a unit of the feature raises the token's logit."""
    stands_out: float
    """The same in standard deviations of what the feature does to all tokens."""
    place: int
    """Where the token stands among those that the feature promotes most, from 0."""


class ByToken:
    """How many features each token has is kept."""

    def __init__(self, text: Text, database: Database, lists: Lists) -> None:
        self._text, self._database, self._lists = text, database, lists

    def like(self, text: str, limit: int, *, promoted: bool = False) -> list[tuple[int, str, int]]:
        """Tokens that read so, but for case and blanks around, then those that begin so: id, text and number of
        features that fire on it, or promote it. Those with the most come first; who looks for "paris" wants the Paris
        that there is.
        """
        vocabulary, found = self._text.vocabulary, list[tuple[int, str, int]]()
        numbers = self._promoters if promoted else self._features
        same, variants, longer = vocabulary.like(text)
        for ids in (same + variants, longer):
            counted = [(id_, vocabulary.alone(id_), numbers.get(id_, 0)) for id_ in ids]
            found += sorted(counted, key=lambda one: (-one[2], one[1] != text, len(one[1]), one[0]))
        return found[:limit]

    @cached_property
    def _features(self) -> dict[int, int]:
        with self._database.reading() as db:
            return dict(db.execute("SELECT token, features FROM token_feature"))

    @cached_property
    def _promoters(self) -> dict[int, int]:
        with self._database.reading() as db:
            return dict(db.execute("SELECT token, features FROM token_written"))

    def promoters(self, token_id: int, limit: int) -> list[Promoter]:
        """Those first among whose effects the token stands out most. Raises CorruptFile."""
        with self._database.reading() as db:
            row = db.execute(
                "SELECT packed, features FROM token_written WHERE token = ?", (_bound(token_id),)
            ).fetchone()
            if row is None:
                return []
            with self._database.undamaged(f"token {token_id}"):
                packed, count = row
                features = written.unpack_list(packed, count, self._text.manifest.d_sae)[:limit].tolist()
                each = written.of_features(db, features)
                places = {one: np.flatnonzero(found.promoted == token_id) for one, found in each.items()}
                if not all(one in places and len(places[one]) for one in features):
                    raise CorruptFile("features are listed for it that do not promote it")
        found = []
        for summary in self._lists.of(features):
            one, place = each[summary.feature], int(places[summary.feature][0])
            value = float(one.promoted_values[place])
            found.append(Promoter(summary, value, value / one.spread, place))
        return found

    def hits(self, token_id: int, limit: int) -> list[TokenHit]:
        """Most examples first, then the strongest. Raises CorruptFile."""
        with self._database.reading() as db:
            row = db.execute(
                "SELECT packed, features FROM token_feature WHERE token = ?", (_bound(token_id),)
            ).fetchone()
        if row is None:
            return []
        with self._database.undamaged(f"token {token_id}"):
            packed, features = row
            found = hits.unpack(packed, features, self._text.manifest.d_sae)[:limit]
        summaries = self._lists.of(found["feature"].tolist())
        return list(map(TokenHit, summaries, found["strength"].tolist(), found["examples"].tolist()))


def _bound(token_id: int) -> int:
    """As SQLite can take it."""
    return max(-1, min(int(token_id), 1 << 62))
