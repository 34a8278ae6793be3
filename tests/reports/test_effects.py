"""What features promote by the effect of their site, in a table, in JSON and in the shell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from by_hand import random_sae
from gemscope.activations.model import LanguageModel
from gemscope.cli.main import main
from gemscope.features.effect import Effect, Measured, effect
from gemscope.features.files.saving import save_sae
from gemscope.features.logit_lens import promoted
from gemscope.reports.effects import effects
from gemscope.testing import tiny_model
from gemscope.text.corpus import Corpus

CORPUS = Corpus.of("the sun and the moon in the air, a light in the sea and on the land of the other morning")


def test_it_stands_beside_the_direct_path() -> None:
    model = tiny_model("llama")
    sae = random_sae(model)
    measured = effect(model, "1.res", CORPUS, tokens=24, length=12)
    found = effects(model, sae, measured, [3, 7], k=5)
    assert [one.effect for one in found.features] == list(measured.promoted(model, sae, [3, 7], k=5))
    for one in found.features:
        assert one.direct == tuple(model.strings(promoted(model, sae, one.effect.feature, k=5).tolist()))
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [one["feature"] for one in facts["features"]] == [3, 7]
    assert facts["features"][0]["promoted_tokens"] == list(found.features[0].effect.promoted_tokens)
    text = str(found)
    assert "no label" in text
    assert "this position and later ones" in text
    assert "later positions" in str(effects(model, sae, measured, [3], part="later"))


def test_of_text_the_features_alone_are_measured_and_say_the_same() -> None:
    model = tiny_model("llama")
    sae = random_sae(model)
    whole = effects(model, sae, effect(model, "1.res", CORPUS, tokens=24, length=12), [3, 7], k=5)
    few = effects(model, sae, CORPUS, [3, 7], k=5, tokens=24, length=12)
    for one, other in zip(few.features, whole.features, strict=True):
        assert (one.effect.promoted, one.effect.suppressed) == (other.effect.promoted, other.effect.suppressed)
        assert one.effect.promoted_values == pytest.approx(other.effect.promoted_values, abs=1e-5)
        assert one.effect.agreement == pytest.approx(other.effect.agreement, abs=1e-4)


def test_where_there_is_no_direct_path_the_effect_is_there_all_the_same() -> None:
    model = tiny_model("llama")
    sae = random_sae(model, "1.transcoder")
    found = effects(model, sae, effect(model, "1.transcoder", CORPUS, tokens=24, length=12), [3])
    assert found.features[0].direct is None
    assert "only the MLP's answer" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["features"][0]["direct_tokens"] is None


def test_a_transcoder_s_effect_is_that_of_where_it_writes() -> None:
    model = tiny_model("llama")
    sae = random_sae(model, "1.transcoder", site_out="1.mlp")
    found = effects(model, sae, effect(model, "1.mlp", CORPUS, tokens=24, length=12), [3])
    assert found.features[0].direct is not None


def test_hostile_tokens_are_shown_and_not_obeyed() -> None:
    model = tiny_model("llama")
    measured = effect(model, "1.res", CORPUS, tokens=24, length=12)
    found = str(effects(model, random_sae(model), measured, [3], k=300))
    assert not any(letter in found for letter in "\x1b\x07\r\t\x00")


def test_the_shell_measures_keeps_and_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model("llama")
    model.hf.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    save_sae(random_sae(model), tmp_path / "sae")
    (tmp_path / "text.txt").write_text("the sun and the moon in the air, a light in the sea and on the land " * 3)
    kept = tmp_path / "kept"
    words = ["effect", *(str(tmp_path / name) for name in ("model", "sae", "text.txt")), "--features", "3,7", "-k", "4"]
    words += ["--tokens", "24", "--length", "12", "--file", str(kept), "--json"]
    assert main(words) == 0
    first = json.loads(capsys.readouterr().out)
    whole = Effect.load(kept)
    assert whole.of.tokens == first["effect"]["tokens"]
    assert [one["feature"] for one in first["features"]] == [3, 7]
    assert all(len(one["promoted_tokens"]) == 4 for one in first["features"])
    (tmp_path / "text.txt").write_text("another text, that is not read")
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert main([*words[:-1], "--part", "this"]) == 0
    assert "this position" in capsys.readouterr().out
    (tmp_path / "text.txt").write_text("the sun and the moon in the air, a light in the sea and on the land " * 3)
    at = words.index("--file")
    assert main(words[:at] + words[at + 2 :]) == 0  # nothing is kept: these features alone
    few = json.loads(capsys.readouterr().out)
    assert [one["promoted"] for one in few["features"]] == [one["promoted"] for one in first["features"]]
    for wrong, says in (("3,x", "expected whole numbers"), ("4800", "4800")):
        assert main([*words[:5], wrong, *words[6:]]) == 1
        assert says in capsys.readouterr().err


@pytest.fixture
def kept(bundled_model: LanguageModel, tmp_path: Path) -> Path:
    """An effect of the bundled site that says what the direct path does, and took no time."""
    of = Measured(
        model=bundled_model.name,
        revision=bundled_model.revision,
        site="15.res",
        dtype="float32",
        corpus="none",
        corpus_digest="none",
        length=32,
        halves=(1, 1),
        dropped={},
    )
    matrix = torch.diag(bundled_model.hf.model.norm.weight.float()).expand(2, -1, -1).contiguous()
    return Effect(of=of, this=matrix, later=torch.zeros_like(matrix)).save(tmp_path / "kept")


@pytest.mark.usefixtures("at_hand")
def test_labels_of_the_bundled_atlas_name_features(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["effect", "--features", "263,8029", "--file", str(kept)]) == 0
    found = capsys.readouterr().out
    assert "no label" not in found
    assert "Next: what is that feature?" in found
    assert main(["effect", "--features", "263", "--file", str(kept), "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["features"]
    assert one["promoted_tokens"] == one["direct_tokens"]
