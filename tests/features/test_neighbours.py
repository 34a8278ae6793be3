"""Nearest features by decoder cosine against every pair in float64, and the cosine between encoder and decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import gemscope as gs
from gemscope.errors import InputError
from gemscope.features import neighbours
from gemscope.features.kernels import choice
from gemscope.features.neighbours import closest, encoder_cosines, nearest
from gemscope.features.sae import SAE

_RUNNING = [name for name, load in choice._KNOWN.items() if load(torch.device("cpu")) is not None]


@pytest.fixture(params=_RUNNING, autouse=True)
def kernels(request):
    with choice.using(request.param):
        yield request.param


def directions(features: int = 700, width: int = 48, *, seed: int = 0) -> Tensor:
    """Families of features that share a direction, so that near ones are near."""
    draw = torch.Generator().manual_seed(seed)
    shared = torch.randn(20, width, generator=draw)[torch.randint(20, (features,), generator=draw)]
    return (0.6 * shared + torch.randn(features, width, generator=draw)) * torch.rand(features, 1, generator=draw)


def every_pair(W_dec: Tensor) -> Tensor:
    """Cosines [F, F] in float64; -inf with itself, 0 with a row of zeros."""
    rows = W_dec.double()
    norms = rows.norm(dim=1, keepdim=True)
    units = torch.where(norms > 0, rows / norms, 0.0)
    return (units @ units.T).fill_diagonal_(-torch.inf)


def check(W_dec: Tensor, ids: Tensor, cosines: Tensor, k: int) -> None:
    """Every list is a right one: the cosines are the k largest, and belong to the ids beside them."""
    pairs = every_pair(W_dec)
    expected = torch.zeros(len(W_dec), k, dtype=torch.float64)
    best = pairs.clamp(min=0).topk(min(k, len(W_dec)), dim=1).values
    expected[:, : best.shape[1]] = best
    torch.testing.assert_close(cosines.double(), expected, atol=1e-6, rtol=0)
    known = ids >= 0
    own = pairs.gather(1, ids.clamp(min=0).long())
    torch.testing.assert_close(own[known], cosines[known].double(), atol=1e-6, rtol=0)
    assert (cosines[~known] == 0).all()
    for row in ids.tolist():
        real = [one for one in row if one >= 0]
        assert len(set(real)) == len(real)
        assert row[len(real) :] == [-1] * (k - len(real))


def test_neighbours_are_those_of_all_pairs_in_float64():
    W_dec = directions()
    ids, cosines = nearest(W_dec, 20)
    assert ids.shape == cosines.shape == (700, 20)
    assert (ids.dtype, cosines.dtype) == (torch.int32, torch.float32)
    check(W_dec, ids, cosines, 20)
    exact = every_pair(W_dec).topk(21, dim=1)
    clear = (exact.values.diff(dim=1).abs().min(dim=1).values > 1e-5).nonzero().flatten()
    assert len(clear) > 400
    assert torch.equal(ids[clear].long(), exact.indices[clear, :20])


def test_tiles_and_blocks_change_nothing_but_the_order_of_sums(monkeypatch, kernels):
    W_dec = directions()
    whole = nearest(W_dec, 9)
    monkeypatch.setattr(neighbours, "_TILE", 64 * 48)
    monkeypatch.setattr(neighbours, "_SAMPLE", 16)
    ids, cosines = nearest(W_dec, 9, block=128)
    check(W_dec, ids, cosines, 9)
    torch.testing.assert_close(cosines, whole[1], atol=1e-6, rtol=0)
    if kernels == "native":  # it sums in one order always
        assert torch.equal(ids, whole[0])
        assert torch.equal(cosines, whole[1])


def test_of_equal_cosines_the_lower_id_comes_first(monkeypatch):
    monkeypatch.setattr(neighbours, "_TILE", 64 * 48)
    one = directions(1)
    W_dec = torch.cat([one, -one, one.repeat(298, 1) * 2])  # 0 and 2 to 299 all point one way
    ids, cosines = nearest(W_dec, 5, block=77)
    torch.testing.assert_close(cosines[[0, 2, 299]], torch.ones(3, 5))
    assert ids[0].tolist() == [2, 3, 4, 5, 6]
    assert ids[2].tolist() == [0, 3, 4, 5, 6]
    assert ids[299].tolist() == [0, 2, 3, 4, 5]
    assert ids[1].tolist() == [-1] * 5  # all others are opposite
    assert (cosines <= 1).all()


def test_dead_directions_have_no_neighbours_and_are_nobodys():
    W_dec = directions()
    W_dec[::10] = 0
    ids, cosines = nearest(W_dec, 15)
    assert (ids[::10] == -1).all()
    assert (cosines[::10] == 0).all()
    assert not (ids.remainder(10) == 0)[ids >= 0].any()
    check(W_dec, ids, cosines, 15)
    assert (nearest(torch.zeros(5, 8), 3)[0] == -1).all()


def test_fewer_features_than_were_asked_for_leave_the_rest_empty():
    W_dec = directions(6)
    ids, cosines = nearest(W_dec, 20)
    check(W_dec, ids, cosines, 20)
    assert (ids[:, 5:] == -1).all()
    ids, cosines = nearest(W_dec[:1], 3)
    assert ids.tolist() == [[-1, -1, -1]]


def test_about_as_many_features_as_were_asked_for():
    for features, k in [(2, 1), (3, 1), (2, 4), (3, 4), (4, 4), (5, 4), (6, 4)]:
        W_dec = directions(features).abs()  # all are each other's neighbours
        ids, cosines = nearest(W_dec, k)
        check(W_dec, ids, cosines, k)
        assert (ids >= 0).sum(1).tolist() == [min(k, features - 1)] * features
    assert nearest(W_dec)[0].shape == (6, 20)


def test_a_weak_neighbour_is_found_behind_strong_ones_that_are_too_few(monkeypatch):
    monkeypatch.setattr(neighbours, "_TILE", 0)  # 64 rows at a time
    W_dec = torch.zeros(200, 8)
    W_dec[[0, 1, 2]] = torch.eye(8)[0] + 0.1 * torch.eye(8)[:3]
    W_dec[[70, 150]] = torch.eye(8)[5] + torch.tensor([[0.2], [0.1]]) * torch.eye(8)[0]
    ids, cosines = nearest(W_dec, 6)
    check(W_dec, ids, cosines, 6)
    assert sorted(ids[0].tolist()) == [-1, -1, 1, 2, 70, 150]


def test_lengths_of_directions_do_not_matter():
    W_dec = directions()
    scale = 10.0 ** torch.linspace(-12, 12, len(W_dec))[:, None]
    ids, cosines = nearest(W_dec * scale, 10)
    check(W_dec, ids, cosines, 10)


def test_half_precision_mapped_from_a_file_gives_what_its_numbers_give(tmp_path: Path):
    sae = SAE(48, 700, site="1.res", dtype=torch.float16)
    sae.W_dec.copy_(directions())
    sae.W_enc.copy_(directions(seed=1).T)
    gs.save_sae(sae, tmp_path / "sae")
    loaded = gs.load_sae(tmp_path / "sae", dtype=None)
    assert loaded.W_dec.dtype == torch.float16
    for mapped, plain in zip(nearest(loaded.W_dec), nearest(sae.W_dec.float()), strict=True):
        assert torch.equal(mapped, plain)
    cosines = encoder_cosines(loaded)
    expected = torch.cosine_similarity(sae.W_enc.T.double(), sae.W_dec.double()).float()
    torch.testing.assert_close(cosines, expected, atol=1e-6, rtol=0)


def test_asking_for_no_neighbours_is_refused():
    with pytest.raises(InputError, match="k=0"):
        nearest(directions(5), 0)


def test_the_encoder_cosine_is_one_for_tied_weights_and_nothing_between_widths(monkeypatch):
    monkeypatch.setattr(neighbours, "_TILE", 64 * 48)
    sae = SAE(48, 200, site="1.res")
    sae.W_dec.copy_(directions(200))
    sae.W_enc.copy_(3 * sae.W_dec.T)
    sae.W_enc[:, 5] *= -1
    sae.W_dec[7] = 0
    cosines = encoder_cosines(sae)
    assert cosines is not None
    expected = torch.ones(200)
    expected[5], expected[7] = -1, 0
    torch.testing.assert_close(cosines, expected)
    assert cosines.max() == 1
    sae.W_enc.copy_(-sae.W_dec.T)
    cosines = encoder_cosines(sae)
    assert cosines is not None
    assert cosines.min() == -1  # nothing lies beyond, however sums are rounded
    assert encoder_cosines(SAE(48, 10, 60, site="1.transcoder", site_out="1.mlp")) is None
    assert encoder_cosines(SAE(48, 10, 32, site="1.transcoder", site_out="1.mlp")) is None


@pytest.mark.parametrize("tile", [1 << 24, 48 * 4 * 100])
def test_closest_rows_of_two_matrices_are_those_of_every_pair(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_TILE", tile)
    one, other = directions(300, seed=1), directions(450, seed=2)
    one[7], other[11] = 0, 0
    units = [rows.double() / rows.double().norm(dim=1, keepdim=True).clamp(min=1e-30) for rows in (one, other)]
    cosines = (units[0] @ units[1].T).numpy()
    for found, table in zip(closest(one, other), (cosines, cosines.T), strict=True):
        assert found.values == pytest.approx(table.max(1), abs=1e-6)
        known = np.flatnonzero(found.ids >= 0)
        assert table[known, found.ids[known]] == pytest.approx(table.max(1)[known], abs=1e-6)
        assert [row for row in range(len(table)) if row not in known] == [
            row for row in (7, 11) if not table[row].any()
        ]


def test_features_that_were_shuffled_and_turned_a_little_are_found_again() -> None:
    W_dec = directions(200)
    draw = torch.Generator().manual_seed(5)
    order = torch.randperm(200, generator=draw)
    turned = W_dec[order] * 3 + 0.01 * W_dec.norm(dim=1).mean() * torch.randn(200, 48, generator=draw)
    there, back = closest(W_dec, turned)
    assert order[there.ids].tolist() == list(range(200))
    assert back.ids.tolist() == order.tolist()
