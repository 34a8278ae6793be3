"""What fires of several SAEs on the same tokens, and how features correlate: against a slow, dense numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from by_hand import features64, model_of, random_sae
from gemscope.errors import AccessError, CorruptFile, InputError
from gemscope.features.firings import Firings, keeping, read_firings
from gemscope.testing import planted_sae
from gemscope.text.corpus import Corpus

CORPUS = Corpus.of(["the sun and the moon in the air, a light in the sea", "the land of the other morning"] * 4)
ASKED = {"tokens": 60, "length": 16, "batch": 2}


def sparse(dense: np.ndarray[Any, Any]) -> Firings:
    tokens, ids = dense.nonzero()
    sizes = np.bincount(tokens, minlength=len(dense)).astype(np.int64)
    return Firings(dense.shape[1], sizes, ids.astype(np.uint16), dense[tokens, ids].astype(np.float32))


def slowly(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Correlations by numpy, 0 where one of two never changes; and on how many tokens both are there."""
    correlation = np.zeros((one.shape[1], other.shape[1]))
    for i in range(one.shape[1]):
        for j in range(other.shape[1]):
            if one[:, i].std() > 0 and other[:, j].std() > 0:
                correlation[i, j] = np.corrcoef(one[:, i], other[:, j])[0, 1]
    return correlation, ((one > 0).T.astype(int) @ (other > 0).astype(int))


@given(seed=st.integers(0, 10_000), n=st.integers(1, 40), share=st.floats(0, 1), shift=st.integers(0, 50))
def test_correlations_are_those_of_a_dense_numpy(seed: int, n: int, share: float, shift: int) -> None:
    random = np.random.default_rng(seed)
    one, other = (
        (random.gamma(2, size=(n, width)) * (random.random((n, width)) < share)).astype(np.float32) for width in (5, 7)
    )
    correlation, both = sparse(one).beside(sparse(other), range(5), shift=shift)
    wanted, wanted_both = slowly(one.astype(np.float64), np.roll(other, -shift, axis=0).astype(np.float64))
    np.testing.assert_array_equal(both, wanted_both)
    np.testing.assert_allclose(correlation, wanted, atol=2e-5)


def test_what_is_read_is_what_fires_on_counted_tokens() -> None:
    model, saes = model_of("llama"), [random_sae(model_of("llama"), f"{layer}.res", seed=layer) for layer in (0, 1)]
    read = read_firings(model, saes, CORPUS, **ASKED)
    rows = [batch for batch, _ in zip(model.rows(CORPUS, length=16, batch=2), range(3), strict=False)]
    wanted: list[list[np.ndarray[Any, Any]]] = [[], []]
    for batch in rows:
        captured = model.capture(batch, ["0.res", "1.res"])
        for at, sae in enumerate(saes):
            wanted[at].append(features64(sae, captured[sae.site].rows).numpy())
    for found, truth in zip(read.firings, wanted, strict=True):
        dense = np.concatenate(truth)
        assert found.tokens == len(dense) >= ASKED["tokens"] - 16
        np.testing.assert_array_equal(found.counts, (dense > 0).sum(0))
        np.testing.assert_allclose(found.means * found.counts, dense.sum(0), rtol=1e-4)
        for feature in (0, 7, 47):
            tokens, values = found.of(feature)
            np.testing.assert_array_equal(tokens, np.flatnonzero(dense[:, feature]))
            np.testing.assert_allclose(values, dense[tokens, feature], rtol=1e-3, atol=1e-4)
    assert read.dropped["first"] == 6


def test_a_reading_that_was_stopped_goes_on_without_reading_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, saes = model_of("llama"), [planted_sae(site="0.res").sae, planted_sae(site="1.res", seed=1).sae]
    whole = read_firings(model, saes, CORPUS, **ASKED)
    calls: list[int] = []
    capture = type(model).capture

    def stopping(self: Any, rows: Any, *args: Any, **options: Any) -> Any:
        calls.append(len(rows))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return capture(self, rows, *args, **options)

    monkeypatch.setattr(type(model), "capture", stopping)
    with pytest.raises(KeyboardInterrupt), keeping(tmp_path / "kept", {"tokens": 60}) as kept:
        read_firings(model, saes, CORPUS, kept=kept, **ASKED)
    assert len(list((tmp_path / "kept").iterdir())) == 1
    with keeping(tmp_path / "kept", {"tokens": 60}) as kept:
        again = read_firings(model, saes, CORPUS, kept=kept, **ASKED)
    monkeypatch.undo()
    total = len(list((tmp_path / "kept").iterdir()))
    assert len(calls) == 2 + total - 1
    assert again.dropped == whole.dropped
    for found, wanted in zip(again.firings, whole.firings, strict=True):
        for name in ("sizes", "ids", "values"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


def test_what_was_kept_of_another_reading_or_is_damaged_is_one_line(tmp_path: Path) -> None:
    model, saes = model_of("llama"), [planted_sae(site="0.res").sae]
    with keeping(tmp_path / "kept", {"tokens": 60}) as kept:
        read_firings(model, saes, CORPUS, kept=kept, **ASKED)
        with pytest.raises(AccessError, match="another process"), keeping(tmp_path / "kept", {}):
            pass
    with (
        pytest.raises(InputError, match="another tokens: go on with the same settings, or remove it"),
        keeping(tmp_path / "kept", {"tokens": 61}) as kept,
    ):
        read_firings(model, saes, CORPUS, kept=kept, **ASKED)
    first = tmp_path / "kept" / "000000.safetensors"
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    with (
        pytest.raises(CorruptFile, match="remove it to begin anew"),
        keeping(tmp_path / "kept", {"tokens": 60}) as kept,
    ):
        read_firings(model, saes, CORPUS, kept=kept, **ASKED)


def test_text_without_a_token_that_counts_is_one_line() -> None:
    model = model_of("gpt2")  # no BOS: the first position is the text's own
    with pytest.raises(InputError, match="gave no token that counts, in rows of 16: give more text"):
        read_firings(model, [planted_sae(site="0.res").sae], Corpus.of(["a"]), **ASKED)
