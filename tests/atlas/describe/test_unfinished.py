"""Stopping, however it happens, and going on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
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

from atlases import content
from gemscope.activations.model import LanguageModel
from gemscope.atlas.describe import compose as compose_
from gemscope.atlas.describe import unfinished as unfinished_
from gemscope.atlas.describe.gather import DescribeConfig
from gemscope.atlas.describe.run import describe
from gemscope.atlas.reader import Atlas
from gemscope.checked import checksum_of, read_tensors
from gemscope.errors import AccessError, CorruptFile, InputError, StorageFull
from gemscope.features.sae import SAE
from gemscope.testing import tiny_model
from gemscope.text.corpus import Corpus
from texts import CONFIG, varied


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
    assert content(to) == content(whole.folder)
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
    command = [sys.executable, "-c", _CHILD, str(to), str(Path(__file__).parents[2])]
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
    assert content(to) == content(whole.folder)


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
    other = (
        "another number format, float32 where this is bfloat16 .load the model with --dtype float32, dtype='float32'"
    )
    with pytest.raises(InputError, match=other):
        describe(tiny_model("gemma2", dtype=torch.bfloat16), sae, corpora[0], to=tmp_path / "a", config=CONFIG)
    describe(model, sae, corpora[0], to=tmp_path / "a", config=CONFIG)


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
    assert content(made.folder) == content(atlas.folder)
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
    made = content(tmp_path / "a")
    monkeypatch.setattr(LanguageModel, "capture", None)  # no text is read again
    if steps == 0:
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
    assert content(describe(model, sae, corpora[0], to=to, config=CONFIG).folder) == content(atlas.folder)


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
    "norms are not of its tokens": ({"0.norms.counts": np.full(16384, 2**60)}, {}),
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
