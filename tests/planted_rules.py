"""An atlas whose features fire where rules hold, with rows held out: what a label should say is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import gemscope as gs
from gemscope.atlas.entry import Entry
from gemscope.atlas.files.manifest import Manifest, Part
from gemscope.atlas.writer import Writer
from gemscope.features.examples import INTERVALS, Firings
from gemscope.features.held_out import HeldOut, hashes, is_held_out
from gemscope.features.rules import Rule, Vocabulary

OFTEN = [" the", " of", " 12", " walking", " river", ",", " and", " sea", " cold", " water"]
WORDS = OFTEN + [f" q{n:o}z" for n in range(600)]
PLANTED = ('"river"', '"sea" after "the"', "<number>", '"cold" or <ending-ing>')
LENGTH, ROWS, SPAN = 64, 1600, 15


def planted_text(rows: int = ROWS) -> np.ndarray:
    chance = np.random.default_rng(3)
    ids = chance.integers(len(OFTEN), len(WORDS), (rows, LENGTH))
    often = np.where(chance.random(ids.shape) < 0.06, chance.integers(0, len(OFTEN), ids.shape), ids)
    often[::3, 20], often[::3, 21] = 0, 7  # the sea
    return often


def planted_rules_atlas(folder: Path, *, repeats: bool = False) -> gs.Atlas:
    """Each feature fires at 1 to 8 wherever its rule holds; the last but one at random, the last never.

    `repeats`: one of the first feature's examples has the text of a row that is held out.
    """
    chance, vocabulary = np.random.default_rng(4), Vocabulary(WORDS)
    text = planted_text()
    every = np.ones(text.shape, np.bool_)
    apart = is_held_out(hashes(text, every))
    values = np.zeros((*text.shape, len(PLANTED) + 2), np.float32)
    for feature in range(len(PLANTED) + 1):
        holds = chance.random(text.shape) < 0.01
        if feature < len(PLANTED):
            holds = Rule.parse(PLANTED[feature]).matches(text, vocabulary)
        values[..., feature] = np.where(holds, chance.uniform(1, 8, text.shape), 0)
    tokens, features = np.nonzero(values.reshape(text.size, -1))
    held = HeldOut(len(PLANTED) + 2, LENGTH, ROWS)
    firings = Firings(
        features, values.reshape(text.size, -1)[tokens, features], tokens, np.zeros(len(tokens), np.int64), 0, ROWS,
        LENGTH, len(PLANTED) + 2,
    )  # fmt: skip
    held.add(text, every, firings)
    pool = held.pool()
    if repeats:  # the text up to a firing there, in a row that gives an example
        place = pool.firings(0)[0][0]
        row, column = pool.positions[place // LENGTH] // LENGTH, place % LENGTH
        target = np.flatnonzero(~apart & (values[:, column, 0] == 0))[0]
        text[target, : column + 1] = text[row, : column + 1]
        values[target, : column + 1] = values[row, : column + 1]
    with Writer(folder) as writer:
        writer.add_rows(text)
        writer.add_document(0, "planted", "")
        writer.add_tokens({id_: word.encode() for id_, word in enumerate(WORDS)}, special=[])
        for feature in range(len(PLANTED) + 2):
            mine = values[..., feature]
            at = np.flatnonzero((mine > 0).any(1) & ~apart)[:24]
            if repeats and feature == 0:
                at = np.append(at[at != target][:23], target)
            peaks = mine[at].argmax(1)
            if repeats and feature == 0:
                peaks[-1] = column
            order = np.argsort(-mine[at, peaks])
            at, peaks = at[order], peaks[order]
            owners, columns = np.nonzero(mine[at])
            near = abs(columns - peaks[owners]) <= SPAN
            owners, columns = owners[near], columns[near]
            drawn = np.where(np.arange(len(at)) < 12, -1, (mine[at, peaks] / 8 * INTERVALS).astype(int).clip(0, 7))
            writer.add(
                Entry(
                    index=feature, count=int((mine > 0).sum()), max=float(mine.max()), mean=1.0,
                    edges=np.arange(INTERVALS + 1, dtype=np.float32),
                    interval_counts=np.bincount(mine[mine > 0].astype(int), minlength=INTERVALS),
                    positions=at * LENGTH + peaks, intervals=drawn, owners=owners, columns=columns,
                    values=mine[at][owners, columns],
                )
            )  # fmt: skip
        writer.add_pool(pool)
        part = Part(name="planted", digest="0" * 64, rows=ROWS, documents=1, counted=ROWS * LENGTH, masked={})
        return writer.finish(
            Manifest(
                model="planted", model_id="planted", source_id="planted", revision=None, sae="planted",
                sae_digest="1" * 64, site="1.res", site_out="1.res", gate="relu", d_sae=len(PLANTED) + 2, parts=(part,),
                length=LENGTH, before=SPAN, after=SPAN, bos=False, logits=None, no_logits=None, coactivation="none",
                options={}, versions={},
            )
        )  # fmt: skip
