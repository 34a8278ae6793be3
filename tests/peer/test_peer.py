"""SAELens and gemscope read each other's folders and compute the same with them."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gemscope.activations.site import Site
from gemscope.errors import FileError
from gemscope.features.files.saving import save_sae
from gemscope.features.load import load_sae
from gemscope.features.sae import SAE, SAEInfo
from gemscope.training.config import TrainConfig
from gemscope.training.train import train
from planted import Given, directions, strengths

REPOSITORY = Path(__file__).parents[2]
PEER = REPOSITORY / ".venv-peer" / "bin" / "python"
SCRIPT = Path(__file__).parent / "exchange.py"

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not PEER.exists(), reason="SAELens is not installed in .venv-peer: run `make peer`"),
]

D_IN, D_SAE, D_OUT, TOKENS = 16, 48, 12, 256
TIE = 1e-4
"""Tokens with a pre-activation this near to where a gate opens are left out: rounding decides those."""

OURS = {
    "relu": {"gate": "relu", "site": "3.res"},
    "jumprelu": {"site": "3.res"},
    "jumprelu_bfloat16": {"site": "3.res"},
    "topk": {"gate": "topk", "k": 5, "site": "3.res"},
    "heads": {"site": "3.att"},
    "embedding": {"site": "embed", "model": "google/gemma-3-1b-pt"},
    "transcoder": {"gate": "relu", "d_out": D_OUT, "site": "3.transcoder_nogain", "site_out": "3.mlp"},
    "skip_transcoder": {"gate": "relu", "d_out": D_OUT, "skip": True, "site": "3.transcoder", "site_out": "3.mlp"},
    "jumprelu_transcoder": {"d_out": D_OUT, "site": "3.transcoder", "site_out": "3.mlp"},
    "jumprelu_skip_transcoder": {"d_out": D_OUT, "skip": True, "site": "3.transcoder", "site_out": "3.mlp"},
}  # fmt: skip
"""SAEs that gemscope writes: options of `SAE`."""

TRAINED: dict[str, tuple[str, dict[str, object]]] = {
    "trained_jumprelu": ("jumprelu", {}),
    "trained_like_gemma_scope": ("jumprelu", {"penalty": "l0", "sparsity": 1e-3, "unit_norm": True, "pre_bias": True, "centre": False}),
    "trained_topk": ("topk", {}),
    "trained_batchtopk": ("batchtopk", {}),
    "trained_matryoshka": ("batchtopk", {"matryoshka": [0.25, 0.5]}),
    "trained_matryoshka_jumprelu": ("jumprelu", {"matryoshka": [0.25, 0.5]}),
    "trained_gated": ("gated", {"sparsity": 0.5}),
    "trained_standard": ("standard", {"sparsity": 0.2}),
    "trained_transcoder": ("standard", {"sparsity": 0.2, "skip": False}),
    "trained_skip_transcoder": ("standard", {"sparsity": 0.2, "skip": True}),
    "trained_jumprelu_transcoder": ("jumprelu", {"skip": False}),
    "trained_jumprelu_skip_transcoder": ("jumprelu", {"skip": True}),
    "trained_batchtopk_skip_transcoder": ("batchtopk", {"skip": True}),
}  # fmt: skip
"""SAEs that gemscope trains: architecture and settings of `TrainConfig`; with `skip` said, a transcoder."""

THEIRS = (
    "standard", "standard_plain", "standard_heads", "jumprelu", "topk", "topk_rescaled", "gated", "batchtopk",
    "layer_norm", "constant_norm",
    "matryoshka", "transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder",
    "old", "old_topk", "topk_of_5", "old_heads",
    "run_jumprelu", "run_jumprelu_scaled", "run_batchtopk", "run_batchtopk_scaled", "run_batchtopk_plain_scaled",
    "run_jumprelu_whitened", "run_batchtopk_whitened", "run_topk_whitened", "run_gated_whitened",
)  # fmt: skip
"""Folders that SAELens writes: for use, as versions before 6 did, and checkpoints from the middle of a run."""


@dataclass(frozen=True)
class Exchange:
    """A folder of folders that both have written into."""

    root: Path
    ours: dict[str, SAE]

    def answer(self, name: str) -> dict[str, Tensor]:
        """What SAELens computed: x, features, decoded, forward."""
        return load_file(self.root / "answers" / f"{name}.safetensors")

    def said(self, name: str) -> dict[str, str]:
        """What SAELens took the folder for."""
        with safe_open(self.root / "answers" / f"{name}.safetensors", framework="pt") as answer:
            return answer.metadata()


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    """Our folders written, then one process of SAELens's that reads them and writes its own."""
    root = tmp_path_factory.mktemp("exchange")
    (root / "inputs").mkdir()
    torch.manual_seed(1)
    ours = {}
    for name, options in OURS.items():
        sae = ours[name] = _random_sae(**options)
        dtype = torch.bfloat16 if name.endswith("bfloat16") else None
        save_sae(sae, root / "ours" / name, dtype=dtype)
        x = 1.5 * torch.randn(TOKENS, D_IN) + 0.5
        save_file({"x": x * _embedding_scale(name)}, root / "inputs" / f"{name}.safetensors")
    for name in TRAINED:
        ours[name] = _trained(name, root)
        save_file({"x": _rows(TOKENS, seed=1)[0]}, root / "inputs" / f"{name}.safetensors")
    offline = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [PEER, SCRIPT, root], check=False, capture_output=True, text=True, timeout=280, env=os.environ | offline
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Exchange(root, ours)


@pytest.mark.parametrize("name", [*OURS, *TRAINED])
def test_saelens_computes_the_same_with_a_folder_of_ours(exchange: Exchange, name: str) -> None:
    sae = exchange.ours[name]
    if name.endswith("bfloat16"):
        sae = load_sae(exchange.root / "ours" / name)  # the matrices as they were rounded for the file
    theirs, scale = exchange.answer(f"ours/{name}"), _embedding_scale(name)
    _assert_same(sae, theirs["x"] / scale, theirs["features"], theirs["decoded"] / scale, theirs["forward"] / scale)


@pytest.mark.parametrize("name", THEIRS)
def test_gemscope_computes_the_same_with_a_folder_of_saelens(exchange: Exchange, name: str) -> None:
    theirs = exchange.answer(f"inference/{name}" if name.startswith("run_") else f"theirs/{name}")
    sae = load_sae(exchange.root / "theirs" / name)
    _assert_same(sae, theirs["x"], theirs["features"], theirs["decoded"], theirs["forward"])


def test_every_folder_that_saelens_wrote_is_compared(exchange: Exchange) -> None:
    assert sorted(folder.name for folder in (exchange.root / "theirs").iterdir()) == sorted(THEIRS)


@pytest.mark.parametrize(
    ("name", "architecture", "hook", "hook_out"),
    [
        ("relu", "standard", "blocks.3.hook_resid_post", None),
        ("jumprelu", "jumprelu", "blocks.3.hook_resid_post", None),
        ("topk", "topk", "blocks.3.hook_resid_post", None),
        ("heads", "jumprelu", "blocks.3.attn.hook_z", None),
        ("jumprelu_skip_transcoder", "jumprelu_skip_transcoder", "blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out"),
        ("trained_matryoshka", "jumprelu", "blocks.3.hook_resid_post", None),
        ("trained_gated", "jumprelu", "blocks.3.hook_resid_post", None),
        ("trained_topk", "topk", "blocks.3.hook_resid_post", None),
        ("trained_standard", "standard", "blocks.3.hook_resid_post", None),
        ("trained_skip_transcoder", "skip_transcoder", "blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out"),
        (
            "trained_batchtopk_skip_transcoder",
            "jumprelu_skip_transcoder",
            "blocks.3.mlp.hook_in",
            "blocks.3.hook_mlp_out",
        ),
    ],
)
def test_saelens_takes_our_folder_for_what_it_is(
    exchange: Exchange, name: str, architecture: str, hook: str, hook_out: str | None
) -> None:
    said = exchange.said(f"ours/{name}")
    assert said["architecture"] == architecture
    assert said["hook_name"] == hook
    assert said.get("hook_name_out") == hook_out


@pytest.mark.parametrize(
    ("name", "site", "site_out"),
    [
        ("standard", "3.res", "3.res"),
        ("standard_heads", "3.att", "3.att"),
        ("transcoder", "3.transcoder_nogain", "3.mlp"),
    ],
)
def test_gemscope_takes_a_folder_of_saelens_for_what_it_is(
    exchange: Exchange, name: str, site: str, site_out: str
) -> None:
    sae = load_sae(exchange.root / "theirs" / name)
    assert (str(sae.site), str(sae.site_out)) == (site, site_out)


@pytest.mark.parametrize("name", ["abstopk", "matching_pursuit", "whitening"])
def test_arithmetic_that_gemscope_does_not_have_is_refused(exchange: Exchange, name: str) -> None:
    with pytest.raises(FileError, match=r"not read here|cannot be whitened"):
        load_sae(exchange.root / "refused" / name)


def test_a_scale_that_the_folder_does_not_say_is_refused_where_saelens_leaves_it_out(exchange: Exchange) -> None:
    left_out, unscaled = exchange.answer("refused/scale_unsaid"), exchange.answer("inference/unscaled")
    assert left_out["features"].equal(unscaled["features"])
    with pytest.raises(FileError, match="no usable factor"):
        load_sae(exchange.root / "refused" / "scale_unsaid")


def _random_sae(*, model: str = "openai-community/gpt2", **options: object) -> SAE:
    sae = SAE(D_IN, D_SAE, **options, info=SAEInfo(model=model))  # type: ignore[arg-type]
    for name, weight in sae.state_dict().items():
        if name == "threshold":
            weight.copy_(torch.rand(D_SAE) - 0.1)
        elif name == "W_dec":
            weight.copy_(torch.randn_like(weight) * (0.2 + torch.rand(D_SAE, 1)))
        else:
            weight.copy_(0.4 * torch.randn_like(weight))
    return sae


def _trained(name: str, root: Path) -> SAE:
    """A short run's folder as it is, read by us; SAELens reads the same one."""
    architecture, settings = TRAINED[name]
    x, y = _rows(4000, seed=0)
    reads, writes = (Site(3, "transcoder"), Site(3, "mlp")) if "skip" in settings else (Site(3, "res"),) * 2
    y = y if "skip" in settings else x
    source = Given(x, y, (reads,), (writes,), ((D_IN,), (y.shape[1],)))
    config = TrainConfig.of(
        {
            "architecture": architecture,
            "width": D_SAE,
            "target_l0": 4,
            "rows": 60 * 256,
            "batch": 256,
            "lr": 3e-3,
            **settings,
        }
    )
    train(source, config, to=root / "runs" / name)
    shutil.copytree(root / "runs" / name / "sae", root / "ours" / name)
    return load_sae(root / "ours" / name)


def _rows(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """What a run reads and what a transcoder shall write: planted features about a mean, of no particular size."""
    f = strengths(count, 24, 3.0, seed)
    return 4 * (f @ directions(24, D_IN, 5)) + torch.arange(D_IN), 7 * (f @ directions(24, D_OUT, 6)) - 2


def _embedding_scale(name: str) -> float:
    """Gemma's embedding leaves SAELens's hook multiplied by √d_model, and our site before that."""
    return D_IN**0.5 if name == "embedding" else 1.0


def _assert_same(sae: SAE, x: Tensor, features: Tensor, decoded: Tensor, forward: Tensor) -> None:
    clear = _clear_of_ties(sae, x)
    assert clear.float().mean() > 0.9
    kept, theirs = x[clear], features[clear]
    encoded = sae.encode(kept)
    active = (theirs > 0).float().mean()
    assert 0.02 < active < 0.9, "a comparison of zeros, or without a gate, would say little"
    differing = (encoded.to_dense().gt(0) != (theirs > 0)).sum().item()
    assert differing == 0, f"{differing} of {theirs.numel()} features are active in one and not in the other"
    torch.testing.assert_close(encoded.to_dense(), theirs, rtol=1e-5, atol=2e-5)
    ours = sae.decode(encoded)
    if sae.norm == "deviation":  # SAELens puts the mean back on decoding, we let it past
        ours = ours + kept.mean(-1, keepdim=True)
    torch.testing.assert_close(ours, decoded[clear], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(sae(kept), forward[clear], rtol=1e-5, atol=1e-4)


def _clear_of_ties(sae: SAE, x: Tensor) -> Tensor:
    """Which tokens have no pre-activation so near its threshold, or to the k-th's, that rounding decides."""
    pre = sae.normed(x).double() @ sae.W_enc.double() + sae.b_enc.double()
    near = pre.abs() < TIE
    if sae.threshold is not None:
        near |= (pre - sae.threshold.double()).abs() < TIE
    clear = ~near.any(-1)
    if sae.k is not None:
        kth = pre.topk(sae.k + 1, dim=-1).values
        clear &= kth[:, -2] - kth[:, -1] > TIE
    return clear
