"""`gemscope steer`: both texts and all units, sweeps, every way to edit, and mistakes in one line."""

import json
from collections.abc import Iterator

import pytest

import gemscope as gs
from gemscope.cli.main import main
from gemscope.edits.ways import WAYS

QUICK = ["--max-new-tokens", "3", "-n", "2"]


@pytest.mark.usefixtures("at_hand")
def test_the_shell_shows_both_texts_and_all_units(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["steer", "2510=2max", "I live in", *QUICK]) == 0
    out = capsys.readouterr().out
    for said in ("default", "steered", "add feature 2510", "raw = 2 × max", "× median norm", "588,653"):
        assert said in out


@pytest.mark.usefixtures("at_hand")
def test_the_shell_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["steer", "smollm2", "smollm2", "2510=0.5norm", "3978=30raw", "I live in", *QUICK, "--json", "--noise"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["edits"]) == 2
    assert found["strengths"][0]["of_norm"] == pytest.approx(0.5)
    assert found["strengths"][1]["raw"] == 30
    assert all(unit is not None for strength in found["strengths"] for unit in strength.values())
    assert len(found["pairs"]) == 2
    assert found["controls"][0]["pairs"][0]["default"]["text"] == found["pairs"][0]["default"]["text"]
    assert found["units"]["tokens"] == 588_653


@pytest.mark.usefixtures("at_hand")
def test_the_shell_sweeps(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    page = f"{tmp_path}/sweep.html"
    words = ["steer", "2510", "I live in", "--sweep", "0,2", "--random-feature", "--html", page, *QUICK]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "logit lens" in out
    assert "control" in out
    with open(page, encoding="utf-8") as file:
        text = file.read()
    assert text.count("<svg") == 3
    assert "default-src 'none'" in text
    assert main([*words[:-6], "--target", " time", "--json", *QUICK]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"] == [" time"]
    assert [one["strength"] for one in found["responses"]] == [0, 2]
    assert found["responses"][0]["target_logit_change"] == 0
    assert found["responses"][0]["texts"] == found["unedited"]["texts"]


@pytest.mark.usefixtures("at_hand")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["99999=2", "I live in"], "no feature 99999: this SAE has features 0 to 8191"),
        (["2510=nan", "I live in"], "2510=nan: 'nan' is no strength"),
        (["2510=2Max", "I live in"], "'2Max' is no strength"),
        (["2510=abc", "I live in"], "'abc' is no strength"),
        (["2510", "I live in", "--how", "scale"], "needs a factor"),
        (["2510=2", "2510=3", "I live in"], "named twice"),
        (["2510=2", ""], "the prompt is empty"),
        (["2510=2", "I live in", "-n", "0"], "n=0"),
        (["2510=2", "I live in", "--max-new-tokens", "100000"], "do not fit"),
        (["2510=2", "I live in", "--how", "ablate"], "takes no strength"),
        (["2510=2", "I live in", "--how", "scale", "--noise"], "noise can only be added"),
        (["2510=2raw", "I live in", "--how", "scale"], "has no unit"),
        (["2510=0", "I live in", "--sweep", "1,2"], "cannot be swept"),
        (["2510", "I live in", "--sweep", "1,2", "--target", " a wormhole"], "tokens to"),
        (["2510=2", "I live in", "--atlas", "/nowhere/atlas"], "/nowhere/atlas"),
    ],
)
def test_a_mistake_in_the_shell_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["steer", *words]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["I live in"], "no feature"),
        (["2510=2", "I", "live"], "needs quotes"),
        (["smollm2", "2510=2", "I live in"], "go together"),
        (["2510=2", "I live in", "--sweep", "a,b"], "no list of strengths"),
        (["2510=2", "I live in", "--noise", "--random-feature"], "not allowed with"),
    ],
)
def test_wrong_usage_is_told_apart_from_mistakes(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["steer", *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("at_hand")
def test_a_feature_that_never_fires_asks_for_raw_units(capsys: pytest.CaptureFixture[str], dead: int) -> None:
    assert main(["steer", f"{dead}=2max", "I live in"]) == 1
    assert "raw units" in capsys.readouterr().err
    assert main(["steer", f"{dead}=30", "I live in", *QUICK]) == 0
    assert "30 raw" in capsys.readouterr().out


@pytest.fixture(scope="module")
def dead() -> Iterator[int]:
    from gemscope.atlas.bundled import BUNDLED

    with gs.Atlas(BUNDLED) as atlas:
        yield next(one.index for one in atlas if one.dead)


@pytest.mark.usefixtures("at_hand")
@pytest.mark.parametrize("how", WAYS)
def test_every_way_to_edit_can_be_asked_for(how: str, capsys: pytest.CaptureFixture[str]) -> None:
    feature = {"ablate": "2510", "project": "2510=0", "scale": "2510=3"}.get(how, "2510=1max")
    assert main(["steer", feature, "In October", "--how", how, "-n", "1", "--max-new-tokens", "3", "--json"]) == 0
    assert "2510" in json.loads(capsys.readouterr().out)["edits"][0]


def test_the_shell_and_the_browser_steer_alike_where_nothing_is_said() -> None:
    import argparse

    from gemscope.app.requests import Steering
    from gemscope.cli import steer
    from gemscope.cli.steer import _read
    from gemscope.edits import defaults

    parser = argparse.ArgumentParser()
    steer.add_to(parser.add_subparsers())
    args = parser.parse_args(["steer", "5", "I live in"])
    asked = Steering(features=(5,))
    (row,) = asked.rows
    assert _read(args)[2] == {5: row[1]} == {5: defaults.STRENGTH}
    assert (args.temperature, args.seed, args.max_new_tokens, args.how, args.at) == (
        asked.temperature,
        asked.seed,
        asked.tokens,
        asked.how,
        asked.at,
    )
    assert asked.n == defaults.SAMPLES
