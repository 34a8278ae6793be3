"""What is kept of a text, against a version that keeps everything and sorts at the end."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemscope.features.best import Places
from gemscope.features.examples import INTERVALS, Examples, Firings, _mixed
from gemscope.features.keys import REACH, scrambled, text_keys

Array = np.ndarray[Any, np.dtype[Any]]
ANY = st.integers(0, 2**32 - 1)
LENGTH, D_SAE = 24, 6


class Text:
    """Rows of ids, and what fires on them."""

    def __init__(self, seed: int, rows: int, repeat: bool = False) -> None:
        random = np.random.default_rng(seed)
        self.ids = random.integers(0, 50, (rows, LENGTH))
        loud = 2.0 ** random.integers(-4, 5, (rows, 1, 1))
        dense = random.random((rows, LENGTH, D_SAE)) * loud
        dense *= random.random((rows, LENGTH, D_SAE)) < np.linspace(0.02, 0.6, D_SAE)
        self.dense = dense.astype(np.float32)
        if repeat:
            self.ids[1::2], self.dense[1::2] = self.ids[::2][: rows // 2], self.dense[::2][: rows // 2]

    def firings(self, rows: slice) -> Firings:
        dense = self.dense[rows].reshape(-1, D_SAE)
        tokens, features = dense.nonzero()
        keys = text_keys(self.ids[rows]).reshape(-1)
        return Firings(
            features=features,
            values=dense[tokens, features],
            tokens=tokens,
            key=keys[tokens],
            first=(rows.start or 0) * LENGTH,
            rows=len(dense) // LENGTH,
            length=LENGTH,
            d_sae=D_SAE,
        )

    def exponents(self, stop: int) -> Array:
        peaks = self.dense[:stop].reshape(-1, D_SAE).max(0)
        return np.where(peaks > 0, np.frexp(peaks)[1], -200).astype(np.int64)


def _kept(text: Text, *, step: int, top: int = 4, each: int = 2, start: int = 0, stop: int | None = None) -> Examples:
    examples = Examples(D_SAE, top=top, each=each, before=5, after=3)
    stop = len(text.ids) if stop is None else stop
    for row in range(start, stop, step):
        rows = slice(row, min(stop, row + step))
        firings = text.firings(rows)
        shifted = Firings(**{**vars(firings), "first": firings.first - start * LENGTH})
        peaks = text.dense[start : rows.stop].reshape(-1, D_SAE).max(0)
        examples.add(shifted, np.where(peaks > 0, np.frexp(peaks)[1], -200).astype(np.int64))
    return examples


def _alike(one: Examples, other: Examples) -> bool:
    return all(
        np.array_equal(getattr(mine, name), getattr(theirs, name))
        for mine, theirs in zip(one.sorted(), other.sorted(), strict=True)
        for name in ("group", "rank", "key", "position", "value", "window")
    )


def _obvious(text: Text, top: int, each: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(group, position) of all that should be kept, by keeping everything first."""
    keys = text_keys(text.ids)
    exponents = text.exponents(len(text.ids))
    strongest, drawn = [], []
    for feature in range(D_SAE):
        peaks, draws = [], []
        for row in range(len(text.ids)):
            values = text.dense[row, :, feature]
            at = np.flatnonzero(values)
            if not len(at):
                continue
            peak = max(at, key=lambda t: (values[t], -t))
            peaks.append((-values[peak], row * LENGTH + peak, keys[row, peak]))
            chance = _mixed(keys[row, at], np.full(len(at), feature))
            draw = at[chance.argmax()]
            interval = int(values[draw].astype(np.float64) * INTERVALS / 2.0 ** exponents[feature])
            draws.append((interval, -int(chance.max()), row * LENGTH + draw, keys[row, draw]))
        seen: set[int] = set()
        for _, position, key in sorted(peaks):
            if key not in seen and len(seen) < top:
                seen.add(key)
                strongest.append((feature, position))
        for interval in range(INTERVALS):
            found: set[int] = set()
            for mine, _, position, key in sorted(draws):
                if mine == interval and key not in found and len(found) < each:
                    found.add(key)
                    drawn.append((feature * INTERVALS + interval, position))
    return strongest, drawn


@given(seed=ANY, step=st.integers(1, 9), repeat=st.booleans())
@settings(max_examples=40, deadline=None)
def test_what_is_kept_is_what_keeping_everything_would_have_kept(seed: int, step: int, repeat: bool) -> None:
    text = Text(seed, 20, repeat)
    kept = _kept(text, step=step).sorted()
    for places, expected in zip(kept, _obvious(text, 4, 2), strict=True):
        assert list(zip(places.group.tolist(), places.position.tolist(), strict=True)) == expected


@given(seed=ANY, step=st.integers(1, 9), cut=st.integers(1, 19))
@settings(max_examples=30, deadline=None)
def test_merging_what_two_texts_gave_equals_both_read_in_one_go(seed: int, step: int, cut: int) -> None:
    text = Text(seed, 20, repeat=seed % 2 == 0)
    first, second = _kept(text, step=step, stop=cut), _kept(text, step=step, start=cut)
    first.merge(second, text.exponents(20), cut * LENGTH)
    assert _alike(first, _kept(text, step=7))


@given(seed=ANY)
@settings(max_examples=10, deadline=None)
def test_a_state_goes_on_as_if_never_stored(seed: int) -> None:
    text = Text(seed, 20)
    half = _kept(text, step=5, stop=10)
    again = Examples(D_SAE, top=4, each=2, before=5, after=3)
    again.restore({name: value.copy() for name, value in half.state().items()}, text.exponents(10), 10 * LENGTH)
    for examples in (half, again):
        for row in (10, 15):
            examples.add(text.firings(slice(row, row + 5)), text.exponents(row + 5))
    assert _alike(half, again)
    assert _alike(half, _kept(text, step=5))


def _at(state: dict[str, Array], part: str, nth: int, **changes: Any) -> dict[str, Array]:
    """The state with other numbers at one of the places that are kept."""
    changed = {name: value.copy() for name, value in state.items()}
    for name, value in changes.items():
        rows = changed[f"{part}.{name}"]
        rows[nth] = value if name != "window" else np.where(np.arange(9) == value[0], value[1], rows[nth])
    return changed


def test_a_state_of_places_that_cannot_be_is_refused() -> None:
    """Each breaks one rule alone."""
    text = Text(3, 10)
    state, exponents, end = _kept(text, step=5).state(), text.exponents(10), 10 * LENGTH

    def restored(state: dict[str, Array], exponents: Array = exponents) -> Examples:
        examples = Examples(D_SAE, top=4, each=2, before=5, after=3)
        examples.restore(state, exponents, end)
        return examples

    last = _at(state, "top", 0, position=end - 1)
    assert restored(last).sorted()[0].position.max() == end - 1
    top = int(np.float32(2.0 ** exponents[0]).view(np.int32))
    for part in ("top", "drawn"):
        for changes in (
            {"position": -1},
            {"position": end},
            {"window": (2, -0.5)},
            {"window": (5, 0.5)},
            *({"value": 0.0, "rank": 0}, {"value": 2.0 ** exponents[0], "rank": top}),
        ):
            with pytest.raises(ValueError, match="no examples of this text"):
                restored(_at(state, part, 0, **changes))
    assert state["drawn.group"][-1] % INTERVALS > 0  # so that half of it belongs in another range
    for wrong in (
        _at(state, "top", 0, rank=int(state["top.rank"].max()) + 1),
        _at(state, "drawn", 0, rank=-1),
        _at(state, "drawn", -1, value=float(state["drawn.value"][-1] / 2)),
    ):
        with pytest.raises(ValueError, match="not where they belong"):
            restored(wrong)
    with pytest.raises(ValueError, match="not where they belong"):
        restored(state | {"exponents": exponents + 1})
    groups = state["top.group"]
    most = np.bincount(groups).argmax()
    for wrong in (
        state | {"top.group": np.where(groups == groups[-1], D_SAE, groups)},
        state | {"top.group": np.where(groups == groups[0], -1, groups)},
        state | {"top.group": groups[::-1].copy()},
        state | {"top.group": np.full_like(groups, most)},
        state | {"top.rank": state["top.rank"][1:]},
    ):
        with pytest.raises(ValueError, match="not as they are kept"):
            restored(wrong)


def test_the_window_holds_the_activations_around_the_place_and_none_of_another_row() -> None:
    text = Text(3, 12)
    for places, per in zip(_kept(text, step=4).sorted(), (1, INTERVALS), strict=True):
        assert len(places)
        for index in range(len(places)):
            one: Places = places[np.array([index])]
            row, column = divmod(int(one.position[0]), LENGTH)
            values = text.dense[row, :, int(one.group[0]) // per]
            assert one.value[0] == values[column]
            assert one.window[0, 5] == 1
            for offset in range(-5, 4):
                inside = 0 <= column + offset < LENGTH
                expected = values[column + offset] / values[column] if inside else 0.0
                assert one.window[0, 5 + offset] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_text_that_comes_again_is_kept_once() -> None:
    text = Text(5, 2)
    text.ids, text.dense = np.tile(text.ids[:1], (30, 1)), np.tile(text.dense[:1], (30, 1, 1))
    strongest, drawn = _kept(text, step=4).sorted()
    assert len(np.unique(strongest.group)) == len(strongest) > 0
    assert strongest.position.max() < LENGTH
    assert len(np.unique(drawn.group)) == len(drawn)


def test_keys_are_equal_for_equal_texts_alone() -> None:
    ids = np.random.default_rng(0).integers(0, 10**6, (3, 60))
    ids[1, 20:50] = ids[0, 10:40]
    keys = text_keys(ids)
    assert np.array_equal(keys[0, 10 + REACH : 40], keys[1, 20 + REACH : 50])
    assert len(np.unique(keys)) == keys.size - (30 - REACH)
    swapped = ids.copy()
    swapped[2, [30, 31]] = ids[2, [31, 30]]
    assert (text_keys(swapped)[2, 31 : 31 + REACH] != keys[2, 31 : 31 + REACH]).all()


def test_numbers_are_scrambled_as_splitmix64_does() -> None:
    """Its first five of the seed 1234567, as its authors' program prints them: keys on disk mean the same everywhere."""
    state = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert scrambled(state).tolist() == [
        *(6457827717110365317, 3203168211198807973, 9817491932198370423),
        *(4593380528125082431, 16408922859458223821),
    ]


def test_draws_are_spread_evenly_over_rows() -> None:
    text = Text(0, 400)
    text.dense[:] = 1.0
    _, drawn = _kept(text, step=50, each=100).sorted()
    rows = drawn.position[drawn.group // INTERVALS == 2] // LENGTH
    assert len(rows) == 100
    assert 150 < rows.mean() < 250
    columns = drawn.position % LENGTH
    assert 8 < columns.mean() < 15
