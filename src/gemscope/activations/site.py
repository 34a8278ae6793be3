"""Names for the places inside a model, and where each one lies in the module tree of each model family.

A new model family is one more `Family` here. Reading and writing at a place is `hooks.py`'s work.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import total_ordering
from typing import TYPE_CHECKING, Any, Literal

from gemscope.errors import InputError, SiteNotFound

if TYPE_CHECKING:
    from torch import Tensor, nn

KINDS: Mapping[str, str] = {
    "embed": "token embedding as stored, before any scaling",
    "att": "what the attention heads write, concatenated, before the output projection",
    "att_out": "what attention adds to the residual stream",
    "mid": "residual stream between attention and MLP",
    "transcoder": "input of the MLP: normalised, with the norm's gain (Gemma Scope 2 transcoders read here)",
    "transcoder_nogain": "input of the MLP, normalised without the gain (Gemma Scope 1 transcoders read here)",
    "mlp_raw": "output of the MLP module before its own norm (Gemma 2 and 3 only)",
    "mlp": "what the MLP adds to the residual stream",
    "res": "residual stream after the block",
}
"""Every kind of site, in the order in which a block computes them."""

_ORDER = {kind: place for place, kind in enumerate(KINDS)}
_TEXT = re.compile(r"(?:([0-9]{1,9})\.)?([a-z_]+)")


@total_ordering
@dataclass(frozen=True)
class Site:
    """A named place in a model, written `20.res`, `12.mlp`, `5.att`, `7.transcoder`, or `embed`.

    `layer` counts blocks from 0 and is None for `embed` alone. `kind` is one of `KINDS`.
    """

    layer: int | None
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SiteNotFound(f"no site called {self.kind!r}: the kinds are {', '.join(KINDS)}")
        if (self.layer is None) != (self.kind == "embed"):
            raise SiteNotFound(
                f"site {self.kind!r} "
                + (
                    "has no layer: write it 'embed'"
                    if self.kind == "embed"
                    else f"needs a layer, as in '20.{self.kind}'"
                )
            )

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """`20.res` → `Site(20, "res")`. Raises SiteNotFound when the text names no site."""
        if isinstance(text, Site):
            return text
        match = _TEXT.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise SiteNotFound(
                f"{text!r} is not a site: write a layer and a kind, as in '20.res'; kinds: {', '.join(KINDS)}"
            )
        layer, kind = match.groups()
        return cls(None if layer is None else int(layer), kind)

    def at(self, layer: int) -> Site:
        """The same kind of place in another layer."""
        return Site(layer, self.kind)

    def __str__(self) -> str:
        return self.kind if self.layer is None else f"{self.layer}.{self.kind}"

    def __lt__(self, other: Site) -> bool:
        return self._depth() < other._depth()

    def _depth(self) -> tuple[int, int]:
        return (-1 if self.layer is None else self.layer, _ORDER[self.kind])


@dataclass(frozen=True)
class Point:
    """A site made concrete: a module's input or output, and what happens to the tensor on the way out.

    `transform`: `plain` takes it as it is; `normalized` takes the input of a norm and applies the norm without its
    gain, in float32; `rows` looks token ids up in the module's embedding matrix, whatever scaling the module adds.
    """

    module: str
    end: Literal["input", "output"]
    transform: Literal["plain", "normalized", "rows"] = "plain"
    shared: bool = False
    """Whether the block reads the same tensor again elsewhere (as the stream that it adds to), so that a new value has
    to be written into it: handed to the module alone, it would change what that reads and not the stream."""


@dataclass(frozen=True)
class Family:
    """Where a model family keeps its blocks, and where the kinds of site lie inside one block."""

    layers: tuple[str, ...]
    """Paths of the list of blocks; the first that exists is taken (wrappers put the text model one level down)."""
    embed: tuple[str, ...]
    points: Mapping[str, Point]
    head: str
    """The module whose input width is that of `att`."""
    onward: Mapping[str, tuple[str, ...]]
    """By kind, the modules of a block that what is written there goes through on its way into the residual stream."""
    final_norm: tuple[str, ...]
    one_plus: bool = False
    """Whether a norm's gain is 1 + its weight."""
    scaled_embedding: bool = False
    """Whether embeddings are multiplied by the root of d_model."""


_ADDED: Mapping[str, tuple[str, ...]] = {"att_out": (), "mid": (), "mlp": (), "res": ()}
"""What is part of the residual stream, or added to it as it is."""


def _points(*, attention: str, mlp_norm: str, att_out: Point, mlp: Point, **more: Point) -> dict[str, Point]:
    return {
        "att": Point(attention, "input"),
        "att_out": att_out,
        "mid": Point(mlp_norm, "input", shared=True),
        "transcoder": Point(mlp_norm, "output"),
        "transcoder_nogain": Point(mlp_norm, "input", "normalized"),
        "mlp": mlp,
        "res": Point("", "output"),
        **more,
    }


_LLAMA = Family(
    layers=("model.layers",),
    embed=("model.embed_tokens",),
    points=_points(
        attention="self_attn.o_proj",
        mlp_norm="post_attention_layernorm",
        att_out=Point("self_attn.o_proj", "output"),
        mlp=Point("mlp", "output"),
    ),
    head="self_attn.o_proj",
    onward={**_ADDED, "att": ("self_attn.o_proj",)},
    final_norm=("model.norm",),
)
# Gemma 2 and 3 put a norm behind attention and MLP too, so what reaches the residual stream is that norm's output.
_GEMMA = Family(
    layers=("model.layers", "model.language_model.layers"),
    embed=("model.embed_tokens", "model.language_model.embed_tokens"),
    points=_points(
        attention="self_attn.o_proj",
        mlp_norm="pre_feedforward_layernorm",
        att_out=Point("post_attention_layernorm", "output"),
        mlp=Point("post_feedforward_layernorm", "output"),
        mlp_raw=Point("mlp", "output"),
    ),
    head="self_attn.o_proj",
    onward={
        **_ADDED,
        "att": ("self_attn.o_proj", "post_attention_layernorm"),
        "mlp_raw": ("post_feedforward_layernorm",),
    },
    final_norm=("model.norm", "model.language_model.norm"),
    one_plus=True,
    scaled_embedding=True,
)
_GPT2 = Family(
    layers=("transformer.h",),
    embed=("transformer.wte",),
    points=_points(
        attention="attn.c_proj",
        mlp_norm="ln_2",
        att_out=Point("attn.c_proj", "output"),
        mlp=Point("mlp", "output"),
    ),
    head="attn.c_proj",
    onward={**_ADDED, "att": ("attn.c_proj",)},
    final_norm=("transformer.ln_f",),
)
_NEOX = Family(
    layers=("gpt_neox.layers",),
    embed=("gpt_neox.embed_in",),
    points=_points(
        attention="attention.dense",
        mlp_norm="post_attention_layernorm",
        att_out=Point("attention.dense", "output"),
        mlp=Point("mlp", "output"),
    ),
    head="attention.dense",
    onward={**_ADDED, "att": ("attention.dense",)},
    final_norm=("gpt_neox.final_layer_norm",),
)

FAMILIES: Mapping[str, Family] = {
    "gemma2": _GEMMA,
    "gemma3": _GEMMA,
    "gemma3_text": _GEMMA,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
}
"""By the `model_type` of the transformers configuration."""


def family_of(model: nn.Module) -> Family:
    """The family of a transformers model. Raises InputError, naming the families known, for any other."""
    return family(_kind(model))


def family(kind: str | None) -> Family:
    """The family of that `model_type`. Raises InputError, naming the families known, for any other."""
    if kind is None or kind not in FAMILIES:
        raise InputError(f"models of type {kind!r} are not known here: known are {', '.join(sorted(FAMILIES))}")
    return FAMILIES[kind]


def _kind(model: nn.Module) -> str | None:
    return getattr(model.config, "model_type", None)


def _first(model: nn.Module, paths: tuple[str, ...]) -> str:
    for path in paths:
        try:
            model.get_submodule(path)
        except AttributeError:
            continue
        return path
    raise InputError(f"this {_kind(model)} model has none of the modules {', '.join(paths)}")


def n_layers(model: nn.Module) -> int:
    """How many blocks the model has."""
    blocks = model.get_submodule(_first(model, family_of(model).layers))
    return len(blocks)  # type: ignore[arg-type]


def blocks(model: nn.Module) -> Iterable[nn.Module]:
    """The blocks, in order."""
    found: Iterable[nn.Module] = model.get_submodule(_first(model, family_of(model).layers))  # type: ignore[assignment]
    return found


def locate(model: nn.Module, site: Site) -> Point:
    """Where `site` lies in `model`, with the module path counted from the model itself.

    Raises SiteNotFound for a layer or a kind that this model does not have.
    """
    family = family_of(model)
    if site.layer is None:
        return Point(_first(model, family.embed), "input", "rows")
    count = n_layers(model)
    if not 0 <= site.layer < count:
        raise SiteNotFound(f"no layer {site.layer}: this model has layers 0 to {count - 1}")
    point = family.points.get(site.kind)
    if point is None:
        kinds = ", ".join(kind for kind in KINDS if kind in family.points)
        raise SiteNotFound(f"no site {str(site)!r} in a {_kind(model)} model: it has embed, {kinds}")
    if site.kind == "mid" and getattr(model.config, "use_parallel_residual", False):
        raise SiteNotFound(
            f"no site {str(site)!r}: this model computes attention and MLP side by side, with nothing between"
        )
    block = f"{_first(model, family.layers)}.{site.layer}"
    return replace(point, module=f"{block}.{point.module}" if point.module else block)


def onward(model: nn.Module, site: Site) -> tuple[str, ...] | None:
    """Paths of the modules between `site` and the residual stream, in order; None where nothing written there gets
    into it but through the MLP. Raises what `locate` raises.
    """
    locate(model, site)
    if site.layer is None:
        return ()
    through = family_of(model).onward.get(site.kind)
    if through is None:
        return None
    block = f"{_first(model, family_of(model).layers)}.{site.layer}"
    return tuple(f"{block}.{module}" for module in through)


def final_norm(model: nn.Module) -> str:
    """Path of the norm between the last block and the unembedding."""
    return _first(model, family_of(model).final_norm)


def width(model: nn.Module, site: Site) -> int:
    """How many numbers a token has at `site`: the heads' widths together for `att`, d_model elsewhere."""
    locate(model, site)
    if site.kind != "att":
        return int(text_config(model).hidden_size)
    head = model.get_submodule(f"{_first(model, family_of(model).layers)}.{site.layer}.{family_of(model).head}")
    # GPT-2's Conv1D stores its weight as [in, out]; a Linear knows in_features.
    weight: Tensor = head.weight  # type: ignore[assignment]
    return int(getattr(head, "in_features", None) or weight.shape[0])


def text_config(model: nn.Module) -> Any:
    """The configuration of the text model (multimodal wrappers nest it)."""
    return getattr(model.config, "text_config", None) or model.config
