"""What features stand for, as people and methods say it: the newest explanation of each is its label."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemscope.atlas.dashboard import Explanation
from gemscope.atlas.entry import Ints
from gemscope.atlas.files import schema
from gemscope.atlas.files.database import Database, writable
from gemscope.errors import AccessError, InputError, NotFound

Mask = np.ndarray[Any, np.dtype[np.bool_]]

_COLUMNS = "id, text, method, author, score"


@dataclass(frozen=True)
class Labelled:
    """Which features have labels, as of some number of changes to them."""

    changes: int
    mask: Mask
    order: Ints
    """Labelled features, by label."""


class Explanations:
    """Of all features of one atlas. They alone change once it is written."""

    def __init__(self, database: Database, d_sae: int) -> None:
        self._database, self._d_sae = database, d_sae
        self._known: Labelled | None = None

    def labels(self, features: Iterable[int]) -> dict[int, str]:
        """The newest explanation of each of these features that has one."""
        wanted = set(map(int, features))
        with self._database.reading() as db:
            found = schema.looked_up(db, "label", wanted)
        return {one: label for one, label in found if label is not None}

    def explain(self, feature: int, text: str, method: str, author: str) -> Explanation:
        """Says what a feature stands for. Raises InputError, AccessError, StorageFull."""
        for one in (text, method, author):
            if any("\ud800" <= letter <= "\udfff" for letter in one):
                raise InputError("half a surrogate pair is not text: decode it properly first")
        if not text.strip():
            raise InputError(f"an empty explanation of feature {feature}: say what it stands for, or forget one")
        with self._labelling(feature) as db:
            id_ = db.execute(
                "INSERT INTO explanation (feature, text, method, author) VALUES (?, ?, ?, ?) RETURNING id",
                (feature, text, method, author),
            ).fetchone()[0]
            db.execute("INSERT INTO label_text (rowid, text) VALUES (?, ?)", (id_, text))
        return Explanation(id=id_, text=text, method=method, author=author)

    def forget(self, feature: int, explanation_id: int) -> None:
        """Takes one away. Raises NotFound, AccessError."""
        if not 0 < explanation_id < 1 << 63:
            raise NotFound(f"no explanation {explanation_id} of feature {feature}")
        with self._labelling(feature) as db:
            found = db.execute(
                "DELETE FROM explanation WHERE id = ? AND feature = ? RETURNING id, text", (explanation_id, feature)
            ).fetchone()
            if found is None:
                raise NotFound(f"no explanation {explanation_id} of feature {feature}")
            # The words are taken from it that it had: the index does not hold the text itself.
            db.execute("INSERT INTO label_text (label_text, rowid, text) VALUES ('delete', ?, ?)", found)

    def all(self) -> list[tuple[int, Explanation]]:
        """And the features that they are of; oldest first."""
        with self._database.reading() as db:
            rows = db.execute(f"SELECT feature, {_COLUMNS} FROM explanation ORDER BY id").fetchall()
        return [(feature, _explanation(*row)) for feature, *row in rows]

    @contextmanager
    def _labelling(self, feature: int) -> Iterator[sqlite3.Connection]:
        folder = self._database.path.parent
        if not writable(folder):
            raise AccessError(f"nothing can be written in {folder}: copy the atlas elsewhere to label its features")
        with self._database.changing() as db:
            # From the first label on, readers go on while somebody writes. Asking again costs nothing.
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("BEGIN IMMEDIATE")
            schema.require_ours(db, self._database.path)  # it may have become another since it was opened
            yield db
            schema.relabel(db, [feature])
            db.execute("UPDATE relabelled SET times = times + 1")
            db.execute("COMMIT")

    @property
    def labelled(self) -> Labelled:
        """As of now: gathered anew when any process has changed a label."""
        earlier = self._known
        with self._database.reading() as db:
            changes = db.execute("SELECT times FROM relabelled").fetchone()[0]
            if earlier is not None and earlier.changes == changes:
                return earlier
            labels = dict(db.execute("SELECT id, label FROM feature WHERE label IS NOT NULL"))
        mask = np.zeros(self._d_sae, np.bool_)
        mask[list(labels)] = True
        order = sorted(labels, key=lambda feature: (labels[feature].casefold(), feature))
        self._known = Labelled(changes, mask, np.array(order, np.int64))
        return self._known


def explanations_of(db: sqlite3.Connection, feature: int) -> list[Explanation]:
    """What is said of one feature, newest first."""
    rows = db.execute(f"SELECT {_COLUMNS} FROM explanation WHERE feature = ? ORDER BY id DESC", (feature,))
    return [_explanation(*row) for row in rows.fetchall()]


def _explanation(id_: int, text: str, method: str, author: str, score: float | None) -> Explanation:
    return Explanation(id=id_, text=text, method=method, author=author, score=score)
