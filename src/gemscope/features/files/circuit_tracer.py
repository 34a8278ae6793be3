"""circuit-tracer's sets of transcoders: `layer_N.safetensors`, a transcoder a layer, and a `config.yaml` for all of
them that says where they read and write.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

from gemscope.activations.site import Site
from gemscope.checked import read_yaml
from gemscope.errors import FileError
from gemscope.features.files.contents import Contents
from gemscope.features.files.format import Format, Found, Glance
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
    transcoders: list[str] | None = None
    """Where each layer's lies, in the order of layers, where that is elsewhere: hf://google/a-repo/a/file."""

    @property
    def is_set(self) -> bool:
        """Whether it is of a transcoder a layer, and not of a cross-layer transcoder."""
        return self.model_kind == "transcoder_set"

    def sites(self, layer: int, source: str) -> tuple[Site, Site]:
        """Where a layer's reads and writes. Raises FileError where it is not said, or is no site."""
        if self.feature_input_hook is None or self.feature_output_hook is None:
            raise FileError(f"{source} does not say where it reads and writes: {CONFIG} beside it says that")
        at = partial(site_of_hook, model=self.model_name, source=source)
        return at(f"blocks.{layer}.{self.feature_input_hook}"), at(f"blocks.{layer}.{self.feature_output_hook}")


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
    if not config.is_set:
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


def glance(found: Found) -> Glance:
    """What its configuration and its file's head say. Raises what `read` raises of these."""
    beside = found.folder(CONFIG, needed=False)
    config = Config() if beside is None else read_yaml(beside, Config)
    if not config.is_set or not found.has("b_enc"):
        return Glance.of(read(found))
    site, site_out = _sites(found, config)
    return Glance(
        site=site, site_out=site_out, width=found.stored["b_enc"].numel(), l0=None, model=found.named(config.model_name)
    )


def layer_of(name: str) -> int | None:
    """Which layer's a file is, by its name."""
    match = re.fullmatch(_LAYER, name)
    return None if match is None else int(match[1])


def _sites(found: Found, config: Config) -> tuple[Site, Site]:
    hooks, layer = (config.feature_input_hook, config.feature_output_hook), found.hit(_LAYER)
    if hooks == (None, None) and found.entry is not None and found.entry.site and found.entry.site_out:
        return found.site or found.entry.site, found.entry.site_out
    if layer is None:
        raise FileError(f"{found.source} does not say of which layer it is, as layer_12.safetensors does: name it so")
    read_at, write_at = config.sites(int(layer[1]), found.source)
    return found.site or read_at, write_at


FORMAT = Format(
    name="circuit-tracer",
    weights=_LAYER,
    called="layer_N.safetensors",
    beside={CONFIG: None},
    is_its=_is_its,
    read=read,
    glance=glance,
)
