"""Corpora from parquet files and the Hub's datasets; the sample, and the tools that drew it."""

import gzip
import hashlib
import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from gemscope.errors import CorruptFile, EmptyText, HubUnreachable, InputError, MissingDependency, NotFound
from gemscope.text.corpus import Corpus
from gemscope.text.sources import Document
from written_texts import SAMPLE, jsonl, refused, texts

# ------------------------------------------------------------------------------------- optional packages


def test_missing_packages_say_how_to_install_them(tmp_path, monkeypatch):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(MissingDependency, r'pip install "gemscope\[parquet\]"', lambda: Corpus.read(tmp_path / "rows.parquet"))
    refused(MissingDependency, r'pip install "gemscope\[datasets\]"', lambda: Corpus.dataset("name/of-one"))


def test_parquet_rows_are_read_like_lines(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    columns = {"text": [f"text {n}" for n in range(1000)], "source": ["x", "y"] * 500, "n": list(range(1000))}
    parquet.write_table(arrow.table(columns), path, row_group_size=300)
    corpus = Corpus.read(path)
    assert texts(corpus) == texts(corpus) == columns["text"]
    assert next(iter(corpus.skip(301))) == Document("text 301", "y", "", 301)
    refused(
        InputError,
        r"no field 'body' in .*rows\.parquet: the fields there are 'text', 'source', 'n'",
        lambda: Corpus.read(path, field="body"),
    )
    refused(InputError, r"field 'n' in .*row 0 is of type int", lambda: Corpus.read(path, field="n"))
    for kind in (arrow.string(), arrow.large_string(), arrow.dictionary(arrow.int8(), arrow.string())):
        parquet.write_table(arrow.table({"text": arrow.array([None, "a", "", None, "b"]).cast(kind)}), path)
        passed = Counter()
        assert [document.text for document in Corpus.read(path).documents(passed)] == ["a", "b"]
        assert passed == {"null": 2, "blank": 1}
    parquet.write_table(arrow.table({"text": arrow.array([b"a", b"b"])}), path)
    refused(InputError, r"field 'text' in .*row 0 is of type bytes", lambda: Corpus.read(path))
    parquet.write_table(arrow.table({"text": arrow.nulls(3)}), path)
    refused(EmptyText, "3 rows passed over: 3 null", lambda: Corpus.read(path))
    parquet.write_table(arrow.table(columns), path)
    whole = path.read_bytes()
    for data in (whole[:-50], b"not parquet", b""):
        path.write_bytes(data)
        refused(CorruptFile, r"rows\.parquet is not a whole parquet file", lambda: Corpus.read(path))


def test_a_dataset_is_streamed(three, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pytest.importorskip("datasets", reason="datasets is not installed")
    corpus = Corpus.dataset("json", data_files=str(three))
    assert texts(corpus) == texts(corpus) == ["one", "two", "three"]
    assert next(iter(corpus)).source == "json"
    assert corpus.digest != Corpus.dataset("json", data_files=str(three), revision="abc").digest
    refused(
        InputError,
        "no field 'body' in row 0 of dataset json",
        lambda: Corpus.dataset("json", field="body", data_files=str(three)),
    )


def test_a_dataset_takes_what_load_dataset_takes(three, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pytest.importorskip("datasets", reason="datasets is not installed")
    files = {"data_files": str(three)}
    for streaming in (True, False):
        corpus = Corpus.dataset("json", name="mine", streaming=streaming, cache_dir=str(tmp_path / "cache"), **files)
        assert texts(corpus) == texts(corpus) == ["one", "two", "three"]
    refused(InputError, "path='json' beside the dataset 'json'", lambda: Corpus.dataset("json", path="json", **files))
    refused(InputError, "split=None: the name of one split", lambda: Corpus.dataset("json", split=None, **files))


@pytest.mark.parametrize("streaming", [True, False])
def test_rows_of_a_dataset_without_a_text_are_counted_too(tmp_path, monkeypatch, streaming):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pytest.importorskip("datasets", reason="datasets is not installed")
    rows = [{"text": None}, {"text": "a"}, {"body": "b"}, {"text": ""}, {"text": "c"}]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    passed = Counter()
    corpus = Corpus.dataset("json", data_files=str(path), streaming=streaming, cache_dir=str(tmp_path / "cache"))
    assert [document.text for document in corpus.documents(passed)] == ["a", "c"]
    assert passed == {"null": 2, "blank": 1}


def test_a_dataset_that_cannot_be_had_is_one_line(three, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pytest.importorskip("datasets", reason="datasets is not installed")
    refused(HubUnreachable, "dataset no/such-one cannot be reached", lambda: Corpus.dataset("no/such-one"))
    refused(
        NotFound, "dataset json: .*nowhere", lambda: Corpus.dataset("json", data_files=str(tmp_path / "nowhere.jsonl"))
    )
    refused(InputError, "dataset json: .*tset", lambda: Corpus.dataset("json", split="tset", data_files=str(three)))


# ---------------------------------------------------------------------------------------------------- the sample


def test_the_sample_is_what_its_sources_page_says():
    data = (SAMPLE / "corpus.jsonl.gz").read_bytes()
    documents = list(Corpus.sample())
    page = (SAMPLE / "SOURCES.md").read_text()
    assert len(data) < 1_000_000
    assert Corpus.sample().digest == hashlib.sha256(data).hexdigest()
    assert Corpus.sample().digest in page
    table = re.findall(r"^\| ([a-z-]+) \| [^|]+ \| ([^|]+) \| (\d+) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert {source: int(count) for source, _, count, _ in table} == Counter(document.source for document in documents)
    assert {source: license for source, license, *_ in table} == {
        document.source: document.license for document in documents
    }
    for source, _, _, size in table:
        assert sum(
            len(document.text.encode()) for document in documents if document.source == source
        ) / 1e6 == pytest.approx(float(size), abs=0.005)


def test_every_licence_in_the_sample_has_its_notice():
    notice = (SAMPLE / "NOTICE").read_text()
    marks = {
        "PSF-2.0 (code examples also 0BSD)": [
            "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2",
            "with or without fee is hereby granted",
        ],
        "WordNet-3.0": ["WordNet 3.0 Copyright 2006 by Princeton University"],
        "PostgreSQL": ["IN NO EVENT SHALL THE UNIVERSITY OF CALIFORNIA BE LIABLE"],
        "Apache-2.0": ["Licensed to the Apache Software Foundation (ASF)"],
        "MIT OR Apache-2.0": ["Permission is hereby granted, free of charge"],
        "public domain": ["Public domain"],
    }
    assert {document.license for document in Corpus.sample()} == set(marks)
    for marks_of_one in marks.values():
        for mark in marks_of_one:
            assert mark in notice
    assert len(notice.splitlines()) > 150


def test_the_sample_is_mixed_and_its_documents_are_short_and_whole():
    documents = list(Corpus.sample())
    assert len({document.source for document in documents[:50]}) >= 8
    assert sum(one.source == two.source for one, two in pairwise(documents)) < len(documents) / 4
    assert all(600 <= len(document.text) <= 6000 for document in documents)
    assert len({document.text for document in documents}) == len(documents)
    assert [document.index for document in documents] == list(range(len(documents)))
    assert "\ufffd" not in "".join(document.text for document in documents)


# ---------------------------------------------------------------------------------------------------- the tools


TOOLS = Path(__file__).parents[2] / "tools"


def tool(name):
    spec = importlib.util.spec_from_file_location(f"{name}_tool", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def test_a_page_gives_its_paragraphs_without_navigation_headings_and_labels():
    page = b"""<html><head><title>T</title></head><body><nav><p>Home is a sentence that is long enough to be kept.</p>
        </nav><main><h1>A heading that is a sentence, and long enough to be kept.</h1><ul><li>index<li>next</ul>
        <p>Caf\xc3\xa9s &amp; bars:\n  a <code>sentence</code> that is long enough.<div class="note toc">hidden</div>
        <p>An unclosed one that ends here, in the year 1911.<pre>def f(x):\n\n    return x  # as it stands\n</pre>
        <pre>+----+----+\n| 12 | 34 |</pre></main><p>After the main part nothing is taken, long as it may be.</p>"""
    assert tool("corpus").Page.paragraphs(page) == [
        "Caf\xe9s & bars: a sentence that is long enough.",
        "An unclosed one that ends here, in the year 1911.",
        "def f(x):\n\n    return x  # as it stands",
    ]


def test_paragraphs_on_many_pages_are_left_out():
    own = [f"This is what page {number} alone has to say, again and again. " * 8 for number in range(3)]
    files = {
        f"{n}.html": f"<p>{text}<p>This manual is under some licence or other.".encode() for n, text in enumerate(own)
    }
    assert list(tool("corpus").pages(files)) == [text.strip() for text in own]


def test_string_vectors_are_read_out_of_r_data():
    def xdr(*numbers):
        return struct.pack(f">{len(numbers)}i", *numbers)

    words = b"".join(xdr(0x40009, len(word.encode())) + word.encode() for word in ["EMMA", "", "caf\xe9"])
    for version in (xdr(2, 0x40003, 0x20300), xdr(3, 0x40003, 0x30500, 5) + b"UTF-8"):
        vector = b"X\n" + version + xdr(16, 4) + words + xdr(9, -1)
        number = b"X\n" + version + xdr(13, 1, 42)
        chunks = b"".join(struct.pack(">i", len(data)) + zlib.compress(data) for data in (number, vector, number))
        assert list(tool("corpus").r_strings(chunks)) == [["EMMA", "", "caf\xe9", ""]]


def test_webster_is_taken_without_what_others_added():
    entries = [
        'Abatis \\Ab"a*tis\\, n.\n   A means of defence ' + "of felled trees " * 9 + "{Fort}.\n   [1913 Webster]\n",
        "19th \\19th\\ adj.\n   1. coming next " + "after the eighteenth " * 9 + "\n        [WordNet 1.5 +PJC]\n",
        "Mixed \\Mixed\\\n   One part " * 9 + "\n   [1913\n   Webster]\n   and another.\n   [PJC]\n",
    ]
    assert list(tool("corpus").webster(dictd(entries))) == [
        "Abatis, n. A means of defence " + "of felled trees " * 9 + "Fort."
    ]


def dictd(entries):
    """The two files of a dictd dictionary with these entries."""
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    number = lambda value: digits[value // 4096] + digits[value // 64 % 64] + digits[value % 64]  # noqa: E731
    index, place = ["00databaseinfo\tAAA\tAAE"], 0
    for entry in entries:
        index.append(f"word\t{number(place)}\t{number(len(entry))}")
        place += len(entry)
    return {"x.dict.dz": gzip.compress("".join(entries).encode()), "x.index": "\n".join(index).encode()}


@pytest.mark.skipif(not (shutil.which("dpkg-deb") and shutil.which("apt-get")), reason="this is no Debian")
def test_a_corpus_is_built_from_packages_and_a_damaged_one_leaves_the_old(tmp_path):
    root, debs, to = tmp_path / "root", tmp_path / "debs", tmp_path / "corpora"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "usr/share/dictd").mkdir(parents=True)
    debs.mkdir()
    (root / "DEBIAN/control").write_text(
        "Package: dict-devil\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: satire\n"
    )
    entries = ["ABATIS, n.  Rubbish in front of\na fort.\n\n    Some verse,\n    in two lines.\n\n"]
    for suffix, data in dictd(entries).items():
        (root / "usr/share/dictd" / suffix.replace("x.", "devil.")).write_bytes(data)
    deb = debs / "dict-devil_1.0_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", root, deb], check=True, capture_output=True)
    command = [sys.executable, TOOLS / "corpus.py", "-o", to, "--debs", debs, "--only", "devils-dictionary"]
    subprocess.run(command, check=True, capture_output=True)
    built = Corpus.read(to)
    assert list(built) == [
        Document(
            "ABATIS, n. Rubbish in front of a fort.\n\nSome verse,\nin two lines.", "devils-dictionary", "public domain"
        )
    ]
    assert "| devils-dictionary | dict-devil_1.0_all | public domain | 1 |" in (to / "SOURCES.md").read_text()

    digest = built.digest
    subprocess.run(command, check=True, capture_output=True)
    assert Corpus.read(to).digest == digest
    deb.write_bytes(deb.read_bytes()[:-100])
    failed = subprocess.run(command, check=False, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "is damaged" in failed.stderr.splitlines()[-1]
    assert Corpus.read(to).digest == digest
    assert sorted(path.name for path in to.iterdir()) == ["SOURCES.md", "english-permissive.jsonl.gz"]


def test_where_there_is_no_apt_the_corpus_tool_says_so_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, TOOLS / "corpus.py", "-o", tmp_path],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert done.stderr.startswith("apt-get is not there: ")
    assert len(done.stderr.splitlines()) == 1


def test_the_sample_is_drawn_alike_each_time_and_in_pieces_that_end_with_a_paragraph(tmp_path):
    sample = tool("sample_corpus")
    rows = [
        {"source": share.source, "text": "\n\n".join(f"{share.source} {number} " + "word " * 200 for _ in range(9))}
        for share in sample.MIX
        for number in range(20)
    ]
    corpus = jsonl(tmp_path / "corpus.jsonl.gz", rows)
    for to in ("one", "two"):
        subprocess.run(
            [sys.executable, TOOLS / "sample_corpus.py", corpus, "-o", tmp_path / to], check=True, capture_output=True
        )
        rows.reverse()
        jsonl(corpus, rows)
    assert Corpus.read(tmp_path / "one").digest == Corpus.read(tmp_path / "two").digest
    for document in Corpus.read(tmp_path / "one"):
        assert 4000 < len(document.text) <= 6000
        assert all(paragraph.startswith(document.source) for paragraph in document.text.split("\n\n"))
