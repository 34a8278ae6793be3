"""gemscope's side of `describe.py`, in a process of its own: a model shaped like GPT-2, an SAE and text that both tools
read, made once from a seed; and one measured `describe`. Also what `describe` on the bundled default spends where.

What is random is made so that features behave: tokens follow Zipf's law, features fire at rates that fall as his law
says, and L0 is what was asked for.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import measure
import numpy as np
import torch
from torch import nn

import gemscope as gs
from gemscope.activations.model import LanguageModel
from gemscope.atlas.describe.gather import DescribeConfig
from gemscope.atlas.describe.run import describe
from gemscope.features.sae import SAE, SAEInfo
from gemscope.text.corpus import Corpus

_RECIPE = 2
"""Raise it when anything below changes what is made."""
_DOCUMENT = 700
"""Words of a document."""
_CALIBRATION = 8192
"""Tokens from which thresholds are taken."""
_BOS = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class World:
    """What both tools are given: sizes of a model, an SAE behind one of its blocks, and a text."""

    layers: int = 12
    d_model: int = 768
    vocabulary: int = 50257
    layer: int = 5
    d_sae: int = 24_576
    l0: float = 64.0
    length: int = 128
    """Tokens of a row."""
    seed: int = 0


def world_at(world: World, tokens: int, cache: Path) -> Path:
    """The folder with the model's weights, the SAE, and at least as many tokens; made where it is not there."""
    sizes = "-".join(f"{key}-{value:g}" for key, value in asdict(world).items())
    folder = cache / f"describe-{sizes}-recipe-{_RECIPE}"
    if not (folder / "world.json").exists():
        measure.progress(f"making {folder.name}")
        folder.mkdir(parents=True, exist_ok=True)
        (cache / ".gitignore").write_text("*\n")
        _make_model(world, folder)
        _make_sae(world, folder)
        (folder / "world.json").write_text(json.dumps(asdict(world)))
    rows = folder / f"rows-{tokens}.npy"
    if not rows.exists():  # what gemscope packs is what the peer is given
        model, corpus = load_model(world, folder), text(world, tokens)
        packed = np.concatenate([one.ids.numpy() for one in model.rows(corpus, length=world.length, batch=32)])
        np.save(rows, packed[: tokens // world.length].astype(np.int64))
    return folder


def text(world: World, tokens: int) -> Corpus:
    """Documents of words by Zipf's law, a little more than as many tokens."""
    draw = np.random.default_rng((world.seed, 1))
    weights = 1 / np.arange(2, 2 + world.vocabulary - 1)
    count = tokens * 5 // 4 // _DOCUMENT + 2
    ids = draw.choice(world.vocabulary - 1, (count, _DOCUMENT), p=weights / weights.sum())
    return Corpus.of(" ".join(f"w{id_}" for id_ in row) for row in ids.tolist())


def load_model(world: World, folder: Path | None = None) -> LanguageModel:
    """GPT-2 with random weights, or those in the folder; its tokens are words w0, w1 and so on, and BOS."""
    import transformers
    from safetensors.torch import load_file
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    config = transformers.GPT2Config(
        vocab_size=world.vocabulary,
        n_embd=world.d_model,
        n_layer=world.layers,
        n_head=max(1, world.d_model // 64),
        n_positions=1024,
        bos_token_id=world.vocabulary - 1,
        eos_token_id=world.vocabulary - 1,
    )
    torch.manual_seed(world.seed)
    hf = transformers.GPT2LMHeadModel(config).requires_grad_(False)
    if folder is None:
        # As initialised every block would add next to nothing to the stream.
        for module in hf.transformer.h.modules():
            if type(module).__name__ == "Conv1D":
                nn.init.normal_(module.weight, std=1.5 * module.weight.shape[0] ** -0.5)
    else:
        hf.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        hf.tie_weights()
    words = {f"w{id_}": id_ for id_ in range(world.vocabulary - 1)} | {_BOS: world.vocabulary - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=_BOS))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A", special_tokens=[(_BOS, world.vocabulary - 1)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=_BOS, eos_token=_BOS, unk_token=_BOS, clean_up_tokenization_spaces=False
    )
    return LanguageModel(hf, fast, name="random-gpt2")


def _make_model(world: World, folder: Path) -> None:
    from safetensors.torch import save_file

    state = load_model(world).hf.state_dict()
    save_file(
        {name: part.contiguous() for name, part in state.items() if name != "lm_head.weight"},
        folder / "model.safetensors",
    )


@torch.no_grad()
def _make_sae(world: World, folder: Path) -> None:
    """Random unit directions, thresholds where the rates are met: those fall by Zipf's law, most of them below 1 %."""
    model = load_model(world, folder)
    site = f"{world.layer}.res"
    draw = torch.Generator().manual_seed(world.seed + 2)
    seen: list[torch.Tensor] = []
    for rows in model.rows(text(world, 4 * _CALIBRATION), length=world.length, batch=32):
        seen.append(model.capture(rows, [site])[site].rows)
        if sum(map(len, seen)) >= _CALIBRATION:
            break
    x = torch.cat(seen)[:_CALIBRATION]
    sae = SAE(world.d_model, world.d_sae, site=site, info=SAEInfo(name="random", model="gpt2"))
    directions = torch.randn(world.d_sae, world.d_model, generator=draw)
    directions /= directions.norm(dim=1, keepdim=True)
    sae.W_dec.copy_(directions)
    sae.W_enc.copy_(directions.T)
    sae.b_dec.copy_(x.mean(0))
    sae.b_enc.copy_(-directions @ x.mean(0))
    rates = 1 / (torch.arange(world.d_sae) + 30.0)
    rates = (rates * (world.l0 / rates.sum())).clamp(max=0.3)[torch.randperm(world.d_sae, generator=draw)]
    assert sae.threshold is not None
    for start in range(0, world.d_sae, 1024):
        some = slice(start, start + 1024)
        z = (x @ sae.W_enc[:, some] + sae.b_enc[some]).sort(dim=0, descending=True).values
        at = (rates[some] * len(x)).long().clamp(min=1)[None]
        # Half way to the next one down, so that rounding decides about few.
        sae.threshold[some] = ((z.gather(0, at - 1) + z.gather(0, at)) / 2)[0].clamp(min=1e-3)
    gs.save_sae(sae, folder / "sae")


# --- measured -------------------------------------------------------------------------------------------------------


def one_pass(folder: str, tokens: str) -> dict[str, Any]:
    """A whole `describe` of the world in the folder: time, memory above what was loaded, and what came out."""
    place, size = Path(folder), int(tokens)
    world = World(**json.loads((place / "world.json").read_text()))
    model, sae, corpus = load_model(world, place), gs.load_sae(place / "sae"), text(world, size)
    config = DescribeConfig(length=world.length, batch=32, effect=0)
    with tempfile.TemporaryDirectory() as out:
        before = measure.resident_mb()
        watch = _Watch()
        spent: dict[str, float] = {}

        def work() -> None:
            with _timing(model.hf, "forward", spent, "forward"):
                describe(model, sae, corpus, to=Path(out) / "atlas", tokens=size, config=config).close()

        peak = measure.peak_mb(work) if measure.can_weigh() else work()
        found = watch.read() | spent | {"before_mb": before, "peak_mb": None if peak is None else peak - before}
        bytes_ = sum(path.stat().st_size for path in (Path(out) / "atlas").rglob("*") if path.is_file())
        with gs.Atlas(Path(out) / "atlas") as atlas:
            summaries = atlas.summaries(limit=len(atlas))
            read = atlas.manifest.rows * world.length
        return found | {
            "tokens": read,
            "features": sae.d_sae,
            "atlas_mb": bytes_ / 1e6,
            "counts": [one.count for one in summaries],
            "max": [one.max for one in summaries],
            "threads": torch.get_num_threads(),
        }


def bundled(tokens: str) -> dict[str, Any]:
    """`describe` of the bundled default, and of all the time it took: the model's own passes, and everything else."""
    from gemscope.atlas.describe import run

    model, sae = gs.load_model(), gs.load_sae("smollm2")
    size = None if tokens == "all" else int(tokens)
    spent: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as out, _timing(model.hf, "forward", spent, "forward"):
        with _timing(SAE, "encode", spent, "encode"), _timing(run, "compose", spent, "compose"):
            watch = _Watch()
            without = DescribeConfig(effect=0)  # the pass itself, as others have it
            describe(model, sae, Corpus.sample(), to=Path(out) / "atlas", tokens=size, config=without).close()
            found = watch.read()
        with gs.Atlas(Path(out) / "atlas") as atlas:
            read = atlas.manifest.rows * atlas.manifest.length
            found |= {"tokens": read, "counted": atlas.manifest.tokens, "features": sae.d_sae}
    # The same rows to the model's last layer and its logits, as somebody runs it who has no SAE.
    whole = 0.0
    done = 0
    for rows in model.rows(Corpus.sample(), length=256, batch=16):
        if size is not None and done >= min(size, 16_384):
            break
        start = time.perf_counter()
        model.logits(rows)
        whole += time.perf_counter() - start
        done += rows.ids.numel()
    found |= spent | {"whole_forward": whole * read / done, "threads": torch.get_num_threads()}
    return found | {"statistics": found["wall"] - found["forward"]}


class _Watch:
    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {"wall": time.perf_counter() - self.wall, "cpu": time.process_time() - self.cpu}


@contextmanager
def _timing(owner: Any, name: str, spent: dict[str, float], key: str) -> Iterator[None]:
    """While the block runs, the wall time of every call of an attribute is added up."""
    own = name in vars(owner)
    before: Callable[..., Any] = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return before(*args, **kwargs)
        finally:  # a pass that stops at its last site ends with an exception
            spent[key] = spent.get(key, 0.0) + time.perf_counter() - start

    setattr(owner, name, timed)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def held_out(tokens: str, rounds: str) -> dict[str, Any]:
    """The bundled default with rows held out and without, in turns: what `describe` pays for them."""
    model, sae = gs.load_model(), gs.load_sae("smollm2")
    configs = {"with": DescribeConfig(effect=0), "without": DescribeConfig(effect=0, pool=0)}
    spent: dict[str, list[float]] = {name: [] for name in configs}
    for number in range(int(rounds)):
        for name in sorted(configs, reverse=bool(number % 2)):
            with tempfile.TemporaryDirectory() as out:
                watch = _Watch()
                describe(
                    model, sae, Corpus.sample(), to=Path(out) / "atlas", tokens=int(tokens), config=configs[name]
                ).close()
                spent[name].append(watch.read()["cpu"])
    ratios = [one / other for one, other in zip(spent["with"], spent["without"], strict=True)]
    return {"tokens": int(tokens), **spent, "ratio": median(ratios)}


if __name__ == "__main__":
    if os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    print(json.dumps({"one_pass": one_pass, "bundled": bundled, "held_out": held_out}[sys.argv[1]](*sys.argv[2:])))
