"""One feature: what goes in comes out, exactly where that is promised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlases import PLAN, content, written
from dashboards import expected, shown
from gemscope.atlas.entry import Entry
from gemscope.atlas.reader import Atlas
from gemscope.errors import NotFound

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


def test_relatives_carry_their_labels(copy: Path) -> None:
    with Atlas(copy) as atlas:
        relative = atlas[0].neighbours[0].feature
        atlas.explain(relative, "a relative")
        assert atlas[0].neighbours[0].label == "a relative"
        assert next(one.label for one in atlas[0].coactive if one.feature == relative) == "a relative"
