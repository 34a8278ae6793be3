"""Rows without a text, all the way through: every reading goes on behind them, finds what it finds without them, and its
report says how many there were."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gemscope.activations.harvest import harvest
from gemscope.activations.model import LanguageModel
from gemscope.atlas.describe.gather import DescribeConfig
from gemscope.atlas.describe.merge import merge
from gemscope.atlas.describe.run import describe
from gemscope.errors import EmptyText
from gemscope.features.load import load_sae
from gemscope.features.sae import SAE
from gemscope.pages.render import provenance
from gemscope.reports.checking import check
from gemscope.reports.probing import sparse_probe
from gemscope.reports.scoring import score
from gemscope.reports.training import TrainingReport, training_report
from gemscope.testing import planted_sae, tiny_model
from gemscope.text.corpus import Corpus
from gemscope.text.labelled import labelled
from gemscope.training import checkpoint
from gemscope.training.config import TrainConfig
from gemscope.training.source import StreamSource
from gemscope.training.train import train

CONFIG = DescribeConfig(top=3, each=1, before=9, after=4, length=24, batch=2, logits=3, neighbours=2, partners=2)
TEXTS = [f"the {word} and the {word} sang in {word * 3}, of rivers and hours" for word in ("one", "two", "sun") * 4]
ODD: list[object] = [None, 7, "", ["a"], {"b": 1}, " \n", "half \ud83d of a pair"]
PASSED = {"null": 12, "other": 3, "blank": 2, "broken": 1}
TOLD = (
    "18 rows passed over: 2 blank, 12 null or without the field, 3 a number, a list or another thing than text, "
    "1 with half a surrogate pair, which no tokenizer reads"
)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model("gemma2")


@pytest.fixture(scope="module")
def sae() -> SAE:
    return planted_sae(site="1.res", seed=3).sae


@pytest.fixture
def holed(tmp_path: Path) -> Path:
    """Behind each text a null; the other things at the beginning and the end."""
    rows = [row for text in TEXTS[:11] for row in ({"text": text}, {"text": None})]
    lines = [*({"text": odd} for odd in ODD[:4]), *rows, {"text": TEXTS[11]}, *({"text": odd} for odd in ODD[4:])]
    path = tmp_path / "holed.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def whole(tmp_path: Path) -> Corpus:
    path = tmp_path / "whole.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return Corpus.read(path)


class _Stop(Exception):
    pass


@contextmanager
def _stopping(name: str, total: object, unit: str) -> Iterator[object]:
    """Ends the pass in its third batch: those of a piece are kept by then."""
    steps = iter(range(3))

    def advance(step: int = 1) -> None:
        if name == "describe" and next(steps, None) is None:
            raise _Stop

    yield advance


def test_an_atlas_is_that_of_the_other_rows_and_says_how_many_there_were(
    model: LanguageModel, sae: SAE, holed: Path, whole: Corpus, tmp_path: Path
) -> None:
    found = describe(model, sae, [Corpus.read(holed), whole], to=tmp_path / "found", config=CONFIG)
    clean = describe(model, sae, [whole, whole], to=tmp_path / "clean", config=CONFIG)
    assert [dict(part.passed) for part in found.manifest.parts] == [PASSED, {}]
    assert replace(found.manifest.parts[0], passed={}, name="", digest="") == replace(
        clean.manifest.parts[0], name="", digest=""
    )
    for name in ("corpus.npy", "sums.safetensors"):
        assert (found.folder / name).read_bytes() == (clean.folder / name).read_bytes()
    assert TOLD in str(found)
    assert "passed over" not in str(clean)
    assert TOLD in provenance(found.manifest)
    assert dict(merge([found, clean], to=tmp_path / "merged").manifest.parts[0].passed) == PASSED

    # Going on from any piece counts each row once.
    cut = describe(model, sae, [Corpus.read(holed), whole], to=tmp_path / "cut", config=CONFIG, piece=60)
    assert [dict(part.passed) for part in cut.manifest.parts] == [PASSED, {}]
    to, stops = tmp_path / "stopped", 0
    while not to.exists():
        try:
            describe(model, sae, [Corpus.read(holed), whole], to=to, config=CONFIG, piece=60, progress=_stopping)
        except _Stop:
            stops += 1
    assert stops >= 3
    assert (to / "manifest.json").read_bytes() == (cut.folder / "manifest.json").read_bytes()


def test_a_harvest_holds_the_other_rows_and_its_manifest_says_how_many_there_were(
    model: LanguageModel, holed: Path, whole: Corpus, tmp_path: Path
) -> None:
    found = harvest(model, Corpus.read(holed), ["1.res"], to=tmp_path / "found", length=24, batch=2)
    clean = harvest(model, whole, ["1.res"], to=tmp_path / "clean", length=24, batch=2)
    assert dict(found.manifest.passed) == PASSED
    assert torch.equal(found["1.res"][:], clean["1.res"][:])


def test_a_score_is_that_of_the_other_rows_and_says_how_many_there_were(
    model: LanguageModel, sae: SAE, holed: Path, whole: Corpus
) -> None:
    found, clean = score(model, sae, Corpus.read(holed), length=24), score(model, sae, whole, length=24)
    assert found == replace(clean, corpus="holed.jsonl", passed=PASSED)
    assert found.to_dict()["passed"] == PASSED
    assert TOLD in str(found).replace("\n", " ").replace("  ", " ")
    assert "passed over" not in str(clean)


@pytest.mark.filterwarnings("ignore:.*was aimed at")
@pytest.mark.parametrize("buffer", [64, 100_000], ids=["read again and again", "held as a whole"])
def test_a_streamed_run_is_that_of_the_other_rows_and_its_report_says_how_many_there_were(
    buffer: int, model: LanguageModel, holed: Path, whole: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row counted once, however often the text was read, and whether the run was cut off or not."""

    def run(corpus: Corpus, name: str) -> TrainingReport:
        source = StreamSource(model, corpus, "1.res", buffer=buffer, length=24, rows=2)
        config = TrainConfig(width=32, target_l0=4.0, rows=640, batch=32, checkpoint_every=5, log_every=5)
        train(source, config, to=tmp_path / name)
        return training_report(tmp_path / name)

    found, clean = run(Corpus.read(holed), "found"), run(whole, "clean")
    assert found.figures["passed"] == PASSED
    assert clean.figures["passed"] == {}
    weights = [(report.sae / "sae_weights.safetensors").read_bytes() for report in (found, clean)]
    assert weights[0] == weights[1]
    for told in (str(found), found.to_card(), found.to_html()):
        assert TOLD in told
    assert found.to_dict()["passed"] == PASSED
    assert "passed over" not in str(clean) + clean.to_card() + clean.to_html()
    assert load_sae(found.sae).info.metadata["passed"] == PASSED

    save = checkpoint.save

    def stopping(run: Path, step: int, *rest: Any, **options: Any) -> None:
        save(run, step, *rest, **options)
        if step == 10:
            raise _Stop

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stopping)
        with pytest.raises(_Stop):
            run(Corpus.read(holed), "stopped")
    assert run(Corpus.read(holed), "stopped").figures == found.figures


@pytest.mark.filterwarnings("ignore:.*was aimed at")
def test_a_run_on_a_harvest_says_what_the_harvest_passed_over(
    model: LanguageModel, holed: Path, tmp_path: Path
) -> None:
    store = harvest(model, Corpus.read(holed), ["1.res"], to=tmp_path / "store", length=24, batch=2)
    config = TrainConfig(width=32, target_l0=4.0, rows=64, batch=32)
    train(store, config, to=tmp_path / "run", held_out=store)
    assert TOLD in str(training_report(tmp_path / "run"))


def test_a_check_notes_them(model: LanguageModel, sae: SAE, holed: Path, whole: Corpus) -> None:
    assert TOLD in check(model, sae, Corpus.read(holed), tokens=2000).notes
    assert not any("passed over" in note for note in check(model, sae, whole).notes)


def test_labelled_texts_count_them(model: LanguageModel, sae: SAE, tmp_path: Path) -> None:
    rows = [
        {"text": text, "label": "ab"[number % 2]}
        for number, text in enumerate(f"{one} {n}" for n, one in enumerate(TEXTS))
    ]
    odd = [{"text": odd, "label": "a"} for odd in ODD]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*odd, *rows]))
    assert labelled(path).passed == {"null": 1, "other": 3, "blank": 2, "broken": 1}
    assert "7 rows passed over: 2 blank" in str(sparse_probe(model, sae, path, k=(1,), held_out=0.5))
    assert labelled([("a", "x"), (" ", "y"), ("b", "y")]).passed == {"blank": 1}


def test_nothing_but_rows_without_a_text_is_said_as_such(model: LanguageModel, sae: SAE, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": null}\n' * 3)
    with pytest.raises(EmptyText, match="3 rows passed over: 3 null"):
        score(model, sae, Corpus.read(path), length=24)
    assert list(Corpus.of(["", "a"]).documents(passed := Counter()))
    assert passed == {"blank": 1}
