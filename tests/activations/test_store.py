"""Harvested activations: that they are the model's own, in order, and that what is not whole is not there."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gemscope.activations import writer as writers
from gemscope.activations.capture import Activations
from gemscope.activations.harvest import harvest
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.activations.store import DTYPES, FORMAT, Manifest, Store
from gemscope.activations.writer import Writer
from gemscope.errors import (
    AccessError,
    CorruptFile,
    EmptyText,
    FileError,
    InputError,
    Mismatch,
    NotFinite,
    NotFound,
    SiteNotFound,
    StorageFull,
)
from gemscope.testing import tiny_model
from gemscope.text.corpus import Corpus
from gemscope.text.tokens import Tokens

SITES = ("2.res", "0.mlp", "1.att")
TEXTS = [
    f"the {word} and the {word} sang in {word * 3}, thinking of rivers and hours" for word in ("one", "two", "sun")
]
TEXTS += ["An other document, rather short.", "the end and the ending " * 9]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.of(TEXTS)


@pytest.fixture(scope="module")
def store(model: LanguageModel, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Store:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writers, "_SHARD", 15_000)  # several shards, none of them of a round size
        return harvest(model, corpus, SITES, to=tmp_path_factory.mktemp("store") / "deep" / "store", length=24, batch=2)


def captured(model: LanguageModel, corpus: Corpus, site: str) -> list[Activations]:
    """Each packed row by itself."""
    return [model.capture(rows, [site])[site] for rows in model.rows(corpus, length=24, batch=2)]


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in tree(folder)}


def as_format_1(folder: Path) -> None:
    """The manifest as an earlier version wrote it."""
    facts = json.loads((folder / "manifest.json").read_text())
    for later in ("stored", "dropped", "shards"):
        del facts[later]
    (folder / "manifest.json").write_text(json.dumps(facts | {"format": 1}))


# --- what is in it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", SITES)
def test_harvested_rows_are_what_the_model_computed_in_the_order_of_the_text(
    site: str, model: LanguageModel, corpus: Corpus, store: Store
) -> None:
    expected = torch.cat([acts.rows for acts in captured(model, corpus, site)])
    rows = store[site]
    assert len(rows) == len(expected) > 150
    assert rows.d == model.width(site)
    assert torch.equal(rows[slice(None)], expected.half().float())


def test_the_rows_are_the_residual_stream_that_transformers_reports(
    model: LanguageModel, corpus: Corpus, store: Store
) -> None:
    first = next(iter(model.rows(corpus, length=24, batch=2)))
    hidden = model.hf(first.ids, output_hidden_states=True).hidden_states
    rows = store["0.mlp"]
    counted = first.counted[0].sum() + first.counted[1].sum()
    assert torch.equal(rows.tokens(slice(0, int(counted))), first.ids[first.counted].int())
    # The last block's output is not among the hidden states before the final norm, so the site is one block lower.
    lower = harvest(model, corpus, ["1.res"], to=store.folder.with_name("lower"), length=24, batch=2)
    torch.testing.assert_close(lower["1.res"][slice(0, int(counted))], hidden[2][first.counted], rtol=1e-3, atol=1e-3)


def test_each_row_knows_its_token_document_and_place(model: LanguageModel, store: Store) -> None:
    rows = store["2.res"]
    tokens, documents = rows.tokens(slice(None)), rows.documents(slice(None))
    offsets = rows.offsets(slice(None))
    assert documents.unique().tolist() == list(range(len(TEXTS)))
    ids = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    for token, document, offset in zip(tokens.tolist(), documents.tolist(), offsets.tolist(), strict=True):
        assert ids[document][offset] == token
    special = torch.tensor(sorted(model.special_ids))
    assert not torch.isin(tokens, special).any()


def test_the_first_position_of_each_row_of_text_and_the_separators_are_left_out(
    model: LanguageModel, corpus: Corpus, store: Store
) -> None:
    packed = list(model.rows(corpus, length=24, batch=2))
    real = sum(int(rows.real.sum()) for rows in packed)
    rows_of_text = sum(len(rows) for rows in packed)
    separators = len(TEXTS)
    assert store.manifest.read == real
    first_and_separator = sum(int((rows.ids[:, 0] == model.separator).sum()) for rows in packed)
    assert len(store["0.mlp"]) <= real - rows_of_text - separators + first_and_separator
    assert len(store["0.mlp"]) == sum(int(acts.counted.sum()) for acts in captured(model, corpus, "0.mlp"))


def test_sinks_are_left_out_at_every_site(corpus: Corpus, tmp_path: Path) -> None:
    """One token is made enormous: its rows are gone, also where a norm hides its size, and all else stays in line."""
    model = tiny_model("llama", seed=1)
    token = model.tokenizer("the")["input_ids"][-1]
    model.hf.model.embed_tokens.weight[token] *= 1000
    store = harvest(model, corpus, ["embed", "0.att", "2.res"], to=tmp_path / "store", length=24, batch=2)
    packed = list(model.rows(corpus, length=24, batch=2))
    expected = torch.cat([rows.ids[rows.counted & (rows.ids != token)] for rows in packed])
    sinks = sum(int((rows.counted & (rows.ids == token)).sum()) for rows in packed)
    assert sinks > 0
    for site in store.sites:
        assert torch.equal(store[site].tokens(slice(None)).long(), expected)
        assert store.manifest.dropped[str(site)]["sink"] == sinks
    # A store of two sites and one of each hold the same rows.
    alone = harvest(model, corpus, ["0.att"], to=tmp_path / "alone", length=24, batch=2)
    assert torch.equal(alone["0.att"][slice(None)], store["0.att"][slice(None)])


def test_the_manifest_says_what_was_read(model: LanguageModel, corpus: Corpus, store: Store) -> None:
    manifest = store.manifest
    assert manifest.model == "tiny-llama"
    assert manifest.dtype == "float32"
    assert manifest.corpus_digest == corpus.digest
    assert manifest.length == 24
    assert store.sites == [Site.parse(site) for site in ("0.mlp", "1.att", "2.res")]
    assert {"torch", "transformers", "gemscope"} <= manifest.versions.keys()
    assert "2.res" in repr(store)
    assert Store(str(store.folder)).manifest == manifest
    assert not list(store.folder.parent.glob("*.partial"))


def test_a_number_of_tokens_ends_the_harvest(model: LanguageModel, corpus: Corpus, tmp_path: Path) -> None:
    told: list[int] = []

    def progress(what: str, total: int | None, unit: str):  # type: ignore[no-untyped-def]
        assert "2.res" in what
        assert (total, unit) == (96, "tokens")
        return nullcontext(told.append)

    store = harvest(model, corpus, ["2.res"], to=tmp_path / "store", tokens=96, length=24, batch=32, progress=progress)
    assert store.manifest.read == sum(told) == 96
    with pytest.raises(InputError, match="less than one row"):
        harvest(model, corpus, ["2.res"], to=tmp_path / "other", tokens=20, length=24)


def test_every_place_of_the_text_is_a_row_or_was_dropped_for_a_reason(
    model: LanguageModel, corpus: Corpus, store: Store
) -> None:
    packed = list(model.rows(corpus, length=24, batch=2))
    first = sum(len(rows) for rows in packed)
    special = sum(int(torch.isin(rows.ids[:, 1:], torch.tensor(sorted(model.special_ids))).sum()) for rows in packed)
    padding = sum(int((~rows.real).sum()) for rows in packed)
    assert padding > 0
    assert store.manifest.dropped.keys() == store.manifest.sites.keys()
    for site, dropped in store.manifest.dropped.items():
        assert dropped["padding"] == padding
        assert dropped["first"] == first
        assert dropped["special"] == special - padding * (model._pad in model.special_ids)
        assert store.manifest.sites[site] + sum(dropped.values()) == sum(rows.ids.numel() for rows in packed)
        assert store.manifest.sites[site] + sum(dropped.values()) == store.manifest.read + padding


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_values_are_kept_in_the_number_format_asked_for(
    dtype: str, model: LanguageModel, corpus: Corpus, tmp_path: Path
) -> None:
    store = harvest(model, corpus, ["2.res"], to=tmp_path / "store", length=24, batch=2, dtype=dtype)
    assert store.manifest.stored == dtype
    expected = torch.cat([acts.rows for acts in captured(model, corpus, "2.res")])
    rows = store["2.res"][slice(None)]
    assert rows.dtype == torch.float32
    assert torch.equal(rows, expected.to(DTYPES[dtype]).float())
    with pytest.raises(InputError, match="'float8': choose from float16, bfloat16, float32"):
        harvest(model, corpus, ["2.res"], to=tmp_path / "other", dtype="float8")


def test_what_float16_cannot_hold_bfloat16_can(corpus: Corpus, tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.hf.model.embed_tokens.weight[:, 3] = 1e5
    store = harvest(model, corpus, ["embed"], to=tmp_path / "store", length=24, batch=2, dtype="bfloat16")
    assert (store["embed"][slice(None)][:, 3] / 1e5 - 1).abs().max() < 0.01


# --- reading it -----------------------------------------------------------------------------------------------------


def test_there_are_several_shards(store: Store) -> None:
    sizes = [len(shard["values"]) for shard in store["2.res"]._shards]
    assert len(sizes) >= 3
    assert len(set(sizes)) > 1


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_random_access_equals_slices(data: st.DataObject, store: Store) -> None:
    rows = store["2.res"]
    whole, tokens = rows[slice(None)], rows.tokens(slice(None))
    index = torch.tensor(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=40)), dtype=torch.int64)
    assert torch.equal(rows[index], whole[index])
    assert torch.equal(rows.tokens(index), tokens[index])
    start = data.draw(st.integers(-5, len(rows) + 5))
    stop = data.draw(st.integers(-5, len(rows) + 5))
    step = data.draw(st.integers(1, 70))
    assert torch.equal(rows[slice(start, stop, step)], whole[start:stop:step])


def test_a_row_that_is_not_there_is_an_error(store: Store) -> None:
    rows = store["2.res"]
    for wrong in (len(rows), -1, -len(rows)):
        with pytest.raises(IndexError):
            rows[torch.tensor([0, wrong])]


def test_an_unknown_site_is_named(store: Store) -> None:
    with pytest.raises(NotFound, match=r"no 7\.res .* it holds 0\.mlp, 1\.att, 2\.res"):
        store["7.res"]


# --- what is not whole is not there ---------------------------------------------------------------------------------


class PowerCut(BaseException):
    pass


def broken_after(corpus: Corpus, documents: int, error: BaseException, *, reading: int = 2) -> Corpus:
    """Breaks when it is read for the second time: the first is for the estimate, where no `tokens` are asked for."""

    class Breaks:
        name, digest, begun = corpus.name, corpus.digest, 0

        def documents(self, _: object) -> Iterator[object]:
            self.begun += 1
            for number, document in enumerate(corpus):
                if number == documents and self.begun == reading:
                    raise error
                yield document

    return Corpus(Breaks())  # type: ignore[arg-type]


def test_a_harvest_that_is_interrupted_before_its_first_shard_leaves_nothing(
    model: LanguageModel, corpus: Corpus, tmp_path: Path
) -> None:
    with pytest.raises(PowerCut):
        harvest(model, broken_after(corpus, 3, PowerCut()), SITES, to=tmp_path / "store", length=24, batch=2)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NotFound, match="no harvest"):
        Store(tmp_path / "store")


@pytest.mark.parametrize(
    "name", ["notes.txt", "settings.json", "2.res/mine.safetensors", "2.res/deep/00000.safetensors"]
)
def test_what_no_harvest_wrote_is_never_taken_away(
    name: str, model: LanguageModel, corpus: Corpus, tmp_path: Path
) -> None:
    """Somebody's folder may have such a name, and an unfinished atlas has it."""
    mine = tmp_path / "store.partial" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("somebody's work")
    with pytest.raises(InputError, match=f"{name} is of no unfinished harvest: move .*store.partial, or name another"):
        harvest(model, corpus, ["2.res"], to=tmp_path / "store", length=24)
    assert mine.read_text() == "somebody's work"
    assert tree(tmp_path) == {f"store.partial/{name}"}


def test_remains_of_a_harvest_that_was_killed_before_its_first_shard_are_in_nobodys_way(
    model: LanguageModel, corpus: Corpus, tmp_path: Path
) -> None:
    (tmp_path / "store.partial" / "2.res").mkdir(parents=True)
    (tmp_path / "store.partial" / "2.res" / "00000.safetensors").write_bytes(b"half")
    (tmp_path / "store.partial" / "7.mlp").mkdir()
    with pytest.raises(NotFound):
        Store(tmp_path / "store")
    store = harvest(model, corpus, ["2.res"], to=tmp_path / "store", length=24, batch=2)
    assert len(store["2.res"]) > 100
    assert tree(tmp_path) == {"store/manifest.json", "store/2.res/00000.safetensors"}


def test_a_harvest_is_never_written_over(model: LanguageModel, corpus: Corpus, store: Store) -> None:
    before = (store.folder / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="never written over"):
        harvest(model, corpus, ["0.res"], to=store.folder)
    assert (store.folder / "manifest.json").read_bytes() == before


def test_a_site_that_the_model_lacks_leaves_nothing(model: LanguageModel, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(SiteNotFound, match="no layer 30"):
        harvest(model, corpus, ["30.res"], to=tmp_path / "store", length=24)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e5])
def test_what_float16_cannot_hold_is_refused(value: float, corpus: Corpus, tmp_path: Path) -> None:
    model = tiny_model("llama")
    token = model.tokenizer("the")["input_ids"][-1]
    # 100,000 in every number is common to all tokens, so that it cannot pass for an attention sink.
    model.hf.model.embed_tokens.weight[token if value != 1e5 else slice(None), 3] = value
    with pytest.raises(NotFinite, match=r"NaN or Inf at embed|embed are NaN, infinite or beyond float16") as raised:
        harvest(model, corpus, ["embed"], to=tmp_path / "store", length=24, batch=2)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", [0, 1, 5])
def test_a_full_disk_is_one_line_and_what_was_whole_is_gone_on_from(
    call: int, model: LanguageModel, corpus: Corpus, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards that were whole stayed nowhere before there was a way to go on from them."""
    real, calls = writers.save_file, iter(range(99))

    def fills(tensors: dict[str, Tensor], path: Path) -> None:
        if next(calls) == call:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(writers, "_SHARD", 15_000)
    monkeypatch.setattr(writers, "save_file", fills)
    kept = "2 of 4 batches are kept in .*store.partial: free some room" if call == 5 else "none of the .* are kept"
    with pytest.raises(StorageFull, match=f"no room left .*{kept}") as raised:
        harvest(model, corpus, SITES, to=tmp_path / "store", length=24, batch=2)
    assert "\n" not in str(raised.value)
    left = {f"{site}/00000.safetensors" for site in SITES} | {"unfinished.json"}
    assert tree(tmp_path) == {f"store.partial/{name}" for name in (left if call == 5 else ())}
    again = harvest(model, corpus, SITES, to=tmp_path / "store", length=24, batch=2)
    assert contents(again.folder) == contents(store.folder)


def test_a_disk_too_full_for_the_manifest_leaves_nothing(
    model: LanguageModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fills(self: Path, *args: object, **kwargs: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fills)
    with pytest.raises(StorageFull):
        harvest(model, corpus, ["2.res"], to=tmp_path / "store", length=24, batch=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", [1, 2])
def test_told_to_end_just_when_word_of_a_shard_is_out_nothing_it_speaks_of_is_taken_away(
    cut: int, model: LanguageModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, cuts = writers.Writer._save, iter(range(1, 99))

    def interrupted(self: writers.Writer, *given: Any) -> None:
        real(self, *given)
        if next(cuts) == cut:
            raise KeyboardInterrupt

    monkeypatch.setattr(writers, "_SHARD", 5_000)

    def again(to: str) -> Store:
        return harvest(model, corpus, ["2.res"], to=tmp_path / to, length=24, batch=2)

    whole = contents(again("whole").folder)
    with monkeypatch.context() as patch:
        patch.setattr(writers.Writer, "_save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            again("store")
    said = json.loads((tmp_path / "store.partial" / "unfinished.json").read_text())["shards"]
    assert tree(tmp_path / "store.partial") == {"unfinished.json"} | {
        f"{site}/{number:05d}.safetensors" for site, shards in said.items() for number in range(len(shards))
    }
    assert contents(again("store").folder) == whole


def test_other_failures_of_the_disk_keep_their_name(
    model: LanguageModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(tensors: dict[str, Tensor], path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(writers, "save_file", fails)
    with pytest.raises(FileError, match=r"cannot write .*store: Permission denied"):
        harvest(model, corpus, ["2.res"], to=tmp_path / "store", length=24, batch=2)


def test_a_corpus_of_which_nothing_counts_is_refused(model: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises((InputError, EmptyText), match="nothing was harvested"):
        harvest(model, Corpus.of(["a"]), ["2.res"], to=tmp_path / "store", length=24)
    assert list(tmp_path.iterdir()) == []


# --- what was cut off goes on ---------------------------------------------------------------------------------------


def test_what_was_cut_off_goes_on_from_its_last_shard_to_the_same_bytes(
    model: LanguageModel, corpus: Corpus, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "_SHARD", 15_000)
    with pytest.raises(PowerCut):
        harvest(model, broken_after(corpus, 4, PowerCut()), SITES, to=tmp_path / "store", length=24, batch=2)
    with pytest.raises(NotFound, match="no harvest"):
        Store(tmp_path / "store")
    state = json.loads((tmp_path / "store.partial" / "unfinished.json").read_text())
    seen: list[int] = []
    real = model.capture
    monkeypatch.setattr(model, "capture", lambda rows, sites: seen.append(len(rows)) or real(rows, sites))
    again = harvest(model, corpus, SITES, to=tmp_path / "store", length=24, batch=2)
    assert contents(again.folder) == contents(store.folder)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert 0 < state["batches"] == len(list(model.rows(corpus, length=24, batch=2))) - len(seen)


def test_another_harvest_in_the_way_is_a_mismatch(
    model: LanguageModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "_SHARD", 5_000)
    with pytest.raises(PowerCut):
        harvest(model, broken_after(corpus, 4, PowerCut()), ["2.res"], to=tmp_path / "store", length=24, batch=2)
    before = contents(tmp_path)
    options: dict[str, Any] = {"to": tmp_path / "store", "length": 24, "batch": 2}
    with pytest.raises(Mismatch, match=r"store\.partial is .* with another length: ") as raised:
        harvest(model, corpus, ["2.res"], **options | {"length": 20})
    assert "\n" not in str(raised.value)
    with pytest.raises(Mismatch, match="another stored"):
        harvest(model, corpus, ["2.res"], **options, dtype="float32")
    with pytest.raises(Mismatch, match="another corpus_digest"):
        harvest(model, Corpus.of(["texts of an other kind " * 20]), ["2.res"], **options)
    with pytest.raises(Mismatch, match="another sites"):
        harvest(model, corpus, ["1.res"], **options)
    assert contents(tmp_path) == before
    assert len(harvest(model, corpus, ["2.res"], **options)["2.res"]) > 100


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"identity": 0}'])
def test_a_damaged_note_of_what_is_done_is_one_line(
    text: str, model: LanguageModel, corpus: Corpus, tmp_path: Path
) -> None:
    (tmp_path / "store.partial").mkdir()
    (tmp_path / "store.partial" / "unfinished.json").write_text(text)
    with pytest.raises(CorruptFile, match=r"unfinished\.json.*; remove .*store\.partial") as raised:
        harvest(model, corpus, ["2.res"], to=tmp_path / "store", length=24, batch=2)
    assert "\n" not in str(raised.value)


def test_two_processes_do_not_write_the_same_store(model: LanguageModel, corpus: Corpus, tmp_path: Path) -> None:
    with (
        Writer(tmp_path / "store"),
        pytest.raises(AccessError, match="being written by another process"),
    ):
        harvest(model, corpus, ["2.res"], to=tmp_path / "store", length=24, batch=2)
    assert len(harvest(model, corpus, ["2.res"], to=tmp_path / "store", length=24, batch=2)["2.res"]) > 100


# --- room on the disk, room in memory -------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [None, 192])
def test_what_will_not_fit_is_refused_before_the_model_runs(
    tokens: int | None, model: LanguageModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runs(*given: object) -> None:
        raise AssertionError("the model ran")

    options: dict[str, Any] = {"to": tmp_path / "deep" / "store", "length": 24, "batch": 2, "tokens": tokens}
    disk = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(model, "capture", runs)
        patch.setattr(shutil, "disk_usage", lambda path: disk._replace(free=5_000))
        with pytest.raises(StorageFull, match=r"takes .* kB, .* has 5.0 kB left: make room") as raised:
            harvest(model, corpus, SITES, **options)
    assert "\n" not in str(raised.value)
    assert tree(tmp_path) == set()
    assert len(harvest(model, corpus, SITES, **options)["2.res"]) > 100


def test_the_estimate_is_near_what_is_written(model: LanguageModel, tmp_path: Path) -> None:
    corpus = Corpus.of([f"{text} {number}" for number in range(30) for text in TEXTS])
    told: list[int | None] = []

    def progress(what: str, total: int | None, unit: str):  # type: ignore[no-untyped-def]
        told.append(total)
        assert re.fullmatch(r"harvest 0\.mlp, 1\.att, 2\.res, about [\d.]+ MB", what)
        return nullcontext(lambda done: None)

    store = harvest(model, corpus, SITES, to=tmp_path / "store", length=24, progress=progress)
    assert told[0] is not None
    assert told[0] == pytest.approx(store.manifest.read, rel=0.3)
    row = sum(writers.bytes_per_row(model.width(site), "float16") for site in SITES)
    written = sum(map(len, contents(store.folder).values()))
    assert written == pytest.approx(told[0] * row, rel=0.3)


def test_what_was_written_before_is_not_asked_for_again(
    model: LanguageModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The room that is left is enough for the rest, and was never enough for all."""
    monkeypatch.setattr(writers, "_SHARD", 5_000)
    options: dict[str, Any] = {"to": tmp_path / "store", "length": 24, "batch": 2, "tokens": 240}
    with pytest.raises(PowerCut):
        harvest(model, broken_after(corpus, 4, PowerCut(), reading=1), ["2.res"], **options)
    done = json.loads((tmp_path / "store.partial" / "unfinished.json").read_text())["read"]
    row = writers.bytes_per_row(model.width("2.res"), "float16")
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk._replace(free=(240 - done) * row - 1))
    with pytest.raises(StorageFull):
        harvest(model, corpus, ["2.res"], **options)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk._replace(free=(240 - done) * row))
    assert harvest(model, corpus, ["2.res"], **options).manifest.read == 240


def test_no_more_than_a_shard_of_all_sites_is_held_in_memory(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus.of([f"{text} {number}" for number in range(8) for text in TEXTS])
    monkeypatch.setattr(writers, "_SHARD", 25_000)
    most, real = [0], Writer.add

    def watched(writer: Writer, *found: Activations) -> None:
        real(writer, *found)
        pieces = [piece for pieces in writer._pending.values() for piece in pieces]
        most[0] = max(most[0], sum(tensor.nbytes for piece in pieces for tensor in piece.values()))

    monkeypatch.setattr(Writer, "add", watched)
    store = harvest(model, corpus, SITES, to=tmp_path / "store", length=24, batch=2)
    assert 10_000 < most[0] < 25_000
    assert sum(map(len, contents(store.folder).values())) > 8 * 25_000


# --- damaged on disk ------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(store: Store, tmp_path: Path) -> Path:
    shutil.copytree(store.folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_truncated_shard_is_named(copy: Path) -> None:
    shard = copy / "2.res" / "00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CorruptFile, match=r"00001\.safetensors is damaged") as raised:
        Store(copy)["2.res"]
    assert "\n" not in str(raised.value)
    assert len(Store(copy)["0.mlp"]) > 100  # the other sites are as they were


def test_a_missing_shard_is_named(copy: Path) -> None:
    """Once its manifest knew only how many rows there should be."""
    (copy / "2.res" / "00002.safetensors").unlink()
    with pytest.raises(CorruptFile, match=r"2\.res/00002\.safetensors is damaged: it is missing"):
        Store(copy)["2.res"]
    shutil.rmtree(copy / "1.att")
    with pytest.raises(CorruptFile, match=r"1\.att/00000\.safetensors is damaged: it is missing"):
        Store(copy)["1.att"]


def test_a_missing_shard_of_format_1_is_noticed(copy: Path) -> None:
    as_format_1(copy)
    (copy / "2.res" / "00002.safetensors").unlink()
    with pytest.raises(CorruptFile, match="its manifest says"):
        Store(copy)["2.res"]
    shutil.rmtree(copy / "1.att")
    with pytest.raises(CorruptFile, match=r"has no shard of 1\.att"):
        Store(copy)["1.att"]


def test_a_shard_of_something_else_is_refused(copy: Path) -> None:
    writers.save_file({"weights": torch.ones(3)}, copy / "2.res" / "00000.safetensors")
    with pytest.raises(CorruptFile, match=r"00000\.safetensors is damaged"):
        Store(copy)["2.res"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON: it ends in the middle; harvest again"),
        ("[]", "it is an empty list, expected an object; harvest again"),
        ("{}", 'field "format" is missing'),
        ('{"format": 1}', 'field "model" is missing'),
        ('{"format": 2, "news": 0}', "is missing"),
        ('{"format": 2, "shards": {"2.res": [0]}}', "expected an object|is not an object"),
        ('{"format": 2, "shards": {"2.res": [{"rows": 1}]}}', 'sha256" is missing'),
        ('{"format": 4, "news": 0}', "is of format 4, this version reads 1 and 2 and 3"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(text: str, says: str, copy: Path) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(CorruptFile, match=says) as raised:
        Store(copy)
    assert "\n" not in str(raised.value)


def test_a_store_of_another_format_says_so(copy: Path) -> None:
    facts = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(facts | {"format": FORMAT + 1}))
    with pytest.raises(CorruptFile, match="harvest again"):
        Store(copy)


def flipped(path: Path) -> None:
    """One bit of one value is another, and nothing else shows."""
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def test_checksums_name_the_shard_that_was_damaged(copy: Path) -> None:
    store = Store(copy)
    store.verify()
    flipped(copy / "2.res" / "00001.safetensors")
    assert len(store["2.res"]) == store.manifest.sites["2.res"]  # nothing shows
    with pytest.raises(CorruptFile, match=r"1 of \d+ shards in .* are damaged: 2\.res/00001\.safetensors; ") as raised:
        store.verify()
    assert "\n" not in str(raised.value)
    (copy / "0.mlp" / "00000.safetensors").unlink()
    with pytest.raises(CorruptFile, match=r"damaged: 0\.mlp/00000\.safetensors, 2\.res/00001\.safetensors; "):
        store.verify()


@pytest.mark.parametrize("damage", [flipped, Path.unlink, lambda path: path.write_bytes(b"half")])
def test_a_damaged_shard_is_skipped_only_on_request(damage, store: Store, copy: Path) -> None:  # type: ignore[no-untyped-def]
    damage(copy / "2.res" / "00001.safetensors")
    sizes = [len(shard["values"]) for shard in store["2.res"]._shards]
    with pytest.warns(UserWarning, match=r"2\.res/00001\.safetensors is damaged: its rows are left out"):
        rows = Store(copy, skip_corrupt=True)["2.res"]
    whole = store["2.res"][slice(None)]
    assert torch.equal(rows[slice(None)], torch.cat([whole[: sizes[0]], whole[sum(sizes[:2]) :]]))
    for path in (copy / "2.res").iterdir():
        path.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(CorruptFile, match=r"no shard of 2\.res .* is whole"),
    ):
        Store(copy, skip_corrupt=True)["2.res"]


def test_what_is_skipped_at_one_site_is_skipped_at_all(
    model: LanguageModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "_SHARD", 10_000)
    store = harvest(model, corpus, SITES, to=tmp_path / "store", length=24, batch=2)
    flipped(store.folder / "0.mlp" / "00001.safetensors")
    skipping = Store(store.folder, skip_corrupt=True)
    with pytest.warns(UserWarning, match=r"0\.mlp/00001"):
        one, two = skipping["2.res"], skipping["0.mlp"]
    assert len(one) == len(two) < len(store["2.res"])
    assert torch.equal(one.offsets(slice(None)), two.offsets(slice(None)))
    assert torch.equal(one.documents(slice(None)), two.documents(slice(None)))


def test_a_store_of_format_1_is_read(store: Store, copy: Path) -> None:
    as_format_1(copy)
    old = Store(copy)
    assert old.manifest.format == 1
    assert old.manifest.stored == "float16"
    assert torch.equal(old["2.res"][slice(None)], store["2.res"][slice(None)])
    old.verify()  # what can be said without checksums
    (copy / "2.res" / "00001.safetensors").write_bytes(b"half")
    with pytest.raises(CorruptFile, match=r"2\.res/00001\.safetensors"):
        old.verify()


def test_shards_are_read_from_the_file_as_needed(tmp_path: Path) -> None:
    """Opening a store reads no activations: what is changed in the file afterwards shows."""
    ids = torch.arange(50)[None]
    counted = torch.ones_like(ids, dtype=torch.bool)
    with Writer(tmp_path / "store") as writer:
        writer.add(Activations(torch.ones(1, 50, 4096), counted, Tokens(ids, counted, counted), Site(0, "res"), "none"))
        store = writer.finish(
            Manifest(
                format=FORMAT,
                model="none",
                revision=None,
                dtype="float32",
                sites=writer.counts,
                read=50,
                length=50,
                corpus="none",
                corpus_digest="",
                versions={},
            )
        )
    rows = store["0.res"]
    path = tmp_path / "store" / "0.res" / "00000.safetensors"
    data = path.read_bytes()
    one, two = torch.ones(1).half().numpy().tobytes(), (2 * torch.ones(1)).half().numpy().tobytes()
    with path.open("r+b") as file:
        file.write(data[:1024] + data[1024:].replace(one * 4096, two * 4096))
    assert (rows[slice(None)] == 2).any()
