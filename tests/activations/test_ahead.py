"""Reading one batch ahead, as on a GPU: the same bytes, nothing read beyond what is asked for, errors in their turn. The
processor is made to pass for a device that works by itself.
"""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import gemscope as gs
from gemscope.activations import ahead as reading
from gemscope.activations.ahead import ahead, enough
from gemscope.atlas.describe.gather import DescribeConfig
from gemscope.errors import NotFinite
from gemscope.features.kernels.choice import using
from gemscope.features.sae import SAE, SAEInfo
from gemscope.testing import D_MODEL, tiny_model
from gemscope.text.corpus import Corpus
from gemscope.text.sources import Document

CPU = torch.device("cpu")


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_works_by_itself", lambda device: True)


def test_the_next_is_made_while_this_one_is_used(beside: None) -> None:
    begun = [threading.Event() for _ in range(4)]

    def work(number: int) -> int:
        begun[number].set()
        return number * number

    for number, made in ahead(iter(range(3)), work, CPU):
        assert made == number * number
        if number < 2:  # it would never begin were it not made beside
            assert begun[number + 1].wait(120)
    assert not begun[3].is_set()


def test_an_error_comes_in_its_turn_and_nothing_stays_behind(beside: None) -> None:
    before, seen = threading.active_count(), []

    def work(number: int) -> int:
        if number == 2:
            raise NotFinite("the third")
        return number

    with pytest.raises(NotFinite, match="the third"):
        seen.extend(number for number, _ in ahead(iter(range(9)), work, CPU))
    assert seen == [0, 1]
    for number, _ in ahead(iter(range(9)), lambda number: number, CPU):
        if number == 1:
            break
    assert threading.active_count() == before


def test_what_surrounds_the_caller_surrounds_the_work(beside: None) -> None:
    from gemscope.features.kernels.choice import choose

    with using("torch"):
        assert [made for _, made in ahead([1, 2], lambda _: choose(CPU).name, CPU)] == ["torch", "torch"]


def test_no_text_is_read_beyond_what_is_asked_for() -> None:
    model, read = tiny_model("llama"), []

    def documents() -> Iterator[Document]:
        for document in Corpus.of([f"the rivers and the hours {number} " * 3 for number in range(40)]):
            read.append(document)
            yield document

    rows = list(enough(model.rows(documents(), length=16, batch=2), 64))
    assert [int(one.real.sum()) for one in rows] == [32, 32]
    assert len(read) < 10
    assert sum(int(one.real.sum()) for one in enough(model.rows(documents(), length=16, batch=2), None)) > 64
    assert len(read) > 40


@pytest.mark.parametrize("tokens", [None, 96])
def test_what_is_read_ahead_is_the_same_to_the_byte(
    tokens: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unchecked: None
) -> None:
    model = tiny_model("gemma2")
    sae = SAE(D_MODEL, 64, gate="relu", site="1.res", info=SAEInfo(name="random"))
    generator = torch.Generator().manual_seed(0)
    for weight in sae.parameters():
        weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    # A row without text among them: each that is read is counted.
    corpus = Corpus.read(_lines(tmp_path / "text.jsonl"))
    config = DescribeConfig(length=16, batch=2, before=4, after=3, effect=0, partners=3, neighbours=3)
    found = []
    for name in ("after", "beside"):
        monkeypatch.setattr(reading, "_works_by_itself", lambda device, name=name: name == "beside")
        to = tmp_path / name
        gs.harvest(model, corpus, ["1.res", "0.mlp"], to=to / "harvest", length=16, batch=2, tokens=tokens)
        gs.describe(model, sae, corpus, to=to / "atlas", config=config, tokens=tokens, map=False)
        report = gs.score(model, sae, corpus, length=16, batch=2, tokens=tokens, loss_tokens=40).to_dict()
        files = {str(path.relative_to(to)): path.read_bytes() for path in to.rglob("*") if path.is_file()}
        found.append((files, report))
    assert found[0] == found[1]
    assert sum(found[0][1]["passed"].values()) > 0  # type: ignore[attr-defined]


def _lines(path: Path) -> Path:
    lines = [f'{{"text": "the rivers and the hours sang in {number}"}}' for number in range(30)]
    for place in (25, 12, 9, 4, 3, 2, 1):
        lines.insert(place, '{"text": null}')
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
