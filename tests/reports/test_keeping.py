"""Figures that stay beside an SAE: `score.json`, and the part of its card that is theirs, of its own text and of text
unlike it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import gemscope as gs
from gemscope.activations import load
from gemscope.cli.main import main
from gemscope.features.scope_manifest import read_scope
from gemscope.reports.grid import grid
from gemscope.scope.making import make_scope, plan_scope
from gemscope.scope.plan import GUESSED
from gemscope.scope.scoring import score_scope
from gemscope.scope.table import ScopeTable, table_of
from gemscope.testing import tiny_model
from gemscope.text.corpus import Corpus
from gemscope.training.config import TrainConfig
from scopes import ROOM, TWO, contents, corpus, made, model, recipe

pytestmark = pytest.mark.filterwarnings("ignore:.*(aimed at|run away)")
OTHER = [f"hours of night, {n} by {n}: nothing sings, nobody thinks" for n in range(30)]
ALONE = "Measured on its own sources alone"


def other() -> Corpus:
    return Corpus.of(OTHER)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> ScopeTable:
    to = tmp_path_factory.mktemp("unlike") / "scope"
    return make_scope(model(), corpus(), recipe(TWO), to=to, unlike=other(), **ROOM)


def test_a_scope_has_figures_on_both_kinds_of_text_in_its_scores_cards_and_table(both: ScopeTable) -> None:
    held_out = corpus().split(0.2)[1]
    for one in read_scope(both.folder).saes:
        place = both.folder / one.path
        there = json.loads((place / "score.json").read_text())
        sae = gs.load_sae(place)
        for text, said in ((held_out, there), (other(), there["unlike"])):
            alone = gs.score(model(), sae, text, tokens=200, loss_tokens=60, length=32)
            for name in ("l0", "fvu", "dead", "delta_loss", "kl", "tokens", "corpus"):
                assert said[name] == getattr(alone, name), (one.path, name)
        card = (place / "README.md").read_text()
        assert ALONE not in card
        assert f"| FVU | {there['fvu']:.4f} | {there['unlike']['fvu']:.4f} |" in card
        assert f"| {there['delta_loss']:+.4f} | {there['unlike']['delta_loss']:+.4f} |" in card
        told = str(both)
        assert f"{there['unlike']['fvu']:.4f}" in told
        assert f"{there['unlike']['delta_loss']:+.4f}" in told
    assert "unlike: L0" in str(both)
    found = grid(both.scope)
    assert found.measured[-2:] == ("unlike_fvu", "unlike_delta_loss")
    assert "FVU on unlike text, the lowest of each site" in str(found)


def test_the_plan_counts_a_second_reading_for_the_second_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemscope.scope.worker.measured", lambda *given, **options: GUESSED)
    one, two = (plan_scope(model(), corpus(), recipe(TWO), unlike=text, **ROOM).hours for text in (None, other()))
    assert two.scoring == 2 * one.scoring > 0
    assert (two.reading, two.training) == (one.reading, one.training)


def test_a_scope_without_unlike_text_says_so_and_scoring_adds_it(both: ScopeTable, tmp_path: Path) -> None:
    """What comes out is what one command makes, to the byte."""
    table = made(tmp_path / "scope")
    [card, *_] = [path.read_text() for path in table.folder.rglob("README.md")]
    assert (
        "On text unlike that it was not measured; `gemscope scope score SCOPE CORPUS --unlike OTHER` does it." in card
    )
    assert "no text unlike that" in str(table)
    how = {"tokens": 200, "loss_tokens": 60, "length": 32}
    score_scope(model(), table.folder, corpus(), unlike=other(), **how)  # type: ignore[arg-type]
    assert contents(table.folder) == contents(both.folder)
    assert str(table_of(table.folder)).replace(str(table.folder), "") == str(both).replace(str(both.folder), "")


def test_figures_of_unlike_text_that_are_there_are_not_measured_again(
    both: ScopeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(both.folder)
    monkeypatch.setattr("gemscope.scope.scoring.score_some", None)
    score_scope(model(), both.folder, corpus(), unlike=other())
    score_scope(model(), both.folder, corpus())
    assert contents(both.folder) == before


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny = tiny_model("llama")
    monkeypatch.setattr(load, "load_model", lambda name, **options: tiny)
    monkeypatch.setattr(tiny.hf.config, "max_position_embeddings", 512)
    store = gs.harvest(tiny, corpus(), ["1.res"], to=tmp_path / "rows", length=32)
    gs.train(store, TrainConfig(width=48, target_l0=4, rows=384, batch=64), to=tmp_path / "run")
    gs.training_report(tmp_path / "run").write()
    for name, texts in (("own", OTHER[:9]), ("other", OTHER[9:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return tmp_path / "run"


def test_a_score_of_a_run_is_kept_in_its_card_where_what_somebody_wrote_stays(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = run / "sae" / "README.md"
    written = card.read_text()
    assert f"{ALONE}. What it is worth on text unlike them" in written
    assert "`gemscope score MODEL SAE CORPUS --unlike OTHER --keep`" in written
    card.write_text(written + "\nWhat I found: a wormhole.\n")
    words = ["score", "tiny", str(run / "sae"), str(tmp_path / "own.jsonl"), "--loss-tokens", "60", "--json"]
    assert main([*words, "--keep"]) == 0
    assert "On text unlike that it was not measured; `gemscope score MODEL SAE" in card.read_text()
    capsys.readouterr()
    assert main([*words, "--unlike", str(tmp_path / "other.jsonl"), "--keep"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert json.loads((run / "sae" / "score.json").read_text()) == said
    now = card.read_text()
    assert f"| FVU | {said['fvu']:.4f} | {said['unlike']['fvu']:.4f} |" in now
    assert "own.jsonl" in now
    assert now.endswith("\nWhat I found: a wormhole.\n")
    before, after = written.split("<!-- figures")[0], written.split("<!-- until here -->")[1]
    assert now.startswith(before)
    assert now.endswith(f"<!-- until here -->{after}\nWhat I found: a wormhole.\n")
    gs.training_report(run).write()  # written anew it has them too
    assert card.read_text() == now.removesuffix("\nWhat I found: a wormhole.\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["smollm2"], "smollm2 is no SAE in a folder here, beside which figures could be kept"),
        ([None, "--every-token"], "--keep with --every-token: such figures mislead"),
    ],
)
def test_what_cannot_be_kept_is_said_before_anything_is_read(
    words: list[str | None], said: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sae, *options = (str(run / "sae") if word is None else word for word in words)
    assert main(["score", "tiny", sae, "sample", "--keep", *options]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_card_of_somebody_s_own_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    (run / "sae" / "README.md").write_text("# Mine\n")
    words = ["score", "tiny", str(run / "sae"), str(tmp_path / "own.jsonl"), "--loss-tokens", "0", "--keep"]
    assert main(words) == 0
    assert (run / "sae" / "README.md").read_text() == "# Mine\n"
    assert json.loads((run / "sae" / "score.json").read_text())["unlike"] is None
