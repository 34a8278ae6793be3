"""The effect of a site from the shell: measured or given while an atlas is made, put into one that is there, searched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemscope.activations.model import LanguageModel
from gemscope.atlas.reader import Atlas
from gemscope.cli import options
from gemscope.cli.main import main
from gemscope.features.effect import Effect
from gemscope.features.sae import SAE
from gemscope.testing import planted_sae, tiny_model
from texts import varied

MODEL, PLANTED = tiny_model("llama"), planted_sae(site="1.res", seed=3).sae
SIZES = ["--length", "24", "--before", "10", "--after", "4", "--top", "3", "--each", "1"]


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file of text; whatever is named, the model and the SAE are the tiny ones."""

    def model_of(*_: object) -> LanguageModel:
        return MODEL

    def sae_of(*_: object) -> SAE:
        return PLANTED

    monkeypatch.setattr(options, "model_of", model_of)
    monkeypatch.setattr(options, "sae_of", sae_of)
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(varied(0)))
    return str(path)


def test_an_atlas_is_given_an_effect_when_it_is_made_or_later(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, bare, given = (str(tmp_path / name) for name in ("whole", "bare", "given"))
    assert main(["describe", "tiny", "tiny", text, "-o", whole, "--effect-tokens", "48", *SIZES]) == 0
    assert main(["describe", "tiny", "tiny", text, "-o", bare, "--effect-tokens", "0", *SIZES]) == 0
    with Atlas(whole) as first, Atlas(bare) as second:
        assert first.manifest.effect is not None
        assert second.manifest.effect is None
        expected = [first[feature].writes for feature in range(len(first))]
    file = f"{whole}/effect.safetensors"
    assert main(["describe", "tiny", "tiny", text, "-o", given, "--effect", file, *SIZES]) == 0
    assert main(["atlas", "effect", bare, "tiny", "tiny", "--file", file]) == 0
    for folder in (given, bare):
        with Atlas(folder) as atlas:
            assert [atlas[feature].writes for feature in range(len(atlas))] == expected
    capsys.readouterr()
    assert main(["atlas", "effect", bare, "tiny", "tiny", text, "--tokens", "72", "-k", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["effect"]["tokens"] == Effect.load(f"{bare}/effect.safetensors").of.tokens > 48 - 12
    with Atlas(bare) as atlas:
        assert {len(atlas[feature].writes.promoted) for feature in range(len(atlas))} == {3}  # type: ignore[union-attr]
        assert told["told"] == sum(page.promotes is not None for page in atlas)


def test_a_token_is_searched_for_and_where_there_is_no_effect_that_is_said(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "atlas")
    assert main(["describe", "tiny", "tiny", text, "-o", folder, "--effect-tokens", "0", *SIZES]) == 0
    capsys.readouterr()
    assert main(["search", "--promotes", "sun", "--atlas", folder]) == 0
    assert "this atlas has no measured effect: none was asked for" in capsys.readouterr().out
    assert main(["atlas", "effect", folder, "tiny", "tiny", text, "--tokens", "96"]) == 0
    with Atlas(folder) as atlas:
        pages = [page.writes for page in atlas if page.writes and page.writes.agreed]
        token = next(one.token for page in pages for one in page.promoted if one.token.strip().isalpha())
        expected = [one.summary.feature for one in atlas.promoting(token, limit=20)]
    capsys.readouterr()
    assert main(["search", "--promotes", token, "--atlas", folder, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["feature"] for one in found["promoting"]] == expected
    assert found["labels"] == found["tokens"] == []
    assert main(["search", "--promotes", token, "--atlas", folder]) == 0
    assert "That promote such a token" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["search", "sea", "--promotes", token, "--atlas", folder])
    with pytest.raises(SystemExit):
        main(["atlas", "effect", folder, "tiny"])


def test_whether_features_write_what_they_promote_is_kept_with_the_atlas_and_told(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "atlas")
    assert main(["describe", "tiny", "tiny", text, "-o", folder, "--effect-tokens", "48", *SIZES]) == 0
    with Atlas(folder) as atlas:
        first, second = (page.index for page, _ in zip((one for one in atlas if not one.dead), range(2), strict=False))
    capsys.readouterr()
    asked = ["atlas", "output", folder, "tiny", "tiny", "--features", f"{first},{second}", "--json"]
    assert main(asked) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["measured"], told["known"]) == (2, 2)
    assert main(asked) == 0
    assert json.loads(capsys.readouterr().out)["measured"] == 0
    assert main(["feature", str(first), "--atlas", folder]) == 0
    assert "turned up to its max" in capsys.readouterr().out
    with Atlas(folder) as atlas:
        output = atlas[first].output
        assert output is not None
        assert told["write"] == sum(one.writes is True for one in atlas.outputs().values())
    assert main(["atlas", "output", folder, "tiny", "tiny", "--features", "x"]) == 1
    assert main(["atlas", "output", folder, "tiny", "tiny", "--features", "99999"]) == 1
