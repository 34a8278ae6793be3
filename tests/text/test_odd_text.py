"""What is said of bad input: files that are missing, broken or of another kind, rows without a text."""

import gzip
import os
from collections import Counter

import pytest

from gemscope.errors import CorruptFile, EmptyText, FileError, InputError, NotFound
from gemscope.text.corpus import Corpus
from gemscope.text.rows import passed_over
from written_texts import TOLD, WHY, jsonl, refused, texts, with_odd_rows


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
