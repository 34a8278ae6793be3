"""A scope lists what lies at an address, opens nothing before it is asked, and finds an SAE by site, width and L0."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import gemscope as gs
from gemscope.errors import CorruptFile, FileError, InputError, SAENotFound
from gemscope.features import several
from gemscope.features.files.saving import save_sae
from gemscope.features.listing import each_of, is_scope
from gemscope.features.scope_manifest import Failed, Made, Manifest, Text, place_of, read_scope, write_scope
from gemscope.testing import planted_sae, tiny_model
from hub_server import Repo, child, hub
from peers import FORMATS, answers, copied

PLACES = [("1.res", 32, 4.0), ("1.res", 32, 30.0), ("1.res", 64, 12.0), ("2.res", 64, 12.0)]


def own(folder: Path, *, manifest: bool = True) -> Path:
    """A scope as `scope make` leaves it: four SAEs at two sites, of one of which there is a score and an atlas."""
    made = []
    for seed, (site, width, l0) in enumerate(PLACES):
        path = place_of(gs.Site.parse(site), width, l0)
        save_sae(planted_sae(32, width, site=site, seed=seed).sae, folder / path)
        made.append(Made(path=path, site=site, site_out=site, width=width, l0=l0))
    beside = folder / made[0].path
    (beside / "score.json").write_text(json.dumps({"l0": 4.25, "fvu": 0.5, "dead": 0.0, "delta_loss": None, "kl": 1}))
    (beside / "atlas").mkdir()
    if manifest:
        write_scope(
            Manifest(
                model="tiny", revision=None, corpus=Text(name="texts", digest="0"), versions={}, recipe="", saes=tuple(made),
                failed=(Failed(site="3.res", width=64, reason="its loss was not finite"),),
            ),
            folder,
        )  # fmt: skip
    return folder


@pytest.mark.parametrize("manifest", [True, False])
def test_a_scope_of_ones_own_opens_by_site_width_and_l0(tmp_path: Path, manifest: bool) -> None:
    scope = gs.load_scope(own(tmp_path / "mine", manifest=manifest))
    assert list(map(str, scope.sites)) == ["1.res", "2.res"]
    assert scope.widths == (32, 64)
    assert [(str(one.site), one.width, one.l0) for one in scope] == PLACES
    for seed, (site, width, l0) in enumerate(PLACES):
        planted = planted_sae(32, width, site=site, seed=seed).sae
        assert scope[site, width, l0].digest == planted.digest
        assert scope[gs.Site.parse(site), str(width), str(int(l0))].digest == planted.digest
    # Without an L0 the one closest to 100, as Gemma Scope chooses.
    assert scope["1.res", 32].digest == scope["1.res", 32, 30].digest
    assert scope.find("2.res").l0 == 12
    assert [one.l0 for one in scope.canonical()] == [30, 12, 12]
    assert [one.l0 for one in scope.nearest(10)] == [4, 12, 12]
    assert [one.l0 for one in scope["1.res"]] == [4, 30, 12]
    assert len(scope["res"]) == 4
    if manifest:
        assert scope.model == "tiny"
        assert scope.manifest is not None
        assert "not there: 3.res, 64 wide: its loss was not finite" in str(scope)


def test_an_l0_is_asked_for_as_the_folder_has_it_too(tmp_path: Path) -> None:
    folder = own(tmp_path / "mine")
    manifest = read_scope(folder)
    saes = tuple(replace(one, l0=one.l0 + 0.37) for one in manifest.saes)
    write_scope(replace(manifest, saes=saes), folder)
    scope = gs.load_scope(folder)
    for l0 in (30, 30.37, "30", "30.37"):
        assert scope.find("1.res", 32, l0).l0 == 30.37
    with pytest.raises(SAENotFound, match=r"an L0 of 31: there are 4\.37, 30\.37"):
        scope.find("1.res", 32, 31)


def test_what_lies_beside_an_sae_is_found_without_the_manifest(tmp_path: Path) -> None:
    scope = gs.load_scope(own(tmp_path / "mine"))
    first, second, *_ = scope
    assert first.score == first.folder / "score.json"  # type: ignore[operator]
    assert first.atlas == first.folder / "atlas"  # type: ignore[operator]
    assert first.figures is not None
    assert (first.figures.l0, first.figures.fvu, first.figures.delta_loss) == (4.25, 0.5, None)
    assert (second.score, second.atlas, second.figures) == (None, None, None)
    told = str(scope).splitlines()
    assert told[1].split() == ["site", "32", "64"]
    assert told[2].split() == ["1.res", "4", "[0.500]", "·", "30", "12"]
    assert "1 with an atlas" in told[0]
    stored = json.loads(json.dumps(scope.to_dict()))
    assert [one["l0"] for one in stored["saes"]] == [4, 30, 12, 12]
    assert {"l0": 4.25, "fvu": 0.5, "dead": 0.0, "delta_loss": None}.items() <= stored["saes"][0]["score"].items()


def test_a_scope_lists_without_opening(tmp_path: Path) -> None:
    folder = own(tmp_path / "mine")
    for path in folder.rglob("sae_weights.safetensors"):
        path.write_bytes(b"")
    scope = gs.load_scope(folder)
    assert str(scope)
    assert len(scope.stack(width=64)) == 2
    with pytest.raises(CorruptFile):
        scope["2.res", 64]


@pytest.mark.parametrize(
    ("key", "error", "said"),
    [
        (("3.res", 32), SAENotFound, "no SAE of 3.res in mine: it has 1,2.res"),
        (("mlp", 32), SAENotFound, "no SAE of mlp in mine: it has 1,2.res"),
        (("1.res", 128), SAENotFound, "no SAE of 1.res is 128 wide: the widths are 32, 64"),
        (("1.res", 32, 5), SAENotFound, "no SAE of 1.res, 32 wide, has an L0 of 5: there are 4, 30"),
        (("1.res", 32, "big"), SAENotFound, "has an L0 of big: there are 4, 30"),
        (("1.res", None), InputError, "1.res has SAEs of several widths: name one of 32, 64"),
        ((1, 2, 3, 4), InputError, "give a site, or a site and a width, or these and an L0"),
    ],
)
def test_a_key_that_is_not_there_is_told_what_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: Any, error: type[Exception], said: str
) -> None:
    own(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as raised:
        gs.load_scope("mine")[key]
    assert said in str(raised.value)


# --- published ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "count", "sites"),
    [
        ("google/gemma-scope-2b-pt-res", 316, 27),
        ("google/gemma-scope-2b-pt-*", 862, 105),
        ("gemma-scope-2b-pt-res-canonical", 59, 26),
        ("google/gemma-scope-2-4b-pt/transcoder", 72, 4),
        ("mwhanna/qwen3-4b-transcoders", 36, 36),
    ],
)
def test_what_the_catalogue_has_is_listed_without_a_network(address: str, count: int, sites: int) -> None:
    scope = gs.load_scope(address, offline=True)
    assert (len(scope), len(scope.sites)) == (count, sites)
    assert scope.model
    assert len({one.address for one in scope}) == count


def test_the_canonical_saes_of_gemma_scope_are_those_that_its_authors_chose() -> None:
    entries = [one for one in gs.catalog("gemma-2-2b", online=False) if one.repo == "google/gemma-scope-2b-pt-res"]
    scope = gs.load_scope("google/gemma-scope-2b-pt-res")
    for entry in entries:
        if entry.canonical:
            assert entry.site is not None
            assert scope.find(entry.site, entry.width_label).address == entry.address
    assert scope.find("20.res", "16k").address.endswith("layer_20/width_16k/average_l0_71")
    assert scope.find("20.res", "65k", 61) == scope.find("20.res", "64k", 61) == scope.find("20.res", 65536, "61")
    stack = scope.stack(width="16k")
    assert [site.layer for site in stack.sites] == list(range(26))
    assert stack.opened == ()


def test_gemma_scope_2_is_asked_by_its_words() -> None:
    scope = gs.load_scope("google/gemma-scope-2-4b-pt")
    assert scope.find("17.res", "16k", "medium").address.endswith("resid_post/layer_17_width_16k_l0_medium")
    assert scope.find("17.transcoder", "16k", "small").address.endswith("layer_17_width_16k_l0_small")  # no skip
    with pytest.raises(InputError, match=r"several kinds of site: name one of att, transcoder, mlp, res"):
        scope.stack(width="16k")
    with pytest.raises(InputError, match=r"several widths: name one of 16k, 65k, 262k, 1m"):
        scope.stack("res")
    medium = scope.stack("res", width="65k", l0="medium")
    assert list(map(str, medium)) == ["9.res", "17.res", "22.res", "29.res"]


# --- other people's runs and sets -----------------------------------------------------------------------------------


def test_a_run_of_sparsifys_is_a_scope_of_its_hookpoints(tmp_path: Path) -> None:
    run = copied("sparsify/sae", tmp_path / "run")
    (run / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-160m"}))
    scope = gs.load_scope(run)
    assert [(str(one.site), one.width, one.l0) for one in scope] == [("1.res", 64, 5.0), ("2.mlp", 64, 5.0)]
    assert scope.model == "EleutherAI/pythia-160m"
    told = answers("sparsify/sae/expected_layers.1.safetensors")
    found = scope["1.res", 64].encode(told["x"]).to_dense()
    torch.testing.assert_close(found, told["features"], rtol=1e-5, atol=1e-5)


def test_a_model_tells_which_site_a_hookpoint_is(tmp_path: Path) -> None:
    run = copied("sparsify/sae", tmp_path / "run")
    unknown = gs.load_scope(run)
    assert [str(one.site) for one in unknown] == ["1.res"]
    assert "another place in some models" in unknown.failed[0].reason
    assert [str(one.site) for one in gs.load_scope(run, model=tiny_model("gemma2"))] == ["1.res", "2.mlp_raw"]


def test_a_set_of_transcoders_is_a_stack_with_the_peers_own_answers() -> None:
    for name in ("set_relu", "set_jumprelu"):
        stack = gs.load_stack(FORMATS / "circuit_tracer" / name)
        assert list(map(str, stack)) == ["0.transcoder", "1.transcoder", "2.transcoder"]
        assert list(map(str, stack.sites_out)) == ["0.mlp", "1.mlp", "2.mlp"]
        told = answers(f"circuit_tracer/{name}_expected.safetensors")
        captured = {site: told["x"][site.layer] for site in stack.sites}
        assert stack.opened == ()
        features = stack.encode(captured)
        decoded, whole = stack.decode(features), stack(captured)
        for layer, (site, site_out) in enumerate(zip(stack.sites, stack.sites_out, strict=True)):
            torch.testing.assert_close(features[site].to_dense(), told["features"][layer], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(decoded[site_out], told["recon"][layer], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(whole[site_out], told["recon"][layer], rtol=1e-5, atol=1e-5)


def test_a_set_may_say_where_its_transcoders_lie(tmp_path: Path) -> None:
    folder = copied("circuit_tracer/set_relu", tmp_path / "set")
    (folder / "layer_2.safetensors").rename(folder / "layer_9.safetensors")
    said = (folder / "config.yaml").read_text()
    lines = [
        "layer_9.safetensors",
        "hf://google/gemma-scope-2b-pt-transcoders/layer_1/width_16k/average_l0_65/params.npz?revision=abc",
        "../layer_0.safetensors",
        "s3://bucket/x",
    ]
    (folder / "config.yaml").write_text(said + "transcoders:\n" + "".join(f"- '{line}'\n" for line in lines))
    scope = gs.load_scope(folder)
    assert [(str(one.site), one.revision) for one in scope] == [("0.transcoder", None), ("1.transcoder", "abc")]
    assert scope[0].address == str(folder / "layer_9.safetensors")
    assert scope[1].address == "google/gemma-scope-2b-pt-transcoders/layer_1/width_16k/average_l0_65/params.npz"
    assert scope[1].width == 16384
    assert [one.site for one in scope.failed] == ["layer 2", "layer 3"]
    assert all("expected hf://REPO/file, or a file beside it" in one.reason for one in scope.failed)


@pytest.mark.parametrize("name", ["clt", "gemma_scope_2_clt"])
def test_a_cross_layer_transcoder_is_no_scope_and_says_what_it_is(name: str) -> None:
    with pytest.raises(FileError, match="cross-layer transcoder"):
        gs.load_scope(FORMATS / "circuit_tracer" / name)


def test_a_folder_without_saes_is_no_scope(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for address in (tmp_path / "empty", tmp_path / "nothing", "gemma-scope-2b-pt-rest", "a/b/../c"):
        with pytest.raises(SAENotFound):
            gs.load_scope(address, offline=True)
    with pytest.raises(SAENotFound, match="no SAE matches"):
        gs.load_scope("google/gemma-scope-9x-*", offline=True)


@pytest.mark.parametrize(
    ("address", "is_several", "count"),
    [
        ("google/gemma-scope-2b-pt-res/layer_20/width_16k/*", True, 5),
        ("google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", False, 1),
        ("gemma-2-2b/20-gemmascope-res-16k", False, 1),
        ("mwhanna/qwen3-4b-transcoders", True, 36),
        ("mwhanna/qwen3-4b-transcoders/layer_3", False, 1),
        ("Goodfire/Llama-3.1-8B-Instruct-SAE-l19", False, 1),
        ("mntss/clt-gemma-2-2b-2.5M", False, 1),
        ("smollm2", False, 1),
        (str(FORMATS / "circuit_tracer" / "set_relu"), True, 3),
        (str(FORMATS / "circuit_tracer" / "set_relu" / "layer_1.safetensors"), False, 1),
        (str(FORMATS / "circuit_tracer" / "clt"), False, 1),
        (str(FORMATS / "saelens" / "jumprelu"), False, 1),
        ("nothing at all", False, 1),
    ],
)
def test_an_address_of_several_saes_stands_for_each(address: str, is_several: bool, count: int) -> None:
    assert is_scope(address) is is_several
    assert len(each_of(address)) == count
    if not is_several:
        assert each_of(address) == [address]


def test_a_repository_of_many_is_not_taken_for_all_of_them() -> None:
    with pytest.raises(
        InputError, match=r"has 316 SAEs: choose by a pattern, such as 'google/gemma-scope-2b-pt-res/.*\*'"
    ):
        each_of("google/gemma-scope-2b-pt-res")


def test_a_folder_of_any_number_of_saes_is_listed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several, "_MANY", 2)
    assert len(gs.load_scope(own(tmp_path / "mine", manifest=False))) == 4


# --- on the Hub -----------------------------------------------------------------------------------------------------


def test_scopes_runs_and_sets_on_the_hub_are_listed_and_opened(tmp_path: Path) -> None:
    mine = own(tmp_path / "mine")
    sets = FORMATS / "circuit_tracer" / "set_relu"
    run = copied("sparsify/sae", tmp_path / "run")
    (run / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-160m"}))

    def files(folder: Path, at: str = "") -> dict[str, bytes]:
        return {f"{at}{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    repos = {
        "me/scope": Repo(files(mine)),
        "me/nested": Repo(files(mine, "a/b/")),
        "me/set": Repo(files(sets)),
        "me/run": Repo(files(run)),
        "me/none": Repo({"README.md": b"x"}),
    }
    ask = """
import json
import gemscope as gs
def told(address):
    try:
        scope = gs.load_scope(address)
        return [[str(one.site), one.width, one.l0, one.address] for one in scope], scope.open(scope[0]).digest[:8]
    except gs.errors.GemscopeError as error:
        return [type(error).__name__, str(error)]
print(json.dumps([told(name) for name in ("me/scope", "me/nested/a/b", "me/set", "me/run", "me/none", "me/missing")]))
"""
    with hub(repos) as server:
        scope, nested, set_, sparsified, none, missing = child(ask, env=server.env(tmp_path / "cache")).json()
    assert scope[0] == [[*place, f"me/scope/{place_of(gs.Site.parse(place[0]), *place[1:])}"] for place in PLACES]
    assert nested[0][0][3] == "me/nested/a/b/res/layer_1/width_32/average_l0_4"
    assert scope[1] == nested[1] == gs.load_scope(mine).open(gs.load_scope(mine)[0]).digest[:8]
    assert set_[0] == [[f"{layer}.transcoder", None, None, f"me/set/layer_{layer}.safetensors"] for layer in range(3)]
    assert sparsified[0] == [["1.res", 64, 5.0, "me/run/layers.1"], ["2.mlp", 64, 5.0, "me/run/layers.2.mlp"]]
    assert none[0] == "SAENotFound"
    assert missing[0] == "SAENotFound"


def test_a_stack_is_read_in_one_pass_of_the_model() -> None:
    model = tiny_model("llama", layers=3)
    scope = gs.load_scope(FORMATS / "circuit_tracer" / "set_relu")
    saes = {
        site: planted_sae(model.width(site), 64, site=str(site)).sae for site in map(gs.Site.parse, ("0.res", "2.res"))
    }
    members = tuple(replace(scope[0], site=site, site_out=site) for site in saes)
    stack = replace(scope, members=members, opener=lambda member: saes[member.site]).stack("res")
    captured = model.capture("The quick brown fox jumps.", stack.sites)
    for site, found in stack.encode(captured).items():
        torch.testing.assert_close(
            found.to_dense(), saes[site].encode_dense(captured[site]).detach(), rtol=1e-4, atol=1e-4
        )
    assert stack[2] is saes[gs.Site(2, "res")]
    assert "0.res" in stack
    assert 1 not in stack
    with pytest.raises(SAENotFound, match=r"no SAE for 1 in .*: it has 0\.res, 2\.res"):
        stack[1]
    with pytest.raises(gs.errors.Mismatch, match=r"no activations of 2\.res"):
        stack.encode({"0.res": captured["0.res"].values})
