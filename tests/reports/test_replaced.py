"""All SAEs of a stack in the model at once: beside plain hooks on the model's own modules."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gemscope as gs
from by_hand import features64, planted_clt, random_sae
from gemscope.errors import InputError, Mismatch
from gemscope.features.cross_layer import Flow
from gemscope.reports.scoring import scores
from gemscope.testing import tiny_model

OPTIONS: dict[str, Any] = {"length": 24, "batch": 2}
LAYERS = 3
Made = Callable[[int, Tensor, Tensor], Tensor]
"""From a layer, what its MLP reads before its norm, and what it gave, to what it is to give."""


@pytest.fixture
def model() -> gs.LanguageModel:
    return tiny_model("llama", layers=LAYERS, seed=4)


@pytest.fixture
def corpus() -> gs.Corpus:
    return gs.Corpus.of(["The cat sat on the mat and saw the dog. " * 4, "A dog ran, and the cat ran after it. " * 3])


@contextmanager
def hooked(model: gs.LanguageModel, counted: Tensor, made: Made, *, mlp: bool = True) -> Iterator[None]:
    """What MLPs, or blocks, give on counted tokens, taken from `made`."""
    layers: Any = model.hf.model.layers
    seen: dict[int, Tensor] = {}

    def reads(layer: int, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen[layer] = given[0]

    def writes(layer: int, _: nn.Module, __: object, out: Any) -> Any:
        plain = out[0] if isinstance(out, tuple) else out
        new = torch.where(counted[..., None], made(layer, seen.get(layer, plain), plain), plain)
        return (new, *out[1:]) if isinstance(out, tuple) else new

    handles = []
    for layer, block in enumerate(layers):
        if mlp:
            handles.append(block.post_attention_layernorm.register_forward_pre_hook(partial(reads, layer)))
        handles.append((block.mlp if mlp else block).register_forward_hook(partial(writes, layer)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def measured(model: gs.LanguageModel, corpus: gs.Corpus, made: Made | None, *, mlp: bool = True) -> tuple[float, float]:
    """Mean loss, and KL(clean ‖ changed), over next tokens of counted tokens."""
    total, divergence, n = 0.0, 0.0, 0
    for rows in model.rows(corpus, **OPTIONS):
        counted = model.capture(rows, "0.res")["0.res"].kept
        ids, mask = rows.ids, rows.real
        with torch.no_grad():
            clean = model.hf(input_ids=ids, attention_mask=mask.long()).logits.double().log_softmax(-1)
            changed = clean
            if made is not None:
                with hooked(model, counted, made, mlp=mlp):
                    changed = model.hf(input_ids=ids, attention_mask=mask.long()).logits.double().log_softmax(-1)
        here = counted[:, :-1] & mask[:, 1:]
        total -= changed[:, :-1].gather(-1, ids[:, 1:, None])[..., 0][here].sum().item()
        divergence += (clean.exp() * (clean - changed)).sum(-1)[:, :-1][here].sum().item()
        n += int(here.sum())
    return total / n, divergence / n


def test_a_cross_layer_transcoder_runs_the_model_on_what_all_layers_make_of_what_is_left(
    model: gs.LanguageModel, corpus: gs.Corpus
) -> None:
    clt = planted_clt(model.width("0.mid"), 24, layers=LAYERS)
    seen: list[Tensor] = []

    def made(layer: int, read: Tensor, _: Tensor) -> Tensor:
        if layer == 0:
            seen.clear()
        seen.append(features64(clt.encoders[layer], read))
        out = clt.b_dec[layer].double() + read.double() @ clt.skips[layer].double().T  # type: ignore[union-attr]
        for earlier, features in enumerate(seen):
            out = out + features @ clt.written[earlier].tensor[:, layer - earlier].double()
        return out.to(read)

    (found,) = gs.compare(model, clt, corpus, **OPTIONS).replaced
    clean, _ = measured(model, corpus, None)
    loss, kl = measured(model, corpus, made)
    assert (found.layers, found.name) == (LAYERS, "planted")
    assert found.loss == pytest.approx(clean, rel=1e-5)
    assert found.spliced_loss == pytest.approx(loss, rel=1e-4)
    assert found.kl == pytest.approx(kl, rel=1e-3)
    assert found.delta_loss == pytest.approx(loss - clean, rel=1e-2)
    zeroed, zero_kl = measured(model, corpus, lambda _, __, out: torch.zeros_like(out))
    assert (found.zero_loss, found.zero_kl) == (pytest.approx(zeroed, rel=1e-4), pytest.approx(zero_kl, rel=1e-3))
    assert found.loss_recovered_zero == pytest.approx((zeroed - loss) / (zeroed - clean), rel=1e-2)


@pytest.mark.parametrize("kind", ["res", "mid"])
def test_all_of_a_stack_stand_in_the_model_at_once(model: gs.LanguageModel, corpus: gs.Corpus, kind: str) -> None:
    writes = "res" if kind == "res" else "mlp"
    saes = [random_sae(model, f"{at}.{kind}", seed=at, site_out=f"{at}.{writes}") for at in range(LAYERS)]

    def made(layer: int, read: Tensor, _: Tensor) -> Tensor:
        sae = saes[layer]
        return (features64(sae, read) @ sae.W_dec.double() + sae.b_dec.double()).to(read)

    told = gs.compare(model, saes, corpus, **OPTIONS)
    (found,) = told.replaced
    loss, kl = measured(model, corpus, made, mlp=kind == "mid")
    assert found.spliced_loss == pytest.approx(loss, rel=1e-4)
    assert found.kl == pytest.approx(kl, rel=1e-3)
    assert found.layers == LAYERS
    alone = [gs.score(model, sae, corpus, **OPTIONS) for sae in saes]
    for one, score in zip(told.scores, alone, strict=True):
        assert (one.delta_loss, one.kl) == (pytest.approx(score.delta_loss), pytest.approx(score.kl))
    assert "All 3 in place at once" in str(told)
    assert f"{found.delta_loss:+.4f}" in str(told)
    assert "All 3 in place at once" in told.to_html()
    assert json.loads(json.dumps(told.to_dict()))["replaced"][0]["kl"] == found.kl


def test_what_is_no_stack_is_not_put_in_place_at_once(model: gs.LanguageModel, corpus: gs.Corpus) -> None:
    saes = {site: random_sae(model, site) for site in ("0.res", "1.res", "1.mlp")}
    for sites in (["0.res"], ["0.res", "0.res"], ["0.res", "1.mlp"]):
        assert gs.compare(model, [saes[site] for site in sites], corpus, **OPTIONS).replaced == ()
    both = [saes["0.res"], saes["1.res"]]
    assert gs.compare(model, both, corpus, **OPTIONS, loss_tokens=0).replaced == ()
    assert scores(model, both, corpus, **OPTIONS, together=False).replaced == ()


def test_a_replacement_is_the_same_while_text_is_written_with_the_cache(model: gs.LanguageModel) -> None:
    clt = planted_clt(model.width("0.mid"), 24, layers=LAYERS)
    with model.edited(*gs.replacement(clt)):
        written = model.generate("The cat", max_new_tokens=6, cache=True)
        plain = model.generate("The cat", max_new_tokens=6, cache=False)
    assert written == plain


def test_a_layer_by_itself_is_refused(model: gs.LanguageModel, tmp_path: Path) -> None:
    clt = planted_clt(model.width("0.mid"), 24, layers=LAYERS)
    with pytest.raises(Mismatch, match="layer 1 of planted for 5 tokens"):
        Flow(clt).at(1, torch.zeros(5, clt.d_in))
    with pytest.raises(Mismatch, match="all of its layers must be in place"), model.edited(gs.replacement(clt)[2]):
        model.logits("The cat sat on the mat")
    sae = random_sae(model, "1.res")
    with pytest.raises(InputError, match=r"writes at 1\.res, as another one does"):
        gs.replacement([sae, sae])
