"""What a scope is to hold, as a recipe says it: which sites, widths and L0s, how the SAEs are trained, and what is made
of them afterwards.

    [[saes]]
    sites = ["*.res", "*.mlp", "*.att"]
    widths = [2048, 4096]
    l0s = [30, 60]

    [[saes]]
    sites = ["*.transcoder"]          # each writes the MLP's output of its layer
    widths = [2048]
    l0s = [30]
    train = { skip = true }           # for these alone

    [train]                           # what TrainConfig has
    rows = 2_000_000

    [text]                            # how the corpus is read, and how much of it is kept apart for the scores
    [score]                           # of every SAE
    [describe]                        # an atlas of every SAE; none where this table is left out
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from gemscope.activations import site as places
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import KINDS, Site
from gemscope.atlas.describe.gather import DescribeConfig
from gemscope.checked import Count, Positive, bytes_of, declared, shown, toml_of, values_of
from gemscope.errors import CorruptFile, InputError, SiteNotFound
from gemscope.training.config import TrainConfig

Above0 = Annotated[float, Meta(gt=0, le=1e9)]
_LARGE = 1 << 20
_TRANSCODERS = ("transcoder", "transcoder_nogain")


@dataclass(frozen=True, kw_only=True)
class Part:
    """SAEs of some sites: one for each width and L0."""

    sites: Annotated[tuple[str, ...], Meta(min_length=1)]
    """Names or patterns: `3.res`, `*.res`, `1?.mlp`, `embed`."""
    widths: Annotated[tuple[Positive, ...], Meta(min_length=1)]
    l0s: Annotated[tuple[Above0, ...], Meta(min_length=1)]
    """Targets."""
    train: Mapping[str, Any] = field(default_factory=dict)
    """Settings in the place of [train]'s."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the corpus is read."""

    tokens: Positive | None = None
    """How many are read to train on (None: all of the corpus). Rows beyond that are the same ones again."""
    length: Positive = 256
    """Tokens per row of text."""
    batch: Positive = 32
    """Rows per pass of the model."""
    held_out: Annotated[float, Meta(gt=0, lt=1)] = 0.02
    """Share of the documents that nothing is trained on: scores are of these."""
    stored: Literal["float16", "bfloat16", "float32"] = "float16"
    """Number format that activations are kept in until they have been trained on."""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What every SAE is measured on."""

    tokens: Count = 50_000
    """Of held-out text; 0: nothing is scored."""
    loss_tokens: Count = 10_000
    """Those that the model reads again with the SAE's output in place: three times for each SAE."""


@dataclass(frozen=True, kw_only=True)
class Describing:
    """An atlas of every SAE."""

    tokens: Positive = 200_000
    """Of the text that is trained on."""
    map: bool = False
    """Whether its features are placed on a map, which takes 40 seconds for 8,192 of them."""
    config: DescribeConfig = field(default_factory=DescribeConfig)


@dataclass(frozen=True)
class Aim:
    """One SAE that is to be made."""

    site: Site
    site_out: Site
    config: TrainConfig

    @property
    def key(self) -> str:
        """Tells it from all others of a scope, as a name of a folder: `5.res-2048-50`."""
        return f"{self.site}-{self.config.width}-{self.config.target_l0:g}"

    @property
    def sites(self) -> tuple[Site, ...]:
        """Whose rows it is trained on."""
        return tuple(dict.fromkeys((self.site, self.site_out)))

    @property
    def reading(self) -> tuple[object, ...]:
        """Those for which this is the same are trained from one reading of their rows."""
        return (*self.sites, *(getattr(self.config, name) for name in ("rows", "batch", "seed", "centre")))

    def __str__(self) -> str:
        return f"{self.site}, {self.config.width:,} features, L0 {self.config.target_l0:g}"


@dataclass(frozen=True, kw_only=True)
class ScopeRecipe:
    """A recipe. `text` is what it was read from, which the scope's manifest keeps."""

    saes: tuple[Part, ...]
    train: Mapping[str, Any] = field(default_factory=dict)
    reading: Reading = Reading()
    scoring: Scoring = Scoring()
    describing: Describing | None = None
    text: str = ""

    @classmethod
    def read(cls, path: str | Path) -> ScopeRecipe:
        """From a TOML file. Raises NotFound, AccessError, CorruptFile, InputError."""
        path = Path(path)
        data = bytes_of(path, most=_LARGE)
        try:
            text = data.decode()
        except UnicodeError as error:
            raise CorruptFile(f"{shown(path)} is not TOML: it is not text in UTF-8") from error
        return cls.of(text, where=shown(path))

    @classmethod
    def of(cls, text: str, *, where: str = "the recipe") -> ScopeRecipe:
        """From TOML. Raises CorruptFile for what is none, InputError for a name without meaning, with the nearest known
        one, and for a value of another kind.
        """
        table = toml_of(text, dict[str, Any], where=where)
        _require_known(table, ("saes", "train", "text", "score", "describe"), where)
        parts = _declared(table.get("saes", []), list[dict[str, Any]], where=f'{where}, "saes"')
        if not parts:
            raise InputError(f"{where} has no [[saes]]: expected at least one table with sites, widths and l0s")
        for part in parts:
            _require_known(part, [one.name for one in fields(Part)], f"{where}, [[saes]]")
        described = _table(table, "describe", where)
        return cls(
            saes=tuple(_declared(part, Part, where=f"{where}, [[saes]]") for part in parts),
            train=_table(table, "train", where) or {},
            reading=_of(Reading, _table(table, "text", where) or {}, f"{where}, [text]"),
            scoring=_of(Scoring, _table(table, "score", where) or {}, f"{where}, [score]"),
            describing=None if described is None else _describing(described, f"{where}, [describe]"),
            text=text,
        )

    def aims(self, model: LanguageModel) -> tuple[Aim, ...]:
        """Every SAE that is to be made, by the depth of its site. Raises SiteNotFound for a pattern that is no site's
        of this model, InputError for settings that do not go together and for an SAE that is asked for twice.
        """
        there = sites_of(model)
        found: dict[str, Aim] = {}
        for part in self.saes:
            for site in _matching(part.sites, there, model):
                for width in part.widths:
                    for l0 in part.l0s:
                        settings = {**self.train, **part.train, "width": width, "target_l0": l0}
                        aim = Aim(site, _written(site), TrainConfig.of(settings, where="[train]"))
                        if aim.key in found:
                            raise InputError(f"the recipe asks twice for {aim}: name it once")
                        found[aim.key] = aim
        return tuple(sorted(found.values(), key=lambda one: (one.site, one.config.width, one.config.target_l0)))


def sites_of(model: LanguageModel) -> tuple[Site, ...]:
    """Every site that the model has, by depth."""
    layers = range(places.n_layers(model.hf))
    named = [Site(None, "embed"), *(Site(layer, kind) for layer in layers for kind in KINDS if kind != "embed")]
    return tuple(sorted(site for site in named if _has(model, site)))


def _has(model: LanguageModel, site: Site) -> bool:
    try:
        places.locate(model.hf, site)
    except SiteNotFound:
        return False
    return True


def _matching(patterns: tuple[str, ...], there: tuple[Site, ...], model: LanguageModel) -> list[Site]:
    found: dict[Site, None] = {}
    for pattern in patterns:
        fitting = [site for site in there if fnmatchcase(str(site), pattern)]
        if not fitting:
            kinds = ", ".join(dict.fromkeys(site.kind if site.layer is None else f"*.{site.kind}" for site in there))
            raise SiteNotFound(f"no site of {model.name} is called {pattern}: there are {kinds}")
        found |= dict.fromkeys(fitting)
    return list(found)


def _written(site: Site) -> Site:
    """What an SAE that reads there explains: a transcoder what the MLP makes of it, all others the same."""
    return Site(site.layer, "mlp") if site.kind in _TRANSCODERS else site


def _describing(table: dict[str, Any], where: str) -> Describing:
    own, config = ("tokens", "map"), [one.name for one in fields(DescribeConfig)]
    _require_known(table, [*own, *config], where)
    settings = {name: value for name, value in table.items() if name in config}
    values = values_of(Describing, {name: table[name] for name in own if name in table}, where=where)
    return Describing(**values, config=DescribeConfig(**values_of(DescribeConfig, settings, where=where)))


def _of(kind: Any, table: dict[str, Any], where: str) -> Any:
    _require_known(table, [one.name for one in fields(kind)], where)
    return kind(**values_of(kind, table, where=where))


def _table(recipe: dict[str, Any], name: str, where: str) -> dict[str, Any] | None:
    return None if name not in recipe else _declared(recipe[name], dict[str, Any], where=f'{where}, "{name}"')


def _declared(value: object, kind: Any, *, where: str) -> Any:
    try:
        return declared(value, kind, where=where)
    except CorruptFile as error:
        raise InputError(str(error)) from error


def _require_known(table: Mapping[str, Any], known: Any, where: str) -> None:
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
            raise InputError(f"{where} has no meaning for {shown(name, 60)!r}: {hint}")
