"""One pass over text, and every feature's page comes out: statistics and examples from the pass, the rest from weights.

`passing.py` goes through the text that `reading.py` brings, a piece at a time (`activations/work.py`), `gather.py`
keeps running statistics, `compose.py` makes the atlas of them and of `weights.py`. Memory is that of the result: it
does not grow with the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, overload

from gemscope.activations.harvest import versions
from gemscope.activations.model import LanguageModel
from gemscope.activations.place import Here
from gemscope.activations.store import Store
from gemscope.activations.work import Work, device_kind
from gemscope.atlas.describe.compose import compose
from gemscope.atlas.describe.gather import DescribeConfig
from gemscope.atlas.describe.passing import Pass, named
from gemscope.atlas.describe.weights import FromModel, address_of
from gemscope.atlas.reader import Atlas
from gemscope.checked import as_read
from gemscope.errors import AccessError, Awaited, GemscopeError, InputError, SiteNotFound
from gemscope.features.effect import Effect
from gemscope.features.effect import effect as measure
from gemscope.features.fit import require_fit, sites_of
from gemscope.features.sae import SAE
from gemscope.progress import Progress, silent
from gemscope.text.corpus import PIECE, Corpus
from gemscope.text.files import first_line
from gemscope.world import ALONE, World

_OWN = r"effect-[\w.]+"
"""What an unfinished atlas holds beside its pieces: the effect of a site, once it is measured."""


@overload
def describe(
    model: LanguageModel,
    sae: SAE,
    corpus: Corpus | Store | Sequence[Corpus | Store],
    *,
    to: str | Path,
    tokens: int | None = None,
    config: DescribeConfig | None = None,
    effect: Effect | None = None,
    map: bool = True,
    piece: int = PIECE,
    world: World = ALONE,
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
    effect: Effect | None = None,
    map: bool = True,
    piece: int = PIECE,
    world: World = ALONE,
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
    effect: Effect | None = None,
    map: bool = True,
    piece: int = PIECE,
    world: World = ALONE,
    progress: Progress = silent,
) -> Atlas | list[Atlas]:
    """Reads text through a model and one SAE, or several in one pass, and writes an atlas for each.

    Text is read in pieces, whole documents of at least `piece` bytes together, each packed by itself; so that atlases
    of several corpora, merged, equal the atlas of all. A store stands for the text it was harvested from: the model is
    not run. `tokens` stops after about as many (None: all). `to` is the atlas's folder, which must not exist; with
    several SAEs it is the folder of their atlases.

    Over the first rows of the first corpus (`config.effect` tokens) the effect of each site at which an SAE writes is
    measured; SAEs of one site share it. One that is given as `effect` stands for that of its site, and where it is
    given no other is measured. Of a store alone none is, nor of a site that has no gradient: the manifest says why.

    All features are placed on a `map` by their directions, where scikit-learn is installed (40 seconds for 8,192 of
    them, minutes for tens of thousands); `gemscope atlas map` does it later.

    A pass that was stopped, however it was stopped, goes on with the pieces that are missing when called again with the
    same arguments, and its result is byte for byte that of a pass never stopped. So it is for any number of workers: of
    a `world` of several each reads its share of the pieces, and whoever reads the last makes the atlas. Returns the
    Atlas, or a list of them.

    Raises Mismatch where model and SAE do not fit, the effect is of none of the sites, or an unfinished pass was made
    with other settings, InputError for settings that do not go together, Awaited where others still have pieces to
    read, AccessError while another process puts the same atlas together, StorageFull, FileError, CorruptFile.
    """
    config = config or DescribeConfig()
    saes = [sae] if isinstance(sae, SAE) else list(sae)
    if not saes:
        raise InputError("no SAEs given: name at least one")
    to = Path(to)
    places = [to] if isinstance(sae, SAE) else _places(to, saes)
    if tokens is not None and tokens < 1:
        raise InputError(f"tokens={tokens}: at least 1 is needed, or None for all of the text")
    sources: list[Corpus | Store] = [corpus] if isinstance(corpus, Corpus | Store) else list(corpus)
    if not sources:
        raise InputError("no text given: name at least one corpus")
    for one in saes:
        require_fit(model, one)
    if effect is not None:
        _require_use(effect, model, saes)
    settings = _settings(model, saes, sources, tokens, config=config, effect=effect, piece=piece)
    unfinished = Here(to).unfinished
    work = Work(Here(to), settings, what="atlas", own=_OWN, folder=unfinished)
    if not unfinished.path.exists():
        if world.size > 1 and all(place.exists() for place in places):
            made = [Atlas(place) for place in places]
            for atlas, one in zip(made, saes, strict=True):
                _require_made(atlas, model, one, sources, config)
            return made[0] if isinstance(sae, SAE) else made
        _refuse_existing(to, places)
    work.begin()
    if all(place.exists() for place in places):  # finished, and stopped behind the last word
        begun = bool(work.there())
        work.discard()
        if not begun:
            _refuse_existing(to, places)
        atlases = [Atlas(place) for place in places]
        return atlases[0] if isinstance(sae, SAE) else atlases
    try:
        passing = Pass(model, saes, sources, work, config)
        passing.run(tokens, piece, world, progress)
        work.require_all()
        gathered = passing.together()
        effects = _Effects(model, sources, unfinished.path, config, given=effect, progress=progress)
        atlases = []
        for index, place in enumerate(places):
            if place.exists():  # finished before it was stopped
                atlases.append(Atlas(place))
                continue
            weights = FromModel(model, saes[index], config, effects.of(saes[index]), map=map)
            atlases.append(compose(weights, gathered.described(index), to=place, config=config, progress=progress))
        work.discard()
    except (OSError, GemscopeError) as error:
        if not all(place.exists() for place in places):
            if world.size > 1 and isinstance(error, AccessError):
                raise Awaited(f"{error}; it is another worker that puts all pieces together", work.left) from error
            raise
        work.discard()
        atlases = [Atlas(place) for place in places]  # others have made them meanwhile
    finally:
        work.end()
    return atlases[0] if isinstance(sae, SAE) else atlases


def _require_made(
    atlas: Atlas, model: LanguageModel, sae: SAE, sources: Sequence[Corpus | Store], config: DescribeConfig
) -> None:
    """Raises InputError for an atlas of something else than other workers have made meanwhile."""
    manifest = atlas.manifest
    there = [manifest.model, manifest.revision, manifest.sae_digest, as_read(manifest.options)]
    digests = [named(source)[1] for source in sources]
    ours = [model.name, model.revision, sae.digest, as_read(asdict(config))]
    if there != ours or not {part.digest for part in manifest.parts} <= {*digests}:
        raise InputError(f"{atlas.folder} exists: an atlas is never written over; name another folder or remove it")


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


class _Effects:
    """Of the sites at which SAEs write: given, measured before this pass was stopped, or to be measured now."""

    def __init__(
        self,
        model: LanguageModel,
        sources: Sequence[Corpus | Store],
        folder: Path,
        config: DescribeConfig,
        *,
        given: Effect | None,
        progress: Progress,
    ) -> None:
        self._model, self._folder, self._config, self._given = model, folder, config, given
        self._corpus = next((one for one in sources if isinstance(one, Corpus)), None)
        self._progress = progress

    def of(self, sae: SAE) -> Effect | str:
        """Of its site; or why there is none."""
        _, writes = sites_of(sae)
        if self._given is not None:
            there = self._given.of.site
            return self._given if there == str(writes) else f"the effect that was given is that of {there}"
        if not self._config.effect:
            return "none was asked for"
        if self._corpus is None:
            return "the atlas was made of a harvest, and no text was read"
        path, tokens = self._folder / f"effect-{writes}", self._config.effect
        if path.exists():
            return Effect.load(path)
        try:
            return measure(self._model, writes, self._corpus, tokens=tokens, to=path, progress=self._progress)
        except (InputError, SiteNotFound) as error:  # of a site computed on the side, or of next to no text
            return " ".join(str(error).split())
        except RuntimeError as error:  # torch's: kernels without a gradient, memory that does not suffice
            # The pass over the text is done, and an atlas can be given an effect later.
            return f"the model gave no gradient: {first_line(error)}"


def _require_use(effect: Effect, model: LanguageModel, saes: Sequence[SAE]) -> None:
    """Raises Mismatch for an effect of another model, or of a site at which no SAE writes."""
    for sae in saes:
        if str(sites_of(sae)[1]) == effect.of.site:
            effect.require_of(model, sae)
            return
    effect.require_of(model, saes[0])


def _settings(
    model: LanguageModel,
    saes: Sequence[SAE],
    sources: Sequence[Corpus | Store],
    tokens: int | None,
    *,
    config: object,
    effect: Effect | None,
    piece: int,
) -> dict[str, Any]:
    """All that the result depends on."""
    return {
        "model": [model.name, model.revision],
        "dtype": str(model.dtype).removeprefix("torch."),
        "sae": [[sae.digest, str(sae.site)] for sae in saes],
        "corpus": [named(source) for source in sources],
        "tokens": tokens,
        "options": asdict(config),  # type: ignore[call-overload]
        "effect": None if effect is None else effect.digest,
        "piece": piece,
        "versions": versions(),
        "device": device_kind(model.device),
    }
