"""What of a scope is done, as files beside it: whoever asks again, after a death or elsewhere, is told the same.

my-scope.partial/making.json                what is being made: another recipe, model or text is refused
my-scope.partial/rows/DIGEST/               activations of the sites of one pass, until their SAEs are there
my-scope.partial/runs/5.res-2048-50/        a run: checkpoints, log, and `figures.json` when it is over
my-scope.partial/placed/5.res.json          where the SAEs of a site are in the scope
my-scope.partial/failed/5.res-2048-50.json  why one cannot be made
my-scope.partial/atlases/DIGEST/            atlases on their way
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gemscope.activations.site import Site
from gemscope.checked import as_read, read_json
from gemscope.disk import claimed, written_aside
from gemscope.errors import Mismatch, NotFound
from gemscope.features.scope_manifest import Failed
from gemscope.scope.recipe import Aim

RUN_OVER = "figures.json"
"""What a run writes last."""


class Ledger:
    """The folder beside a scope that is being made."""

    def __init__(self, to: Path) -> None:
        self.to = to
        self.aside = to.with_name(to.name + ".partial")
        self.rows_folder, self.runs = self.aside / "rows", self.aside / "runs"

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Raises Mismatch where something else is being made there, AccessError, FileError, StorageFull."""
        path, wanted = self._making, as_read(dict(identity))
        with self.turn("making"):
            if not path.exists():
                with written_aside(path) as file:
                    file.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
                return
        found = read_json(path, dict[str, Any], remedy=f"remove {self.aside} to begin anew")
        if others := [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]:
            raise Mismatch(
                f"{self.aside} is a scope that was begun with another {', '.join(others)}: start it again with the "
                "same, name another folder, or remove it"
            )

    def end(self) -> None:
        """All is in the scope: first of all nothing is going on any more."""
        self._making.unlink(missing_ok=True)
        shutil.rmtree(self.aside, ignore_errors=True)

    @property
    def _making(self) -> Path:
        return self.aside / "making.json"

    def agreed(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """What the first worker said of something on which all must agree."""
        path = self.aside / f"{name}.json"
        with self.turn(name):
            if not path.exists():
                with written_aside(path) as file:
                    file.write_text(json.dumps(dict(values)) + "\n", encoding="utf-8")
        return read_json(path, dict[str, Any], remedy=f"remove {path}")

    # --- where things lie -----------------------------------------------------------------------------------------

    def rows(self, sites: Iterable[Site]) -> Path:
        """Activations at some sites."""
        return self.rows_folder / _digest(map(str, sites))

    def run(self, aim: Aim) -> Path:
        """Where it is trained."""
        return self.runs / aim.key

    def atlases(self, paths: Iterable[str]) -> Path:
        """Atlases of some SAEs, on their way."""
        return self.aside / "atlases" / _digest(paths)

    # --- what is done ---------------------------------------------------------------------------------------------

    def trained(self, aim: Aim) -> bool:
        """Whether its run is over and waits to be put in its place."""
        return (self.run(aim) / RUN_OVER).exists()

    def placed(self, site: Site) -> dict[str, str]:
        """By an aim's key, where its SAE is in the scope."""
        try:
            return read_json(self.aside / "placed" / f"{site}.json", dict[str, str])
        except NotFound:
            return {}

    def places(self, aims: Sequence[Aim]) -> dict[Aim, str]:
        """The same of those of some aims that are there, in their order."""
        placed = {site: self.placed(site) for site in {aim.site for aim in aims}}
        return {aim: placed[aim.site][aim.key] for aim in aims if aim.key in placed[aim.site]}

    def place(self, site: Site, places: Mapping[str, str]) -> None:
        """Says where the SAEs of a site are."""
        self._say("placed", str(site), dict(places))

    def failed(self, aim: Aim) -> Failed | None:
        """Why it cannot be made."""
        try:
            return read_json(self.aside / "failed" / f"{aim.key}.json", Failed)
        except NotFound:
            return None

    def fail(self, aim: Aim, error: BaseException) -> None:
        """Says why."""
        reason = " ".join(str(error).split()) or type(error).__name__
        said = {"site": str(aim.site), "width": aim.config.width, "l0": aim.config.target_l0, "reason": reason}
        self._say("failed", aim.key, said)

    def left(self, aims: Sequence[Aim]) -> list[Aim]:
        """Those that are neither in the scope nor known to fail."""
        places = {site: self.placed(site) for site in {aim.site for aim in aims}}
        left = [aim for aim in aims if aim.key not in places[aim.site] and self.failed(aim) is None]
        return left if self.going_on else []

    @property
    def going_on(self) -> bool:
        """Whether there is anything to do. What is asked before this and found not to be there may have been taken away
        by a worker who had found all done.
        """
        return self._making.exists()

    def refuse(self, sites: Iterable[Site]) -> None:
        """Says that rows of these sites cannot be had together."""
        self._say("refused", self.rows(sites).name, {"sites": list(map(str, sites))})

    def refused(self, sites: Iterable[Site]) -> bool:
        """Whether that was said."""
        return (self.aside / "refused" / f"{self.rows(sites).name}.json").exists()

    def _say(self, kind: str, name: str, what: Mapping[str, Any]) -> None:
        with self.turn(f"{kind}-{name}"), written_aside(self.aside / kind / f"{name}.json") as file:
            file.write_text(json.dumps(what, indent=1) + "\n", encoding="utf-8")

    # --- one at a time --------------------------------------------------------------------------------------------

    @property
    def locks(self) -> Path:
        """Where those who share the work say what they are at."""
        return self.aside / "locks"

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Waits until nobody else is at it."""
        with claimed(self.locks / name, wait=True):
            yield


def _digest(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
