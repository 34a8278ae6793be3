"""What features promote by the measured effect of their site, in the tables: a packed record for each feature, and by
token the features that have it among the tokens they promote most.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter

import numpy as np

from gemscope.atlas.entry import AGREED, Ints, Written
from gemscope.atlas.files.packing import Halves, pack, unpack
from gemscope.errors import CorruptFile, InputError, NotFinite

SIZES = (2, 4)
"""Bytes that a feature takes in the list of a token."""
_ARRAYS = 5


def add(db: sqlite3.Connection, feature: int, written: Written) -> None:
    """Raises InputError for lists that do not fit each other, NotFinite."""
    for one, other in (("promoted", "promoted_values"), ("suppressed", "suppressed_values")):
        ids, values = getattr(written, one), getattr(written, other)
        if len(ids) != len(values) or ids.dtype.kind not in "iu" or (len(ids) and int(ids.min()) < 0):
            raise InputError(f"feature {feature} has {len(ids)} {one} tokens and {len(values)} values: ids and as many")
    figures = np.array((written.spread, written.agreement, written.this), np.float32)
    if not np.isfinite(figures).all() or written.spread <= 0:
        raise NotFinite(f"feature {feature} has an effect on the logits with figures {figures.tolist()}")
    record = (
        figures,
        written.promoted,
        Halves(written.promoted_values),
        written.suppressed,
        Halves(written.suppressed_values),
    )
    db.execute("INSERT INTO written VALUES (?, ?, ?)", (feature, written.words or None, pack(record)))


def index(db: sqlite3.Connection) -> None:
    """Token to features, out of all that was added: those first whose promoted tokens it stands out among most."""
    found: list[tuple[int, float, int]] = []
    for feature, words, packed in db.execute("SELECT id, words, packed FROM written ORDER BY id"):
        one = written_of(words, packed)
        if one.agreement >= AGREED:
            heights = (one.promoted_values / one.spread).tolist()
            found += [(token, -height, feature) for token, height in zip(one.promoted.tolist(), heights, strict=True)]
    found.sort()
    for token, some in groupby(found, itemgetter(0)):
        features = np.array([feature for *_, feature in some], np.int64)
        db.execute("INSERT INTO token_written VALUES (?, ?, ?)", (token, len(features), pack_list(features)))


def pack_list(features: Ints) -> bytes:
    """Features in the order that they are listed."""
    return features.astype("<u2" if int(features.max()) < 1 << 16 else "<u4").tobytes()


def unpack_list(packed: bytes, features: int, size: int) -> Ints:
    """[features] as `pack_list` was given them, of an SAE with `size` features. Raises CorruptFile."""
    for kind in SIZES:
        if len(packed) == features * kind:
            found = np.frombuffer(packed, f"<u{kind}").astype(np.int64)
            if (found < size).all():
                return found
    raise CorruptFile(f"the features of a token are damaged: they are not {features} of the {size}")


def written_of(words: str | None, packed: bytes) -> Written:
    """What was added. Raises CorruptFile."""
    figures, promoted, promoted_values, suppressed, suppressed_values = unpack(packed, _ARRAYS)
    lists = ((promoted, promoted_values), (suppressed, suppressed_values))
    sound = (
        len(figures) == 3
        and all(len(ids) == len(values) and ids.dtype.kind in "iu" for ids, values in lists)
        and all(not len(ids) or int(ids.min()) >= 0 for ids, _ in lists)
        and all(part.dtype.kind == "f" and np.isfinite(part).all() for part in (figures, *(one for _, one in lists)))
        and float(figures[0]) > 0
    )
    if not sound:
        raise CorruptFile("a packed record is damaged: it does not say what a feature promotes")
    spread, agreement, this = figures.tolist()
    return Written(
        promoted=promoted.astype(np.int64),
        promoted_values=promoted_values,
        suppressed=suppressed.astype(np.int64),
        suppressed_values=suppressed_values,
        spread=spread,
        agreement=agreement,
        this=this,
        words=words or "",
    )


def of_features(db: sqlite3.Connection, features: Iterable[int]) -> dict[int, Written]:
    """Of those of these features that there is one of. Raises CorruptFile."""
    found = ((one, db.execute("SELECT words, packed FROM written WHERE id = ?", (one,)).fetchone()) for one in features)
    return {one: written_of(*row) for one, row in found if row is not None}
