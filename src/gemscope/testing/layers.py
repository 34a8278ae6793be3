"""A model whose features are known at every layer: which of them last, which begin and end, and where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from gemscope.activations.model import LanguageModel
from gemscope.features.sae import SAE, SAEInfo
from gemscope.testing.models import VOCAB, tiny_model
from gemscope.testing.saes import D_MODEL
from gemscope.text.corpus import Corpus

_CONSTANT = 16.0
"""What every token has along the first axis: so large that the norms' scale is nearly one number."""
_LASTING, _ENDING, _TURNING = 10, 2, 3
"""Features that last; that end, and that begin, in each block but the first; that are others in every block."""
_EACH = 3
"""Features of a token's embedding."""


@dataclass(frozen=True, kw_only=True)
class PlantedLayers:
    """A model, an SAE of the residual stream behind each of its blocks, and what these SAEs' features are."""

    model: LanguageModel
    saes: tuple[SAE, ...]
    """Of `0.res`, `1.res`, ...; each with its features in an order of its own."""
    names: tuple[tuple[str, ...], ...]
    """Of each SAE's features: what is called the same in two SAEs is one feature that goes on."""
    lives: dict[str, tuple[int, int]]
    """By name: the first block behind which the feature is there, and the last."""
    parents: dict[str, tuple[str, ...]]
    """By name, of features that a block makes of others: those that it takes."""
    corpus: Corpus


@torch.no_grad()
def planted_layers(*, layers: int = 4, tilt: float = 0.05, seed: int = 0) -> PlantedLayers:
    """A llama, 32 wide, whose features lie along orthonormal axes. Of its blocks' MLPs each neuron does one thing:

    - *lasting* features are in the embeddings, and no block touches them;
    - *ending* ones are there too, until a block takes them away;
    - *beginning* ones are made by a block where two lasting features are there at once;
    - *copies* are made by a block of one lasting feature: they fire on its tokens, and write along another axis;
    - *turning* ones give their axis to another in every block: it is taken away and made anew of two other features. So
      they write along the axis of those before them, and fire on other tokens.

    Decoder and encoder rows are the axes, each tilted by noise of length `tilt`. Attention writes nothing.
    """
    random = torch.Generator().manual_seed(seed)
    model = tiny_model("llama", layers=layers, seed=seed)
    axes = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=random, dtype=torch.float64)).Q.float()
    free = iter(range(1, D_MODEL))
    axis = {f"lasting {n}": next(free) for n in range(_LASTING)}
    lasting = list(axis)
    last = layers - 1
    lives = dict.fromkeys(axis, (0, last))
    parents: dict[str, tuple[str, ...]] = {}
    every = list(combinations(lasting, 2))
    pairs = (every[at] for at in torch.randperm(len(every), generator=random).tolist())
    for block in range(1, layers):
        for n in range(_ENDING):
            axis[name := f"ending {n} in {block}"] = next(free)
            lives[name] = (0, block - 1)
    for block in range(1, layers):
        for n in range(_ENDING):
            axis[name := f"beginning {n} in {block}"] = next(free)
            lives[name], parents[name] = (block, last), next(pairs)
        axis[name := f"copy in {block}"] = next(free)
        lives[name], parents[name] = (block, last), (lasting[block],)
    for n in range(_TURNING):
        place = next(free)
        for block in range(layers):
            axis[name := f"turning {n} in {block}"] = place
            lives[name] = (block, block)
            if block:
                parents[name] = next(pairs)
    embedded = [name for name, (born, _) in lives.items() if born == 0]
    _embed(model.hf, [axes[axis[name]] for name in embedded], axes[0], random)
    for block in range(layers):
        neurons = _Neurons(model.hf, block, axes[0])
        for name, (born, gone) in lives.items():
            if gone == block - 1:
                neurons.take_away(axes[axis[name]])
            if born == block and name in parents:
                read = [axes[axis[one]] for one in parents[name]]
                neurons.make(axes[axis[name]], read[0], read[-1])
    saes, names = [], []
    for block in range(layers):
        here = [name for name, (born, gone) in lives.items() if born <= block <= gone]
        here = [here[at] for at in torch.randperm(len(here), generator=random).tolist()]
        noise = tilt * torch.randn(2, len(here), D_MODEL, generator=random) / D_MODEL**0.5
        rows = torch.stack([axes[axis[name]] for name in here])
        sae = SAE(D_MODEL, len(here), site=f"{block}.res", info=SAEInfo(name=f"planted-{block}"))
        assert sae.threshold is not None
        sae.W_dec.copy_(rows + noise[0])
        # The constant is none of their business.
        sae.W_enc.copy_((rows + noise[1] - (noise[1] @ axes[0])[:, None] * axes[0]).T)
        sae.threshold.fill_(0.5)
        sae.b_dec.copy_(_CONSTANT * axes[0])
        saes.append(sae)
        names.append(tuple(here))
    return PlantedLayers(
        model=model,
        saes=tuple(saes),
        names=tuple(names),
        lives=lives,
        parents=parents,
        corpus=Corpus.of(list(_texts(model, random))),
    )


def _embed(model: Any, rows: list[Tensor], constant: Tensor, random: torch.Generator) -> None:
    """Each token has a few of the features, of strengths between 1.5 and 3."""
    chosen = torch.rand(VOCAB, len(rows), generator=random).argsort(-1)[:, :_EACH]
    strengths = 1.5 + 1.5 * torch.rand(VOCAB, _EACH, generator=random)
    codes = torch.zeros(VOCAB, len(rows)).scatter(1, chosen, strengths)
    model.get_input_embeddings().weight.copy_(codes @ torch.stack(rows) + _CONSTANT * constant)


class _Neurons:
    """Those of one block's MLP: down (silu(gate x̂) · up x̂), x̂ the stream by its root mean square."""

    def __init__(self, model: Any, block: int, constant: Tensor) -> None:
        layer = model.model.layers[block]
        layer.self_attn.o_proj.weight.zero_()
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.fill_(1.0)
        self._mlp, self._constant, self._next = layer.mlp, constant, 0
        for projection in (self._mlp.gate_proj, self._mlp.up_proj, self._mlp.down_proj):
            projection.weight.zero_()
        # The mean square of the stream, but for what features there are.
        self._square = D_MODEL / (_CONSTANT**2 + _EACH * 2.25**2)

    def take_away(self, axis: Tensor) -> None:
        """What lies along an axis: the gate reads the constant, and stands open."""
        gate = 40.0
        self._add(gate * self._constant, axis, -axis / (gate * _CONSTANT * self._square))

    def make(self, axis: Tensor, one: Tensor, other: Tensor) -> None:
        """Half the product of what lies along two others."""
        gate = 40.0
        self._add(gate * one, other, axis / (2 * gate * self._square))

    def _add(self, gate: Tensor, up: Tensor, down: Tensor) -> None:
        self._mlp.gate_proj.weight[self._next] = gate
        self._mlp.up_proj.weight[self._next] = up
        self._mlp.down_proj.weight[:, self._next] = down
        self._next += 1


def _texts(model: LanguageModel, random: torch.Generator) -> Iterator[str]:
    """Tokens by chance."""
    known = [id_ for id_ in sorted(set(model.tokenizer.get_vocab().values())) if id_ not in model.special_ids]
    for _ in range(40):
        drawn = torch.randint(len(known), (100,), generator=random).tolist()
        yield model.tokenizer.decode([known[at] for at in drawn])
