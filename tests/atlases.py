"""Atlases made up for tests: through the real Writer, with known answers and with text that means harm."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gemscope.atlas.dashboard import Explanation
from gemscope.atlas.entry import Entry, Written
from gemscope.atlas.files.manifest import Manifest, Measured, Part
from gemscope.atlas.reader import Atlas
from gemscope.atlas.writer import Writer

HOSTILE = (
    b"<script>alert(1)</script>",
    b"\"'><img src=x onerror=alert(2)>",
    "\u202eevil\u2066".encode(),  # turns the direction of the line around it
    b"\x07\x1b[31m\x00",
    b"</textarea>&amp;&#60;",
    b"{{ 7*7 }}{% raw %}",
    b"\n",
    b"\t",
    "\u05d0\u05d1 \u0645".encode(),
    b"x" * 100_000,
    b"\xe2",  # of the euro sign, which needs the next one too
    b"\x82\xac",
    b"\xf0\x9f",  # of a face
    b"\x98\x80",
    b"\x80",  # of nothing
)
HOSTILE_LABEL = "<script>alert('label')</script> \u202eevil"
WORDS = [
    "the",
    "of",
    "river",
    "sea",
    "Sun",
    "sun",
    "rain",
    "night",
    "code",
    "def",
    "return",
    "proof",
    "law",
    "cell",
    "heart",
    "gold",
    "tax",
    "music",
    "verb",
    "war",
    "bread",
]
FIRST_WORD = 1 + len(HOSTILE)
"""Id of the first plain token; 0 is special, the hostile ones follow it."""


@dataclass(frozen=True)
class Plan:
    """What a planted atlas is made of. The same plan gives the same atlas."""

    features: int = 40
    rows: int = 48
    length: int = 64
    before: int = 20
    after: int = 11
    top: int = 8
    each: int = 2
    """Examples from each interval."""
    vocabulary: int = 120
    near: float = 3.0
    """About how many more times a feature fires near each token that it is of."""
    relatives: int = 5
    logits: int = 10
    bins: int = 40
    labelled: int = 3
    """Every so manieth feature has a label; 0 for none."""
    bos: bool = True
    documents: int = 9
    seed: int = 0
    model_id: str = "tiny-model"
    source_id: str = "1-res-tiny"

    def dead(self, feature: int) -> bool:
        """Every seventh fires nowhere."""
        return feature % 7 == 6

    def skipped(self, feature: int) -> bool:
        """Of the dead, every other one is left out altogether."""
        return self.dead(feature) and feature // 7 % 2 == 1

    def token(self, feature: int) -> int:
        """The token on which all of a feature's examples peak."""
        return FIRST_WORD + feature % (self.vocabulary - FIRST_WORD)

    def label(self, feature: int) -> str | None:
        """Feature 0 has one that means harm."""
        if not self.labelled or feature % self.labelled:
            return None
        return HOSTILE_LABEL if feature == 0 else f"{self.word(self.token(feature)).strip()} and words like it"

    def word(self, token: int) -> str:
        """The text of a plain token."""
        index = token - FIRST_WORD
        word = WORDS[index % len(WORDS)] + ("" if index < len(WORDS) else str(index // len(WORDS)))
        return word if index % 5 == 4 else f" {word}"

    def tokens(self) -> dict[int, bytes]:
        """Every token as its bytes."""
        plain = range(FIRST_WORD, self.vocabulary)
        hostile = enumerate(HOSTILE, 1)
        return {0: b"<|endoftext|>", **dict(hostile), **{id_: self.word(id_).encode() for id_ in plain}}

    def corpus(self) -> np.ndarray:
        """[rows, length]: a BOS and Zipf's words, one row of all hostile tokens in order, padding behind the last."""
        chance = np.random.default_rng(self.seed)
        weights = 1 / np.arange(2, 2 + self.vocabulary - FIRST_WORD)
        ids = FIRST_WORD + chance.choice(len(weights), (self.rows, self.length), p=weights / weights.sum())
        ids[0, 8 : 8 + len(HOSTILE)] = range(1, 1 + len(HOSTILE))
        ids[0, 8 + len(HOSTILE)] = self.token(0)  # feature 0 fires among them
        if self.bos:
            ids[:, 0] = 0
        ids[-1, self.length - 5 :] = -1
        return ids

    def entries(self) -> Iterator[Entry]:
        """The features, those skipped left out."""
        ids = self.corpus().reshape(-1)
        order = np.argsort(ids, kind="stable")
        ranked = ids[order]
        for feature in range(self.features):
            if self.skipped(feature):
                continue
            chance = np.random.default_rng((self.seed, feature))
            token = self.token(feature)
            own = order[np.searchsorted(ranked, token) : np.searchsorted(ranked, token, "right")]
            own = own[own % self.length > 0]
            if self.dead(feature) or not len(own):
                yield Entry(index=feature, count=0, max=0.0, mean=0.0, **self._relatives(feature, chance))
                continue
            yield self._living(feature, own, ids, chance)

    def _living(self, feature: int, own: np.ndarray, ids: np.ndarray, chance: np.random.Generator) -> Entry:
        near = own[:, None] + chance.integers(-8, 9, (len(own), max(1, int(self.near * 1.3))))
        near = near[(near // self.length == own[:, None] // self.length) & (near % self.length > 0)]
        places = np.union1d(own, near[ids[near] > 0])
        values = chance.gamma(2.0, 1.5, len(places)).astype(np.float32) * np.float32(0.2) + np.float32(0.01)
        peaks = np.isin(places, own)
        values[peaks] = chance.gamma(2.0, 3.0, peaks.sum()).astype(np.float32) + np.float32(2)
        if feature == 0:
            values[np.searchsorted(places, 8 + len(HOSTILE))] = np.float32(99)
        ceiling = 2.0 ** math.ceil(math.log2(values.max() * 1.0001))
        edges = np.arange(9)[: 1 + int(values.max() / ceiling * 8) + 1] * np.float32(ceiling / 8)
        inside = np.digitize(values, edges) - 1
        strongest = np.argsort(-values, kind="stable")
        strongest = strongest[peaks[strongest]][: self.top]
        chosen, intervals = [strongest], [np.full(len(strongest), -1)]
        for interval in range(len(edges) - 2, -1, -1):
            drawn = np.flatnonzero((inside == interval) & peaks)[: self.each]
            chosen.append(drawn)
            intervals.append(np.full(len(drawn), interval))
        examples = np.concatenate(chosen)
        homes = places[examples]
        rows = homes // self.length
        low = np.searchsorted(places, np.maximum(homes - self.before, rows * self.length))
        high = np.searchsorted(places, np.minimum(homes + self.after + 1, (rows + 1) * self.length))
        owners = np.repeat(np.arange(len(examples)), high - low)
        cells = np.concatenate([np.arange(a, b) for a, b in zip(low, high, strict=True)])
        step = ceiling / self.bins
        return Entry(
            index=feature,
            count=len(places),
            max=float(values.max()),
            mean=float(values.mean(dtype=np.float64)),
            encoder_cosine=float(chance.uniform(0.1, 0.9)),
            decoder_norm=1.0,
            step=step,
            histogram=np.bincount((values / step).astype(int), minlength=self.bins),
            edges=edges,
            interval_counts=np.bincount(inside, minlength=len(edges) - 1),
            positions=homes,
            intervals=np.concatenate(intervals),
            owners=owners,
            columns=places[cells] % self.length,
            values=values[cells],
            **self._relatives(feature, chance),
        )

    def _relatives(self, feature: int, chance: np.random.Generator) -> dict:
        def falling(size: int, high: float) -> np.ndarray:
            return np.sort(chance.uniform(0, high, size).astype(np.float32))[::-1]

        others = (feature + 1 + chance.permutation(self.features - 1)[: self.relatives]) % self.features
        some = chance.permutation(self.vocabulary)[: 2 * self.logits]
        values = chance.normal(0, 0.5, 500)
        return {
            "promoted": some[: self.logits],
            "promoted_values": falling(self.logits, 4.0),
            "suppressed": some[self.logits :],
            "suppressed_values": -falling(len(some[self.logits :]), 3.0),
            "logit_low": -2.0,
            "logit_step": 4.0 / self.bins,
            "logit_histogram": np.histogram(values, self.bins, (-2, 2))[0],
            "neighbours": others,
            "cosines": falling(len(others), 0.9),
            "partners": others[::-1],
            "jaccards": falling(len(others), 0.5),
            "shares": falling(len(others), 1.0),
        }

    def starts(self) -> list[tuple[int, str, str]]:
        """Documents: where they begin, where they come from."""
        content = self.rows * self.length - 6
        return [
            (int(self.bos) + index * content // self.documents, f"book {index % 3} <b>", "CC0-1.0")
            for index in range(self.documents)
        ]

    def manifest(self) -> Manifest:
        """As a pass over the planted corpus would write it."""
        special = self.rows if self.bos else 0
        part = Part(
            name="planted",
            digest="0" * 64,
            rows=self.rows,
            documents=self.documents,
            counted=self.rows * self.length - special - 5,
            masked={"special": special, "padding": 5},
        )
        return Manifest(
            model="tests/Tiny-Model",
            model_id=self.model_id,
            source_id=self.source_id,
            revision=None,
            sae="planted",
            sae_digest="1" * 64,
            site="1.res",
            site_out="1.res",
            gate="jumprelu",
            d_sae=self.features,
            parts=(part,),
            length=self.length,
            before=self.before,
            after=self.after,
            bos=self.bos,
            logits="made up",
            no_logits=None,
            coactivation="made up",
            options={"top": self.top, "each": self.each},
            versions={},
        )


def planted_atlas(folder: str | Path, **plan: object) -> Atlas:
    """Writes the atlas of a Plan (its fields are the arguments) to a folder that is not there yet, and opens it."""
    made = Plan(**plan)
    with Writer(folder) as writer:
        ids = made.corpus()
        for start in range(0, len(ids), 1000):
            writer.add_rows(ids[start : start + 1000])
        for start in made.starts():
            writer.add_document(*start)
        writer.add_tokens(made.tokens(), special=[0])
        for entry in made.entries():
            writer.add(entry)
        for feature in range(made.features):
            if text := made.label(feature):
                writer.add_explanation(feature, Explanation(id=0, text=text, method="planted"))
        return writer.finish(made.manifest())


PLAN = Plan()


def manifest_of(d_sae: int, rows: int, length: int, **changes: object) -> Manifest:
    part = Part(name="p", digest="0", rows=rows, documents=0, counted=rows * length, masked={})
    return replace(PLAN.manifest(), d_sae=d_sae, length=length, bos=False, parts=(part,), **changes)


def written(folder: Path, ids: np.ndarray, entries: list[Entry], texts: dict[int, bytes], **changes: object) -> Atlas:
    with Writer(folder) as writer:
        writer.add_rows(ids)
        writer.add_tokens(texts)
        for entry in entries:
            writer.add(entry)
        d_sae = 1 + max((entry.index for entry in entries), default=0)
        return writer.finish(manifest_of(d_sae, len(ids), ids.shape[1], **changes))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def settled(folder: Path) -> tuple[bytes, list[tuple[object, ...]]]:
    """The file's bytes once nothing is left in its log, and its labels."""
    with contextlib.closing(sqlite3.connect(folder / "atlas.sqlite")) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        labels = db.execute("SELECT * FROM explanation ORDER BY id").fetchall()
        db.execute("VACUUM")
    return (folder / "atlas.sqlite").read_bytes(), labels


@contextlib.contextmanager
def powerless(folder: Path) -> Iterator[None]:
    """As somebody who may read the folder and nothing more, root or not."""
    for path in (folder, *folder.iterdir()):
        path.chmod(0o555 if path.is_dir() else 0o444)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


def change_json(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_sql(folder: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(folder / "atlas.sqlite")) as db, db:
        for statement in statements:
            db.execute(statement)


SOURCE = "tiny-model/1-res-tiny"


def content_within(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(one.relative_to(path)): one.read_bytes() for one in path.rglob("*") if one.is_file()}


EFFECT = Measured(corpus="texts", corpus_digest="d", tokens=48, length=12, dtype="float32", agreement=0.9, digest="ab")


def with_effect(planted: Atlas, folder: Path) -> Atlas:
    """The same atlas with what its features promote by an effect: the halves agree on odd ones, 4 writes nothing, and
    what 3 promotes means harm.
    """
    manifest = planted.manifest
    with Writer(folder) as writer:
        writer.add_rows(planted.ids(np.arange(manifest.rows * manifest.length)).reshape(-1, manifest.length))
        for document in planted.documents():
            writer.add_document(*document)
        writer.add_tokens(planted.tokens(), planted.special)
        for index in range(len(planted)):
            one = Written(
                promoted=np.array([20 + index, 21 + index]),
                promoted_values=np.array([3.0, 2.0], np.float32),
                suppressed=np.array([30 + index]),
                suppressed_values=np.array([-1.0], np.float32),
                spread=0.5,
                agreement=0.95 if index % 2 else 0.5,
                this=0.25,
                words="sun, <b>river</b>" if index == 3 else "",
            )
            writer.add(replace(planted.entry(index), written=None if index == 4 else one))
        for feature, said in planted.explanations():
            writer.add_explanation(feature, said)
        return writer.finish(replace(manifest, effect=EFFECT))
