"""Relatives from the shell: of planted layers, as SAEs and as atlases that were described of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

import gemscope as gs
from gemscope.cli import options
from gemscope.cli import relatives as command
from gemscope.cli.main import main
from gemscope.testing import PlantedLayers, planted_layers

ASKED = ["--tokens", "800", "--length", "64", "--effect-tokens", "64"]


@pytest.fixture(scope="module")
def here() -> PlantedLayers:
    return planted_layers(layers=3)


@pytest.fixture
def folders(here: PlantedLayers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """SAEs on the disk; whatever model is named is theirs, and so is the text."""

    def model_of(*_: object) -> gs.LanguageModel:
        return here.model

    def corpus_of(*_: object) -> gs.Corpus:
        return here.corpus

    monkeypatch.setattr(options, "model_of", model_of)
    monkeypatch.setattr(options, "corpus_of", corpus_of)
    for at, sae in enumerate(here.saes):
        gs.save_sae(sae, tmp_path / f"sae-{at}")
    return [str(tmp_path / f"sae-{at}") for at in range(3)]


def described(here: PlantedLayers, folders: list[str], to: Path) -> list[str]:
    found = []
    for at, folder in enumerate(folders):
        sae = gs.load_sae(folder)
        config = gs.DescribeConfig(length=64, before=10, after=4, top=3, each=1, effect=0)
        gs.describe(here.model, sae, here.corpus, to=to / f"atlas-{at}", tokens=400, config=config, map=False).close()
        found.append(str(to / f"atlas-{at}"))
    return found


def test_saes_are_related_printed_and_written_out(
    here: PlantedLayers, folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pairs.csv"
    assert main(["relatives", *folders, *ASKED, "-o", str(out)]) == 0
    told = capsys.readouterr().out
    assert "0.res and 1.res: the pairs that correlate most" in told
    assert "beyond what 1 in 100 reach by chance" in told
    assert str(out) in told
    assert not (tmp_path / "pairs.csv.unfinished").exists()
    with out.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    right = [row for row in rows if row["nearest"] == "True"]
    for row in right:
        at, to = (int(row[site].split(".")[0]) for site in ("site", "of_site"))
        assert here.names[at][int(row["feature"])] == here.names[to][int(row["relative"])]
    assert len(right) > 40
    assert main(["relatives", *folders, *ASKED, "-o", str(tmp_path / "pairs.json")]) == 0
    assert len(json.loads((tmp_path / "pairs.json").read_text())["pairs"]) == len(rows)


def test_features_are_told_one_by_one(
    here: PlantedLayers, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    feature = here.names[1].index("lasting 0")
    asked = ["--features", str(feature), "--of", "1.res"]
    assert main(["relatives", *folders, *ASKED, *asked]) == 0
    assert f"feature {feature} of 1.res · no label; there from 0.res to 2.res" in capsys.readouterr().out
    assert main(["relatives", *folders, *ASKED, *asked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["features"][0]["life"] == {"born": "0.res", "gone": "2.res"}
    assert set(told["features"][0]["relatives"]) == {"0.res", "2.res"}
    assert [one["site"] for one in told["saes"]] == ["0.res", "1.res", "2.res"]


def test_atlases_keep_what_was_found_and_it_is_on_their_pages(
    here: PlantedLayers, folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    atlases = described(here, folders, tmp_path)
    with gs.Atlas(atlases[2]) as atlas:
        atlas.explain(here.names[2].index("lasting 0"), "it lasts")
    assert main(["relatives", *atlases, *ASKED]) == 0
    told = capsys.readouterr().out
    assert [f"{folder}/relatives.safetensors" in told for folder in atlases] == [True] * 3
    with gs.Atlas(atlases[1]) as atlas:
        page = atlas[here.names[1].index("lasting 0")]
        assert [one.site for one in page.related] == ["0.res", "2.res"]
        (on,) = [one for one in page.related[1].features if one.nearest]
        assert (on.feature, on.label) == (here.names[2].index("lasting 0"), "it lasts")
        assert page.life is not None
        assert (page.life.born, page.life.gone) == ("0.res", "2.res")


def test_what_was_stopped_goes_on(
    here: PlantedLayers, folders: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gemscope.features import relating

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "pairs.csv"
    monkeypatch.setattr(relating, "measure", stopped)
    assert main(["relatives", *folders[:2], *ASKED, "-o", str(out)]) == 130
    kept = tmp_path / "pairs.csv.unfinished"
    assert kept.is_dir()
    assert not out.exists()
    monkeypatch.undo()
    monkeypatch.setattr(options, "model_of", lambda *_: here.model)
    monkeypatch.setattr(options, "corpus_of", lambda *_: here.corpus)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(command, "_model", lambda _: "tiny")
    encode = gs.SAE.encode
    monkeypatch.setattr(gs.SAE, "encode", never)
    assert main(["relatives", *folders[:2], *ASKED, "-o", str(out)]) == 0
    monkeypatch.setattr(gs.SAE, "encode", encode)
    assert out.is_file()
    assert not kept.exists()


def test_one_sae_alone_is_wrong_usage(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["relatives", folders[0]])
    assert "give two atlases or SAEs at least" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["one", "two", "-o", "pairs.txt"], "written as .csv or .json"),
        (["one", "two", "--features", "a"], "expected whole numbers parted by commas"),
        (["no/such/sae", "no/such/other", "--offline"], "no/such/sae"),
    ],
)
def test_a_mistake_is_one_line(
    folders: list[str], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["relatives", *words]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
