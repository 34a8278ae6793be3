"""Harvests in processes that may be killed: for each folder on stdin, the process that harvests to it is told on
stdout, and on an empty line how it ended. The model is made once, so that a process begins at once."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from gemscope.activations import writer as writers
from gemscope.activations.harvest import harvest
from gemscope.testing import tiny_model
from gemscope.text.corpus import Corpus


def main() -> None:
    torch.set_num_threads(1)  # processes with several do not fork
    model = tiny_model("llama")
    corpus = Corpus.of(
        [f"the {n} and the {n + 1} sang, thinking of rivers and hours " * (1 + n % 5) for n in range(60)]
    )
    model.capture("warm", ["2.res"])
    writers._SHARD = 12_000
    save = writers.save_file

    def slow(tensors: dict[str, Tensor], path: Path) -> None:
        save(tensors, path)
        time.sleep(0.005)

    writers.save_file = slow
    for folder in sys.stdin:
        child = os.fork()
        if child == 0:
            harvest(model, corpus, ["2.res", "0.mlp"], to=folder.strip(), length=24, batch=4, together=True)
            os._exit(0)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        sys.stdin.readline()
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


main()
