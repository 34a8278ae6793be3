"""From runs that are over to SAEs in their places in a scope: SAELens's files, the card, what the run was worth and its
log, in a folder that is there as a whole or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from gemscope.activations.site import Site
from gemscope.disk import folder_aside, synced
from gemscope.errors import InputError
from gemscope.features.scope_manifest import place_of
from gemscope.reports.keeping import CARD
from gemscope.reports.training import TrainingReport, training_report
from gemscope.scope.ledger import Ledger
from gemscope.scope.recipe import Aim

RUN, LOG = "run.json", "log.jsonl"
"""What lies beside an SAE's files, and its card: its run's figures and settings, its log."""
MEASURING = "gemscope scope score SCOPE CORPUS --unlike OTHER"
"""What its card says of text unlike its own."""
_FINEST = 6


def place_site(ledger: Ledger, site: Site, aims: Sequence[Aim]) -> None:
    """Puts the SAEs of one site in their places, when all of them are trained or known to fail; else nothing is done.

    Killed in the middle it is done again: places hang on the runs alone.
    """
    there = ledger.placed(site)
    left = [aim for aim in aims if aim.key not in there and ledger.failed(aim) is None]
    if not left or not all(ledger.trained(aim) for aim in left):
        return
    with ledger.turn(f"placing-{site}"):
        reports = {aim: training_report(ledger.run(aim)) for aim in left if ledger.run(aim).exists()}
        if len(reports) < len(left):  # another worker has just done it
            return
        places = places_of({aim: report.figures["training"]["l0"] for aim, report in reports.items()}, there.values())
        for aim, place in places.items():
            if not (ledger.to / place).exists():
                _put(reports[aim], ledger.to / place)
        ledger.place(site, {**there, **{aim.key: place for aim, place in places.items()}})
        for aim in left:
            shutil.rmtree(ledger.run(aim), ignore_errors=True)


def places_of(l0s: Mapping[Aim, float], taken: Collection[str] = ()) -> dict[Aim, str]:
    """Folders within a scope, by the L0s that SAEs ended with: whole numbers, and of several that would have one name
    as many decimals as tell them apart. Raises InputError for two of the same L0.
    """
    found: dict[Aim, str] = {}
    for digits in range(_FINEST + 1):
        names = {aim: _named(aim, l0, digits) for aim, l0 in l0s.items() if aim not in found}
        every = [*names.values(), *found.values(), *taken]
        found |= {aim: name for aim, name in names.items() if every.count(name) == 1}
        if len(found) == len(l0s):
            return {aim: found[aim] for aim in l0s}
    both = next(aim for aim in l0s if aim not in found)
    raise InputError(f"two SAEs of {both.site} with {both.config.width:,} features have an L0 of {l0s[both]:g}")


def _named(aim: Aim, l0: float, digits: int) -> str:
    place = place_of(aim.site, aim.config.width, l0)
    return place if digits == 0 else f"{place.rpartition('_')[0]}_{l0:.{digits}f}"


def _put(report: TrainingReport, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with folder_aside(place) as aside:
        for path in sorted(report.sae.iterdir()):
            if path.name != CARD:
                shutil.copyfile(path, aside / path.name)
        shutil.copyfile(report.folder / "figures.json", aside / RUN)
        shutil.copyfile(report.folder / "log.jsonl", aside / LOG)
        card = report.to_card(way=f"see `{RUN}` and `{LOG}` for the way there", measuring=MEASURING)
        (aside / CARD).write_text(card, encoding="utf-8")
        for path in aside.iterdir():
            synced(path)
