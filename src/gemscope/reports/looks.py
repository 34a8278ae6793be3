"""One prompt read at many sites in one pass: tokens × layers, in each the features that say most."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site
from gemscope.atlas.meaning import Given, meanings
from gemscope.errors import InputError
from gemscope.features.fit import require_fit
from gemscope.features.sae import SAE
from gemscope.features.stack import Stack
from gemscope.pages.labels import STANDS, short_label
from gemscope.pages.numbers import figure
from gemscope.pages.plain import Paged, known
from gemscope.pages.signs import code
from gemscope.pages.tables import Cell, Row, Table
from gemscope.reports.look import Look, Order, Token, row_of, seen
from gemscope.text.chat import OneText
from gemscope.text.printable import visible

if TYPE_CHECKING:
    from rich.console import RenderableType

_ABREAST = 12
"""Sites side by side in a terminal."""


@dataclass(frozen=True, kw_only=True)
class Looks(Paged):
    """What `look_through` saw. `str` gives tables, a notebook shows tokens by layers in colours, `to_dict` gives what
    `--json` prints.
    """

    width = 160

    looks: tuple[Look, ...]
    """One a site, as they lie in the model."""

    def __iter__(self) -> Iterator[Look]:
        return iter(self.looks)

    def __len__(self) -> int:
        return len(self.looks)

    def __getitem__(self, site: Site | str) -> Look:
        """What was seen at a site. Raises InputError."""
        wanted = str(site)
        for one in self.looks:
            if wanted in (one.site, one.site.partition(" ")[0]):
                return one
        raise InputError(f"nothing was read at {wanted}: there are {', '.join(one.site for one in self.looks)}")

    @property
    def tokens(self) -> tuple[Token, ...]:
        """Those of the text; their features are the first site's."""
        return self.looks[0].tokens

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "model": self.looks[0].model,
            "tokens": [
                {"token": one.token, "position": one.position, "counted": one.counted} for one in self.looks[0].tokens
            ],
            "sites": [{**one.to_dict(), "fvu": known(1 - one.explained_variance)} for one in self.looks],
        }

    def to_html(self) -> str:
        """One HTML file with tokens × layers; nothing in it is fetched."""
        from gemscope.pages.layers import layers_document

        return layers_document(self)

    # --- how it shows itself ----------------------------------------------------------------------------------

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = [
            Text(f"{self.looks[0].model} at {len(self.looks)} sites, in one pass", style="bold"),
            Text(),
            self.by_site(),
        ]
        for start in range(0, len(self.looks), _ABREAST):
            some = self.looks[start : start + _ABREAST]
            parts += [Text(), Text("The first feature of each token", style="bold"), self._features(some)]
        return Group(*parts)

    def by_site(self) -> Table:
        """A line for each site: how much is left unexplained, and what stands out there."""
        heads = ("site", "L0", "FVU", "most telling", "on", STANDS)
        rows = []
        for one in self.looks:
            first = one.foremost[0] if one.foremost else None
            token = "" if first is None else visible(one.tokens[first.position].token)
            said = Cell("") if first is None else short_label(first.label)
            feature = "" if first is None else str(first.feature)
            rows.append((one.site, figure(one.l0), figure(1 - one.explained_variance), feature, token, said))
        return Table(heads, rows, left=(heads[0], *heads[4:]), wraps=heads[5:])

    def at(self, position: int) -> Table:
        """One token through all sites: a line for each of its features. Raises InputError."""
        if not -len(self.tokens) <= position < len(self.tokens):
            raise InputError(f"no token {position}: the text has {len(self.tokens)}, counted from 0")
        heads = ("site", "feature", "activation", "× max", STANDS)
        rows = []
        for one in self.looks:
            for nth, each in enumerate(one.tokens[position].features):
                share = "" if each.share is None else f"{each.share:.2f}"
                site = one.site if nth == 0 else ""
                rows.append((site, str(each.feature), f"{each.activation:.1f}", share, short_label(each.label)))
        return Table(heads, rows, left=(heads[0], heads[4]), wraps=heads[4:])

    def _features(self, looks: tuple[Look, ...]) -> Table:
        heads = ("token", *(one.site for one in looks))
        rows = []
        for position, token in enumerate(self.tokens):
            name = Cell(visible(token.token), "bold" if token.counted else "", code(token.token))
            here = [one.tokens[position] for one in looks]
            cells = [str(one.features[0].feature) if one.counted and one.features else "" for one in here]
            rows.append(Row((name, *cells), quiet=not token.counted))
        return Table(heads, rows, left=heads[:1])


def look_through(
    model: LanguageModel,
    saes: Stack | Mapping[Site, SAE] | Iterable[SAE],
    text: OneText,
    *,
    k: int = 3,
    every_token: bool = False,
    atlases: Mapping[Site, Given] | None = None,
    order: Order | None = None,
    max_density: float = 1.0,
    foremost: int = 10,
    check: Callable[[], None] = lambda: None,
) -> Looks:
    """Reads one text, or one chat, through several SAEs in one pass of the model: `look` at each of their sites.

    `saes` may be a mapping that loads an SAE when it is asked for: one at a time is held, and each is asked for twice,
    for where it reads and to read (a `Stack` keeps what it has opened). `atlases` tell by site what features stand for
    (where there is none, the bundled one where it is of that SAE). `check` is called between SAEs, and
    may raise to end it.

    Raises what `look` raises; InputError for no SAEs.
    """
    if k < 1:
        raise InputError(f"k={k}: at least one feature per token must be asked for")
    tokens = row_of(model, text, every_token=every_token)
    given: Any = saes if isinstance(saes, Mapping | Stack) else dict(enumerate(saes))
    places: list[tuple[Site, Site]] = []
    for key in given:
        sae = given[key]
        site = require_fit(model, sae)
        places.append((site, sae.site_out or site))
        del sae
        check()
    if not places:
        raise InputError("no SAEs given: a look through wants at least one")
    captured = model.capture(tokens, [site for pair in places for site in pair], every_token=every_token)
    found: list[tuple[Site, Look]] = []
    for key, (site, _) in zip(given, places, strict=True):
        check()
        sae = given[key]
        with meanings(sae, (atlases or {}).get(site)) as known_of:
            by: Order = (order or "telling") if known_of else "activation"
            density = max_density if known_of else 1.0
            one = seen(model, sae, captured, known_of, k=k, order=by, max_density=density, foremost=foremost)
        found.append((site, one))
        del sae
    return Looks(looks=tuple(look for _, look in sorted(found, key=lambda pair: pair[0])))
