"""circuit-tracer's sets of transcoders: `layer_N.safetensors`, a transcoder a layer, and a `config.yaml` for all of
them that says where they read and write.
"""

from __future__ import annotations

from dataclasses import dataclass

from gemscope.activations.site import Site
from gemscope.checked import read_yaml
from gemscope.errors import FileError
from gemscope.features.files.contents import Contents
from gemscope.features.files.format import Format, Found
from gemscope.features.files.hook_names import site_of_hook
from gemscope.features.files.taken import Table, taken

CONFIG = "config.yaml"
_LAYER = r"layer_(\d{1,9})\.safetensors"
_TABLE: Table = {
    "W_enc": ("W_enc", "F D"),
    "b_enc": ("b_enc", "F"),
    "W_dec": ("W_dec", "F O"),
    "b_dec": ("b_dec", "O"),
    "threshold": ("activation_function.threshold", "F"),
    "W_skip": ("W_skip", "O D"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """`config.yaml`. Hooks are named from their block: mlp.hook_in."""

    model_kind: str = "transcoder_set"
    model_name: str | None = None
    feature_input_hook: str | None = None
    feature_output_hook: str | None = None


def _is_its(found: Found) -> bool:
    return (
        found.file.suffix == ".safetensors"
        and found.has("W_enc", "W_dec", "b_enc", "b_dec")
        and not found.has("threshold")
        and found.folder(CONFIG, needed=False) is not None
    )


def read(found: Found) -> Contents:
    """One layer of a set: ReLU, or JumpReLU where there are thresholds. Raises FileError where a feature could be
    negative, or its place is not said or no site; CorruptFile.
    """
    source = found.source
    beside = found.folder(CONFIG, needed=False)
    config = Config() if beside is None else read_yaml(beside, Config)
    if config.model_kind != "transcoder_set":
        raise FileError(f"{source} is part of a {config.model_kind}, which is not read as one SAE: transcoder_set is")
    tensors = taken(found.stored, _TABLE, source=source, optional=("threshold", "W_skip"))
    if "threshold" in tensors and bool((tensors["threshold"] < 0).any()):
        raise FileError(f"{source} has thresholds below 0, beneath which its features would be negative: not read")
    read_at, write_at = _sites(found, config)
    return Contents(
        source=source,
        tensors=tensors,
        gate="jumprelu" if "threshold" in tensors else "relu",
        site=read_at,
        site_out=write_at,
        info=found.info(config.model_name),
    )


def _sites(found: Found, config: Config) -> tuple[Site, Site]:
    hooks, layer = (config.feature_input_hook, config.feature_output_hook), found.hit(_LAYER)
    if hooks == (None, None) and found.entry is not None and found.entry.site and found.entry.site_out:
        return found.site or found.entry.site, found.entry.site_out
    if layer is None:
        raise FileError(f"{found.source} does not say of which layer it is, as layer_12.safetensors does: name it so")
    if None in hooks:
        raise FileError(f"{found.source} does not say where it reads and writes: {CONFIG} beside it says that")
    read_at, write_at = (site_of_hook(f"blocks.{layer[1]}.{hook}", config.model_name, found.source) for hook in hooks)
    return found.site or read_at, write_at


FORMAT = Format(
    name="circuit-tracer",
    weights=_LAYER,
    called="layer_N.safetensors",
    beside={CONFIG: None},
    is_its=_is_its,
    read=read,
)
