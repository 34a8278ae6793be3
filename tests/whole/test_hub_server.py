"""The imitated Hub is held to its contract by the real client, in whichever version is installed."""

import hashlib
import urllib.error
import urllib.request

import pytest

from hub_content import GEMMA, GEMMA_SCOPE, VOCAB, gemma_2, gemma_scope, published
from hub_server import EXPIRED, GRANTED, Repo, child, hub

RAW = "layer_1/width_16k/average_l0_71/params.npz"
PACKED = "layer_2/width_16k/average_l0_71/params.npz"
STRANGER = "hf_stranger"


@pytest.fixture(scope="module")
def server():
    with hub(published(), page_size=3) as running:
        running.repos["a-lab/secret"] = Repo({"a.txt": b"for few"}, private=True)
        running.repos["a-lab/dated"] = Repo({"a.txt": b"new"}, revisions={"v1": {"a.txt": b"old"}, "pr/1": {"b": b""}})
        yield running


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_listings_say_what_a_repository_holds_page_by_page(server, tmp_path):
    answers = child(
        f"""
from huggingface_hub import HfApi
api, repo = HfApi(), {GEMMA_SCOPE!r}
info = api.model_info(repo, files_metadata=True)
print(json.dumps({{
    "files": api.list_repo_files(repo),
    "root": [entry.path for entry in api.list_repo_tree(repo)],
    "layer": [entry.path for entry in api.list_repo_tree(repo, "layer_2", recursive=True, expand=True)],
    "no folder": raised(lambda: list(api.list_repo_tree(repo, "layer_9"))),
    "no revision": raised(lambda: list(api.list_repo_tree(repo, revision="v9"))),
    "info": [info.id, info.gated, info.private, [[s.rfilename, s.size, s.lfs and s.lfs.sha256] for s in info.siblings]],
    "sha": [info.sha, api.model_info(repo, revision=info.sha).sha],
    "paths": [[p.path, getattr(p, "size", None)] for p in api.get_paths_info(repo, [{RAW!r}, "layer_2", "nothing"])],
    "exists": [api.file_exists(repo, {RAW!r}), api.file_exists(repo, "x"), api.repo_exists("a-lab/none")],
    "branches": [branch.name for branch in api.list_repo_refs("a-lab/dated").branches],
    "slashed": api.list_repo_files("a-lab/dated", revision="pr/1"),
    "gated": [api.model_info({GEMMA!r}).gated, len(api.list_repo_files({GEMMA!r}))],
}}))""",
        env=server.env(tmp_path),
    ).json()
    files = gemma_scope()
    sizes = [[path, len(files[path]), sha256(files[path]) if path.endswith("npz") else None] for path in sorted(files)]
    sha = server.repos[GEMMA_SCOPE].snapshots["main"].commit
    assert sorted(answers["files"]) == sorted(files)
    assert answers["root"] == ["README.md", "layer_1", "layer_2", "layer_20"]
    assert len(answers["layer"]) == 7  # three files, each in its folder, and the folder of that
    assert answers["no folder"][0].endswith("EntryNotFoundError")
    assert answers["no revision"][0] == "RevisionNotFoundError"
    assert answers["info"] == [GEMMA_SCOPE, False, False, sizes]
    assert answers["sha"] == [sha, sha]
    assert answers["paths"] == [[RAW, len(files[RAW])], ["layer_2", None]]
    assert answers["exists"] == [True, False, False]
    assert answers["branches"] == ["main", "v1", "pr/1"]
    assert answers["slashed"] == ["b"]
    assert answers["gated"] == ["manual", len(gemma_2())]
    trees = server.asked("GET", f"/api/models/{GEMMA_SCOPE}/tree/main")
    assert len(trees) == 6 + 2  # 17 entries, then 4 at the root, three on a page


def test_downloads_are_exact_and_then_come_out_of_the_cache_without_a_request(server, tmp_path):
    snippet = f"""
import hashlib
from huggingface_hub import hf_hub_download, list_repo_files, model_info, snapshot_download
def read(*arguments, **options):
    return open(hf_hub_download(*arguments, **options), "rb").read()
def sha256(*arguments):
    return hashlib.sha256(read(*arguments)).hexdigest()
def ours():
    return {{"raw": sha256({GEMMA_SCOPE!r}, {RAW!r}), "readme": read({GEMMA_SCOPE!r}, "README.md").decode()}}
"""
    server.requests.clear()
    online = child(
        snippet
        + f"""
from pathlib import Path
folder = Path(snapshot_download({GEMMA_SCOPE!r}, allow_patterns="layer_2/*"))
print(json.dumps(ours() | {{
    "folder": sorted(str(path.relative_to(folder)) for path in folder.rglob("*.npz")),
    "old": read("a-lab/dated", "a.txt", revision="v1").decode(),
    "new": read("a-lab/dated", "a.txt").decode(),
}}))""",
        env=server.env(tmp_path),
    ).json()
    files = gemma_scope()
    ours = {"raw": sha256(files[RAW]), "readme": files["README.md"].decode()}
    assert online.items() >= ours.items()
    assert online["folder"] == sorted(path for path in files if path.startswith(("layer_1/", "layer_2/")))
    assert [online["old"], online["new"]] == ["old", "new"]
    stored = [request for request in server.requests if request.path.startswith("/storage/")]
    assert len(stored) == 4
    assert server.asked("HEAD", f"/{GEMMA_SCOPE}/resolve/main/{RAW}")[0].status == 302

    server.requests.clear()
    offline = child(
        snippet
        + f"""
print(json.dumps(ours() | {{
    "elsewhere": raised(hf_hub_download, {GEMMA_SCOPE!r}, "layer_3/params.npz"),
    "listing": raised(list_repo_files, {GEMMA_SCOPE!r}),
    "info": raised(model_info, {GEMMA_SCOPE!r}),
}}))""",
        env=server.env(tmp_path, offline=True),
    ).json()
    assert offline.items() >= ours.items()
    assert offline["elsewhere"][0] == "LocalEntryNotFoundError"
    assert offline["listing"][0] == offline["info"][0] == "OfflineModeIsEnabled"
    assert server.requests == []


def test_the_refusals_are_those_of_the_hub(server, tmp_path):
    answers = child(
        f"""
from huggingface_hub import hf_hub_download
def why(repo, path, **options):
    try:
        hf_hub_download(repo, path, **options)
    except Exception as error:
        cause = error if hasattr(error, "response") else error.__cause__
        return [type(cause).__name__, cause.response.status_code]
    return "read"
readers = {{"nobody": False, "stranger": {STRANGER!r}, "expired": {EXPIRED!r}, "granted": {GRANTED!r}}}
repos = {{"gated": {GEMMA!r}, "private": "a-lab/secret", "missing": "a-lab/none", "public": {GEMMA_SCOPE!r}}}
files = {{"gated": "model.safetensors", "private": "a.txt", "missing": "a.txt", "public": "README.md"}}
answers = {{
    repo: {{reader: why(repos[repo], files[repo], token=readers[reader]) for reader in readers}}
    for repo in ("gated", "private", "missing")
}}
answers["public"] = why(repos["public"], files["public"], token={EXPIRED!r})
answers["file"] = why(repos["public"], "x.npz")
answers["revision"] = why(repos["public"], "README.md", revision="v9")
print(json.dumps(answers))""",
        env=server.env(tmp_path),
    ).json()
    expired = ["HfHubHTTPError", 401]
    nobody, stranger = ["GatedRepoError", 401], ["GatedRepoError", 403]
    assert answers["gated"] == {"nobody": nobody, "stranger": stranger, "expired": expired, "granted": "read"}
    nobody, stranger = ["RepositoryNotFoundError", 401], ["RepositoryNotFoundError", 404]
    assert answers["private"] == {"nobody": nobody, "stranger": stranger, "expired": expired, "granted": "read"}
    assert answers["missing"] == {"nobody": nobody, "stranger": stranger, "expired": expired, "granted": stranger}
    assert answers["public"] == expired
    assert answers["file"] in (["RemoteEntryNotFoundError", 404], ["EntryNotFoundError", 404])
    assert answers["revision"] == ["RevisionNotFoundError", 404]


def test_a_download_that_is_cut_is_resumed_from_where_it_broke(server, tmp_path):
    server.requests.clear()
    server.cuts[GEMMA_SCOPE, PACKED] = [100_000]
    answers = child(
        f"""
import hashlib
from huggingface_hub import constants, hf_hub_download
constants.DOWNLOAD_CHUNK_SIZE = 4096   # what is kept of a broken download is whole chunks
first = raised(hf_hub_download, {GEMMA_SCOPE!r}, {PACKED!r})   # 0.36 gives up here, 2.4 goes on by itself
path = hf_hub_download({GEMMA_SCOPE!r}, {PACKED!r})
print(json.dumps({{"first": first, "sha256": hashlib.sha256(open(path, "rb").read()).hexdigest()}}))""",
        env=server.env(tmp_path),
    ).json()
    assert answers["sha256"] == sha256(gemma_scope()[PACKED])
    assert answers["first"] == [] or "ConnectionError" in answers["first"] or "ChunkedEncodingError" in answers["first"]
    whole, rest = (request for request in server.asked("GET", PACKED) if request.path.startswith("/storage/"))
    assert (whole.status, whole.byte_range, rest.status) == (200, None, 206)
    assert 90_000 < int(rest.byte_range.removeprefix("bytes=").removesuffix("-")) <= 100_000


def test_the_tiny_gemma_loads_like_the_real_one_once_the_reader_is_logged_in(server, tmp_path):
    refused, online = child(
        f"""
from transformers import AutoModelForCausalLM, AutoTokenizer
def load(**options):
    tokenizer = AutoTokenizer.from_pretrained({GEMMA!r}, **options)
    model, loading = AutoModelForCausalLM.from_pretrained({GEMMA!r}, output_loading_info=True, **options)
    ids = tokenizer("time travel", return_tensors="pt").input_ids
    return {{
        "model": [type(model).__name__, model.config.hidden_size, model.lm_head.weight.shape[0]],
        "amiss": [len(loading[name]) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")],
        "specials": [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id],
        "ids": ids.tolist()[0],
        "tokens": tokenizer.convert_ids_to_tokens(ids[0]),
        "text": tokenizer.decode(tokenizer("naïve  日本\\n\\tx").input_ids, skip_special_tokens=True),
        "logits": model(ids).logits[0, -1].tolist(),
    }}
try:
    AutoModelForCausalLM.from_pretrained({GEMMA!r}, token=False)
except OSError as error:
    refused = str(error)
print(json.dumps([refused, load()]))""",
        env=server.env(tmp_path, token=GRANTED),
    ).json()
    assert "gated repo" in refused
    assert online["model"] == ["Gemma2ForCausalLM", 64, VOCAB]
    assert online["amiss"] == [0, 0, 0]
    assert online["specials"] == [0, 1, 2, 3]
    assert online["ids"][0] == 2
    assert online["tokens"][0] == "<bos>"
    assert "▁travel" in online["tokens"]
    assert online["text"] == "naïve  日本\n\tx"
    assert len(set(online["logits"])) > VOCAB // 2


def test_a_fault_of_the_imitation_is_not_swallowed():
    def ask_what_breaks_it():
        with hub({"a-lab/broken": "no Repo"}) as running:
            try:
                urllib.request.urlopen(f"{running.url}/a-lab/broken/resolve/main/a.txt")
            except urllib.error.HTTPError as error:
                error.close()

    with pytest.raises(AssertionError, match="AttributeError"):
        ask_what_breaks_it()


def test_the_network_is_down_once_the_server_has_stopped():
    with hub({}) as running:
        pass
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(running.url)
