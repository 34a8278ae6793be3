"""Stopping, however it happens, and going on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file

from atlases import content
from gemscope.activations import work as work_
from gemscope.activations.model import LanguageModel
from gemscope.atlas.describe import compose as compose_
from gemscope.atlas.describe import run as run_
from gemscope.atlas.describe.gather import DescribeConfig
from gemscope.atlas.describe.run import describe
from gemscope.atlas.reader import Atlas
from gemscope.atlas.verify import verify
from gemscope.checked import checksum_of, read_tensors
from gemscope.errors import Awaited, CorruptFile, InputError, Mismatch, StorageFull
from gemscope.features.sae import SAE
from gemscope.testing import planted_sae, tiny_model
from gemscope.text.corpus import Corpus
from gemscope.world import World
from texts import CONFIG


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


PIECE = 200
"""Bytes of text: some fifteen pieces of a corpus."""


def test_a_stopped_pass_goes_on_and_ends_as_if_never_stopped(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path
) -> None:
    whole = describe(model, sae, corpora[:2], to=tmp_path / "whole", config=CONFIG, piece=PIECE)
    to, stops, done = tmp_path / "stopped", 0, 0
    for batches in (2, 5, 9, 13, 40, 10**6):
        if to.exists():
            break
        try:
            describe(model, sae, corpora[:2], to=to, config=CONFIG, piece=PIECE, progress=_stopping_after(batches))
        except _Stop:
            stops += 1
            assert not to.exists()
            before, done = done, len(list((tmp_path / "stopped.partial" / "pieces").glob("*")))
            assert done >= before
    assert stops >= 3
    assert content(to) == content(whole.folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped", "whole"]


def test_pieces_of_one_text_give_the_figures_of_the_text_in_one(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], atlas: Atlas, tmp_path: Path
) -> None:
    """But for the few tokens that open a row in the one and none in the other."""
    cut = describe(model, sae, corpora[0], to=tmp_path / "cut", config=CONFIG, piece=PIECE)
    assert verify(cut.folder) == []
    assert cut.manifest.documents == atlas.manifest.documents
    assert cut.manifest.tokens == pytest.approx(atlas.manifest.tokens, rel=0.02)
    passages = list(corpora[0].pieces(PIECE))
    rows = [len(list(model.rows(one.documents, length=CONFIG.length, batch=1))) for one in passages]
    assert cut.manifest.rows == sum(rows)
    assert len(rows) > 4
    counts = [[page.count for page in one] for one in (cut, atlas)]
    assert np.corrcoef(counts)[0, 1] > 0.99


def test_the_same_pieces_of_other_corpora_give_the_same(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path
) -> None:
    """Cut where the text of each ends, or where it would be cut within: what a piece holds decides."""
    passages = list(corpora[0].pieces(PIECE))
    several = [Corpus.of([one.text for one in passage.documents]) for passage in passages]
    one = describe(model, sae, corpora[0], to=tmp_path / "one", config=CONFIG, piece=PIECE)
    other = describe(model, sae, several, to=tmp_path / "other", config=CONFIG)
    for name in ("corpus.npy", "sums.safetensors"):
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes()


def test_a_limit_of_tokens_is_the_same_for_any_number_of_workers(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path
) -> None:
    """Whoever reads a piece in the middle has to know how many tokens are in those that others read."""
    options: dict[str, Any] = {"config": CONFIG, "piece": PIECE, "tokens": 400}
    alone = describe(model, sae, corpora[:2], to=tmp_path / "alone", **options)
    assert 0 <= alone.manifest.rows * CONFIG.length - 400 < 400
    for rank in (2, 1):
        with pytest.raises(Awaited, match=r"pieces are done; others do the rest"):
            describe(model, sae, corpora[:2], to=tmp_path / "three", world=World(rank, 3), **options)
    three = describe(model, sae, corpora[:2], to=tmp_path / "three", world=World(0, 3), **options)
    assert content(three.folder) == content(alone.folder)
    late = describe(model, sae, corpora[:2], to=tmp_path / "three", world=World(1, 3), **options)
    assert late.folder == three.folder
    with pytest.raises(InputError, match="exists: an atlas is never written over"):
        describe(model, sae, corpora[:1], to=tmp_path / "three", world=World(1, 3), config=DescribeConfig())


def test_pieces_of_another_pass_are_not_put_together_and_what_differs_is_named(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when what two clusters made is copied into one folder."""

    def half(rank: int, to: str, model: LanguageModel = model, sae: SAE = sae, **given: Any) -> None:
        options: dict[str, Any] = {"config": CONFIG, "piece": PIECE, "world": World(rank, 2)}
        describe(model, sae, given.pop("corpus", corpora[0]), to=tmp_path / to, **options | given)

    with pytest.raises(Awaited):
        half(0, "mine")
    others: dict[str, dict[str, Any]] = {
        "corpus": {"corpus": corpora[1]},
        "sae": {"sae": planted_sae(site="1.res", seed=4).sae},
        "model": {"model": tiny_model("llama")},
        "options": {"config": replace(CONFIG, top=6)},
        "tokens": {"tokens": 10**6},
        "device": {},
        "versions": {},
    }
    for number, (name, given) in enumerate(others.items()):
        with monkeypatch.context() as patch:
            if name == "device":
                patch.setattr(run_, "device_kind", lambda device: "another")
            if name == "versions":
                patch.setattr(run_, "versions", lambda: {"torch": "0.4"})
            with pytest.raises(Awaited):
                half(1, f"theirs-{number}", **given)
        mixed = tmp_path / f"mixed-{number}.partial"
        shutil.copytree(tmp_path / "mine.partial", mixed)
        shutil.copytree(tmp_path / f"theirs-{number}.partial", mixed, dirs_exist_ok=True)
        with pytest.raises(Mismatch, match=rf"00001.safetensors is a piece of an atlas .* made with another {name}:"):
            half(0, f"mixed-{number}")
        assert not (tmp_path / f"mixed-{number}").exists()


def test_going_on_with_other_settings_is_refused(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path
) -> None:
    cut = {"piece": PIECE}
    with pytest.raises(_Stop):
        describe(model, sae, corpora[0], to=tmp_path / "a", config=CONFIG, **cut, progress=_stopping_after(5))
    with pytest.raises(Mismatch, match=r"another corpus: go on with the same, name another folder, or remove"):
        describe(model, sae, corpora[1], to=tmp_path / "a", config=CONFIG, **cut)
    with pytest.raises(Mismatch, match=r"another tokens, options:"):
        describe(model, sae, corpora[0], to=tmp_path / "a", tokens=48, config=DescribeConfig(), **cut)
    with pytest.raises(Mismatch, match=r"another piece:"):
        describe(model, sae, corpora[0], to=tmp_path / "a", config=CONFIG)
    other = (
        "another number format, float32 where this is bfloat16 .load the model with --dtype float32, dtype='float32'"
    )
    with pytest.raises(Mismatch, match=other):
        describe(tiny_model("gemma2", dtype=torch.bfloat16), sae, corpora[0], to=tmp_path / "a", config=CONFIG, **cut)
    describe(model, sae, corpora[0], to=tmp_path / "a", config=CONFIG, **cut)


def test_what_was_stopped_before_anything_was_saved_stands_in_nobody_s_way(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path
) -> None:
    with pytest.raises(_Stop):
        describe(model, sae, corpora[0], to=tmp_path / "a", config=CONFIG, progress=_stopping_after(2))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.partial" / "pieces").mkdir(parents=True)  # killed at the very beginning
    (tmp_path / "a.partial" / "pieces" / ".00000.safetensors.gemscope-elsewhere-1-0").write_text("half")
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


def test_two_passes_at_once_make_the_same_atlas_as_one(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], atlas: Atlas, tmp_path: Path
) -> None:
    """Neither knows of the other; what the slower one still reads is of no use."""
    made: list[Atlas] = []

    @contextmanager
    def progress(what: str, total: int | None, unit: str) -> Iterator[object]:
        def advance(done: int) -> None:
            if done and not made:
                made.append(describe(model, sae, corpora[0], to=tmp_path / "a", config=CONFIG))

        yield advance

    again = describe(model, sae, corpora[0], to=tmp_path / "a", config=CONFIG, progress=progress)
    assert content(again.folder) == content(made[0].folder) == content(atlas.folder)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("left", [True, False])
def test_killed_while_cleaning_up_the_atlas_is_whole_and_the_rest_goes(
    left: bool, model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> Atlas:
        return describe(model, sae, corpora[0], to=tmp_path / "a", config=CONFIG)

    def killed(work: work_.Work) -> None:
        if not left:
            (work.folder.path / "pieces" / "00000.safetensors").unlink()
        raise _Stop

    with monkeypatch.context() as patch:
        patch.setattr(work_.Work, "discard", killed)
        patch.setattr(work_.Work, "end", lambda self: None)
        with pytest.raises(_Stop):
            make()
    made = content(tmp_path / "a")
    monkeypatch.setattr(LanguageModel, "capture", None)  # no text is read again
    if left:
        assert content(make().folder) == made
    else:
        with pytest.raises(InputError, match="exists: an atlas is never written over"):
            make()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert content(tmp_path / "a") == made


def test_a_full_disk_is_one_line_and_what_was_saved_stays(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    to = tmp_path / "a"
    with monkeypatch.context() as patch:
        patch.setattr(work_, "save_file", full)
        with pytest.raises(StorageFull, match=r"no room left on the disk for .*/a, nothing half-written was kept"):
            describe(model, sae, corpora[0], to=to, config=CONFIG)
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr(compose_, "save_file", full)
        with pytest.raises(StorageFull, match=r"no room left .* nothing of the atlas is kept"):
            describe(model, sae, corpora[0], to=to, config=CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["a.partial"]
    monkeypatch.setattr(LanguageModel, "capture", None)  # all was read
    assert content(describe(model, sae, corpora[0], to=to, config=CONFIG).folder) == content(atlas.folder)


def _begun(model: LanguageModel, sae: SAE, corpus: Corpus, to: Path) -> Path:
    """A pass of which the first piece is done: its file."""
    with pytest.raises(_Stop):
        describe(model, sae, corpus, to=to, config=CONFIG, piece=PIECE, progress=_stopping_after(5))
    return to.with_name(f"{to.name}.partial") / "pieces" / "00000.safetensors"


def test_a_damaged_piece_is_one_clear_line_and_done_again_once_it_is_gone(
    model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path
) -> None:
    piece = _begun(model, sae, corpora[0], tmp_path / "a")
    piece.write_bytes(piece.read_bytes()[:-100])
    with pytest.raises(CorruptFile, match=r"00000.safetensors is damaged.*: remove .*00000.safetensors, and start"):
        describe(model, sae, corpora[0], to=tmp_path / "a", config=CONFIG, piece=PIECE)
    piece.unlink()
    again = describe(model, sae, corpora[0], to=tmp_path / "a", config=CONFIG, piece=PIECE)
    whole = describe(model, sae, corpora[0], to=tmp_path / "whole", config=CONFIG, piece=PIECE)
    assert content(again.folder) == content(whole.folder)


def _stored(change: dict[str, np.ndarray], said: dict[str, Any], piece: Path) -> None:
    """A piece in which that stands, as whole by its checksum as any other."""
    arrays, beside = read_tensors(piece, framework="np")
    arrays |= change
    document = json.loads(beside["piece"])
    del document["checksum"]
    if "starts" in said:
        said = {"starts": said["starts"] * len(document["facts"]["starts"])}
    document["facts"] |= said
    document["checksum"] = checksum_of(arrays, document)
    save_file(arrays, piece, {"piece": json.dumps(document)})


FORGED: dict[str, tuple[dict[str, np.ndarray], dict[str, Any]]] = {
    "tally.max is float64": ({"0.tally.max": np.zeros(64)}, {}),
    "examples.top.rank is int64 of shape": ({"0.examples.top.rank": np.zeros((3, 4), np.int64)}, {}),
    "counts and maxima are no tally's": ({"0.tally.tokens": np.array([-1])}, {}),
    "sums are no tally's": ({"0.tally.sums": np.full((2, 64), 2**40)}, {}),
    "norms are not of its tokens": ({"0.norms.counts": np.full(16384, 2**60)}, {}),
    "examples are not where they belong": ({"0.examples.exponents": np.full(64, 2**40)}, {}),
    "places are not as they are kept": ({"0.examples.top.group": np.zeros(3, np.int64)}, {}),
    "sample of tokens is no such sample": ({"0.sample.position": np.zeros(0, np.int64)}, {}),
    'field "source" is -1': ({}, {"source": -1}),
    'field "counts" is an empty object': ({}, {"counts": {}}),
    "does not say how much it has": ({}, {"source": 10**9}),
    "its rows are none of this text": ({"ids": np.zeros((2, 5), np.int32)}, {}),
    "documents do not begin where its text is": ({}, {"starts": [[0, "a", ""]]}),
}
"""What is said of a piece in which those arrays and these facts stand."""


@pytest.mark.parametrize("told", FORGED)
def test_a_piece_that_passes_its_checksum_and_cannot_be_is_one_clear_line(
    told: str, model: LanguageModel, sae: SAE, corpora: list[Corpus], tmp_path: Path
) -> None:
    """Some went on to ask for more memory than there is, and some became atlases that `verify` called damaged."""
    piece = _begun(model, sae, corpora[0], tmp_path / "a")
    _stored(*FORGED[told], piece)
    before = piece.read_bytes()
    with pytest.raises(CorruptFile, match=f"00000.safetensors.*{told}") as raised:
        describe(model, sae, corpora[0], to=tmp_path / "a", config=CONFIG, piece=PIECE)
    assert "\n" not in str(raised.value)
    assert piece.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.partial"]
