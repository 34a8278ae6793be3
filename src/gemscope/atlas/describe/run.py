"""One pass over text, and every feature's page comes out: statistics and examples from the pass, the rest from weights.

`passing.py` goes through the text that `reading.py` brings, `gather.py` keeps running statistics, `unfinished.py` keeps
them on disk, `compose.py` makes the atlas of them and of `weights.py`. Memory is that of the result: it does not grow
with the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, overload

import numpy as np

from gemscope.activations.harvest import versions
from gemscope.activations.model import LanguageModel
from gemscope.activations.store import Store
from gemscope.atlas.describe.compose import compose
from gemscope.atlas.describe.gather import DescribeConfig
from gemscope.atlas.describe.passing import Pass, named
from gemscope.atlas.describe.unfinished import Unfinished
from gemscope.atlas.describe.weights import FromModel, address_of
from gemscope.atlas.reader import Atlas
from gemscope.errors import InputError
from gemscope.features.fit import require_fit
from gemscope.features.sae import SAE
from gemscope.progress import Progress, silent
from gemscope.text.corpus import Corpus

Array = np.ndarray[Any, np.dtype[Any]]


@overload
def describe(
    model: LanguageModel,
    sae: SAE,
    corpus: Corpus | Store | Sequence[Corpus | Store],
    *,
    to: str | Path,
    tokens: int | None = None,
    config: DescribeConfig | None = None,
    progress: Progress = silent,
) -> Atlas: ...


@overload
def describe(
    model: LanguageModel,
    sae: Sequence[SAE],
    corpus: Corpus | Store | Sequence[Corpus | Store],
    *,
    to: str | Path,
    tokens: int | None = None,
    config: DescribeConfig | None = None,
    progress: Progress = silent,
) -> list[Atlas]: ...


def describe(
    model: LanguageModel,
    sae: SAE | Sequence[SAE],
    corpus: Corpus | Store | Sequence[Corpus | Store],
    *,
    to: str | Path,
    tokens: int | None = None,
    config: DescribeConfig | None = None,
    progress: Progress = silent,
) -> Atlas | list[Atlas]:
    """Reads text through a model and one SAE, or several in one pass, and writes an atlas for each.

    Several corpora are packed each by itself, so that atlases of each of them, merged, equal the atlas of all. A store
    stands for the text it was harvested from: the model is not run. `tokens` stops after about as many (None: all).
    `to` is the atlas's folder, which must not exist; with several SAEs it is the folder of their atlases.

    A pass that was stopped, however it was stopped, goes on where it was when called again with the same arguments, and
    its result is byte for byte that of a pass never stopped. Returns the Atlas, or a list of them.

    Raises Mismatch where model and SAE do not fit, InputError for settings that do not go together or differ from those
    of an unfinished pass, AccessError while another process makes the same atlas, StorageFull, FileError, CorruptFile.
    """
    config = config or DescribeConfig()
    saes = [sae] if isinstance(sae, SAE) else list(sae)
    if not saes:
        raise InputError("no SAEs given: name at least one")
    to = Path(to)
    places = [to] if isinstance(sae, SAE) else _places(to, saes)
    if tokens is not None and tokens < 1:
        raise InputError(f"tokens={tokens}: at least 1 is needed, or None for all of the text")
    if not to.with_name(to.name + ".partial").exists():
        _refuse_existing(to, places)
    sources: list[Corpus | Store] = [corpus] if isinstance(corpus, Corpus | Store) else list(corpus)
    if not sources:
        raise InputError("no text given: name at least one corpus")
    for one in saes:
        require_fit(model, one)
    unfinished = Unfinished(to, _settings(model, saes, sources, tokens, config))
    try:
        if not unfinished.begun:
            _refuse_existing(to, places)
        passing = Pass(model, saes, sources, unfinished, config)
        passing.run(tokens, progress)
        atlases = []
        for index, place in enumerate(places):
            if place.exists():  # finished before it was stopped
                atlases.append(Atlas(place))
                continue
            weights = FromModel(model, saes[index], config)
            atlases.append(compose(weights, passing.described(index), to=place, config=config, progress=progress))
        unfinished.discard()
    finally:
        unfinished.close()
    return atlases[0] if isinstance(sae, SAE) else atlases


def _refuse_existing(to: Path, places: Sequence[Path]) -> None:
    if any(place.exists() for place in places):
        raise InputError(f"{to} exists: an atlas is never written over; name another folder or remove it")


def _places(to: Path, saes: Sequence[SAE]) -> list[Path]:
    """A folder for each SAE."""
    names = [address_of("", sae)[1] for sae in saes]
    if len(set(names)) < len(names):
        names = [f"{name}__{sae.digest[:6]}" for name, sae in zip(names, saes, strict=True)]
    if len(set(names)) < len(names):
        raise InputError("the same SAE was given twice: name each once")
    return [to / name for name in names]


def _settings(
    model: LanguageModel, saes: Sequence[SAE], sources: Sequence[Corpus | Store], tokens: int | None, config: object
) -> dict[str, Any]:
    """All that the result depends on."""
    return {
        "model": [model.name, model.revision],
        "dtype": str(model.dtype).removeprefix("torch."),
        "sae": [[sae.digest, str(sae.site)] for sae in saes],
        "corpus": [named(source) for source in sources],
        "tokens": tokens,
        "options": asdict(config),  # type: ignore[call-overload]
        "versions": versions(),
    }
