"""SAEs of served scopes that have a score and no atlas: the grid shows them, and nothing leads from there."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from gemscope.activations.site import Site
from gemscope.app.shelf import Source
from gemscope.errors import FileError, NotFound
from gemscope.features.scope_manifest import ATLAS, SCORE, read_scope
from gemscope.features.scored import figures_of
from gemscope.reports.grid import Placed


def unread(folders: Iterable[Path], sources: Iterable[Source]) -> dict[str, list[Placed]]:
    """By the model's name in addresses, those of the scopes that these folders are. What cannot be read is left out."""
    called = {source.manifest.model: source.manifest.model_id for source in sources}
    found: dict[str, list[Placed]] = {}
    for folder in folders:
        with suppress(FileError, NotFound):
            scope = read_scope(folder)
            for one in scope.saes if scope.model in called else ():
                place = folder / one.path
                if not (place / ATLAS).exists() and (place / SCORE).exists():
                    site, site_out = Site.parse(one.site), Site.parse(one.site_out)
                    with suppress(FileError, NotFound):
                        scored = figures_of(place / SCORE)
                        placed = Placed.of(site, one.width, one.path, site_out=site_out, scored=scored)
                        found.setdefault(called[scope.model], []).append(placed)
    return found
