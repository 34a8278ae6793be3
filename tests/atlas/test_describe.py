"""Describing: every figure against a slow obvious version, stopped passes against unstopped ones, merged against whole."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file

import gemscope as gs
from gemscope.activations.model import LanguageModel
from gemscope.atlas.describe import compose as compose_
from gemscope.atlas.describe import unfinished as unfinished_
from gemscope.atlas.describe.compose import SUMS, address_of
from gemscope.atlas.describe.gather import DescribeConfig
from gemscope.atlas.describe.merge import merge
from gemscope.atlas.describe.run import describe
from gemscope.atlas.reader import Atlas
from gemscope.atlas.verify import verify
from gemscope.checked import checksum_of, read_tensors
from gemscope.errors import AccessError, CorruptFile, EmptyText, FileError, InputError, Mismatch, NotFound, StorageFull
from gemscope.features.sae import SAE
from gemscope.testing import planted_sae, tiny_model
from gemscope.text.corpus import Corpus
from texts import CONFIG, varied


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model("gemma2")


@pytest.fixture(scope="module")
def sae() -> SAE:
    return planted_sae(site="1.res", seed=3).sae


@pytest.fixture(scope="module")
def corpora() -> list[Corpus]:
    return [Corpus.of(varied(seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def atlas(model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return describe(model, sae, corpora[0], to=tmp_path_factory.mktemp("atlas") / "whole", config=CONFIG)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def dense(model: LanguageModel, sae: SAE, corpora: list[Corpus]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids [R, T], counted [R, T], activations [R, T, F] with 0 where a token does not count: the whole text at once."""
    found = []
    for rows in model.rows(corpora[0], length=CONFIG.length, batch=CONFIG.batch):
        acts = model.capture(rows, [sae.site])[sae.site]
        values = sae.encode_dense(acts.values) * acts.counted[..., None]
        found.append((rows.ids.masked_fill(~rows.real, -1), acts.counted, values))
    ids, counted, values = (torch.cat(part) for part in zip(*found, strict=True))
    return ids, counted, values


# --- what is in it --------------------------------------------------------------------------------------------------


def test_counts_maxima_means_and_histograms_are_those_of_the_whole_text_held_at_once(
    atlas: Atlas, dense: tuple[torch.Tensor, ...]
) -> None:
    ids, counted, values = dense
    assert atlas.manifest.tokens == int(counted.sum())
    assert atlas.manifest.rows == len(ids)
    for feature in range(len(atlas)):
        page = atlas[feature]
        fired = values[..., feature][values[..., feature] > 0]
        assert page.count == len(fired)
        assert page.density == len(fired) / int(counted.sum())
        if not len(fired):
            assert page.dead
            assert not page.examples
            continue
        assert page.max == pytest.approx(fired.max().item(), rel=1e-5)
        assert page.mean == pytest.approx(fired.double().mean().item(), rel=1e-5)
        assert page.histogram is not None
        assert sum(page.histogram.counts) == page.count
        below = [int((fired < (bin_ + 1) * page.histogram.step).sum()) for bin_ in range(64)]
        running = torch.tensor(page.histogram.counts).cumsum(0)
        assert (running - torch.tensor(below)).abs().max() <= 1  # a sum in another order may cross an edge
        assert sum(interval.count for interval in page.intervals) == page.count
        assert page.intervals[-1].high > page.max >= page.intervals[-1].high / 2


def test_the_strongest_examples_are_the_rows_peaks_with_their_text_and_each_text_once(
    atlas: Atlas, dense: tuple[torch.Tensor, ...], model: LanguageModel
) -> None:
    ids, _, values = dense
    for feature in range(0, len(atlas), 3):
        peaks = values[..., feature].max(1).values
        expected = sorted({round(peak, 3) for peak in peaks[peaks > 0].tolist()}, reverse=True)
        strongest = atlas[feature].strongest
        shown = [one.value for one in strongest]
        assert shown == sorted(shown, reverse=True)
        assert shown[:1] == pytest.approx(expected[:1], rel=1e-4)
        texts = set()
        for one in strongest:
            texts.add(tuple(one.ids[: one.peak + 1]))
            row = next(
                row
                for row in range(len(ids))
                if abs(peaks[row] - one.value) < 1e-4 and one.ids[one.peak] in ids[row].tolist()
            )
            column = int(values[row, :, feature].argmax())
            start = max(0, column - CONFIG.before)
            assert one.ids == ids[row, start : start + len(one.ids)].tolist()
            assert one.peak == column - start
            around = values[row, start : start + len(one.ids), feature].tolist()
            assert one.values == pytest.approx(around, rel=2e-3, abs=1e-4)
            assert "".join(one.tokens) == model.tokenizer.decode(one.ids)
        assert len(texts) == len(strongest)


def test_no_example_lies_on_a_token_that_does_not_count(atlas: Atlas, model: LanguageModel) -> None:
    for page in atlas:
        for one in page.examples:
            assert one.ids[one.peak] not in model.special_ids
            assert all(value == 0 for id_, value in zip(one.ids, one.values, strict=True) if id_ in model.special_ids)
    part = atlas.manifest.parts[0]
    assert part.masked["first"] == part.rows
    assert part.masked["special"] > 0


def test_examples_of_an_interval_lie_in_it_and_are_not_among_the_strongest(atlas: Atlas) -> None:
    drawn = 0
    for page in atlas:
        strongest = {(one.document, one.position) for one in page.strongest}
        for number, interval in enumerate(page.intervals):
            examples = page.within(number)
            assert len(examples) <= min(CONFIG.each, interval.count)
            drawn += len(examples)
            for one in examples:
                assert interval.low <= one.value < interval.high
                assert (one.document, one.position) not in strongest
    assert drawn > 100


def test_documents_and_positions_lead_back_to_the_text(
    atlas: Atlas, model: LanguageModel, corpora: list[Corpus]
) -> None:
    texts = [document.text for document in corpora[0]]
    assert atlas.manifest.documents == len(texts)
    checked = 0
    for page in atlas:
        for one in page.examples:
            ids = model.tokenizer(texts[one.document], add_special_tokens=False)["input_ids"]
            assert ids[one.position] == one.ids[one.peak]
            checked += 1
    assert checked > 200


def test_logits_neighbours_and_partners_come_along(atlas: Atlas, sae: SAE, dense: tuple[torch.Tensor, ...]) -> None:
    _, _, values = dense
    fires = (values > 0).flatten(0, 1).double()
    both = fires.T @ fires
    directions = torch.nn.functional.normalize(sae.W_dec, dim=-1)
    cosines = directions @ directions.T
    cosines.fill_diagonal_(-2)
    for feature in range(0, len(atlas), 5):
        page = atlas[feature]
        assert len(page.promoted) == len(page.suppressed) == CONFIG.logits
        assert page.promoted[0].value > page.promoted[-1].value > page.suppressed[0].value
        assert [one.cosine for one in page.neighbours] == pytest.approx(
            [max(0.0, one) for one in cosines[feature].topk(len(page.neighbours)).values.tolist()], abs=1e-3
        )
        for partner in page.coactive:
            joint = both[feature, partner.feature]
            union = both[feature, feature] + both[partner.feature, partner.feature] - joint
            assert partner.jaccard == pytest.approx((joint / union).item(), rel=2e-3)
            assert partner.share == pytest.approx((joint / both[feature, feature]).item(), rel=2e-3)
        assert page.decoder_norm == pytest.approx(1.0, rel=1e-5)


def test_a_described_atlas_is_sound_and_says_what_it_is_of(atlas: Atlas, sae: SAE) -> None:
    assert verify(atlas.folder) == []
    manifest = atlas.manifest
    assert (manifest.model_id, manifest.source_id) == address_of(manifest.model, sae)
    assert manifest.sae_digest == sae.digest
    assert "centred" in str(manifest.logits) or "mean" in str(manifest.logits)
    assert manifest.parts[0].counted == manifest.tokens


# --- stopping and going on ------------------------------------------------------------------------------------------


class _Stop(Exception):
    pass


def _stopping_after(batches: int):
    @contextmanager
    def progress(what: str, total: int | None, unit: str) -> Iterator[object]:
        left = batches

        def advance(done: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise _Stop(what)

        yield advance

    return progress


@pytest.mark.parametrize("often", [True, False])
def test_a_stopped_pass_goes_on_and_ends_as_if_never_stopped(
    often: bool,
    model: LanguageModel,
    sae: SAE,
    corpora: list[Corpus],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = describe(model, sae, corpora[:2], to=tmp_path / "whole", config=CONFIG)
    if often:
        monkeypatch.setattr(unfinished_, "_LEAST", 0.0)
        monkeypatch.setattr(unfinished_, "_SHARE", 0.0)
    to, stops = tmp_path / "stopped", 0
    for batches in (2, 3, 4, 9, 13, 40, 10**6):
        if to.exists():
            break
        try:
            describe(model, sae, corpora[:2], to=to, config=CONFIG, progress=_stopping_after(batches))
        except _Stop:
            stops += 1
            assert not to.exists()
    assert stops >= 3
    assert _bytes(to) == _bytes(whole.folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped", "whole"]


_CHILD = """
import sys
from gemscope.atlas.describe import unfinished
unfinished._LEAST = unfinished._SHARE = 0.0
sys.path.insert(0, sys.argv[2])
from gemscope.atlas.describe.run import describe
from gemscope.testing import planted_sae, tiny_model
from gemscope.text.corpus import Corpus
from texts import CONFIG, varied
describe(tiny_model("gemma2"), planted_sae(site="1.res", seed=3).sae, Corpus.of(varied(0, 400)), to=sys.argv[1], config=CONFIG)
"""


def _touched(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_nothing(model: LanguageModel, sae: SAE, tmp_path: Path) -> None:
    whole = describe(model, sae, Corpus.of(varied(0, 400)), to=tmp_path / "whole", config=CONFIG)
    to, chance, kills = tmp_path / "killed", random.Random(os.getpid()), 0
    command = [sys.executable, "-c", _CHILD, str(to), str(Path(__file__).parents[1])]
    for _ in range(60):
        with subprocess.Popen(command, stderr=subprocess.PIPE) as child:
            # Loading takes a while: wait until it is at work, then a little.
            started = time.time()
            while child.poll() is None and _touched(to.with_name("killed.partial") / "corpus.bin") < started:
                time.sleep(0.01)
            patience = time.monotonic() + chance.uniform(0, 1.5)
            while child.poll() is None and time.monotonic() < patience:
                time.sleep(0.002)
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
                child.wait()
                kills += 1
                if to.exists() and not to.with_name("killed.partial").exists():
                    break  # it was through
                continue
            assert child.returncode == 0, child.stderr.read().decode()  # type: ignore[union-attr]
            break
    assert to.exists()
    assert kills >= 1
    assert _bytes(to) == _bytes(whole.folder)


def test_going_on_with_other_settings_is_refused(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfinished_, "_LEAST", 0.0)
    monkeypatch.setattr(unfinished_, "_SHARE", 0.0)
    with pytest.raises(_Stop):
        describe(model, sae, corpora[0], to=tmp_path / "a", config=CONFIG, progress=_stopping_after(2))
    with pytest.raises(InputError, match=r"another corpus.*same settings, or remove it"):
        describe(model, sae, corpora[1], to=tmp_path / "a", config=CONFIG)
    with pytest.raises(InputError, match=r"another tokens, options"):
        describe(model, sae, corpora[0], to=tmp_path / "a", tokens=48, config=DescribeConfig())


def test_what_was_stopped_before_anything_was_saved_stands_in_nobody_s_way(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path
) -> None:
    with pytest.raises(_Stop):
        describe(model, sae, corpora[0], to=tmp_path / "a", config=CONFIG, progress=_stopping_after(2))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.partial").mkdir()
    (tmp_path / "a.partial" / "settings.json").write_text("{")  # killed at the very beginning
    assert describe(model, sae, corpora[1], to=tmp_path / "a", tokens=48, config=CONFIG).manifest.tokens


def test_what_no_description_wrote_is_never_taken_away(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path
) -> None:
    mine = tmp_path / "a.partial" / "unfinished.json"  # of a harvest that may go on
    mine.parent.mkdir()
    mine.write_text("somebody's work")
    with pytest.raises(
        InputError, match=r"unfinished.json is of no unfinished atlas: move .*a.partial, or name another"
    ):
        describe(model, sae, corpora[0], to=tmp_path / "a", tokens=48, config=CONFIG)
    assert [path.name for path in mine.parent.iterdir()] == ["unfinished.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.partial"]


def test_two_passes_cannot_make_the_same_atlas_at_once(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], atlas: Atlas, tmp_path: Path
) -> None:
    refused = []

    @contextmanager
    def progress(what: str, total: int | None, unit: str) -> Iterator[object]:
        def advance(done: int) -> None:
            if not refused:
                with pytest.raises(AccessError, match=r"a.partial is being written by another process") as error:
                    describe(model, sae, corpora[0], to=tmp_path / "a", config=CONFIG)
                refused.append(str(error.value))

        yield advance

    made = describe(model, sae, corpora[0], to=tmp_path / "a", config=CONFIG, progress=progress)
    assert refused
    assert _bytes(made.folder) == _bytes(atlas.folder)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_killed_while_cleaning_up_the_atlas_is_whole_and_the_rest_goes(
    steps: int, model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> Atlas:
        return describe(model, sae, corpora[0], to=tmp_path / "a", config=CONFIG)

    def killed(path: Path, **_: object) -> None:
        if steps == 2:
            (path / "corpus.bin").unlink()
        raise _Stop

    with monkeypatch.context() as patch:
        patch.setattr(unfinished_, "shutil", SimpleNamespace(rmtree=killed))
        patch.setattr(unfinished_.Unfinished, "close", lambda self: self._held.pop_all())
        if steps == 0:
            patch.setattr(unfinished_.Unfinished, "discard", lambda self: killed(self.folder))
        with pytest.raises(_Stop):
            make()
    made = _bytes(tmp_path / "a")
    monkeypatch.setattr(LanguageModel, "capture", None)  # no text is read again
    if steps == 0:
        assert _bytes(make().folder) == made
    else:
        with pytest.raises(InputError, match="exists: an atlas is never written over"):
            make()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert _bytes(tmp_path / "a") == made


def test_a_full_disk_is_one_line_and_what_was_saved_stays(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    to = tmp_path / "a"
    with monkeypatch.context() as patch:
        patch.setattr(unfinished_, "save_file", full)
        with pytest.raises(
            StorageFull, match=r"no room left on the disk for .*a.partial, nothing half-written was kept"
        ):
            describe(model, sae, corpora[0], to=to, config=CONFIG)
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr(compose_, "save_file", full)
        with pytest.raises(StorageFull, match=r"no room left .* nothing of the atlas is kept"):
            describe(model, sae, corpora[0], to=to, config=CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["a.partial"]
    monkeypatch.setattr(LanguageModel, "capture", None)  # all was read
    assert _bytes(describe(model, sae, corpora[0], to=to, config=CONFIG).folder) == _bytes(atlas.folder)


def test_a_damaged_snapshot_is_one_clear_line(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfinished_, "_LEAST", 0.0)
    monkeypatch.setattr(unfinished_, "_SHARE", 0.0)
    with pytest.raises(_Stop):
        describe(model, sae, corpora[0], to=tmp_path / "a", config=CONFIG, progress=_stopping_after(4))
    state = tmp_path / "a.partial" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(CorruptFile, match=r"state.safetensors is damaged.*remove"):
        describe(model, sae, corpora[0], to=tmp_path / "a", config=CONFIG)
    (tmp_path / "a.partial" / "settings.json").write_text("{")
    with pytest.raises(CorruptFile, match=r"settings\.json is not JSON.*remove"):
        describe(model, sae, corpora[0], to=tmp_path / "a", config=CONFIG)


def _stored(change: dict[str, np.ndarray], said: dict[str, Any], state: Path) -> None:
    """A snapshot in which that stands, as whole by its checksum as any other."""
    arrays, beside = read_tensors(state, framework="np")
    arrays |= change
    document = json.loads(beside["progress"])
    del document["checksum"]
    for name, value in said.items():
        if isinstance(value, bytes):
            (state.parent / name).write_bytes(value)
            document["appended"][name] = [len(value), zlib.crc32(value)]
        else:
            document["progress"][name] = value
    document["checksum"] = checksum_of(arrays, document)
    save_file(arrays, state, {"progress": json.dumps(document)})


FORGED: dict[str, tuple[dict[str, np.ndarray], dict[str, Any]]] = {
    "tally.max is float64": ({"0.tally.max": np.zeros(64)}, {}),
    "examples.top.rank is int64 of shape": ({"0.examples.top.rank": np.zeros((3, 4), np.int64)}, {}),
    "counts and maxima are no tally's": ({"0.tally.tokens": np.array([-1])}, {}),
    "sums are no tally's": ({"0.tally.sums": np.full((2, 64), 2**40)}, {}),
    "examples are not where they belong": ({"0.examples.exponents": np.full(64, 2**40)}, {}),
    "sample of tokens is no such sample": ({"0.sample.position": np.zeros(0, np.int64)}, {}),
    'field "read" is -1': ({}, {"read": -1}),
    'field "counts" is an empty object': ({}, {"counts": {}}),
    'field "finished" is 1': ({}, {"finished": 1}),
    "does not say how far it was": ({}, {"rows": 10**9}),
    "documents do not begin where its text is": ({}, {"documents.jsonl": b""}),
    'field "\\[0\\]" is -3': ({}, {"documents.jsonl": b'[-3, "a", ""]\n'}),
}
"""What is said of a snapshot in which those arrays and these figures stand."""


@pytest.mark.parametrize("told", FORGED)
def test_a_snapshot_that_passes_its_checksum_and_cannot_be_is_one_clear_line(
    told: str, model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some went on to ask for more memory than there is, and some became atlases that `verify` called damaged."""
    monkeypatch.setattr(unfinished_, "_LEAST", 0.0)
    monkeypatch.setattr(unfinished_, "_SHARE", 0.0)
    with pytest.raises(_Stop):
        describe(model, sae, corpora[0], to=tmp_path / "a", config=CONFIG, progress=_stopping_after(4))
    state = tmp_path / "a.partial" / "state.safetensors"
    arrays, said = FORGED[told]
    _stored(arrays, said, state)
    before = state.read_bytes()
    with pytest.raises(CorruptFile, match=f"state.safetensors is damaged .*{told}.*: remove .*a.partial to begin anew"):
        describe(model, sae, corpora[0], to=tmp_path / "a", config=CONFIG)
    assert state.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.partial"]


# --- many texts, many SAEs, stores ----------------------------------------------------------------------------------


def test_merged_atlases_equal_one_pass_over_all_texts(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], atlas: Atlas, tmp_path: Path
) -> None:
    others = [
        describe(model, sae, corpus, to=tmp_path / f"part-{number}", config=CONFIG)
        for number, corpus in enumerate(corpora[1:])
    ]
    whole = describe(model, sae, corpora, to=tmp_path / "whole", config=CONFIG)
    merged = merge([atlas, *others], to=tmp_path / "merged")
    assert _bytes(merged.folder) == _bytes(whole.folder)
    pair = merge([atlas, others[0]], to=tmp_path / "pair")
    again = merge([pair, others[1].folder], to=tmp_path / "again")
    assert _bytes(again.folder) == _bytes(whole.folder)
    assert verify(merged.folder) == []


def test_a_damaged_corpus_is_not_merged(atlas: Atlas, tmp_path: Path) -> None:
    import shutil

    damaged = Path(shutil.copytree(atlas.folder, tmp_path / "damaged"))
    rows = np.load(damaged / "corpus.npy", mmap_mode="r+")
    rows[0, 1] = np.iinfo(rows.dtype).max - 1
    rows.flush()
    with pytest.raises(CorruptFile, match=f"token {rows[0, 1]} is in the corpus.*gemscope atlas verify"):
        merge([atlas, damaged], to=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_labels_come_along_when_atlases_are_merged(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path
) -> None:
    parts = [
        describe(model, sae, corpus, to=tmp_path / f"part-{number}", config=CONFIG)
        for number, corpus in enumerate(corpora[:2])
    ]
    for part, texts in zip(parts, (["in both", "first"], ["in both", "last"]), strict=True):
        for text in texts:
            part.explain(3, text, author="somebody")
    parts[0].explain(5, "alone")
    merged = merge(parts, to=tmp_path / "merged")
    assert [one.text for one in merged[3].explanations] == ["last", "first", "in both"]
    assert merged[3].explanations[0].author == "somebody"
    assert merged.labels([3, 5]) == {3: "last", 5: "alone"}
    assert [one.feature for one in merged.search("alone")] == [5]
    assert verify(merged.folder) == []


def test_atlases_that_are_not_of_one_kind_are_not_merged(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], atlas: Atlas, tmp_path: Path
) -> None:
    other = planted_sae(site="1.res", seed=4).sae
    stranger = describe(model, other, corpora[1], to=tmp_path / "stranger", config=CONFIG)
    with pytest.raises(Mismatch, match="sae_digest differ"):
        merge([atlas, stranger], to=tmp_path / "merged")
    with pytest.raises(InputError, match="1 atlases given"):
        merge([atlas], to=tmp_path / "merged")
    (stranger.folder / SUMS).unlink()
    with pytest.raises(NotFound, match=f"no {SUMS}"):
        merge([stranger, stranger], to=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_several_saes_in_one_pass_give_what_each_gives_alone(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], atlas: Atlas, tmp_path: Path
) -> None:
    other = planted_sae(site="0.mlp", seed=5, d_sae=48).sae
    both = describe(model, [sae, other], corpora[0], to=tmp_path / "both", config=CONFIG)
    assert [one.manifest.source_id for one in both] == ["1-res-64", "0-mlp-48"]
    alone = describe(model, other, corpora[0], to=tmp_path / "alone", config=CONFIG)
    assert _bytes(both[0].folder) == _bytes(atlas.folder)
    assert _bytes(both[1].folder) == _bytes(alone.folder)


def test_a_harvest_gives_the_figures_of_the_live_model(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], atlas: Atlas, tmp_path: Path
) -> None:
    store = gs.harvest(model, corpora[0], ["1.res"], to=tmp_path / "store", length=CONFIG.length, batch=CONFIG.batch)
    stored = describe(model, sae, store, to=tmp_path / "stored", config=CONFIG)
    assert stored.manifest.tokens == atlas.manifest.tokens
    assert verify(stored.folder) == []
    same = 0
    for mine, theirs in zip(stored, atlas, strict=True):
        assert abs(mine.count - theirs.count) <= 2  # stored in float16: what lies at a threshold may cross it
        assert mine.max == pytest.approx(theirs.max, rel=1e-2)
        assert mine.promoted == theirs.promoted
        if mine.strongest and theirs.strongest:
            one, other = mine.strongest[0], theirs.strongest[0]
            assert one.ids[one.peak] == other.ids[other.peak]
            same += (one.document, one.position) == (other.document, other.position)
    assert same > 40


def test_saes_of_several_sites_are_described_from_one_harvest(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path
) -> None:
    """To the byte as each by itself, and, as nothing was rounded, with every figure of one pass of the live model."""
    saes = [sae, planted_sae(site="0.mlp", seed=5, d_sae=48).sae]
    shape = {"length": CONFIG.length, "batch": CONFIG.batch}
    store = gs.harvest(model, corpora[0], ["0.mlp", "1.res"], to=tmp_path / "store", dtype="float32", **shape)
    stored = describe(model, saes, store, to=tmp_path / "stored", config=CONFIG)
    live = describe(model, saes, corpora[0], to=tmp_path / "live", config=CONFIG)
    for one, both, passed in zip(saes, stored, live, strict=True):
        alone = describe(model, one, store, to=tmp_path / one.info.name, config=CONFIG)
        assert _bytes(both.folder) == _bytes(alone.folder)
        assert both.manifest.tokens == passed.manifest.tokens
        assert sum(page.count for page in both) > 100
        for mine, theirs in zip(both, passed, strict=True):
            for figure in ("count", "max", "mean", "histogram", "promoted", "coactive"):
                assert getattr(mine, figure) == getattr(theirs, figure)


def test_saes_of_several_sites_are_refused_where_a_harvest_holds_other_tokens_at_each(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path
) -> None:
    """As stores of before format 3 may, in which sinks were told site by site."""
    store = gs.harvest(model, corpora[0], ["0.mlp", "1.res"], to=tmp_path / "store", length=CONFIG.length)
    path = store.folder / "0.mlp" / "00000.safetensors"
    rows, _ = read_tensors(path, framework="np")
    save_file({name: one[1:].copy() for name, one in rows.items()}, path)
    manifest = json.loads((store.folder / "manifest.json").read_text())
    manifest["format"] = 2
    manifest["sites"]["0.mlp"] -= 1
    manifest["shards"]["0.mlp"][0]["rows"] -= 1
    (store.folder / "manifest.json").write_text(json.dumps(manifest))
    old = gs.Store(store.folder)
    saes = [sae, planted_sae(site="0.mlp", seed=5, d_sae=48).sae]
    with pytest.raises(
        InputError, match=r"1\.res and 0\.mlp of .* hold different tokens .* format 2 may: harvest again"
    ):
        describe(model, saes, old, to=tmp_path / "both", config=CONFIG)
    assert not (tmp_path / "both.partial").exists()
    assert describe(model, saes[1], old, to=tmp_path / "alone", config=CONFIG).manifest.tokens == len(old["0.mlp"])


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_places_in_documents_are_right_whether_text_or_its_harvest_was_read(
    family: str, sae: SAE, corpora: list[Corpus], tmp_path: Path
) -> None:
    model = tiny_model(family)
    store = gs.harvest(model, corpora[0], ["1.res"], to=tmp_path / "store", length=CONFIG.length, batch=CONFIG.batch)
    mixed = describe(model, sae, [store, corpora[0]], to=tmp_path / "mixed", config=CONFIG)
    ids = [model.tokenizer(document.text, add_special_tokens=False)["input_ids"] for document in corpora[0]]
    examples = [one for page in mixed for one in page.examples]
    assert {one.document < len(ids) for one in examples} == {True, False}
    for one in examples:
        assert ids[one.document % len(ids)][one.position] == one.ids[one.peak]


def test_a_token_limit_ends_the_pass(model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path) -> None:
    some = describe(model, sae, corpora, to=tmp_path / "some", tokens=96, config=CONFIG)
    assert some.manifest.rows * CONFIG.length < 96 + CONFIG.length * CONFIG.batch
    assert len(some.manifest.parts) == 1


# --- bad input ------------------------------------------------------------------------------------------------------


def test_an_atlas_is_never_written_over(model: LanguageModel, sae: SAE, corpora: list[Corpus], atlas: Atlas) -> None:
    with pytest.raises(InputError, match="exists: an atlas is never written over"):
        describe(model, sae, corpora[0], to=atlas.folder, config=CONFIG)


def test_what_cannot_be_described_leaves_nothing(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path
) -> None:
    narrow = planted_sae(8, 12, active=2, site="1.res").sae
    with pytest.raises(Mismatch):
        describe(model, narrow, Corpus.of(["the end"]), to=tmp_path / "a", config=CONFIG)
    with pytest.raises(InputError, match="no token that counts"):
        describe(tiny_model("llama"), sae, Corpus.of(["t"]), to=tmp_path / "a", config=CONFIG)
    with pytest.raises(EmptyText):
        describe(model, sae, Corpus.of(["the end"]).where(lambda _: False), to=tmp_path / "a", config=CONFIG)
    with pytest.raises(InputError, match="no SAEs"):
        describe(model, [], Corpus.of(["the end"]), to=tmp_path / "a", config=CONFIG)
    with pytest.raises(InputError, match="no text"):
        describe(model, sae, [], to=tmp_path / "a", config=CONFIG)
    with pytest.raises(InputError, match="leave no room"):
        describe(model, sae, corpora[0], to=tmp_path / "a", config=DescribeConfig(length=1, before=0, after=0))
    with pytest.raises(InputError, match="tokens=0: at least 1"):
        describe(model, sae, corpora[0], to=tmp_path / "a", tokens=0, config=CONFIG)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"cannot write .*file/a.partial: Not a directory"):
        describe(model, sae, corpora[0], to=tmp_path / "file" / "a", config=CONFIG)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"top": 0}, '"top" is 0, expected a whole number from 1'),
        ({"each": -1}, '"each" is -1, expected a whole number from 0'),
        ({"before": 200, "after": 60}, "reach beyond a row of length=256"),
    ],
)
def test_impossible_settings_are_refused_at_once(settings: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        DescribeConfig(**settings)


def test_the_manifest_holds_no_clock_and_no_place(atlas: Atlas) -> None:
    text = (atlas.folder / "manifest.json").read_text()
    assert str(atlas.folder.parent) not in text
    assert json.loads(text)["options"]["top"] == CONFIG.top


def test_places_that_top_more_than_a_handful_of_features_are_named(tmp_path: Path) -> None:
    """One place is made an outlier that is no sink: the strongest of whatever fires there."""
    model = tiny_model("llama", seed=1)
    texts = [" ".join(["river sang of hours"] * 5), "sun x", " ".join(["another order round there"] * 4)]
    token = model.tokens(texts[1]).ids[0, -1].item()
    model.hf.model.embed_tokens.weight[token] *= 2.5
    sae = planted_sae(model.d_model, 48, site="0.res").sae
    atlas = describe(model, sae, Corpus.of(texts), to=tmp_path / "atlas", config=CONFIG)
    places = Counter(one.examples[0].position + 1000 * one.examples[0].document for one in atlas if one.examples)
    crowded = sorted((count for count in places.values() if count > 6), reverse=True)
    assert crowded
    assert [one.features for one in atlas.manifest.crowded] == crowded
    worst = atlas.ids(np.array([atlas.manifest.crowded[0].position]))[0]
    assert worst == token
    assert f"[[{model.strings([token])[0]}]]" in str(atlas)
