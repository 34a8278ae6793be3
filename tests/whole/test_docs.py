"""What docs/atlas.md says can be done is done as it says; its pictures are there."""

import dataclasses
import functools
import importlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

import gemscope as gs
from gemscope.cli.main import parser

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "atlas.md").read_text(encoding="utf-8")
MEASURES = (ROOT / "docs" / "measures.md").read_text(encoding="utf-8")
EDITS = (ROOT / "docs" / "edits.md").read_text(encoding="utf-8")
SCORE = (ROOT / "docs" / "score.md").read_text(encoding="utf-8")
EFFECT = (ROOT / "docs" / "effect.md").read_text(encoding="utf-8")
RELATIVES = (ROOT / "docs" / "relatives.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
SCOPE = (ROOT / "docs" / "scope.md").read_text(encoding="utf-8")


def _commands() -> Iterator[str]:
    for page in (
        PAGE,
        MEASURES,
        EDITS,
        SCORE,
        TRAINING,
        EFFECT,
        RELATIVES,
        SCOPE,
        (ROOT / "README.md").read_text(encoding="utf-8"),
    ):
        for line in page.replace("\\\n", " ").splitlines():
            if re.match(r" {4}gemscope \w", line):
                yield line.strip()


@pytest.mark.parametrize("command", sorted(set(_commands())))
def test_the_shell_takes_every_command_as_it_is_written(command: str) -> None:
    words = shlex.split(command, comments=True)[1:]
    assert parser().parse_args(words).run


def test_the_python_of_the_relatives_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", RELATIVES, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "page", "exec"), {})
    out = capsys.readouterr().out
    assert "feature 3 of 1.res" in out
    assert re.search(r"^2\.res \d+ ", out, re.MULTILINE)
    assert (tmp_path / "pairs.csv").is_file()


@pytest.fixture
def as_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    at_hand: None,
    little_text: None,
    unchecked: None,
) -> Callable[[str], str]:
    """Runs a page's code as its readers do, in a folder of its own and without the checks of shapes, and gives what it
    prints. Of less text: the tests show that the code runs, not how long it takes.
    """

    def run(code: str) -> str:
        monkeypatch.chdir(tmp_path)
        exec(compile(code, "page", "exec"), {})
        return capsys.readouterr().out

    return run


def test_the_python_of_the_atlas_s_page_runs(
    tmp_path: Path, as_read: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = functools.partial(gs.DescribeConfig, logits=0, neighbours=0, partners=0, effect=0)  # of weights
    monkeypatch.setattr(gs, "DescribeConfig", nothing)
    out = as_read("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)))
    assert "8,192 features" in out
    assert "label='good wishes'" in out
    assert "http://127.0.0.1:" in out
    assert (tmp_path / "my.csv").read_text(encoding="utf-8").count("\n") >= 8192
    assert "5078" in (tmp_path / "some.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_python_of_the_measures_page_finds_what_the_page_says(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    (code,) = re.findall(r"```python\n(.*?)```", MEASURES, re.DOTALL)
    # In a process of its own: without the checks of shapes, which would take longer than the work.
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"1 SAE feature +1\.000 +0\.929 to 1\.000 +1\.000 +3133 \(−\)", ran.stdout)
    assert re.search(r"measured\n +3133 +·opened \(5\) +1\d\.\d+ +\+0\.\d+ +\+\d\.\d+\n", ran.stdout)  # the strongest
    assert "3133 [' opened', ' then']" in ran.stdout
    told = re.findall(r"\| ·(\w+) \| ([\d.]+) \| [+−][\d.]+ \| [+−][\d.]+ \| (\d+) % \|", MEASURES)
    measured = re.findall(r"' (\w+)': ([\d.]+), all 20: .* error's share (\d+)%", ran.stdout)
    assert len(told) == len(measured) == 6
    for (token, correlation, share), (its, likeness, part) in zip(told, measured, strict=True):
        assert token == its
        assert float(correlation) == pytest.approx(float(likeness), abs=0.03)
        assert float(share) == pytest.approx(float(part), abs=3)


def test_the_python_of_the_edits_page_runs(as_read: Callable[[str], str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", EDITS, re.DOTALL)
    line = as_read(code)
    assert re.match(r"add feature 8029 \([\d.]+ raw = [\d.]+ × max = 0.5 × median norm\) at 15.res", line)


def test_the_python_of_the_effect_page_runs(
    tmp_path: Path, as_read: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", EFFECT, re.DOTALL)
    # Of the whole matrix three coordinates, over few tokens: the tests show that the code runs, not how long it takes.
    jacobian = importlib.import_module("gemscope.activations.jacobian")
    backward = jacobian.Through.backward

    def little(self: object, h: Tensor, x: Tensor, advance: Callable[[int], None]) -> Tensor:
        found = torch.zeros(2, h.shape[-1], x.shape[-1], dtype=torch.float64)
        found[:, ::192] = backward(self, h[..., ::192], x, advance)
        return found

    monkeypatch.setattr(jacobian.Through, "backward", little)
    monkeypatch.setattr(jacobian, "_AT_ONCE", 1)
    assert code.count("tokens=64") == 3
    out = as_read(code.replace("tokens=64", "tokens=8, length=6"))
    assert "along 2 directions alone" in out
    assert re.search(r"effect of 15\.res of \S+ on the logits: mean Jacobian over \d+ tokens of texts", out)
    assert out.count("263") >= 3
    assert (tmp_path / "15.effect").exists()


@pytest.mark.slow
def test_the_python_of_the_training_page_runs(tmp_path: Path) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", TRAINING, re.DOTALL))
    less = code.replace("rows=50_000", "rows=5_120").replace("tokens=8_000", "tokens=2_000").replace("4_000", "1_024")
    # In a process of its own, without the checks of shapes: as its readers run it.
    ran = subprocess.run([sys.executable, "-c", less], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "L0" in ran.stdout
    assert "15.transcoder 15.mlp" in ran.stdout
    assert (tmp_path / "runs" / "a" / "sae" / "cfg.json").exists()
    assert (tmp_path / "runs" / "mlp" / "log.jsonl").exists()


def test_the_training_page_names_the_settings_that_there_are() -> None:
    """Every word that it gives a value, and every penalty and architecture of its tables."""
    known = {field.name for field in dataclasses.fields(gs.TrainConfig)}
    given = re.findall(r"`([a-z_]+) = ", TRAINING) + re.findall(r"--set ([a-z_]+)=(?!value)", TRAINING)
    assert set(given) - {"name"} <= known
    config = importlib.import_module("gemscope.training.config")
    tables = set(re.findall(r"^\| `([a-z0-9]+)`", TRAINING, re.MULTILINE))
    assert set(get_args(config.Architecture)) <= tables
    assert set(get_args(config.Penalty)) - {"none"} <= tables


def test_the_figures_of_the_edits_page_are_those_that_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    figures = importlib.import_module("steering_figures")
    result = json.loads(figures.RESULT.read_text(encoding="utf-8"))
    assert figures.with_figures(EDITS, result) == EDITS
    assert figures.picture(result) == figures.PICTURE.read_text(encoding="utf-8")
    for row in result["rows"]:
        finds = figures.detector(row["words"])
        for kind, texts in (("unsteered", result["unsteered"]), ("steered", row["texts"])):
            told = row["found"][kind]
            assert (told["n"], told["hits"]) == (len(texts), sum(bool(finds.search(text)) for text in texts))
            assert told["n"] >= 50
            assert figures.wilson(told["hits"], told["n"]) == pytest.approx((told["low"], told["high"]), abs=1e-4)
    # The list of words comes out of the atlas by a rule, and of nothing that was generated.
    atlas = gs.Atlas(figures.BUNDLED)
    assert [row["words"] for row in result["rows"]] == [figures.words(atlas, feature) for feature in figures.CONCEPTS]
    atlas.close()


def test_an_interval_is_wilson_s() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        figures = importlib.import_module("steering_figures")
    finally:
        sys.path.pop(0)
    low, high = figures.wilson(8, 10)  # Newcombe 1998 gives such values for the score interval
    assert (low, high) == (pytest.approx(0.4902, abs=2e-4), pytest.approx(0.9433, abs=2e-4))
    assert figures.wilson(0, 64)[0] == 0.0
    assert figures.repetition([1, 2, 3, 1, 2, 3]) == pytest.approx(0.25)
    assert figures.repetition([1, 2]) == 0.0


@pytest.mark.parametrize(
    "page", ["README.md", "docs/atlas.md", "docs/edits.md", "docs/relatives.md", "docs/scope.md", "docs/training.md"]
)
def test_pictures_and_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'src="([^"]+\.png)"', text)
    assert found
    for link in found:
        if "://" not in link:
            assert (path.parent / link).exists(), link


def test_every_picture_is_small_and_shown_on_a_page() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
    for picture in (ROOT / "docs" / "pictures").glob("*.png"):
        assert picture.stat().st_size < 150_000
        assert f"pictures/{picture.name}" in pages, picture.name


MIGRATION = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")


def test_every_line_of_ours_on_the_migration_page_runs(tmp_path: Path, as_read: Callable[[str], str]) -> None:
    ours = re.findall(r"```python\n# gemscope\n(.*?)```", MIGRATION, re.DOTALL)
    theirs = re.findall(r"```python\n# (?!gemscope)(.*?)```", MIGRATION, re.DOTALL)
    assert len(ours) == len(theirs) == 10
    less = "\n".join(ours).replace("20_000", "2_048").replace("4_000", "600")
    less = less.replace("tokens=1_000, loss_tokens=500", "tokens=64, loss_tokens=64, length=64")
    out = as_read(less + "\nassert steered.pairs and found and page['maxActApprox'] > 0 and len(said) == 10")
    assert "15.res" in out
    assert "add feature 8029 (80" in out
    assert (tmp_path / "folder" / "cfg.json").exists()
    assert list((tmp_path / "batches").rglob("*"))


def test_the_comparison_says_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    docs = importlib.import_module("docs")
    for page in (ROOT / docs.README, ROOT / docs.COMPARISON):
        monkeypatch.chdir(ROOT)
        assert docs.figures(page) == page.read_text(encoding="utf-8")
    table = docs.measured()
    assert "SAELens 10,200 ms" in table
    assert "SAELens 135" in table  # also where another tool is ahead
