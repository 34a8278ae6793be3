"""Rows that labels are scored on: all that fires there is kept, and no example is ever from one of them."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import gemscope as gs
from atlases import content
from gemscope.activations.model import LanguageModel
from gemscope.atlas.dashboard import Explanation
from gemscope.atlas.describe.elsewhere import read_elsewhere
from gemscope.atlas.describe.merge import merge
from gemscope.atlas.describe.run import describe
from gemscope.atlas.labels.rules import _learner
from gemscope.atlas.reader import Atlas
from gemscope.atlas.verify import verify
from gemscope.cli.main import main
from gemscope.errors import InputError, Mismatch
from gemscope.features.held_out import hashes, is_held_out
from gemscope.features.pool import Pool, activations
from gemscope.features.sae import SAE
from gemscope.testing import planted_sae
from gemscope.text.corpus import Corpus
from texts import CONFIG, varied


def rows_of_examples(atlas: Atlas) -> set[int]:
    return {
        int(row) for feature in range(len(atlas)) for row in atlas.entry(feature).positions // atlas.manifest.length
    }


def test_no_row_is_both_evidence_and_score(atlas: Atlas, dense: tuple[torch.Tensor, ...]) -> None:
    """Fails where one is: examples, and the windows that say how often a rule holds, are from the other rows alone."""
    ids, counted, _ = (part.numpy() for part in dense)
    held = np.flatnonzero(is_held_out(hashes(ids, counted)) & counted.any(1))
    assert len(held) >= 3
    assert not rows_of_examples(atlas) & set(held.tolist())
    assert set((atlas.pool.positions // CONFIG.length).tolist()) <= set(held.tolist())
    assert len(atlas.pool) >= 2


def test_what_rules_are_weighed_against_is_from_other_rows_than_they_are_scored_on(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, length=64, batch=1)
    atlas = describe(model, sae, Corpus.of(varied(5, 100)), to=tmp_path / "a", config=config)
    asked: list[np.ndarray] = []
    real = Atlas.ids
    monkeypatch.setattr(Atlas, "ids", lambda self, at: asked.append(at) or real(self, at))
    _learner(atlas)
    rows = set(np.concatenate([at.reshape(-1) for at in asked]) // 64)
    held = set((atlas.pool.positions // 64).tolist())
    assert held
    assert rows == set(range(atlas.manifest.rows)) - held


def test_the_pool_is_what_the_whole_text_held_at_once_says(atlas: Atlas, dense: tuple[torch.Tensor, ...]) -> None:
    ids, counted, values = (part.numpy() for part in dense)
    rows = atlas.pool.positions // CONFIG.length
    assert np.array_equal(atlas.pool.ids, ids[rows])
    assert np.array_equal(atlas.pool.counted, counted[rows])
    fired = 0
    for feature in range(len(atlas)):
        places, coded = atlas.pool.firings(feature)
        expected = values[rows, :, feature].reshape(-1)
        assert np.array_equal(places, np.flatnonzero(expected))
        # What is kept may be an eighth below; a sum in another order, a hair above.
        assert (activations(coded) <= expected[places] * 1.0001).all()
        assert (activations(coded) * 1.1251 >= expected[places]).all()
        fired += len(places)
    assert fired > 20


def test_nothing_is_held_out_where_nothing_is_to_be(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], atlas: Atlas, tmp_path: Path
) -> None:
    every = describe(model, sae, corpora[0], to=tmp_path / "a", config=replace(CONFIG, pool=0))
    assert len(every.pool) == 0
    assert rows_of_examples(every) > rows_of_examples(atlas)
    assert verify(every.folder) == []
    again = describe(model, sae, corpora[1], to=tmp_path / "b", config=replace(CONFIG, pool=0))
    both = describe(model, sae, corpora[:2], to=tmp_path / "both", config=replace(CONFIG, pool=0))
    assert content(merge([every, again], to=tmp_path / "merged").folder) == content(both.folder)


def test_there_is_no_more_than_there_is_room_for(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path
) -> None:
    config = replace(CONFIG, pool=3 * CONFIG.length)
    parts = [describe(model, sae, corpus, to=tmp_path / f"{i}", config=config) for i, corpus in enumerate(corpora)]
    whole = describe(model, sae, corpora, to=tmp_path / "whole", config=config)
    assert len(whole.pool) == 3
    assert content(merge(parts, to=tmp_path / "merged").folder) == content(whole.folder)


DAMAGES = {
    "an example from there": ("INSERT OR REPLACE INTO held_row SELECT {row}, counted FROM held_row", "has an example"),
    "a row that is none": ("INSERT INTO held_row SELECT position + 1, counted FROM held_row", "corpus does not have"),
    "a mask of another length": ("UPDATE held_row SET counted = x'ff'", "of another length"),
    "a record of nothing": ("UPDATE held SET packed = x'00'", "damaged"),
    "a feature too many": ("INSERT INTO held SELECT 10000, packed FROM held LIMIT 1", "feature 10000, of"),
    "counts of no explanation": (
        "INSERT INTO trial VALUES (99, ''" + ", 0" * 17 + ")",
        "explanation 99, which is not there",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_verify_finds_damage(atlas: Atlas, tmp_path: Path, name: str) -> None:
    statement, message = DAMAGES[name]
    copy = Path(shutil.copytree(atlas.folder, tmp_path / "copy"))
    row = min(rows_of_examples(atlas)) * CONFIG.length
    with contextlib.closing(sqlite3.connect(copy / "atlas.sqlite")) as db:
        db.execute(statement.format(row=row))
        db.commit()
    assert any(message in problem for problem in verify(copy))


def test_another_text_is_read_whole(model: LanguageModel, sae: SAE, corpora: list[Corpus], atlas: Atlas) -> None:
    pool = read_elsewhere(atlas, model, sae, corpora[1], batch=CONFIG.batch)
    found, first = [], 0
    for rows in model.rows(corpora[1], length=CONFIG.length, batch=CONFIG.batch):
        acts = model.capture(rows, [sae.site])[sae.site]
        values = sae.encode_dense(acts.values) * acts.counted[..., None]
        found += list(zip(rows.ids.masked_fill(~rows.real, -1), acts.counted, values, strict=True))
        first += rows.ids.numel()
    texts: dict[bytes, tuple[torch.Tensor, ...]] = {}
    for ids, counted, values in found:
        if counted.any():
            texts.setdefault(ids.masked_fill(~counted, -1).numpy().tobytes(), (ids, counted, values))
    assert np.array_equal(pool.ids, torch.stack([ids for ids, *_ in texts.values()]).numpy())
    expected = torch.stack([values for *_, values in texts.values()]).numpy()
    for feature in range(len(atlas)):
        assert np.array_equal(pool.firings(feature)[0], np.flatnonzero(expected[..., feature].reshape(-1)))
    assert isinstance(read_elsewhere(atlas, model, sae, corpora[1], tokens=30, batch=1), Pool)


def test_a_text_that_the_atlas_was_made_of_is_no_other_and_another_sae_is_refused(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], atlas: Atlas
) -> None:
    with pytest.raises(InputError, match=r"was made of .*give another text"):
        read_elsewhere(atlas, model, sae, corpora[0])
    with pytest.raises(Mismatch, match="give that SAE"):
        read_elsewhere(atlas, model, planted_sae(site="1.res", seed=4).sae, corpora[1])


def test_the_shell_tries_labels_on_another_text(
    model: LanguageModel, sae: SAE, atlas: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.hf.save_pretrained(tmp_path / "model")  # type: ignore[operator]
    model.tokenizer.save_pretrained(tmp_path / "model")
    gs.save_sae(sae, tmp_path / "sae")
    copy = Path(shutil.copytree(atlas.folder, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    saved = gs.load_sae(str(tmp_path / "sae"))
    manifest |= {"model": str(tmp_path / "model"), "sae": str(tmp_path / "sae"), "sae_digest": saved.digest}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with Atlas(copy) as labelled:
        said = Explanation(id=0, text="rivers", method="m", rule='"river" or "the"')
        labelled.explain_all(dict.fromkeys(range(len(labelled)), said))
    (tmp_path / "other.txt").write_text("\n\n".join(varied(9, 60)))
    arguments = ["explain", str(copy), "--on", str(tmp_path / "other.txt")]
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["text"] == "other.txt"
    assert told["labels"] == len(atlas)
    assert main(arguments) == 0
    assert "run on other.txt: " in capsys.readouterr().out
    with Atlas(copy) as labelled:
        assert all(one.trials[0].text == "other.txt" and one.score is None for _, one in labelled.explanations())
        assert any(one.trials[0].firing for _, one in labelled.explanations())
