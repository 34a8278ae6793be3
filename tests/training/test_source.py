"""Where a run's rows come from: that streams and stores give the same rows, in an order that is good, that repeats
itself, and that can be taken up anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gemscope.activations.harvest import harvest
from gemscope.activations.model import LanguageModel
from gemscope.activations.store import Store
from gemscope.errors import CorruptFile, InputError, Mismatch, NotFinite, NotFound, SiteNotFound
from gemscope.testing import tiny_model
from gemscope.text.corpus import Corpus
from gemscope.training.config import TrainConfig
from gemscope.training.mixing import Mixed
from gemscope.training.shuffle import Shuffle
from gemscope.training.source import Batches, Source, StoreSource, StreamSource
from gemscope.training.train import train

TEXTS = [f"the {n} and the {n + 1} sang, thinking of rivers and hours " * (2 + n % 3) for n in range(25)]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.of(TEXTS)


@pytest.fixture(scope="module")
def store(model: LanguageModel, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Store:
    to = tmp_path_factory.mktemp("store") / "store"
    return harvest(model, corpus, ["2.res", "0.mlp"], to=to, length=24, batch=4)


@pytest.fixture(scope="module")
def sinking() -> LanguageModel:
    """One of its tokens is enormous in the embedding, but not after the norm in front of attention."""
    model = tiny_model("llama", seed=1)
    model.hf.model.embed_tokens.weight[model.tokenizer("the")["input_ids"][-1]] *= 1000
    return model


def as_set(rows: Tensor) -> set[tuple[float, ...]]:
    return set(map(tuple, rows.tolist()))


def stream(model: LanguageModel, corpus: Corpus, *sites: str, buffer: int = 200, rows: int = 4) -> StreamSource:
    return StreamSource(model, corpus, list(sites), buffer=buffer, length=24, rows=rows)


# --- stores ---------------------------------------------------------------------------------------------------------


def test_rows_of_several_sites_are_pairs_and_those_of_old_stores_that_are_not_are_refused(
    sinking: LanguageModel, corpus: Corpus, tmp_path: Path
) -> None:
    sites = ["embed", "0.att"]
    store = harvest(sinking, corpus, sites, to=tmp_path / "store", length=24, batch=4)
    assert store.manifest.dropped["0.att"]["sink"] > 0
    x, y = StoreSource(store, "embed", "0.att").rows(slice(3, 9))
    assert torch.equal(x, store["embed"][slice(3, 9)])
    assert torch.equal(y, store["0.att"][slice(3, 9)])
    both, same = StoreSource(store, sites).rows(slice(3, 9))
    assert torch.equal(both, torch.cat([x, y], dim=-1))
    assert same is both
    other = harvest(tiny_model("llama", seed=1), corpus, sites, to=tmp_path / "other", length=24, batch=4)
    mixed = Store(store.folder)
    mixed._opened = lambda site, number: (store if site == "embed" else other)._opened(site, number)  # type: ignore[method-assign]
    mixed.manifest.sites["0.att"] = other.manifest.sites["0.att"]  # type: ignore[index]
    mixed.manifest.shards["0.att"] = other.manifest.shards["0.att"]  # type: ignore[index]
    with pytest.raises(InputError, match=r"hold different tokens .* harvest again") as raised:
        StoreSource(mixed, "embed", "0.att")
    assert "\n" not in str(raised.value)


def test_a_store_of_another_site_is_refused(store: Store) -> None:
    with pytest.raises(NotFound, match=r"no 1\.att in .* it holds 0\.mlp, 2\.res"):
        StoreSource(store, "1.att")
    with pytest.raises(NotFound, match=r"no 1\.att"):
        StoreSource(store, "2.res", "1.att")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_no_number_is_refused_when_it_is_read(value: float, store: Store, tmp_path: Path) -> None:
    shard = {name: tensor.clone() for name, tensor in store["2.res"]._shards[0].items()}
    shard["values"][17, 5] = value
    text = (store.folder / "manifest.json").read_text()
    (tmp_path / "copy" / "2.res").mkdir(parents=True)
    (tmp_path / "copy" / "manifest.json").write_text(text)
    save_file(shard, tmp_path / "copy" / "2.res" / "00000-00.safetensors")
    source = StoreSource(Store(tmp_path / "copy"), "2.res")
    source.rows(torch.tensor([16, 18]))
    with pytest.raises(NotFinite, match=r"NaN or Inf among the rows of 2\.res") as raised:
        source.rows(torch.tensor([16, 17]))
    assert "\n" not in str(raised.value)
    with pytest.raises(CorruptFile, match=r"2\.res/00000-00\.safetensors"):
        source.store.verify()  # and here that is why


def test_a_batch_of_a_store_comes_from_everywhere() -> None:
    """2,000 documents of 50 rows: a batch of 500 meets as many as draws from all rows at once would."""
    shuffle = Shuffle(100_000, 500, seed=1)
    expected = 2_000 * (1 - (1 - 1 / 2_000) ** 500)
    for step in (0, 1, 7, 199, 200, 321):
        batch = shuffle[step]
        assert len(torch.unique(batch // 50)) > 0.95 * expected
        # No two neighbours of the text are neighbours in the batch, more than chance would have it.
        assert (batch.diff().abs() < 50).float().mean() < 0.01
        assert abs(batch.float().mean() - 50_000) < 6 * 100_000 / (12 * 500) ** 0.5


# --- streams --------------------------------------------------------------------------------------------------------


def test_both_sources_are_sources(model: LanguageModel, corpus: Corpus, store: Store) -> None:
    for source in (StoreSource(store, "2.res"), stream(model, corpus, "2.res")):
        assert isinstance(source, Source)
        assert isinstance(source.batches(16, 0), Batches)
        x, y = source.batches(16, 0)[0]
        assert y is x
        assert x.shape == (16, source.widths[0][0])
        assert x.dtype == torch.float16  # as it is stored
    one, two = StoreSource(store, "2.res", "0.mlp"), StreamSource(model, corpus, "2.res", "0.mlp")
    assert (one.reads, one.writes, one.widths) == (two.reads, two.writes, two.widths)


def test_a_stream_reads_the_rows_that_a_harvest_stores(model: LanguageModel, corpus: Corpus, store: Store) -> None:
    read = torch.cat(list(StreamSource(model, corpus, "2.res", "0.mlp", length=24, rows=4).read()))
    assert torch.equal(read.float(), torch.cat([store["2.res"][slice(None)], store["0.mlp"][slice(None)]], dim=-1))


@pytest.mark.parametrize("buffer", [200, 1 << 19])
def test_a_stream_gives_pairs_and_nothing_else(buffer: int, model: LanguageModel, corpus: Corpus, store: Store) -> None:
    """A buffer that is smaller than the corpus, and one that holds it all."""
    known = dict(zip(map(tuple, store["2.res"][slice(None)].tolist()), store["0.mlp"][slice(None)], strict=True))
    source = StreamSource(model, corpus, "2.res", "0.mlp", buffer=buffer, length=24, rows=4)
    batches = source.batches(32, 0)
    for step in range(30):
        for x, y in zip(*batches[step], strict=True):
            assert torch.equal(known[tuple(x.tolist())], y)


def test_sinks_are_left_out_of_a_stream_whatever_its_sites(sinking: LanguageModel, corpus: Corpus) -> None:
    alone = torch.cat(list(stream(sinking, corpus, "0.att").read()))
    pairs = torch.cat(list(stream(sinking, corpus, "embed", "0.att").read()))
    only = torch.cat(list(stream(sinking, corpus, "embed").read()))
    every = sum(int(rows.counted.sum()) for rows in sinking.rows(corpus, length=24, batch=4))
    assert len(alone) == len(pairs) == len(only) < every
    assert torch.equal(pairs[:, :32], only)
    assert torch.equal(pairs[:, 32:], alone)


@pytest.mark.parametrize("buffer", [200, 1 << 19])
def test_the_same_seed_gives_the_same_batches_wherever_one_begins(
    buffer: int, model: LanguageModel, corpus: Corpus
) -> None:
    source = stream(model, corpus, "2.res", buffer=buffer)
    first = source.batches(32, 5)
    sample = first.sample(50)[0]
    read = [first[step][0] for step in range(40)]
    resumed = source.batches(32, 5)
    assert torch.equal(resumed.sample(50)[0], sample)
    for step in (23, 24, 39, 3, 39):  # forwards, and backwards too
        assert torch.equal(resumed[step][0], read[step])
    assert torch.equal(first[39][0], read[39])
    assert torch.equal(first[0][0], read[0])
    assert torch.equal(first.sample(50)[0], sample)
    other = source.batches(32, 6)
    assert not torch.equal(other[0][0], read[0])
    assert not torch.equal(read[0], read[1])


def test_the_sample_is_of_rows_that_are_trained_on_too(model: LanguageModel, corpus: Corpus) -> None:
    batches = stream(model, corpus, "2.res").batches(32, 0)
    sample = as_set(batches.sample(60)[0])
    assert len(sample) == 60
    assert sample <= as_set(torch.cat([batches[step][0] for step in range(100)]))


def test_what_a_stream_cannot_do_is_one_line(model: LanguageModel, corpus: Corpus) -> None:
    with pytest.raises(SiteNotFound, match="no layer 30"):
        stream(model, corpus, "30.res")
    with pytest.raises(InputError, match="a transcoder reads one"):
        StreamSource(model, corpus, ["2.res", "1.res"], "0.mlp")
    with pytest.raises(InputError, match="batch=300 is more than buffer=200"):
        stream(model, corpus, "2.res").batches(300, 0)
    with pytest.raises(InputError, match="'float8': choose from float16"):
        StreamSource(model, corpus, "2.res", dtype="float8")
    with pytest.raises(InputError, match="the stream gave no rows"):
        stream(model, Corpus.of(["a"]), "2.res").batches(10, 0)[0]


def test_a_stream_of_what_is_no_number_is_refused(corpus: Corpus) -> None:
    model = tiny_model("llama")
    model.hf.model.embed_tokens.weight[model.tokenizer("the")["input_ids"][-1], 3] = float("nan")
    with pytest.raises(NotFinite, match="NaN or Inf at embed") as raised:
        stream(model, corpus, "embed").batches(10, 0)[0]
    assert "\n" not in str(raised.value)


class PowerCut(BaseException):
    pass


def test_a_run_on_a_stream_that_was_cut_off_ends_as_if_it_had_not_been(
    model: LanguageModel, corpus: Corpus, tmp_path: Path
) -> None:
    config = TrainConfig(width=48, target_l0=4.0, rows=24 * 32, batch=32, checkpoint_every=8, log_every=1, seed=5)

    def cut(what: str, total: int | None, unit: str):  # type: ignore[no-untyped-def]
        done = [0]

        def advance(rows: int) -> None:
            done[0] += rows
            if done[0] >= 13 * 32:
                raise PowerCut

        return nullcontext(advance)

    whole = train(stream(model, corpus, "2.res"), config, to=tmp_path / "whole")
    with pytest.raises(PowerCut):
        train(stream(model, corpus, "2.res"), config, to=tmp_path / "cut", progress=cut)
    assert not (tmp_path / "cut" / "sae").exists()
    again = train(stream(model, corpus, "2.res"), config, to=tmp_path / "cut")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    assert len(logs[0]) == len(logs[1])
    with pytest.raises(Mismatch, match="other settings or data"):
        train(stream(model, corpus, "2.res", buffer=100), config, to=tmp_path / "cut")
    other = tiny_model("llama", dtype=torch.bfloat16)
    with pytest.raises(Mismatch, match=r"another number format, float32 where this is bfloat16 .*--dtype float32"):
        train(stream(other, corpus, "2.res"), config, to=tmp_path / "cut")


# --- mixing ---------------------------------------------------------------------------------------------------------


def documents(count: int, rows: int, d: int = 16) -> Iterator[Tensor]:
    """Rows whose first number is their document and second their place in all; the others are much alike within a
    document, and drift slowly from one to the next, as text does.
    """
    generator = torch.Generator().manual_seed(0)
    topic = torch.randn(d, generator=generator)
    for document in range(count):
        topic = 0.8 * topic + 0.6 * torch.randn(d, generator=generator)
        values = topic + 0.5 * torch.randn(rows, d, generator=generator)
        place = torch.arange(document * rows, (document + 1) * rows)[:, None]
        yield torch.cat([torch.full((rows, 1), float(document)), place.float(), values], dim=-1)


def test_a_batch_of_the_buffer_meets_as_many_documents_as_a_draw_of_all_of_it_would() -> None:
    rows, buffer, batch = 50, 20_000, 500
    mixed = Mixed(lambda: documents(2_000, rows), buffer=buffer, batch=batch, seed=0)
    held = buffer // rows
    expected = held * (1 - (1 - 1 / held) ** batch)
    for step in range(0, 150, 10):
        assert len(torch.unique(mixed[step][:, 0])) >= 0.9 * expected


def test_neighbours_in_a_batch_are_no_more_alike_than_any_two_rows_of_it() -> None:
    mixed = Mixed(lambda: documents(2_000, 50), buffer=20_000, batch=500, seed=0)
    arriving = torch.cat(list(documents(200, 50)))[:, 2:]
    read = torch.cat([mixed[step] for step in range(100)])[:, 2:]
    arriving, read = (part / part.norm(dim=-1, keepdim=True) for part in (arriving, read))

    def alike(part: Tensor, other: Tensor) -> float:
        return (part * other).sum(-1).mean().item()

    apart = read[torch.randperm(len(read), generator=torch.Generator().manual_seed(1))]
    assert alike(arriving[1:], arriving[:-1]) > 0.7
    assert alike(read[1:], read[:-1]) == pytest.approx(alike(read, apart), abs=0.02)


def test_each_row_comes_out_once_a_reading() -> None:
    mixed = Mixed(lambda: documents(100, 50), buffer=1_000, batch=100, seed=3)
    read = torch.cat([mixed[step] for step in range(45)])[:, 1].long()
    # 5,000 rows in all: the first reading fed the buffer until the 40th batch, and the next feeds it since.
    assert torch.bincount(read[:4_000]).max() == 1
    assert torch.bincount(read).max() <= 2
    assert len(torch.unique(read)) > 4_000


def test_a_stream_that_fits_the_buffer_is_read_once_and_comes_out_once_an_epoch() -> None:
    readings = [0]

    def read() -> Iterator[Tensor]:
        readings[0] += 1
        return documents(20, 50)

    mixed = Mixed(read, buffer=5_000, batch=300, seed=3)
    out = torch.cat([mixed[step] for step in range(10)])[:, 1].long()
    for epoch in range(3):
        assert torch.unique(out[1_000 * epoch : 1_000 * (epoch + 1)]).numel() == 1_000
    assert readings == [1]


def test_a_stream_of_pieces_of_any_size_is_the_same_stream() -> None:
    rows = torch.cat(list(documents(40, 50)))
    one = Mixed(lambda: iter([rows]), buffer=700, batch=64, seed=0)
    two = Mixed(lambda: iter(rows.split(33)), buffer=700, batch=64, seed=0)
    for step in range(60):
        assert torch.equal(one[step], two[step])


def test_text_that_can_be_read_only_once_is_refused_when_it_ends() -> None:
    pieces = documents(10, 50)
    mixed = Mixed(lambda: pieces, buffer=400, batch=100, seed=0)
    with pytest.raises(InputError, match="once and no more"):
        mixed[5]
