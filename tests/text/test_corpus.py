"""Corpus: what is read, again and lazily; who falls on which side of a split; what is said of bad input."""

import gzip
import hashlib
import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemscope.errors import CorruptFile, EmptyText, FileError, HubUnreachable, InputError, MissingDependency, NotFound
from gemscope.text.corpus import Corpus
from gemscope.text.rows import passed_over
from gemscope.text.sources import Document

SAMPLE = Path(__file__).parents[2] / "src" / "gemscope" / "data" / "sample"


def texts(corpus):
    return [document.text for document in corpus]


def jsonl(path, rows):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


@pytest.fixture
def three(tmp_path):
    return jsonl(tmp_path / "three.jsonl", [{"text": "one"}, {"text": "two"}, {"text": "three"}])


# ---------------------------------------------------------------------------------------------------- reading


def test_a_corpus_can_be_read_again(three):
    corpus = Corpus.read(three)
    assert texts(corpus) == texts(corpus) == ["one", "two", "three"]


def test_two_readings_at_once_do_not_disturb_each_other(three):
    first, second = iter(Corpus.read(three)), iter(Corpus.read(three))
    assert [next(first).text, next(second).text, next(first).text] == ["one", "one", "two"]


def test_texts_from_a_generator_can_be_read_again():
    corpus = Corpus.of(f"text {number}" for number in range(3))
    assert texts(corpus) == texts(corpus) == ["text 0", "text 1", "text 2"]


def test_a_single_string_is_one_text():
    assert texts(Corpus.of("The Golden Gate")) == ["The Golden Gate"]


def test_a_text_file_is_one_document_named_after_its_file(tmp_path):
    (tmp_path / "novel.txt").write_bytes("\ufeffFirst.\r\n\r\nSecond: café.\n".encode())
    assert list(Corpus.read(tmp_path / "novel.txt")) == [Document("First.\n\nSecond: café.\n", source="novel.txt")]


def test_rows_say_their_source_and_license(tmp_path):
    rows = [{"text": "a", "source": "austen", "license": "public domain"}, {"text": "b", "source": None, "n": 3}]
    assert list(Corpus.read(jsonl(tmp_path / "rows.jsonl", rows))) == [
        Document("a", "austen", "public domain", 0),
        Document("b", "rows.jsonl", "", 1),
    ]


def test_another_field_can_be_read(tmp_path):
    path = jsonl(tmp_path / "rows.json.gz", [{"content": "a", "text": "b"}])
    assert texts(Corpus.read(path, field="content")) == ["a"]


def test_blank_documents_and_lines_are_passed_over(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n\n{"text": " \\n"}\n{"text": "b"}')
    assert [(document.text, document.index) for document in Corpus.read(tmp_path / "rows.jsonl")] == [
        ("a", 0),
        ("b", 1),
    ]


def test_a_folder_is_read_by_name_with_the_folders_in_it(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("b.txt", "a.txt", "deep/c.txt", "notes.md", ".hidden/d.txt"):
        (tmp_path / name).write_text(name)
    assert texts(Corpus.read(tmp_path)) == ["a.txt", "b.txt", "deep/c.txt"]


def test_globs_and_lists_are_read_in_order(tmp_path):
    for name in ("b.txt", "a.txt", "z.txt"):
        (tmp_path / name).write_text(name)
    assert texts(Corpus.read(tmp_path / "[ab].txt")) == ["a.txt", "b.txt"]
    corpus = Corpus.read([tmp_path / "z.txt", str(tmp_path / "[ab].txt")])
    assert [(document.text, document.index) for document in corpus] == [("z.txt", 0), ("a.txt", 1), ("b.txt", 2)]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    (tmp_path / "[ab].txt").write_text("itself")
    assert texts(Corpus.read(tmp_path / "[ab].txt")) == ["itself"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_no_more_is_read_than_asked_for(tmp_path, name):
    path = tmp_path / name
    data = b'{"text": "a"}\n{"text": "b"}\nbroken\n'
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert texts(Corpus.read(path).take(2)) == ["a", "b"]
    assert [document.text for document in islice(Corpus.read(path), 1)] == ["a"]


def test_memory_stays_small_while_a_long_file_is_read(tmp_path):
    line = json.dumps({"text": "x" * 10_000}).encode() + b"\n"
    with gzip.open(tmp_path / "long.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(50):
            file.write(line * 100)  # 50 MB
    code = (
        "import resource, sys; from gemscope.text.corpus import Corpus\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "count = sum(1 for _ in Corpus.read(sys.argv[1]))\n"
        "print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "long.jsonl.gz")], capture_output=True, text=True, check=True
    )
    count, kilobytes = map(int, done.stdout.split())
    assert count == 5000
    assert kilobytes < 10_000


def test_neither_torch_nor_transformers_is_loaded():
    code = (
        "import sys, gemscope; list(gemscope.Corpus.sample().take(1))\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---------------------------------------------------------------------------------------------------- narrowing


def test_take_and_skip_part_a_corpus_and_keep_positions(three):
    corpus = Corpus.read(three)
    assert texts(corpus.take(2)) == ["one", "two"]
    assert [(document.text, document.index) for document in corpus.skip(1)] == [("two", 1), ("three", 2)]
    assert texts(corpus.skip(0)) == texts(corpus.take(99)) == texts(corpus)
    assert texts(corpus.skip(1).take(1)) == ["two"]


def test_where_and_only_choose(tmp_path):
    rows = [{"text": text, "source": source} for text, source in zip("abcd", "xyxz", strict=True)]
    corpus = Corpus.read(jsonl(tmp_path / "rows.jsonl", rows))
    assert texts(corpus.where(lambda document: document.text > "b")) == ["c", "d"]
    assert texts(corpus.only("x")) == ["a", "c"]
    assert texts(corpus.only(["z", "y"])) == ["b", "d"]
    assert texts(corpus.only("x").skip(1)) == ["c"]


@given(
    st.lists(st.text().filter(str.strip), min_size=1),
    st.floats(0.01, 0.99),
    st.integers(),
    st.randoms(use_true_random=False),
)
def test_a_text_falls_on_the_same_side_wherever_it_stands(given_texts, share, seed, random):
    shuffled = random.sample(given_texts * 2, 2 * len(given_texts))
    train, held_out = (sides(half) for half in Corpus.of(given_texts).split(share, seed))
    train_too, held_out_too = (sides(half) for half in Corpus.of(shuffled).split(share, seed))
    assert set(train) == set(train_too)
    assert set(held_out) == set(held_out_too)
    assert not set(train) & set(held_out)
    assert Counter(train_too) + Counter(held_out_too) == Counter(shuffled)


def sides(half):
    """The texts on one side, of which there may be none."""
    try:
        return texts(half)
    except EmptyText:
        return []


def test_a_split_holds_out_its_share_and_the_seed_changes_who():
    corpus = Corpus.of(f"document {number}" for number in range(5000))
    train, held_out = corpus.split(0.1)
    assert 400 < len(texts(held_out)) < 600
    assert len(texts(train)) + len(texts(held_out)) == 5000
    assert texts(corpus.split(0.1, seed=1)[1]) != texts(held_out)
    assert set(texts(corpus.split(0.05)[1])) < set(texts(held_out))


def test_a_split_of_a_split_draws_anew():
    train, _ = Corpus.of(f"document {number}" for number in range(5000)).split(0.1)
    _, validation = train.split(0.1)
    assert 300 < len(texts(validation)) < 600


def test_a_split_is_the_same_in_every_process_and_version():
    _, held_out = Corpus.of(f"document {number}" for number in range(100)).split(0.05, seed=7)
    assert texts(held_out) == HELD_OUT


HELD_OUT = ["document 32", "document 41", "document 90", "document 96"]


# ---------------------------------------------------------------------------------------------------- identity


def test_names_say_where_text_is_from_and_how_it_was_narrowed(three):
    assert Corpus.sample().take(200).name == "sample.take(200)"
    assert Corpus.read(three).split(0.1)[1].name == "three.jsonl.split(0.1, seed=0).held_out"
    assert repr(Corpus.read(three).only(["b", "a"])) == "Corpus('three.jsonl.only(a, b)')"


def test_the_digest_tells_texts_and_narrowings_apart(three, tmp_path):
    other = jsonl(tmp_path / "other.jsonl", [{"text": "one"}])
    digests = [
        corpus.digest
        for path in (three, other)
        for whole in (Corpus.read(path), Corpus.read(path, field="body"), Corpus.read([three, path]))
        for corpus in (whole, whole.take(1), whole.take(2), whole.skip(1), *whole.split(), *whole.split(seed=1))
    ]
    assert len(set(digests)) == len(digests)
    assert Corpus.of(["ab", "c"]).digest != Corpus.of(["a", "bc"]).digest


def test_the_digest_does_not_depend_on_where_a_file_lies(three, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "copy.jsonl"
    copy.write_bytes(three.read_bytes())
    assert Corpus.read(copy).take(1).digest == Corpus.read(three).take(1).digest
    assert Corpus.read(three).digest == hashlib.sha256(three.read_bytes()).hexdigest()


def test_the_digest_of_a_long_file_sees_its_size_and_both_ends(tmp_path):
    path = tmp_path / "long.txt"
    found = set()
    for data in (b"a" * 3_000_000, b"a" * 3_000_001, b"b" + b"a" * 2_999_999, b"a" * 2_999_999 + b"b"):
        path.write_bytes(data)
        found.add(Corpus.read(path).digest)
    assert len(found) == 4


def test_the_digest_tells_predicates_apart_and_knows_them_again(three):
    corpus = Corpus.read(three)

    def longer(least):
        return corpus.where(lambda document: len(document.text) > least).digest

    assert longer(3) == longer(3)
    assert longer(3) != longer(4)
    assert corpus.where(lambda document: True, name="a").digest == corpus.where(lambda document: False, name="a").digest


def test_the_digest_of_a_predicate_is_the_same_in_each_process():
    code = (
        "from gemscope.text.corpus import Corpus\n"
        "print(Corpus.of('a').where(lambda document: document.source in {'x', 'y', 'z'}).digest)"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in "1234"
    }
    assert len(found) == 1


# ---------------------------------------------------------------------------------------------------- bad input


def refused(error, pattern, corpus_of):
    with pytest.raises(error, match=pattern) as caught:
        list(corpus_of())
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    refused(NotFound, r"no file .*nowhere\.jsonl", lambda: Corpus.read(tmp_path / "nowhere.jsonl"))
    refused(NotFound, r"no file .*\*\.txt", lambda: Corpus.read(tmp_path / "*.txt"))


def test_a_file_that_went_away_is_named(three):
    corpus = Corpus.read(three)
    three.unlink()
    refused(NotFound, "three.jsonl is no longer there", lambda: corpus)


def test_an_unknown_suffix_names_those_that_are_read(tmp_path):
    (tmp_path / "model.pkl").write_bytes(b"")
    refused(
        InputError,
        r"model\.pkl has a suffix that is not read: \.txt, \.jsonl",
        lambda: Corpus.read(tmp_path / "model.pkl"),
    )
    refused(InputError, r"model\.pkl", lambda: Corpus.read(tmp_path / "*"))


def test_nothing_to_read_is_an_error(tmp_path, three):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.txt").write_text(" \n")
    refused(EmptyText, "no text files in folder", lambda: Corpus.read(tmp_path / "empty"))
    refused(EmptyText, r"no documents in blank\.txt", lambda: Corpus.read(tmp_path / "blank.txt"))
    refused(EmptyText, "no files given", lambda: Corpus.read([]))
    refused(EmptyText, "no text here", lambda: Corpus.of([]))
    refused(EmptyText, "no text here", lambda: Corpus.of(["", " "]))
    refused(EmptyText, r"no documents in three\.jsonl\.skip\(3\)", lambda: Corpus.read(three).skip(3))


def test_a_source_that_is_not_there_names_those_that_are(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", [{"text": "a", "source": "austen"}, {"text": "b", "source": "jargon"}])
    refused(
        EmptyText,
        "no document from 'austin': the sources here are 'austen', 'jargon'",
        lambda: Corpus.read(path).only("austin"),
    )


@pytest.mark.parametrize("line", ["broken", '{"text": "cut', "[" * 100_000, "1", '["text"]', "null"])
def test_a_broken_line_is_named_with_its_number(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "fine"}}\n\n{line}\n')
    refused(CorruptFile, r"rows\.jsonl line 3( is|: it is) .*one object a line", lambda: Corpus.read(path))


def test_a_missing_field_names_the_fields_that_are_there(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", [{"body": "a", "id": 0}, {"body": "b", "id": 1}])
    refused(
        InputError,
        r"no field 'text' in .*line 1: the fields there are 'body', 'id'; .*field=",
        lambda: Corpus.read(path),
    )


@pytest.mark.parametrize(("value", "kind"), [(3, "int"), (["a"], "list"), ({"a": "b"}, "dict"), (True, "bool")])
def test_a_field_that_is_never_text_names_its_type(tmp_path, value, kind):
    path = jsonl(tmp_path / "rows.jsonl", [{"text": None}, {"text": value}, {"text": value}])
    refused(InputError, rf"field 'text' in .*line 2 is of type {kind}", lambda: Corpus.read(path))


def test_a_wrong_field_is_told_long_before_the_end(tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text('{"body": "a"}\n' * 1000 + "broken\n")
    refused(InputError, "no field 'text' in .*line 1", lambda: Corpus.read(path))


ODD = [None, "", " \n", 1984, 0.5, True, ["a"], {"a": "b"}, "half \ud83d of a pair"]
WHY = {"null": 2, "blank": 2, "other": 5, "broken": 1}
"""Of ODD and a row without the field."""
TOLD = (
    "10 rows passed over: 2 blank, 2 null or without the field, 5 a number, a list or another thing than text, "
    "1 with half a surrogate pair, which no tokenizer reads"
)


def with_odd_rows(path):
    odd = [{"text": value, "source": "odd"} for value in ODD] + [{"body": "no text here"}]
    return jsonl(path, [odd[0], odd[3], {"text": "first"}, *odd[1:3], *odd[4:], {"text": "last", "source": 7}])


def test_rows_without_a_text_do_not_end_a_reading_and_are_counted_by_reason(tmp_path):
    corpus = Corpus.read([with_odd_rows(tmp_path / "a.jsonl"), jsonl(tmp_path / "b.jsonl", [{"text": "more"}])])
    assert [(document.text, document.index) for document in corpus] == [("first", 0), ("last", 1), ("more", 2)]
    for narrowed, texts_left in ((corpus, 3), (corpus.skip(1), 2), (corpus.only("a.jsonl"), 2)):
        passed = Counter()
        assert sum(1 for _ in narrowed.documents(passed)) == texts_left
        assert passed == WHY
    assert passed_over(passed) == TOLD


def test_what_was_not_read_is_not_counted(tmp_path):
    passed = Counter()
    assert [one.text for one in Corpus.read(with_odd_rows(tmp_path / "a.jsonl")).take(1).documents(passed)] == ["first"]
    assert passed == {"null": 1, "other": 1}
    assert passed_over({}) == ""
    assert passed_over({"null": 1}) == "1 row passed over: 1 null or without the field"


def test_where_every_row_is_without_a_text_it_says_so(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", [{"text": None}] * 3 + [{"text": " "}])
    refused(
        EmptyText,
        r"no documents in rows\.jsonl: there is nothing to read \(4 rows passed over: 1 blank, 3 null or without",
        lambda: Corpus.read(path),
    )


def test_a_later_file_without_the_field_is_named(tmp_path):
    first = jsonl(tmp_path / "1.jsonl", [{"text": "a"}])
    second = jsonl(tmp_path / "2.jsonl", [{"body": "b"}] * 2)
    refused(InputError, r"no field 'text' in .*2\.jsonl line 1", lambda: Corpus.read([first, second]))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["latin.txt", "latin.jsonl"])
def test_invalid_utf8_is_named_with_its_place(tmp_path, name, mark):
    data = mark + b'{"text": "caf\xe9"}\n'
    (tmp_path / name).write_bytes(data)
    refused(
        CorruptFile, rf"{name} is not UTF-8 at byte {data.index(0xE9)} \(0xe9\)", lambda: Corpus.read(tmp_path / name)
    )


def test_invalid_utf8_in_a_later_line_is_named_with_its_place_in_the_file(tmp_path):
    data = '{"text": "ähnlich"}\n'.encode() + b'{"text": "\xff"}\n'
    with gzip.open(tmp_path / "rows.jsonl.gz", "wb") as file:
        file.write(data)
    refused(
        CorruptFile, rf"at unpacked byte {data.index(0xFF)} \(0xff\)", lambda: Corpus.read(tmp_path / "rows.jsonl.gz")
    )


def test_half_a_surrogate_pair_is_not_text(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a\\ud83d"}\n{"text": "\\ud83d\\ude00"}\n')
    assert texts(Corpus.read(tmp_path / "rows.jsonl")) == ["\N{GRINNING FACE}"]
    refused(InputError, "text 1 holds half a surrogate pair", lambda: Corpus.of(["fine", "\udc00"]))


def test_a_gzip_file_that_is_cut_short_is_named(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl.gz", [{"text": str(number)} for number in range(1000)])
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], b"not gzip at all", whole[:100] + bytes(50) + whole[150:]):
        path.write_bytes(data)
        refused(CorruptFile, r"rows\.jsonl\.gz", lambda: Corpus.read(path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(three):
    three.chmod(0)
    refused(FileError, "permission denied", lambda: Corpus.read(three))


def test_texts_that_are_not_strings_are_refused():
    refused(InputError, "text 1 is of type bytes", lambda: Corpus.of(iter(["a", b"b"])))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_a_share_that_is_none_is_refused(three, share):
    refused(InputError, "held_out=", lambda: Corpus.read(three).split(share)[0])


def test_numbers_of_documents_that_make_no_sense_are_refused(three):
    refused(InputError, r"take\(0\)", lambda: Corpus.read(three).take(0))
    refused(InputError, r"skip\(-1\)", lambda: Corpus.read(three).skip(-1))
    refused(InputError, "at least one source", lambda: Corpus.read(three).only([]))


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
