"""SAEs and scopes in a bucket: the same as in a folder here, fetched once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gemscope.errors import CorruptFile, SAENotFound
from gemscope.features.files.saving import save_sae
from gemscope.features.listing import each_of, is_scope, load_scope
from gemscope.features.load import load_sae
from gemscope.features.scope_manifest import Made, Manifest, Text, write_scope
from gemscope.testing import planted_sae
from harvested import contents
from s3_server import S3

PLACES = ("res/layer_1/width_24/average_l0_3", "res/layer_1/width_24/average_l0_9", "mlp/layer_2/width_24/average_l0_3")


@pytest.fixture
def scope(tmp_path: Path, s3: S3) -> Path:
    """Three SAEs here, and the same in a bucket."""
    made = []
    for seed, place in enumerate(PLACES):
        kind, layer = place.split("/")[0], place.split("_")[1][0]
        sae = planted_sae(site=f"{layer}.{kind}", seed=seed).sae
        save_sae(sae, tmp_path / "scope" / place)
        site = str(sae.site)
        made.append(Made(path=place, site=site, site_out=site, width=sae.d_sae, l0=float(place.rpartition("_")[2])))
    text = Text(name="some text", digest="0" * 64)
    write_scope(
        Manifest(model="tiny", revision=None, corpus=text, versions={}, recipe="", saes=tuple(made)), tmp_path / "scope"
    )
    s3.objects |= {f"bucket/a/scope/{name}": data for name, data in contents(tmp_path / "scope").items()}
    return tmp_path / "scope"


@pytest.mark.parametrize("address", ["", "/", "/sae_weights.safetensors", "/cfg.json"])
def test_an_sae_in_a_bucket_is_the_one_of_a_folder(address: str, scope: Path, s3: S3) -> None:
    near = load_sae(scope / PLACES[0])
    s3.fault = lambda request: "cut" if request.number == 1 and request.method == "GET" else None
    far = load_sae(f"s3://bucket/a/scope/{PLACES[0]}{address}")
    for name in ("W_enc", "b_enc", "threshold", "W_dec", "b_dec"):
        assert torch.equal(getattr(near, name), getattr(far, name)), name
    assert (far.site, far.info.declared_l0) == (near.site, near.info.declared_l0)
    before = s3.count("GET", "weights")
    load_sae(f"s3://bucket/a/scope/{PLACES[0]}{address}")
    assert s3.count("GET", "weights") == before


def test_a_scope_in_a_bucket_opens_what_is_asked_for(scope: Path, s3: S3) -> None:
    near, far = load_scope(scope), load_scope("s3://bucket/a/scope")
    assert s3.count("GET", "weights") == 0
    assert [one.address for one in far] == [
        f"s3://bucket/a/scope/{one.address.removeprefix(f'{scope}/')}" for one in near
    ]
    width = far.widths[0]
    assert torch.equal(far["1.res", width, 9].W_dec, near["1.res", width, 9].W_dec)
    assert not torch.equal(far["1.res", width, 9].W_dec, far["1.res", width, 3].W_dec)
    opened = far.open(far[0])
    assert torch.equal(opened.W_dec, near.open(near[0]).W_dec)
    assert is_scope("s3://bucket/a/scope")
    assert each_of("s3://bucket/a/scope") == [one.address for one in far]
    assert each_of(far[0].address) == [far[0].address]


def test_a_folder_of_saes_in_a_bucket_is_a_scope_too(scope: Path, s3: S3) -> None:
    del s3.objects["bucket/a/scope/scope.json"]
    far = load_scope("s3://bucket/a/scope")
    assert [(str(one.site), one.l0) for one in far] == [(str(one.site), one.l0) for one in load_scope(scope)]


def test_what_is_no_sae_there_is_one_line(scope: Path, s3: S3) -> None:
    with pytest.raises(SAENotFound, match="no SAE at 's3://bucket/b': expected"):
        load_sae("s3://bucket/b")
    with pytest.raises(SAENotFound, match="there are SAEs in it: "):
        load_sae("s3://bucket/a/scope")
    with pytest.raises(SAENotFound, match="no SAEs at 's3://bucket/b'"):
        load_scope("s3://bucket/b")
    s3.objects[f"bucket/a/scope/{PLACES[0]}/cfg.json"] = b"{"
    with pytest.raises(CorruptFile):
        load_sae(f"s3://bucket/a/scope/{PLACES[0]}")
