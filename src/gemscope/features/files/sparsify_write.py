"""An SAE or transcoder written as EleutherAI's sparsify has them: a folder for its place in the model, in a run's."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from gemscope.checked import read_json
from gemscope.errors import InputError
from gemscope.features.files.fold import rounded, through
from gemscope.features.files.hook_names import builds_of, hookpoint_of
from gemscope.features.files.placed import of_json, of_streams, put
from gemscope.features.files.sparsify import CONFIG, RUN, WEIGHTS, Run
from gemscope.features.files.tensors import dtype_for, stream_of
from gemscope.features.sae import SAE
from gemscope.features.sliced import Sliced


def write(sae: SAE, folder: Path, dtype: torch.dtype | None) -> Path:
    """Writes `folder`/HOOKPOINT, and `folder`/config.json, which names the model; returns the former.

    Raises InputError for a gate that sparsify has not, a place that is no module's output, a transcoder that is not of
    one module, a run of another model; StorageFull, FileError.
    """
    hookpoint = _hookpoint(sae)
    run = _run(sae, folder, hookpoint)
    state = sae.tensors
    b_enc = state["b_enc"]
    if not sae.is_transcoder:  # sparsify subtracts b_dec from what it reads
        b_dec, slices = sae.b_dec.detach().cpu(), zip(b_enc.slices, state["W_enc"].slices, strict=True)
        b_enc = Sliced([rounded(b.double().cpu() + through(b_dec, W.cpu()), b) for b, W in slices])
    tensors = {
        "encoder.weight": state["W_enc"].T,
        "encoder.bias": b_enc,
        "W_dec": state["W_dec"],
        "b_dec": state["b_dec"],
    }
    if sae.W_skip is not None:
        tensors["W_skip"] = state["W_skip"]
    config = {
        "activation": "topk",
        "expansion_factor": max(1, sae.d_sae // sae.d_in),
        "normalize_decoder": False,
        "num_latents": sae.d_sae,
        "k": sae.d_sae if sae.k is None else sae.k,
        "multi_topk": False,
        "skip_connection": sae.W_skip is not None,
        "transcode": sae.is_transcoder,
        "d_in": sae.d_in,
    }
    streams = {name: stream_of(tensor, dtype_for(tensor, dtype)) for name, tensor in tensors.items()}
    placed = put(folder / hookpoint, {CONFIG: of_json(config), WEIGHTS: of_streams(streams)})
    put(folder, {RUN: of_json({name: value for name, value in asdict(run).items() if value is not None})})
    return placed


def _hookpoint(sae: SAE) -> str:
    if sae.gate == "jumprelu" or sae.centred:
        kind = "a mean that goes past the features" if sae.centred else "gate='jumprelu'"
        raise InputError(f"{sae} has {kind}, which sparsify has not: its SAEs are topk (or relu, as topk of all)")
    if sae.d_in != sae.d_out:
        raise InputError(f"{sae} writes {sae.d_out} numbers: of sparsify's all write as many as they read")
    if sae.W_skip is not None and not sae.is_transcoder:
        raise InputError(f"{sae} has a skip and is no transcoder: sparsify has them for transcoders alone")
    if sae.site is None or sae.site_out is None:
        raise InputError(f"{sae} has no site: a folder's name says where its SAE belongs; give SAE(..., site='20.res')")
    return hookpoint_of(sae.site, sae.site_out, builds_of(None, sae.info.model), str(sae))


def _run(sae: SAE, folder: Path, hookpoint: str) -> Run:
    """What the run's folder says of all its SAEs, with this one."""
    before = read_json(folder / RUN, Run) if (folder / RUN).exists() else Run(hookpoints=[])
    if before.model not in (None, sae.info.model):
        raise InputError(
            f"{folder} holds SAEs of {before.model}, this one is for {sae.info.model}: give another folder"
        )
    others = [one for one in before.hookpoints or [] if one != hookpoint]
    return Run(
        model=sae.info.model,
        revision=before.revision,
        ctx_len=sae.info.context_size or before.ctx_len,
        hookpoints=[*others, hookpoint],
    )
