"""What features stand for, as people and methods say it: the best explanation of each is its label."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from gemscope.atlas.dashboard import Explanation
from gemscope.atlas.entry import Floats, Ints
from gemscope.atlas.files import schema
from gemscope.atlas.files.database import Database, writable
from gemscope.atlas.labels.trial import COUNTS, GOOD, Trial
from gemscope.errors import AccessError, InputError, NotFound

_TEXTS = ("text", "method", "author", "rule", "model", "made")
Mask = np.ndarray[Any, np.dtype[np.bool_]]

_FIELDS = ("id", "text", "method", "author", "score", "control", "confidence", "rule", "model", "made")
_COLUMNS = ", ".join(_FIELDS)
_TRIAL = ", ".join(("text", *COUNTS))


@dataclass(frozen=True)
class Labelled:
    """Which features have labels, as of some number of changes to them."""

    changes: int
    mask: Mask
    order: Ints
    """Labelled features, by label."""


class Standing(NamedTuple):
    """Of how many features there is a label, a label with a score, and one with a score above `GOOD`."""

    labelled: int
    scored: int
    good: int


class Explanations:
    """Of all features of one atlas. They alone change once it is written."""

    def __init__(self, database: Database, d_sae: int) -> None:
        self._database, self._d_sae = database, d_sae
        self._known: Labelled | None = None
        self._right: tuple[int, Floats] | None = None

    def labels(self, features: Iterable[int]) -> dict[int, str]:
        """The best explanation of each of these features that has one."""
        wanted = set(map(int, features))
        with self._database.reading() as db:
            found = schema.looked_up(db, "label", wanted)
        return {one: label for one, label in found if label is not None}

    def add(
        self, said: Sequence[tuple[int, Explanation]], *, replacing: str = "", among: Iterable[int] = ()
    ) -> list[Explanation]:
        """Says what features stand for, all or nothing; their `id` are given here. What the method
        `replacing` said before of these features, and of those `among`, goes. Raises InputError, AccessError,
        StorageFull.
        """
        for feature, one in said:
            if any("\ud800" <= letter <= "\udfff" for name in _TEXTS for letter in getattr(one, name)):
                raise InputError("half a surrogate pair is not text: decode it properly first")
            if not one.text.strip():
                raise InputError(f"an empty explanation of feature {feature}: say what it stands for, or forget one")
            for name, value in one.figures:
                if value is not None and not abs(value) < schema.MOST:
                    raise InputError(f"feature {feature} has an explanation with {name}={value}: a number is expected")
        added = []
        columns = ("feature", *_FIELDS[1:])
        adding = f"INSERT INTO explanation ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))}) RETURNING id"
        touched = {feature for feature, _ in said}.union(among)
        with self._labelling(touched) as db:
            for feature in touched if replacing else ():
                self._take_away(db, "feature = ? AND method = ?", (feature, replacing))
            for feature, one in said:
                id_ = db.execute(adding, (feature, *(getattr(one, name) for name in _FIELDS[1:]))).fetchone()[0]
                db.execute("INSERT INTO label_text (rowid, text) VALUES (?, ?)", (id_, one.text))
                added.append(replace(one, id=id_))
        return added

    def forget(self, feature: int, explanation_id: int) -> None:
        """Takes one away. Raises NotFound, AccessError."""
        if not 0 < explanation_id < 1 << 63:
            raise NotFound(f"no explanation {explanation_id} of feature {feature}")
        with self._labelling([feature]) as db:
            if not self._take_away(db, "id = ? AND feature = ?", (explanation_id, feature)):
                raise NotFound(f"no explanation {explanation_id} of feature {feature}")

    def _take_away(self, db: sqlite3.Connection, which: str, values: tuple[int | str, ...]) -> int:
        found = db.execute(f"DELETE FROM explanation WHERE {which} RETURNING id, text", values).fetchall()
        db.executemany("DELETE FROM trial WHERE explanation = ?", [(id_,) for id_, _ in found])
        # The words are taken from it that it had: the index does not hold the text itself.
        db.executemany("INSERT INTO label_text (label_text, rowid, text) VALUES ('delete', ?, ?)", found)
        return len(found)

    def all(self) -> list[tuple[int, Explanation]]:
        """And the features that they are of; oldest first."""
        with self._database.reading() as db:
            rows = db.execute(f"SELECT feature, {_COLUMNS} FROM explanation ORDER BY id").fetchall()
            trials = _trials(db)
        return [(feature, _explanation(trials, *row)) for feature, *row in rows]

    def tried(self, trials: Mapping[int, Trial], features: Iterable[int]) -> None:
        """What came of running explanations, by their `id`, of these features; an earlier trial on the same text goes.
        On the rows that the atlas holds out, a rule gives them their score; without one the last trial does, whoever
        made it. Raises AccessError, StorageFull.
        """
        names = f"explanation, {_TRIAL}"
        adding = f"INSERT OR REPLACE INTO trial ({names}) VALUES ({', '.join('?' * (2 + len(COUNTS)))})"
        with self._labelling(features) as db:
            for id_, trial in trials.items():
                db.execute(adding, (id_, trial.text, *(getattr(trial, name) for name in COUNTS)))
                found = trial.accuracy()
                db.execute(
                    "UPDATE explanation SET score = ?, control = ? WHERE id = ? AND (? = '' OR rule = '')",
                    (None if found is None else found.value, trial.control(), id_, trial.text),
                )

    @contextmanager
    def _labelling(self, features: Iterable[int]) -> Iterator[sqlite3.Connection]:
        folder = self._database.path.parent
        if not writable(folder):
            raise AccessError(f"nothing can be written in {folder}: copy the atlas elsewhere to label its features")
        with self._database.changing() as db:
            # From the first label on, readers go on while somebody writes. Asking again costs nothing.
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("BEGIN IMMEDIATE")
            schema.require_ours(db, self._database.path)  # it may have become another since it was opened
            yield db
            schema.relabel(db, set(features))
            db.execute("UPDATE relabelled SET times = times + 1")
            db.execute("COMMIT")

    @property
    def standing(self) -> Standing:
        """As of now."""
        with self._database.reading() as db:
            found = db.execute(
                """SELECT count(*), coalesce(sum(score > ?), 0) FROM (SELECT max(score) AS score FROM explanation
                   JOIN feature ON feature.id = feature AND text = label GROUP BY feature) WHERE score IS NOT NULL""",
                (GOOD,),
            ).fetchone()
        return Standing(int(self.labelled.mask.sum()), *found)

    def worded(self, least: float) -> list[int]:
        """Features whose label is in somebody's words, no rule's own, and has a score of so much at least."""
        with self._database.reading() as db:
            found = db.execute(
                """SELECT DISTINCT feature FROM explanation JOIN feature ON feature.id = feature AND text = label
                   WHERE method <> 'rule' AND score >= ? ORDER BY feature""",
                (least,),
            ).fetchall()
        return [feature for (feature,) in found]

    def right(self) -> Floats:
        """[d_sae] How far each feature's label is right, as of now: its score, which is a balanced accuracy. Where that
        was not measured (1 + J) / 2, of a rule's confidence J, or of what `schema` takes for words; without a label ½,
        as a guess has.
        """
        earlier = self._right
        with self._database.reading() as db:
            changes = _changes(db)
            if earlier is not None and earlier[0] == changes:
                return earlier[1]
            found = db.execute(
                f"""SELECT feature, coalesce(score, (1 + coalesce(confidence, {schema.UNMEASURED})) / 2) FROM (
                    SELECT *, row_number() OVER (PARTITION BY feature {schema.BEST_FIRST}) AS place FROM explanation
                    ) WHERE place = 1"""
            ).fetchall()
        right = np.full(self._d_sae, 0.5)
        if found:
            features, shares = zip(*found, strict=True)
            right[list(features)] = np.clip(shares, 0.5, 1.0)
        right.flags.writeable = False
        self._right = changes, right
        return right

    @property
    def labelled(self) -> Labelled:
        """As of now: gathered anew when any process has changed a label."""
        earlier = self._known
        with self._database.reading() as db:
            changes = _changes(db)
            if earlier is not None and earlier.changes == changes:
                return earlier
            labels = dict(db.execute("SELECT id, label FROM feature WHERE label IS NOT NULL"))
        mask = np.zeros(self._d_sae, np.bool_)
        mask[list(labels)] = True
        order = sorted(labels, key=lambda feature: (labels[feature].casefold(), feature))
        self._known = Labelled(changes, mask, np.array(order, np.int64))
        return self._known


def _changes(db: sqlite3.Connection) -> int:
    """How often anybody has changed what is said."""
    return int(db.execute("SELECT times FROM relabelled").fetchone()[0])


def explanations_of(db: sqlite3.Connection, feature: int) -> list[Explanation]:
    """What is said of one feature, the best first."""
    rows = db.execute(f"SELECT {_COLUMNS} FROM explanation WHERE feature = ? {schema.BEST_FIRST}", (feature,))
    found = rows.fetchall()
    trials = _trials(db, [id_ for id_, *_ in found])
    return [_explanation(trials, *row) for row in found]


def _trials(db: sqlite3.Connection, explanations: Sequence[int] | None = None) -> dict[int, list[Trial]]:
    """By explanation; of some, or of all. That on the atlas's own rows first, then by text."""
    asking = f"SELECT explanation, {_TRIAL} FROM trial"
    if explanations is not None:
        asking += f" WHERE explanation IN ({', '.join('?' * len(explanations))})"
    found: dict[int, list[Trial]] = {}
    for id_, *row in db.execute(f"{asking} ORDER BY explanation, text", explanations or ()):
        found.setdefault(id_, []).append(Trial(**dict(zip(("text", *COUNTS), row, strict=True))))
    return found


def _explanation(trials: Mapping[int, Sequence[Trial]], *row: Any) -> Explanation:
    return Explanation(**dict(zip(_FIELDS, row, strict=True)), trials=tuple(trials.get(row[0], ())))
