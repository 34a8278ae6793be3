"""An SAE's sparse encoding and decoding against its own dense arithmetic: every gate, chosen features, weights that stay
in their file, tokens with thousands of active features."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gemscope as gs
from gemscope.errors import InputError
from gemscope.features import prepared
from gemscope.features.activations import FeatureActivations
from gemscope.features.decode import decode_sparse
from gemscope.features.encode import encode_rows
from gemscope.features.kernels.choice import choose
from gemscope.features.mapped import Mapped
from gemscope.features.sae import SAE
from gemscope.features.weights import Weights

D, F = 48, 700


def random_sae(gate: str = "jumprelu", *, k: int | None = None, seed: int = 0, theta: float = 1.37) -> SAE:
    generator = torch.Generator().manual_seed(seed)
    sae = SAE(D, F, gate=gate, k=k, site="3.res")  # type: ignore[arg-type]
    W = torch.randn(D, F, generator=generator)
    sae.W_enc.copy_(W / W.norm(dim=0))
    sae.W_dec.copy_(sae.W_enc.T + 0.02 * torch.randn(F, D, generator=generator))
    sae.b_enc.copy_(0.1 * torch.randn(F, generator=generator))
    sae.b_dec.copy_(torch.randn(D, generator=generator))
    if sae.threshold is not None:
        sae.threshold.fill_(theta)
    return sae


@pytest.fixture
def x() -> Tensor:
    return torch.randn(6, 30, D, generator=torch.Generator().manual_seed(5))


GATES = pytest.mark.parametrize(
    "sae", [random_sae(), random_sae("relu"), random_sae("topk", k=9)], ids=lambda s: s.gate
)


@GATES
def test_sparse_is_dense_without_the_zeros(sae: SAE, x: Tensor) -> None:
    torch.testing.assert_close(sae.encode(x).to_dense(), sae.encode_dense(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(x), sae.decode(sae.encode_dense(x)), rtol=1e-4, atol=1e-4)


@GATES
def test_chosen_features_are_encoded_as_they_are_among_all(sae: SAE, x: Tensor) -> None:
    chosen = [699, 3, 3, 77, 400]
    whole, some = sae.encode(x), sae.encode(x, features=chosen)
    assert set(some.features.tolist()) <= set(chosen)
    kept = torch.isin(whole.features, torch.tensor(chosen, dtype=torch.int32))
    assert kept.any()
    assert torch.equal(some.features, whole.features[kept])
    torch.testing.assert_close(some.values, whole.values[kept], rtol=1e-6, atol=1e-6)
    assert torch.equal(some.tokens, whole.tokens[kept])
    assert sae.encode(x, features=[]).features.numel() == 0
    with pytest.raises(InputError, match="no feature 700: this SAE has features 0 to 699"):
        sae.encode(x, features=[1, 700])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, F), tokens=st.integers(0, 40), spread=st.floats(0, 3))
def test_the_k_largest_are_the_k_largest(seed: int, k: int, tokens: int, spread: float) -> None:
    """Also where the features that are looked at first say nothing of the others, and where few are above zero."""
    generator = torch.Generator().manual_seed(seed)
    sae = random_sae("topk", k=k, seed=seed)
    sae.b_enc.copy_(spread * torch.randn(F, generator=generator) - spread)
    sae.b_enc[::2] -= 3 * spread
    x = torch.randn(tokens, D, generator=generator)
    sparse, pre = sae.encode(x), x @ sae.W_enc + sae.b_enc
    torch.testing.assert_close(sparse.values, pre[sparse.tokens, sparse.features.long()], rtol=1e-5, atol=1e-5)
    # Of two that differ in their last bits alone, either may be the k-th.
    found, expected = (dense.sort(dim=-1).values for dense in (sparse.to_dense(), sae.encode_dense(x)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_is_kept_beside_the_weights_follows_them(x: Tensor) -> None:
    sae = random_sae()
    before = sae.encode(x)
    sae.W_enc.mul_(2)
    assert len(sae.encode(x).features) > 2 * len(before.features)
    sae.threshold.fill_(1e9)
    assert len(sae.encode(x).features) == 0
    sae.threshold.fill_(1.37)
    sae.b_enc += 0.5
    torch.testing.assert_close(sae.encode(x).to_dense(), sae.encode_dense(x), rtol=1e-5, atol=1e-5)
    sae.half()
    out = sae(x)
    sae.W_dec.zero_()
    assert not torch.equal(sae(x), out)
    assert torch.equal(sae(x), sae.b_dec.float().expand_as(x))


def test_weights_are_what_they_are_when_they_are_asked_for(x: Tensor) -> None:
    sae = random_sae()
    contents = [sae.weights.content]
    assert sae.weights.content == contents[0]
    sae.b_dec += 1
    contents.append(sae.weights.content)
    sae.W_enc = torch.nn.Parameter(sae.W_enc.detach().clone())
    contents.append(sae.weights.content)
    sae.to(torch.bfloat16)
    contents.append(sae.weights.content)
    sae.centred = True
    contents.append(sae.weights.content)
    assert len(set(contents)) == 5
    assert sae.weights.W_enc is sae.W_enc


def test_weights_that_are_no_saes_are_encoded_and_decoded(x: Tensor) -> None:
    generator = torch.Generator().manual_seed(3)
    sizes = ((D, F), (F,), (F, 8), (8,))
    W_enc, b_enc, W_dec, b_dec = (torch.randn(*size, generator=generator) for size in sizes)
    weights = Weights(W_enc, b_enc, W_dec, b_dec, threshold=None, W_skip=None, gate="relu", k=None, centred=False)
    ready, rows = prepared.Prepared(weights, choose(x.device), weights.content), x.reshape(-1, D)
    found = encode_rows([ready], rows)
    z = rows.double() @ W_enc.double() + b_enc.double()
    features = FeatureActivations(found.offsets, found.ids, found.values, F, (len(rows),), None)
    torch.testing.assert_close(features.to_dense().double(), z.clamp(min=0), rtol=1e-4, atol=1e-4)
    out = z.clamp(min=0) @ W_dec.double() + b_dec.double()
    torch.testing.assert_close(decode_sparse([ready], b_dec, features).double(), out, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_taken_for_what_they_are(x: Tensor, dtype: torch.dtype) -> None:
    sae = random_sae().to(dtype)
    torch.testing.assert_close(sae.encode(x).to_dense(), sae.encode_dense(x), rtol=1e-5, atol=1e-5)
    assert sae.encode(x).values.dtype == torch.float32


def test_tokens_with_very_many_features_are_decoded_the_same() -> None:
    """Dense products take over for those, where there are some: more than one feature in twenty is active."""
    sae = random_sae()
    dense = torch.relu(torch.randn(50, F, generator=torch.Generator().manual_seed(1)))
    dense[:30] *= torch.rand(30, F, generator=torch.Generator().manual_seed(2)) < 0.02
    for some in (dense, dense[:33], dense[:30], dense[30:], dense[:0]):
        sparse = FeatureActivations.from_dense(some)
        torch.testing.assert_close(sae.decode(sparse), some @ sae.W_dec + sae.b_dec, rtol=1e-4, atol=1e-4)


# --- weights that stay in their file --------------------------------------------------------------------------------


@pytest.fixture(params=["saelens", "npz"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    sae = random_sae(seed=9)
    if request.param == "saelens":
        return gs.save_sae(sae, tmp_path / "sae")
    import numpy as np

    path = tmp_path / "params.npz"
    np.savez(path, **{name: weight.contiguous().numpy() for name, weight in sae.state_dict().items()})
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")
def test_weights_from_a_file_are_mapped_until_they_are_written_into(stored: Path) -> None:
    sae = gs.load_sae(str(stored), site="3.res")
    found = Mapped.of(sae.W_enc)
    assert found is not None
    before = sae.W_enc.clone()
    found.release()
    assert torch.equal(sae.W_enc, before)
    assert Mapped.of(random_sae().W_enc) is None
    sae.W_dec[0, 0] = 7.0
    assert Mapped.of(sae.W_dec) is None
    assert sae.W_dec[0, 0] == 7.0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")
def test_streaming_weights_in_tiles_changes_no_bit(stored: Path, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = random_sae(seed=9)
    monkeypatch.setattr(prepared, "_KEPT", 0)
    monkeypatch.setattr(prepared, "_TILE", 128 * D)
    sae = gs.load_sae(str(stored), site="3.res")
    one, other = sae.encode(x), whole.encode(x)
    assert sae.prepared is not None
    assert (sae.prepared.encoder, sae.prepared.decoder) == (None, None)
    assert torch.equal(one.offsets, other.offsets)
    assert torch.equal(one.features, other.features)
    assert torch.equal(one.values, other.values)
    torch.testing.assert_close(sae(x), whole(x), rtol=1e-5, atol=1e-5)
    assert sae.digest == whole.digest


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")
def test_the_k_largest_are_found_in_a_streamed_file_too(
    tmp_path: Path, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = random_sae("topk", k=9, seed=9)
    folder = gs.save_sae(whole, tmp_path / "sae")
    monkeypatch.setattr(prepared, "_KEPT", 0)
    monkeypatch.setattr(prepared, "_TILE", 128 * D)
    sae = gs.load_sae(str(folder))
    one, other = sae.encode(x), whole.encode(x)
    assert sae.prepared is not None
    assert (sae.prepared.encoder, sae.prepared.decoder) == (None, None)
    assert torch.equal(one.features, other.features)
    assert torch.equal(one.values, other.values)


WIDE = """
import resource, sys, threading, time
import torch
import gemscope as gs
from gemscope.features import prepared

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

prepared._KEPT, prepared._TILE = 1 << 24, 1 << 19
sae = gs.load_sae(sys.argv[1], site="3.res")
x = torch.randn(64, sae.d_in, generator=torch.Generator().manual_seed(0))
sae.encode(x[:1], features=[0])
base = resident()
done, peak = False, base
def watch():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(0.001)
watcher = threading.Thread(target=watch)
watcher.start()
features, out = sae.read(x)
again = sae.encode(x, features=range(0, sae.d_sae, 1000))
done = True
watcher.join()
print(peak - base, len(features.features), len(again.features))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")
def test_a_wide_sae_is_read_without_being_held(tmp_path: Path) -> None:
    """268 MB of weights, with 16 MB allowed beside them: what is held at a time is a few tiles of 2 MB."""
    sae = SAE(256, 1 << 17, site="3.res")
    generator = torch.Generator().manual_seed(0)
    sae.W_enc.copy_(torch.randn(256, 1 << 17, generator=generator) / 16)
    sae.W_dec.copy_(sae.W_enc.T)
    sae.threshold.fill_(3.3)
    folder = gs.save_sae(sae, tmp_path / "wide")
    # The threshold makes the allocator give back at once what it is given back: what is held is what counts here.
    ran = subprocess.run(
        [sys.executable, "-c", WIDE, str(folder)],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    held, active, chosen = map(int, ran.stdout.split())
    assert 64 * 20 < active < 64 * 200
    assert chosen < active / 500
    assert held < 60e6  # neither 134 MB of encoder nor 134 MB of decoder fit into that
