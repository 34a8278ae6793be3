"""The catalogue of published SAEs: what it lists, by what names, and how it helps with a name that is nearly right."""

import subprocess
import sys
from collections import Counter

import pytest

from gemscope.activations.site import Site
from gemscope.errors import HubUnreachable, InputError, ModelNotFound, SiteNotFound
from gemscope.features.catalog import catalog
from gemscope.features.gemma_scope_names import gemma_scope
from gemscope.features.published import entry_of, find, nearest, parse_files, snapshot
from gemscope.features.registry import registry

TUTORIAL = "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"


def test_the_snapshot_lists_every_file_once():
    addresses = [entry.address for entry in snapshot()]
    assert len(addresses) == len(set(addresses)) == 11_214 + 2_214
    generations = Counter(entry.generation for entry in snapshot())
    assert generations == {1: 2_430, 2: 8_784, None: 2_214}
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


def test_all_names_of_saelens_s_registry_are_known():
    names = {name for entry in snapshot() for name in entry.saelens_names}
    unlisted = 2  # two groups have no canonical one there
    assert len(names) - unlisted == 13_857
    assert len({name.split()[0] for name in names}) == 170
    assert len({entry.release for entry in registry()}) == 78
    assert sum(entry.neuronpedia_id is not None for entry in registry()) == 1_552


@pytest.mark.parametrize(
    ("name", "address", "model", "site", "site_out", "width", "l0"),
    [
        ("gpt2-small-res-jb blocks.8.hook_resid_pre", "jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre",
         "openai-community/gpt2", "7.res", "7.res", 24_576, None),
        ("gpt2-small/6-att-kk", "ckkissane/attn-saes-gpt2-small-all-layers/gpt2-small_L6_Hcat_z_lr1.20e-03_l11.10e+00_"
         "ds24576_bs4096_dc1.00e-06_rsanthropic_rie25000_nr4_v9.pt", "openai-community/gpt2", "6.att", "6.att", 24_576, 17),
        ("llama_scope_lxa_32x l16a_32x", "fnlp/Llama3_1-8B-Base-LXA-32x/Llama3_1-8B-Base-L16A-32x",
         "meta-llama/Llama-3.1-8B", "16.att_out", "16.att_out", 131_072, 50),
        ("qwen3-4b/18-transcoder-hp", "mwhanna/qwen3-4b-transcoders/layer_18.safetensors", "Qwen/Qwen3-4B",
         "18.transcoder", "18.mlp", None, None),
        ("qwen-scope-3.5-27b-w80k-l50 layer32", "Qwen/SAE-Res-Qwen3.5-27B-W80K-L0_50/layer32.sae.pt",
         "Qwen/Qwen3.5-27B", "32.res", "32.res", 81_920, 50),
        ("gemma-2-2b/19-sae_bench-topk-res-4k__trainer_3_step_final", "canrager/saebench_gemma-2-2b_width-2pow12_"
         "date-1109/gemma-2-2b_topk_width-2pow12_date-1109/resid_post_layer_19/trainer_3", "google/gemma-2-2b",
         "19.res", "19.res", 4_096, None),
        ("pythia-70m-deduped-res-sm blocks.0.hook_resid_pre", "ctigges/pythia-70m-deduped__res-sm_processed/e-res-sm",
         "EleutherAI/pythia-70m-deduped", "embed", "embed", None, None),
        ("deepseek-r1-distill-llama-8b/16-llamascope-slimpj-openr1-res-32k", "fnlp/Llama-Scope-R1-Distill/"
         "400M-Slimpajama-400M-OpenR1-Math-220k/L16R", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "16.res", "16.res",
         32_768, None),
        ("goodfire-llama-3.3-70b-instruct layer_50", "Goodfire/Llama-3.3-70B-Instruct-SAE-l50/"
         "Llama-3.3-70B-Instruct-SAE-l50.pt", "meta-llama/Llama-3.3-70B-Instruct", "50.res", "50.res", 65_536, 121),
    ],
)  # fmt: skip
def test_others_than_gemma_scope_are_known_too(name, address, model, site, site_out, width, l0):
    entry = find(name)
    assert entry is not None
    assert (entry.address, entry.model, str(entry.site), str(entry.site_out)) == (address, model, site, site_out)
    assert entry.width == width
    assert l0 is None or entry.l0 == l0
    assert find(entry.address) is entry


def test_what_cannot_be_opened_says_why():
    closed = Counter(entry.layout for entry in registry() if entry.closed)
    assert closed == {"circuit_tracer_clt": 26, "temporal": 3, "saelens": 1}
    assert "no site" in find("gpt2-small-res-jb blocks.0.hook_resid_pre").closed
    assert find("gpt2-small-mlp-tm blocks.6.hook_mlp_out").factor == pytest.approx(1.3237742807210804)


def test_models_are_found_by_any_of_their_names():
    for name in ("openai-community/gpt2", "gpt2", "gpt2-small"):
        assert {entry.model for entry in catalog(name, online=False)} == {"openai-community/gpt2"}
    assert len(catalog("llama3.1-8b", site="att_out", width="32k", online=False)) == 32
    assert len(catalog("Qwen/Qwen3.5-27B", width="81k", layer=3, online=False)) == 2


def test_a_listing_of_the_hub_keeps_what_is_still_there():
    listed = parse_files("mwhanna/qwen3-4b-transcoders", ["layer_18.safetensors", "config.yaml"])
    assert [entry.sae_id for entry in listed] == ["layer_18"]
    folder = "Llama3_1-8B-Base-L16A-32x"
    listed = parse_files("fnlp/Llama3_1-8B-Base-LXA-32x", [f"{folder}/hyperparams.json", "README.md"])
    assert [entry.path for entry in listed] == [folder]


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
    assert not any(entry.canonical for entry in snapshot() if entry.generation != 1 or entry.layer is None)


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
        "assert len(catalog(online=False)) == 13428; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_snapshot_can_be_made_again_from_its_own_entries(tmp_path):
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    spec = spec_from_file_location("catalog_snapshot", Path(__file__).parents[2] / "tools/catalog_snapshot.py")
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.write(gemma_scope(), tmp_path / "again.csv.gz")
    assert (tmp_path / "again.csv.gz").read_bytes() == tool.TARGET.read_bytes()
