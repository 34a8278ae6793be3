"""What the imitated Hub publishes: a tiny Gemma 2 with the files of the real one, and tiny SAEs in each layout that
real ones are published in. Everything is random from fixed seeds; nothing here knows the Hub, torch or transformers.
"""

import functools
import io
import json
from collections.abc import Mapping

import numpy as np
import safetensors.numpy
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from hub_server import Repo

D_MODEL, LAYERS, HEADS, KV_HEADS, HEAD_DIM, D_MLP, VOCAB = 64, 4, 4, 2, 8, 96, 640
D_SAE = 256  # in place of the 16,384 that "16k" in a path stands for

GEMMA = "google/gemma-2-2b"
GEMMA_SCOPE = "google/gemma-scope-2b-pt-res"
GEMMA_SCOPE_2 = "google/gemma-scope-2-270m-pt"
SAELENS = "a-lab/saes-of-gemma-2-2b"

TEXT = """Would you be able to travel through time using a wormhole? Nobody has seen one. The equations of gravity
allow a tunnel between two places, and perhaps between two times, but they also say that it closes before anything
can pass through it. A traveller who wants to go back and meet herself would have to keep the tunnel open, and for
this she would need a kind of matter that pushes where all other matter pulls.
Dear reader, the morning was cold and the lake was still. Two children walked along the shore with a dog, and the dog
found a stick, and they threw it far out over the water. "It will not come back," said the younger one; but it did.
def area(width, height):
    return width * height  # in square metres: 3 * 4 == 12
In 1996 there were 17 of them, in 2024 there are 350. The price rose from $2.50 to $8.75, which is 250 % more."""


def published() -> dict[str, Repo]:
    """A gated Gemma 2 and four layers' worth of SAEs, under the names of the real ones."""
    return {
        GEMMA: Repo(gemma_2(), gated=True),
        GEMMA_SCOPE: Repo(gemma_scope()),
        GEMMA_SCOPE_2: Repo(gemma_scope_2()),
        SAELENS: Repo(saelens()),
    }


@functools.cache
def gemma_2() -> dict[str, bytes]:
    """A Gemma2ForCausalLM whose sizes all differ (residual 64, heads together 32, MLP 96), with gains far from one, so
    that a wrong tensor shows. Config and tokenizer are written as the published model's are, which transformers 4 and
    5 both read."""
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    config = ids | {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "hidden_size": D_MODEL,
        "intermediate_size": D_MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "query_pre_attn_scalar": HEAD_DIM,
        "vocab_size": VOCAB,
        "max_position_embeddings": 256,
        "sliding_window": 32,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "cache_implementation": "hybrid",
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "torch_dtype": "float32",
        "transformers_version": "4.42.4",
        "use_cache": True,
    }
    tokenizer = gemma_tokenizer()
    tokenizer_config = special | {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for token in special.values()
        },
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1000000000000000019884624838656,
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
    }
    return {
        "README.md": b"---\nlicense: gemma\nlibrary_name: transformers\n---\n# A tiny random Gemma 2\n",
        "config.json": _json(config),
        "generation_config.json": _json(ids | {"_from_model_config": True, "transformers_version": "4.42.4"}),
        "model.safetensors": safetensors.numpy.save(_gemma_2_weights(), metadata={"format": "pt"}),
        "special_tokens_map.json": _json(special),
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": _json(tokenizer_config),
    }


def gemma_tokenizer() -> Tokenizer:
    """Byte-pair encoding learned from `TEXT`, with Gemma's rules: blanks are `▁`, unknown characters fall back to
    bytes, and `<bos>` comes first."""
    normalizer = normalizers.Replace(" ", "▁")
    trained = Tokenizer(models.BPE())
    trained.normalizer, trained.pre_tokenizer = normalizer, pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    fixed = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    room = VOCAB - len(fixed)
    trained.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=room, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].get)
    assert len(pieces) == room, "the text is too short to learn so many pieces from"

    vocab = {piece: index for index, piece in enumerate([*fixed, *pieces])}
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def _gemma_2_weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(2)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (random.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    def gain() -> np.ndarray:  # Gemma multiplies by 1 + this
        return (0.5 * random.standard_normal(D_MODEL)).astype(np.float32)

    weights = {"model.embed_tokens.weight": matrix(VOCAB, D_MODEL), "model.norm.weight": gain()}
    for layer in (f"model.layers.{index}" for index in range(LAYERS)):
        for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            weights[f"{layer}.{norm}_layernorm.weight"] = gain()
        weights[f"{layer}.self_attn.q_proj.weight"] = matrix(HEADS * HEAD_DIM, D_MODEL)
        weights[f"{layer}.self_attn.k_proj.weight"] = matrix(KV_HEADS * HEAD_DIM, D_MODEL)
        weights[f"{layer}.self_attn.v_proj.weight"] = matrix(KV_HEADS * HEAD_DIM, D_MODEL)
        weights[f"{layer}.self_attn.o_proj.weight"] = matrix(D_MODEL, HEADS * HEAD_DIM)
        weights[f"{layer}.mlp.gate_proj.weight"] = matrix(D_MLP, D_MODEL)
        weights[f"{layer}.mlp.up_proj.weight"] = matrix(D_MLP, D_MODEL)
        weights[f"{layer}.mlp.down_proj.weight"] = matrix(D_MODEL, D_MLP)
    return weights


def sae_params(seed: int, d_in: int = D_MODEL, d_sae: int = D_SAE) -> dict[str, np.ndarray]:
    """A JumpReLU SAE's five arrays under the names Gemma Scope gives them: unit decoder rows, positive thresholds."""
    random = np.random.default_rng(seed)
    decoder = random.standard_normal((d_sae, d_in))
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    params = {
        "W_enc": decoder.T,
        "W_dec": decoder,
        "b_enc": -random.random(d_sae),
        "b_dec": 0.1 * random.standard_normal(d_in),
        "threshold": 1 + random.random(d_sae),
    }
    return {name: np.ascontiguousarray(array, np.float32) for name, array in params.items()}


def npz(arrays: Mapping[str, np.ndarray], *, compressed: bool) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


@functools.cache
def gemma_scope() -> dict[str, bytes]:
    """Gemma Scope 1, residual stream: `layer_N/width_16k/average_l0_M/params.npz`. Layer 2 has three L0s (71 is its
    canonical one) and is stored compressed, the others raw; layer 20, which the tutorial reads, is there to be
    downloaded, though this Gemma has four layers."""
    places = {1: (71,), 2: (24, 71, 132), 20: (71,)}
    files = {"README.md": b"---\nlicense: cc-by-4.0\nlibrary_name: saelens\n---\n# Tiny random SAEs\n"}
    for layer, l0s in places.items():
        for l0 in l0s:
            params = sae_params(seed=1000 * layer + l0)
            files[f"layer_{layer}/width_16k/average_l0_{l0}/params.npz"] = npz(params, compressed=layer == 2)
    return files


@functools.cache
def gemma_scope_2() -> dict[str, bytes]:
    """Gemma Scope 2: `params.safetensors` beside a `config.json`, names in lower case. A residual SAE, and a transcoder
    with an affine skip."""
    res, out = "model.layers.5.output", "model.layers.2.post_feedforward_layernorm.output"
    normed = "model.layers.2.pre_feedforward_layernorm.output"
    return {
        **_gemma_scope_2_leaf("resid_post/layer_5_width_16k_l0_medium", "sae", res, res, l0=50, affine=False),
        **_gemma_scope_2_leaf(
            "transcoder_all/layer_2_width_16k_l0_small_affine", "transcoder", normed, out, l0=10, affine=True
        ),
    }


def _gemma_scope_2_leaf(path: str, kind: str, read: str, write: str, *, l0: int, affine: bool) -> dict[str, bytes]:
    config = {
        "hf_hook_point_in": read,
        "hf_hook_point_out": write,
        "width": D_SAE,
        "model_name": "google/gemma-3-270m",
        "architecture": "jump_relu",
        "l0": l0,
        "affine_connection": affine,
        "type": kind,
    }
    arrays = {name.replace("W_", "w_"): array for name, array in sae_params(seed=len(path)).items()}
    if affine:
        skip = np.random.default_rng(l0).standard_normal((D_MODEL, D_MODEL)) / np.sqrt(D_MODEL)
        arrays["affine_skip_connection"] = skip.astype(np.float32)
    return {f"{path}/config.json": _json(config), f"{path}/params.safetensors": safetensors.numpy.save(arrays)}


@functools.cache
def saelens() -> dict[str, bytes]:
    """An SAELens 6 folder, as its upload makes it."""
    site = "blocks.2.hook_resid_post"
    config = {
        "d_in": D_MODEL,
        "d_sae": D_SAE,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.54.12",
            "sae_lens_training_version": None,
            "model_name": "gemma-2-2b",
            "hook_name": site,
            "hook_head_index": None,
            "prepend_bos": True,
            "context_size": 128,
            "l0": 33.5,
        },
        "architecture": "jumprelu",
    }
    sparsity = np.log10(np.linspace(1e-5, 0.3, D_SAE, dtype=np.float32))
    return {
        f"{site}/cfg.json": _json(config),
        f"{site}/sae_weights.safetensors": safetensors.numpy.save(sae_params(seed=6)),
        f"{site}/sparsity.safetensors": safetensors.numpy.save({"sparsity": sparsity}),
    }


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2).encode()
