"""Corpus: what is read, again and lazily; who falls on which side of a split."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemscope.errors import EmptyText
from gemscope.text.corpus import Corpus
from gemscope.text.sources import Document
from written_texts import jsonl, texts

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
