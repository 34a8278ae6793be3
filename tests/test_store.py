"""Harvested activations: that they are the model's own, in order, and that what is not whole is not there."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gemscope.activations import store as stores
from gemscope.activations.capture import Activations
from gemscope.activations.harvest import harvest
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.activations.store import FORMAT, Manifest, Store, Writer
from gemscope.errors import CorruptFile, EmptyText, InputError, NotFinite, NotFound, SiteNotFound, StorageFull
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
        patch.setattr(stores, "_SHARD", 60)  # several shards, none of them of a round size
        return harvest(model, corpus, SITES, to=tmp_path_factory.mktemp("store") / "deep" / "store", length=24, batch=2)


def captured(model: LanguageModel, corpus: Corpus, site: str) -> list[Activations]:
    """Each packed row by itself."""
    return [model.capture(rows, [site])[site] for rows in model.rows(corpus, length=24, batch=2)]


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
    offsets = rows._gather("offset", slice(None))
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


def test_sinks_are_left_out_site_by_site(corpus: Corpus, tmp_path: Path) -> None:
    """One token is made enormous at one site: its rows are gone there and there alone."""
    model = tiny_model("llama", seed=1)
    token = model.tokenizer("the")["input_ids"][-1]
    model.hf.model.embed_tokens.weight[token] *= 1000
    store = harvest(model, corpus, ["embed", "0.att"], to=tmp_path / "store", length=24, batch=2)
    assert token not in store["embed"].tokens(slice(None)).tolist()
    assert token in store["0.att"].tokens(slice(None)).tolist()  # normalised before attention
    assert len(store["embed"]) < len(store["0.att"])


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
        from contextlib import nullcontext

        assert "2.res" in what
        assert (total, unit) == (96, "tokens")
        return nullcontext(told.append)

    store = harvest(model, corpus, ["2.res"], to=tmp_path / "store", tokens=96, length=24, batch=32, progress=progress)
    assert store.manifest.read == sum(told) == 96
    with pytest.raises(InputError, match="less than one row"):
        harvest(model, corpus, ["2.res"], to=tmp_path / "other", tokens=20, length=24)


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


def broken_after(corpus: Corpus, documents: int, error: BaseException) -> Corpus:
    class Breaks:
        name, digest = corpus.name, corpus.digest

        def __iter__(self) -> Iterator[object]:
            for number, document in enumerate(corpus):
                if number == documents:
                    raise error
                yield document

    return Corpus(Breaks())  # type: ignore[arg-type]


def test_an_interrupted_harvest_leaves_no_store(model: LanguageModel, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(PowerCut):
        harvest(model, broken_after(corpus, 3, PowerCut()), SITES, to=tmp_path / "store", length=24, batch=2)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NotFound, match="no harvest"):
        Store(tmp_path / "store")


def test_remains_of_a_killed_harvest_are_in_nobodys_way(model: LanguageModel, corpus: Corpus, tmp_path: Path) -> None:
    writer = Writer(tmp_path / "store")
    writer.__enter__()  # and the power goes
    (tmp_path / "store.partial" / "2.res").mkdir()
    (tmp_path / "store.partial" / "2.res" / "00000.safetensors").write_bytes(b"half")
    with pytest.raises(NotFound):
        Store(tmp_path / "store")
    store = harvest(model, corpus, ["2.res"], to=tmp_path / "store", length=24, batch=2)
    assert len(store["2.res"]) > 100
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


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
    with pytest.raises(NotFinite, match="embed are NaN, infinite or beyond float16") as raised:
        harvest(model, corpus, ["embed"], to=tmp_path / "store", length=24, batch=2)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", [0, 1, 5])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    call: int, model: LanguageModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = stores.save_file, iter(range(99))

    def fills(tensors: dict[str, Tensor], path: Path) -> None:
        if next(calls) == call:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(stores, "_SHARD", 60)
    monkeypatch.setattr(stores, "save_file", fills)
    with pytest.raises(StorageFull, match="no room left") as raised:
        harvest(model, corpus, SITES, to=tmp_path / "store", length=24, batch=2)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_too_full_for_the_manifest_leaves_nothing(
    model: LanguageModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fills(self: Path, *args: object, **kwargs: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fills)
    with pytest.raises(StorageFull):
        harvest(model, corpus, ["2.res"], to=tmp_path / "store", length=24, batch=2)
    assert list(tmp_path.iterdir()) == []


def test_other_failures_of_the_disk_keep_their_name(
    model: LanguageModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(tensors: dict[str, Tensor], path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(stores, "save_file", fails)
    with pytest.raises(PermissionError):
        harvest(model, corpus, ["2.res"], to=tmp_path / "store", length=24, batch=2)


def test_a_corpus_of_which_nothing_counts_is_refused(model: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises((InputError, EmptyText), match="nothing was harvested"):
        harvest(model, Corpus.of(["a"]), ["2.res"], to=tmp_path / "store", length=24)
    assert list(tmp_path.iterdir()) == []


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


def test_a_missing_shard_is_noticed(copy: Path) -> None:
    (copy / "2.res" / "00002.safetensors").unlink()
    with pytest.raises(CorruptFile, match="its manifest says"):
        Store(copy)["2.res"]
    shutil.rmtree(copy / "1.att")
    with pytest.raises(CorruptFile, match="holds 0 rows"):
        Store(copy)["1.att"]


def test_a_shard_of_something_else_is_refused(copy: Path) -> None:
    stores.save_file({"weights": torch.ones(3)}, copy / "2.res" / "00000.safetensors")
    with pytest.raises(CorruptFile, match=r"00000\.safetensors is damaged"):
        Store(copy)["2.res"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not a harvest's manifest"),
        ("[]", "not a harvest's manifest"),
        ("{}", "not a harvest's manifest"),
        ('{"format": 1}', "not a harvest's manifest"),
        ('{"format": 2, "news": 0}', "is of format 2, this version reads 1"),
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
