"""What a reader of features is shown, and what is taken for an answer."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools import sheets

import gemscope as gs
from atlases import planted_atlas
from gemscope.atlas.dashboard import Dashboard, Example, Explanation, Interval, Logit
from gemscope.atlas.labels.answers import LONGEST, Answer, answer_of
from gemscope.atlas.labels.sheet import AROUND, SNIPPETS, instructions, sheet
from gemscope.atlas.labels.wanting import wanting
from gemscope.errors import InputError
from gemscope.features.rules import Rule
from gemscope.text.lexicon import classes
from gemscope.text.printable import ODD


def example(value: float, text: list[str], interval: int | None = None, peak: int = 1) -> Example:
    values = [value if at == peak else 0.0 for at in range(len(text))]
    return Example(
        document=0, position=0, peak=peak, ids=[0] * len(text), tokens=text, values=values, interval=interval
    )


def feature(examples: list[Example], **said: object) -> Dashboard:
    return Dashboard(
        model="m", source="s", index=17, count=32, tokens=10_000, max=8.0, mean=1.0, examples=examples,
        intervals=[Interval(low, low + 1.0, 1, 0.1) for low in range(8)], **said,
    )  # fmt: skip


def lines(page: Dashboard) -> list[str]:
    return sheet(page).splitlines()[2:]


def test_a_sheet_says_what_a_reader_needs() -> None:
    rule = Explanation(id=1, text="“of” (when strong)", method="rule", rule='"of"', confidence=0.61)
    one = example(4.0, [" a", " of", " b"])
    page = feature([one], explanations=[rule], promoted=[Logit(1, " the", 1.0), Logit(2, " ", 0.5)])
    assert sheet(page) == (
        "feature 17 · fires on 0.32 % of tokens · promotes the, blank\n"
        'rule (when strong, confidence .61): "of"\n'
        ".50  a« of» b"
    )
    assert "no rule" in sheet(replace(page, explanations=[Explanation(id=1, text="what a person says", rule='"of"')]))


def test_the_strongest_come_first_then_two_of_each_upper_range() -> None:
    strongest = [example(8.0 - at / 10, [" a", f" s{at}"]) for at in range(16)]
    below = [example(at + 0.5 - n / 10, [" a", f" i{at}{n}"], at) for at in (3, 2, 1, 0) for n in range(4)]
    found = [re.findall(r"« (\w+)»", line)[0] for line in lines(feature(strongest + below))]
    assert found == ["s0", "s1", "i30", "i31", "i20", "i21", "i10", "i11"]
    few = [re.findall(r"« (\w+)»", line)[0] for line in lines(feature(strongest + below[:4]))]
    assert few == ["s0", "s1", "s2", "s3", "s4", "s5", "i30", "i31"]
    assert [line.split()[0] for line in lines(feature(strongest + below))][:3] == ["1.00", ".99", ".44"]


def test_a_text_that_was_copied_is_shown_once() -> None:
    copies = [example(8.0, [" a", " of", " b"])] * 9 + [example(8.0, [" a", " of", " b"], 7), example(4.0, ["c"], 3, 0)]
    assert len(lines(feature(copies))) == 2


def test_a_snippet_ends_a_few_tokens_from_its_peak() -> None:
    words = [f" w{at}" for at in range(99)]
    (line,) = lines(feature([example(8.0, words, peak=50)]))
    assert line.split() == [
        "1.00",
        *f"{''.join(words[50 - AROUND : 50])}« w50»{''.join(words[51 : 51 + AROUND])}".split(),
    ]


@given(st.lists(st.text(max_size=30), min_size=3, max_size=12), st.data())
def test_no_text_can_look_like_a_mark_or_begin_a_line(texts: list[str], data: st.DataObject) -> None:
    peak = data.draw(st.integers(0, len(texts) - 1))
    values = data.draw(st.lists(st.floats(0, 8, width=32), min_size=len(texts), max_size=len(texts)))
    one = replace(example(8.0, texts, peak=peak), values=[8.0 if at == peak else v for at, v in enumerate(values)])
    page = sheet(feature([one], promoted=[Logit(0, texts[0], 1.0)]))
    assert page.count("\n") == 2
    assert re.search(f"[{ODD}]", page.replace("\n", "")) is None
    assert (page.count("«"), page.count("»")) == (1, 1)
    assert re.fullmatch(r"[^‹›]*(‹[^‹›]+›[^‹›]*)*", page.replace("‹›", "")) is not None


def test_the_sheets_of_an_atlas_with_hostile_text_are_printable(tmp_path: Path) -> None:
    with planted_atlas(tmp_path / "planted") as atlas:
        for page in atlas:
            text = sheet(page)
            assert re.search(f"[{ODD}]", text.replace("\n", "")) is None
            assert len(text.splitlines()) <= 2 + SNIPPETS
            assert len(text) < 4000


def test_what_is_said_of_rules_is_what_can_be_said() -> None:
    text = instructions()
    body = text[text.index("Rule:") :]
    examples = re.findall(r"^  (\S.*?)(?:  |$)", body, re.MULTILINE)
    assert len(examples) == 8
    for rule in examples:
        if rule != "any":
            Rule.parse(rule)
    named = set(re.findall(r"<([a-z-]+)>", text[text.index("Classes:") :]))
    for kind in ("ending", "beginning"):
        named |= {f"{kind}-{one}" for one in re.findall(rf"<{kind}-X> with X one of ([a-z ]+)", text)[0].split()}
    assert named == set(classes())


@pytest.mark.parametrize(
    ("text", "rule", "wrong"),
    [
        ("", "", "there are no words"),
        (" \n", "", "there are no words"),
        (None, "", "expected text"),
        (["of"], "", "expected text"),
        ("x" * (LONGEST + 1), "", f"at most {LONGEST}"),
        ("a\u202eb", "", "cannot be printed"),
        ("of", '"of', "expected"),
        ("of", "<nonsense>", "no class"),
        ("of", 7, "expected text"),
    ],
)
def test_what_is_no_label_is_refused(text: object, rule: object, wrong: str) -> None:
    with pytest.raises(InputError, match=wrong):
        answer_of(text, rule)


def test_an_answer_is_kept_in_one_way_of_writing() -> None:
    assert answer_of(" of\n after  it ", ' "Of"   after <number>') == Answer("of after it", '"of" after <number>')
    assert Answer("Unclear.").unclear
    assert not Answer("unclear speech").unclear
    assert answer_of("of", None).rule == ""


def test_those_that_fire_most_often_and_are_not_named_want_words(tmp_path: Path) -> None:
    with planted_atlas(tmp_path / "planted", labelled=0) as atlas:
        density = {page.index: page.density for page in atlas}
        assert {density[one] for one in wanting(atlas)} & {0.0} == set()
        assert len(wanting(atlas)) == sum(value > 0 for value in density.values())
        first, second, third, fourth, *_ = wanting(atlas)
        plain = [density[one] for one in wanting(atlas) if density[one] <= 0.03]
        assert plain == sorted(plain, reverse=True)
        assert [density[one] for one in wanting(atlas)][: len(plain)] == plain  # dense ones come last
        atlas.explain(first, "as a person says")
        atlas.explain_all({second: Explanation(id=0, text="“of”", method="rule", rule='"of"', confidence=0.6)})
        atlas.explain_all({third: Explanation(id=0, text="“in”", method="rule", rule='"in"', confidence=0.5)})
        assert wanting(atlas)[:2] == [third, fourth]
        assert wanting(atlas, sure=0.4)[0] == fourth


def run(*words: object) -> int:
    sys.argv = ["sheets.py", *map(str, words)]
    with pytest.raises(SystemExit) as ended:
        sheets.main()
    return int(ended.value.code or 0)


@pytest.fixture(autouse=True)
def argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)


def test_sheets_are_written_and_their_answers_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with planted_atlas(tmp_path / "planted", labelled=0) as atlas:
        first = wanting(atlas)[:7]
    labels = tmp_path / "labels.jsonl"
    labels.write_text(json.dumps({"feature": first[0], "text": "the old words"}) + "\n")
    assert run("write", tmp_path / "planted", "--first", 5, "--skip", labels, "--batch", 3, "-o", tmp_path / "out") == 0
    texts = [path.read_text() for path in sorted((tmp_path / "out").iterdir())]
    assert [re.findall(r"^feature (\d+) ·", text, re.MULTILINE) for text in texts] == [
        list(map(str, first[1:4])),
        list(map(str, first[4:6])),
    ]
    for text in texts:
        assert instructions() in text
        for line in re.findall(r"^\{.*\}$", text, re.MULTILINE):
            said = json.loads(line)
            answer_of(said["text"], said["rule"])
    answers = tmp_path / "answers.jsonl"
    said = [
        {"feature": first[1], "text": "`of` after a number", "rule": '"of"   after <number>'},
        {"feature": first[2], "text": "unclear", "rule": ""},
        {"feature": first[0], "text": "the new words"},
        {"feature": first[3], "text": "rivers", "rule": '"river'},
        {"feature": 10**9, "text": "rivers"},
        {"feature": first[1], "text": "again"},
        {"feature": first[4], "text": "words", "score": 1},
    ]
    answers.write_text("".join(json.dumps(one) + "\n" for one in said) + "{\n")
    assert run("read", answers, "--to", labels, "--atlas", tmp_path / "planted") == 1
    told = capsys.readouterr()
    assert "2 labels, 1 unclear, 5 wrong lines; 2 in" in told.out
    assert re.findall(rf"{answers}:(\d):", told.err) == ["4", "5", "6", "7", "8"]
    kept = {line["feature"]: line for line in map(json.loads, labels.read_text().splitlines())}
    assert kept == {
        first[0]: {"feature": first[0], "text": "the new words"},
        first[1]: {"feature": first[1], "text": "`of` after a number", "rule": '"of" after <number>'},
    }


def test_the_labels_that_ship_are_answers() -> None:
    with gs.Atlas(sheets.BUNDLED) as atlas:
        for line in (Path(sheets.__file__).with_name("default_labels.jsonl")).read_text().splitlines():
            said = json.loads(line)
            assert 0 <= said["feature"] < len(atlas)
            assert not answer_of(said["text"], said.get("rule", "")).unclear
