"""Addresses of every kind, against files here and against an imitated Hub with the real client."""

import json

import pytest
import torch

import gemscope as gs
from gemscope import load_sae
from gemscope.errors import FileError, HubUnreachable, InputError, NotFound, SAENotFound, UnsafeFile
from gemscope.features import load
from gemscope.features.kernels import choice
from gemscope.features.several import is_pattern, matching
from gemscope.testing import planted_sae
from hub_content import D_SAE, GEMMA_SCOPE, GEMMA_SCOPE_2, SAELENS, gemma_scope, published, saelens
from hub_server import EXPIRED, GRANTED, Repo, child, hub

TUTORIAL = f"{GEMMA_SCOPE}/layer_20/width_16k/average_l0_71"
PACKED = f"{GEMMA_SCOPE}/layer_2/width_16k/average_l0_71"
RESID = f"{GEMMA_SCOPE_2}/resid_post/layer_5_width_16k_l0_medium"
AFFINE = f"{GEMMA_SCOPE_2}/transcoder_all/layer_2_width_16k_l0_small_affine"
FOLDER = f"{SAELENS}/blocks.2.hook_resid_post"

PRELUDE = """
import time, warnings
warnings.simplefilter("error")
waited, pause = [], time.sleep
def sleep(seconds):
    waited.append(seconds)
    pause(seconds)
time.sleep = sleep
import gemscope as gs
from gemscope.errors import GemscopeError
def told(address, **options):
    try:
        sae = gs.load_sae(address, **options)
    except GemscopeError as error:
        return [type(error).__name__, str(error)]
    info = sae.info
    return {"site": str(sae.site), "out": str(sae.site_out), "size": [sae.d_in, sae.d_sae], "digest": sae.digest,
            "l0": info.declared_l0, "model": info.model, "revision": info.revision, "name": info.name,
            "page": info.neuronpedia_id, "skip": sae.W_skip is not None}
def ask(*addresses, **options):
    return {address: told(address, **options) for address in addresses}
"""


@pytest.fixture(scope="module")
def server():
    with hub(published()) as running:
        running.repos["a-lab/gated"] = Repo(saelens(), gated=True)
        running.repos["a-lab/dated"] = Repo({"README.md": b"new"}, revisions={"v1": saelens()})
        running.repos["a-lab/empty"] = Repo({"README.md": b"nothing"})
        yield running


def asked(server, home, body, **environment):
    return child(PRELUDE + body, env=server.env(home, **environment)).json()


NAMES = [
    TUTORIAL,
    f"{TUTORIAL}/params.npz",
    f"{TUTORIAL}/",
    "gemma-scope-2b-pt-res-canonical layer_20/width_16k/canonical",
    "gemma-scope-2b-pt-res layer_20/width_16k/average_l0_71",
    "gemma-2-2b/20-gemmascope-res-16k",
    "https://www.neuronpedia.org/gemma-2-2b/20-gemmascope-res-16k/10004?embed=true",
    f"https://huggingface.co/{GEMMA_SCOPE}/tree/main/layer_20/width_16k/average_l0_71",
    f"https://huggingface.co/{GEMMA_SCOPE}/blob/main/layer_20/width_16k/average_l0_71/params.npz",
]
OTHERS = [PACKED, RESID, AFFINE, FOLDER, f"{SAELENS} blocks.2.hook_resid_post", f"{FOLDER}/sae_weights.safetensors"]
NEVER_LOADED = PACKED.replace("71", "24")
GATED = "a-lab/gated/blocks.2.hook_resid_post"
DATED = "a-lab/dated/blocks.2.hook_resid_post"
OTHER_L0, OTHER_REPO = TUTORIAL.replace("71", "70"), TUTORIAL.replace("2b-pt-res", "2b-res")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def online(server, home, tmp_path_factory):
    """All that one process with an empty cache asks of the Hub: each start of one costs seconds."""
    elsewhere = str(tmp_path_factory.mktemp("elsewhere"))
    return asked(
        server,
        home,
        f"""
loaded = ask(*{NAMES + OTHERS!r})
refused = ask({GATED!r}, "a-lab/nothing/there", "a-lab/empty", {OTHER_L0!r}, {OTHER_REPO!r}, {DATED!r})
refused["token"] = told({GATED!r}, token={GRANTED!r})
refused["stranger"] = told({GATED!r}, token="hf_stranger", cache_dir={elsewhere!r})
refused["expired"] = told({FOLDER!r}, token={EXPIRED!r}, cache_dir={elsewhere!r})
refused["v1"] = told({DATED!r}, revision="v1")
refused["v9"] = told({DATED!r}, revision="v9")
found = gs.catalog("gemma-3-270m-pt", online=True)
listed = [found.source, [[entry.address, entry.l0, entry.canonical] for entry in found]]
print(json.dumps({{"loaded": loaded, "refused": refused, "listed": listed}}))""",
    )


def test_every_way_to_write_an_address_of_the_hub(server, online):
    answers = online["loaded"]
    (commit,) = {answers[name]["revision"] for name in NAMES}
    assert commit == server.repos[GEMMA_SCOPE].snapshots["main"].commit
    for name in NAMES:
        about = answers[name]
        assert (about["site"], about["model"], about["l0"]) == ("20.res", "google/gemma-2-2b", 71)
        assert (about["size"], about["page"], about["name"]) == ([64, D_SAE], "gemma-2-2b/20-gemmascope-res-16k", name)
    assert len({answers[name]["digest"] for name in NAMES}) == 1
    assert answers[PACKED]["site"] == "2.res"
    assert (answers[RESID]["site"], answers[RESID]["l0"], answers[RESID]["skip"]) == ("5.res", 50, False)
    assert (answers[AFFINE]["site"], answers[AFFINE]["out"], answers[AFFINE]["skip"]) == ("2.transcoder", "2.mlp", True)
    saelens_folders = [answers[name] for name in OTHERS[3:]]
    assert {about["site"] for about in saelens_folders} == {"2.res"}
    assert {about["l0"] for about in saelens_folders} == {33.5}


def test_what_was_loaded_once_needs_no_network(server, home, online):
    names = [TUTORIAL, PACKED, RESID, FOLDER]
    first = {name: online["loaded"][name] for name in names}
    before = len(server.requests)
    assert asked(server, home, f"print(json.dumps(ask(*{names!r})))") == first
    assert len(server.requests) == before
    offline = asked(
        server,
        home,
        f"""
pinned = ask({TUTORIAL!r}, revision={first[TUTORIAL]["revision"]!r})
print(json.dumps([ask(*{names!r}), ask({NEVER_LOADED!r}), pinned]))""",
        offline=True,
    )
    assert offline[0] == first
    assert offline[1][NEVER_LOADED][0] == "HubUnreachable"
    assert "offline" in offline[1][NEVER_LOADED][1]
    assert offline[2] == {TUTORIAL: first[TUTORIAL]}
    assert len(server.requests) == before


def test_what_the_hub_refuses_is_one_clear_line(online):
    answers = online["refused"]
    for name, about in answers.items():
        assert isinstance(about, dict) == (name in ("token", "v1")), (name, about)
        if isinstance(about, list):
            assert "\n" not in about[1]
    kind, message = answers[GATED]
    assert kind == "GatedRepository"
    assert "hf auth login" in message
    assert "a-lab/gated" in message
    assert answers["stranger"][0] == "GatedRepository"
    assert answers["expired"][0] in ("GatedRepository", "SAENotFound")
    assert answers["a-lab/nothing/there"][0] == "SAENotFound"
    assert "no repository a-lab/nothing" in answers["a-lab/nothing/there"][1]
    assert answers["a-lab/empty"][0] == "SAENotFound"
    assert "cfg.json" in answers["a-lab/empty"][1] or "sae_weights" in answers["a-lab/empty"][1]
    kind, message = answers[OTHER_L0]
    assert kind == "SAENotFound"
    assert f"nearest: {TUTORIAL}," in message
    assert TUTORIAL in answers[OTHER_REPO][1]
    assert answers["v9"][0] == "SAENotFound"
    assert "v9" in answers["v9"][1]


def test_the_catalogue_lists_what_the_hub_has(online):
    source, entries = online["listed"]
    assert "Hub" in source
    assert sorted(address for address, _, _ in entries) == sorted([RESID, AFFINE])


def test_without_a_network_the_answer_comes_at_once(tmp_path):
    with hub({}) as gone:
        environment = gone.env(tmp_path)
    answers = child(
        PRELUDE
        + f"""
answers = ask({TUTORIAL!r}, {TUTORIAL.replace("71", "70")!r}, "a-lab/some/thing")
found = gs.catalog("gemma-2-2b", site="20.res", width="16k")
print(json.dumps([answers, sum(waited), found.source, len(found)]))""",
        env=environment,
    ).json()
    told, seconds, source, count = answers
    assert told[TUTORIAL][0] == "HubUnreachable"
    assert told[TUTORIAL.replace("71", "70")][0] == "SAENotFound"
    assert f"nearest: {TUTORIAL}," in told[TUTORIAL.replace("71", "70")][1]
    assert told["a-lab/some/thing"][0] == "HubUnreachable"
    assert seconds < 10  # spent waiting, not working
    assert "snapshot" in source
    assert count == 5


# --- here, and names that lead nowhere; these need no Hub ------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_here_goes_before_the_hub(here):
    for path, data in gemma_scope().items():
        file = here / GEMMA_SCOPE / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    sae = load_sae(TUTORIAL)
    assert (str(sae.site), sae.info.revision, sae.info.declared_l0) == ("20.res", None, 71)
    assert load_sae(here / TUTORIAL / "params.npz").digest == sae.digest


def test_files_here_by_any_name(here):
    (here / "mine.npz").write_bytes(gemma_scope()["layer_1/width_16k/average_l0_71/params.npz"])
    assert load_sae("mine.npz", site="1.res").d_sae == D_SAE
    files = published()[GEMMA_SCOPE_2].files
    (here / "mine.safetensors").write_bytes(files["resid_post/layer_5_width_16k_l0_medium/params.safetensors"])
    assert load_sae("mine.safetensors", site="5.res").d_sae == D_SAE
    (here / "config.json").write_bytes(files["resid_post/layer_5_width_16k_l0_medium/config.json"])
    assert str(load_sae("mine.safetensors").site) == "5.res"
    folder = here / "sae"
    folder.mkdir()
    for path, data in saelens().items():
        (folder / path.rsplit("/", 1)[1]).write_bytes(data)
    assert len({load_sae(name).digest for name in ("sae", "sae/cfg.json", "sae/sae_weights.safetensors")}) == 1


def test_what_is_no_sae_says_what_was_expected(here):
    (here / "empty").mkdir()
    (here / "notes.txt").write_text("hello")
    (here / "model.pt").write_bytes(b"\x80\x02")
    for name, error, message in (
        ("empty", SAENotFound, "params.npz"),
        ("notes.txt", SAENotFound, "npz"),
        ("model.pt", UnsafeFile, "pickle"),
        ("./missing", SAENotFound, "no file or folder"),
        ("/missing/params.npz", SAENotFound, "no file or folder"),
        ("", SAENotFound, "expected REPO/path"),
        ("smollm", SAENotFound, "expected REPO/path"),
        ("a b c", SAENotFound, "expected REPO/path"),
        ("google/../secrets/x", SAENotFound, "expected REPO/path"),
        ("https://example.com/google/gemma-scope", SAENotFound, "expected REPO/path"),
        ("gemma-2-2b/20-gemmascope-res-16", SAENotFound, "nearest: gemma-2-2b/20-gemmascope-res-16k"),
        (
            "gemma-scope-2b-pt-res-canonical layer_20/width_16k/canonicl",
            SAENotFound,
            "nearest: gemma-scope-2b-pt-res-canonical",
        ),
        ("gpt2-small-res-jb blocks.8.hook_resid_pre", HubUnreachable, "jbloom/GPT2-Small-SAEs-Reformatted/blocks.8"),
        (
            "gpt2-small-res-jb blocks.8.hook_resid_pro",
            SAENotFound,
            "nearest: gpt2-small-res-jb blocks.8.hook_resid_pre",
        ),
        ("temporal-sae-gemma-2-2b blocks.12.hook_resid_post", FileError, "depend on earlier tokens"),
        ("gemma-2-2b/13-clt-hp", FileError, "cross-layer"),
        ("gpt2-small-res-jb blocks.0.hook_resid_pre", FileError, "no site"),
        (TUTORIAL, HubUnreachable, "offline"),
        (TUTORIAL.replace("71", "70"), SAENotFound, f"nearest: {TUTORIAL}"),
    ):
        with pytest.raises(error, match=message) as caught:
            load_sae(name, offline=True, cache_dir=here / "hub")
        assert "\n" not in str(caught.value)


def test_offline_mode_does_not_wait(here, monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    with pytest.raises(HubUnreachable):
        load_sae("a-lab/some/thing", offline=True, cache_dir=here / "hub")
    assert not waited


def test_a_compressed_file_is_unpacked_into_the_cache_that_was_given(here):
    (here / "params.npz").write_bytes(gemma_scope()["layer_2/width_16k/average_l0_71/params.npz"])
    sae = load_sae("params.npz", cache_dir=here / "elsewhere")
    assert len(list((here / "elsewhere" / "gemscope" / "unpacked").iterdir())) == 1
    assert not (here / "cache").exists()
    assert sae.digest == load_sae("params.npz").digest


def test_the_bundled_sae_or_a_line_that_says_it_is_missing(here):
    if (load._BUNDLED_FOLDER / "cfg.json").exists():
        config = json.loads((load._BUNDLED_FOLDER / "cfg.json").read_text())
        sae = load_sae("smollm2")
        assert (str(sae.site), sae.d_sae, sae.info.name) == ("15.res", config["d_sae"], "smollm2")
    else:
        with pytest.raises(SAENotFound, match="not part of this installation"):
            load_sae("smollm2")


def test_the_saes_below_a_folder_are_named(tmp_path):
    made = planted_sae(8, 16, seed=0).sae
    for name in ("run/checkpoints/900", "run/checkpoints/1000", "run/sae"):
        gs.save_sae(made, tmp_path / name)
    with pytest.raises(SAENotFound, match=r"there are SAEs in it: checkpoints/900, checkpoints/1000, sae$"):
        gs.load_sae(tmp_path / "run")
    for number in range(9):
        gs.save_sae(made, tmp_path / "many" / str(number))
    with pytest.raises(SAENotFound, match=r"there are SAEs in it: 0, 1, 2, 3, 4, 4 more$"):
        gs.load_sae(tmp_path / "many")


@pytest.mark.parametrize("name", ["a" * 100_000, "b/" * 50_000, "a\0b", "~nobody-of-that-name/x", "c" * 100_000 + "*"])
def test_what_can_be_no_name_is_not_found_in_one_line(name):
    for read in (gs.load_sae, gs.load_model, gs.load_crosscoder, gs.Corpus.read, matching):
        with pytest.raises((NotFound, HubUnreachable)) as caught:
            read(name)
        assert len(str(caught.value)) < 2_000
    assert is_pattern(name) == name.endswith("*")


# --- where to -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "model", "machine", "taken"),
    [
        ("auto", None, "cuda:0", "cuda:0"),
        (None, None, "cpu", "cpu"),
        ("auto", "cpu", "cuda:0", "cpu"),  # beside its model, which somebody has put there
        ("auto", "cuda:1", "cuda:0", "cuda:1"),
        ("auto", None, "mps", "cpu"),
        ("auto", "mps:0", "mps", "cpu"),
        ("cuda:1", "cpu", "cpu", "cuda:1"),
    ],
)
def test_an_sae_goes_where_its_model_is_but_for_devices_without_sparse_products(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, model: str | None, machine: str, taken: str
) -> None:
    monkeypatch.setattr(choice, "device_of", lambda asked: torch.device(machine if asked == "auto" else asked))
    beside = None if model is None else torch.device(model)
    assert choice.place_for(asked, beside) == torch.device(taken)


def test_a_device_that_is_not_there_is_refused_before_anything_is_looked_for() -> None:
    with pytest.raises(InputError, match=r"device 'cuda:99' cannot be used: .*; here there is .*cpu"):
        load_sae("there/is-none", device="cuda:99")
    with pytest.raises(InputError, match="device 'nowhere' cannot be used"):
        gs.load_crosscoder("none", device="nowhere")
