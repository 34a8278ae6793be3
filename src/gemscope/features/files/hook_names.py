"""Sites under the names that files give them, both ways: TransformerLens's hook points, Hugging Face's modules."""

from __future__ import annotations

import re

from gemscope.activations.families import FAMILIES
from gemscope.activations.site import Site
from gemscope.errors import FileError

_HOOKS = {
    "hook_resid_post": "res",
    "hook_resid_mid": "mid",
    "hook_mlp_out": "mlp",
    "hook_attn_out": "att_out",
    "attn.hook_z": "att",
    "ln2.hook_normalized": "transcoder_nogain",
    "mlp.hook_in": "transcoder",
    "mlp.hook_out": "mlp_raw",
}
_HOOK = re.compile(r"blocks\.(\d+)\.([a-z0-9_.]+)")
_MODULE = re.compile(
    r"(model\.(?:language_model\.)?layers|transformer\.h|gpt_neox\.layers)\.(\d+)(?:\.(?!output$|input$)(.+?))?(?:\.(output|input))?"
)
_FAMILY_OF_MODEL = re.compile(
    r"(gemma-?2(?!\d*b))|(gemma-?3(?!\d*b))|(gpt-?2)|(pythia|neox)|(llama|smollm|mistral|qwen)", re.IGNORECASE
)
_FAMILY_NAMES = ("gemma2", "gemma3", "gpt2", "gpt_neox", "llama")
_LAYERS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}  # others: model.layers


def site_of_hook(hook: str, model: str | None, source: str) -> Site:
    """The site of a TransformerLens hook point. Raises FileError, naming `source`, for one that has no site here."""
    if hook == "hook_embed":
        return Site(None, "embed")
    if match := _HOOK.fullmatch(hook):
        layer, point = int(match[1]), match[2]
        if point == "hook_resid_pre" and layer > 0:  # what goes into a block is what came out of the one before
            return Site(layer - 1, "res")
        if point == "mlp.hook_out" and not has_norm_behind_mlp(model):
            return Site(layer, "mlp")
        if point in _HOOKS:
            return Site(layer, _HOOKS[point])
    raise _unknown(hook, source)


def site_of_module(name: str, model: str | None, source: str) -> Site:
    """The site of a Hugging Face module path, ending in `.output` (or nothing) or `.input`. Raises FileError."""
    if match := _MODULE.fullmatch(name):
        stack, layer, module, end = match.groups()
        family = {"transformer.h": "gpt2", "gpt_neox.layers": "gpt_neox"}.get(stack)
        if family is None:
            family = "gemma2" if has_norm_behind_mlp(model) or "feedforward_layernorm" in (module or "") else "llama"
        for kind, point in FAMILIES[family][-1].points.items():
            if (point.module, point.end, point.transform) == (module or "", end or "output", "plain"):
                return Site(int(layer), kind)
    raise _unknown(name, source)


def hook_of(site: Site) -> str:
    """What TransformerLens calls a site."""
    if site.layer is None:
        return "hook_embed"
    point = next(point for point, kind in _HOOKS.items() if kind == site.kind)
    return f"blocks.{site.layer}.{point}"


def module_of(site: Site, model: str | None) -> str | None:
    """The Hugging Face module path of a site; None where the model's family is not known or no module's end is it."""
    match = _FAMILY_OF_MODEL.search(model or "")
    if match is None or match.lastindex is None or site.layer is None:
        return None
    family = _FAMILY_NAMES[match.lastindex - 1]
    point = FAMILIES[family][-1].points.get(site.kind)
    if point is None or point.transform != "plain":
        return None
    return ".".join(filter(None, (_LAYERS.get(family, "model.layers"), str(site.layer), point.module, point.end)))


def has_norm_behind_mlp(model: str | None) -> bool:
    """Whether it is a Gemma 2 or 3, where a norm lies between MLP and residual stream. (`gemma-2b` is Gemma 1.)"""
    return re.search(r"gemma-?[23](?!\d*b)", model or "", re.IGNORECASE) is not None


def _unknown(name: str, source: str) -> FileError:
    return FileError(
        f"{source} reads or writes at {name!r}, a place that is not known here: say which it is with site='20.res'"
    )
