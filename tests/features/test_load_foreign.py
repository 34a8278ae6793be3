"""Other people's repositories by their addresses and SAELens's names, against an imitated Hub; and again without one."""

import io
from pathlib import Path
from typing import Any

import torch

from hub_server import Repo, child, hub
from peers import FORMATS

PRELUDE = """
import json, warnings
warnings.simplefilter("error")
import gemscope as gs
from gemscope.errors import GemscopeError
def told(address, **options):
    try:
        sae = gs.load_sae(address, **options)
    except GemscopeError as error:
        return [type(error).__name__, str(error)]
    return [sae.info.format, str(sae.site), str(sae.site_out), sae.info.model, sae.digest[:8]]
"""


def files(name: str, at: str = "") -> dict[str, bytes]:
    folder = FORMATS / name
    return {f"{at}{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pickled(**tensors: Any) -> bytes:
    stream = io.BytesIO()
    torch.save({name.replace("__", "."): one for name, one in tensors.items()}, stream)
    return stream.getvalue()


def linear(f: int, d: int) -> dict[str, torch.Tensor]:
    return {"W": torch.randn(f, d), "b": torch.randn(f), "V": torch.randn(d, f), "c": torch.randn(d)}


def published() -> dict[str, Repo]:
    goodfire, qwen = linear(20, 8), linear(32 * 1024, 4)
    return {
        "mwhanna/qwen3-4b-transcoders": Repo(files("circuit_tracer/set_relu")),
        "mwhanna/qwen3-14b-transcoders": Repo(
            {name: data for name, data in files("circuit_tracer/set_relu").items() if not name.endswith("yaml")}
        ),
        "EleutherAI/sae-pythia-160m": Repo({**files("sparsify/sae"), "README.md": b"x"}),
        "andyrdt/saes-llama-3.1-8b-instruct": Repo(
            files("dictionary_learning/batch_topk/resid_post_layer_3/trainer_0", "resid_post_layer_3/trainer_1/")
        ),
        "Goodfire/Llama-3.1-8B-Instruct-SAE-l19": Repo({
            "Llama-3.1-8B-Instruct-SAE-l19.pth": pickled(
                encoder_linear__weight=goodfire["W"], encoder_linear__bias=goodfire["b"],
                decoder_linear__weight=goodfire["V"], decoder_linear__bias=goodfire["c"],
            )
        }),
        "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50": Repo({
            "layer0.sae.pt": pickled(W_enc=qwen["W"], b_enc=qwen["b"], W_dec=qwen["V"], b_dec=qwen["c"]),
            "layer1.sae.pt": b"not fetched",
        }),
        "a-lab/both": Repo({**files("sparsify/sae/layers.1"), "ae.pt": b"x"}),
    }  # fmt: skip


NAMES = [
    "mwhanna/qwen3-4b-transcoders/layer_1",
    "mwhanna/qwen3-4b-transcoders/layer_1.safetensors",
    "mwhanna-qwen3-4b-transcoders layer_1",
    "mwhanna-qwen3-14b-transcoders layer_2",
    "EleutherAI/sae-pythia-160m/layers.1",
    "EleutherAI/sae-pythia-160m/layers.2.mlp",
    "https://huggingface.co/EleutherAI/sae-pythia-160m/blob/main/layers.1/sae.safetensors",
    "andyrdt/saes-llama-3.1-8b-instruct/resid_post_layer_3/trainer_1",
    "andyrdt/saes-llama-3.1-8b-instruct/resid_post_layer_3/trainer_1/ae.pt",
    "llama-3.1-8b-instruct-andyrdt resid_post_layer_3_trainer_1",
    "Goodfire/Llama-3.1-8B-Instruct-SAE-l19",
    "goodfire-llama-3.1-8b-instruct layer_19",
    "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50/layer0",
    "qwen-scope-3-1.7b-base-w32k-l50 layer0",
]
BARE = "Goodfire/Llama-3.1-8B-Instruct-SAE-l19"
"""A repository with one SAE, whose file's name is its own."""
SEVERAL = ["mwhanna/qwen3-4b-transcoders", "a-lab/both", "EleutherAI/sae-pythia-160m"]


def test_repositories_of_every_layout_open_by_address_and_by_name_and_need_no_network_again(tmp_path: Path) -> None:
    ask = PRELUDE + f"print(json.dumps([[told(name) for name in {NAMES!r}], [told(name) for name in {SEVERAL!r}]]))"
    with hub(published()) as server:
        found, several = child(ask, env=server.env(tmp_path)).json()
        environment = server.env(tmp_path)
    body = f"print(json.dumps([told(name) for name in {NAMES!r}] + [told({BARE!r}, offline=True)]))"
    *again, bare = child(PRELUDE + body, env=environment).json()
    answers = dict(zip(NAMES, found, strict=True))
    set_ = ["circuit-tracer", "1.transcoder", "1.mlp", "Qwen/Qwen3-0.6B"]
    assert [answers[name][:4] for name in NAMES[:3]] == [set_] * 3
    assert len({answers[name][4] for name in NAMES[:3]}) == 1
    assert answers[NAMES[3]][:4] == ["circuit-tracer", "2.transcoder", "2.mlp", "Qwen/Qwen3-14B"]  # the catalogue's
    assert answers[NAMES[4]][:3] == ["sparsify", "1.res", "1.res"]
    assert answers[NAMES[5]][:3] == ["sparsify", "2.mlp", "2.mlp"]  # by the repository's name, a model like Pythia
    assert answers[NAMES[6]] == answers[NAMES[4]]
    assert [answers[name][:2] for name in NAMES[7:10]] == [["dictionary_learning", "3.res"]] * 3
    assert len({answers[name][4] for name in NAMES[7:10]}) == 1
    for name in NAMES[10:12]:
        assert answers[name][:4] == ["Goodfire", "19.res", "19.res", "meta-llama/Llama-3.1-8B-Instruct"]
    for name in NAMES[12:14]:
        assert answers[name][:4] == ["Qwen Scope", "0.res", "0.res", "Qwen/Qwen3-1.7B-Base"]
    kept = [name for name in NAMES if name != BARE]
    assert [dict(zip(NAMES, again, strict=True))[name] for name in kept] == [answers[name] for name in kept]
    assert bare[0] == "HubUnreachable"  # whether it is the only one, the Hub alone knows
    assert "there is Llama-3.1-8B-Instruct-SAE-l19.pth: name one" in bare[1]
    assert several[0][0] == "SAENotFound"
    assert "layer_0.safetensors, layer_1.safetensors, layer_2.safetensors" in several[0][1]
    assert several[1][0] == "SAENotFound"
    assert "there are SAEs in it: ae.pt, sae.safetensors" in several[1][1]
    assert several[2][0] == "SAENotFound"
