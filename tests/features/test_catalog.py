"""The catalogue of published SAEs: what it lists, by what names, and how it helps with a name that is nearly right."""

import subprocess
import sys
from collections import Counter

import pytest

from gemscope.activations.site import Site
from gemscope.errors import HubUnreachable, InputError, ModelNotFound, SiteNotFound
from gemscope.features.catalog import catalog
from gemscope.features.published import entry_of, find, nearest, parse_files, snapshot

TUTORIAL = "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"


def test_the_snapshot_lists_every_file_once():
    addresses = [entry.address for entry in snapshot()]
    assert len(addresses) == len(set(addresses)) == 11_214
    generations = Counter(entry.generation for entry in snapshot())
    assert generations == {1: 2_430, 2: 8_784}
    per_repo = Counter(entry.repo for entry in snapshot())
    assert per_repo["google/gemma-scope-2b-pt-res"] == 316
    assert per_repo["google/gemma-scope-9b-pt-att"] == 492
    assert per_repo["google/gemma-scope-2b-pt-transcoders"] == 26
    assert per_repo["google/gemma-scope-2-27b-it"] == 1_431


def test_the_tutorials_sae_is_known_by_all_its_names():
    entry = find(TUTORIAL)
    assert entry is not None
    assert (entry.model, entry.site, entry.site_out) == ("google/gemma-2-2b", Site(20, "res"), Site(20, "res"))
    assert (entry.width, entry.width_label, entry.l0, entry.canonical) == (16_384, "16k", 71, True)
    assert entry.neuronpedia_id == "gemma-2-2b/20-gemmascope-res-16k"
    assert find("gemma-2-2b/20-gemmascope-res-16k") == entry
    assert find("gemma-scope-2b-pt-res-canonical layer_20/width_16k/canonical") == entry
    assert find("gemma-scope-2b-pt-res  layer_20/width_16k/average_l0_71") == entry


def test_every_name_leads_back_to_its_entry():
    for entry in snapshot():
        assert find(entry.address) is entry
        assert all(find(name) is entry for name in entry.saelens_names)
        assert entry.neuronpedia_id is None or find(entry.neuronpedia_id) is entry


def test_canonical_is_the_l0_closest_to_100_of_its_group():
    groups = {}
    for entry in snapshot():
        if entry.generation == 1 and entry.layer is not None:
            groups.setdefault((entry.repo, entry.layer, entry.width), []).append(entry)
    for group in groups.values():
        (canonical,) = [entry for entry in group if entry.canonical]
        assert abs(canonical.l0 - 100) == min(abs(entry.l0 - 100) for entry in group)
    # 429 have a canonical name in SAELens, two of its groups lack one, and there is one transcoder a layer
    assert len(groups) == 429 + 2 + 26
    assert not any(entry.canonical for entry in snapshot() if entry.generation == 2 or entry.layer is None)


def test_where_two_are_as_close_to_100_saelens_decides():
    assert find("gemma-scope-9b-pt-att-canonical layer_23/width_131k/canonical").l0 == 66  # not 134
    assert find("gemma-scope-9b-pt-att-canonical layer_27/width_16k/canonical").l0 == 136  # not 64


@pytest.mark.parametrize(
    ("address", "site", "site_out"),
    [
        ("google/gemma-scope-2b-pt-mlp/layer_4/width_16k/average_l0_85", "4.mlp", "4.mlp"),
        ("google/gemma-scope-2b-pt-att/layer_0/width_16k/average_l0_104", "0.att", "0.att"),
        ("google/gemma-scope-2b-pt-transcoders/layer_0/width_16k/average_l0_76", "0.transcoder_nogain", "0.mlp"),
        ("google/gemma-scope-9b-pt-res/embedding/width_4k/average_l0_22", "embed", "embed"),
        ("google/gemma-scope-2-4b-pt/resid_post/layer_17_width_16k_l0_medium", "17.res", "17.res"),
        ("google/gemma-scope-2-4b-pt/attn_out_all/layer_3_width_16k_l0_big", "3.att", "3.att"),
        ("google/gemma-scope-2-4b-pt/mlp_out/layer_9_width_65k_l0_small", "9.mlp", "9.mlp"),
        ("google/gemma-scope-2-4b-pt/transcoder_all/layer_0_width_16k_l0_big_affine", "0.transcoder", "0.mlp"),
    ],
)
def test_names_say_where_an_sae_reads(address, site, site_out):
    entry = find(address)
    assert (str(entry.site), str(entry.site_out)) == (site, site_out)
    assert entry.affine == address.endswith("_affine")


def test_gemma_scope_2_names():
    entry = find("google/gemma-scope-2-4b-pt/resid_post/layer_17_width_16k_l0_medium")
    assert (entry.model, entry.l0, entry.l0_label, entry.file) == (
        "google/gemma-3-4b-pt",
        60,
        "medium",
        "params.safetensors",
    )
    assert entry.neuronpedia_id == "gemma-3-4b/17-gemmascope-2-res-16k"
    assert find("gemma-scope-2-4b-pt-res layer_17_width_16k_l0_medium") == entry
    assert find("gemma-scope-2-4b-pt-transcoders transcoder/layer_17_width_16k_l0_big_affine").l0 == 150
    seeded = find("google/gemma-scope-2-4b-pt/resid_post/layer_17_width_262k_l0_medium_seed_1")
    assert seeded.seed == 1
    assert find("gemma-3-27b-it/26-gemmascope-2-transcoder-262k").l0_label == "small"


def test_mistakes_of_the_list_it_was_made_from_are_mended():
    instructed = {entry.model for entry in snapshot() if entry.repo == "google/gemma-scope-9b-it-res"}
    assert instructed == {"google/gemma-2-9b-it"}
    assert find("gemma-scope-9b-pt-res-canonical layer_20/width_524k/canonical").l0 == 48
    assert find("gemma-2-9b/20-gemmascope-res-131k__l0-10") is None  # was given to an SAE of layer 2


def test_filters():
    there = catalog("gemma-2-2b", site="res", layer=20, width="16k", online=False)
    assert [entry.l0 for entry in there] == [22, 38, 71, 139, 294]
    assert list(there) == list(catalog("google/gemma-2-2b", site="20.res", width=16_384, online=False))
    assert [entry.l0 for entry in catalog("gemma-2-2b", site="20.res", width="16k", canonical=True, online=False)] == [
        71
    ]
    assert [entry.l0 for entry in catalog("gemma-2-2b", site="20.res", width="16k", l0=(50, 150), online=False)] == [
        71,
        139,
    ]
    assert [entry.l0 for entry in catalog("gemma-2-2b", site="20.res", width="16k", l0=38, online=False)] == [38]
    both = catalog(site="transcoder", layer=5, width="16k", l0=None, affine=False, online=False)
    assert {entry.generation for entry in both} == {1, 2}
    medium = catalog("gemma-3-1b-it", site="res", l0="medium", online=False)
    assert {entry.l0_label for entry in medium} == {"medium"}
    assert {entry.layer for entry in medium} == {7, 13, 17, 22}
    assert len(catalog("gemma-2-2b", site="embed", online=False)) == 4
    assert len(catalog("gemma-2-2b", site="res", layer=26, online=False)) == 0


@pytest.mark.parametrize(
    ("filters", "error", "message"),
    [
        ({"model": "gemma-2-3b"}, ModelNotFound, "google/gemma-2-2b"),
        ({"width": "17k"}, InputError, "16k"),
        ({"site": "resid"}, SiteNotFound, "res"),
        ({"site": "20.res", "layer": 19}, InputError, "contradict"),
        ({"l0": "middling"}, InputError, "medium"),
    ],
)
def test_a_filter_that_cannot_fit_says_what_can(filters, error, message):
    with pytest.raises(error, match=message):
        catalog(**filters, online=False)


def test_without_the_hub_the_snapshot_answers_and_says_so():
    there = catalog("gemma-2-2b", site="20.res", width="16k")  # tests run in offline mode
    assert len(there) == 5
    assert "snapshot" in there.source
    assert "offline" in there.source
    with pytest.raises(HubUnreachable):
        catalog("gemma-2-2b", online=True)
    assert catalog("gemma-2-2b", online=False)[:2].source == "the bundled snapshot"


def test_a_listing_of_the_hub_becomes_entries():
    repo = "google/gemma-scope-2b-pt-transcoders"
    listed = parse_files(
        repo,
        [
            "README.md",
            "layer_22/width_16k/average_l0_99/params.npz",  # not known to the snapshot
            "layer_22/width_16k/average_l0_99/hparams.json",
            "layer_22/width_17k/average_l0_99/params.npz",  # no width of Gemma Scope's
            "layer_0/width_16k/average_l0_76/params.npz",
            "layer_0/width_16k/average_l0_100/params.npz",
        ],
    )
    assert [(entry.layer, entry.l0, entry.canonical) for entry in listed] == [
        (22, 99, True),
        (0, 76, True),
        (0, 100, False),
    ]
    unheard_of = "layer_22/width_16k/average_l0_"
    listed = parse_files("google/gemma-scope-9b-it-res", [f"{unheard_of}{l0}/params.npz" for l0 in (7, 93, 108)])
    assert [(entry.l0, entry.canonical) for entry in listed] == [(7, False), (93, True), (108, False)]
    crosscoder = "crosscoder/layer_9_17_22_29_width_262k_l0_medium/params_layer_0.safetensors"
    assert parse_files("google/gemma-scope-2-4b-pt", [crosscoder]) == []
    assert entry_of("somebody/else", "layer_0/width_16k/average_l0_76") is None


def test_a_name_nearly_right_finds_the_nearest_real_ones():
    stem = "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_"
    assert nearest(f"{stem}70") == [f"{stem}71", f"{stem}38", f"{stem}22"]
    assert nearest(TUTORIAL.replace("2b-pt-res", "2b-res"))[0] == TUTORIAL
    assert nearest(TUTORIAL.replace("google", "gogle"))[0] == TUTORIAL
    medium = "google/gemma-scope-2-4b-pt/resid_post/layer_17_width_16k_l0_medium"
    assert nearest(medium.replace("medium", "mediun"))[0] == medium
    assert nearest("gemma-2-2b/20-gemmascope-res-16k__l0-70")[0] == "gemma-2-2b/20-gemmascope-res-16k"
    assert nearest("gemma-scope-2b-pt-res-canonicl layer_20/width_16k/canonical")[0].startswith(
        "gemma-scope-2b-pt-res-canonical"
    )
    assert nearest("somebody/else/entirely") == []
    assert all(len(nearest(name, n=2)) == 2 for name in (f"{stem}70", medium))


def test_entries_are_plain_values_to_dict():
    plain = find(TUTORIAL).to_dict()
    assert plain["address"] == TUTORIAL
    assert (plain["site"], plain["layer"], plain["width"]) == ("20.res", 20, 16_384)


def test_listing_needs_no_torch():
    code = (
        "import sys; from gemscope.features.catalog import catalog; "
        "assert len(catalog(online=False)) == 11214; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_snapshot_can_be_made_again_from_its_own_entries(tmp_path):
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    spec = spec_from_file_location("catalog_snapshot", Path(__file__).parents[2] / "tools/catalog_snapshot.py")
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.write(snapshot(), tmp_path / "again.csv.gz")
    assert (tmp_path / "again.csv.gz").read_bytes() == tool.TARGET.read_bytes()
