"""A sound folder for each reader: small, and made by our own writers where there are such."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import shutil
import struct
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gemscope as gs
from atlases import Plan as Planted
from atlases import planted_atlas
from gemscope.activations.capture import Activations
from gemscope.activations.jacobian import Jacobian
from gemscope.activations.site import Site
from gemscope.activations.store import FORMAT, Manifest
from gemscope.activations.writer import Writer
from gemscope.atlas.labels.journal import Asked, Judged, Plan, journal_of
from gemscope.atlas.output import Outcome, OutputScore
from gemscope.edits.strength import Strength
from gemscope.errors import Awaited
from gemscope.features.crosscoder import Crosscoder
from gemscope.features.effect import Effect, Measured
from gemscope.features.files.crosscoder import save_crosscoder
from gemscope.features.files.tensors import stream_of, write_safetensors
from gemscope.features.firings import keeping
from gemscope.features.jacobian_sums import Sums
from gemscope.features.jacobian_sums import unfinished as begun
from gemscope.features.sae import SAE, SAEInfo
from gemscope.features.scope_manifest import Failed, Made, Text, place_of, write_scope
from gemscope.features.scope_manifest import Manifest as ScopeManifest
from gemscope.progress import silent
from gemscope.testing import planted_sae, tiny_model
from gemscope.text.tokens import Tokens
from gemscope.training.config import TrainConfig
from gemscope.training.lesson import Lesson
from gemscope.training.train import train
from gemscope.world import World
from ggufs import written
from kinships import chain
from peers import copied
from planted import Given, directions, strengths

D, F = 8, 16
SITE = Site(1, "res")
SAMPLES: dict[str, Callable[[Path], None]] = {}
"""By name, what fills an empty folder."""


def _sample(make: Callable[[Path], None]) -> Callable[[Path], None]:
    SAMPLES[make.__name__] = make
    return make


# --- weights --------------------------------------------------------------------------------------------------------


def _sae() -> SAE:
    return planted_sae(D, F, tokens=4).sae


def _weights(sae: SAE) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in sae.state_dict().items()}


def _saelens(folder: Path, weights: dict[str, torch.Tensor], **config: Any) -> None:
    about = {"model_name": "gpt2", "hook_name": "blocks.1.hook_resid_post", "prepend_bos": False, "context_size": 64}
    known = {"d_in": D, "d_sae": F, "dtype": "float32", "apply_b_dec_to_input": True, "normalize_activations": "none"}
    (folder / "cfg.json").write_text(
        json.dumps({**known, "metadata": {**about, "sae_lens_version": "6.0.0"}, **config})
    )
    write_safetensors(folder / "sae_weights.safetensors", {name: stream_of(one) for name, one in weights.items()})


@_sample
def saelens(folder: Path) -> None:
    gs.save_sae(_sae(), folder)


@_sample
def saelens_scaled(folder: Path) -> None:
    weights = {name: weight.bfloat16() for name, weight in _weights(_sae()).items()}
    _saelens(
        folder, weights, architecture="jumprelu", dtype="bfloat16", normalize_activations="expected_average_only_in"
    )
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.5}))


@_sample
def saelens_topk(folder: Path) -> None:
    weights = _weights(_sae())
    del weights["threshold"]
    _saelens(folder, weights, architecture="topk", k=4, rescale_acts_by_decoder_norm=True)


@_sample
def saelens_gated(folder: Path) -> None:
    weights = _weights(_sae())
    weights |= {"b_gate": weights.pop("b_enc"), "b_mag": weights.pop("threshold"), "r_mag": torch.zeros(F)}
    _saelens(folder, weights, architecture="gated")


@_sample
def saelens_5(folder: Path) -> None:
    weights = _weights(_sae())
    del weights["threshold"]
    old = {
        "architecture": "standard",
        "model_name": "gpt2",
        "hook_name": "blocks.1.hook_resid_post",
        "d_in": D,
        "d_sae": F,
    }
    old |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}, "normalize_activations": False}
    (folder / "cfg.json").write_text(json.dumps(old | {"sae_lens_version": "5.1.0", "hook_head_index": None}))
    write_safetensors(folder / "sae_weights.safetensors", {name: stream_of(one) for name, one in weights.items()})


@_sample
def npz(folder: Path) -> None:
    np.savez(folder / "params.npz", **{name: weight.numpy() for name, weight in _weights(_sae()).items()})


@_sample
def npz_packed(folder: Path) -> None:
    np.savez_compressed(folder / "params.npz", **{name: weight.numpy() for name, weight in _weights(_sae()).items()})


@_sample
def gemma_scope_2(folder: Path) -> None:
    names = {"W_enc": "w_enc", "W_dec": "w_dec"}
    streams = {names.get(name, name): stream_of(weight) for name, weight in _weights(_sae()).items()}
    write_safetensors(folder / "params.safetensors", streams)
    config = {"hf_hook_point_in": "model.layers.1.output", "hf_hook_point_out": "model.layers.1.output", "width": F}
    config |= {"model_name": "google/gemma-3-1b-pt", "architecture": "jump_relu", "l0": 4, "affine_connection": False}
    (folder / "config.json").write_text(json.dumps(config | {"type": "sae"}))


def _foreign(name: str, place: str, inside: str = "") -> None:
    """A sample out of another tool's own files."""

    def make(folder: Path) -> None:
        copied(place, folder / inside if inside else folder / "it")

    make.__name__ = name
    _sample(make)


FOREIGN = {
    "sparsify": ("sparsify/transcoder_skip/layers.1.mlp", "layers.1.mlp"),
    "dictionary_learning": ("dictionary_learning/standard/resid_post_layer_3/trainer_0", "it"),
    "dictionary_learning_gated": ("dictionary_learning/gated/resid_post_layer_3/trainer_0", "it"),
    "dictionary_learning_topk": ("dictionary_learning/topk/resid_post_layer_3/trainer_0", "it"),
    "dictionary_learning_matryoshka": ("dictionary_learning/matryoshka/resid_post_layer_3/trainer_0", "it"),
    "llamascopium": ("llamascopium/transcoder_dataset", "it"),
    "saelens_normed": ("saelens/standard_layer_norm", "it"),
    "circuit_tracer": ("circuit_tracer/set_jumprelu", "it/layer_1.safetensors"),
}
"""By name, what is copied and where in the folder the SAE then is."""
for _name, (_place, _at) in FOREIGN.items():
    _foreign(_name, _place, _at.partition("/")[0])


@_sample
def pickles(folder: Path) -> None:
    """Of one SAE, in each of the formats that are a pickle alone, or with a name beside it."""
    sae = _sae()
    linear = {
        "encoder.weight": sae.W_enc.T,
        "encoder.bias": sae.b_enc,
        "decoder.weight": sae.W_dec.T,
        "decoder.bias": sae.b_dec,
    }
    linear = {name: weight.detach().contiguous() for name, weight in linear.items()}
    torch.save({name.replace(".", "_linear."): one for name, one in linear.items()}, folder / "Llama-x-SAE-l1.pth")
    torch.save(linear, folder / "DeepSeek-x-SAE-l1.pt")
    names = {"encoder.weight": "encoder.0.weight", "encoder.bias": "encoder.0.bias"}
    hook = "saes.blocks-1-hook_resid_post"
    torch.save({f"{hook}.{names.get(name, name)}": one for name, one in linear.items()}, folder / "samples_1.pt")
    (folder / "final_config.yaml").write_text("tlens_model_name: gpt2-small\nseed: 0\n")
    held = {name: weight for name, weight in _weights(sae).items() if name != "threshold"}
    torch.save(held, folder / "x_z_y_v1.pt")
    config = {"act_name": "blocks.1.hook_mlp_out", "act_size": D, "dict_size": F, "model_name": "gpt2-small"}
    (folder / "x_z_y_v1_cfg.json").write_text(json.dumps(config))
    openai = {"encoder.weight": linear["encoder.weight"], "latent_bias": linear["encoder.bias"]}
    openai |= {"decoder.weight": linear["decoder.weight"], "pre_bias": linear["decoder.bias"]}
    openai |= {"activation": "TopK", "activation_state_dict": {"k": 4, "postact_fn": "ReLU"}}
    torch.save(openai, folder / "1.pt")


@_sample
def llama_scope(folder: Path) -> None:
    linear = {"encoder.weight": torch.randn(F, D), "encoder.bias": torch.randn(F)}
    linear |= {"decoder.weight": torch.randn(D, F), "decoder.bias": torch.randn(D)}
    (folder / "checkpoints").mkdir()
    streams = {name: stream_of(weight) for name, weight in linear.items()}
    write_safetensors(folder / "checkpoints" / "final.safetensors", streams)
    hook = "blocks.1.hook_resid_post"
    config = {"d_model": D, "d_sae": F, "act_fn": "jumprelu", "norm_activation": "dataset-wise", "top_k": 4}
    config |= {"jump_relu_threshold": 0.5, "hook_point_in": hook, "hook_point_out": hook}
    config |= {"dataset_average_activation_norm": {"in": 10.8, "out": 7.2}, "sparsity_include_decoder_norm": True}
    (folder / "hyperparams.json").write_text(json.dumps(config))


@_sample
def crosscoder(folder: Path) -> None:
    sae = SAE(2 * D, F, 2 * D, gate="jumprelu", info=SAEInfo(name="two", model="tiny", declared_l0=3.0))
    for weight in sae.state_dict().values():
        weight.normal_(generator=torch.Generator().manual_seed(0))
    save_crosscoder(Crosscoder(sae, (SITE, Site(2, "res")), (D, D), (1.0, 2.0)), folder)


@_sample
def scope(folder: Path) -> None:
    places = [(site, 16, l0) for site in ("1.res", "2.res") for l0 in (4, 9)]
    made = [
        Made(path=place_of(Site.parse(site), width, l0), site=site, site_out=site, width=width, l0=l0)
        for site, width, l0 in places
    ]
    for one in made:
        gs.save_sae(_sae(), folder / "mine" / one.path)
    beside = folder / "mine" / made[0].path / "score.json"
    beside.write_text(json.dumps({"l0": 4.5, "fvu": 0.2, "dead": 0.0, "delta_loss": 0.1, "kl": 0.1}))
    text, failed = Text(name="texts", digest="0"), (Failed(site="3.res", reason="not finite"),)
    write_scope(
        ScopeManifest(
            model="tiny", revision=None, corpus=text, versions={}, recipe="x", saes=tuple(made), failed=failed
        ),
        folder / "mine",
    )


@_sample
def sparsify_run(folder: Path) -> None:
    copied("sparsify/sae", folder / "run")
    (folder / "run" / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-160m", "ctx_len": 64}))


@_sample
def circuit_tracer_set(folder: Path) -> None:
    config = copied("circuit_tracer/set_relu", folder / "set") / "config.yaml"
    config.write_text(config.read_text() + "transcoders:\n- layer_0.safetensors\n- layer_1.safetensors\n")


@_sample
def clt(folder: Path) -> None:
    copied("circuit_tracer/clt", folder / "it")


@_sample
def gemma_scope_2_clt(folder: Path) -> None:
    copied("circuit_tracer/gemma_scope_2_clt", folder / "it")


# --- rows and runs --------------------------------------------------------------------------------------------------

IDENTITY = {"model": "tiny", "tokens": None, "batch": 2}
CONFIGS = {
    "run": TrainConfig(width=F, target_l0=2.0, rows=640, batch=64, checkpoint_every=5, log_every=1, matryoshka=(0.5,)),
    "run_gated": TrainConfig(width=F, target_l0=2.0, rows=640, batch=64, checkpoint_every=5, architecture="gated"),
    "run_batchtopk": TrainConfig(
        width=F, target_l0=2.0, rows=640, batch=64, checkpoint_every=5, architecture="batchtopk"
    ),
}


@cache
def rows() -> Given:
    x = strengths(512, F, 2.0, 0) @ directions(F, D, 1)
    return Given(x, x, (SITE,), (SITE,), ((D,), (D,)))


def activations(seed: int) -> list[Activations]:
    ids = torch.arange(64).reshape(2, 32)
    counted = torch.ones_like(ids, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    tokens = Tokens(ids, counted, counted)
    return [
        Activations(torch.randn(2, 32, D, generator=generator), counted, tokens, site, "tiny")
        for site in (SITE, Site(2, "res"))
    ]


def manifest(counts: Any) -> Manifest:
    return Manifest(
        format=FORMAT, model="tiny", revision=None, dtype="float32", sites=counts, read=256, length=32, corpus="made up",
        corpus_digest="0", versions={"gemscope": "0"},
    )  # fmt: skip


@_sample
def store(folder: Path) -> None:
    with Writer(folder / "acts") as writer:
        for seed in range(4):
            with writer.piece(seed) as shards:
                shards.add(*activations(seed))
        writer.finish(manifest({}), pieces=4)


@_sample
def harvest(folder: Path) -> None:
    with Writer(folder / "acts", IDENTITY) as writer:
        for seed in range(2):
            with writer.piece(seed) as shards:
                shards.add(*activations(seed))


def _run(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        lesson = Lesson(rows(), {"": CONFIGS[name]}, folder / "run", None, ())
        for number, _ in enumerate(lesson.steps(silent)):
            if number == 6:
                break

    make.__name__ = name
    return make


for _name in CONFIGS:
    _sample(_run(_name))


@_sample
def report(folder: Path) -> None:
    with Writer(folder / "held") as writer:
        for seed in range(2):
            with writer.piece(seed) as shards:
                shards.add(activations(seed)[0])
        held = writer.finish(manifest({}), pieces=2)
    train(rows(), CONFIGS["run"], to=folder / "run", held_out=held)
    for path in sorted((folder / "held").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (folder / "held").rmdir()


@_sample
def recipe(folder: Path) -> None:
    said = TrainConfig(matryoshka=(0.25, 0.5)).to_dict()
    lines = [f"{name} = {json.dumps(value)}" for name, value in said.items()]
    (folder / "recipe.toml").write_text("\n".join(["[train]", *lines]) + "\n")


# --- text -----------------------------------------------------------------------------------------------------------

TEXTS = ["The river runs to the sea.", "A second text, with a coin in it.", "Ein Satz über Größe.", "and one more"]


@_sample
def corpus(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"text": text, "source": f"s{number % 2}", "license": "CC0"} for number, text in enumerate(TEXTS)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / "a.txt").write_text(TEXTS[0], encoding="utf-8")
    (folder / "b.jsonl").write_bytes(lines)
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(lines))
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    pq.write_table(pa.table(columns), folder / "d.parquet")


@_sample
def labelled(folder: Path) -> None:
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([("text", "label"), *((text, number % 2) for number, text in enumerate(TEXTS))])
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(TEXTS)]
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


# --- atlases --------------------------------------------------------------------------------------------------------

PLAN = {
    "features": 8,
    "rows": 6,
    "length": 32,
    "top": 4,
    "each": 1,
    "vocabulary": 60,
    "bins": 10,
    "logits": 5,
    "relatives": 3,
}


@_sample
def atlas(folder: Path) -> None:
    planted_atlas(folder / "a.atlas", **PLAN).close()


MANIFEST = Planted(**PLAN).manifest()


@_sample
def asking(folder: Path) -> None:
    """A journal, stopped on the way."""
    with journal_of(folder / "a", MANIFEST) as journal:
        journal.begin(Plan(features=[0, 1, 2], model="m", selection="wanting, all", again=True))
        journal.add(
            Asked(feature=0, model="m", made="2026-05-31", text="of", rule='"of"', dropped="odd", tokens=(9, 2))
        )
        journal.add(Asked(feature=1, model="m", made="2026-05-31", failed="status 500", said="oops"))
        journal.judge(Judged(feature=0, model="m", words="of", said="0110", tokens=(9, 2)))
        journal.wrote(1)


@cache
def described() -> tuple[gs.LanguageModel, SAE]:
    model = tiny_model("llama", layers=2)
    sae = planted_sae(32, 24, tokens=4, site="1.res").sae
    sae.threshold.fill_(0.5)
    return model, sae


DESCRIBE = gs.DescribeConfig(length=16, before=6, after=4, batch=4)


@_sample
def describing(folder: Path) -> None:
    """Stopped on the way."""
    model, sae = described()
    texts = gs.Corpus.of([f"{text} {number}" for number in range(6) for text in TEXTS])
    with contextlib.suppress(Awaited):
        gs.describe(model, sae, texts, to=folder / "a.atlas", config=DESCRIBE, piece=400, world=World(0, 2))


@_sample
def merging(folder: Path) -> None:
    model, sae = described()
    for number in range(2):
        texts = gs.Corpus.of([f"{text} {number}" for text in TEXTS])
        gs.describe(model, sae, texts, to=folder / f"{number}.atlas", config=DESCRIBE).close()


def _exported(format: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        planted_atlas(folder / "a.atlas", **PLAN).close()
        gs.export(folder / "a.atlas", folder / format, format=format)
        for path in (folder / "a.atlas").iterdir():
            path.unlink()
        (folder / "a.atlas").rmdir()

    make.__name__ = format
    return make


_sample(_exported("neuronpedia"))
_sample(_exported("anthropic"))


@_sample
def packed(folder: Path) -> None:
    """Anthropic's JSON, a file a layer."""
    _exported("anthropic")(folder)
    chunks = []
    for index in range(PLAN["features"]):
        one = folder / "anthropic" / f"{index}.json"
        zipped = gzip.compress(one.read_bytes())
        chunks.append(struct.pack("<I", len(zipped)) + zipped)
    for one in (folder / "anthropic").iterdir():
        one.unlink()
    (folder / "anthropic" / "layer_1.bin").write_bytes(b"".join(chunks))
    index = {"1": {"filename": "layer_1.bin", "offsets": np.cumsum([0, *map(len, chunks)]).tolist()}}
    (folder / "anthropic" / "index.json.gz").write_bytes(gzip.compress(json.dumps(index).encode()))


@_sample
def dashboard(folder: Path) -> None:
    """SAEDashboard's own output."""

    def feature(index: int) -> dict[str, Any]:
        shown = {
            "tokens": [" a", " b"],
            "values": [0, 5],
            "bin_min": -1,
            "bin_max": 8,
            "bin_contains": -1,
            "qualifying_token_index": 1,
        }
        figures = {
            "maxActApprox": 8.0,
            "frac_nonzero": 0.01,
            "pos_str": [" yes"],
            "pos_values": [1.5],
            "neg_str": ["no"],
            "neg_values": [-1],
        }
        figures |= {
            "topkCosSimIndices": [2],
            "topkCosSimValues": [0.4],
            "freq_hist_data_bar_heights": [6, 4],
            "freq_hist_data_bar_values": [1.0, 3.0],
        }
        figures |= {"logits_hist_data_bar_heights": [1, 4], "logits_hist_data_bar_values": [-1.0, 0.0]}
        return {
            "feature_index": index,
            "activations": [shown],
            **figures,
            "n_prompts_total": 10,
            "n_tokens_in_prompt": 100,
        }

    about = {"model_id": "gpt2-small", "layer": 8, "sae_set": "res-ours", "sae_id_suffix": None}
    for number, indices in ((0, (0, 1)), (1, (4,))):
        (folder / f"batch-{number}.json").write_text(
            json.dumps(about | {"features": [feature(index) for index in indices]})
        )
    (folder / "skipped_indexes.json").write_text(json.dumps({"skipped_indexes": [2]}))
    (folder / "run_settings.json").write_text(json.dumps({"dataset": "some text", "n_prompts_total": 10}))


@_sample
def examples(folder: Path) -> None:
    """Gemma Scope 2's."""
    chance = np.random.default_rng(0)
    n, each, count, length = 12, 6, 9, 16
    tensors = {
        "top_tokens": torch.from_numpy(chance.integers(0, 99, (n, 3))).int(),
        "top_logits": torch.rand(n, 3),
        "bottom_tokens": torch.from_numpy(chance.integers(0, 99, (n, 3))).int(),
        "bottom_logits": -torch.rand(n, 3),
        "activations": torch.from_numpy(chance.gamma(2, 5, (n, each)).astype(np.float32)),
        "seq_ids": torch.from_numpy(chance.integers(0, count, (n, each))).int(),
        "positions": torch.from_numpy(chance.integers(1, length, (n, each))).int(),
        "feature_frequencies": torch.full((n,), 0.02),
        "tokens": torch.from_numpy(chance.integers(0, 99, (count, length))).int(),
    }
    from safetensors.torch import save_file

    save_file(tensors, folder / "examples.safetensors")


# --- models ---------------------------------------------------------------------------------------------------------


@_sample
def model(folder: Path) -> None:
    made = tiny_model("llama", layers=2)
    made.hf.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)


def gguf(folder: Path) -> None:
    written(folder / "tiny.gguf", bos=True)


if find_spec("gguf") and find_spec("accelerate"):  # both are extras
    _sample(gguf)


# --- requests -------------------------------------------------------------------------------------------------------

_FEATURE = {"modelId": "tiny", "layer": "1-res", "index": 3}
REQUESTS: dict[str, dict[str, Any]] = {
    "Trial": {"text": "the river"},
    "Label": {"text": "rivers", "author": "somebody"},
    "Forget": {"id": 3},
    "Browse": {"order": "max", "descending": True, "dead": False, "min_density": 0.1, "text": "a", "limit": 10},
    "Search": {"kind": "token", "text": "river", "token": 3},
    "Prompt": {"text": "the river", "chat": True, "pin": 3, "k": 5},
    "Steering": {"feature": [3, 4], "strength": ["2max", 0.5], "factor": [1], "prompt": "a", "seed": 16, "run": True},
    "Cause": {"text": "the river", "position": -1, "target": " runs", "k": 12},
    "ActivationNew": {"feature": _FEATURE | {"source": "1-res"}, "customText": ["a", "b"], "ignoreBos": True},
    "ActivationSource": {"modelId": "tiny", "source": "1-res", "customText": "a"},
    "SearchAll": {"modelId": "tiny", "sourceSet": "res", "text": "a", "selectedLayers": ["1-res"], "sortIndexes": [1]},
    "TopByToken": {"modelId": "tiny", "source": "1-res", "text": "a", "numResults": 3, "densityThreshold": 0.1},
    "ExplanationSearch": {"modelId": "tiny", "layers": ["1-res"], "query": "river"},
    "Steer": {"prompt": "a", "modelId": "tiny", "features": [_FEATURE | {"strength": 4.5}], "temperature": 0.5},
}
"""By the class of `gemscope.app.requests`."""


@_sample
def request(folder: Path) -> None:
    for name, said in REQUESTS.items():
        (folder / f"{name}.json").write_text(json.dumps(said))


@_sample
def settings(folder: Path) -> None:
    """What `train --set` may be given."""
    said = TrainConfig(matryoshka=(0.25, 0.5)).to_dict()
    lines = [f"{name} = {json.dumps(value)}" for name, value in said.items()]
    (folder / "settings.toml").write_text("\n".join(lines) + "\n")


@_sample
def effect(folder: Path) -> None:
    values = torch.linspace(-1, 1, 2 * D * D).view(2, D, D)
    of = Measured(
        model="tiny-llama", revision=None, site=str(SITE), dtype="float32", corpus="texts", corpus_digest="d", length=12,
        halves=(22, 21), dropped={"padding": 0, "first": 4},
    )  # fmt: skip
    Effect(of=of, this=values, later=values.flip(0)).save(folder / "effect.safetensors")


MEASURING = {"site": str(SITE), "length": 12, "batch": 2}
"""Settings of an effect that is not measured to its end."""


@_sample
def measuring(folder: Path) -> None:
    values = torch.linspace(-1, 1, D * D, dtype=torch.float64).view(D, D)
    sums = Sums()
    sums.add(2, [Jacobian(values, -values, 11, {"padding": 0, "first": 1}) for _ in range(2)])
    with begun(folder / "effect", MEASURING) as kept:
        kept.save(sums)


READING = {"tokens": 60, "saes": ["a"]}
"""Settings of a reading that was stopped."""


@_sample
def outputs(folder: Path) -> None:
    figures = {"score": 0.3, "rank": 2.0, "probability": 0.31, "mass": 0.4, "unedited": 0.01, "control": 0.02}
    told = Outcome(ids=(3, 4), tokens=("c", "d"), **figures)
    with planted_atlas(folder / "a.atlas", **PLAN) as made:
        made.keep_outputs(
            OutputScore(
                feature=feature,
                ids=(5,),
                tokens=("e",),
                strength=Strength(2.0, 1.0, None),
                prompts=("I think",),
                measured=told if feature else None,
                examples=told,
                **figures,
            )
            for feature in (0, 2)
        )
    (folder / "a.atlas" / "outputs.safetensors").rename(folder / "outputs.safetensors")
    shutil.rmtree(folder / "a.atlas")


@_sample
def relatives(folder: Path) -> None:
    chain(folder / "chain", features=20)
    (folder / "chain" / "1.res" / "relatives.safetensors").rename(folder / "relatives.safetensors")
    shutil.rmtree(folder / "chain")


@_sample
def firings(folder: Path) -> None:
    sizes, ids = np.array([2, 0, 3], np.int64), np.array([1, 7, 0, 7, 39], np.uint16)
    piece = {
        "sizes.0": sizes,
        "ids.0": ids,
        "values.0": np.linspace(1, 2, 5, dtype=np.float32),
        "scales.0": np.zeros(0, np.float32),
        "dropped": np.array([0, 1, 0, 0]),
    }
    with keeping(folder / "kept", READING) as kept:
        kept.add(piece)
        kept.add(piece)
