"""Cross-layer transcoders are what circuit-tracer computes with its own files, and what the formula says of Gemma Scope
2's; of their decoders only the rows of active features are read.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import gemscope as gs
from gemscope.errors import CorruptFile, FileError, InputError, Mismatch, NotFinite, SAENotFound
from gemscope.features import cross_layer
from gemscope.features.files.cross_layer import is_clt
from hub_server import Repo, child, hub
from peers import FORMATS, answers, changed, copied

CLT = FORMATS / "circuit_tracer" / "clt"
GEMMA = FORMATS / "circuit_tracer" / "gemma_scope_2_clt"


def given(clt: gs.CrossLayerTranscoder, x: torch.Tensor) -> dict[gs.Site, torch.Tensor]:
    return {site: x[layer] for layer, site in enumerate(clt.sites)}


def by_formula(folder: Path, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Features [L, N, F] and what is written [L, N, D] of Gemma Scope 2's files, in float64, one token and layer at a
    time."""
    params = [
        {name: one.double().numpy() for name, one in load_file(folder / f"params_layer_{layer}.safetensors").items()}
        for layer in range(3)
    ]
    values = x.double().numpy()
    features = []
    for layer, one in enumerate(params):
        z = values[layer] @ one["w_enc"] + one["b_enc"]
        features.append(np.where((z > one["threshold"]) & (z > 0), z, 0))
    out = []
    for layer, one in enumerate(params):
        written = one["b_dec"] + values[layer] @ one["affine_skip_connection"]
        for earlier in range(layer + 1):
            written = written + features[earlier] @ params[earlier]["w_dec"][:, layer]
        out.append(written)
    return np.stack(features), np.stack(out)


def test_circuit_tracers_own_answers_are_ours() -> None:
    clt = gs.load_clt(CLT)
    assert list(map(str, clt.sites)) == ["0.mid", "1.mid", "2.mid"]
    assert list(map(str, clt.sites_out)) == ["0.mlp", "1.mlp", "2.mlp"]
    assert (clt.features, clt.d_in, clt.d_out, clt.info.model) == ((64, 64, 64), 16, 16, "google/gemma-2-2b")
    told = answers("circuit_tracer/clt_expected.safetensors")
    features = clt.encode(given(clt, told["x"]))
    out, whole = clt.decode(features), clt(given(clt, told["x"]))
    for layer, (site, to) in enumerate(zip(clt.sites, clt.sites_out, strict=True)):
        dense = features[site].to_dense()
        np.testing.assert_array_equal((dense != 0).numpy(), (told["features"][layer] != 0).numpy())
        torch.testing.assert_close(dense, told["features"][layer], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(out[to], told["recon"][layer], rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(whole[to], out[to])


def test_gemma_scope_2s_are_what_the_formula_says() -> None:
    clt = gs.load_clt(GEMMA)
    assert list(map(str, clt.sites)) == ["0.transcoder", "1.transcoder", "2.transcoder"]
    assert (clt.info.model, clt.info.declared_l0, clt.info.format) == ("google/gemma-3-270m", 10, "Gemma Scope 2")
    x = torch.randn(3, 2, 7, 16, generator=torch.Generator().manual_seed(0))
    features, out = clt.read(given(clt, x))
    expected, written = by_formula(GEMMA, x.flatten(1, 2))
    for layer, (site, to) in enumerate(zip(clt.sites, clt.sites_out, strict=True)):
        dense = features[site].to_dense().flatten(0, 1).numpy()
        np.testing.assert_array_equal(dense != 0, expected[layer] != 0)
        np.testing.assert_allclose(dense, expected[layer], rtol=1e-5, atol=1e-5)
        assert out[to].shape == (2, 7, 16)
        np.testing.assert_allclose(out[to].flatten(0, 1).numpy(), written[layer], rtol=1e-5, atol=2e-5)


def test_rows_are_read_of_active_features_alone_and_a_tile_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))
    clt = gs.load_clt(GEMMA)
    features, whole = clt.read(given(clt, x))
    active = [found.features.unique().numel() for found in features.values()]
    assert [one.rows_read for one in clt.written] == active
    assert min(active) < 64
    monkeypatch.setattr(cross_layer, "_TILE", 5 * 16 * 3)
    tiled = gs.load_clt(GEMMA)
    for site, rows in tiled(given(tiled, x)).items():
        torch.testing.assert_close(rows, whole[site], rtol=1e-6, atol=1e-6)
    assert [one.rows_read for one in tiled.written] == active


def test_what_one_feature_writes_is_its_row_at_each_later_layer() -> None:
    clt = gs.load_clt(CLT)
    rows = load_file(CLT / "W_dec_1.safetensors")["W_dec_1"]
    found = clt.directions(1, 9)
    assert list(map(str, found)) == ["1.mlp", "2.mlp"]
    for later, row in enumerate(found.values()):
        torch.testing.assert_close(row, rows[9, later])
    with pytest.raises(SAENotFound, match=r"no layer 3 in .*: it has layers 0 to 2"):
        clt.directions(3, 0)
    with pytest.raises(InputError, match="no feature 64: layer 1 has features 0 to 63"):
        clt.directions(1, 64)


def test_features_of_every_layer_are_needed_and_of_the_same_tokens() -> None:
    clt = gs.load_clt(CLT)
    features = clt.encode(given(clt, torch.randn(3, 4, 16)))
    others = clt.encode(given(clt, torch.randn(3, 5, 16)))
    first = clt.sites[0]
    with pytest.raises(Mismatch, match=r"no features of 0\.mid"):
        clt.decode({site: found for site, found in features.items() if site != first})
    with pytest.raises(Mismatch, match=r"at 1\.mid: expected 64 for tokens of shape \(5,\)"):
        clt.decode(features | {first: others[first]})
    with pytest.raises(Mismatch, match=r"no activations of 0\.mid"):
        clt.encode({"1.mid": torch.randn(4, 16), "2.mid": torch.randn(4, 16)})


def _without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def _tensors(name: str, **values: torch.Tensor | None) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        kept = {key: one for key, one in {**load_file(folder / name), **values}.items() if one is not None}
        save_file(kept, folder / name)

    return change


@pytest.mark.parametrize(
    ("source", "change", "error", "said"),
    [
        (CLT, _without("W_enc_1.safetensors"), CorruptFile, "layers up to 2 and none of layer 1"),
        (CLT, _without("W_dec_1.safetensors"), CorruptFile, "no W_dec_1.safetensors"),
        (CLT, _without("config.yaml"), FileError, "does not say where it reads and writes"),
        (CLT, _without("W_enc_2.safetensors"), CorruptFile, "(64, 3, 16), expected (64, 2, 16)"),
        (CLT, _tensors("W_enc_0.safetensors", threshold_0=-torch.ones(64)), FileError, "thresholds below 0"),
        (CLT, _tensors("W_enc_0.safetensors", b_enc_0=torch.zeros(63)), CorruptFile, "b_enc_0 has the shape (63,)"),
        (CLT, _tensors("W_enc_0.safetensors", W_skip_0=torch.zeros(16, 16)), CorruptFile, "W_skip_0"),
        (CLT, _tensors("W_enc_0.safetensors", W_enc_0=torch.full((64, 16), torch.nan)), NotFinite, "NaN or Inf"),
        (CLT, _tensors("W_enc_0.safetensors", b_dec_0=torch.full((16,), torch.inf)), NotFinite, "NaN or Inf"),
        (CLT, _tensors("W_dec_0.safetensors", other=torch.zeros(1)), CorruptFile, "other tensors than W_dec_0"),
        (GEMMA, _without("params_layer_0.safetensors"), CorruptFile, "none of layer 0"),
        (GEMMA, _tensors("params_layer_1.safetensors", w_dec=torch.zeros(64, 2, 16)), CorruptFile, "(64, 2, 16), expected"),
        (GEMMA, _tensors("params_layer_1.safetensors", w_dec=None), CorruptFile, "no w_dec of layer 1"),
        (GEMMA, lambda folder: changed(folder / "config.json", type="crosscoder"), FileError, "is a crosscoder"),
        (GEMMA, lambda folder: changed(folder / "config.json", architecture="topk"), FileError, "architecture 'topk'"),
    ],
)  # fmt: skip
def test_what_is_damaged_or_not_read_is_told_on_loading(
    tmp_path: Path, source: Path, change: Callable[[Path], object], error: type[Exception], said: str
) -> None:
    folder = copied(str(source.relative_to(FORMATS)), tmp_path / "it")
    change(folder)
    with pytest.raises(error) as raised:
        gs.load_clt(folder)
    assert said in str(raised.value)


def test_a_damaged_row_is_told_when_it_is_read(tmp_path: Path) -> None:
    folder = copied("circuit_tracer/clt", tmp_path / "it")
    rows = load_file(folder / "W_dec_2.safetensors")["W_dec_2"]
    rows[7] = torch.nan
    save_file({"W_dec_2": rows}, folder / "W_dec_2.safetensors")
    clt = gs.load_clt(folder)
    assert clt.directions(2, 6)
    with pytest.raises(NotFinite, match="W_dec_2 holds NaN or Inf"):
        clt.directions(2, 7)


def test_layers_are_told_apart_by_all_that_they_are(tmp_path: Path) -> None:
    before = gs.load_clt(GEMMA).digests
    assert gs.load_clt(GEMMA).digests == before
    assert len(set(before)) == 3
    for name, changed_to in (("w_dec", 2), ("b_dec", 1), ("affine_skip_connection", 1), ("threshold", 1), ("w_enc", 1)):
        folder = copied("circuit_tracer/gemma_scope_2_clt", tmp_path / name)
        tensors = load_file(folder / "params_layer_1.safetensors")
        save_file(tensors | {name: tensors[name] * changed_to + 0.5}, folder / "params_layer_1.safetensors")
        first, second, third = gs.load_clt(folder).digests
        assert (first, third) == (before[0], before[2])
        assert second != before[1]


def test_a_crosscoders_folder_is_told_by_its_name(tmp_path: Path) -> None:
    shutil.copytree(GEMMA, tmp_path / "crosscoder" / "layer_0_1_2")
    with pytest.raises(FileError, match="crosscoder"):
        gs.load_clt(tmp_path / "crosscoder" / "layer_0_1_2")


@pytest.mark.parametrize("address", [FORMATS / "circuit_tracer" / "set_relu", "nothing", "a/../b", CLT / "config.yaml"])
def test_what_is_no_cross_layer_transcoder_is_refused(address: Any) -> None:
    with pytest.raises((SAENotFound, FileError), match="cross-layer transcoder"):
        gs.load_clt(address, offline=True)


def test_one_on_the_hub_fetches_a_decoder_when_its_rows_are_needed(tmp_path: Path) -> None:
    def files(folder: Path, at: str = "") -> dict[str, bytes]:
        return {f"{at}{path.name}": path.read_bytes() for path in folder.iterdir()}

    ask = """
import json, os, torch
from pathlib import Path
import gemscope as gs
def have():
    return sorted(path.name for path in Path(os.environ["HF_HOME"]).rglob("W_dec*.safetensors"))
clt = gs.load_clt("a-lab/clt")
first = have()
clt.directions(1, 3)
second = have()
again = gs.load_clt("a-lab/clt", offline=True)
gemma = gs.load_clt("google/gemma-scope-2-270m-pt/clt/small")
x = {site: torch.randn(2, 16) for site in gemma.sites}
print(json.dumps([first, second, again.features, [list(rows.shape) for rows in gemma(x).values()]]))
"""
    repos = {"a-lab/clt": Repo(files(CLT)), "google/gemma-scope-2-270m-pt": Repo(files(GEMMA, "clt/small/"))}
    with hub(repos) as server:
        first, second, again, shapes = child(ask, env=server.env(tmp_path)).json()
    assert first == []
    assert second == ["W_dec_1.safetensors"]
    assert again == [64, 64, 64]
    assert shapes == [[2, 16]] * 3


@pytest.mark.parametrize(
    ("address", "is_one"),
    [
        (str(CLT), True),
        (str(GEMMA), True),
        ("google/gemma-scope-2-270m-pt/clt/width_262k_l0_medium_affine", True),
        ("mntss/clt-gemma-2-2b-426k", True),
        ("google/gemma-scope-2-270m-pt/transcoder/layer_5_width_16k_l0_small", False),
        (str(FORMATS / "circuit_tracer" / "set_relu"), False),
        ("smollm2", False),
    ],
)
def test_an_address_of_one_is_known_by_its_names(address: str, is_one: bool) -> None:
    assert is_clt(address) is is_one


def test_where_an_sae_is_wanted_it_is_said_what_opens_it() -> None:
    for address in (CLT, GEMMA, "gemma-2-2b/13-clt-hp"):
        with pytest.raises(FileError, match="load_clt"):
            gs.load_sae(address, offline=True)
    with pytest.raises(FileError, match="load_clt"):
        gs.load_scope("mntss/clt-gemma-2-2b-2.5M", offline=True)
