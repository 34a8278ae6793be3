"""Work that may be killed. A line of JSON on stdin begins a job in a process of its own, whose number is told on stdout;
another asks how it ended. What the jobs work on is made once, and each is a fork, so that it begins at once.

    {"job": "export site", "to": "FOLDER", "said": "FILE"}      as `gemscope` would do it, exit code and all
    {"job": ..., "share": "1/3"}                as one of several workers, who open no socket
    {"job": ..., "kill": 9, "longest": 1000}    with a signal to itself when the first thing is about to get its name
                                                ("after": 7, the eighth); with no file longer than so many bytes
    {"wait": NUMBER}
"""

from __future__ import annotations

import argparse
import functools
import gc
import io
import itertools
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import scopes
from atlases import planted_atlas
from foreign import ADDRESS, examples_file
from gemscope.activations import bundled
from gemscope.activations import writer as writers
from gemscope.activations.harvest import harvest
from gemscope.activations.model import LanguageModel
from gemscope.atlas.describe.gather import DescribeConfig
from gemscope.atlas.describe.merge import merge
from gemscope.atlas.describe.run import describe
from gemscope.atlas.exchange.verbs import export, import_atlas
from gemscope.cli import main as shell
from gemscope.features.files import npz
from gemscope.features.files.saving import save_sae
from gemscope.features.sae import SAE
from gemscope.reports.scoring import score
from gemscope.testing import planted_sae, tiny_model
from gemscope.text.corpus import Corpus
from gemscope.training.config import TrainConfig
from gemscope.training.train import train
from gemscope.world import World
from lessons import planted, store_of
from tiny_weights import source_of, tiny_gguf

Job = Callable[[Path], object]


def jobs(made: Path) -> dict[str, Job]:
    """What there is to do, on what is made in a folder first."""
    model, sae = tiny_model("llama"), planted_sae(site="1.res", seed=3).sae
    texts = [f"the {n} and the {n + 1} sang, thinking of rivers and hours " * (1 + n % 5) for n in range(30)]
    corpus, halves = Corpus.of(texts), (Corpus.of(texts[:5]), Corpus.of(texts[5:10]))
    store = store_of(planted(1500, d=12, features=20, active=2, seed=0)[0], made / "store")
    atlas = planted_atlas(made / "atlas")
    published = export(atlas, made / "published", format="neuronpedia")
    features = export(atlas, made / "features", format="anthropic")
    export(atlas, made / "warm.parquet", format="parquet")  # imports what it needs, once for all forks
    save_file(examples_file(), made / "examples.safetensors")
    np.savez_compressed(made / "packed.npz", W_enc=np.random.default_rng(0).normal(size=(64, 20_000)).astype("f4"))
    (made / "site" / "packaged_weights").mkdir(parents=True)
    weights = tiny_gguf(made / "site" / "packaged_weights" / "tiny.gguf")
    (made / "site" / "packaged_weights" / "__init__.py").write_text("")
    sys.path.insert(0, str(made / "site"))
    bundled.SMOLLM2 = source_of(weights)
    settings = TrainConfig(width=32, target_l0=4.0, rows=30 * 64, batch=64, checkpoint_every=4, log_every=3, keep=2)
    config = DescribeConfig(length=24, before=4, after=3, top=4, each=1, batch=4)
    pair = harvest(model, corpus, ["2.res", "0.mlp"], to=made / "pair", length=24)
    described = [describe(model, sae, text, to=made / f"part-{n}", config=config) for n, text in enumerate(halves)]
    return {
        "harvest": lambda to: harvest(
            model, corpus, ["2.res", "0.mlp"], to=to, length=24, batch=4, piece=600, world=World.here()
        ),
        "describe": lambda to: describe(model, sae, halves, to=to, config=config, piece=200, world=World.here()),
        "score": lambda to: scored(model, sae, corpus, to),
        "merge": lambda to: merge(described, to=to),
        "train": lambda to: train(store, settings, to=to),
        "train a crosscoder": lambda to: train(pair, settings, to=to, site=["0.mlp", "2.res"]),
        "scope": scopes.made,
        "large scope": lambda to: scopes.made(to, scopes.EIGHT),
        "import": lambda to: import_atlas("neuronpedia", published, to),
        "import anthropic": lambda to: import_atlas("anthropic", features, to),
        "import gemma-scope-2": lambda to: import_atlas(
            "gemma-scope-2", made / "examples.safetensors", to, sae=ADDRESS
        ),
        "export html": lambda to: export(atlas, to, format="html"),
        "export neuronpedia": lambda to: export(atlas, to, format="neuronpedia"),
        "export neuronpedia-upload": lambda to: export(atlas, to, format="neuronpedia-upload"),
        "export site": lambda to: export(atlas, to, format="site"),
        "export anthropic": lambda to: export(atlas, to, format="anthropic"),
        "export parquet": lambda to: export(atlas, to, format="parquet"),
        "export csv": lambda to: export(atlas, to, format="csv"),
        "convert": bundled.smollm2_folder,
        "unpack": lambda to: npz.read_npz(made / "packed.npz", to),
        "save": lambda to: save_sae(sae, to),
    }


def scored(model: LanguageModel, sae: SAE, corpus: Corpus, to: Path) -> None:
    """With the pieces where those of the other jobs are, and the figures in a file."""
    options: dict[str, Any] = {"loss_tokens": 300, "length": 24, "batch": 4, "piece": 400}
    found = score(model, sae, corpus, pieces=to.with_name("out.partial"), world=World.here(), **options)
    to.mkdir(exist_ok=True)
    (to / "score.json").write_text(json.dumps(found.to_dict()))


def main() -> None:
    torch.set_num_threads(1)  # processes with several do not fork
    work = jobs(Path(sys.argv[1]))
    writers._SHARD = 12_000
    save = writers.save_file

    def slow(tensors: dict[str, Tensor], path: Path) -> None:
        save(tensors, path)
        time.sleep(0.005)

    writers.save_file = slow
    gc.freeze()  # what is made by now is nobody's garbage, and would be copied for each fork to be looked at
    _tell("ready")
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            _tell(os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1]))
            continue
        child = os.fork()
        if child == 0:
            _do(work[asked["job"]], asked)
        _tell(child)


def _tell(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def _do(job: Job, asked: dict[str, Any]) -> None:
    """Does it as a command of the shell, and never returns."""

    def run(args: argparse.Namespace) -> int:
        job(Path(asked["to"]))
        return 0

    parser, code = argparse.ArgumentParser(), 99
    parser.set_defaults(run=run)
    shell.parser = lambda: parser
    opened: list[str] = []
    if asked["share"] is not None:
        os.environ["GEMSCOPE_SHARE"] = asked["share"]
        sys.addaudithook(lambda event, given: opened.append(event) if event.startswith("socket.") else None)
    if asked["kill"] is not None:
        for name in ("replace", "rename"):
            setattr(
                os, name, functools.partial(_killed, getattr(os, name), asked["kill"], itertools.count(-asked["after"]))
            )
    if asked["longest"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (asked["longest"], resource.RLIM_INFINITY))
    sys.stdout = sys.stderr = said = io.StringIO()
    try:
        code = shell.main([])
        if opened:
            said.write(f"opened: {opened}")
            code = 97
    except BaseException:
        traceback.print_exc()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        Path(asked["said"]).write_text(said.getvalue())
        os._exit(code)


def _killed(real: Callable[..., None], kill: int, named: Iterator[int], *given: Any) -> None:
    if next(named) >= 0:
        os.kill(os.getpid(), kill)
    real(*given)


if __name__ == "__main__":
    main()
