"""A live SAE of SAELens's in and out: what it encodes and decodes is what ours does, both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gemscope as gs
from gemscope.errors import FileError, InputError

D_IN, D_SAE, D_OUT, HEADS, TOKENS = 16, 48, 12, 4, 256
RES = {"model_name": "gpt2", "hook_name": "blocks.3.hook_resid_post"}
HEAD = {"model_name": "gpt2", "hook_name": "blocks.3.attn.hook_z"}
THROUGH = {"model_name": "gpt2", "hook_name": "blocks.3.ln2.hook_normalized", "hook_name_out": "blocks.3.hook_mlp_out"}
TIE = 1e-4
"""Tokens with a pre-activation this near to where a gate opens are left out: rounding decides those."""

THEIRS: dict[str, dict[str, Any]] = {
    "standard": {"architecture": "standard", "metadata": RES, "apply_b_dec_to_input": True},
    "standard_plain": {"architecture": "standard", "metadata": RES, "apply_b_dec_to_input": False},
    "standard_heads": {"architecture": "standard", "metadata": HEAD, "reshape_activations": "hook_z"},
    "jumprelu": {"architecture": "jumprelu", "metadata": RES},
    "topk": {"architecture": "topk", "k": 5, "metadata": RES},
    "topk_rescaled": {"architecture": "topk", "k": 5, "rescale_acts_by_decoder_norm": True, "metadata": RES},
    "gated": {"architecture": "gated", "metadata": RES},
    "transcoder": {"architecture": "transcoder", "d_out": D_OUT, "metadata": THROUGH, "apply_b_dec_to_input": False},
    "skip_transcoder": {"architecture": "skip_transcoder", "d_out": D_OUT, "metadata": THROUGH, "apply_b_dec_to_input": False},
    "jumprelu_transcoder": {"architecture": "jumprelu_transcoder", "d_out": D_OUT, "metadata": THROUGH, "apply_b_dec_to_input": False},
    "jumprelu_skip_transcoder": {"architecture": "jumprelu_skip_transcoder", "d_out": D_OUT, "metadata": THROUGH, "apply_b_dec_to_input": False},
}  # fmt: skip

OURS: dict[str, dict[str, Any]] = {
    "relu": {"gate": "relu", "site": "3.res"},
    "jumprelu": {"site": "3.res"},
    "topk": {"gate": "topk", "k": 5, "site": "3.res"},
    "heads": {"site": "3.att"},
    "embedding": {"site": "embed", "info": gs.SAEInfo(model="google/gemma-3-1b-pt")},
    "transcoder": {"gate": "relu", "d_out": D_OUT, "site": "3.transcoder_nogain", "site_out": "3.mlp"},
    "skip_transcoder": {"d_out": D_OUT, "skip": True, "site": "3.transcoder", "site_out": "3.mlp"},
    "bfloat16": {"site": "3.res", "dtype": torch.bfloat16},
}


def theirs_of(name: str, **changes: Any) -> Any:
    from sae_lens import SAE

    torch.manual_seed(0)
    sae = SAE.from_dict({"d_in": D_IN, "d_sae": D_SAE, **THEIRS[name], **changes})
    return drawn(sae)


@torch.no_grad()
def drawn(sae: nn.Module) -> Any:
    """Weights that a wrong fold would show."""
    for name, weight in sae.named_parameters():
        scale = 0.3 if weight.ndim == 1 else 0.25
        weight.copy_(torch.randn(weight.shape) * scale)
        if name == "threshold":
            weight.abs_()
        if name == "W_dec":
            weight.mul_(torch.rand(len(weight), 1) + 0.5)
    return sae


def rows(scale: float = 1.0) -> Tensor:
    return (1.5 * torch.randn(TOKENS, D_IN, generator=torch.Generator().manual_seed(1)) + 0.5) * scale


@torch.no_grad()
def assert_same(ours: gs.SAE, theirs: Any, *, scale: float = 1.0) -> None:
    """`scale`: by what TransformerLens multiplies what ours read as it is."""
    x = rows()
    there = x * scale
    features = theirs.encode(there.unflatten(-1, (HEADS, -1)) if theirs.cfg.reshape_activations == "hook_z" else there)
    decoded = theirs.decode(features).reshape(TOKENS, -1) / scale
    forward = theirs(there.unflatten(-1, (HEADS, -1)) if theirs.cfg.reshape_activations == "hook_z" else there)
    # SAELens divides topk's strengths by decoder norms where it is told to: the same features in other units
    z = x @ ours.W_enc.float() + ours.b_enc.float()
    edge = ours.threshold.float().clamp(min=0) if ours.threshold is not None else torch.zeros(D_SAE)
    if ours.k is not None:
        edge = z.sort(descending=True).values[:, ours.k - 1 : ours.k + 1].mean(-1, keepdim=True)
    apart = ((z - edge).abs() > TIE).all(-1)
    assert apart.sum() > TOKENS / 2
    found = ours.encode(x).to_dense()
    units = ours.W_dec.float().norm(dim=1) if theirs.cfg.to_dict().get("rescale_acts_by_decoder_norm") else 1.0
    torch.testing.assert_close(found[apart] * units, features[apart].float() * units, rtol=1e-4, atol=1e-5)
    assert 1 < (found > 0).sum(-1).float().mean() < D_SAE - 1
    torch.testing.assert_close(ours.decode(found)[apart], decoded[apart].float(), rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(ours(x)[apart], forward.reshape(TOKENS, -1)[apart].float() / scale, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", THEIRS)
def test_a_live_sae_is_taken_with_what_it_computes(name: str) -> None:
    theirs = theirs_of(name)
    ours = gs.from_saelens(theirs)
    assert_same(ours, theirs)
    assert str(ours.site) == {"hook_z": "3.att", "normalized": "3.transcoder_nogain"}.get(
        theirs.cfg.metadata.hook_name.rpartition(".")[2].removeprefix("hook_")
        if "hook_z" not in theirs.cfg.metadata.hook_name else "hook_z", "3.res")  # fmt: skip
    assert ours.info.model == "openai-community/gpt2"
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.zero_()
    assert ours.W_dec.abs().max() > 0, "the weights are copies"


@pytest.mark.parametrize("name", THEIRS)
def test_it_is_the_sae_that_its_folder_gives(name: str, tmp_path: Path) -> None:
    theirs = theirs_of(name)
    theirs.save_model(tmp_path)
    assert gs.from_saelens(theirs).digest == gs.load_sae(tmp_path).digest


@pytest.mark.parametrize("kind", ["batchtopk", "jumprelu", "matryoshka_batchtopk", "gated", "standard", "topk"])
def test_one_in_training_is_taken_as_what_it_would_be_used_as(kind: str, tmp_path: Path) -> None:
    from sae_lens import SAE, TrainingSAE

    options: dict[str, Any] = {"k": 6} if "topk" in kind else {}
    if kind.startswith("matryoshka"):
        options["matryoshka_widths"] = [8, D_SAE]
    torch.manual_seed(0)
    training = drawn(
        TrainingSAE.from_dict({"architecture": kind, "d_in": D_IN, "d_sae": D_SAE, "metadata": RES, **options})
    )
    if hasattr(training, "topk_threshold"):
        training.topk_threshold.fill_(0.4)
    training.save_inference_model(tmp_path)
    assert_same(gs.from_saelens(training), SAE.load_from_disk(tmp_path))


@pytest.mark.parametrize("name", OURS)
def test_ours_becomes_a_live_sae_of_saelens_that_computes_the_same_and_comes_back(name: str) -> None:
    torch.manual_seed(0)
    ours = drawn(gs.SAE(D_IN, D_SAE, **OURS[name]))
    before = torch.get_rng_state()
    theirs = ours.to_saelens()
    assert torch.equal(torch.get_rng_state(), before)
    assert type(theirs).__module__.startswith("sae_lens.")
    assert_same(ours, theirs, scale=D_IN**0.5 if name == "embedding" else 1.0)
    again = gs.from_saelens(theirs)
    assert (again.site, again.site_out, again.gate, again.k) == (ours.site, ours.site_out, ours.gate, ours.k)
    if name != "embedding":  # times the root and divided by it
        assert again.digest == ours.digest
    with torch.no_grad():
        theirs.W_dec.zero_()
    assert ours.W_dec.abs().max() > 0, "the weights are copies"


def test_a_centred_one_finds_the_same_features_there() -> None:
    torch.manual_seed(0)
    ours = drawn(gs.SAE(D_IN, D_SAE, site="3.res", centred=True, info=gs.SAEInfo(model="openai-community/gpt2")))
    ours.W_enc -= ours.W_enc.mean(0)
    theirs = ours.to_saelens()
    x = rows() - rows().mean(-1, keepdim=True)
    torch.testing.assert_close(theirs.encode(x), ours.encode(rows()).to_dense(), rtol=1e-4, atol=1e-4)
    again = gs.from_saelens(theirs)
    assert again.centred
    assert again.digest == ours.digest


def test_a_factor_for_its_input_is_folded_where_it_is_known_and_refused_where_not() -> None:
    scaled = theirs_of("jumprelu", normalize_activations="expected_average_only_in")
    with pytest.raises(FileError, match="no usable factor"):
        gs.from_saelens(scaled)
    scaled.cfg.metadata.norm_scaling_factor = 0.5
    ours = gs.from_saelens(scaled)
    torch.testing.assert_close(ours.encode(rows()).to_dense(), scaled.encode(0.5 * rows()), rtol=1e-4, atol=1e-4)
    folded = theirs_of("jumprelu", normalize_activations="expected_average_only_in")
    folded.fold_activation_norm_scaling_factor(0.5)
    assert_same(gs.from_saelens(folded), folded)


def test_what_saelens_does_otherwise_is_refused_by_name() -> None:
    from sae_lens import SAE

    for architecture, options in (("temporal", {}), ("matching_pursuit", {}), ("abstopk", {"k": 4})):
        base: dict[str, Any] = {"architecture": architecture, "d_in": D_IN, "d_sae": D_SAE, "metadata": RES, **options}
        if architecture == "temporal":
            base |= {"n_heads": 2, "bottleneck_factor": 2, "kval_topk": 4}
        with pytest.raises(FileError, match=f'is of the architecture "{architecture}"'):
            gs.from_saelens(SAE.from_dict(base))
    kind = type("Mine", (type(theirs_of("standard")),), {"__module__": "mine"})
    made = theirs_of("standard")
    made.__class__ = kind
    for given in (made, gs.SAE(2, 4, site="1.res"), None, "smollm2"):
        with pytest.raises(InputError, match="expected an SAE of SAELens's own classes") as raised:
            gs.from_saelens(given)
        assert "\n" not in str(raised.value)
    with pytest.raises(FileError, match="hook_q"):
        gs.from_saelens(theirs_of("standard", metadata={"hook_name": "blocks.1.attn.hook_q"}))
    assert gs.from_saelens(theirs_of("standard", metadata={"hook_name": "blocks.1.attn.hook_q"}), site="1.res").site == gs.Site(1, "res")  # fmt: skip


def test_ours_without_a_place_there_are_refused_in_one_line() -> None:
    for sae, says in (
        (gs.SAE(4, 8), "has no site"),
        (gs.SAE(4, 8, gate="topk", k=2, site="1.transcoder", site_out="1.mlp"), "for which SAELens has no format"),
    ):
        with pytest.raises(InputError, match=says) as raised:
            sae.to_saelens()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
def test_a_norm_of_each_token_is_computed_as_there_or_refused_by_name(norm: str) -> None:
    theirs = theirs_of("standard", normalize_activations=norm)
    refused = None
    try:
        ours = gs.from_saelens(theirs)
    except FileError as error:
        refused = str(error)
    if refused is None:
        torch.testing.assert_close(ours.encode(rows()).to_dense(), theirs.encode(rows()), rtol=1e-4, atol=1e-4)
    else:
        assert norm in refused
