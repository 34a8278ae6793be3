"""k-sparse probes: planted features are found, nothing is learnt from noise, and no held-out text is seen too early."""

from __future__ import annotations

import csv
import json
import random
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from gemscope.activations.model import LanguageModel
from gemscope.cli.main import main
from gemscope.errors import CorruptFile, EmptyText, InputError, Mismatch, MissingDependency, NotFound
from gemscope.features.intervals import wilson
from gemscope.features.sae import SAE, SAEInfo
from gemscope.reports import probing as module
from gemscope.reports import separating
from gemscope.reports.probe import Probe
from gemscope.reports.probing import sparse_probe
from gemscope.testing import D_MODEL, tiny_model
from gemscope.text.corpus import Corpus
from gemscope.text.labelled import labelled

# Not imported before it is needed, which takes a second of each process of tests.
pytestmark = pytest.mark.skipif(find_spec("sklearn") is None, reason="scikit-learn is not installed")

LETTERS = "abcdefgh"
PLANTED = {"q": 11, "x": 4, "z": 29}
"""Letters of which one feature each tells whether they are in a text."""


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model("gpt2")


@pytest.fixture(scope="module")
def sae(model: LanguageModel) -> SAE:
    """Reads the embedding: some features fire on one letter each, the others on this and that."""
    made = SAE(D_MODEL, 40, site="embed", info=SAEInfo(name="letters"))
    assert made.threshold is not None
    generator = torch.Generator().manual_seed(5)
    made.W_enc.copy_(0.05 * torch.randn(D_MODEL, 40, generator=generator))
    made.threshold.fill_(0.1)
    rows = model.hf.get_input_embeddings().weight
    for letter, feature in PLANTED.items():
        (id_,) = model.tokenizer(letter)["input_ids"]
        own = rows[id_]
        made.W_enc[:, feature] = own
        made.threshold[feature] = 0.5 * (own @ own + (rows @ own).sort().values[-2])
    return made


def texts(n: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return ["a" + "".join(draw.choices(LETTERS, k=draw.randint(6, 20))) for _ in range(n)]


def with_letter(text: str, letter: str, draw: random.Random) -> str:
    place = draw.randint(1, len(text))
    return f"{text[:place]}{letter}{text[place:]}"


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, object]]:
    """Texts with a q in them, or not."""
    draw = random.Random(1)
    return [(with_letter(text, "q", draw), 1) if n % 3 == 0 else (text, 0) for n, text in enumerate(texts(120))]


def pooled(model: LanguageModel, sae: SAE, text: str, length: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Means over a text's counted tokens, read by itself: of features and raw."""
    acts = model.capture(model.tokens(text).first(1, length), [sae.site])[sae.site]
    x = acts.values[acts.counted].double()
    return sae.encode_dense(acts.values[acts.counted]).double().mean(0).numpy(), x.mean(0).numpy()


# --- what it finds ------------------------------------------------------------------------------------------------


def test_a_label_that_is_one_feature_is_read_off_that_feature(
    model: LanguageModel, sae: SAE, pairs: list[tuple[str, object]]
) -> None:
    found = sparse_probe(model, sae, pairs, k=(1, 2))
    first = found.rows[0]
    assert (first.basis, first.k) == ("features", 1)
    (chosen,) = first.probes[0].chosen
    assert chosen.dimension == PLANTED["q"]
    assert chosen.difference > 0
    assert chosen.weight > 0
    assert first.accuracy == first.balanced == 1.0
    assert first.high == 1.0
    assert first.low == wilson(found.held_out, found.held_out)[0] < 1
    assert found.majority == pytest.approx(2 / 3)
    assert [(one.label, one.train, one.held_out) for one in found.classes] == [("0", 60, 20), ("1", 30, 10)]
    assert [(row.basis, row.k) for row in found.rows] == [
        ("features", 1),
        ("features", 2),
        ("raw", 1),
        ("raw", 2),
        ("raw", None),
    ]


def test_several_classes_are_each_told_from_the_rest(model: LanguageModel, sae: SAE) -> None:
    draw = random.Random(2)
    letters = list(PLANTED)
    found = sparse_probe(
        model,
        sae,
        [(with_letter(text, letters[n % 3], draw), letters[n % 3]) for n, text in enumerate(texts(90, 3))],
        k=[1],
    )
    row = found.rows[0]
    assert [probe.label for probe in row.probes] == sorted(letters)
    assert {probe.label: probe.chosen[0].dimension for probe in row.probes} == PLANTED
    assert row.accuracy == row.balanced == 1.0
    assert all(probe.accuracy == 1.0 for probe in row.probes)
    text = " ".join(str(found).split())
    assert "Each class against the rest" in text
    assert f"q 22 + 8 {PLANTED['q']} (+) 1.000" in text


def test_labels_drawn_by_lot_are_read_off_nothing(model: LanguageModel, sae: SAE) -> None:
    draw = random.Random(4)
    found = sparse_probe(model, sae, [(text, draw.choice(["heads", "tails"])) for text in texts(400, 6)])
    for row in found.rows:
        assert row.low <= 0.5 <= row.high, row
        assert abs(row.balanced - 0.5) < 0.12


def test_the_figures_are_those_of_a_slow_count_by_hand(
    model: LanguageModel, sae: SAE, pairs: list[tuple[str, object]]
) -> None:
    """Each text read by itself, the split told apart by what is reported, scikit-learn called directly."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    flipped = [(text, int(bool(label) != (n % 5 == 0))) for n, (text, label) in enumerate(pairs)]  # not too easy
    flipped += [(f"a{letter}", n % 2) for n, letter in enumerate("abcdefghqxz")]  # one token that counts
    found = sparse_probe(model, sae, flipped, k=(3,), batch=7, seed=8)
    both = [pooled(model, sae, text) for text, _ in flipped]
    y = np.array([label for _, label in flipped])
    tested = module._split(y, 0.25, np.random.default_rng(8))
    for row, x in zip(found.rows, (np.stack([f for f, _ in both]), *[np.stack([r for _, r in both])] * 2), strict=True):
        gap = x[~tested & (y == 1)].mean(0) - x[~tested & (y == 0)].mean(0)
        columns = np.argsort(-abs(gap), kind="stable")[:3] if row.k else np.arange(x.shape[1])
        assert [one.dimension for one in row.probes[0].chosen] == (columns.tolist() if row.k else [])
        for one in row.probes[0].chosen:
            assert one.difference == pytest.approx(gap[one.dimension], rel=1e-5)
        by_hand = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        said = by_hand.fit(x[~tested][:, columns], y[~tested]).predict(x[tested][:, columns])
        assert row.accuracy == pytest.approx((said == y[tested]).mean())
        assert row.balanced == pytest.approx(np.mean([(said[y[tested] == side] == side).mean() for side in (0, 1)]))
        assert (row.probes[0].accuracy, row.probes[0].balanced) == pytest.approx((row.accuracy, row.balanced))
        assert 0.4 < row.accuracy < 1


# --- held out means held out --------------------------------------------------------------------------------------


def test_nothing_held_out_is_seen_when_features_are_chosen_and_weighed() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(80, 30)), np.arange(80) % 2
    x[:, 3] += y
    tested = module._split(y, 0.25, np.random.default_rng(1))
    poisoned = x.copy()
    poisoned[tested] = 1e3 * draw.normal(size=(tested.sum(), 30))
    poisoned[tested, 17] = 1e6 * y[tested]  # would be chosen at once by whoever looked
    for k in (1, 4, None):
        clean, other = (separating.fit("raw", one, y, tested, classes=["a", "b"], k=k) for one in (x, poisoned))
        assert clean.probes[0].chosen == other.probes[0].chosen
    scores = [separating._probe(one, y == 1, tested, k=None, label="b")[1] for one in (x, poisoned)]
    assert not np.allclose(*scores)  # the poison is there


def test_other_held_out_texts_change_neither_choice_nor_weights(
    model: LanguageModel, sae: SAE, pairs: list[tuple[str, object]]
) -> None:
    y = np.array([label for _, label in pairs])
    tested = module._split(y, 0.25, np.random.default_rng(0))
    other = [
        (f"a{'x' * (n % 7 + 1)}{'z' * n}" if held else text, label)
        for n, ((text, label), held) in enumerate(zip(pairs, tested.tolist(), strict=True))
    ]
    one, two = (sparse_probe(model, sae, given, k=(2,)) for given in (pairs, other))
    for row, again in zip(one.rows, two.rows, strict=True):
        assert [(c.dimension, pytest.approx(c.weight, rel=1e-4)) for c in row.probes[0].chosen] == [
            (c.dimension, c.weight) for c in again.probes[0].chosen
        ]
    assert one.rows[0].accuracy > two.rows[0].accuracy


def test_the_split_keeps_proportions_and_leaves_some_of_each_class_on_either_side() -> None:
    y = np.array([0] * 40 + [1] * 4 + [2] * 13)
    for seed in range(5):
        tested = module._split(y, 0.25, np.random.default_rng(seed))
        assert [int(tested[y == one].sum()) for one in range(3)] == [10, 1, 3]
    greedy = module._split(y, 0.99, np.random.default_rng(0))
    assert [int((~greedy)[y == one].sum()) for one in range(3)] == [1, 1, 1]


def test_the_same_seed_gives_the_same_figures_and_another_seed_another_split(
    model: LanguageModel, sae: SAE, pairs: list[tuple[str, object]]
) -> None:
    one, again, other = (sparse_probe(model, sae, pairs, k=(1,), seed=seed) for seed in (3, 3, 4))
    assert one == again
    assert one.rows[-1].accuracy != other.rows[-1].accuracy or one.rows[0].probes != other.rows[0].probes


def test_a_text_that_is_there_twice_is_read_once(
    model: LanguageModel, sae: SAE, pairs: list[tuple[str, object]]
) -> None:
    found = sparse_probe(model, sae, [*pairs, *pairs[:30]], k=(1,))
    assert found.repeated == 30
    assert found.rows == sparse_probe(model, sae, pairs, k=(1,)).rows
    assert "30 texts were there before" in str(found)


# --- reading ------------------------------------------------------------------------------------------------------


def test_texts_are_cut_skipped_and_limited_and_it_is_said(model: LanguageModel, sae: SAE) -> None:
    given = [(text, n % 2) for n, text in enumerate(texts(60, 9))] + [("a", 0), ("b", 1), ("   ", 1)]
    found = sparse_probe(model, sae, given, k=(1,), length=8)
    tokens = [min(8, len(model.tokens(text).ids[0])) for text, _ in given[:60]]
    assert found.tokens == sum(tokens) - 60  # the first of each does not count
    assert found.cut == sum(len(model.tokens(text).ids[0]) > 8 for text, _ in given[:60])
    assert found.skipped == 2
    few = sparse_probe(model, sae, given[:60], k=(1,), limit=20)
    assert few.train + few.held_out == 20
    assert few.left_out == 40
    for piece in ("longer than that and cut", "2 texts were without a token that counts"):
        assert piece in str(found)
    assert "40 texts were beyond the limit" in str(few)


def test_how_texts_are_batched_changes_nothing(model: LanguageModel, sae: SAE, pairs: list[tuple[str, object]]) -> None:
    one, other = (sparse_probe(model, sae, pairs, k=(2,), batch=batch) for batch in (1, 50))
    for row, again in zip(one.rows, other.rows, strict=True):
        assert row.accuracy == again.accuracy
        assert [c.dimension for c in row.probes[0].chosen] == [c.dimension for c in again.probes[0].chosen]
    assert one.tokens == other.tokens


def test_labelled_text_comes_from_pairs_files_and_corpora(
    tmp_path: Path, model: LanguageModel, sae: SAE, pairs: list[tuple[str, object]]
) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"body": text, "kind": label} for text, label in pairs]
    lines, table, columns = tmp_path / "a.jsonl", tmp_path / "a.csv", tmp_path / "a.parquet"
    lines.write_text("\n".join(map(json.dumps, rows)))
    with open(table, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["kind", "body"])
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), columns)
    expected = labelled(pairs)
    for path in (lines, table, str(columns)):
        found = labelled(path, text="body", label="kind")
        assert (found.texts, found.labels) == (expected.texts, expected.labels)
    assert sparse_probe(model, sae, table, text="body", label="kind", k=(1,)).rows[0].accuracy == 1
    corpus = Corpus.sample().only(["austen", "python-docs"]).take(30)
    assert labelled(corpus).labels == tuple(document.source for document in corpus)
    assert labelled(iter(corpus)).texts == labelled(corpus).texts
    assert set(labelled(Corpus.sample().take(200), labels=["austen"]).labels) == {"austen"}


@pytest.mark.parametrize(
    ("content", "name", "error", "says"),
    [
        ('{"text": "a"}', "a.jsonl", InputError, "no field 'label' in .*the fields there are 'text'"),
        ('{"text": "a", "label": null}', "a.jsonl", InputError, "has None for a label"),
        ('{"text": "a", "label": [1]}', "a.jsonl", InputError, "a word or a number"),
        ('{"words": "a", "label": 1}', "a.jsonl", InputError, "no field 'text'"),
        ("{", "a.jsonl", CorruptFile, "is not JSON"),
        ("a,b\n1,2\n", "a.csv", InputError, "no field 'text' in .*'a', 'b'"),
        ("text,label\nx\n", "a.csv", InputError, "has None for a label"),
        ("text,label\nx,y,z\n", "a.csv", CorruptFile, "line 2 has not as many fields"),
        ("text,label\n\udcff,y\n", "a.csv", CorruptFile, "not UTF-8"),
        ("", "a.csv", InputError, "fields there are none"),
        ("text,label\n", "a.csv", EmptyText, "no labelled texts"),
        ("hello", "a.txt", InputError, "has no labels"),
        (None, "none.csv", NotFound, "no file"),
    ],
)
def test_a_file_that_is_no_labelled_text_is_refused_in_one_line(
    tmp_path: Path, content: str | None, name: str, error: type[Exception], says: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(error, match=says) as raised:
        labelled(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"dataset": [("abc", 1)] * 9}, InputError, "has 1 class of texts"),
        ({"dataset": [(f"abc{n}", n > 2) for n in range(9)]}, InputError, "class 'False' has 3 texts .*at least 4"),
        ({"dataset": ["abc"]}, InputError, "item 0 is 'abc': expected pairs"),
        ({"dataset": []}, EmptyText, "no labelled texts"),
        ({"dataset": [(letter, 1) for letter in "abcdef"]}, EmptyText, "no text has a token that counts"),
        ({"labels": ["7"]}, InputError, "has the label '7': the labels there are '0', '1'"),
        ({"k": (0,)}, InputError, r"k=\[0\]: expected numbers of dimensions between 1 and 32"),
        ({"k": (33,)}, InputError, r"k=\[33\]"),
        ({"k": ()}, InputError, r"k=\[\]"),
        ({"held_out": 1.0}, InputError, "held_out=1.0"),
        ({"length": 1}, InputError, "length=1: expected 2 to 128"),
        ({"batch": 0}, InputError, "batch=0"),
        ({"sae": SAE(7, 9, site="1.res")}, Mismatch, "has 32 at 1.res"),
        ({"dataset": Corpus.of("a b"), "label": "text"}, InputError, "label='text'"),
    ],
)
def test_a_mistake_is_one_clear_line(
    model: LanguageModel,
    sae: SAE,
    pairs: list[tuple[str, object]],
    options: dict[str, object],
    error: type[Exception],
    says: str,
) -> None:
    given = {"sae": sae, "dataset": pairs} | options
    with pytest.raises(error, match=says) as raised:
        sparse_probe(model, **given)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_without_scikit_learn_the_command_that_installs_it_is_named(
    model: LanguageModel, sae: SAE, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(MissingDependency, match=r'pip install "gemscope\[probe\]"'):
        sparse_probe(model, sae, [("a", 1)])
    assert main(["probe", "sample"]) == 1
    assert 'pip install "gemscope[probe]"' in capsys.readouterr().err


def test_a_fit_that_does_not_come_to_an_end_is_reported_not_warned_of(
    model: LanguageModel, sae: SAE, pairs: list[tuple[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(separating, "ROUNDS", 1)
    found = sparse_probe(model, sae, pairs, k=(5,))
    assert not found.rows[-1].converged
    assert found.to_dict()["converged"] is False
    assert "not converged" in str(found)


def test_it_can_be_cancelled(model: LanguageModel, sae: SAE, pairs: list[tuple[str, object]]) -> None:
    class Enough(Exception):
        pass

    def check() -> None:
        raise Enough

    with pytest.raises(Enough):
        sparse_probe(model, sae, pairs, check=check)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (50, 100, 0.4038, 0.5962)],
)
def test_the_interval_is_wilson_s(hits: int, n: int, low: float, high: float) -> None:
    """Figures from R's prop.test(..., correct = FALSE)."""
    assert wilson(hits, n) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


# --- how it shows itself ------------------------------------------------------------------------------------------


def test_it_prints_itself_and_is_json(model: LanguageModel, sae: SAE, pairs: list[tuple[str, object]]) -> None:
    found = sparse_probe(model, sae, pairs)
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert facts["rows"][0]["accuracy"] == 1.0
    assert facts["interval"] == "Wilson, 95 %"
    assert (facts["train"], facts["held_out"], facts["seed"]) == (90, 30, 0)
    text = str(found)
    for piece in ("1 SAE feature", "all raw dimensions", "95 % interval", f"{PLANTED['q']} (+)", "most frequent class"):
        assert piece in text


def test_the_chart_has_every_estimate_in_words_and_hostile_names_are_escaped(
    model: LanguageModel, sae: SAE, pairs: list[tuple[str, object]]
) -> None:
    import xml.etree.ElementTree as ET

    found = sparse_probe(model, sae, [(text, "<script>" if label else "b&c") for text, label in pairs])
    svg = ET.fromstring(found.chart())
    said = next(child.text for child in svg if child.tag == "desc")
    for row in found.rows:
        assert f"{'all' if row.k is None else row.k}: {row.accuracy:.3f} ({row.low:.3f} to {row.high:.3f})" in (
            said or ""
        )
    marks = [child for child in svg if child.tag == "g"]
    assert len(marks) == len(found.rows)
    html = found._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert found.to_html().count("<script>") == 1  # the page's own
    assert "style=" not in html  # its policy would not have it


@pytest.mark.usefixtures("at_hand")
def test_the_shell_probes_a_file_and_the_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, data = tmp_path / "probe.html", tmp_path / "tense.csv"
    words = ["sample", "--labels", "austen,python-docs", "--limit", "24", "--length", "16", "--k", "1,3"]
    assert main(["probe", *words, "--json", "--html", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["label"] for one in found["classes"]} == {"austen", "python-docs"}
    assert [row["k"] for row in found["rows"]] == [1, 3, 1, 3, None]
    assert "<svg" in page.read_text(encoding="utf-8")
    data.write_text(
        "said,tense\n" + "".join(f"She walk{end} home {n} times,{end}\n" for n in range(8) for end in ("ed", "s"))
    )
    assert main(["probe", str(data), "--text", "said", "--label", "tense", "--k", "1"]) == 0
    out = capsys.readouterr().out
    assert "1 SAE feature" in out
    assert main(["probe", str(data), "--k", "one"]) == 1
    assert "--k one: expected whole numbers" in capsys.readouterr().err


def test_probes_are_values(model: LanguageModel, sae: SAE, pairs: list[tuple[str, object]]) -> None:
    found = sparse_probe(model, sae, pairs, k=(1,))
    assert isinstance(found, Probe)
    with pytest.raises(AttributeError):
        found.seed = 1  # type: ignore[misc]
