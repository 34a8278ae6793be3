"""What the command steer does: edits out of the words given, texts, strengths one after another, controls."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gemscope.edits.strength import Amount
from gemscope.edits.ways import WAYS, edit, require_added
from gemscope.errors import InputError

if TYPE_CHECKING:
    from gemscope.activations.editing import Edit
    from gemscope.activations.model import LanguageModel
    from gemscope.edits.strength import Strength
    from gemscope.edits.units import Units
    from gemscope.features.sae import SAE
    from gemscope.progress import Progress
    from gemscope.reports.dose import Dose
    from gemscope.reports.steer import Steered
    from gemscope.text.chat import OneText


SAMPLES = 3


@dataclass(frozen=True)
class Wanted:
    """One feature and what it shall be set to: a factor where the way takes one (its number alone counts)."""

    feature: int
    amount: Amount | None


_UNITS = {"raw": "in raw units", "max": "× max", "norm": "× median norm"}


def _swept(wanted: Sequence[Wanted], strength: float) -> list[Wanted]:
    """All features with the first one at this strength."""
    first, *rest = [Amount(1.0) if one.amount is None else one.amount for one in wanted]
    if not first.value:
        raise InputError(
            f"{wanted[0].feature}=0 cannot be swept: write {wanted[0].feature} alone, or a strength that is not 0"
        )
    swept = [replace(first, value=strength), *(one * (strength / first.value) for one in rest)]
    return [replace(one, amount=amount) for one, amount in zip(wanted, swept, strict=True)]


@dataclass(frozen=True)
class Work:
    """What the command line asks for, and what it is done with."""

    args: argparse.Namespace
    model: LanguageModel
    sae: SAE
    units: Units
    wanted: Sequence[Wanted]
    text: OneText
    progress: Progress

    def texts(self) -> Sequence[Steered | Dose]:
        """Two columns, and two more with the control."""
        from gemscope.reports.steer import Steered, stream

        runs: list[tuple[str | None, list[Edit]]] = [(None, self._edits(self.wanted))]
        if (control := self._control()) is not None:
            runs.append((control.name, control.edits(self.wanted)))
        found = []
        for name, edits in runs:
            writing = stream(self.model, self.text, edits, control=name, **self._options())
            with self.progress("write", self.args.max_new_tokens, "tokens") as advance:
                for news in writing:
                    if isinstance(news, Steered):
                        found.append(news)
                    else:
                        advance(1)
        return found

    def sweep(self) -> tuple[Sequence[Steered | Dose], list[str]]:
        """The table of strengths, and what is to be said about it."""
        from gemscope.reports.dosing import dose

        if WAYS[self.args.how].takes == "nothing":
            raise InputError(f"--sweep with --how {self.args.how}: there is no strength to sweep; use --how scale")
        target, notes = self._target()
        first = self.wanted[0]
        if WAYS[self.args.how].takes == "a strength":
            unit = _UNITS[first.amount.unit if first.amount else "raw"]
            notes.insert(0, f"Strength: feature {first.feature}'s, {unit}")
        control = self._control()
        found = dose(
            self.model,
            self.text,
            lambda strength: self._edits(_swept(self.wanted, strength)),
            self.args.sweep,
            target=target,
            control=None if control is None else lambda strength: control.edits(_swept(self.wanted, strength)),
            control_name=None if control is None else control.name,
            progress=self.progress,
            **self._options(),
        )
        return [found], notes

    def _options(self) -> dict[str, Any]:
        args = self.args
        return {
            "n": args.n if args.n is not None else SAMPLES if args.temperature else 1,
            "max_new_tokens": args.max_new_tokens,
            "temperature": args.temperature,
            "seed": args.seed,
            "atlas": args.atlas,
        }

    def _target(self) -> tuple[list[int], list[str]]:
        """The tokens to follow, and where they are from."""
        from gemscope.features.logit_lens import no_logits, promoted
        from gemscope.reports.targets import token_of
        from gemscope.text.printable import visible

        if self.args.target:
            return [token_of(self.model, one) for one in self.args.target], []
        if why := no_logits(self.sae):
            raise InputError(f"no token is promoted directly ({why}): name one with --target")
        feature = self.wanted[0].feature
        ids = promoted(self.model, self.sae, feature, k=1).tolist()
        token = visible(self.model.strings(ids)[0])
        return ids, [
            f"Target: {token}, the token that feature {feature} promotes most by the logit lens, that is straight "
            "through the unembedding. Later layers may make something else of it: --target follows a token of your own"
        ]

    # --- edits ------------------------------------------------------------------------------------------------

    def _edits(self, wanted: Sequence[Wanted]) -> list[Edit]:
        return [self._edit(one) for one in wanted]

    def _edit(self, one: Wanted) -> Edit:
        by: Strength | float = 0.0
        if (takes := WAYS[self.args.how].takes) == "a strength":
            by = self._strength(one)
        elif takes == "a factor":
            if one.amount is None:
                how = self.args.how
                raise InputError(f"feature {one.feature}: --how {how} needs a factor, as in {one.feature}=0.5")
            by = one.amount.value
        return edit(self.args.how, self.sae, one.feature, by, **self._where)

    @property
    def _where(self) -> dict[str, Any]:
        return {"at": self.args.at, "every_token": self.args.every_token}

    def _strength(self, one: Wanted) -> Strength:
        if one.amount is None:
            raise InputError(f"feature {one.feature} has no strength: write {one.feature}=2max, =0.5norm or =30 (raw)")
        return self.units.of(one.amount, one.feature)

    def _control(self) -> _Control | None:
        from gemscope.edits import controls

        if self.args.random_feature:
            others = {
                one.feature: controls.random_feature(self.sae, one.feature, self.units, self.args.seed + place)
                for place, one in enumerate(self.wanted)
            }
            said = ", ".join(f"{other} in place of {feature}" for feature, other in others.items())
            return _Control(
                f"random feature {said}",
                lambda wanted: self._edits([replace(one, feature=others[one.feature]) for one in wanted]),
            )
        if self.args.noise:
            require_added(self.args.how)
            return _Control("random vectors as long as what the features write, added", self._noise)
        return None

    def _noise(self, wanted: Sequence[Wanted]) -> list[Edit]:
        from gemscope.edits import controls, steer

        assert self.sae.site_out is not None
        return [
            steer.Steer.along(
                self.sae.site_out,
                controls.noise(self.sae, one.feature, self.args.seed + place),
                self._strength(one),
                name=f"noise as long as feature {one.feature}'s direction",
                **self._where,
            )
            for place, one in enumerate(wanted)
        ]


@dataclass(frozen=True)
class _Control:
    """What stands in the features' place: in words, and as edits."""

    name: str
    edits: Callable[[Sequence[Wanted]], list[Edit]]
