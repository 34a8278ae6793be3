"""The SAE's arithmetic against formulas written out here, the tutorial's first."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor, nn

from gemscope.activations.capture import Activations
from gemscope.activations.site import Site
from gemscope.errors import InputError, Mismatch, NotFinite
from gemscope.features import sliced
from gemscope.features.activations import FeatureActivations
from gemscope.features.sae import SAE, SAEInfo
from gemscope.testing import planted_sae
from gemscope.text.tokens import Tokens

D, F = 24, 90


class Reference(nn.Module):
    """What the tutorial's JumpReLUSAE computes."""

    def __init__(self, d: int, f: int) -> None:
        super().__init__()
        self.W_enc = nn.Parameter(torch.zeros(d, f))
        self.W_dec = nn.Parameter(torch.zeros(f, d))
        self.threshold = nn.Parameter(torch.zeros(f))
        self.b_enc = nn.Parameter(torch.zeros(f))
        self.b_dec = nn.Parameter(torch.zeros(d))

    def encode(self, x: Tensor) -> Tensor:
        pre = x @ self.W_enc + self.b_enc
        return (pre > self.threshold) * torch.relu(pre)

    def decode(self, acts: Tensor) -> Tensor:
        return acts @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


@pytest.fixture
def reference() -> Reference:
    torch.manual_seed(0)
    reference = Reference(D, F)
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.3)
    reference.threshold.data.abs_()
    return reference.requires_grad_(False)


@pytest.fixture
def sae(reference: Reference) -> SAE:
    sae = SAE(D, F, site="3.res", info=SAEInfo(name="random"))
    sae.load_state_dict(reference.state_dict())
    return sae


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 7, D, generator=torch.Generator().manual_seed(1))


# --- jumprelu -------------------------------------------------------------------------------------------------------


def test_encode_equals_the_tutorials_class(sae: SAE, reference: Reference, x: Tensor) -> None:
    features = sae.encode(x)
    torch.testing.assert_close(features.to_dense(), reference.encode(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sae.encode_dense(x), reference.encode(x), rtol=1e-5, atol=1e-6)
    assert features.lead == (4, 7)
    assert 0 < features.mean_l0 < F


def test_decode_and_forward_equal_the_tutorials_class(sae: SAE, reference: Reference, x: Tensor) -> None:
    expected = reference(x)
    torch.testing.assert_close(sae(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.decode(sae.encode(x)), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.decode(sae.encode_dense(x)), expected, rtol=1e-5, atol=1e-5)


def test_the_tutorials_state_dict_is_taken_as_it_is_and_nothing_less(reference: Reference) -> None:
    sae = SAE(D, F)
    assert set(sae.state_dict()) == set(reference.state_dict())
    state = dict(reference.state_dict())
    del state["threshold"]
    with pytest.raises(RuntimeError, match="threshold"):
        sae.load_state_dict(state)


def test_a_pre_activation_equal_to_its_threshold_is_not_active() -> None:
    sae = SAE(2, 4)
    sae.W_enc.copy_(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]))
    assert sae.threshold is not None
    sae.threshold.copy_(torch.tensor([0.5, 0.5 - 2**-24, 0.5 + 2**-23, 0.0]))
    features = sae.encode(torch.tensor([[0.5, 3.0], [0.0, 1.0], [-2.0, 1.0]]))
    assert features.to_dense().tolist() == [[0, 0.5, 0, 0.5], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert sae.encode_dense(torch.tensor([0.5, 3.0])).tolist() == [0, 0.5, 0, 0.5]


def test_a_negative_threshold_lets_no_negative_activation_through() -> None:
    sae = SAE(1, 2)
    sae.W_enc.fill_(1.0)
    assert sae.threshold is not None
    sae.threshold.fill_(-1.0)
    assert sae.encode(torch.tensor([[-0.5], [0.25]])).to_dense().tolist() == [[0, 0], [0.25, 0.25]]


def test_planted_features_come_back_exactly() -> None:
    planted = planted_sae(16, 32, tokens=60, active=3)
    torch.testing.assert_close(planted.sae.encode(planted.x).to_dense(), planted.features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(planted.sae(planted.x), planted.x, rtol=1e-5, atol=1e-5)


# --- other gates ----------------------------------------------------------------------------------------------------


def like(sae: SAE, **options: object) -> SAE:
    other = SAE(D, F, **options)  # type: ignore[arg-type]
    state = {name: tensor for name, tensor in sae.state_dict().items() if name in other.state_dict()}
    other.load_state_dict(state, strict=False)
    return other


def test_relu(sae: SAE, x: Tensor) -> None:
    relu = like(sae, gate="relu")
    assert relu.threshold is None
    expected = torch.relu(x @ sae.W_enc + sae.b_enc)
    torch.testing.assert_close(relu.encode(x).to_dense(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(relu(x), expected @ sae.W_dec + sae.b_dec, rtol=1e-5, atol=1e-5)


def test_jumprelu_with_threshold_0_is_relu(sae: SAE, x: Tensor) -> None:
    assert sae.threshold is not None
    sae.threshold.zero_()
    assert torch.equal(sae.encode(x).to_dense(), like(sae, gate="relu").encode(x).to_dense())


@pytest.mark.parametrize("k", [1, 5, F])
def test_topk_keeps_the_largest_that_are_positive(k: int, sae: SAE, x: Tensor) -> None:
    topk = like(sae, gate="topk", k=k)
    pre = (x @ sae.W_enc + sae.b_enc).reshape(-1, F)
    expected = torch.zeros_like(pre)
    for row, values in enumerate(pre.tolist()):
        for feature in sorted(range(F), key=lambda i, values=values: -values[i])[:k]:
            expected[row, feature] = max(values[feature], 0.0)
    features = topk.encode(x)
    torch.testing.assert_close(features.to_dense().reshape(-1, F), expected, rtol=1e-5, atol=1e-6)
    assert features.l0.max() <= k
    if k == F:
        assert torch.equal(features.to_dense(), like(sae, gate="relu").encode(x).to_dense())


def test_topk_with_ties_and_with_fewer_positives_than_k() -> None:
    topk = SAE(1, 6, gate="topk", k=3)
    topk.W_enc.copy_(torch.tensor([[2.0, 1.0, 1.0, 1.0, 1.0, -1.0]]))
    tied = topk.encode(torch.ones(1, 1))
    assert sorted(tied.values.tolist()) == [1, 1, 2]
    assert 0 in tied.features.tolist()
    few = topk.encode(-torch.ones(1, 1))
    assert few.features.tolist() == [5]
    assert few.values.tolist() == [1]


def test_k_goes_with_topk_alone() -> None:
    with pytest.raises(InputError, match="'topk' needs it"):
        SAE(4, 8, gate="topk")
    with pytest.raises(InputError, match="k belongs to 'topk'"):
        SAE(4, 8, k=3)


# --- transcoders ----------------------------------------------------------------------------------------------------


def test_a_transcoder_writes_elsewhere_and_adds_its_skip(x: Tensor) -> None:
    transcoder = SAE(D, F, 10, skip=True, site="4.transcoder", site_out="4.mlp")
    torch.manual_seed(0)
    for weight in transcoder.parameters():
        nn.init.normal_(weight, std=0.3)
    assert transcoder.is_transcoder
    assert transcoder.W_skip is not None
    assert transcoder.W_skip.shape == (10, D)
    pre = x @ transcoder.W_enc + transcoder.b_enc
    acts = torch.relu(pre) * (pre > transcoder.threshold)
    expected = acts @ transcoder.W_dec + transcoder.b_dec
    torch.testing.assert_close(transcoder.decode(transcoder.encode(x)), expected, rtol=1e-5, atol=1e-5)
    skip = torch.einsum("btd,od->bto", x, transcoder.W_skip)
    torch.testing.assert_close(transcoder(x), expected + skip, rtol=1e-5, atol=1e-5)
    assert transcoder(x).shape == (4, 7, 10)
    with torch.enable_grad():
        torch.testing.assert_close(transcoder(x.clone().requires_grad_()), transcoder(x), rtol=1e-5, atol=1e-5)


def test_reading_gives_the_features_and_the_output_at_once(sae: SAE, x: Tensor) -> None:
    skipping = like(sae, skip=True)
    assert skipping.W_skip is not None
    skipping.W_skip.copy_(torch.randn(D, D, generator=torch.Generator().manual_seed(2)))
    for one in (sae, skipping):
        features, out = one.read(x)
        assert torch.equal(features.to_dense(), one.encode(x).to_dense())
        assert torch.equal(out, one(x))


@pytest.mark.parametrize("skip", [False, True])
def test_a_centred_sae_lets_the_mean_of_each_token_past(sae: SAE, x: Tensor, *, skip: bool) -> None:
    centred = like(sae, centred=True, skip=skip)
    expected = sae(x).double() + x.double().mean(-1, keepdim=True)
    if centred.W_skip is not None:
        centred.W_skip.copy_(torch.randn(D, D, generator=torch.Generator().manual_seed(2)))
        expected += x.double() @ centred.W_skip.double().T
    torch.testing.assert_close(centred(x).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(centred.read(x)[1].double(), expected, rtol=1e-5, atol=1e-5)


def test_an_sae_writes_where_it_reads() -> None:
    assert not SAE(D, F, site="3.res").is_transcoder
    assert SAE(D, F, site="3.res").site_out == Site(3, "res")


# --- gradients ------------------------------------------------------------------------------------------------------


def test_gradients_of_the_dense_path_equal_the_formula(sae: SAE, x: Tensor) -> None:
    sae.requires_grad_()
    assert sae.threshold is not None
    flat = x.reshape(-1, D).clone().requires_grad_()
    acts = sae.encode_dense(flat)
    push = torch.randn(acts.shape, generator=torch.Generator().manual_seed(3))
    (acts * push).sum().backward()
    through = push * (acts > 0)
    torch.testing.assert_close(flat.grad, through @ sae.W_enc.T)
    torch.testing.assert_close(sae.W_enc.grad, flat.detach().T @ through)
    torch.testing.assert_close(sae.b_enc.grad, through.sum(0))
    assert sae.threshold.grad is None or not sae.threshold.grad.any()


def test_forward_is_differentiable_where_gradients_are_wanted(sae: SAE, x: Tensor) -> None:
    flat = x.reshape(-1, D).clone().requires_grad_()
    out = sae(flat)
    out.pow(2).sum().backward()
    on = (sae.encode_dense(flat.detach()) > 0).float()
    expected = ((2 * out.detach() @ sae.W_dec.T) * on) @ sae.W_enc.T
    torch.testing.assert_close(flat.grad, expected, rtol=1e-4, atol=1e-4)
    assert not sae(x).requires_grad
    assert not sae.encode(flat).values.requires_grad
    with torch.no_grad():
        assert not sae(flat).requires_grad
    sae.W_dec.requires_grad_()
    sae(x).sum().backward()
    assert sae.W_dec.grad is not None


# --- what it is given -----------------------------------------------------------------------------------------------


def test_activations_of_another_width_are_refused(sae: SAE) -> None:
    for call in (sae.encode, sae.encode_dense, sae):
        with pytest.raises(Mismatch, match=f"width {D + 1} given to an SAE that reads {D}") as raised:
            call(torch.zeros(3, D + 1))
        assert "\n" not in str(raised.value)
    with pytest.raises(Mismatch, match=f"{F - 1} features"):
        sae.decode(torch.zeros(2, F - 1))
    with pytest.raises(Mismatch, match="5 features"):
        sae.decode(FeatureActivations.from_dense(torch.ones(2, 5)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_are_refused(value: float, sae: SAE, x: Tensor) -> None:
    x[1, 2, 3] = value
    with pytest.raises(NotFinite, match="NaN or Inf"):
        sae.encode(x)


def test_one_token_no_tokens_and_half_precision(sae: SAE, reference: Reference, x: Tensor) -> None:
    one = sae.encode(x[0, 0])
    assert one.lead == ()
    assert one.l0.shape == ()
    torch.testing.assert_close(one.to_dense(), reference.encode(x[0, 0]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sae(x[0, 0]), reference(x[0, 0]), rtol=1e-5, atol=1e-5)
    for shape in ((0, D), (2, 0, D)):
        empty = sae.encode(torch.zeros(shape))
        assert empty.lead == shape[:-1]
        assert len(empty.values) == 0
        assert sae.decode(empty).shape == shape
        assert sae(torch.zeros(shape)).shape == shape
    half = x.bfloat16()
    torch.testing.assert_close(sae(half), reference(half.float()), rtol=1e-5, atol=1e-5)
    assert sae.to(torch.bfloat16).encode(half).values.dtype == torch.float32


def test_tokens_without_an_active_feature_decode_to_the_bias(sae: SAE) -> None:
    sae.b_enc.fill_(-1e3)
    features = sae.encode(torch.randn(5, D))
    assert features.l0.tolist() == [0] * 5
    assert torch.equal(sae.decode(features), sae.b_dec.expand(5, D))


def test_captured_activations_keep_their_mask(sae: SAE, x: Tensor) -> None:
    ids = torch.arange(28).reshape(4, 7)
    counted = ids % 3 > 0
    features = sae.encode(Activations(x, counted, Tokens(ids, torch.ones_like(counted), counted), Site(3, "res"), "m"))
    assert features.counted is not None
    assert torch.equal(features.counted, counted)
    assert features.mean_l0 == pytest.approx(sae.encode(x[counted]).mean_l0)


# --- what it is -----------------------------------------------------------------------------------------------------


def test_a_direction_is_a_decoder_row(sae: SAE) -> None:
    assert torch.equal(sae.direction(3), sae.W_dec[3])
    for wrong in (-1, F):
        with pytest.raises(InputError, match=f"0 to {F - 1}"):
            sae.direction(wrong)


def test_the_digest_is_of_the_weights_alone(sae: SAE, reference: Reference) -> None:
    same = SAE(D, F, info=SAEInfo(name="another name"))
    same.load_state_dict(reference.state_dict())
    assert same.digest == sae.digest
    other = SAE(D, F)
    other.load_state_dict(reference.state_dict())
    other.W_dec[3, 4] += 1e-3
    assert other.digest != sae.digest


def test_the_digest_follows_the_weights(sae: SAE, reference: Reference) -> None:
    empty = SAE(D, F)
    before = empty.digest
    empty.load_state_dict(reference.state_dict())
    assert empty.digest == sae.digest != before


def test_the_digest_follows_the_gate() -> None:
    sae = SAE(4, 8, gate="topk", k=2)
    before = sae.digest
    sae.k = 3
    assert sae.digest == SAE(4, 8, gate="topk", k=3).digest != before


def test_the_digest_is_sha256_of_the_gate_and_the_weights(sae: SAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels and atlases on disk are kept by it: it may not change."""
    for piece in (1 << 22, 7):  # how much is copied at a time is no part of it
        monkeypatch.setattr(sliced, "PIECE", piece)
        for one in (like(sae), like(sae, centred=True)):
            said = f"jumprelu:None{':centred' if one.centred else ''}".encode()
            for name in ("W_dec", "W_enc", "b_dec", "b_enc", "threshold"):
                array = getattr(one, name).numpy()
                said += f"{name}{array.shape}".encode() + array.astype("<f4").tobytes(order="C")
            assert one.digest == hashlib.sha256(said).hexdigest()


def test_gradients_are_off_until_asked_for(sae: SAE) -> None:
    assert not any(weight.requires_grad for weight in sae.parameters())
