"""An SAE in slices, each on its device, beside the same SAE in one piece. A processor may be named several times, so that
all but the copying between devices is tried without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gemscope as gs
from gemscope.edits.feature import OfFeature
from gemscope.errors import InputError, Mismatch
from gemscope.features.files.contents import Contents, build
from gemscope.features.map import plane
from gemscope.features.neighbours import closest, encoder_cosines, nearest
from gemscope.features.sae import OF_FEATURES, SAE, SAEInfo
from gemscope.features.sliced import Sliced

D = 24
CPU = torch.device("cpu")
KINDS = ("jumprelu", "relu", "topk", "skip", "centred", "deviation", "length", "transcoder")


def tensors_of(
    kind: str, width: int, seed: int, *, ties: bool, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Few features fire, at whatever width; with `ties` every feature is there three times, far from each other."""
    dice = torch.Generator().manual_seed(seed)
    d_out = 2 * D if kind == "transcoder" else D
    each = -(-width // 3) if ties else width
    W_enc = torch.randn(D, each, generator=dice).repeat(1, 3)[:, :width]
    W_dec = torch.randn(width, d_out, generator=dice)
    b_enc = torch.full((width,), -7.0)
    found = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": torch.randn(d_out, generator=dice)}
    if kind not in ("relu", "topk"):
        found |= {"threshold": 1.5 * torch.rand(width, generator=dice).repeat(3)[:width]}
    if kind in ("skip", "transcoder"):
        found |= {"W_skip": torch.randn(d_out, D, generator=dice)}
    return {name: tensor.to(dtype) for name, tensor in found.items()}


def made(kind: str, tensors: dict[str, Tensor], n: int, *, k: int = 5, dtype: torch.dtype | None = None) -> SAE:
    contents = Contents(
        source="planted",
        tensors=tensors,
        gate="topk" if kind == "topk" else "relu" if kind == "relu" else "jumprelu",
        k=min(k, len(tensors["b_enc"])) if kind == "topk" else None,
        centred=kind in ("centred", "deviation"),
        norm="deviation" if kind == "deviation" else "length" if kind == "length" else None,
        site=gs.Site.parse("3.mlp"),
        site_out=gs.Site.parse("3.res") if kind == "transcoder" else None,
        info=SAEInfo(name="planted", model="openai-community/gpt2"),
    )
    return build(contents, dtype=dtype, devices=[CPU] * n)


def rows(n: int, seed: int = 0) -> Tensor:
    """Every third token is one of zeros, on which next to nothing fires."""
    x = 2 * torch.randn(n, D, generator=torch.Generator().manual_seed(seed))
    x[::3] = 0
    return x


def same(one: gs.FeatureActivations, other: gs.FeatureActivations) -> None:
    assert one.d_sae == other.d_sae
    assert one.lead == other.lead
    for name in ("offsets", "features", "values"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert (one.scale is None) == (other.scale is None)
    if one.scale is not None and other.scale is not None:
        assert torch.equal(one.scale, other.scale)


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    width=st.integers(7, 700),
    n=st.integers(1, 7),
    k=st.integers(1, 700),
    tokens=st.integers(0, 12),
    seed=st.integers(0, 10**6),
    ties=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    kept=st.sampled_from([None, torch.float32, torch.float16]),
)
def test_slices_find_what_the_whole_finds_and_write_what_it_writes(
    kind: str,
    width: int,
    n: int,
    k: int,
    tokens: int,
    seed: int,
    ties: bool,
    dtype: torch.dtype,
    kept: torch.dtype | None,
) -> None:
    tensors = tensors_of(kind, width, seed, ties=ties, dtype=dtype)
    whole, sliced = (made(kind, tensors, of, k=1 + k % width, dtype=kept) for of in (1, n))
    assert [part.d_sae for part in sliced.slices] == [len(part) for part in torch.arange(width).tensor_split(n)]
    x = rows(max(tokens, int(kind == "deviation")), seed)  # torch warns of the deviation of nothing
    found, out = sliced.read(x)
    same(found, whole.encode(x))
    chosen = sorted({seed % width, (seed * 7) % width, 0, width - 1})
    same(sliced.encode(x, features=chosen), whole.encode(x, features=chosen))
    torch.testing.assert_close(out, whole(x), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(sliced.encode_dense(x), whole.encode_dense(x), rtol=1e-5, atol=1e-4)
    dense = found.to_dense()
    torch.testing.assert_close(
        sliced.decode(dense, scale=found.scale), whole.decode(dense, scale=found.scale), rtol=1e-5, atol=1e-4
    )
    assert sliced.digest == whole.digest
    assert torch.equal(sliced.direction(width - 1), whole.direction(width - 1))


@pytest.mark.parametrize("kind", ["jumprelu", "relu", "topk"])
def test_slices_in_which_most_features_fire_find_them_all(kind: str) -> None:
    tensors = tensors_of(kind, 300, 1, ties=False)
    tensors["b_enc"] = torch.full((300,), 0.5)
    whole, sliced = (made(kind, tensors, n, k=200) for n in (1, 3))
    x = rows(40)
    found, out = sliced.read(x)
    torch.testing.assert_close(found.to_dense(), whole.encode(x).to_dense(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(out.double(), whole.decode(found).double(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["jumprelu", "topk", "transcoder"])
def test_gradients_flow_through_slices_as_through_the_whole(kind: str) -> None:
    tensors = tensors_of(kind, 90, 3, ties=False)
    grads = []
    for n in (1, 4):
        sae = made(kind, tensors, n).requires_grad_()
        x = rows(12, 4).requires_grad_()
        sae(x).pow(2).sum().backward()
        assert x.grad is not None
        own = [
            torch.cat([getattr(part, name).grad for part in sae.slices], dim)
            for name, dim in OF_FEATURES.items()
            if name in ("W_enc", "W_dec", "b_enc")
        ]
        grads.append([x.grad, *own, sae.b_dec.grad])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    axis=st.integers(0, 1),
    start=st.integers(0, 30),
    stop=st.integers(0, 30),
    step=st.integers(1, 6),
    ids=st.lists(st.integers(0, 10**6), max_size=8),
)
def test_rows_of_some_features_are_those_of_the_whole(
    widths: list[int], axis: int, start: int, stop: int, step: int, ids: list[int]
) -> None:
    whole = torch.arange(3.0 * sum(widths)).reshape(-1, 3)
    parts = torch.split(whole, widths)
    sliced = Sliced([part.T.contiguous() if axis else part for part in parts], axis)
    chosen = torch.tensor([one % len(whole) for one in ids], dtype=torch.int64)
    assert torch.equal(sliced[start:stop:step], whole[start:stop:step])
    assert torch.equal(sliced[chosen], whole[chosen])
    assert torch.equal(torch.cat(list(sliced.pieces())), whole.T if axis else whole)
    assert torch.equal(sliced.norms(), whole.norm(dim=-1))
    assert tuple(sliced.shape) == tuple((whole.T if axis else whole).shape)
    assert len(sliced) == len(whole)


def test_what_weights_alone_say_is_the_same_of_slices() -> None:
    tensors = tensors_of("jumprelu", 150, 2, ties=False)
    whole, sliced = (made("jumprelu", tensors, n) for n in (1, 4))
    for one, other in zip(nearest(sliced.decoder, 6), nearest(whole.W_dec, 6), strict=True):
        assert torch.equal(one, other)
    for best, alone in zip(closest(sliced.decoder, whole.decoder), closest(whole.W_dec, whole.W_dec), strict=True):
        assert (best.ids == alone.ids).all()
    cosines = encoder_cosines(sliced), encoder_cosines(whole)
    torch.testing.assert_close(*cosines)
    pytest.importorskip("sklearn")
    assert (plane(sliced.decoder).places == plane(whole.W_dec).places).all()


@pytest.mark.parametrize("kind", ["jumprelu", "relu", "topk", "deviation"])
def test_an_edit_reads_one_feature_of_a_slice(kind: str) -> None:
    tensors = tensors_of(kind, 90, 3, ties=False)
    x = rows(9, 5)
    for feature in (0, 31, 89):
        edits = [OfFeature(made(kind, tensors, n), feature) for n in (1, 4)]
        torch.testing.assert_close(edits[0].activation(x), edits[1].activation(x))


@pytest.mark.parametrize("saved", ["saelens", "sparsify", "circuit-tracer"])
def test_slices_are_saved_to_the_bytes_of_the_whole(saved: str, tmp_path: Path) -> None:
    kind = {"saelens": "jumprelu", "sparsify": "topk", "circuit-tracer": "transcoder"}[saved]
    tensors = tensors_of(kind, 101, 6, ties=False)
    if saved == "circuit-tracer":
        tensors = {name: tensor[..., :D] if name in ("W_dec", "b_dec") else tensor for name, tensor in tensors.items()}
        tensors["W_skip"] = tensors["W_skip"][:D]
    places = [gs.save_sae(made(kind, tensors, n), tmp_path / str(n), format=saved) for n in (1, 3)]  # type: ignore[arg-type]
    files = [{path.name: path.read_bytes() for path in place.parent.rglob("*") if path.is_file()} for place in places]
    assert files[0] == files[1]
    assert len(files[0]) > 1


def test_a_file_is_read_into_slices(tmp_path: Path) -> None:
    folder = gs.save_sae(made("jumprelu", tensors_of("jumprelu", 101, 6, ties=False), 1), tmp_path / "sae")
    whole, sliced = gs.load_sae(folder), gs.load_sae(folder, device=["cpu", "cpu", torch.device("cpu")])
    assert [part.d_sae for part in sliced.slices] == [34, 34, 33]
    assert sliced.device == CPU
    assert repr(sliced) == repr(whole)[:-1] + ", 3 slices on cpu and cpu and cpu)"
    x = rows(30)
    same(sliced.encode(x), whole.encode(x))
    assert gs.load_sae(folder, device=["cpu"]).parts.__len__() == 0
    assert [part.d_sae for part in sliced.to("cpu").slices] == [34, 34, 33]


def test_what_slices_hold_is_told_and_whole_matrices_are_refused() -> None:
    tensors = tensors_of("jumprelu", 90, 3, ties=False)
    sae = made("jumprelu", tensors, 2)
    for name, rows_of in (("W_enc", "encoder"), ("W_dec", "decoder")):
        with pytest.raises(
            InputError, match=rf"{name} of planted lies in 2 slices, on cpu and cpu: .* sae.{rows_of}\[:"
        ):
            getattr(sae, name)
    assert torch.equal(sae.b_enc, tensors["b_enc"])
    assert sae.threshold is not None
    assert torch.equal(sae.threshold, tensors["threshold"])
    with pytest.raises(InputError, match="SAELens's lie on one device"):
        sae.to_saelens()
    with pytest.raises(AttributeError, match="no attribute 'W_other'"):
        _ = sae.W_other
    with pytest.raises(Mismatch, match="activations of width 3"):
        sae.encode(torch.zeros(2, 3))
    with pytest.raises(InputError, match="no feature 90: this SAE has features 0 to 89"):
        sae.direction(90)


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ([], "no device is named for an SAE's slices"),
        (["cpu", "cuda:77"], "device 'cuda:77' cannot be used: .*; here there is"),
        (["cpu", "nowhere"], "device 'nowhere' cannot be used"),
        (["cpu"] * 8, "8 devices for 7 features: expected 1 to 7"),
    ],
)
def test_devices_that_will_not_do_are_refused_in_a_line(devices: list[str], said: str, tmp_path: Path) -> None:
    folder = gs.save_sae(made("relu", tensors_of("relu", 7, 6, ties=False), 1), tmp_path / "sae")
    with pytest.raises(InputError, match=said) as told:
        gs.load_sae(folder, device=devices)
    assert "\n" not in str(told.value)


def test_a_gpu_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from gemscope.features.kernels import choice

    monkeypatch.setattr(choice, "device_of", torch.device)
    assert choice.places_for(["cuda:0", "cuda:1", "cpu", "cpu"])[1] == torch.device("cuda:1")
    with pytest.raises(InputError, match="cuda:1 is named twice: slices of an SAE on one device take the room"):
        choice.places_for(["cuda:1", "cuda:0", "cuda:1"])
    with pytest.raises(InputError, match="mps has no sparse products, which slices of an SAE need"):
        choice.places_for(["cpu", "mps"])
