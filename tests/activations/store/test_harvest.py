"""Harvests that are cut off, in each other's way, or too large: what is not whole is not there, and goes on."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import save_file as save_numpy
from torch import Tensor

from gemscope.activations import harvest as harvests
from gemscope.activations import work as work_
from gemscope.activations import writer as writers
from gemscope.activations.capture import Activations
from gemscope.activations.harvest import harvest
from gemscope.activations.model import LanguageModel
from gemscope.activations.store import Store
from gemscope.activations.work import counted
from gemscope.activations.writer import Shards
from gemscope.errors import (
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
from harvested import SITES, TEXTS, contents, tree

PIECE = 60
"""Bytes of text: four pieces of the five documents."""


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


def test_remains_of_a_harvest_that_was_killed_before_its_first_piece_are_in_nobodys_way(
    model: LanguageModel, corpus: Corpus, tmp_path: Path
) -> None:
    there = tmp_path / "store.partial"
    (there / "2.res").mkdir(parents=True)
    (there / "2.res" / "00000-00.safetensors").write_bytes(b"half")  # moved there, and no word of it yet
    (there / "2.res" / "00009-00.safetensors").write_bytes(b"half")
    (there / "7.mlp").mkdir()
    (there / ".00001.gemscope-elsewhere-1-0" / "2.res").mkdir(parents=True)
    (there / ".00001.gemscope-elsewhere-1-0" / "2.res" / "00001-00.safetensors").write_bytes(b"half")
    with pytest.raises(NotFound):
        Store(tmp_path / "store")
    store = harvest(model, corpus, ["2.res"], to=tmp_path / "store", length=24, batch=2)
    assert len(store["2.res"]) > 100
    store.verify()
    assert tree(tmp_path) == {"store/manifest.json", "store/2.res/00000-00.safetensors"}


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
    call: int, model: LanguageModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"length": 24, "batch": 2, "piece": PIECE}
    whole = harvest(model, corpus, SITES, to=tmp_path / "whole" / "store", **options)
    real, calls = writers.save_file, iter(range(99))

    def fills(tensors: dict[str, Tensor], path: Path) -> None:
        if next(calls) == call:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(writers, "save_file", fills)
    kept = "1 piece is kept in .*store.partial: free some room and start again" if call == 5 else "nothing half-written"
    with pytest.raises(StorageFull, match=f"no room left .*{kept}") as raised:
        harvest(model, corpus, SITES, to=tmp_path / "deep" / "store", **options)
    assert "\n" not in str(raised.value)
    left = {f"{site}/00000-00.safetensors" for site in SITES} | {"pieces/00000.safetensors"}
    assert tree(tmp_path / "deep") == {f"store.partial/{name}" for name in (left if call == 5 else ())}
    assert (tmp_path / "deep").exists() == (call == 5)
    again = harvest(model, corpus, SITES, to=tmp_path / "deep" / "store", **options)
    assert contents(again.folder) == contents(whole.folder)


def test_a_disk_too_full_for_the_manifest_keeps_the_pieces(
    model: LanguageModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fills(self: Path, *args: object, **kwargs: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fills)
        with pytest.raises(StorageFull, match="1 piece is kept in"):
            harvest(model, corpus, ["2.res"], to=tmp_path / "store", length=24, batch=2)
    monkeypatch.setattr(model, "capture", None)  # all was read
    assert len(harvest(model, corpus, ["2.res"], to=tmp_path / "store", length=24, batch=2)["2.res"]) > 100
    assert tree(tmp_path) == {"store/manifest.json", "store/2.res/00000-00.safetensors"}


@pytest.mark.parametrize("moment", [0, 1, 2])
def test_told_to_end_when_a_piece_is_all_but_done_what_is_said_to_be_whole_is(
    moment: int, model: LanguageModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its shards are moved, before word of it is out, and after."""

    def again(to: str) -> Store:
        return harvest(model, corpus, SITES, to=tmp_path / to, length=24, batch=2, piece=PIECE)

    whole = contents(again("whole").folder)
    put, has = work_.Work.put, work_.Work.has

    def interrupted(self: work_.Work, number: int, **given: Any) -> None:
        if moment == 2:
            put(self, number, **given)
        if number == 1:
            raise KeyboardInterrupt
        put(self, number, **given)

    def asked(self: work_.Work, number: int) -> bool:
        if moment == 0 and number == 1 and any(self.folder.path.glob(".00001*/*/*")):
            raise KeyboardInterrupt
        return has(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(work_.Work, "put", interrupted)
        patch.setattr(work_.Work, "has", asked)
        with pytest.raises(KeyboardInterrupt):
            again("store")
    done = range(2 if moment == 2 else 1)
    moved = range(1 if moment == 0 else 2)
    assert tree(tmp_path / "store.partial") == {f"pieces/{number:05d}.safetensors" for number in done} | {
        f"{site}/{number:05d}-00.safetensors" for site in SITES for number in moved
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


def test_what_was_cut_off_goes_on_with_the_pieces_that_are_missing_to_the_same_bytes(
    model: LanguageModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"length": 24, "batch": 2, "piece": PIECE}
    whole = harvest(model, corpus, SITES, to=tmp_path / "whole", **options)
    with pytest.raises(PowerCut):
        harvest(model, broken_after(corpus, 3, PowerCut()), SITES, to=tmp_path / "store", **options)
    with pytest.raises(NotFound, match="no harvest"):
        Store(tmp_path / "store")
    done = sorted((tmp_path / "store.partial" / "pieces").iterdir())
    assert [path.name for path in done] == ["00000.safetensors", "00001.safetensors"]
    seen: list[int] = []
    real = model.capture
    monkeypatch.setattr(model, "capture", lambda rows, sites: seen.append(int(rows.real.sum())) or real(rows, sites))
    again = harvest(model, corpus, SITES, to=tmp_path / "store", **options)
    assert contents(again.folder) == contents(whole.folder)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["store", "whole"]
    last = [passage for passage in corpus.pieces(PIECE) if passage.number > 1]
    assert sum(seen) == sum(counted(model, passage, length=24) for passage in last) < whole.manifest.read


def test_another_harvest_in_the_way_is_a_mismatch(
    model: LanguageModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"to": tmp_path / "store", "length": 24, "batch": 2, "piece": PIECE}
    with pytest.raises(PowerCut):
        harvest(model, broken_after(corpus, 4, PowerCut()), ["2.res"], **options)
    before = contents(tmp_path)
    with pytest.raises(Mismatch, match=r"store\.partial.* a harvest that was made with another length: ") as raised:
        harvest(model, corpus, ["2.res"], **options | {"length": 20})
    assert "\n" not in str(raised.value)
    with pytest.raises(Mismatch, match="another stored"):
        harvest(model, corpus, ["2.res"], **options, dtype="float32")
    other = (
        "another number format, float32 where this is bfloat16 .load the model with --dtype float32, dtype='float32'"
    )
    with pytest.raises(Mismatch, match=other) as raised:
        harvest(tiny_model("llama", dtype=torch.bfloat16), corpus, ["2.res"], **options)
    assert "\n" not in str(raised.value)
    with pytest.raises(Mismatch, match="another corpus_digest"):
        harvest(model, Corpus.of(["texts of an other kind " * 20]), ["2.res"], **options)
    with pytest.raises(Mismatch, match="another sites"):
        harvest(model, corpus, ["1.res"], **options)
    with pytest.raises(Mismatch, match="another piece:"):
        harvest(model, corpus, ["2.res"], **options | {"piece": 50})
    with monkeypatch.context() as patch:
        patch.setattr(harvests, "device_kind", lambda device: "cpu of the next year")
        with pytest.raises(Mismatch, match="another device:"):
            harvest(model, corpus, ["2.res"], **options)
    assert contents(tmp_path) == before
    assert len(harvest(model, corpus, ["2.res"], **options)["2.res"]) > 100


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"identity": 0}'])
def test_a_damaged_note_of_a_piece_is_one_line(text: str, model: LanguageModel, corpus: Corpus, tmp_path: Path) -> None:
    there = tmp_path / "store.partial" / "pieces"
    there.mkdir(parents=True)
    save_numpy({}, there / "00000.safetensors", {"piece": text})
    with pytest.raises(CorruptFile, match=r"pieces/00000\.safetensors is damaged .*remove .*pieces/00000") as raised:
        harvest(model, corpus, ["2.res"], to=tmp_path / "store", length=24, batch=2)
    assert "\n" not in str(raised.value)


def test_two_processes_write_the_same_store_as_one(model: LanguageModel, corpus: Corpus, tmp_path: Path) -> None:
    """Each does all of it, neither knowing of the other: there was a lock once, which hosts do not share."""
    options: dict[str, Any] = {"length": 24, "batch": 2, "piece": PIECE}
    whole = contents(harvest(model, corpus, SITES, to=tmp_path / "whole", **options).folder)
    made: list[Store] = []

    def progress(what: str, total: int | None, unit: str):  # type: ignore[no-untyped-def]
        def advance(done: int) -> None:
            if done and not made:
                made.append(harvest(model, corpus, SITES, to=tmp_path / "store", **options))

        return nullcontext(advance)

    again = harvest(model, corpus, SITES, to=tmp_path / "store", **options, progress=progress)
    assert contents(again.folder) == contents(made[0].folder) == whole
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["store", "whole"]


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
    options: dict[str, Any] = {"to": tmp_path / "store", "length": 24, "batch": 1, "tokens": 240, "piece": PIECE}
    with pytest.raises(PowerCut):
        harvest(model, broken_after(corpus, 4, PowerCut(), reading=1), ["2.res"], **options)
    done = sum(counted(model, passage, length=24) for passage in corpus.pieces(PIECE) if passage.number < 3)
    row = writers.bytes_per_row(model.width("2.res"), "float16")
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk._replace(free=(240 - done) * row - 1))
    with pytest.raises(StorageFull):
        harvest(model, corpus, ["2.res"], **options)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk._replace(free=(240 - done) * row))
    assert harvest(model, corpus, ["2.res"], **options).manifest.read >= 240


def test_no_more_than_a_shard_of_all_sites_is_held_in_memory(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus.of([f"{text} {number}" for number in range(8) for text in TEXTS])
    monkeypatch.setattr(writers, "_SHARD", 25_000)
    most, real = [0], Shards.add

    def watched(shards: Shards, *found: Activations) -> None:
        real(shards, *found)
        pending = [rows for held in shards._pending.values() for rows in held]
        most[0] = max(most[0], sum(tensor.nbytes for rows in pending for tensor in rows.values()))

    monkeypatch.setattr(Shards, "add", watched)
    store = harvest(model, corpus, SITES, to=tmp_path / "store", length=24, batch=2)
    assert 10_000 < most[0] < 25_000
    assert sum(map(len, contents(store.folder).values())) > 8 * 25_000
