"""Transcoders from rows to the running model: planted features and the affine map beside them are found, and what was
trained on a harvest stands in for the MLP that it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import typecheck
from gemscope.activations.harvest import harvest
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.activations.store import Store
from gemscope.edits.splice import Replace
from gemscope.errors import InputError
from gemscope.features.files.saving import save_sae
from gemscope.features.load import load_sae
from gemscope.features.sae import SAE
from gemscope.reports.scoring import score
from gemscope.testing import tiny_model
from gemscope.text.corpus import Corpus
from gemscope.training.config import TrainConfig
from gemscope.training.train import train
from planted import Given, best_cosines, directions, strengths

READS, WRITES = Site(7, "transcoder"), Site(7, "mlp")
D_IN, D_OUT, FEATURES = 32, 20, 48

INWARD = directions(FEATURES, D_IN, 1)
OUTWARD = 7 * directions(FEATURES, D_OUT, 2)
SKIP = torch.randn(D_OUT, D_IN, generator=torch.Generator().manual_seed(3)) * 7 / 3 / D_IN**0.5


def rows(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """x holds features and noise; y the same features along other directions, and an affine map of x."""
    f = strengths(count, FEATURES, 1.5, seed)
    f = (f > 0) * (1.5 + 0.3 * (f - 1).clamp(-1, 1))
    noise = torch.randn(count, D_IN, generator=torch.Generator().manual_seed(100 + seed))
    x = 3 * (f @ INWARD + 0.25 * noise)
    return x + 1, f @ OUTWARD + x @ SKIP.T + 5


def fvu(out: Tensor, y: Tensor) -> float:
    return ((out - y).pow(2).sum() / (y - y.mean(0)).pow(2).sum()).item()


def linear_fvu(x: Tensor, y: Tensor, others: tuple[Tensor, Tensor]) -> float:
    """Of the best affine map of these rows, on others."""

    def with_one(rows: Tensor) -> Tensor:
        return torch.cat([rows, torch.ones(len(rows), 1)], dim=-1).double()

    best = torch.linalg.lstsq(with_one(x), y.double()).solution
    return fvu(with_one(others[0]) @ best, others[1].double())


# --- planted --------------------------------------------------------------------------------------------------------


CONFIG = TrainConfig(
    width=64, target_l0=1.5, rows=250_000, batch=256, lr=2e-3, anneal=0.5, threshold_lr=1.0, patience=20_000, skip=True
)


@pytest.fixture(scope="module", params=["jumprelu", "batchtopk"])
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SAE:
    x, y = rows(60_000, seed=0)
    run = tmp_path_factory.mktemp("run")
    config = CONFIG.changed({"architecture": request.param})
    with typecheck.unchecked():  # a thousand steps
        train(Given(x, y, (READS,), (WRITES,), ((D_IN,), (D_OUT,))), config, to=run)
    return load_sae(run / "sae")


def test_it_explains_what_no_affine_map_can(planted: SAE) -> None:
    x, y = rows(5000, seed=1)
    assert planted.is_transcoder
    linear = linear_fvu(*rows(60_000, seed=0), (x, y))
    assert linear > 0.25
    assert fvu(planted(x), y) < 0.11 < 0.4 * linear
    assert planted.encode(x).mean_l0 == pytest.approx(1.5, rel=0.05)


def test_features_and_the_map_beside_them_are_those_that_were_planted(planted: SAE) -> None:
    assert planted.W_skip is not None
    inward, _ = best_cosines(planted.W_enc.T, INWARD)
    outward, which = best_cosines(planted.W_dec, OUTWARD)
    assert inward.mean() > 0.8
    assert outward.mean() > 0.93
    # One feature for each, that reads the planted direction and writes the planted one.
    assert len(which.unique()) > 0.9 * FEATURES
    both = torch.nn.functional.cosine_similarity(planted.W_enc.T[which], INWARD, dim=-1)
    assert both.mean() > 0.8
    assert (planted.W_skip - SKIP).norm() < 0.3 * SKIP.norm()


# --- from a model and back into it ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    model: LanguageModel
    store: Store
    sae: SAE


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("transcoder")
    model = tiny_model("llama")
    sites = ["1.transcoder", "1.mlp"]
    store = harvest(model, Corpus.sample(), sites, to=folder / "acts", tokens=12_000, length=64)
    config = TrainConfig(width=128, target_l0=16.0, rows=120_000, batch=256, lr=3e-3, anneal=0.3, skip=True)
    train(store, config, to=folder / "run", site="1.transcoder", writes="1.mlp")
    return Trained(model, store, load_sae(folder / "run" / "sae"))


def test_it_is_a_transcoder_of_the_two_sites(trained: Trained) -> None:
    sae = trained.sae
    assert (str(sae.site), str(sae.site_out)) == ("1.transcoder", "1.mlp")
    assert sae.W_skip is not None
    assert sae.info.model == "tiny-llama"
    x, y = (trained.store[site][slice(0, 4000)] for site in ("1.transcoder", "1.mlp"))
    assert fvu(sae(x), y) < 0.5 * linear_fvu(x, y, (x, y))


def test_in_the_place_of_the_mlp_the_model_computes_what_it_says(trained: Trained) -> None:
    model, sae = trained.model, trained.sae
    assert sae.site_out is not None
    text = "The cat sat on the mat and looked at the other cat."
    before = model.capture(text, ["1.transcoder", "1.mlp"], logits=True)
    with model.edited(Replace(sae, every_token=True)):
        after = model.capture(text, ["1.transcoder", "1.mlp"], logits=True)
    assert torch.equal(before["1.transcoder"].values, after["1.transcoder"].values)
    torch.testing.assert_close(after["1.mlp"].values, sae(before["1.transcoder"]), rtol=1e-4, atol=1e-4)
    assert before.logits is not None
    assert after.logits is not None
    assert not torch.equal(before.logits, after.logits)


def test_it_is_better_in_the_place_of_the_mlp_than_nothing_or_the_mean(trained: Trained) -> None:
    told = score(trained.model, trained.sae, Corpus.sample(), tokens=4096, loss_tokens=2048, length=64)
    assert told.site == "1.transcoder → 1.mlp"
    assert told.fvu < 0.5
    assert told.l0 == pytest.approx(16, rel=0.15)
    assert told.kl is not None
    assert told.zero_kl is not None
    assert told.mean_kl is not None
    assert told.kl < 0.5 * min(told.zero_kl, told.mean_kl)


def test_a_folder_of_it_written_again_is_the_same(trained: Trained, tmp_path: Path) -> None:
    assert load_sae(save_sae(trained.sae, tmp_path / "again")).digest == trained.sae.digest


# --- what cannot go together ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "writes", "message"),
    [
        ({"skip": True}, None, "skip=true with an SAE that writes what it reads"),
        ({"skip": True}, "1.transcoder", "skip=true with an SAE that writes what it reads"),
        ({"architecture": "topk"}, "1.mlp", "architecture='topk' with a transcoder"),
        ({"pre_bias": True}, "1.mlp", "pre_bias=true with a transcoder"),
    ],
)
def test_what_could_not_be_exported_or_would_mean_nothing_is_refused_before_it_begins(
    trained: Trained, changes: dict[str, object], writes: str | None, message: str, tmp_path: Path
) -> None:
    config = TrainConfig(width=64, target_l0=4.0, rows=1024, batch=256).changed(changes)
    with pytest.raises(InputError, match=message) as raised:
        train(trained.store, config, to=tmp_path / "run", site="1.transcoder", writes=writes)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()
