"""The atlas: what goes in comes out, exactly where that is promised; what is damaged is named; many may read and write."""

from __future__ import annotations

import codecs
import contextlib
import errno
import html
import json
import multiprocessing
import os
import random
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlases import FIRST_WORD, HOSTILE, HOSTILE_LABEL, Plan, planted_atlas
from gemscope.atlas.dashboard import Dashboard
from gemscope.atlas.entry import Entry
from gemscope.atlas.files import corpus, hits, opening, packing, schema
from gemscope.atlas.files import manifest as manifests
from gemscope.atlas.files.manifest import Manifest, Part
from gemscope.atlas.files.page import pack_page, unpack_page
from gemscope.atlas.files.vocabulary import Vocabulary, packed
from gemscope.atlas.reader import Atlas
from gemscope.atlas.verify import verify
from gemscope.atlas.writer import Writer
from gemscope.errors import AccessError, CorruptFile, InputError, Mismatch, NotFinite, NotFound, StorageFull

PLAN = Plan()
NUMBERS = {one.name for one in fields(Entry)}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Atlas]:
    """For reading alone."""
    with planted_atlas(tmp_path_factory.mktemp("planted") / "atlas") as atlas:
        yield atlas


@pytest.fixture
def copy(planted: Atlas, tmp_path: Path) -> Path:
    """A folder to damage, or to label."""
    return Path(shutil.copytree(planted.folder, tmp_path / "copy"))


def manifest_of(d_sae: int, rows: int, length: int, **changes: object) -> Manifest:
    part = Part(name="p", digest="0", rows=rows, documents=0, counted=rows * length, masked={})
    return replace(PLAN.manifest(), d_sae=d_sae, length=length, bos=False, parts=(part,), **changes)


def written(folder: Path, ids: np.ndarray, entries: list[Entry], texts: dict[int, bytes], **changes: object) -> Atlas:
    with Writer(folder) as writer:
        writer.add_rows(ids)
        writer.add_tokens(texts)
        for entry in entries:
            writer.add(entry)
        d_sae = 1 + max((entry.index for entry in entries), default=0)
        return writer.finish(manifest_of(d_sae, len(ids), ids.shape[1], **changes))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# --- what goes in comes out -------------------------------------------------------------------------------------------


def decoded(ids: list[int], texts: dict[int, bytes]) -> list[str]:
    """A row as text, token by token, the obvious way."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(texts.get(id_, "\ufffd".encode())) for id_ in ids]


def expected(entry: Entry, ids: np.ndarray, texts: dict[int, bytes], made: Manifest) -> dict[str, object]:
    """A dashboard's examples, in plain Python."""
    examples = []
    for number, position in enumerate(entry.positions.tolist()):
        if entry.intervals[number] >= 0 and position in entry.positions[entry.intervals < 0]:
            continue  # shown among the strongest
        row, column = divmod(position, made.length)
        whole = ids[row].tolist()
        start, stop = column, column + 1
        while start > 0 and start > column - made.before and whole[start - 1] >= 0:
            start -= 1
        while stop < made.length and stop <= column + made.after and whole[stop] >= 0:
            stop += 1
        cells = dict(zip(entry.columns[entry.owners == number], entry.values[entry.owners == number], strict=True))
        peak = cells[column]
        values = []
        for place in range(start, stop):
            if place not in cells:
                values.append(0.0)
            elif place == column:
                values.append(float(peak))
            else:
                values.append(float(np.float32(np.float16(cells[place] / peak)) * peak))
        interval = int(entry.intervals[number])
        examples.append(
            {
                "ids": whole[start:stop],
                "tokens": decoded(whole, texts)[start:stop],
                "values": values,
                "peak": column - start,
                "interval": None if interval < 0 else interval,
            }
        )
    return {"examples": examples}


def shown(dashboard: Dashboard) -> dict[str, object]:
    kept = ("ids", "tokens", "values", "peak", "interval")
    return {"examples": [{name: getattr(one, name) for name in kept} for one in dashboard.examples]}


POSITIVE = st.floats(2**-6, 2**9, width=32)
SOME = st.floats(-(2**20), 2**20, width=32).map(lambda value: 0.0 if abs(value) < 2**-10 else value)


@st.composite
def an_entry(draw: st.DrawFn, index: int, ids: np.ndarray, vocabulary: int) -> Entry:
    flat = ids.reshape(-1)
    there = np.flatnonzero(flat >= 0).tolist()
    places = draw(st.lists(st.sampled_from(there), unique=True, max_size=5)) if there else []
    owners, columns, values = [], [], []
    for number, place in enumerate(places):
        more = draw(st.sets(st.integers(0, ids.shape[1] - 1), max_size=5)) | {place % ids.shape[1]}
        for column in sorted(more):
            owners.append(number)
            columns.append(column)
            values.append(draw(POSITIVE))
    edges = sorted(draw(st.sets(POSITIVE, min_size=2, max_size=5))) if places else []
    tokens = st.integers(0, vocabulary - 1)

    def ranked(of: st.SearchStrategy[int]) -> tuple[np.ndarray, np.ndarray]:
        pairs = draw(st.lists(st.tuples(of, SOME), max_size=4))
        return np.array([one for one, _ in pairs], np.int64), np.array([value for _, value in pairs], np.float32)

    promoted, promoted_values = ranked(tokens)
    suppressed, suppressed_values = ranked(tokens)
    neighbours, cosines = ranked(st.integers(0, 2**31))
    partners, jaccards = ranked(st.integers(0, 2**31))
    drawn = [draw(st.integers(0, 2**33)) for _ in edges[1:]]
    bars = draw(st.lists(st.integers(0, 2**40), max_size=6))
    bars = [*bars, sum(drawn)] if bars else []
    return Entry(
        index=index,
        count=sum(bars) or sum(drawn) + draw(st.integers(0, 2**40)) * (not bars),
        max=max([draw(POSITIVE), *values]),
        mean=draw(st.floats(0, 1e6)),
        encoder_cosine=draw(st.none() | st.floats(-1, 1)),
        decoder_norm=draw(st.none() | st.floats(0, 1e3)),
        step=draw(st.floats(0, 10)),
        histogram=np.array(bars, np.int64),
        edges=np.array(edges, np.float32),
        interval_counts=np.array(drawn, np.int64),
        positions=np.array(places, np.int64),
        intervals=np.array([draw(st.integers(-1, len(edges) - 2)) for _ in places], np.int64),
        owners=np.array(owners, np.int64),
        columns=np.array(columns, np.int64),
        values=np.array(values, np.float32),
        promoted=promoted,
        promoted_values=promoted_values,
        suppressed=suppressed,
        suppressed_values=suppressed_values,
        logit_low=draw(st.floats(-10, 10)),
        logit_step=draw(st.floats(0, 1)),
        logit_histogram=np.array(draw(st.lists(st.integers(0, 300), max_size=4)), np.int64),
        neighbours=neighbours,
        cosines=cosines,
        partners=partners,
        jaccards=jaccards,
        shares=jaccards[::-1],
    )


PIECES = st.sampled_from(
    [b"a", b" b", b"\xe2", b"\x82\xac", b"\x82", b"\xac", b"\xf0\x9f", b"\x98\x80", b"\xff", b"", b"\xc3\xa9"]
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_is_written_is_what_the_pages_show(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    vocabulary = data.draw(st.integers(2, 12))
    texts = {id_: data.draw(PIECES) for id_ in range(vocabulary)}
    rows, length = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    cells = st.lists(st.integers(-1, vocabulary - 1), min_size=length, max_size=length)
    ids = np.array([data.draw(cells) for _ in range(rows)], np.int64)
    count = data.draw(st.integers(1, 3))
    entries = [data.draw(an_entry(2 * index, ids, vocabulary)) for index in range(count)]
    spans = {"before": data.draw(st.integers(0, 12)), "after": data.draw(st.integers(0, 12))}
    with written(tmp_path_factory.mktemp("atlas") / "a", ids, entries, texts, **spans) as atlas:
        assert len(atlas) == 2 * count - 1
        for entry in entries:
            page = atlas[entry.index]
            assert shown(page) == expected(entry, ids, texts, atlas.manifest)
            for name in ("count", "max", "mean", "encoder_cosine", "decoder_norm"):
                assert getattr(page, name) == getattr(entry, name)
            assert [one.id for one in page.promoted] == entry.promoted.tolist()
            assert [one.feature for one in page.neighbours] == entry.neighbours.tolist()
            for found, given_ in (
                ([one.value for one in page.promoted], entry.promoted_values),
                ([one.value for one in page.suppressed], entry.suppressed_values),
                ([one.cosine for one in page.neighbours], entry.cosines),
                ([one.jaccard for one in page.coactive], entry.jaccards),
                ([one.share for one in page.coactive], entry.shares),
            ):
                # Within 11 bits, or of what is far below the largest within a share of that.
                np.testing.assert_allclose(found, given_, rtol=2**-11, atol=2**-24 * np.abs(given_).max(initial=0))
            counts = page.histogram.counts if page.histogram else []
            assert counts == entry.histogram.tolist()
            assert page.histogram is None or page.histogram.step == entry.step
            logits = page.logit_histogram
            assert (logits.counts if logits else []) == entry.logit_histogram.tolist()
            assert logits is None or (logits.low, logits.step) == (entry.logit_low, entry.logit_step)
            assert [one.low for one in page.intervals] == entry.edges[:-1].tolist()
            assert [one.count for one in page.intervals] == entry.interval_counts.tolist()
        for odd in range(1, len(atlas), 2):
            assert atlas[odd].dead
            assert not atlas[odd].examples


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_an_entry_taken_out_and_put_in_again_gives_the_same_bytes(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ids = np.arange(24).reshape(4, 6)
    texts = dict.fromkeys(range(24), b"x")
    folder = tmp_path_factory.mktemp("atlas")
    entry = data.draw(an_entry(0, ids, 24))
    with written(folder / "one", ids, [entry], texts) as one:
        taken = one.entry(0)
        for name in ("positions", "intervals", "owners", "columns", "histogram", "edges", "promoted", "partners"):
            np.testing.assert_array_equal(getattr(taken, name), getattr(entry, name))
        np.testing.assert_allclose(taken.values, entry.values, rtol=2**-10, atol=1)
        written(folder / "two", ids, [taken], texts).close()
    assert content(folder / "one") == content(folder / "two")


def test_the_examples_of_a_planted_feature_peak_on_its_token(planted: Atlas) -> None:
    seen = 0
    for entry in PLAN.entries():
        page = planted[entry.index]
        assert (page.count, page.max) == (entry.count, entry.max)
        assert page.tokens == planted.manifest.tokens
        assert shown(page) == expected(entry, PLAN.corpus(), PLAN.tokens(), planted.manifest)
        for example in page.examples:
            seen += 1
            assert example.ids[example.peak] == PLAN.token(entry.index)
            assert example.tokens[example.peak] == PLAN.word(PLAN.token(entry.index))
        assert [one.value for one in page.strongest] == sorted((one.value for one in page.strongest), reverse=True)
        for number, interval in enumerate(page.intervals):
            assert all(interval.low <= one.value < interval.high for one in page.within(number))
    assert seen > 200


def test_an_example_knows_its_document_and_its_place_in_it(planted: Atlas) -> None:
    ids, length = PLAN.corpus().reshape(-1), PLAN.length
    starts = [start for start, _, _ in PLAN.starts()]
    documents: list[list[int]] = [[] for _ in starts]
    for flat, id_ in enumerate(ids.tolist()):
        if flat % length and id_ >= 0:  # BOS and padding are no document's
            documents[sum(start <= flat for start in starts) - 1].append(id_)
    for feature in (0, 1, 2, 3):
        for example in planted[feature].examples:
            whole = documents[example.document]
            assert whole[example.position] == example.ids[example.peak]
            behind = [id_ for id_ in example.ids[example.peak :] if id_]
            if example.position + len(behind) <= len(whole):
                assert whole[example.position : example.position + len(behind)] == behind
    assert planted.document(4) == ("book 1 <b>", "CC0-1.0")
    assert list(planted.documents()) == PLAN.starts()
    with pytest.raises(NotFound, match="no document 9: the corpus has 9"):
        planted.document(9)


def test_without_documents_an_example_says_that_its_place_is_not_known(tmp_path: Path) -> None:
    entry = Entry(
        index=0,
        count=1,
        max=1.0,
        mean=1.0,
        positions=np.array([1]),
        intervals=np.array([-1]),
        owners=np.array([0]),
        columns=np.array([1]),
        values=np.array([1.0], np.float32),
    )
    with written(tmp_path / "a", np.array([[1, 2]]), [entry], {1: b"x", 2: b"y"}) as atlas:
        example = atlas[0].examples[0]
        assert (example.document, example.position, example.tokens) == (-1, -1, ["x", "y"])


def test_hostile_tokens_come_out_as_they_are_and_characters_are_put_together(planted: Atlas) -> None:
    example = planted[0].examples[0]
    assert example.value == 99
    tokens = example.tokens[example.peak - len(HOSTILE) : example.peak]
    assert tokens[:10] == [token.decode() for token in HOSTILE[:10]]
    assert tokens[10:] == ["", "€", "", "😀", "\ufffd"]
    assert len(tokens[9]) == 100_000
    ids = list(range(1, 1 + len(HOSTILE)))
    assert planted.text(ids) == tokens
    assert planted.text([11]) == [""]
    assert planted.text([10**9, FIRST_WORD]) == ["\ufffd", " the"]


def test_a_character_begun_in_front_of_a_window_is_completed_in_it(tmp_path: Path) -> None:
    entry = Entry(
        index=0,
        count=1,
        max=1.0,
        mean=1.0,
        positions=np.array([3]),
        intervals=np.array([-1]),
        owners=np.array([0]),
        columns=np.array([3]),
        values=np.array([1.0], np.float32),
    )
    texts = {0: b"\xf0", 1: b"\x9f", 2: b"\x98", 3: b"\x80"}
    with written(tmp_path / "a", np.array([[0, 1, 2, 3]]), [entry], texts, before=0, after=0) as atlas:
        assert atlas[0].examples[0].tokens == ["😀"]


def test_a_token_alone_that_is_no_text_shows_its_bytes(planted: Atlas) -> None:
    logits = [one for page in planted for one in (*page.promoted, *page.suppressed)]
    broken = [one.token for one in logits if one.id == 11]
    assert broken
    assert set(broken) == {"\\xe2"}


def test_features_left_out_are_dead_and_have_empty_pages(planted: Atlas) -> None:
    dead = [feature for feature in range(PLAN.features) if PLAN.dead(feature)]
    skipped = [feature for feature in dead if PLAN.skipped(feature)]
    assert skipped
    assert [page.index for page in planted if page.dead] == dead
    for feature in skipped:
        assert planted[feature].histogram is None
        assert planted[feature].max == 0


@pytest.mark.parametrize("index", [-1, 40, 10**30])
def test_a_feature_that_there_is_not_is_named(planted: Atlas, index: int) -> None:
    with pytest.raises(NotFound, match=f"no feature {index}: this SAE has features 0 to 39"):
        planted[index]


def test_numpy_integers_are_indices_too(planted: Atlas) -> None:
    assert planted[np.int64(3)] == planted[3]


def test_wide_ids_and_padding_survive_in_the_corpus(tmp_path: Path) -> None:
    ids = np.array([[5, -1, 65534], [7, 8, -1]])
    for name, last, dtype in (("short", 65534, "uint16"), ("wide", 65535, "int32"), ("widest", 2**31 - 1, "int32")):
        more = np.array([[last, 1, -1]])
        with Writer(tmp_path / name) as writer:
            writer.add_rows(ids)
            writer.add_rows(more)
            atlas = writer.finish(manifest_of(1, 3, 3))
        assert np.load(tmp_path / name / "corpus.npy").dtype == dtype
        assert [atlas.row(3 * row + 1) for row in range(3)] == [*ids.tolist(), *more.tolist()]
        assert atlas.ids(np.array([[0, 1], [5, 6]])).tolist() == [[5, -1], [-1, last]]
        for wrong in (-1, 9):
            with pytest.raises(NotFound, match=r"no position|positions 0 to 8"):
                atlas.row(wrong)
            with pytest.raises(NotFound, match="the corpus has positions 0 to 8"):
                atlas.ids(np.array([wrong]))
        atlas.close()


def test_an_atlas_of_no_text_at_all_opens(tmp_path: Path) -> None:
    with Writer(tmp_path / "a") as writer:
        with writer.finish(manifest_of(3, 0, 8)) as atlas:
            assert atlas[2].dead
            assert atlas[2].density == 0
            assert atlas.count() == 3
            assert verify(atlas.folder) == []


# --- packing ----------------------------------------------------------------------------------------------------------

ARRAYS = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1)).map(lambda values: np.array(values, np.int64)),
    st.lists(st.integers(0, 300)).map(lambda values: np.array(values, np.int64)),
    st.lists(st.floats(allow_nan=False, allow_infinity=False)).map(lambda values: np.array(values, np.float64)),
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32)).map(lambda v: np.array(v, np.float32)),
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=16)).map(lambda v: np.array(v, np.float16)),
)


@settings(deadline=None)
@given(st.lists(ARRAYS, max_size=6))
def test_packed_arrays_come_back_exactly(arrays: list[np.ndarray]) -> None:
    for found, array in zip(packing.unpack(packing.pack(arrays), len(arrays)), arrays, strict=True):
        np.testing.assert_array_equal(found, array)


@settings(deadline=None)
@given(st.data())
def test_no_flipped_bit_of_a_packed_record_goes_unnoticed(data: st.DataObject) -> None:
    whole = bytearray(packing.pack([np.arange(50), np.linspace(0, 1, 40)]))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorruptFile):
        packing.unpack(bytes(whole), 2)
    with pytest.raises(CorruptFile):
        packing.unpack(bytes(whole[:at]), 2)


def test_a_cell_a_million_times_its_peak_or_less_is_neither_infinite_nor_silent() -> None:
    entry = Entry(
        index=0,
        count=3,
        max=1e6,
        mean=1.0,
        positions=np.array([1, 5]),
        intervals=np.array([-1, -1]),
        owners=np.array([0, 0, 1, 1]),
        columns=np.array([0, 1, 1, 2]),
        values=np.array([1e-9, 1.0, 1.0, 1e6], np.float32),
    )
    found = unpack_page(pack_page(entry, 4))
    assert 0 < found.values[0] < 1e-7
    assert 6e4 < found.values[1] < 1e6


def test_the_vocabulary_comes_back_and_gaps_in_it_do_no_harm() -> None:
    texts = {3: b"a", 5000: b"\xff", 70_000: b"", 12: b"x" * 10}
    vocabulary = Vocabulary(packed(texts, [12, 99]))
    assert vocabulary.tokens == texts
    assert vocabulary.special == {12}
    assert [vocabulary.alone(id_) for id_ in (3, 4, 5000, -1, 10**9)] == ["a", "\ufffd", "\\xff", "\ufffd", "\ufffd"]


# --- lists and searches -----------------------------------------------------------------------------------------------


def test_lists_are_ordered_filtered_and_paged_as_plain_python_would(planted: Atlas) -> None:
    pages = list(planted)
    keys = {
        "index": lambda page: page.index,
        "density": lambda page: page.density,
        "max": lambda page: page.max,
        "mean": lambda page: page.mean,
    }
    for order, key in keys.items():
        for descending in (False, True):
            ranked = sorted(pages, key=lambda page: (-key(page) if descending else key(page), page.index))
            if order == "index" and descending:
                ranked = pages[::-1]
            found = planted.summaries(order=order, descending=descending, limit=1000)
            assert [one.feature for one in found] == [page.index for page in ranked]
            some = planted.summaries(order=order, descending=descending, offset=7, limit=5)
            assert some == found[7:12]
    for summary, page in zip(planted.summaries(), pages, strict=True):
        assert (summary.count, summary.density, summary.max, summary.mean, summary.label) == (
            page.count,
            page.density,
            page.max,
            page.mean,
            page.label,
        )
        first = page.examples[0] if page.examples else None
        assert summary.token == (first and first.tokens[first.peak])
    bound = sorted(page.density for page in pages)[25]
    filters: list[tuple[dict[str, object], object]] = [
        ({"dead": True}, lambda page: page.dead),
        ({"dead": False, "labelled": True}, lambda page: not page.dead and page.label is not None),
        ({"labelled": False}, lambda page: page.label is None),
        ({"min_density": bound}, lambda page: page.density >= bound),
        ({"max_density": bound, "min_max": 20.0}, lambda page: page.density <= bound and page.max >= 20),
        ({"max_max": 20.0, "text": "WORDS lik"}, lambda page: page.max <= 20 and "words" in (page.label or "")),
        ({"text": "nothing like this"}, lambda page: False),
    ]
    for chosen, keep in filters:
        wanted = [page.index for page in pages if keep(page)]
        assert [one.feature for one in planted.summaries(**chosen)] == wanted
        assert planted.count(**chosen) == len(wanted)
    assert planted.count() == 40


def test_by_label_the_features_without_one_come_last(planted: Atlas) -> None:
    labels = {page.index: page.label for page in planted}
    named = sorted((one for one in labels if labels[one]), key=lambda one: (labels[one].casefold(), one))
    rest = [one for one in labels if not labels[one]]
    assert [one.feature for one in planted.summaries(order="label")] == named + rest
    assert [one.feature for one in planted.summaries(order="label", descending=True)] == named[::-1] + rest


def test_an_order_that_there_is_not_is_refused(planted: Atlas) -> None:
    with pytest.raises(InputError, match="order='size': expected one of index, density, max, mean, label"):
        planted.summaries(order="size")
    with pytest.raises(InputError, match="offset=-1"):
        planted.summaries(offset=-1)


def test_the_scatter_has_every_living_feature(planted: Atlas) -> None:
    ids, densities, maxima = planted.scatter()
    living = [page for page in planted if not page.dead]
    assert ids.tolist() == [page.index for page in living]
    assert densities.tolist() == [page.density for page in living]
    assert maxima.tolist() == [page.max for page in living]


def test_labels_are_found_by_their_words(planted: Atlas) -> None:
    assert planted.search("words like", limit=1000) == planted.search("LIKE, words!", limit=1000)
    assert {one.feature for one in planted.search("words like", limit=100)} == {
        feature for feature in range(40) if PLAN.label(feature) and feature
    }
    assert [one.feature for one in planted.search("scri")] == [0]
    assert planted.search("cript") == []  # not the beginning of a word
    assert planted.search("words", offset=3, limit=4) == planted.search("words", limit=7)[3:]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        '"',
        "'",
        '"""',
        "a AND",
        "NOT",
        "NEAR(a b)",
        "text:x",
        "(",
        "*",
        "^zz",
        "-",
        "a\0b",
        "\ud800",
        "{}+,",
        "%",
    ],
)
def test_any_text_can_be_searched_for(planted: Atlas, text: str) -> None:
    assert planted.search(text) == []
    assert planted.summaries(text=text) in ([], planted.summaries())


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec=None), max_size=60))
def test_no_search_fails_whatever_is_typed(planted: Atlas, text: str) -> None:
    assert len(planted.search(text)) <= 50
    assert len(planted.tokens_like(text)) <= 20


def test_a_search_of_very_many_words_is_answered(planted: Atlas) -> None:
    assert planted.search("word " * 100_000) == []


def test_a_feature_with_several_fitting_explanations_is_found_once(copy: Path) -> None:
    with Atlas(copy) as atlas:
        for _ in range(3):
            atlas.explain(5, "zebra zebra")
        atlas.explain(5, "something else")
        atlas.explain(8, "a zebra among horses")
        found = atlas.search("zebra")
        assert [one.feature for one in found] == [5, 8]
        assert found[0].label == "something else"


def test_tokens_are_found_by_their_text(planted: Atlas) -> None:
    texts = {id_: PLAN.word(id_) for id_ in range(FIRST_WORD, PLAN.vocabulary)}
    found = planted.tokens_like(" sun", limit=100)
    assert found[0][1] == " sun"
    folded = [text for _, text, _ in found[1:] if text.strip().casefold() == "sun"]
    assert sorted(folded) == sorted(
        text for text in texts.values() if text.strip().casefold() == "sun" and text != " sun"
    )
    rest = [text for _, text, _ in found[1 + len(folded) :]]
    assert len(rest) > 3
    assert all(text.strip().casefold().startswith("sun") for text in rest)
    features = {}
    for page in planted:
        for token in {example.ids[example.peak] for example in page.examples}:
            features[token] = features.get(token, 0) + 1
    assert any(features.get(id_) for id_, _, _ in found)
    assert all(count == features.get(id_, 0) for id_, _, count in found)
    assert planted.tokens_like(" sun", limit=2) == found[:2]
    assert planted.tokens_like("") == []
    assert [text for _, text, _ in planted.tokens_like("\n")] == ["\n"]
    assert planted.tokens_like("<script>")[0][1] == HOSTILE[0].decode()


def test_a_token_leads_to_the_features_whose_examples_peak_on_it(planted: Atlas) -> None:
    for token in range(PLAN.vocabulary):
        wanted = []
        for page in planted:
            peaks = [one.value for one in page.examples if one.ids[one.peak] == token]
            if peaks:
                wanted.append((page.index, len(peaks), max(peaks) / page.max))
        wanted.sort(key=lambda one: (-one[1], -np.float16(one[2]), one[0]))
        found = planted.by_token(token)
        assert [(one.summary.feature, one.examples) for one in found] == [one[:2] for one in wanted]
        np.testing.assert_allclose([one.strength for one in found], [one[2] for one in wanted], rtol=2**-10)
        assert planted.by_token(token, limit=1) == found[:1]
    for unknown in (-1, 10**6, 10**40):
        assert planted.by_token(unknown) == []


def test_features_of_a_token_beyond_two_bytes_are_kept() -> None:
    some = hits.of([3, 70_000, 5], [2, 300, 300], [0.5, 0.25, 1.0])
    found = hits.unpack(hits.pack(some), 3, 200_000)
    assert found["feature"].tolist() == [5, 70_000, 3]
    assert found["examples"].tolist() == [255, 255, 2]
    with pytest.raises(CorruptFile):
        hits.unpack(hits.pack(some)[:-1], 3, 200_000)


# --- labels -----------------------------------------------------------------------------------------------------------


def test_the_newest_explanation_is_the_label_until_it_is_forgotten(copy: Path) -> None:
    with Atlas(copy) as atlas:
        assert atlas[0].label == HOSTILE_LABEL
        first = atlas.explain(0, "sun and moon", author="me")
        second = atlas.explain(0, "only the moon", method="guess")
        assert [one.text for one in atlas[0].explanations] == ["only the moon", "sun and moon", HOSTILE_LABEL]
        assert atlas[0].explanations[:2] == [second, first]
        assert atlas.labels([0, 1]) == {0: "only the moon"}
        assert atlas.labels(range(10**4)) == {page.index: page.label for page in atlas if page.label}
        assert [one.feature for one in atlas.search("moon")] == [0]
        atlas.forget(0, second.id)
        assert atlas[0].label == "sun and moon"
        atlas.forget(0, first.id)
        assert atlas[0].label == HOSTILE_LABEL
        assert atlas.search("moon") == []
        third = atlas.explain(0, "sun and moon")
        assert third.id > second.id  # a number once given is not given again
        for feature, wrong in ((0, second.id), (1, third.id), (0, -1), (0, 10**30)):
            with pytest.raises(NotFound, match=f"no explanation {wrong} of feature {feature}"):
                atlas.forget(feature, wrong)
    assert verify(copy) == []


def test_lists_follow_labels_that_another_opening_of_the_atlas_changes(copy: Path) -> None:
    with Atlas(copy) as reader, Atlas(copy) as writer:
        before = reader.count(labelled=True)
        made = writer.explain(1, "aaa")
        assert reader.count(labelled=True) == before + 1
        assert reader.summaries(order="label")[1].label == "aaa"
        assert reader[2].neighbours == writer[2].neighbours
        writer.forget(1, made.id)
        assert reader.count(labelled=True) == before


def test_relatives_carry_their_labels(copy: Path) -> None:
    with Atlas(copy) as atlas:
        relative = atlas[0].neighbours[0].feature
        atlas.explain(relative, "a relative")
        assert atlas[0].neighbours[0].label == "a relative"
        assert next(one.label for one in atlas[0].coactive if one.feature == relative) == "a relative"


@pytest.mark.parametrize("text", ["", "  \n", "half \ud800"])
def test_what_is_no_text_is_no_label(copy: Path, text: str) -> None:
    with Atlas(copy) as atlas:
        with pytest.raises(InputError):
            atlas.explain(0, text)
        with pytest.raises(NotFound):
            atlas.explain(40, "fine")


def test_labels_survive_closing_and_leave_no_files_behind(copy: Path) -> None:
    with Atlas(copy) as atlas:
        atlas.explain(7, "kept\0 whole \u202e")
    names = {path.name for path in copy.iterdir()}
    assert names == {"atlas.sqlite", "corpus.npy", "manifest.json"}
    with Atlas(copy) as atlas:
        assert atlas[7].label == "kept\0 whole \u202e"
    assert {path.name for path in copy.iterdir()} == names


def test_a_closed_atlas_says_so(copy: Path) -> None:
    atlas = Atlas(copy)
    atlas.close()
    atlas.close()
    for wrong in (lambda: atlas[0], lambda: atlas.explain(0, "x"), lambda: atlas.search("x")):
        with pytest.raises(InputError, match="was closed"):
            wrong()


@contextlib.contextmanager
def powerless(folder: Path) -> Iterator[None]:
    """As somebody who may read the folder and nothing more, root or not."""
    for path in (folder, *folder.iterdir()):
        path.chmod(0o555 if path.is_dir() else 0o444)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.fixture
def reachable(planted: Atlas) -> Iterator[Path]:
    """A copy in a place that everybody may enter, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield Path(shutil.copytree(planted.folder, folder / "atlas"))
    shutil.rmtree(folder)


@pytest.mark.parametrize("labelled", [False, True])
def test_an_atlas_in_a_folder_that_cannot_be_written_is_read_and_says_why_it_takes_no_labels(
    reachable: Path, labelled: bool
) -> None:
    if labelled:
        with Atlas(reachable) as atlas:
            atlas.explain(1, "before")
    names = sorted(reachable.iterdir())
    with powerless(reachable):
        with Atlas(reachable) as atlas:
            assert atlas[1].label == ("before" if labelled else None)
            assert len(atlas.search("words")) > 5
            with pytest.raises(AccessError, match=r"nothing can be written in .*: copy the atlas elsewhere"):
                atlas.explain(1, "x")
            with pytest.raises(AccessError):
                atlas.forget(0, 1)
        assert verify(reachable) == []
        assert sorted(reachable.iterdir()) == names


# --- many at once -----------------------------------------------------------------------------------------------------


def test_sixty_four_threads_read_while_one_writes_labels(copy: Path) -> None:
    failures: list[BaseException] = []
    done = threading.Event()
    started = threading.Barrier(65)

    def read(seed: int) -> None:
        chance = random.Random(seed)
        started.wait()
        try:
            while not done.is_set():
                page = atlas[chance.randrange(40)]
                assert page.label is None or page.explanations
                atlas.search("words like", limit=3)
                assert len(atlas.summaries(order="label", limit=5)) == 5
                atlas.by_token(FIRST_WORD + chance.randrange(60))
                atlas.tokens_like("sun")
        except BaseException as error:
            failures.append(error)

    with Atlas(copy) as atlas:
        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(64)]
        for thread in threads:
            thread.start()
        started.wait()
        made = [atlas.explain(number, f"label {number}") for number in range(20, 40)]
        for number, one in enumerate(made[:5], 20):
            atlas.forget(number, one.id)
        done.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert atlas[30].label == "label 30"
    assert verify(copy) == []


def _label(folder: Path, name: str, times: int) -> None:
    with Atlas(folder) as atlas:
        for number in range(times):
            atlas.explain(number, f"{name} {number}")


def test_several_processes_write_labels_and_none_is_lost(copy: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_label, args=(copy, f"writer{index}", 12)) for index in range(3)]
    with Atlas(copy) as atlas:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            assert len(atlas[3].examples) == len(atlas[3].examples)
        for process in processes:
            process.join()
            assert process.exitcode == 0
        for number in range(12):
            said = {one.text for one in atlas[number].explanations}
            assert {f"writer{index} {number}" for index in range(3)} <= said
    assert verify(copy) == []


def test_a_reader_holds_on_while_another_closes_the_atlas(copy: Path) -> None:
    atlas = Atlas(copy)
    with atlas._database.reading() as db:
        atlas.close()
        assert db.execute("SELECT count(*) FROM feature").fetchone() == (40,)
    with pytest.raises(sqlite3.ProgrammingError):
        db.execute("SELECT 1")


# --- writing ----------------------------------------------------------------------------------------------------------


def test_the_same_atlas_is_the_same_bytes_however_its_parts_came_in(tmp_path: Path) -> None:
    planted_atlas(tmp_path / "one").close()
    ids, tokens = PLAN.corpus(), PLAN.tokens()
    with Writer(tmp_path / "two") as writer:
        writer.add_tokens(dict(list(tokens.items())[60:]))
        for row in ids:
            writer.add_rows(row[None].astype(np.int32))
        entries = list(PLAN.entries())
        for feature in range(PLAN.features):
            if text := PLAN.label(feature):
                writer.add_explanation(feature, text, "planted")
        for entry in entries[:9]:
            writer.add(entry)
        for start in PLAN.starts():
            writer.add_document(*start)
        for entry in entries[9:]:
            writer.add(entry)
        writer.add_tokens(dict(reversed(list(tokens.items())[:60])), special={0})
        writer.finish(PLAN.manifest()).close()
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_an_atlas_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def stopped() -> None:
        with Writer(tmp_path / "deep" / "atlas") as writer:
            writer.add_rows(PLAN.corpus())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "deep" / ".atlas.gemscope" / "atlas").mkdir(parents=True)  # as a killed process leaves it
    planted_atlas(tmp_path / "deep" / "atlas").close()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["atlas"]


def test_an_atlas_is_never_written_over(planted: Atlas, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="an atlas is never written over"):
        Writer(planted.folder)
    with Writer(tmp_path / "a") as writer:
        (tmp_path / "a").mkdir()
        with pytest.raises(InputError, match="appeared"):
            writer.finish(manifest_of(1, 0, 4))
    assert list((tmp_path / "a").iterdir()) == []


def test_a_full_disk_is_named_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much() -> None:
        with Writer(tmp_path / "a") as writer:
            writer._db.execute("PRAGMA max_page_count = 25")
            writer.add_rows(PLAN.corpus())
            writer.add_tokens({id_: os.urandom(500) for id_ in range(5000)})
            writer.finish(PLAN.manifest())

    with pytest.raises(StorageFull, match=r"no room left on the disk for .*/a, nothing of the atlas is kept"):
        too_much()
    assert list(tmp_path.iterdir()) == []

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(corpus.Rows, "append", full)
    with (
        pytest.raises(StorageFull, match=r"no room left .* nothing of the atlas is kept"),
        Writer(tmp_path / "a") as writer,
    ):
        writer.add_rows(PLAN.corpus())
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(corpus, "Rows", full)
    with pytest.raises(StorageFull, match=r"no room left .* nothing of the atlas is kept"), Writer(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_labelling_leaves_the_labels_as_they_were(copy: Path) -> None:
    with Atlas(copy) as atlas:
        made = atlas.explain(0, "short")
        atlas._database._writer.execute("PRAGMA max_page_count = 1")  # SQLite takes the present size instead
        with pytest.raises(StorageFull, match="nothing was changed"):
            atlas.explain(0, "long " * 100_000)
        assert atlas[0].explanations[0] == made
        atlas._database._writer.execute("PRAGMA max_page_count = 100000")
        atlas.explain(0, "again")
    assert verify(copy) == []


def test_labels_that_find_no_room_in_a_file_as_long_as_may_be_are_a_full_disk(copy: Path) -> None:
    """SQLite says "disk I/O error" then."""
    resource = pytest.importorskip("resource", reason="this system knows no limit on a file's length")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Atlas(copy) as atlas:
        made = atlas.explain(0, "short")
        resource.setrlimit(resource.RLIMIT_FSIZE, ((copy / "atlas.sqlite").stat().st_size, before[1]))
        try:
            with pytest.raises(StorageFull, match="nothing was changed"):
                atlas.explain(0, "long " * 1_000_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert atlas[0].explanations[0] == made
        atlas.explain(0, "again")
    assert verify(copy) == []


ONE = Entry(
    index=0,
    count=2,
    max=2.0,
    mean=1.5,
    edges=np.array([0.0, 1.0, 4.0], np.float32),
    interval_counts=np.array([1, 1]),
    positions=np.array([1, 6]),
    intervals=np.array([-1, 0]),
    owners=np.array([0, 0, 1]),
    columns=np.array([1, 3, 2]),
    values=np.array([2.0, 1.0, 1.0], np.float32),
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": np.array([1, 10])}, "at position 10, where the 2 rows of 4 tokens added so far have no token"),
        ({"positions": np.array([1, 7])}, "without one at its own column"),
        ({"columns": np.array([1, 4, 2])}, "lie outside 0 to 3"),
        ({"columns": np.array([3, 1, 2])}, "do not ascend"),
        ({"owners": np.array([0, 0, 2])}, "no example owns"),
        ({"owners": np.array([0, 0])}, "2 owners and 3 columns"),
        ({"owners": np.zeros(0, int), "columns": np.zeros(0, int), "values": np.zeros(0)}, "without activations"),
        ({"intervals": np.array([-1, 2])}, "an interval that it does not have"),
        ({"intervals": np.array([-1])}, "2 positions and 1 intervals"),
        ({"edges": np.array([0.0, 1.0], np.float32)}, "one edge more than counts"),
        ({"promoted": np.array([1])}, "1 promoted and 0 promoted_values"),
        ({"count": -1}, "count=-1"),
        ({"count": 2**62}, "count=4611686018427387904: from 0 to 9,007,199,254,740,992 are kept"),
        ({"histogram": np.array([3])}, "its histogram counts 3 firings, its row says 2"),
        ({"interval_counts": np.array([2, 2])}, "its intervals hold 4 firings, its row says 2"),
        ({"max": 1.0}, "an example of 2 is stronger than its maximum, 1"),
    ],
)
def test_an_entry_that_does_not_fit_together_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    with Writer(tmp_path / "a") as writer:
        writer.add_rows(np.arange(8).reshape(2, 4))
        with pytest.raises(InputError, match=message):
            writer.add(replace(ONE, **change))
        writer.add(ONE)  # what was refused left nothing
        with pytest.raises(InputError, match="feature 0 given after 0: they must ascend"):
            writer.add(ONE)


@pytest.mark.parametrize("name", ["positions", "intervals", "columns", "promoted", "neighbours", "histogram"])
def test_what_a_page_could_not_be_read_back_with_is_not_written(name: str, tmp_path: Path) -> None:
    entry = replace(ONE)
    object.__setattr__(entry, name, getattr(entry, name).astype(np.float32))  # past the checks of types in tests
    with Writer(tmp_path / "a") as writer:
        writer.add_rows(np.arange(8).reshape(2, 4))
        with pytest.raises(InputError, match=f"type float32 as its {name}: whole numbers are expected"):
            writer.add(entry)


@pytest.mark.parametrize(
    "change",
    [
        {"max": float("nan")},
        {"mean": float("inf")},
        {"values": np.array([2.0, np.nan, 1.0], np.float32)},
        {"values": np.array([np.inf, 1.0, 1.0], np.float32)},
        {"values": np.array([2.0, np.inf, 1.0], np.float32)},
        {"values": np.array([2.0, np.finfo(np.float32).max, 1.0], np.float32)},
        {"promoted": np.array([1]), "promoted_values": np.array([np.inf], np.float32)},
        {"edges": np.array([0.0, 1.0, np.inf], np.float32)},
    ],
)
def test_what_is_no_number_is_refused(change: dict, tmp_path: Path) -> None:
    with Writer(tmp_path / "a") as writer:
        writer.add_rows(np.arange(8).reshape(2, 4))
        with pytest.raises(NotFinite):
            writer.add(replace(ONE, **change))


def test_rows_documents_and_tokens_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with Writer(tmp_path / "a") as writer:
        for wrong in (
            np.zeros(3, int),
            np.zeros((1, 0), int),
            np.array([[-2, 0]]),
            np.array([[2**31, 0]]),
        ):
            with pytest.raises(InputError):
                writer.add_rows(wrong)
        writer.add_rows(np.zeros((0, 9), int))
        writer.add_rows(np.zeros((2, 4), int))
        with pytest.raises(Mismatch, match="rows of 5 tokens given after rows of 4"):
            writer.add_rows(np.zeros((1, 5), int))
        writer.add_document(3, "a", "b")
        with pytest.raises(InputError, match="they must ascend"):
            writer.add_document(3, "a", "b")
        with pytest.raises(InputError, match="half a surrogate"):
            writer.add_document(4, "\ud800", "b")
        with pytest.raises(InputError, match="ids from 0 and bytes"):
            writer.add_tokens({-1: b"text"})
        writer.add_explanation(1, "x", "y")
        for made, message in (
            (manifest_of(2, 3, 4), "2 rows of 4 tokens were added"),
            (manifest_of(2, 2, 5), "2 rows of 4 tokens were added"),
            (manifest_of(1, 2, 4), "feature 1 was explained"),
        ):
            with pytest.raises(Mismatch, match=message):
                writer.finish(made)
        writer.add(Entry(index=5, count=0, max=0.0, mean=0.0))
        with pytest.raises(Mismatch, match="feature 5 was added, but the manifest says d_sae=5"):
            writer.finish(manifest_of(5, 2, 4))


# --- damage -----------------------------------------------------------------------------------------------------------


def test_where_there_is_no_atlas_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(NotFound, match="no atlas in"):
            Atlas(place)
        with pytest.raises(NotFound):
            verify(place)


@pytest.mark.parametrize("size", [0, 50, 100, 5000, 16384, 40_000, -1])
def test_a_truncated_file_is_named(copy: Path, size: int) -> None:
    path = copy / "atlas.sqlite"
    os.truncate(path, path.stat().st_size - 1 if size < 0 else size)
    with pytest.raises(CorruptFile, match=r"atlas\.sqlite") as caught:
        Atlas(copy)
    assert "\n" not in str(caught.value)
    assert len(verify(copy)) == 1


def _change_json(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _change_sql(folder: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(folder / "atlas.sqlite")) as db, db:
        for statement in statements:
            db.execute(statement)


def _foreign(folder: Path) -> None:
    (folder / "atlas.sqlite").unlink()
    _change_sql(folder, "CREATE TABLE feature (id)")


DAMAGES = {
    "foreign sqlite": (_foreign, "another program's SQLite file"),
    "not sqlite": (lambda at: (at / "atlas.sqlite").write_bytes(b"PK" * 5000), "not an SQLite file"),
    "no sqlite": (lambda at: (at / "atlas.sqlite").unlink(), "atlas.sqlite is missing"),
    "newer sqlite": (lambda at: _change_sql(at, "PRAGMA user_version = 99"), "format 99, this version reads up to 1"),
    "no table": (lambda at: _change_sql(at, "DROP TABLE feature"), "has no table 'feature'"),
    "fewer features": (
        lambda at: _change_sql(at, "DELETE FROM feature WHERE id = 4"),
        "39 features, its manifest says 40",
    ),
    "no corpus": (lambda at: (at / "corpus.npy").unlink(), "corpus.npy is missing"),
    "short corpus": (lambda at: os.truncate(at / "corpus.npy", 4000), "corpus.npy is of 4,000 bytes"),
    "other corpus": (lambda at: np.save(at / "corpus.npy", np.zeros((48, 63), np.uint16)), r"rows \[48, 63\]"),
    "fewer rows": (lambda at: np.save(at / "corpus.npy", np.zeros((47, 64), np.uint16)), "its manifest says"),
    "float corpus": (lambda at: np.save(at / "corpus.npy", np.zeros((48, 64))), "its numbers are <f8"),
    "object corpus": (lambda at: np.save(at / "corpus.npy", np.array([[{}]])), "not an atlas's corpus"),
    "no header": (lambda at: (at / "corpus.npy").write_bytes(b"x" * 9000), "its header is missing"),
    "newer manifest": (lambda at: _change_json(at, format=2), "format 2, this version reads up to 1: update"),
    "unnumbered manifest": (lambda at: _change_json(at, format="1"), 'field "format" is "1", expected a whole number'),
    "more in manifest": (lambda at: _change_json(at, colour="red"), 'field "colour" is not known'),
    "less in manifest": (lambda at: (at / "manifest.json").write_text('{"format": 1}'), 'field "model" is missing'),
    "a list": (lambda at: (at / "manifest.json").write_text("[]"), "it is an empty list, expected an object"),
    "no json": (lambda at: (at / "manifest.json").write_text("{"), "is not JSON: it ends in the middle"),
    "no text": (lambda at: (at / "manifest.json").write_bytes(b"\xff"), "is not JSON"),
    "odd type": (lambda at: _change_json(at, d_sae="40"), 'field "d_sae" is "40", expected a whole number from 1'),
    "below zero": (lambda at: _change_json(at, before=-1), "expected a whole number from 0"),
    "no length": (lambda at: _change_json(at, length=0), "is 0, expected a whole number from 1"),
    "other width": (lambda at: _change_json(at, d_sae=41), "40 features, its manifest says 41"),
    "nested json": (lambda at: (at / "manifest.json").write_text("[" * 200_000), "expected an object"),
    "count in words": (
        lambda at: _change_sql(at, "UPDATE feature SET count = 'many' WHERE id = 7"),
        "row 7 of table feature holds what cannot stand there",
    ),
    "endless maximum": (
        lambda at: _change_sql(at, "UPDATE feature SET max = 9e999 WHERE id = 7"),
        "row 7 of table feature holds what cannot stand there",
    ),
    "label of bytes": (
        lambda at: _change_sql(at, "UPDATE feature SET label = x'ff00' WHERE id = 7"),
        "row 7 of table feature holds what cannot stand there",
    ),
    "explanation of bytes": (
        lambda at: _change_sql(at, "UPDATE explanation SET text = x'ff00'"),
        "of table explanation holds what cannot stand there",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_wrong_with_a_folder_is_said_in_one_line(copy: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(copy)
    with pytest.raises(CorruptFile, match=message) as caught:
        Atlas(copy)
    assert "\n" not in str(caught.value)
    assert verify(copy) == [str(caught.value)]
    assert str(copy) in str(caught.value)


@pytest.mark.parametrize("name", ["manifest.json", "corpus.npy", "atlas.sqlite"])
def test_a_file_that_cannot_be_read_is_named_in_one_line(copy: Path, name: str) -> None:
    (copy / name).unlink()
    (copy / name).mkdir()
    with pytest.raises(AccessError, match=f"{name} cannot be read: (Is a directory|it is a folder)"):
        Atlas(copy)


def test_a_sound_atlas_has_no_problems(planted: Atlas) -> None:
    before = content(planted.folder)
    assert verify(planted.folder) == []
    assert content(planted.folder) == before


def _flip(folder: Path, table: str, key: str, number: int) -> None:
    with contextlib.closing(sqlite3.connect(folder / "atlas.sqlite")) as db, db:
        blob = bytearray(db.execute(f"SELECT packed FROM {table} WHERE {key} = ?", (number,)).fetchone()[0])
        blob[len(blob) // 2] ^= 16
        db.execute(f"UPDATE {table} SET packed = ? WHERE {key} = ?", (bytes(blob), number))


PROBLEMS = {
    "a flipped byte": (lambda at: _flip(at, "page", "id", 3), "feature 3: a packed record is damaged"),
    "a count": (
        lambda at: _change_sql(at, "UPDATE feature SET count = count + 1 WHERE id = 5"),
        "feature 5: its histogram",
    ),
    "a missing page": (lambda at: _change_sql(at, "DELETE FROM page WHERE id = 8"), "the first missing is 8"),
    "a maximum": (lambda at: _change_sql(at, "UPDATE feature SET max = 0.5 WHERE id = 2"), "feature 2: an example of"),
    "a token": (
        lambda at: _change_sql(at, "UPDATE feature SET token = 1 WHERE id = 4"),
        "feature 4: its strongest example",
    ),
    "hits": (lambda at: _flip(at, "token_feature", "token", FIRST_WORD + 1), f"token {FIRST_WORD + 1}: "),
    "no hits": (
        lambda at: _change_sql(at, "DELETE FROM token_feature WHERE token = 20"),
        "token 20: it lists no features",
    ),
    "vocabulary": (lambda at: _flip(at, "token", "first", 0), "the vocabulary: a packed record is damaged"),
    "a label": (
        lambda at: _change_sql(at, "UPDATE feature SET label = 'x' WHERE id = 1"),
        "feature 1: its label is 'x'",
    ),
    "unindexed": (
        lambda at: _change_sql(
            at, "UPDATE explanation SET text = 'y' WHERE feature = 3", "UPDATE feature SET label = 'y' WHERE id = 3"
        ),
        "full text index",
    ),
    "documents": (lambda at: _change_sql(at, "DELETE FROM document WHERE start > 2000"), "table document has"),
    "a late document": (lambda at: _change_sql(at, "INSERT INTO document VALUES (999999, 0)"), "beyond the corpus"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_verify_finds(copy: Path, name: str) -> None:
    damage, message = PROBLEMS[name]
    damage(copy)
    assert any(message in problem for problem in verify(copy)), verify(copy)


def test_verify_finds_a_flipped_byte_anywhere_in_the_pages_of_the_file(copy: Path) -> None:
    path = copy / "atlas.sqlite"
    whole = path.read_bytes()
    with contextlib.closing(sqlite3.connect(path)) as db:
        blob = db.execute("SELECT packed FROM page WHERE id = 10").fetchone()[0]
    at = whole.index(blob[:40])
    for offset in (0, 30, len(blob) // 2, len(blob) - 1):
        path.write_bytes(whole[: at + offset] + bytes([whole[at + offset] ^ 1]) + whole[at + offset + 1 :])
        with Atlas(copy) as atlas:  # opening does not read the pages
            with pytest.raises(CorruptFile, match=r"feature 10: a packed record is damaged.*copy it again"):
                atlas[10]
        assert any("feature 10" in problem for problem in verify(copy))


def test_verify_stops_counting_somewhere(tmp_path: Path) -> None:
    planted_atlas(tmp_path / "a", features=300).close()
    _change_sql(tmp_path / "a", "UPDATE feature SET count = 1")
    assert len(verify(tmp_path / "a")) == 101


def test_a_damaged_table_is_found_on_opening(copy: Path) -> None:
    path = copy / "atlas.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as db:
        root = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'feature'").fetchone()[0]
        size = db.execute("PRAGMA page_size").fetchone()[0]
    whole = bytearray(path.read_bytes())
    start = (root - 1) * size
    whole[start + 3 : start + 11] = b"\xff" * 8
    path.write_bytes(whole)
    with pytest.raises(CorruptFile, match=r"atlas\.sqlite") as caught:
        Atlas(copy)
    assert "\n" not in str(caught.value)


# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this version knew a second format."""
    step = (
        "CREATE TABLE star (feature INTEGER PRIMARY KEY)",
        "INSERT INTO star SELECT id FROM feature WHERE count > 900",
    )
    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, step))
    for module in (opening, manifests):
        monkeypatch.setattr(module, "FORMAT", 2)


def test_an_older_atlas_is_brought_up_to_date_once(copy: Path, newer: None) -> None:
    with Atlas(copy) as atlas:
        assert atlas.manifest.format == 2
        with atlas._database.reading() as db:
            stars = db.execute("SELECT count(*) FROM star").fetchone()[0]
        assert stars == sum(page.count > 900 for page in atlas) > 0
    assert json.loads((copy / "manifest.json").read_text())["format"] == 2
    before = content(copy)
    Atlas(copy).close()
    assert content(copy) == before


def test_an_upgrade_that_fails_changes_nothing(copy: Path, newer: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS[:1], (*schema.STEPS[1], "INSERT INTO nowhere VALUES (1)")))
    before = json.loads((copy / "manifest.json").read_text())
    with pytest.raises(CorruptFile, match="nowhere"):
        Atlas(copy)
    assert json.loads((copy / "manifest.json").read_text()) == before
    with contextlib.closing(sqlite3.connect(copy / "atlas.sqlite")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'star'").fetchone() == (0,)


def test_an_older_atlas_that_cannot_be_written_says_so(reachable: Path, newer: None) -> None:
    with powerless(reachable):
        with pytest.raises(AccessError, match=r"is of format 1, this version reads 2.*copy the atlas elsewhere"):
            Atlas(reachable)


TRAPS = {
    "a trigger": "CREATE TRIGGER odd AFTER INSERT ON explanation BEGIN DELETE FROM explanation; END",
    "a view": "ALTER TABLE token RENAME TO was; CREATE VIEW token AS SELECT * FROM was",
    "an endless view": (
        "DROP TABLE document; CREATE VIEW document AS WITH RECURSIVE c(start, source) AS "
        "(SELECT 0, 0 UNION ALL SELECT start + 1, 0 FROM c) SELECT * FROM c"
    ),
    "a column that computes itself": "ALTER TABLE feature ADD COLUMN odd AS (hex(zeroblob(500000000)))",
    "an index that computes": "CREATE INDEX odd ON explanation (hex(zeroblob(500)))",
    "another table": "CREATE TABLE odd (x)",
}


@pytest.mark.parametrize("trap", TRAPS)
def test_nothing_that_somebody_put_into_an_atlas_is_run(copy: Path, trap: str) -> None:
    with contextlib.closing(sqlite3.connect(copy / "atlas.sqlite")) as db:
        db.executescript(TRAPS[trap])
    for use in (Atlas, lambda at: verify(at) and Atlas(at)):
        with pytest.raises(CorruptFile, match=r"atlas.sqlite has a (trigger|view|table|index) '.*' that no atlas has"):
            use(copy)


def test_a_trap_that_is_laid_while_an_atlas_is_open_does_not_run_when_a_label_is_written(copy: Path) -> None:
    with Atlas(copy) as atlas:
        atlas.explain(0, "x")
        with contextlib.closing(sqlite3.connect(copy / "atlas.sqlite")) as db:
            db.executescript(TRAPS["a trigger"])
        with pytest.raises(CorruptFile, match="has a trigger 'odd'"):
            atlas.explain(0, "y")
        with contextlib.closing(sqlite3.connect(copy / "atlas.sqlite")) as db:
            assert ("x",) in db.execute("SELECT text FROM explanation").fetchall()


# --- how it shows itself ----------------------------------------------------------------------------------------------


def test_a_label_is_written_while_an_error_of_a_damaged_vocabulary_is_remembered(copy: Path) -> None:
    with sqlite3.connect(copy / "atlas.sqlite") as db:
        db.execute("INSERT INTO token SELECT 1 << 40, packed FROM token LIMIT 1")
        db.execute("INSERT INTO token SELECT 2 << 40, packed FROM token LIMIT 1")
    db.close()
    with Atlas(copy) as atlas:
        with pytest.raises(CorruptFile, match="vocabulary") as remembered:
            atlas.text([0])
        assert atlas.explain(0, "what it stands for").text == "what it stands for"
        assert remembered


def test_an_atlas_says_what_it_is_of(planted: Atlas) -> None:
    assert str(planted).splitlines() == [
        "tests/Tiny-Model at 1.res, read through planted",
        "40 features: 35 living, 5 dead; 14 with a label",
        "3,019 counted tokens of 9 documents (planted)",
    ]
    assert repr(planted) == f"Atlas({planted.folder}, tests/Tiny-Model, planted, 40 features)"


def test_a_notebook_shows_it_escaped(copy: Path) -> None:
    _change_json(copy, model="<script>alert(1)</script>")
    with Atlas(copy) as atlas:
        shown_ = atlas._repr_html_()
    assert "<script>" not in shown_
    assert html.escape("<script>alert(1)</script>") in shown_


def test_the_manifest_comes_back_as_it_was_written(planted: Atlas) -> None:
    assert planted.manifest == PLAN.manifest()
    assert asdict(planted.manifest)["parts"][0]["masked"] == {"special": 48, "padding": 5}
    assert (planted.manifest.rows, planted.manifest.documents) == (48, 9)


@pytest.mark.slow
def test_a_small_atlas_takes_few_bytes_a_feature(tmp_path: Path) -> None:
    features = 2000
    planted_atlas(
        tmp_path / "a", features=features, rows=1000, length=256, before=40, after=23, top=20, each=3,
        vocabulary=2100, near=7, relatives=10, labelled=0,
    ).close()  # fmt: skip
    with Atlas(tmp_path / "a") as atlas:
        examples = [len(page.examples) for page in atlas if not page.dead]
        cells = [sum(value > 0 for value in one.values) for page in atlas for one in page.examples]
    assert np.mean(examples) > 24
    assert np.mean(cells) > 6
    assert (tmp_path / "a" / "atlas.sqlite").stat().st_size / features < 1300
