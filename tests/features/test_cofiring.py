"""Which features fire together: against counting all pairs, and the sample against cutting and ordering."""

import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gemscope.features import cofiring
from gemscope.features.cofiring import Sample

Array = np.ndarray[Any, np.dtype[Any]]
ANY = st.integers(0, 2**32 - 1)
D_SAE = 12


def _text(seed: int, tokens: int = 200) -> tuple[Array, Array]:
    """Keys and a matrix of what fires."""
    random = np.random.default_rng(seed)
    fires = random.random((tokens, D_SAE)) < np.linspace(0.01, 0.6, D_SAE)
    fires[:, 1] = fires[:, 4] & (random.random(tokens) < 0.9)
    return random.integers(-(2**63), 2**63 - 1, tokens), fires


def _add(sample: Sample, key: Array, fires: Array, start: int) -> None:
    sample.add(key, start + np.arange(len(key)), fires.sum(1), fires.nonzero()[1])


@given(seed=ANY)
@settings(max_examples=20, deadline=None)
def test_partners_are_those_of_counting_all_pairs(seed: int) -> None:
    key, fires = _text(seed)
    sample = Sample(D_SAE, 10_000)
    _add(sample, key, fires, 0)
    ids, jaccard, share = sample.partners(4)
    assert sample.tokens == len(key)
    both = fires.T.astype(int) @ fires.astype(int)
    for feature in range(D_SAE):
        alone = both[feature, feature]
        scores = [
            (-both[feature, other] / (alone + both[other, other] - both[feature, other]), other)
            for other in range(D_SAE)
            if other != feature and both[feature, other] >= 2
        ]
        expected = sorted(scores)[:4]
        assert ids[feature].tolist() == [other for _, other in expected] + [-1] * (4 - len(expected))
        for nth, (score, other) in enumerate(expected):
            assert jaccard[feature, nth] == pytest.approx(-score)
            assert share[feature, nth] == pytest.approx(both[feature, other] / alone)


@given(seed=ANY, cuts=st.lists(st.integers(0, 400), max_size=6), room=st.integers(50, 2500))
@example(seed=3345670, cuts=[14], room=50)  # a token that has no room in one part ends the sample of all
@settings(max_examples=40, deadline=None)
def test_a_full_sample_depends_on_the_text_alone(seed: int, cuts: list[int], room: int) -> None:
    key, fires = _text(seed, 400)
    whole = Sample(D_SAE, room)
    _add(whole, key, fires, 0)
    parts = Sample(D_SAE, room)
    bounds = [0, *sorted(cuts), 400]
    pieces = list(pairwise(bounds))
    for start, stop in reversed(pieces):
        _add(parts, key[start:stop], fires[start:stop], start)
    merged = Sample(D_SAE, room)
    for start, stop in pieces:
        piece = Sample(D_SAE, room)
        _add(piece, key[start:stop], fires[start:stop], 0)
        merged.merge(Sample.of(piece.state(), D_SAE), start)
    for other in (parts, merged):
        for name in ("hash", "position", "sizes", "features"):
            assert np.array_equal(whole.state()[name], other.state()[name]), name
    lowest = np.argsort(key, kind="stable")
    held = int(((fires[lowest].sum(1) + 1).cumsum() <= room).sum())
    assert whole.tokens == held
    assert np.array_equal(whole.state()["hash"], key[lowest[:held]])


def test_a_state_that_is_no_sample_is_refused() -> None:
    """Each breaks one rule alone."""
    sample = Sample(D_SAE, 1000)
    _add(sample, *_text(0), 0)
    state = sample.state() | {"features": sample.state()["features"].astype(np.int64)}
    assert Sample.of(state, D_SAE).tokens == sample.tokens

    def changed(name: str, *at: tuple[int, int]) -> dict[str, Array]:
        array = state[name].copy()
        for place, value in at:
            array[place] = value
        return state | {name: array}

    sizes = state["sizes"]
    for wrong in (
        *({**state, name: state[name][:-1]} for name in ("hash", "position", "features")),
        *({**state, name: np.append(state[name], 1)} for name in ("room", "below")),
        *(changed("features", (0, id)) for id in (-1, D_SAE)),
        changed("position", (3, -1)),
        changed("sizes", (0, -1), (1, int(sizes[0] + sizes[1]) + 1)),
        changed("sizes", (0, int(sizes[0]) + 1)),
    ):
        with pytest.raises(ValueError, match="no such sample"):
            Sample.of(wrong, D_SAE)
    nothing = Sample(D_SAE, 10)
    nothing.add(np.arange(3), np.arange(3), np.zeros(3, np.int64), np.zeros(0, np.int64))
    for kept in (Sample(D_SAE, 10), nothing):
        assert Sample.of(kept.state(), D_SAE).tokens == kept.tokens


def test_tokens_on_which_nothing_fires_do_not_pile_up() -> None:
    sample, random = Sample(D_SAE, 1000), np.random.default_rng(0)
    for start in range(0, 200_000, 1000):
        key = random.integers(-(2**63), 2**63 - 1, 1000)
        _add(sample, key, np.zeros((1000, D_SAE), bool), start)
        assert sum(len(part[0]) for part in sample._pending) < 3000
    assert sample.tokens == 1000


def test_a_wide_dictionary_fits_too() -> None:
    sample = Sample(100_000, 1000)
    sample.add(np.arange(3), np.arange(3), np.array([2, 2, 1]), np.array([7, 99_999, 7, 99_999, 7]))
    ids, jaccard, share = sample.partners(1)
    assert ids[7, 0] == 99_999
    assert ids[99_999, 0] == 7
    assert share[99_999, 0] == 1
    assert jaccard[7, 0] == pytest.approx(2 / 3)


def test_beside_the_sample_itself_memory_does_not_grow_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes per token and entry that there is room for: 38 where all of it was gathered and sorted at once."""
    monkeypatch.setattr(cofiring, "_AT_ONCE", 1 << 16)  # so that the blocks are small beside a small sample too
    d_sae, room, random = 64, 1 << 21, np.random.default_rng(0)
    tracemalloc.start()
    try:
        sample = Sample(d_sae, room)
        for start in range(0, 2 * room // 32, 4096):
            fires = random.random((4096, d_sae)) < 0.5
            key = random.integers(-(2**63), 2**63 - 1, 4096)
            sample.add(key, start + np.arange(4096), fires.sum(1), fires.nonzero()[1])
        sample.partners(5)
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        sample.state()
        _, again = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sample.tokens * 33 > 0.9 * room
    # 2 for an entry, twice while it settles, a quarter more waiting; 4 for its token by feature. It was 12 while what was
    # there before lay beside it.
    assert peak < 11 * room
    assert again < 1.1 * held  # what is settled is not settled again


def test_counting_block_by_block_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(at_once: int) -> list[Array]:
        monkeypatch.setattr(cofiring, "_AT_ONCE", at_once)
        sample = Sample(D_SAE, 1500)
        for seed in range(3):
            _add(sample, *_text(seed, 300), 300 * seed)
        return [*sample.partners(5), *sample.state().values()]

    whole = found(1 << 20)
    for at_once in (1, 2, 7, 64, 1000):
        for one, other in zip(whole, found(at_once), strict=True):
            assert one.dtype == other.dtype
            assert np.array_equal(one, other)
