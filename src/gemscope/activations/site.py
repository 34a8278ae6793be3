"""Names for the places inside a model, and where each one lies in the module tree of a given model.

What differs from family to family stands in `families.py`. Reading and writing at a place is `hooks.py`'s work.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import total_ordering
from typing import TYPE_CHECKING, Any

from gemscope.activations.families import UNLIKE, Family, Point, family
from gemscope.checked import quoted
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
    "mlp_raw": "output of the MLP module before its own norm (Gemma 2 and 3, OLMo 2)",
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


def described(site: Site | str, site_out: Site | str | None) -> str:
    """Where an SAE reads, and where it writes if that is elsewhere."""
    return f"{site}" if site_out in (site, None) else f"{site} → {site_out}"


def require_names(*sites: str) -> None:
    """Names of sites are names of folders too. Raises ValueError."""
    for site in sites:
        try:
            known = str(Site.parse(site)) == site
        except SiteNotFound:
            known = False
        if not known:
            raise ValueError(f"{quoted(site)} is no site's name")


def family_of(model: nn.Module) -> Family:
    """How a transformers model is built. Raises InputError for a type of model, or a way of building it, that is not
    known here.
    """
    own = getattr(model, "family", None)
    for case in (own,) if isinstance(own, Family) else family(_kind(model)):
        if (case.fits is None or case.fits(text_config(model))) and _has(model, case):
            return case
    raise InputError(
        f"this {_kind(model)} model is not built as those known here: {UNLIKE.get(str(_kind(model)), 'other modules')}"
    )


def _has(model: nn.Module, case: Family) -> bool:
    """Whether the modules are there that the case names, in the first block as an example of all."""
    stack = next((path for path in case.layers if _found(model, path) is not None), None)
    first = None if stack is None else _found(model, f"{stack}.0")
    if first is None:
        return False
    there = dict(
        first.named_modules(remove_duplicate=False)
    )  # quick; a wrapped block answers to more names than it has
    places = [point.module for point in case.points.values()]
    return all(place in there or _in_block(first, case, place) is not None for place in places)


def _in_block(block: nn.Module, case: Family, path: str) -> str | None:
    """The path in this block of the module that the family has at `path`, the one in its place here included."""
    there = (one for one in (path, case.instead.get(path)) if one is not None and _found(block, one) is not None)
    return next(there, None)


def _found(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _kind(model: nn.Module) -> str | None:
    return getattr(getattr(model, "config", None), "model_type", None)


def _first(model: nn.Module, paths: tuple[str, ...]) -> str:
    for path in paths:
        if _found(model, path) is not None:
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
    case = family_of(model)
    if site.layer is None:
        return Point(_first(model, case.embed), "input", "rows", scale=1 / case.rows_scale)
    stack = _first(model, case.layers)
    count = len(model.get_submodule(stack))  # type: ignore[arg-type]
    if not 0 <= site.layer < count:
        raise SiteNotFound(f"no layer {site.layer}: this model has layers 0 to {count - 1}")
    point = case.points.get(site.kind)
    if point is None:
        kinds = ", ".join(kind for kind in KINDS if kind in case.points)
        known = f"in a {_kind(model)} model: it has embed, {kinds}"
        raise SiteNotFound(f"no site {str(site)!r}{f': {why}' if (why := case.absent.get(site.kind)) else f' {known}'}")
    block = f"{stack}.{site.layer}"
    module = _in_block(model.get_submodule(block), case, point.module)
    return replace(
        point,
        module=f"{block}.{module}" if module else block,
        scale=residual_scale(model) if site.kind in ("att_out", "mlp") else 1.0,
        flat=None if point.flat is None else f"{block}.{point.flat}" if point.flat else block,
    )


def onward(model: nn.Module, site: Site) -> tuple[str, ...] | None:
    """Paths of the modules between `site` and the residual stream, in order; None where nothing written there gets
    into it but through the MLP. Raises what `locate` raises.
    """
    locate(model, site)
    case = family_of(model)
    if site.layer is None:
        return case.after_embed
    through = case.onward.get(site.kind)
    if through is None:
        return None
    path = f"{_first(model, case.layers)}.{site.layer}"
    block = model.get_submodule(path)
    return tuple(f"{path}.{_in_block(block, case, module)}" for module in through)


def final_norm(model: nn.Module) -> str:
    """Path of the norm between the last block and the unembedding."""
    return _first(model, family_of(model).final_norm)


def embed_scale(model: nn.Module) -> float:
    """What the model multiplies embeddings by."""
    scale = family_of(model).embed_scale
    return 1.0 if scale is None else scale(text_config(model))


def residual_scale(model: nn.Module) -> float:
    """What the model multiplies attention's and the MLP's outputs by before it adds them to the residual stream."""
    scale = family_of(model).residual_scale
    return 1.0 if scale is None else scale(text_config(model))


def logit_divisor(model: nn.Module) -> float:
    """What the model divides its logits by."""
    divisor = family_of(model).logit_divisor
    return 1.0 if divisor is None else divisor(text_config(model))


def context(model: nn.Module) -> int:
    """The most tokens that one row may have."""
    return int(getattr(text_config(model), "max_position_embeddings", None) or family_of(model).context or 0)


def width(model: nn.Module, site: Site) -> int:
    """How many numbers a token has at `site`: the heads' widths together for `att`, d_model elsewhere."""
    point = locate(model, site)
    if site.kind != "att":
        return int(text_config(model).hidden_size)
    if (known := family_of(model).att_width) is not None:
        return known
    heads = model.get_submodule(point.module)
    # GPT-2's Conv1D stores its weight as [in, out]; a Linear knows in_features.
    weight: Tensor = heads.weight  # type: ignore[assignment]
    return int(getattr(heads, "in_features", None) or weight.shape[0])


def text_config(model: nn.Module) -> Any:
    """The configuration of the text model (multimodal wrappers nest it)."""
    return getattr(model.config, "text_config", None) or model.config
