"""`gemscope train`: where the rows come from, sweeps, what is said on the way; and the report and the card of a run, which
show every figure and run nobody else's markup."""

from __future__ import annotations

import html.parser
import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import gemscope as gs
from gemscope.activations import writer as writers
from gemscope.activations.store import Store
from gemscope.cli import learn
from gemscope.cli.bars import Bars
from gemscope.cli.main import main
from gemscope.errors import CorruptFile, NotFound
from gemscope.progress import silent
from gemscope.testing import tiny_model
from gemscope.training.config import TrainConfig
from gemscope.training.train import train
from lessons import planted, store_of

RECIPE = Path(__file__).parents[2] / "recipes" / "jumprelu.toml"
SMALL = [f"--set={one}" for one in ("width=32", "rows=1_920", "batch=64", "target_l0=4", "log_every=5", "lr=3e-3")]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    rows, _ = planted(1500, d=12, features=20, active=2, seed=0)
    return store_of(3 * rows, tmp_path_factory.mktemp("store") / "acts")


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


# --- the command ----------------------------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_one_line_before_anything_is_read(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--device", "cuda:99"], ["--sae-device", "cuda:99"]):
        assert main(["train", str(store.folder), "-o", str(tmp_path / "a"), *SMALL, *words]) == 1
        told = capsys.readouterr()
        assert told.out == ""
        assert re.fullmatch(r"gemscope: device 'cuda:99' cannot be used: .*; here there is .*cpu\n", told.err)
    assert not list(tmp_path.rglob("state-*"))


def test_where_training_happens_is_said_by_one_word_or_two(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def noted(source: object, configs: object, **options: Any) -> None:
        asked.append(options["device"])
        raise NotFound("enough is known")

    monkeypatch.setattr("gemscope.training.train.sweep", noted)
    monkeypatch.setattr(learn.options, "model_of", lambda args, name, progress: tiny_model("llama"))
    stream, run = ["--stream", "tiny", "sample", "--site", "1.res"], ["-o", str(tmp_path / "a")]
    for words in (
        [str(store.folder)],
        [str(store.folder), "--device", "cpu"],
        [str(store.folder), "--device", "mps", "--sae-device", "cpu"],
        [*stream, "--device", "cpu"],  # the model's; the SAE goes beside it
        [*stream, "--device", "cuda:0", "--sae-device", "cuda:1"],
    ):
        assert main(["train", *words, *run]) == 1
    assert asked == ["auto", "cpu", "cpu", "auto", "cuda:1"]


def test_a_site_s_folder_a_recipe_and_settings_make_a_run(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "a"
    words = ["train", f"{store.folder}/3.res", str(RECIPE), "-o", str(run), *SMALL, "--held-out", str(store.folder)]
    assert main([*words, "--set", "architecture=batchtopk", "--set", "matryoshka=0.25,0.5"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert re.search(
        r"32 features at 3\.res: L0 4\.0 \(4 aimed at\), FVU 0\.\d{4}, dead .* on 1,500 held-out rows", told.out
    )
    assert f"report {run}/report.html, card {run}/sae/README.md, log {run}/log.jsonl" in told.out
    assert f"Next: how good is it?  gemscope score planted {run}/sae" in told.out
    sae = gs.load_sae(run / "sae")
    settings: Any = sae.info.metadata["training"]
    assert (settings["architecture"], settings["matryoshka"], settings["lr"]) == ("batchtopk", [0.25, 0.5], 3e-3)
    assert (run / "report.html").exists()
    assert "32 features" in (run / "sae" / "README.md").read_text()


def test_damaged_shards_are_left_out_on_request_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers, "_SHARD", 5_000)
    rows, _ = planted(1500, d=12, features=20, active=2, seed=0)
    several = store_of(3 * rows, tmp_path / "acts", piece=500)
    shards = sorted((several.folder / "3.res").glob("*.safetensors"))
    assert len(shards) == 3
    shards[1].write_bytes(b"half")
    words = ["train", str(several.folder), "-o", str(tmp_path / "run"), *SMALL]
    assert main(words) == 1
    assert re.match(r"gemscope: .*3\.res/00000-01\.safetensors is damaged: ", capsys.readouterr().err)
    with pytest.warns(UserWarning, match=r"3\.res/00000-01\.safetensors is damaged: its rows are left out"):
        assert main([*words, "--skip-corrupt"]) == 0
    assert gs.load_sae(tmp_path / "run" / "sae").info.metadata["rows_harvested"] == 1000


def test_a_sweep_is_a_folder_for_every_combination(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(store.folder), "-o", str(tmp_path), *SMALL]
    sweep = ["--sweep", "target_l0=2,4", "--sweep", "architecture=jumprelu,batchtopk"]
    assert main([*words, *sweep, "--json"]) == 0
    told = said(capsys)["runs"]
    assert list(told) == [
        "target_l0=2,architecture=jumprelu",
        "target_l0=2,architecture=batchtopk",
        "target_l0=4,architecture=jumprelu",
        "target_l0=4,architecture=batchtopk",
    ]
    for name, one in told.items():
        assert one["sae"] == str(tmp_path / name / "sae")
        assert f"architecture={one['config']['architecture']}" in name
        assert one["training"]["l0"] == pytest.approx(float(name[10]), rel=0.1)
        assert (tmp_path / name / "report.html").exists()
    assert main([*words, *sweep]) == 0  # again: all are finished, and are told of once more
    told_again = capsys.readouterr().out
    assert f"gemscope score planted '{tmp_path}/*/sae'" in told_again


def test_json_says_where_everything_lies(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(store.folder), "-o", str(tmp_path), *SMALL, "--json"]) == 0
    told = said(capsys)
    for name in ("sae", "report", "card", "log"):
        assert Path(told[name]).exists()
    assert (told["site"], told["d_sae"], told["training"]["rows"]) == ("3.res", 32, 1920)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--set", "target_l1=4"], "--set has no meaning for 'target_l1': did you mean 'target_l0'?"),
        (["--sweep", "targetl0=4,5"], "--sweep has no meaning for 'targetl0': did you mean 'target_l0'?"),
        (["--sweep", "batch=32,64"], "batch differs (32, and 64 of 'batch=64')"),
        (["--sweep", "width"], "--sweep width: expected NAME=VALUE"),
        (["--set", "width"], "--set width: expected NAME=VALUE"),
        (["--sweep", "width=32", "--sweep", "width=64"], "one --sweep for each setting"),
        (["--set", "width=many"], '--set: field "width" is "many", expected a whole number from 1'),
        (["--set", f"width={'9' * 400}"], '"width" is a number of many digits, expected a whole'),
        (["--set", f"width={'9' * 9000}"], "expected a whole number"),
        (["--set", "matryoshka=[1e308, 0.5]"], "expected a number above 0 and below 1"),
        (["--set", f"lr={'[' * 9000}"], "expected a number"),
        (["--set", "skip=true"], "skip=true with an SAE"),
        (["--site", "4.res"], "no 4.res"),
        (["--writes", "4.mlp"], "no 4.mlp"),
        (["--log", "mlflow"], "no logger 'mlflow'"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], expected: str, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(store.folder), "-o", str(tmp_path / "run"), *SMALL, *words]) == 1
    told = capsys.readouterr()
    assert told.err.startswith("gemscope: ")
    assert told.err.count("\n") == 1
    assert expected in told.err
    assert told.out == ""


def test_a_site_is_named_once(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"{store.folder}/3.res", "-o", str(tmp_path), "--site", "4.res"]) == 1
    assert "name the site once" in capsys.readouterr().err
    assert main(["train", "--stream", "smollm2", "sample", "-o", str(tmp_path)]) == 1
    assert "--stream without --site" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["a", "b", "c"], ["--stream", "m", "c", "a", "b"]])
def test_too_many_words_or_none_is_wrong_usage(words: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["train", *words, "-o", "run"])
    assert raised.value.code == 2


@pytest.mark.usefixtures("at_hand")
def test_a_stream_needs_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 60)
    words = ["train", "--stream", "smollm2", str(text), "--site", "1.res", "-o", str(tmp_path / "run"), "--buffer=256"]
    assert main([*words, *SMALL, "--set", "rows=256", "--set", "architecture=batchtopk", "--json"]) == 0
    told = said(capsys)
    assert told["site"] == "1.res"
    assert gs.load_sae(told["sae"]).info.model is not None


def test_settings_are_read_as_a_recipe_has_them() -> None:
    for text, value in (
        ("4", 4),
        ("1e-3", 1e-3),
        ("12_000", 12_000),
        ("true", True),
        ("topk", "topk"),
        (".1", 0.1),
        ("1.", 1.0),
        ("0.25,0.5", [0.25, 0.5]),
        ("[0.25, 0.5]", [0.25, 0.5]),
        ("1.res", "1.res"),
    ):
        found = learn._value(text)
        assert found == value
        assert type(found) is type(value)


def test_beside_the_bar_stand_the_figures_of_one_sae_and_the_range_of_several() -> None:
    heard: list[str] = []
    watch = learn._said(Bars(silent, heard.append))
    watch("a", {"step": 5, "loss": 0.5, "l0": 20.0, "fvu": 0.2, "silent": 0.01, "dense": 0.0, "held_out_fvu": 0.25})
    assert heard[-1] == "loss 0.500  L0 20.0  FVU 0.200  held out 0.250  silent 1.0%  dense 0.0%"
    watch("b", {"step": 5, "loss": 0.3, "l0": 50.0, "fvu": 0.1, "silent": 0.01, "dense": 0.0})
    assert (
        heard[-1] == "loss 0.300 to 0.500  L0 20.0 to 50.0  FVU 0.100 to 0.200  held out 0.250  silent 1.0%  dense 0.0%"
    )
    watch("a", {"step": 10, "loss": 0.4, "l0": 20.0, "fvu": 0.2, "silent": 0.01, "dense": 0.0})
    assert "held out 0.250" in heard[-1]  # what is measured rarely stays


def test_in_a_terminal_the_figures_are_drawn(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["train", str(store.folder), "-o", str(tmp_path), *SMALL, "--json"]) == 0
    assert "FVU 0." in capsys.readouterr().err


# --- the report -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a"
    config = TrainConfig(
        width=32, target_l0=4.0, rows=100 * 64, batch=64, lr=3e-3, log_every=1, auxiliary=0.03, patience=64
    )
    train(store, config, to=folder, held_out=store)
    return folder


def test_the_report_has_every_curve_and_the_figures_that_were_measured(run: Path) -> None:
    report = gs.training_report(run)
    page = report.to_html()
    for heading in (
        "Loss and its parts", "Features per token", "Unexplained variance", "Features that fire never or always",
        "Thresholds", "Window occupancy", "Spread of pre-activations", "Gradient", "Learning rate", "Speed",
        "How often features fire",
    ):  # fmt: skip
        assert heading in page
    assert page.count('<svg class="chart') == 11
    for name in ("penalty", "auxiliary", "target", "held out", "dense, held out"):
        assert f">{name}<" in page
    assert f"{report.figures['held_out']['fvu']:.4f}" in page
    assert f"{report.figures['training']['fvu']:.4f}" in page
    assert page.count("<circle") < 2000  # a hundred lines of log are thinned out
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_the_figures_are_those_of_the_sae_that_was_saved(run: Path, store: Store) -> None:
    report = gs.training_report(run)
    sae = gs.load_sae(report.sae)
    rows = store["3.res"][slice(0, 1500)]
    features = sae.encode(rows)
    error = (rows - sae.decode(features)).double().pow(2).sum() / (rows - rows.mean(0)).double().pow(2).sum()
    held = report.figures["held_out"]
    assert held["rows"] == 1500
    assert held["l0"] == pytest.approx(features.mean_l0, rel=1e-3)
    assert held["fvu"] == pytest.approx(error.item(), rel=1e-3)
    fired = torch.bincount(features.features.long(), minlength=32)
    assert held["dead"] == pytest.approx((fired == 0).double().mean().item(), abs=0.04)
    assert sum(held["densities"]["counts"]) == pytest.approx((fired > 0).sum().item(), abs=1)
    assert report.lines[-1]["held_out_l0"] == pytest.approx(report.figures["l0_as_trained"], rel=0.1)


def test_the_card_has_the_figures_their_conditions_and_a_recipe_that_can_be_run(run: Path) -> None:
    report = gs.training_report(run)
    card = report.to_card()
    assert f"| FVU | {report.figures['held_out']['fvu']:.4f} | {report.figures['training']['fvu']:.4f} |" in card
    assert "| rows | 1,500 | 6,400 |" in card
    assert "attention sinks" in card
    assert "corpus digest" in card
    recipe = re.search(r"```toml\n(.*?)```", card, re.DOTALL)
    assert recipe
    assert TrainConfig.of(tomllib.loads(recipe[1])["train"]) == TrainConfig.of(dict(report.config))
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code
    compile(code[1], "card", "exec")
    report.write()
    assert report.card.read_text() == card
    assert gs.load_sae(run / "sae").site == gs.Site.parse("3.res")  # a card beside the weights is no harm


class Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>`|{{7*7}}\u202e\n# head'


def test_hostile_names_stay_text(run: Path) -> None:
    report = gs.training_report(run)
    data = {"model": EVIL, "corpus": EVIL, EVIL: EVIL}
    hostile = replace(report, figures={**report.figures, "data": data, "held_out_data": data, "site": [EVIL]})
    tags = Tags()
    tags.feed(hostile.to_html())
    plain = Tags()
    plain.feed(report.to_html())
    assert not [tag for tag, attributes in tags.found if tag == "img" or "onerror" in attributes]
    assert sum(tag == "script" for tag, _ in tags.found) == sum(tag == "script" for tag, _ in plain.found)
    assert "\u202e" not in hostile.to_html()
    card = hostile.to_card()
    assert "\u202e" not in card
    assert "\n# head" not in card
    for line in card.splitlines():
        outside = "".join(line.split("`")[::2])
        assert "<script" not in outside or line.startswith(("base_model: ", "model = "))  # JSON strings


def test_a_run_that_ended_far_from_its_target_says_so(run: Path) -> None:
    report = gs.training_report(run)
    off = replace(report, figures={**report.figures, "l0_as_trained": 9.0})
    assert off.off_target
    assert "L0 was 9.0 when training ended; 4 was aimed at" in off.to_html()
    near = replace(report, figures={**report.figures, "l0_as_trained": 4.2})
    assert "when training ended; 4" not in near.to_html()


def test_a_run_that_is_not_finished_has_no_report(run: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no finished training run"):
        gs.training_report(tmp_path)
    for text in ("{", "[]", "{}"):
        (tmp_path / "figures.json").write_text(text)
        with pytest.raises(CorruptFile, match="start the run again"):
            gs.training_report(tmp_path)
