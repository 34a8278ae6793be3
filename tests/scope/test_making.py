"""A scope is whole, in Gemma Scope's layout, and the same whoever made it: one process or several, with much room or
little, killed on the way or not; and what fails at one site stops no other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from gemscope.activations import harvest as harvests
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.errors import InputError, Mismatch, NotFinite, StorageFull
from gemscope.features.load import load_sae
from gemscope.features.scope_manifest import read_scope
from gemscope.reports.scoring import score
from gemscope.scope import worker as workers
from gemscope.scope.making import plan_scope
from gemscope.scope.plan import Plan
from gemscope.scope.table import ScopeTable
from gemscope.training.config import TrainConfig
from gemscope.training.train import train
from gemscope.world import World
from scopes import EIGHT, ROOM, TWO, contents, corpus, made, model, recipe

pytestmark = pytest.mark.filterwarnings("ignore:.*(aimed at|run away)")
SAE_FILES = {"cfg.json", "sae_weights.safetensors", "README.md", "run.json", "log.jsonl", "score.json"}


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> ScopeTable:
    return made(tmp_path_factory.mktemp("scope") / "eight", EIGHT)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("scope") / "two").folder


def test_every_sae_is_in_its_place_and_opens_with_its_site_and_l0(eight: ScopeTable) -> None:
    manifest = read_scope(eight.folder)
    assert len(manifest.saes) == 32
    assert manifest.failed == ()
    assert [one.path for one in manifest.saes[:4]] == [
        f"transcoder/layer_0/width_{width}/average_l0_{l0}" for width in (48, 64) for l0 in (4, 8)
    ]
    for one in manifest.saes:
        assert {path.name for path in (eight.folder / one.path).iterdir()} == SAE_FILES
        sae = load_sae(eight.folder / one.path)
        assert (str(sae.site), str(sae.site_out), sae.d_sae) == (one.site, one.site_out, one.width)
        assert sae.info.declared_l0 == pytest.approx(one.l0, abs=0.01)
        assert (sae.W_skip is not None) == one.site.endswith("transcoder")
    assert not eight.folder.with_name("eight.partial").exists()
    assert {path.name for path in eight.folder.iterdir()} == {"scope.json", "res", "mlp", "transcoder"}


def test_an_sae_of_a_scope_is_the_one_that_train_makes_of_the_same_rows(eight: ScopeTable, tmp_path: Path) -> None:
    text = corpus().split(0.2)[0]
    store = harvests.harvest(model(), text, ["1.res"], to=tmp_path / "rows", length=32, batch=8)
    config = TrainConfig(rows=384, batch=64, checkpoint_every=3, log_every=3, width=64, target_l0=8)
    alone = train(store, config, to=tmp_path / "run")
    there = load_sae(eight.folder / "res/layer_1/width_64/average_l0_8")
    for name, weight in alone.state_dict().items():
        assert torch.equal(weight, there.state_dict()[name]), name


def test_the_scores_of_a_group_are_those_of_each_by_itself_on_text_that_nothing_was_trained_on(
    eight: ScopeTable,
) -> None:
    trained_on, held_out = corpus().split(0.2)
    assert not {one.text for one in trained_on} & {one.text for one in held_out}
    for path in ("res/layer_1/width_64/average_l0_8", "transcoder/layer_0/width_48/average_l0_4"):
        sae = load_sae(eight.folder / path)
        alone = score(model(), sae, held_out, tokens=200, loss_tokens=60, length=32).to_dict()
        there = json.loads((eight.folder / path / "score.json").read_text())
        assert there["sae"] == path
        for name in ("l0", "fvu", "dead", "delta_loss", "kl", "loss_recovered_mean", "tokens"):
            assert there[name] == alone[name], name


def test_with_little_disk_there_are_more_passes_and_the_same_bytes(eight: ScopeTable, tmp_path: Path) -> None:
    plans: list[Plan] = []
    # 3,000 tokens of 32 float16 numbers take 76 bytes each.
    little = made(tmp_path / "little", EIGHT, disk="2.2MB", told=plans.append)
    assert len(plans[0].passes) > 1
    assert contents(little.folder) == contents(eight.folder)


def test_a_scope_that_is_there_is_given_back_at_once(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(two)
    monkeypatch.setattr(workers, "harvest", None)
    assert len(made(two).scope) == 2
    assert contents(two) == before


def test_another_recipe_text_or_model_is_refused_and_so_is_a_folder_of_something_else(
    two: Path, tmp_path: Path
) -> None:
    with pytest.raises(Mismatch, match="a scope of another recipe: name another folder"):
        made(two, TWO + "\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="mine exists and is no scope"):
        made(tmp_path / "mine")


def test_what_was_begun_is_gone_on_with_by_the_same_alone(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **options: Any) -> None:
        raise StorageFull("no room left on the disk")

    with monkeypatch.context() as patch:
        patch.setattr(workers, "sweep", full)
        with pytest.raises(StorageFull):
            made(tmp_path / "scope")
    with pytest.raises(Mismatch, match="begun with another recipe"):
        made(tmp_path / "scope", TWO + "\n")
    with pytest.raises(
        InputError, match=r"disk of 99\.0 MB for a scope that is being made with .*remove .*budget\.json"
    ):
        made(tmp_path / "scope", disk="99MB")
    monkeypatch.setattr(workers, "harvest", None)  # its rows are there
    assert contents(made(tmp_path / "scope").folder) == contents(two)


# --- failures -------------------------------------------------------------------------------------------------------


def test_a_site_that_fails_is_listed_with_the_reason_and_stops_no_other(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by numbers that float16 does not hold: the pass is tried in halves until the site is alone."""
    capture = LanguageModel.capture

    def broken(self: LanguageModel, text: Any, sites: Sequence[Site], **options: Any) -> Any:
        if Site.parse("1.mlp") in [*sites]:
            raise NotFinite("activations at 1.mlp are NaN")
        return capture(self, text, sites, **options)

    monkeypatch.setattr(LanguageModel, "capture", broken)
    three = TWO.replace('"1.res", ', '"0.res", "1.res", "2.mlp", ')
    table = made(tmp_path / "scope", three)
    assert [str(one.site) for one in table.scope] == ["0.res", "1.res", "2.mlp"]
    assert [(one.site, one.width, one.l0, one.reason) for one in table.failed] == [
        ("1.transcoder", 48, 4, "activations at 1.mlp are NaN")
    ]
    assert "1 failed" in str(table)
    assert "1.transcoder, 48 features, L0 4: activations at 1.mlp are NaN" in str(table)
    assert read_scope(table.folder).failed == table.failed
    kept = contents(table.folder)
    same = "res/layer_1/width_48/average_l0_4/sae_weights.safetensors"
    assert kept[same] == contents(two)[same]

    assert made(table.folder, three).failed == table.failed  # it is not tried again unless asked for
    monkeypatch.undo()
    again = made(table.folder, three, retry=True)
    assert again.failed == ()
    assert contents(again.folder) == contents(made(tmp_path / "never", three).folder)


def test_of_the_settings_of_a_site_one_that_fails_stops_no_other(tmp_path: Path) -> None:
    text = (
        TWO.replace('"1.res", "1.transcoder"', '"1.res"')
        + '\n[[saes]]\nsites = ["1.res"]\nwidths = [64]\nl0s = [4]\ntrain = { lr = 1e30 }\n'
    )
    table = made(tmp_path / "scope", text)
    assert [one.address for one in table.scope] == [str(tmp_path / "scope/res/layer_1/width_48/average_l0_4")]
    assert [(one.site, one.width) for one in table.failed] == [("1.res", 64)]
    assert "lr" in table.failed[0].reason


def test_an_sae_that_cannot_be_scored_stays_and_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = workers.score_some

    def broken(model: Any, scope: Path, paths: Sequence[str], *given: Any, **options: Any) -> None:
        if any(path.startswith("res") for path in paths):
            raise RuntimeError("a kernel without a name")
        real(model, scope, paths, *given, **options)

    monkeypatch.setattr(workers, "score_some", broken)
    table = made(tmp_path / "scope")
    assert {str(one.site): one.figures is None for one in table.scope} == {"1.transcoder": False, "1.res": True}
    assert [(one.site, one.reason) for one in table.failed] == [("1.res", "a kernel without a name")]


# --- workers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3])
def test_one_worker_of_several_goes_on_alone_where_no_other_comes(size: int, two: Path, tmp_path: Path) -> None:
    table = made(tmp_path / "scope", world=World(size - 1, size))
    assert contents(table.folder) == contents(two)


# --- the plan -------------------------------------------------------------------------------------------------------


def test_the_plan_is_told_before_anything_is_made(tmp_path: Path) -> None:
    told: list[tuple[Plan, bool]] = []
    made(tmp_path / "scope", told=lambda plan: told.append((plan, (tmp_path / "scope").exists())), price=2.0)
    [(plan, there)] = told
    assert not there
    assert len(plan.aims) == 2
    assert 0 < plan.hours.all < 1
    assert plan.dollars == pytest.approx(2 * plan.hours.all)
    assert "2 SAEs of 3 sites in 1 pass of the model" in str(plan)


def test_a_plan_makes_nothing(tmp_path: Path) -> None:
    plan = plan_scope(model(), corpus(), recipe(EIGHT), to=tmp_path / "scope", workers=2, **ROOM)
    assert len(plan.aims) == 32
    assert 0 < plan.wall == plan.hours.all / 2
    assert list(tmp_path.iterdir()) == []


def test_of_a_scope_that_is_there_nothing_is_planned(two: Path) -> None:
    plan = plan_scope(model(), corpus(), recipe(TWO), to=two, **ROOM)
    assert plan.passes == ()
    assert plan.hours.all == 0
