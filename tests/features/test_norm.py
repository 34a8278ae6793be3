"""SAEs that divide each token by its own scale: the peer's answers, the formula in double, its scale carried and never
guessed, gradients, edits, attribution and files.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gemscope as gs
from gemscope.edits.clamp import Ablate, AtLeast, Clamp, Scale
from gemscope.edits.splice import Splice
from gemscope.edits.steer import Cap, Project, Steer
from gemscope.edits.strength import Strength
from gemscope.edits.units import Units
from gemscope.errors import CorruptFile, FileError, InputError, Mismatch
from gemscope.features.activations import FeatureActivations
from gemscope.features.sae import SAE
from gemscope.testing import tiny_model
from peers import FORMATS, answers, assert_answers, changed, copied

D, F = 16, 48
NORMS = ["deviation", "length"]
Array = np.ndarray[Any, Any]


def sae_of(norm: str | None, **options: Any) -> SAE:
    sae = SAE(D, F, **{"norm": norm, "centred": norm == "deviation", "site": "1.res", "gate": "relu", **options})
    chance = torch.Generator().manual_seed(0)
    for weight in sae.parameters():
        weight.copy_(torch.randn(weight.shape, generator=chance))
    if norm == "deviation":
        sae.W_enc.copy_(sae.W_enc - sae.W_enc.mean(0))
    return sae


def inputs() -> Tensor:
    chance = torch.Generator().manual_seed(1)
    return torch.randn(4, 10, D, generator=chance) * torch.rand(4, 10, 1, generator=chance) * 30 + 2


def double(x: Tensor) -> Array:
    return x.detach().double().numpy()


def scales(norm: str, x: Array) -> tuple[Array, Array, Array]:
    """What is taken away, divided by and multiplied by."""
    if norm == "length":
        length = np.sqrt((x**2).mean(-1, keepdims=True))
        return np.zeros_like(length), length, length
    deviation = x.std(-1, ddof=1, keepdims=True)
    return x.mean(-1, keepdims=True), deviation + 1e-5, deviation


def formula(sae: SAE, x: Tensor) -> tuple[Array, Array]:
    """LayerNorm without gain, or the norm made √D; the SAE; and back."""
    assert sae.norm is not None
    values = double(x)
    mean, divided, multiplied = scales(sae.norm, values)
    z = (values - mean) / divided @ double(sae.W_enc) + double(sae.b_enc)
    if sae.threshold is not None:
        f = np.maximum(z, 0) * (z > double(sae.threshold))
    elif sae.k is not None:
        f = np.where(z >= np.sort(z, -1)[..., [-sae.k]], np.maximum(z, 0), 0)
    else:
        f = np.maximum(z, 0)
    return f, (f @ double(sae.W_dec) + double(sae.b_dec)) * multiplied + mean


@pytest.mark.parametrize(
    ("name", "norm", "centred"), [("layer_norm", "deviation", True), ("constant_norm", "length", False)]
)
def test_saelens_answers_the_same(name: str, norm: str, *, centred: bool) -> None:
    sae = gs.load_sae(FORMATS / f"saelens/standard_{name}")
    assert (sae.norm, sae.centred) == (norm, centred)
    assert_answers(sae, answers(f"saelens/standard_{name}_expected.safetensors"))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("gate", [{"gate": "relu"}, {"gate": "jumprelu"}, {"gate": "topk", "k": 5}], ids=str)
def test_it_computes_the_formula(norm: str, gate: dict[str, Any]) -> None:
    sae, x = sae_of(norm, **gate), inputs()
    f, out = formula(sae, x)
    found, whole = sae.read(x)
    for one in (found.to_dense(), sae.encode_dense(x), sae.encode(x).to_dense()):
        np.testing.assert_allclose(double(one), f, rtol=1e-4, atol=1e-4)
    for one in (whole, sae(x), sae.requires_grad_(True)(x)):
        np.testing.assert_allclose(double(one), out, rtol=1e-4, atol=2e-3)
    sae.requires_grad_(False)
    some = sae.encode(x, features=[3, 7]).to_dense()
    np.testing.assert_allclose(double(some[..., [3, 7]]), f[..., [3, 7]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_what_decodes_carries_the_scale_and_is_never_guessed(norm: str) -> None:
    sae, x = sae_of(norm), inputs()
    found = sae.encode(x)
    out = sae.decode(found)
    torch.testing.assert_close(out, sae.decode(found.to("cpu")))
    torch.testing.assert_close(out, sae.decode(sae.encode_dense(x), scale=sae.scale(x)), rtol=1e-4, atol=1e-3)
    plain = FeatureActivations.from_dense(found.to_dense())
    torch.testing.assert_close(out, sae.decode(plain, scale=found.scale), rtol=1e-4, atol=1e-3)
    for without in (plain, found.to_dense()):
        with pytest.raises(InputError, match="without the scale of what they were read from"):
            sae.decode(without)
    with pytest.raises(Mismatch, match="a scale of shape"):
        sae.decode(plain, scale=torch.ones(3))
    assert sae_of(None).encode(x).scale is None


@pytest.mark.parametrize("norm", NORMS)
def test_a_token_of_zeros_and_a_constant_one_give_numbers(norm: str) -> None:
    sae = sae_of(norm)
    x = torch.stack([torch.zeros(D), torch.full((D,), 3.0)])
    found, out = sae.read(x)
    assert found.values.isfinite().all()
    assert out.isfinite().all()
    torch.testing.assert_close(out[0], torch.zeros(D))


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_go_through_the_norm(norm: str) -> None:
    sae = sae_of(norm).double()
    x = inputs()[:1, :2].double()

    def out(x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True) if norm == "deviation" else torch.zeros(())
        divided = x.std(-1, keepdim=True) if norm == "deviation" else x.norm(dim=-1, keepdim=True) / D**0.5
        z = (x - mean) / (divided + (1e-5 if norm == "deviation" else 0)) @ sae.W_enc + sae.b_enc
        return (torch.relu(z) @ sae.W_dec + sae.b_dec) * divided + mean

    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    chance = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).double()
    (sae(ours).double() * chance).sum().backward()
    (out(theirs) * chance).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("gate", [{"gate": "relu"}, {"gate": "topk", "k": 5}], ids=str)
def test_edits_write_a_features_units_times_the_tokens_scale(norm: str, gate: dict[str, Any]) -> None:
    sae, x = sae_of(norm, **gate), inputs().reshape(-1, D)
    f, out = formula(sae, x)
    *_, s = scales(norm, double(x))
    for feature in (0, 7):
        one, d = f[:, [feature]], double(sae.W_dec)[feature]
        share = (double(x) @ d / (d @ d))[:, None]
        for edit, expected in (
            (Clamp(sae, feature, 1.5), (1.5 - one) * s * d),
            (AtLeast(sae, feature, 1.0), np.maximum(1.0 - one, 0) * s * d),
            (Scale(sae, feature, 2.5), 1.5 * one * s * d),
            (Ablate(sae, feature), -one * s * d),
            (Steer(sae, feature, -2.0), -2.0 * s * d),
            (Project(sae, feature), -share * d),
            (Cap(sae, feature, high=0.1), (np.minimum(share, 0.1 * s) - share) * d),
            (Splice(sae, error=False), out - double(x)),
        ):
            np.testing.assert_allclose(double(edit.change(x, x)), expected, rtol=1e-3, atol=5e-3, err_msg=str(edit))
    # what ablating takes away is what decoding it had put there
    less = sae.encode(x).to_dense()
    less[:, 7] = 0
    expected = sae.decode(less, scale=sae.scale(x)) - sae.decode(sae.encode(x))
    torch.testing.assert_close(Ablate(sae, 7).change(x, x), expected, rtol=1e-3, atol=5e-3)


def test_a_share_of_the_sites_norm_is_no_strength_of_such_a_feature() -> None:
    units = Units(sae_of("length"), maxima=torch.ones(F), median_norm=5.0, source="a text", tokens=9)
    assert units.max(3, 2.0) == Strength(2.0, 2.0, None)
    with pytest.raises(InputError, match="differs from token to token"):
        units.norm(3, 0.5)


@pytest.mark.parametrize("norm", NORMS)
def test_attribution_takes_the_logit_apart_whole(norm: str) -> None:
    model = tiny_model("gpt2")
    d = model.width(gs.Site(1, "res"))
    sae = SAE(d, F, norm=norm, centred=norm == "deviation", site="1.res", gate="relu")
    for weight in sae.parameters():
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    found = gs.attribute(model, sae, "the river runs through the town", k=4)
    parts = found.features + found.error + found.bias + found.skip + found.uncounted
    assert parts == pytest.approx(found.total, rel=1e-4, abs=1e-4)
    assert abs(found.features) > 1e-3
    # a small part of a feature taken away: its first-order effect is what was predicted
    cause = found.rows[0]
    with model.edited(Scale(sae, cause.feature, 0.99, at=(cause.position,))):
        less = model.logits("the river runs through the town")
    plain = model.logits("the river runs through the town")
    moved = (plain - less)[0, found.position, found.target.id].item()
    assert moved == pytest.approx(0.01 * cause.predicted, rel=0.1, abs=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_it_is_saved_as_saelens_has_it_and_is_the_same_again(tmp_path: Path, norm: str) -> None:
    sae = sae_of(norm)
    gs.save_sae(sae, tmp_path / "a")
    again = gs.load_sae(tmp_path / "a")
    assert (again.digest, again.norm, again.centred) == (sae.digest, norm, norm == "deviation")
    said = (tmp_path / "a" / "cfg.json").read_text()
    assert {"deviation": '"layer_norm"', "length": '"constant_norm_rescale"'}[norm] in said
    with pytest.raises(InputError, match="SAELens has none such"):
        gs.save_sae(sae_of(norm, centred=norm != "deviation"), tmp_path / "b")


def test_the_norm_is_part_of_its_identity_and_its_words() -> None:
    plain, normed = sae_of(None), sae_of("length")
    normed.load_state_dict(plain.state_dict())
    assert plain.digest != normed.digest
    assert "norm=length" in repr(normed)
    assert "norm" not in repr(plain)
    for options in ({"d_out": 3}, {"skip": True}, {"d_in": 1}):
        with pytest.raises(InputError, match="a scale is put back where it is read"):
            SAE(**{"d_in": D, "d_sae": F, "norm": "length", **options})


def test_what_cannot_be_exact_is_refused(tmp_path: Path) -> None:
    folder = copied("saelens/transcoder", tmp_path / "a")
    changed(folder / "cfg.json", normalize_activations="layer_norm")
    with pytest.raises(FileError, match="output scale is not said"):
        gs.load_sae(folder)
    folder = copied("saelens/centred_gpt2", tmp_path / "b")
    changed(folder / "cfg.json", normalize_activations="constant_norm_rescale")
    with pytest.raises(FileError, match="TransformerLens had rewritten"):
        gs.load_sae(folder)
    changed(folder / "cfg.json", normalize_activations="layer_norm")  # whose own mean is taken away once
    assert gs.load_sae(folder).centred
    folder = copied("saelens/standard", tmp_path / "c")
    changed(folder / "cfg.json", normalize_activations="batch_norm")
    with pytest.raises(FileError, match="'layer_norm', 'constant_norm_rescale'"):
        gs.load_sae(folder)


def test_a_repository_whose_norm_stands_in_saelenss_registry(tmp_path: Path) -> None:
    folder = copied(
        "saelens/standard_constant_norm", tmp_path / "Mistral-7B-Residual-Stream-SAEs" / "mistral_7b_layer_8"
    )
    changed(folder / "cfg.json", normalize_activations="none")
    assert_answers(gs.load_sae(folder), answers("saelens/standard_constant_norm_expected.safetensors"))


# --- OpenAI's -------------------------------------------------------------------------------------------------------


def openai(folder: Path, layer: int, **more: Any) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(5)
    w = {"encoder.weight": torch.randn(F, D, generator=chance), "latent_bias": torch.randn(F, generator=chance),
         "pre_bias": torch.randn(D, generator=chance), "decoder.weight": torch.randn(D, F, generator=chance)}  # fmt: skip
    stats = {"stats_last_nonzero": torch.zeros(F, dtype=torch.long), "latents_mean_square": torch.zeros(F)}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({**w, **stats, "latents_activation_frequency": torch.ones(F), **more}, folder / f"{layer}.pt")
    return w


@pytest.mark.parametrize(
    ("place", "site"),
    [
        ("resid_post_mlp_v5_32k", "8.res"),
        ("resid_post_attn_v5_128k", "8.mid"),
        ("resid_delta_mlp_v5_32k", "8.mlp"),
        ("resid_delta_attn_v5_32k", "8.att_out"),
        ("resid_delta_mlp_v4", "8.mlp"),
        ("resid_delta_mlp", "8.mlp"),
    ],
)
def test_openais_saes_are_those_of_their_code(tmp_path: Path, place: str, site: str) -> None:
    """latents = activation(encoder(LN(x) − pre_bias) + latent_bias); x̂ = (decoder(latents) + pre_bias) · std + μ."""
    topk = "v5" in place
    more = {"activation": "TopK", "activation_state_dict": {"k": 6, "postact_fn": "ReLU"}} if topk else {}
    w = openai(tmp_path / place / "autoencoders", 8, **({"activation": "ReLU"} if not topk else more))
    x = inputs().reshape(-1, D).double()
    mean, std = (x.mean(-1, keepdim=True), x.std(-1, keepdim=True)) if topk else (torch.zeros(1), torch.ones(1))
    inner = (x - mean) / (std + 1e-5) if topk else x
    z = (inner - w["pre_bias"].double()) @ w["encoder.weight"].double().T + w["latent_bias"].double()
    if topk:
        kept = z.topk(6)
        z = torch.zeros_like(z).scatter(-1, kept.indices, kept.values)
    features = torch.relu(z)
    recon = (features @ w["decoder.weight"].double().T + w["pre_bias"].double()) * std + mean
    sae = gs.load_sae(tmp_path / place / "autoencoders")
    found, out = sae.read(x.float())
    np.testing.assert_array_equal((found.to_dense() != 0).numpy(), (features != 0).numpy())
    torch.testing.assert_close(found.to_dense().double(), features, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(out.double(), recon, rtol=1e-5, atol=1e-3)
    assert (str(sae.site), sae.info.format, sae.norm) == (site, "OpenAI", "deviation" if topk else None)
    assert sae.info.model == "openai-community/gpt2"


def test_of_openais_neurons_and_other_activations_are_refused(tmp_path: Path) -> None:
    openai(tmp_path / "mlp_post_act" / "autoencoders", 3)
    with pytest.raises(FileError, match="neurons of an MLP"):
        gs.load_sae(tmp_path / "mlp_post_act" / "autoencoders")
    for more, why in (
        ({"activation": "Identity"}, '"Identity"'),
        ({"activation": "TopK", "activation_state_dict": {"k": 6, "postact_fn": "Identity"}}, "may be negative"),
    ):
        openai(tmp_path / "resid_post_mlp", 3, **more)
        with pytest.raises(FileError, match=why):
            gs.load_sae(tmp_path / "resid_post_mlp")
    openai(tmp_path / "resid_post_mlp", 3, activation="TopK", activation_state_dict={"k": 1.5, "postact_fn": "ReLU"})
    with pytest.raises(CorruptFile, match=r"k is 1\.5, expected a whole number"):
        gs.load_sae(tmp_path / "resid_post_mlp")
