"""A scope: all SAEs of a model, by site, width and L0, each opened when it is asked for. What lies at an address is
`listing.py`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from gemscope.activations.site import KINDS, Site, described
from gemscope.checked import shown
from gemscope.errors import InputError, SAENotFound
from gemscope.features.sae import SAE
from gemscope.features.scope_manifest import ATLAS, SCORE, Failed, Manifest, width_label
from gemscope.features.scored import Figures, figures_of
from gemscope.features.stack import Stack

if TYPE_CHECKING:
    from rich.console import Group

CANONICAL_L0 = 100
"""Of several SAEs that differ in L0 alone, the one closest to this L0 is canonical, as in Gemma Scope."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One SAE of a scope, as its names and the lists tell it: nothing of it is opened."""

    site: Site
    site_out: Site
    """Where it writes: another place than `site` for transcoders alone."""
    width: int | None
    """Features; None where only the file itself would tell."""
    l0: float | None
    """Features active per token, as declared; None where only the file itself would tell."""
    address: str
    """What `load_sae` takes."""
    label: str = ""
    """How names write the width: 16k."""
    l0_label: str | None = None
    """small, medium or big (Gemma Scope 2)."""
    canonical: bool = False
    """Whether its publishers call it so."""
    revision: str | None = None
    """Of the repository, where the scope names one."""
    folder: Path | None = None
    """Of one that lies here in a folder of its own."""

    @property
    def score(self) -> Path | None:
        """Its `score.json`, where that has been made."""
        return self._beside(SCORE)

    @property
    def atlas(self) -> Path | None:
        """Its atlas, where that has been made."""
        return self._beside(ATLAS)

    @cached_property
    def figures(self) -> Figures | None:
        """What its `score.json` says first; None where there is none. Raises CorruptFile."""
        return None if self.score is None else figures_of(self.score)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only."""
        figures = self.figures
        return {
            "address": self.address,
            "site": str(self.site),
            "site_out": str(self.site_out),
            "width": self.width,
            "l0": self.l0,
            "score": None if figures is None else asdict(figures),
            "atlas": None if self.atlas is None else str(self.atlas),
        }

    def _beside(self, name: str) -> Path | None:
        path = None if self.folder is None else self.folder / name
        return path if path is not None and path.exists() else None

    def __str__(self) -> str:
        place, width = described(self.site, self.site_out), f", {self.label} wide" if self.label else ""
        return f"{place}{width}{'' if self.l0 is None else f', L0 {self.l0:g}'}: {self.address}"


Opener = Callable[[Member], SAE]


@dataclass(frozen=True, eq=False, repr=False)
class Scope(Sequence[Member]):
    """All SAEs of a model (`load_scope`), ordered by site, width and L0. It opens nothing until asked.

        scope["20.res"]                 those of a site, again a scope; so is scope["res"]
        scope["20.res", "16k"]          the canonical SAE: the one so called, else the one whose L0 is closest to 100
        scope["20.res", "16k", 71]      the SAE with that L0 (or "medium")
        for member in scope: ...        each SAE's site, width, L0 and address

    A width is a label or a number, or None where the scope does not know widths. Of several SAEs that all fit (other
    seeds, with a skip or without) the one with the shortest address is meant. A site, width or L0 that is not there is
    a SAENotFound that names those which are.
    """

    name: str
    """The address that it was listed by."""
    members: tuple[Member, ...]
    opener: Opener = field(repr=False)
    model: str | None = None
    """Hugging Face id, where all are of one model."""
    failed: tuple[Failed, ...] = ()
    """What was to be in it, or seems to be, and why it cannot be opened."""
    manifest: Manifest | None = None
    """Of a scope of one's own."""

    # --- one SAE ------------------------------------------------------------------------------------------------

    @overload
    def __getitem__(self, key: int) -> Member: ...
    @overload
    def __getitem__(self, key: slice | str | Site) -> Scope: ...
    @overload
    def __getitem__(
        self, key: tuple[Site | str, int | str | None] | tuple[Site | str, int | str | None, float | str]
    ) -> SAE: ...
    def __getitem__(self, key: Any) -> Member | Scope | SAE:
        match key:
            case int():
                return self.members[key]
            case slice():
                return replace(self, members=self.members[key])
            case str() | Site():
                return replace(self, members=tuple(self._at(key)))
            case (site, width):
                return self.open(self.find(site, width))
            case (site, width, l0):
                return self.open(self.find(site, width, l0))
        raise InputError(f"scope[{key!r}]: give a site, or a site and a width, or these and an L0")

    def find(self, site: Site | str, width: int | str | None = None, l0: float | str | None = None) -> Member:
        """The SAE of a site, a width and an L0; without an L0 the canonical one. Raises SAENotFound."""
        found = self._at(site)
        if width is not None:
            found = self._wide(found, width, str(site))
        elif len({one.width for one in found}) > 1:
            raise InputError(f"{site} has SAEs of several widths: name one of {', '.join(_widths(found))}")
        if l0 is None:
            return canonical(found)
        sparse = [one for one in found if _has(one, l0)]
        if not sparse:
            there = ", ".join(dict.fromkeys(_l0(one) for one in found))
            of = f"{site}, {found[0].label} wide," if found[0].label else f"{site}"
            raise SAENotFound(f"no SAE of {of} has an L0 of {l0}: there are {there}")
        return min(sparse, key=_plainest)

    def nearest(self, l0: float) -> Scope:
        """Of each site and width the SAE with the L0 closest to this."""
        return replace(self, members=tuple(_closest(group, l0) for group in self._groups()))

    def canonical(self) -> Scope:
        """Of each site and width the canonical SAE."""
        return replace(self, members=tuple(map(canonical, self._groups())))

    def wide(self, width: int | str) -> Scope:
        """The SAEs of one width. Raises SAENotFound."""
        return replace(self, members=tuple(self._wide(self.members, width, self.name)))

    def stack(self, kind: str | None = None, *, width: int | str | None = None, l0: float | str | None = None) -> Stack:
        """One SAE for each site of a kind (`res`; not needed where all are of one kind) and a width (likewise): the
        canonical ones, or those with the L0 closest to a number, or of a label such as "medium".

        Raises InputError where a kind or a width has to be named, SAENotFound.
        """
        found = list(self.members) if kind is None else self._at(kind)
        found = found if width is None else self._wide(found, width, self.name if kind is None else kind)
        if kind is None:  # the embedding is no layer's
            found = [one for one in found if one.site.layer is not None] or found
            if len(kinds := {one.site.kind for one in found}) > 1:
                named = ", ".join(name for name in KINDS if name in kinds)
                raise InputError(f"{self.name} has SAEs of several kinds of site: name one of {named}")
        if len(_widths(found)) > 1:
            raise InputError(f"{self.name} has SAEs of several widths: name one of {', '.join(_widths(found))}")
        chosen = {site: self._one(site, found, l0) for site in sorted({one.site for one in found})}
        places = {site: one.site_out for site, one in chosen.items()}
        return Stack(self.name, places, lambda site: self.open(chosen[site]), self.model)

    def _one(self, site: Site, members: Sequence[Member], l0: float | str | None) -> Member:
        here = [one for one in members if one.site == site]
        if l0 is None:
            return canonical(here)
        if not isinstance(l0, str):
            return _closest(here, l0)
        named = [one for one in here if one.l0_label == l0]
        if not named:
            raise SAENotFound(f"no SAE of {site} has an L0 called {l0}: there are {', '.join(map(_l0, here))}")
        return min(named, key=_plainest)

    def layer(self, number: int) -> Scope:
        """The SAEs of one layer, at whatever site. Raises SAENotFound."""
        found = tuple(one for one in self.members if one.site.layer == number)
        if not found:
            raise SAENotFound(f"no SAE of layer {number} in {self.name}: it has {self._places() or 'none at all'}")
        return replace(self, members=found)

    def open(self, member: Member) -> SAE:
        """The SAE of a member. Raises what `load_sae` raises."""
        return self.opener(member)

    # --- what there is ------------------------------------------------------------------------------------------

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where its SAEs read, in the model's order."""
        return tuple(sorted({one.site for one in self.members}))

    @property
    def widths(self) -> tuple[int, ...]:
        """Of its SAEs, narrow first; nothing for those whose width only their files tell."""
        return tuple(sorted({one.width for one in self.members if one.width is not None}))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of its sites."""
        return tuple(kind for kind in KINDS if any(site.kind == kind for site in self.sites))

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        saes = [one.to_dict() for one in self.members]
        return {"scope": self.name, "model": self.model, "saes": saes, "failed": list(map(asdict, self.failed))}

    def __repr__(self) -> str:
        of = f" of {self.model}" if self.model else ""
        sites, widths = _many(len(self.sites), "site"), ", ".join(_widths(self.members))
        return f"Scope({shown(self.name)}: {_many(len(self), 'SAE')}{of}, {sites}, widths {widths})"

    def __str__(self) -> str:
        """A table: a row a site, a column a width, in it the L0s, with FVU and delta loss where there are scores."""
        widths = sorted({one.width for one in self.members}, key=_size)
        label = {one.width: _named(one.width, one.label) for one in self.members}
        rows = [["site", *(label[width] for width in widths)]]
        for place in sorted({(one.site, one.site_out) for one in self.members}):
            here = [one for one in self.members if (one.site, one.site_out) == place]
            cells = [[one for one in here if one.width == width] for width in widths]
            rows.append([described(*place), *map(_told, cells)])
        wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, wide, strict=True)).rstrip() for row in rows]
        atlases = sum(one.atlas is not None for one in self.members)
        more = f", {atlases:,} with an atlas" if atlases else ""
        scored = any(one.score is not None for one in self.members)
        told = "L0s; * canonical" + ("; with FVU and delta loss" if scored else "")
        failed = [f"not there: {_failed(one)}" for one in self.failed]
        return "\n".join([f"{self!r}{more}", *lines, told, *failed])

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        return Group(Text(str(self), no_wrap=True, overflow="ignore"))  # a row is a line, however wide

    # --- by what is asked for -----------------------------------------------------------------------------------

    def _at(self, site: Site | str) -> list[Member]:
        if isinstance(site, str) and site in KINDS:
            found = [one for one in self.members if one.site.kind == site]
        else:
            place = Site.parse(site)
            found = [one for one in self.members if one.site == place]
        if not found:
            raise SAENotFound(f"no SAE of {site} in {self.name}: it has {self._places() or 'none at all'}")
        return found

    def _wide(self, found: Sequence[Member], width: int | str, where: str) -> list[Member]:
        wanted = str(width).lower()
        exact = [one for one in found if one.width is not None and wanted in _names(one)]
        if len(sizes := sorted({one.width or 0 for one in exact})) > 1:
            named = " or ".join(f"{size:,}" for size in sizes)
            raise InputError(f"{width!r} may be {named} features here: say the number")
        if not exact:
            raise SAENotFound(f"no SAE of {where} is {width} wide: the widths are {', '.join(_widths(found))}")
        return exact

    def _groups(self) -> Iterator[list[Member]]:
        """Those that differ in L0 alone."""
        groups: dict[tuple[Site, int | None], list[Member]] = {}
        for one in self.members:
            groups.setdefault((one.site, one.width), []).append(one)
        yield from groups.values()

    def _places(self) -> str:
        parts = []
        for kind in self.kinds:
            layers = [site.layer for site in self.sites if site.kind == kind and site.layer is not None]
            parts.append(f"{_ranges(layers)}.{kind}" if layers else kind)
        return ", ".join(parts)


def canonical(members: Sequence[Member]) -> Member:
    """Of SAEs that differ in L0 alone the one that its publishers call so, else the one closest to an L0 of 100."""
    named = [one for one in members if one.canonical]
    return named[0] if named else _closest(members, CANONICAL_L0)


def order(member: Member) -> tuple[Site, Site, int, float, str]:
    """What members are sorted by."""
    return member.site, member.site_out, member.width or 0, member.l0 or 0.0, member.address


def labelled(width: int | None, label: str | None = None) -> str:
    """How a width is written: as its publishers do, else by our own rule."""
    return label or ("" if width is None else width_label(width))


def _closest(members: Sequence[Member], l0: float) -> Member:
    def far(one: Member) -> tuple[float, float, int, str]:
        return abs((one.l0 or 0.0) - l0), one.l0 or 0.0, *_plainest(one)

    return min(members, key=far)


def _plainest(member: Member) -> tuple[int, str]:
    return len(member.address), member.address


def _names(member: Member) -> set[str]:
    """All that a width may be called: 65k for 65,536 as published, 64k by its power of two."""
    width = member.width or 0
    return {str(width), member.label, width_label(width), f"{width // 1000}k" if width >= 1000 else ""} - {""}


def _has(member: Member, l0: float | str) -> bool:
    """Whether this is its L0: 71 is also one of 71.03, as names of folders have it."""
    if l0 == member.l0_label:
        return True
    try:
        return member.l0 is not None and float(l0) in (member.l0, round(member.l0))
    except ValueError:
        return False


def _l0(member: Member) -> str:
    number = "?" if member.l0 is None else f"{member.l0:g}"
    return number if member.l0_label is None else f"{number} ({member.l0_label})"


def _told(members: Iterable[Member]) -> str:
    """Their L0s; of those that differ in something else (a seed, a skip) how many have one."""
    each = Counter(map(_cell, members))
    return " · ".join(text if count == 1 else f"{text} ×{count}" for text, count in each.items())


def _cell(member: Member) -> str:
    text = _l0(member) + "*" * member.canonical
    figures = member.figures
    if figures is None:
        return text
    fvu = "—" if figures.fvu is None else f"{figures.fvu:.3f}"
    return f"{text} [{fvu}{'' if figures.delta_loss is None else f', {figures.delta_loss:+.3f}'}]"


def _failed(one: Failed) -> str:
    width = "" if one.width is None else f", {width_label(one.width)} wide"
    l0 = "" if one.l0 is None else f", L0 {one.l0:g}"
    return shown(f"{one.site}{width}{l0}: {one.reason}")


def _widths(members: Iterable[Member]) -> list[str]:
    """By their names, narrow first."""
    known = sorted({(_size(one.width), _named(one.width, one.label)) for one in members})
    return [name for _, name in known]


def _size(width: int | None) -> int:
    return width or 0


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _named(width: int | None, label: str = "") -> str:
    return "width unknown" if width is None else labelled(width, label)


def _ranges(numbers: Iterable[int]) -> str:
    """0-25, or 5,12,19."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)
