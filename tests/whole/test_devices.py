"""Every way through text on a device that is not there: nothing mixes devices, whichever side of the model and the SAE is
on it, and what comes out is what the processor says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import gemscope as gs
from gemscope.activations.model import LanguageModel
from gemscope.atlas.describe.gather import DescribeConfig
from gemscope.errors import InputError, Mismatch
from gemscope.features.kernels.choice import using
from gemscope.features.sae import SAE, SAEInfo
from gemscope.testing import D_MODEL, tiny_model
from gemscope.text.corpus import Corpus
from pretended import pretended

TEXTS = [
    f"the {word} and the {word} sang in {word * 3}, thinking of rivers and hours" for word in ("one", "two", "sun")
]
LABELLED = [(f"{text} {number}", "ab"[number % 2]) for number, text in enumerate(TEXTS * 4)]
CONFIG = DescribeConfig(length=24, batch=2, before=4, after=3, effect=24, partners=3, neighbours=3)


@pytest.fixture(autouse=True)
def one_kind_of_kernels() -> Iterator[None]:
    """The device has torch's alone, and so has the processor here: the same to the last bit."""
    with using("torch"):
        yield


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.of([*TEXTS, "the end and the ending " * 9])


@pytest.fixture
def model() -> LanguageModel:
    model = tiny_model("gemma2")
    model.hf.set_attn_implementation("eager")  # of sdpa torch has others for each device
    return model


def sae_of(kind: str) -> SAE:
    options: dict[str, dict[str, Any]] = {
        "jumprelu": {"site": "1.res"},
        "topk": {"gate": "topk", "k": 5, "site": "1.res"},
        "transcoder": {"gate": "relu", "skip": True, "site": "1.transcoder", "site_out": "1.mlp"},
    }
    sae = SAE(D_MODEL, 80, info=SAEInfo(name=kind), **options[kind])
    generator = torch.Generator().manual_seed(0)
    for weight in sae.parameters():
        weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    if sae.threshold is not None:
        sae.threshold.abs_()
    return sae


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def as_read(report: Any) -> dict[str, Any]:
    """But for the device, which is another one."""
    return {name: value for name, value in report.to_dict().items() if name != "computed"}


Way = Callable[[LanguageModel, SAE, Corpus, Path], Any]


def _harvest(model: LanguageModel, sae: SAE, corpus: Corpus, to: Path) -> Any:
    assert sae.site is not None
    gs.harvest(model, corpus, [sae.site, "0.mlp"], to=to, length=24, batch=2)
    return files_of(to)


def _describe(model: LanguageModel, sae: SAE, corpus: Corpus, to: Path) -> Any:
    return files_of(gs.describe(model, sae, corpus, to=to, config=CONFIG).folder)


def _edits(model: LanguageModel, sae: SAE, corpus: Corpus, to: Path) -> Any:
    whole = gs.Replace(sae) if sae.is_transcoder else gs.Splice(sae, error=False)
    with model.edited(gs.Steer(sae, 3, 2.0), gs.Clamp(sae, 4, 1.0), gs.Ablate(sae, 5), gs.Cap(sae, 6, high=0.5)):
        changed = model.logits(TEXTS[0]).cpu()
    with model.edited(whole):
        return changed.tolist(), model.logits(TEXTS[0]).cpu().tolist(), model.generate(TEXTS[0], max_new_tokens=3)


WAYS: dict[str, Way] = {
    "harvest": _harvest,
    "describe": _describe,
    "score": lambda model, sae, corpus, to: as_read(gs.score(model, sae, corpus, length=24, batch=2)),
    "probe": lambda model, sae, corpus, to: as_read(gs.sparse_probe(model, sae, LABELLED, length=12)),
    "look": lambda model, sae, corpus, to: as_read(gs.look(model, sae, TEXTS[0])),
    "check": lambda model, sae, corpus, to: as_read(gs.check(model, sae, corpus)),
    "attribute": lambda model, sae, corpus, to: as_read(gs.attribute(model, sae, TEXTS[0])),
    "compare texts": lambda model, sae, corpus, to: as_read(gs.compare_texts(model, sae, *TEXTS[:2])),
    "edits": _edits,
}


# Where the model is on the device, and where the SAE; what takes longest is tried in one way.
BOTH, MODEL, SAE_ = (True, True), (True, False), (False, True)


@pytest.mark.parametrize(
    ("way", "kind", "there"),
    [
        *((way, kind, BOTH) for way in ("harvest", "describe") for kind in ("jumprelu", "transcoder")),
        *((way, "topk", there) for way in ("look", "edits") for there in (BOTH, MODEL, SAE_)),
        ("score", "jumprelu", BOTH),
        ("score", "transcoder", MODEL),
        ("check", "jumprelu", BOTH),
        ("probe", "jumprelu", BOTH),
        ("probe", "topk", MODEL),
        ("describe", "topk", SAE_),
        ("attribute", "jumprelu", BOTH),
        ("attribute", "jumprelu", SAE_),
        ("compare texts", "jumprelu", BOTH),
    ],
)
def test_it_says_the_same_wherever_model_and_sae_are(
    way: str,
    kind: str,
    there: tuple[bool, bool],
    model: LanguageModel,
    corpus: Corpus,
    tmp_path: Path,
    unchecked: None,
) -> None:
    sae = sae_of(kind)
    expected = WAYS[way](model, sae, corpus, tmp_path / "here")
    with pretended() as (device, _):
        for one, moved in zip((model.hf, sae), there, strict=True):
            one.to(device if moved else "cpu")
        assert WAYS[way](model, sae, corpus, tmp_path / "there") == expected


def test_what_is_mixed_by_hand_goes_where_it_belongs(model: LanguageModel) -> None:
    sae, x = sae_of("jumprelu"), torch.randn(5, D_MODEL, generator=torch.Generator().manual_seed(1))
    tokens = model.tokens(TEXTS[0])
    logits, dense = model.logits(tokens), sae.encode_dense(x)
    written = sae.decode(gs.FeatureActivations.from_dense(dense))
    for at, other in ((0, 1), (1, 0)):
        with pretended() as (device, _):
            here, there = (torch.device("cpu"), device)[at], (torch.device("cpu"), device)[other]
            model.hf.to(here)
            sae.to(here)
            elsewhere = replace(
                tokens, ids=tokens.ids.to(there), real=tokens.real.to(there), counted=tokens.counted.to(there)
            )
            assert torch.equal(model.logits(elsewhere).cpu(), logits)
            assert torch.equal(model.logits(tokens.ids.to(there)).cpu(), logits)
            assert model.capture(elsewhere, ["1.res"], device=there)["1.res"].values.device == there
            assert model.gradient(elsewhere, "1.res", lambda logits: logits[0, -1, 3])[1].device == here
            list(model.stream(elsewhere, max_new_tokens=2))
            assert torch.equal(sae.encode(x.to(there)).to_dense().cpu(), sae.encode(x.to(here)).to_dense().cpu())
            assert torch.equal(sae.encode_dense(x.to(there)).cpu(), dense)
            assert torch.equal(sae.decode(dense.to(there)).cpu(), sae.decode(dense.to(here)).cpu())
            features = gs.FeatureActivations.from_dense(dense.to(there))
            assert torch.equal(sae.decode(features).cpu(), written)
            with model.edited(gs.Steer.along("1.res", x[0].to(there), by=2.0)):
                model.logits(tokens)
            with model.edited(gs.Splice(sae, error=False, at=tokens.counted.to(there))):
                model.logits(tokens)
            model.hf.to("cpu")
            sae.to("cpu")


def test_weights_that_were_moved_apart_are_one_line(model: LanguageModel) -> None:
    sae = sae_of("jumprelu")
    with pretended() as (device, _):
        sae.W_dec = torch.nn.Parameter(sae.W_dec.detach().to(device), requires_grad=False)
        for way in (
            lambda: sae.encode(torch.zeros(2, D_MODEL)),
            lambda: sae(torch.zeros(2, D_MODEL)),
            lambda: sae.encode_dense(torch.zeros(2, D_MODEL)),
            lambda: sae.decode(torch.zeros(2, 80)),
            lambda: gs.look(model, sae, TEXTS[0]),
        ):
            with pytest.raises(
                Mismatch, match=rf"^the weights of jumprelu lie on cpu and {device}: move them together"
            ):
                way()
        model.hf.model.layers[1].to(device)
        with pytest.raises(Mismatch, match=rf"^the weights of tiny-gemma2 lie on cpu and {device}: move them together"):
            model.logits(TEXTS[0])


def test_a_device_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    gs.save_sae(sae_of("jumprelu"), tmp_path / "sae")
    for way in (
        lambda device: gs.load_sae(tmp_path / "sae", device=device),
        lambda device: gs.load_model("smollm2", device=device),
    ):
        for device in ("cuda:7", "gpu", "cpu:", "xpu:0", ""):
            with pytest.raises(InputError, match=r"^device .* cannot be used: .*; here there is .*cpu$"):
                way(device)


# Of one batch, more than of two batches less one: what comes but once falls out.
WAITS = {
    # Which tokens are attention sinks, with whether all is finite; and the rows of all sites.
    "harvest": {"from": 2},
    # The same, and all that was found; and the SAE asks whether its numbers are finite.
    "describe": {"from": 2, "item": 1},
    # Encoding, and decoding, which asks how many tokens have many features.
    "score": {"from": 1, "item": 2},
}
KERNELS = {"nonzero", "mask", "bincount"}
"""By which kernels wait for how many entries there are: Triton's once or twice, torch's more often."""


@pytest.mark.parametrize("way", WAITS)
def test_a_batch_waits_for_its_device_no_more_often_than_it_must(
    way: str, model: LanguageModel, tmp_path: Path, unchecked: None
) -> None:
    sae, waits = sae_of("jumprelu"), []
    with pretended() as (device, traffic):
        model.hf.to(device)
        sae.to(device)
        ways: dict[str, Callable[[Corpus, Path], Any]] = {
            "harvest": lambda text, to: gs.harvest(model, text, ["0.mlp", "1.res", "2.res"], to=to, length=24, batch=2),
            "describe": lambda text, to: gs.describe(
                model, sae, text, to=to, config=replace(CONFIG, effect=0), map=False
            ),
            "score": lambda text, to: gs.score(model, sae, text, length=24, batch=2, loss_tokens=0),
        }
        model.capture(TEXTS[0], ["1.res"])  # measures what is an attention sink, once
        assert sae.digest
        traffic.clear()
        model.hf(torch.tensor([[1, 2, 3]], device=device), use_cache=False)
        own = traffic["item"]  # transformers' own, in each pass
        for batches in (3, 5, 7):
            ids = model.tokenizer(" ".join(TEXTS * 30), add_special_tokens=False)["input_ids"]
            text = Corpus.of([model.tokenizer.decode(ids[: 23 * 2 * batches - 1])])
            assert [rows.padded for rows in model.rows(text.documents(Counter()), length=24, batch=2)] == [
                False
            ] * batches
            traffic.clear()
            ways[way](text, tmp_path / str(batches))
            waits.append({name: number for name, number in traffic.items() if name != "to" and name not in KERNELS})
    more = [{name: (b[name] - a[name]) / 2 for name in a} for a, b in pairwise(waits)]
    expected = WAITS[way] | {"item": WAITS[way].get("item", 0) + own}
    assert more == [{name: expected.get(name, 0) for name in more[0]}] * 2
