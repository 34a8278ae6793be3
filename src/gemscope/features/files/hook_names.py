"""Sites under the names that files give them, both ways: TransformerLens's hook points, Hugging Face's modules; and
what files call models.
"""

from __future__ import annotations

import re

from gemscope.activations.families import FAMILIES, Family, Point
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site, family_of
from gemscope.errors import FileError, InputError

Builds = tuple[Family, ...]
"""The ways in which a model may be built; none where nothing is known of it."""

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
_STACKS = "|".join(sorted({re.escape(path) for cases in FAMILIES.values() for case in cases for path in case.layers}))
_MODULE = re.compile(rf"({_STACKS})\.(\d+)(?:\.(?!output$|input$)(.+?))?(?:\.(output|input))?")
_PUBLISHED = {
    "gemma2": r"gemma-?2(?!\d*b)",
    "gemma3": r"gemma-?3(?!\d*b)",
    "gemma": r"gemma-(1\.1-)?\d+b",  # `gemma-2b` is of the first Gemmas
    "gpt2": r"gpt-?2",
    "gptj": r"gpt-?j",
    "gpt_neox": r"pythia|neox",
    "phi": r"phi-?[12](?!\d)",
    "olmo2": r"olmo-?2",
    "opt": r"(^|/)opt-",
    "falcon": r"falcon-(rw-)?\d+b",
    "bloom": r"bloom",
    "granite": r"granite",
    "stablelm": r"stablelm",
    "mixtral": r"mixtral",
    "qwen3_5": r"qwen-?3[._]5",
    "llama": r"llama|smollm|mistral|ministral|qwen|phi-?[34]|starcoder2|gpt-?oss",
}
"""How published models of a family are called; one of several families with the same modules stands for all."""
_OF_STACK = {"transformer.h": "gpt2", "gpt_neox.layers": "gpt_neox", "model.decoder.layers": "opt"}
"""Whose modules they are taken for where the model is not known."""
_MLPS = ("mlp", "block_sparse_moe")
"""Modules that read what their block's norm gives, and nothing else."""
_ATTENTIONS = ("self_attn", "attn", "attention")
"""Modules that give what their projection gives, and nothing else."""
_LAYER_NORM = re.compile(r"gpt-?2|pythia|neox", re.IGNORECASE)
_RMS_NORM = re.compile(r"gemma|llama|smollm|mi(s|x|nis)tral|qwen|olmo-?2|phi-?[34]|granite|gpt-?oss", re.IGNORECASE)
_POSITIONS_ADDED = re.compile(r"gpt-?2|(^|/)opt-", re.IGNORECASE)
"""Models that add a vector for each position to the embedding."""
_NO_VALUE_BIASES = re.compile(r"gemma|llama|smollm|mi(s|x|nis)tral|qwen-?3|olmo-?2", re.IGNORECASE)


def site_of_hook(hook: str, model: str | None, source: str) -> Site:
    """The site of a TransformerLens hook point. Raises FileError, naming `source`, for one that has no site here."""
    if hook == "hook_embed" and not any(case.after_embed for case in _built(model)):
        return Site(None, "embed")
    if hook == "blocks.0.hook_resid_pre" and _streams_embedding(model):
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
        plain = "gemma2" if "feedforward_layernorm" in (module or "") else "llama"
        for case in _built(model) or FAMILIES[_OF_STACK.get(stack, plain)]:
            for kind, point in _at_modules(case).items():
                named = (point.module, case.instead.get(point.module, point.module))
                if stack in case.layers and (module or "") in named and point.end == (end or "output"):
                    return Site(int(layer), kind)
    raise _unknown(name, source)


def hook_of(site: Site) -> str:
    """What TransformerLens calls a site."""
    if site.layer is None:
        return "hook_embed"
    point = next(point for point, kind in _HOOKS.items() if kind == site.kind)
    return f"blocks.{site.layer}.{point}"


def module_of(site: Site, model: str | None) -> str | None:
    """The Hugging Face module path of a site; None where the model's family is not known, no module's end is it, or
    blocks differ in which.
    """
    for case in _built(model):
        point = _at_modules(case).get(site.kind)
        if site.layer is not None and point is not None and point.module not in case.instead:
            return ".".join(filter(None, (case.layers[0], str(site.layer), point.module, point.end)))
    return None


def has_norm_behind_mlp(model: str | None) -> bool:
    """Whether a norm lies between MLP and residual stream."""
    return any("mlp_raw" in case.points for case in _built(model))


def scales_embedding(model: str | None) -> bool:
    """Whether it is a Gemma, which multiplies embeddings by the root of d_model."""
    return any(case.embed_scale is not None and case.one_plus for case in _built(model))


def _streams_embedding(model: str | None) -> bool:
    """Whether the embedding goes into the first block as TransformerLens hands it out: nothing normed, scaled or added,
    such as positions.
    """
    built = _built(model)
    plain = (not case.after_embed and (case.embed_scale is None or case.one_plus) for case in built)
    return bool(built) and all(plain) and _POSITIONS_ADDED.search(model or "") is None


def site_of_hookpoint(path: str, end: str, builds: Builds, source: str) -> Site:
    """The site at the "input" or "output" of a module that is named from the model without its head, as in layers.5.mlp
    or h.3. Where nothing is known of the model, only what is the same in all that have such a module.

    Raises FileError for a place that is no site, or may be either of two.
    """
    kinds: set[str | None] = set()
    layer = 0
    for case in builds or tuple(case for cases in FAMILIES.values() for case in cases):
        for stack in case.layers:
            inside = "|".join(re.escape(one) for one in (stack, stack.partition(".")[2]))
            if match := re.fullmatch(rf"(?:{inside})\.(\d+)(?:\.(.+))?", path):
                layer = int(match[1])
                kinds.add(_kind_at(case, match[2] or "", end))
    return _agreed(kinds, layer, path if end == "output" else f"{path}.{end}", source)


def site_of_part(part: str, layer: int, builds: Builds, source: str) -> Site:
    """The site of what a layer ("res"), its MLP ("mlp") or its attention ("att_out") gives back, as modules: before a
    norm that may lie behind it. Raises as `site_of_hookpoint` does.
    """
    modules = {"res": ("",), "mlp": _MLPS, "att_out": _ATTENTIONS}[part]
    cases = builds or tuple(case for cases in FAMILIES.values() for case in cases)
    kinds = {
        next((kind for module in modules if (kind := _kind_at(case, module, "output")) is not None), None)
        for case in cases
    }
    return _agreed(kinds, layer, f"{part} of layer {layer}", source)


def _agreed(kinds: set[str | None], layer: int, name: str, source: str) -> Site:
    """The one site that all of these are."""
    if kinds == {"before"} and layer > 0:
        return Site(layer - 1, "res")
    if len(kinds) > 1:
        raise FileError(
            f"{source} is for {name!r}, which is another place in some models than in others, and does not name its "
            "model: give it, as in load_sae(..., model=model)"
        )
    kind = next(iter(kinds), None)
    if kind in (None, "before"):
        raise _unknown(name, source)
    return Site(layer, str(kind))


def hookpoint_of(read: Site, written: Site, builds: Builds, source: str) -> str:
    """The module, named from the model without its head, whose output is the site, or whose input and output a
    transcoder's two sites are. Raises InputError, naming `source`, where there is none, or the model is not known.
    """
    if not builds:
        raise InputError(
            f"{source} names no model that is known here, whose modules it could be: give SAEInfo(model=...)"
        )
    point = _at_modules(builds[0]).get(written.kind)
    if point is not None and point.end == "output" and written.layer is not None:
        stack = builds[0].layers[0].partition(".")[2]
        path = ".".join(filter(None, (stack, str(written.layer), point.module)))
        found = site_of_hookpoint(path, "input" if read != written else "output", builds, source)
        if found == read:
            return path
    what = f"{written}" if read == written else f"what goes from {read} to {written}"
    raise InputError(f"{source}: no module of the model gives back {what}, by which sparsify could name it")


def _kind_at(case: Family, module: str, end: str) -> str | None:
    """The kind of site at one end of a module of a block; "before" for what comes into the block."""
    if not module:
        return "res" if end == "output" else "before"
    for kind, point in _at_modules(case).items():
        if (point.module, point.end) == (module, end):
            return kind
    mlps = [point for kind, point in case.points.items() if kind in ("mlp", "mlp_raw") and point.module == module]
    if end == "input" and module in _MLPS and mlps and "transcoder" in case.points:
        return "transcoder"
    projected = case.points.get("att_out") if case.residual_scale is None else None
    if end == "output" and module in _ATTENTIONS and projected and projected.module.rpartition(".")[0] == module:
        return "att_out"
    return None


def model_id(name: str | None) -> str | None:
    """A model's name on the Hub, where TransformerLens leaves the owner off."""
    if name is None or "/" in name:
        return name
    if name.startswith("gemma-"):
        return f"google/{name}"
    if name.startswith("gpt2"):
        return f"openai-community/{name.removesuffix('-small')}"
    if name.startswith("pythia-"):
        return f"EleutherAI/{name}"
    return name


def builds_of(model: LanguageModel | None, name: str | None) -> Builds:
    """How a model is built, by itself where it is given, else by its name."""
    return _built(name) if model is None else (family_of(model.hf),)


def _built(model: str | None) -> Builds:
    """How models of that name are built; nothing for a name that says nothing."""
    for kind, pattern in _PUBLISHED.items():
        if model and re.search(pattern, model, re.IGNORECASE):
            return FAMILIES[kind]
    return ()


def _at_modules(case: Family) -> dict[str, Point]:
    """The kinds of site that a module reads or gives back as they are: Granite multiplies what some give back."""
    scaled = () if case.residual_scale is None else ("att_out", "mlp")
    return {kind: one for kind, one in case.points.items() if one.transform == "plain" and kind not in scaled}


def is_of_layer_norm(model: str | None) -> bool | None:
    """Whether a model's norms are LayerNorms, which do not see the mean over the width; None where the name does not
    tell.
    """
    if _LAYER_NORM.search(model or ""):
        return True
    return False if _RMS_NORM.search(model or "") else None


def may_have_value_biases(model: str | None) -> bool:
    """Whether a model's attention may add biases to its values; False for names of families that add none."""
    return _NO_VALUE_BIASES.search(model or "") is None


def _unknown(name: str, source: str) -> FileError:
    return FileError(
        f"{source} reads or writes at {name!r}, a place that is not known here: say which it is with site='20.res'"
    )
