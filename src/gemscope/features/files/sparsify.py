"""EleutherAI's sparsify: a folder a hookpoint (`layers.5.mlp`), in it `cfg.json` and `sae.safetensors`; the run's
folder says which model in its `config.json`. SAEs and transcoders, these also with a skip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gemscope.activations.site import Site
from gemscope.checked import Count, Positive
from gemscope.errors import CorruptFile, FileError
from gemscope.features.files.contents import Contents
from gemscope.features.files.fold import fold_input_bias
from gemscope.features.files.format import Format, Found, Glance
from gemscope.features.files.hook_names import site_of_hookpoint
from gemscope.features.files.taken import Table, taken

WEIGHTS = "sae.safetensors"
CONFIG = "cfg.json"
RUN = "config.json"
_HOOKPOINT = r"(?:[a-z_]+\.)*(?:h|layers)\.\d+(?:\.[a-z_0-9.]+)?|embed_tokens|wte|embed_in|word_embeddings"

_TABLE: Table = {
    "W_enc": ("encoder.weight", "F D"),
    "b_enc": ("encoder.bias", "F"),
    "W_dec": ("W_dec", "F O"),
    "b_dec": ("b_dec", "O"),
    "W_skip": ("W_skip", "O D"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """`cfg.json`, as far as it changes what is computed."""

    d_in: Positive
    k: Positive
    num_latents: Count = 0
    expansion_factor: float | None = None
    activation: str = "topk"
    signed: bool = False
    transcode: bool = False
    skip_connection: bool = False
    n_targets: int = 0
    n_sources: int = 0
    normalize_io: bool = False
    post_encoder_scale: bool = False
    per_source_tied: bool = False
    coalesce_topk: str | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """`config.json` of the folder that holds those of all hookpoints."""

    model: str | None = None
    revision: str | None = None
    ctx_len: Positive | None = None
    hookpoints: list[str] | None = None


def _is_its(found: Found) -> bool:
    decoder = found.has("W_dec") or found.has("decoder.weight")
    return found.file.suffix == ".safetensors" and found.has("encoder.weight", "encoder.bias", "b_dec") and decoder


def read(found: Found) -> Contents:
    """What a hookpoint's folder holds. Raises FileError for a kind that is no SAE of ours or a place that is no site,
    CorruptFile.
    """
    config = found.declared(CONFIG, Config)
    _refuse_others(config, found.source)
    table = dict(_TABLE)
    if "decoder.weight" in found.stored:  # as the first versions had it
        table["W_dec"] = ("decoder.weight", "O F")
    tensors = taken(found.stored, table, source=found.source, optional=("W_skip",))
    if config.skip_connection != ("W_skip" in tensors):
        has = "none" if config.skip_connection else "one"
        said = str(config.skip_connection).lower()
        raise CorruptFile(f"{found.source}: {CONFIG} says skip_connection={said}, the weights have {has}")
    d_in, d_sae = tensors["W_enc"].shape
    stated = config.num_latents or None
    if config.d_in != d_in or stated not in (None, d_sae):
        raise CorruptFile(
            f"{found.source}: {CONFIG} says {config.d_in} to {stated or 'any'}, the weights have {d_in} to {d_sae}"
        )
    if not config.transcode:
        if tensors["b_dec"].numel() != d_in:
            raise CorruptFile(
                f"{found.source} is no transcoder and writes {tensors['b_dec'].numel()} of {d_in} numbers"
            )
        fold_input_bias(tensors)  # whatever normalize_decoder says, which concerns training alone
    hookpoint, run = _place(found)
    read_at, write_at = _sites(found, config, hookpoint, run)
    return Contents(
        source=found.source,
        tensors=tensors,
        gate="topk",
        k=config.k,
        site=read_at,
        site_out=write_at,
        info=found.info(run.model, context_size=run.ctx_len),
    )


def glance(found: Found) -> Glance:
    """What its folder's name and the files beside the weights say. Raises what `read` raises of these."""
    config = found.declared(CONFIG, Config)
    _refuse_others(config, found.source)
    hookpoint, run = _place(found)
    read_at, write_at = _sites(found, config, hookpoint, run)
    width = config.num_latents or (round(config.d_in * config.expansion_factor) if config.expansion_factor else None)
    return Glance(site=read_at, site_out=write_at, width=width, l0=float(config.k), model=found.named(run.model))


def _place(found: Found) -> tuple[str | None, Run]:
    """The hookpoint, which is the name of a folder, and what the run's folder around it says."""
    hit = found.hit(_HOOKPOINT)
    if hit is None:
        return None, Run()
    depth = len(found.parts) - 1 - max(i for i, part in enumerate(found.parts) if part == hit[0])
    path = found.folder("../" * depth + RUN, needed=False)
    return hit[0], Run() if path is None else found.declared("../" * depth + RUN, Run)


def _sites(found: Found, config: Config, hookpoint: str | None, run: Run) -> tuple[Site, Site | None]:
    builds = found.builds(run.model)

    def at(end: Literal["input", "output"]) -> Site:
        if hookpoint is None:
            raise FileError(
                f"{found.source} does not say where in the model it belongs, as its folder's name does (layers.5.mlp): "
                "give the folder that name"
            )
        return site_of_hookpoint(hookpoint, end, builds, found.source)

    if config.transcode:
        return found.site or at("input"), at("output")
    return found.site or (found.required_site() if hookpoint is None else at("output")), None


def _refuse_others(config: Config, source: str) -> None:
    if config.activation == "groupmax":
        raise FileError(f"{source} is a groupmax SAE, the largest of each group of features: only topk is read")
    if config.activation != "topk" or config.signed:
        kind = "signed topk" if config.signed else config.activation
        raise FileError(f"{source} has the activation {kind!r}, which is not read: of sparsify's, topk is")
    if config.n_targets or config.n_sources or config.per_source_tied or config.coalesce_topk not in (None, "none"):
        raise FileError(f"{source} is of a cross-layer transcoder, which writes at several layers: not read as one SAE")
    if config.normalize_io or config.post_encoder_scale:
        raise FileError(f"{source} scales what it reads or its features in a way that is not read (normalize_io, ...)")


FORMAT = Format(
    name="sparsify",
    called=WEIGHTS,
    weights=r"sae\.safetensors",
    beside={CONFIG: None},
    is_its=_is_its,
    read=read,
    glance=glance,
)
