"""Crosscoders: planted features of several sites are found and told apart by site, and what was trained is what is read
back, from tensors and from a model alike."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import typecheck
from gemscope.activations.harvest import harvest
from gemscope.activations.site import Site
from gemscope.errors import CorruptFile, FileError, InputError, Mismatch, NotFinite, SAENotFound
from gemscope.features.crosscoder import Crosscoder
from gemscope.features.files.crosscoder import load_crosscoder, save_crosscoder
from gemscope.features.load import load_sae
from gemscope.features.sae import SAE, SAEInfo
from gemscope.testing import tiny_model
from gemscope.text.corpus import Corpus
from gemscope.training.config import TrainConfig
from gemscope.training.fold import Scale
from gemscope.training.train import train
from planted import Given, beside, best_cosines, directions, strengths

SITES = (Site(3, "res"), Site(7, "res"))
WIDTHS = (24, 32)
SHARED, OWN = 24, 12
"""Features of both sites, and of each alone: 0 to 23 shared, 24 to 35 the first site's, 36 to 47 the second's."""
LENGTH = 5.0
"""How much longer everything is at the second site."""


def rows(count: int, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Of both sites side by side, each about a mean of its own; and the directions at each."""
    features = SHARED + 2 * OWN
    first, second = (directions(features, width, 10 + width) for width in WIDTHS)
    first[SHARED + OWN :] = 0
    second[SHARED : SHARED + OWN] = 0
    f = strengths(count, features, 3.0, seed)
    return beside([f @ first + 2, LENGTH * (f @ second) - 4]), [first, LENGTH * second]


@dataclass(frozen=True)
class Trained:
    crosscoder: Crosscoder
    folder: Path
    x: Tensor
    directions: list[Tensor]

    @property
    def matched(self) -> tuple[Tensor, Tensor]:
        """Of each planted feature, its cosine with the best learned one, in units of the sites; and which that is."""
        scale = torch.cat(
            [torch.full((width,), length) for width, length in zip(WIDTHS, self.crosscoder.lengths, strict=True)]
        )
        return best_cosines(self.crosscoder.sae.W_dec / scale, beside(self.directions) / scale)


@pytest.fixture(scope="module", params=["jumprelu", "standard"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    x, truth = rows(60_000, seed=0)
    options: dict[str, Any] = {"sparsity": 0.1} if request.param == "standard" else {"threshold_lr": 1.0}
    config = TrainConfig(
        architecture=request.param,
        width=64,
        target_l0=3.0,
        rows=200_000,
        batch=256,
        lr=2e-3,
        anneal=0.5,
        patience=20_000,
        **options,
    )
    folder = tmp_path_factory.mktemp("run")
    with typecheck.unchecked():  # a thousand steps
        made = train(Given(x, x, SITES, SITES, (WIDTHS, WIDTHS)), config, to=folder)
    assert isinstance(made, Crosscoder)
    return Trained(made, folder / "sae", rows(4000, seed=1)[0], truth)


def captured(x: Tensor) -> dict[Site, Tensor]:
    return dict(zip(SITES, x.split(list(WIDTHS), dim=-1), strict=True))


# --- what it finds --------------------------------------------------------------------------------------------------


def test_planted_features_are_found_and_both_sites_explained(trained: Trained) -> None:
    assert trained.matched[0].mean() > 0.95
    assert trained.crosscoder.encode(captured(trained.x)).mean_l0 < 5
    out = trained.crosscoder(captured(trained.x))
    for site, x in captured(trained.x).items():
        fvu = (out[site] - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
        assert fvu < 0.05


def test_shared_features_and_a_sites_own_are_told_apart_by_their_norms(trained: Trained) -> None:
    shares = trained.crosscoder.shares[trained.matched[1]]
    assert torch.allclose(shares.sum(-1), torch.ones(len(shares)))
    first = shares[:, 0]
    shared, own, others = first.split([SHARED, OWN, OWN])
    assert ((shared - 0.5).abs() < 0.15).all()
    assert own.min() > 0.65
    assert own.mean() > 0.9
    assert others.max() < 0.35
    assert others.mean() < 0.1


def test_the_histogram_of_shares_has_three_heaps(trained: Trained) -> None:
    counts = trained.crosscoder.histogram(bins=5)
    assert counts.shape == (2, 5)
    assert counts.sum(-1).tolist() == [64, 64]
    assert (counts[:, [0, 2, 4]] > counts[:, [1, 3]].amax(-1, keepdim=True)).all()
    assert torch.equal(counts[0], counts[1].flip(0))  # of two sites: what one does not have the other has


def test_the_sites_lengths_are_those_of_the_rows(trained: Trained) -> None:
    for length, x in zip(trained.crosscoder.lengths, captured(rows(60_000, seed=0)[0]).values(), strict=True):
        assert length == pytest.approx((x - x.mean(0)).pow(2).sum(-1).mean().sqrt().item(), rel=1e-4)


def test_every_site_has_its_equal_part_of_the_loss() -> None:
    x = rows(2000, seed=2)[0]
    scaled = Scale.of(x, WIDTHS)(x)
    for part in scaled.split(list(WIDTHS), dim=-1):
        assert part.pow(2).sum(-1).mean().item() == pytest.approx(0.5, rel=1e-4)


# --- what it computes -----------------------------------------------------------------------------------------------


def test_it_sums_over_its_sites(trained: Trained) -> None:
    """By the formula, site by site, in float64."""
    made, x = trained.crosscoder, trained.x[:500]
    sae = made.sae
    pre = sae.b_enc.double()
    for part, weights in zip(x.split(list(WIDTHS), -1), sae.W_enc.split(list(WIDTHS), 0), strict=True):
        pre = pre + part.double() @ weights.double()
    threshold = torch.zeros(64) if sae.threshold is None else sae.threshold
    clear = ((pre - threshold).abs() > 1e-4).all(-1)
    f = pre * (pre > threshold.clamp(min=0))
    found = made.encode(captured(x))
    torch.testing.assert_close(found.to_dense()[clear].double(), f[clear], rtol=1e-4, atol=1e-4)
    out = made.decode(found)
    for site, weights, bias in zip(SITES, sae.W_dec.split(list(WIDTHS), 1), sae.b_dec.split(list(WIDTHS)), strict=True):
        torch.testing.assert_close(out[site][clear].double(), f[clear] @ weights.double() + bias, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(made.direction(5, site), weights[5])


def test_what_does_not_fit_is_refused_in_one_line(trained: Trained) -> None:
    made, given = trained.crosscoder, captured(trained.x[:3])
    with pytest.raises(Mismatch, match=r"no activations of 7\.res among 3\.res: capture all of 3\.res, 7\.res"):
        made.encode({SITES[0]: given[SITES[0]]})
    with pytest.raises(Mismatch, match=r"\(3, 24\) at 7\.res: expected 32"):
        made.encode({SITES[0]: given[SITES[0]], SITES[1]: given[SITES[0]]})
    with pytest.raises(Mismatch, match="each of the tokens"):
        made.encode({SITES[0]: given[SITES[0]], SITES[1]: given[SITES[1]][:2]})
    with pytest.raises(NotFinite):
        made.encode({SITES[0]: given[SITES[0]] * torch.nan, SITES[1]: given[SITES[1]]})
    with pytest.raises(Mismatch, match=r"no site 9\.res in a crosscoder over 3\.res, 7\.res"):
        made.direction(0, "9.res")
    with pytest.raises(InputError, match="different sites"):
        Crosscoder(made.sae, (SITES[0], SITES[0]), made.widths, made.lengths)
    with pytest.raises(Mismatch, match=r"24 \+ 31"):
        Crosscoder(made.sae, SITES, (24, 31), made.lengths)
    for sites, widths, lengths in (
        *(((), (), ()), (SITES, (0, 56), made.lengths)),
        *((SITES, made.widths, (1.0, wrong)) for wrong in (0.0, -1.0, math.inf, math.nan)),
    ):
        with pytest.raises(InputError, match="all must be above 0"):
            Crosscoder(made.sae, sites, widths, lengths)


def test_a_feature_that_writes_nothing_belongs_nowhere() -> None:
    sae = SAE(5, 3)
    sae.W_dec[0, :2] = 1.0
    made = Crosscoder(sae, SITES, (2, 3), (1.0, 1.0))
    assert made.shares.tolist() == [[1, 0], [0, 0], [0, 0]]
    assert made.histogram(2).tolist() == [[0, 1], [1, 0]]


# --- on disk --------------------------------------------------------------------------------------------------------


def test_it_is_read_back_as_it_was(trained: Trained) -> None:
    made, back = trained.crosscoder, load_crosscoder(trained.folder)
    assert (back.sites, back.widths, back.sae.gate) == (made.sites, made.widths, made.sae.gate)
    assert back.lengths == pytest.approx(made.lengths, rel=1e-12)
    assert back.sae.digest == made.sae.digest
    assert back.info.model == "planted"
    assert back.info.declared_l0 == made.info.declared_l0
    assert back.info.metadata == json.loads(json.dumps(made.info.metadata))
    assert "3.res (24), 7.res (32)" in repr(back)


def test_load_sae_says_how_a_crosscoder_is_loaded(trained: Trained) -> None:
    with pytest.raises(FileError, match="load it with load_crosscoder"):
        load_sae(trained.folder)


def test_folders_that_are_no_crosscoder_are_refused_in_one_line(tmp_path: Path) -> None:
    sae = SAE(5, 3, gate="topk", k=2, info=SAEInfo(model="planted", metadata={"note": "n"}))
    good = tmp_path / "good"
    save_crosscoder(Crosscoder(sae, SITES, (2, 3), (1.0, 2.0)), good)
    assert load_crosscoder(good).sae.k == 2
    with pytest.raises(SAENotFound, match=r"it has no cfg\.json"):
        load_crosscoder(tmp_path)
    for change, kind, message in (
        ({"architecture": "jumprelu"}, FileError, "load it with load_sae"),
        ({"format": 2}, FileError, "of format 2, this version reads 1"),
        ({"gate": "spiral"}, CorruptFile, '"gate" is "spiral", expected "jumprelu", "relu" or "topk"'),
        ({"gate": []}, CorruptFile, '"gate" is an empty list'),
        ({"k": "2"}, CorruptFile, '"k" is "2", expected a whole number'),
        ({"metadata": {"l0": {}}}, CorruptFile, r'"metadata\.l0" is an empty object'),
        ({"k": 9}, CorruptFile, "k=9 of 3 features"),
        ({"sites": [{"site": "3.res"}]}, CorruptFile, "width.* is missing"),
        ({"sites": "3.res"}, CorruptFile, '"sites" is "3.res", expected a list'),
        ({"sites": [{"site": "3.rest", "width": 5, "length": 1}]}, CorruptFile, "no site called 'rest'"),
        ({"sites": [{"site": "3.res", "width": 5, "length": 0}]}, CorruptFile, "is 0, expected a number above 0"),
        ({"sites": [{"site": "3.res", "width": 4, "length": 1}]}, CorruptFile, "sites of widths 4"),
    ):
        folder = tmp_path / re.sub(r"\W", "-", str(change))
        save_crosscoder(Crosscoder(sae, SITES, (2, 3), (1.0, 2.0)), folder)
        config = json.loads((folder / "cfg.json").read_text())
        (folder / "cfg.json").write_text(json.dumps(config | change))
        with pytest.raises(kind, match=message) as raised:
            load_crosscoder(folder)
        assert "\n" not in str(raised.value)


# --- from a model ---------------------------------------------------------------------------------------------------


def test_it_is_trained_on_a_harvest_and_reads_what_a_model_gives(tmp_path: Path) -> None:
    model = tiny_model("llama")
    store = harvest(model, Corpus.sample(), ["0.res", "2.mlp"], to=tmp_path / "acts", tokens=4096, length=64)
    config = TrainConfig(width=80, target_l0=8.0, rows=120 * 256, batch=256, lr=2e-3, anneal=0.3)
    made = train(store, config, to=tmp_path / "run", site=["0.res", "2.mlp"], held_out=store)
    assert isinstance(made, Crosscoder)
    found = model.capture(["the cat sat on the mat and", "another text"], made.sites)
    features = made.encode(found)
    assert features.counted is not None
    assert torch.equal(features.counted, found["0.res"].counted & found["2.mlp"].counted)
    out = made.decode(features)
    for site in made.sites:
        assert out[site].shape == found[site].values.shape
    # As good on the model's own activations as on the rows that were stored.
    x = {site: store[site][slice(0, 2000)] for site in made.sites}
    again = made(x)
    fvu = sum(((again[site] - x[site]).pow(2).sum() / (x[site] - x[site].mean(0)).pow(2).sum()).item() for site in x)
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert fvu / 2 == pytest.approx(last["held_out_fvu"], rel=0.1)
    assert last["held_out_fvu"] < 0.7
    # Cut off and gone on with: the same sites, or not at all.
    with pytest.raises(Mismatch, match="other settings or data"):
        train(store, config, to=tmp_path / "run", site=["2.mlp", "0.res"])


def test_counted_is_left_out_where_no_mask_is_given(trained: Trained) -> None:
    found = trained.crosscoder.encode({str(site): x for site, x in captured(trained.x[:4]).items()})
    assert found.counted is None
    assert replace(found, counted=torch.ones(4, dtype=torch.bool)).mean_l0 == found.mean_l0


def test_a_token_counts_where_it_does_at_all_sites() -> None:
    """As where the sites were captured one by one, and other tokens left out at each."""
    model = tiny_model("llama")
    sites = (Site(0, "res"), Site(2, "mlp"))
    made = Crosscoder(SAE(64, 5), sites, (32, 32), (1.0, 1.0))
    found = model.capture(["the cat sat on the mat and"], sites)
    given, masks = {}, []
    for nth, site in enumerate(sites):
        masks.append((torch.arange(found[site].counted.numel()) % (nth + 2) == 0).view_as(found[site].counted))
        given[site] = replace(found[site], counted=masks[nth])
    counted = made.encode(given).counted
    assert counted is not None
    assert torch.equal(counted, masks[0] & masks[1])
    assert 0 < counted.sum() < masks[1].sum() < masks[0].sum()
