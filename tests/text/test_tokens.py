"""Rows of ids and the masks on them: what counts, and what packing keeps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemscope.errors import EmptyText, InputError
from gemscope.text.tokens import Tokens, pack

PAD, BOS, END = 3, 1, 2  # where a tokenizer has no PAD, an ordinary id pads
SPECIAL = {BOS, END}

documents = st.lists(st.lists(st.integers(3, 40), max_size=12), max_size=8)
lengths = st.integers(2, 9)


@st.composite
def packings(draw):
    given = draw(documents)
    options = {
        "length": draw(lengths),
        "batch": draw(st.integers(1, 4)),
        "bos": draw(st.sampled_from([None, BOS])),
        "separator": draw(st.sampled_from([None, END])),
    }
    return given, options


def packed(given, options):
    return list(pack(given, special=SPECIAL, pad=PAD, **options))


def rows_of(batches):
    """(ids, real, counted, document, offset) of every row, in order, as lists."""
    for tokens in batches:
        fields = (tokens.ids, tokens.real, tokens.counted, tokens.document, tokens.offset)
        yield from zip(*(field.tolist() for field in fields), strict=True)


@settings(max_examples=150, deadline=None)
@given(packings())
def test_packed_rows_laid_end_to_end_are_the_documents(packing):
    given, options = packing
    bos, separator = options["bos"], options["separator"]
    text = []
    for ids, real, *_ in rows_of(packed(given, options)):
        kept = [id_ for id_, is_real in zip(ids, real, strict=True) if is_real]
        if bos is not None:
            assert kept[0] == bos
            kept = kept[1:]
        assert kept, "a row of nothing but BOS"
        text += kept
    tail = [] if separator is None else [separator]
    assert text == [id_ for document in given for id_ in [*document, *tail]]


@settings(max_examples=150, deadline=None)
@given(packings())
def test_every_packed_token_knows_its_document_and_its_place_there(packing):
    given, options = packing
    found = []
    for ids, real, _, document, offset in rows_of(packed(given, options)):
        for position, (id_, is_real, owner, at) in enumerate(zip(ids, real, document, offset, strict=True)):
            if not is_real or (position == 0 and options["bos"] is not None):
                assert owner == at == -1
            elif at == len(given[owner]):
                assert id_ == options["separator"]
            else:
                assert id_ == given[owner][at]
                found.append((owner, at))
    assert found == [(owner, at) for owner, document in enumerate(given) for at in range(len(document))]


@settings(max_examples=150, deadline=None)
@given(packings())
def test_what_is_padding_at_the_end_of_every_row_can_be_left_out(packing):
    for tokens in packed(*packing):
        kept = tokens.trimmed
        longest = int(tokens.real.sum(-1).max())
        assert kept.real[:, -1].any()
        for name in ("ids", "real", "counted", "document", "offset"):
            assert torch.equal(getattr(kept, name), getattr(tokens, name)[:, :longest])


@settings(max_examples=150, deadline=None)
@given(packings())
def test_only_the_last_packed_row_is_padded_and_only_the_last_batch_is_short(packing):
    given, options = packing
    batches = packed(given, options)
    rows = list(rows_of(batches))
    assert all(len(tokens) == options["batch"] for tokens in batches[:-1])
    assert all(1 <= len(tokens) <= options["batch"] for tokens in batches)
    assert all(len(ids) == options["length"] for ids, *_ in rows)
    assert all(all(real) for _, real, *_ in rows[:-1])
    if rows:
        _, real, *_ = rows[-1]
        assert real == sorted(real, reverse=True)  # padding comes last


@settings(max_examples=150, deadline=None)
@given(packings())
def test_packed_tokens_count_unless_special_first_or_padding(packing):

    for ids, real, counted, *_ in rows_of(packed(*packing)):
        expected = [
            is_real and at > 0 and id_ not in SPECIAL for at, (id_, is_real) in enumerate(zip(ids, real, strict=True))
        ]
        assert counted == expected


def test_packing_reads_no_document_before_it_is_needed():
    read = []

    def corpus():
        for number in range(1000):
            read.append(number)
            yield [5] * 10

    first = next(pack(corpus(), length=16, batch=2, special=SPECIAL, bos=BOS, separator=END))
    assert first.ids.shape == (2, 16)
    assert len(read) == 3


def test_a_document_that_is_longer_than_memory_should_be_is_still_packed_in_linear_time():
    rows = sum(len(tokens) for tokens in pack([range(3, 300_003)], length=100, batch=64, special=(), bos=BOS))
    assert rows == -(-300_000 // 99)


@pytest.mark.parametrize(("length", "bos", "needed"), [(1, BOS, 2), (0, None, 1), (-5, BOS, 2)])
def test_rows_without_room_for_text_are_refused(length, bos, needed):
    with pytest.raises(
        InputError, match=f"rows of {length} tokens leave no room for text: at least {needed} are needed"
    ):
        next(pack([[5]], length=length, batch=1, special=(), bos=bos))


def test_batches_without_rows_are_refused():
    with pytest.raises(InputError, match="batch=0: at least 1 row"):
        next(pack([[5]], length=4, batch=0, special=()))


@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=9), min_size=1, max_size=5))
def test_rows_of_any_lengths_are_padded_on_the_side_asked_for(rows):
    longest = max(map(len, rows))
    for side in ("left", "right"):
        tokens = Tokens.of(rows, special=SPECIAL, pad=PAD, side=side)
        assert tokens.ids.shape == (len(rows), longest) == tokens.real.shape
        assert tokens.padded == any(len(row) < longest for row in rows)
        assert len(tokens) == len(rows)
        for row, ids, real, counted, positions in zip(
            rows, tokens.ids, tokens.real, tokens.counted, tokens.positions, strict=True
        ):
            assert ids[real].tolist() == row
            assert bool(real[0 if side == "right" else -1])
            assert positions[real].tolist() == list(range(len(row)))
            assert counted[real].tolist() == [at > 0 and id_ not in SPECIAL for at, id_ in enumerate(row)]
            assert not counted[~real].any()
        every = tokens.every_token
        assert torch.equal(every.counted, tokens.real)
        assert torch.equal(every.ids, tokens.ids)
        assert torch.equal(Tokens.of(rows, special=SPECIAL, side=side, every_token=True).counted, tokens.real)


def test_positions_before_a_row_are_zero_and_never_negative():
    tokens = Tokens.of([[7], [7, 8, 9]], side="left")
    assert tokens.positions.tolist() == [[0, 0, 0], [0, 1, 2]]


@pytest.mark.parametrize("rows", [[], [[]], [[], []]])
def test_no_tokens_at_all_are_refused(rows):
    with pytest.raises(EmptyText, match="no tokens given: there is nothing to read"):
        Tokens.of(rows)
