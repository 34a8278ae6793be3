"""Harvested activations: that they are the model's own, in order."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemscope.activations.harvest import harvest
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.activations.store import DTYPES, Store
from gemscope.errors import (
    InputError,
    NotFound,
)
from gemscope.testing import tiny_model
from gemscope.text.corpus import Corpus
from harvested import SITES, TEXTS, captured

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
