"""Stores that were damaged, or written by an earlier version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from gemscope.activations import writer as writers
from gemscope.activations.capture import Activations
from gemscope.activations.harvest import harvest
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.activations.store import FORMAT, Manifest, Store
from gemscope.activations.writer import Writer
from gemscope.errors import (
    CorruptFile,
)
from gemscope.text.corpus import Corpus
from gemscope.text.tokens import Tokens
from harvested import SITES, as_format_1


@pytest.fixture
def copy(store: Store, tmp_path: Path) -> Path:
    shutil.copytree(store.folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_truncated_shard_is_named(copy: Path) -> None:
    shard = copy / "2.res" / "00000-01.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CorruptFile, match=r"00000-01\.safetensors is damaged") as raised:
        Store(copy)["2.res"]
    assert "\n" not in str(raised.value)
    assert len(Store(copy)["0.mlp"]) > 100  # the other sites are as they were


def test_a_missing_shard_is_named(copy: Path) -> None:
    """Once its manifest knew only how many rows there should be."""
    (copy / "2.res" / "00000-02.safetensors").unlink()
    with pytest.raises(CorruptFile, match=r"2\.res/00000-02\.safetensors is damaged: it is missing"):
        Store(copy)["2.res"]
    shutil.rmtree(copy / "1.att")
    with pytest.raises(CorruptFile, match=r"1\.att/00000-00\.safetensors is damaged: it is missing"):
        Store(copy)["1.att"]


def test_a_missing_shard_of_format_1_is_noticed(copy: Path) -> None:
    as_format_1(copy)
    (copy / "2.res" / "00000-02.safetensors").unlink()
    with pytest.raises(CorruptFile, match="its manifest says"):
        Store(copy)["2.res"]
    shutil.rmtree(copy / "1.att")
    with pytest.raises(CorruptFile, match=r"has no shard of 1\.att"):
        Store(copy)["1.att"]


def test_a_shard_of_something_else_is_refused(copy: Path) -> None:
    writers.save_file({"weights": torch.ones(3)}, copy / "2.res" / "00000-00.safetensors")
    with pytest.raises(CorruptFile, match=r"00000-00\.safetensors is damaged"):
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
        ('{"format": 5, "news": 0}', "is of format 5, this version reads 1 and 2 and 3 and 4"),
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
    flipped(copy / "2.res" / "00000-01.safetensors")
    assert len(store["2.res"]) == store.manifest.sites["2.res"]  # nothing shows
    with pytest.raises(
        CorruptFile, match=r"1 of \d+ shards in .* are damaged: 2\.res/00000-01\.safetensors; "
    ) as raised:
        store.verify()
    assert "\n" not in str(raised.value)
    (copy / "0.mlp" / "00000-00.safetensors").unlink()
    with pytest.raises(CorruptFile, match=r"damaged: 0\.mlp/00000-00\.safetensors, 2\.res/00000-01\.safetensors; "):
        store.verify()


@pytest.mark.parametrize("damage", [flipped, Path.unlink, lambda path: path.write_bytes(b"half")])
def test_a_damaged_shard_is_skipped_only_on_request(damage, store: Store, copy: Path) -> None:  # type: ignore[no-untyped-def]
    damage(copy / "2.res" / "00000-01.safetensors")
    sizes = [len(shard["values"]) for shard in store["2.res"]._shards]
    with pytest.warns(UserWarning, match=r"2\.res/00000-01\.safetensors is damaged: its rows are left out"):
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
    flipped(store.folder / "0.mlp" / "00000-01.safetensors")
    skipping = Store(store.folder, skip_corrupt=True)
    with pytest.warns(UserWarning, match=r"0\.mlp/00000-01"):
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
    (copy / "2.res" / "00000-01.safetensors").write_bytes(b"half")
    with pytest.raises(CorruptFile, match=r"2\.res/00000-01\.safetensors"):
        old.verify()


def test_shards_are_read_from_the_file_as_needed(tmp_path: Path) -> None:
    """Opening a store reads no activations: what is changed in the file afterwards shows."""
    ids = torch.arange(50)[None]
    counted = torch.ones_like(ids, dtype=torch.bool)
    with Writer(tmp_path / "store") as writer:
        with writer.piece() as shards:
            shards.add(
                Activations(torch.ones(1, 50, 4096), counted, Tokens(ids, counted, counted), Site(0, "res"), "none")
            )
        store = writer.finish(
            Manifest(
                format=FORMAT,
                model="none",
                revision=None,
                dtype="float32",
                sites={},
                read=0,
                length=50,
                corpus="none",
                corpus_digest="",
                versions={},
            ),
            pieces=1,
        )
    rows = store["0.res"]
    path = tmp_path / "store" / "0.res" / "00000-00.safetensors"
    data = path.read_bytes()
    one, two = torch.ones(1).half().numpy().tobytes(), (2 * torch.ones(1)).half().numpy().tobytes()
    with path.open("r+b") as file:
        file.write(data[:1024] + data[1024:].replace(one * 4096, two * 4096))
    assert (rows[slice(None)] == 2).any()
