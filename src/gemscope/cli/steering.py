"""What the command steer does: edits out of the words given, texts, strengths one after another, controls."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gemscope.edits import defaults
from gemscope.edits.strength import Amount
from gemscope.edits.ways import WAYS
from gemscope.errors import InputError

if TYPE_CHECKING:
    from gemscope.activations.editing import Edit
    from gemscope.activations.model import LanguageModel
    from gemscope.edits.controls import Act, Control
    from gemscope.edits.units import Units
    from gemscope.features.sae import SAE
    from gemscope.progress import Progress
    from gemscope.reports.dose import Dose
    from gemscope.reports.steer import Steered
    from gemscope.text.chat import OneText


Wanted = Mapping[int, Amount | None]
"""Features and what they shall be set to: a factor where the way takes one (its number alone counts)."""
_UNITS = {"raw": "in raw units", "max": "× max", "norm": "× median norm"}


def _swept(wanted: Wanted, strength: float) -> dict[int, Amount | None]:
    """All features with the first one at this strength."""
    amounts = {feature: Amount(1.0) if amount is None else amount for feature, amount in wanted.items()}
    (first, amount), *_ = amounts.items()
    if not amount.value:
        raise InputError(f"{first}=0 cannot be swept: write {first} alone, or a strength that is not 0")
    swept = {feature: one * (strength / amount.value) for feature, one in amounts.items()}
    return {**swept, first: replace(amount, value=strength)}


@dataclass(frozen=True)
class Work:
    """What the command line asks for, and what it is done with."""

    args: argparse.Namespace
    model: LanguageModel
    sae: SAE
    units: Units
    wanted: Wanted
    text: OneText
    progress: Progress

    def texts(self) -> Sequence[Steered | Dose]:
        """Two columns, and two more with the control."""
        from gemscope.reports.steer import Steered, stream

        by = self._by(self.wanted)
        runs: list[tuple[str | None, list[Edit]]] = [(None, self._act.edits(by))]
        if (control := self._control()) is not None:
            runs.append((control.name, control.edits(by)))
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
        (first, amount), *_ = self.wanted.items()
        if WAYS[self.args.how].takes == "a strength":
            notes.insert(0, f"Strength: feature {first}'s, {_UNITS[amount.unit if amount else 'raw']}")
        control = self._control()

        def by(strength: float) -> dict[int, Amount | float]:
            return self._by(_swept(self.wanted, strength))

        found = dose(
            self.model,
            self.text,
            lambda strength: self._act.edits(by(strength)),
            self.args.sweep,
            target=target,
            control=None if control is None else lambda strength: control.edits(by(strength)),
            control_name=None if control is None else control.name,
            progress=self.progress,
            **self._options(),
        )
        return [found], notes

    def _options(self) -> dict[str, Any]:
        args = self.args
        n = defaults.SWEPT if args.sweep and args.temperature else defaults.SAMPLES
        return {
            "n": n if args.n is None else args.n,
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
        feature = next(iter(self.wanted))
        ids = promoted(self.model, self.sae, feature, k=1).tolist()
        token = visible(self.model.strings(ids)[0])
        return ids, [
            f"Target: {token}, the token that feature {feature} promotes most by the logit lens, that is straight "
            "through the unembedding. Later layers may make something else of it: --target follows a token of your own"
        ]

    # --- edits ------------------------------------------------------------------------------------------------

    @property
    def _act(self) -> Act:
        from gemscope.edits.controls import Act

        args = self.args
        where: dict[str, Any] = {"at": args.at, "every_token": args.every_token}
        return Act(how=args.how, sae=self.sae, units=self.units, seed=args.seed, **where)

    def _by(self, wanted: Wanted) -> dict[int, Amount | float]:
        """What the edits take. Raises InputError for a feature without it."""
        how, found = self.args.how, dict[int, Amount | float]()
        for feature, amount in wanted.items():
            match WAYS[how].takes:
                case "nothing":
                    found[feature] = 0.0
                case "a factor" if amount is None:
                    raise InputError(f"feature {feature}: --how {how} needs a factor, as in {feature}=0.5")
                case takes:
                    assert amount is not None
                    found[feature] = amount if takes == "a strength" else amount.value
        return found

    def _control(self) -> Control | None:
        if self.args.random_feature:
            return self._act.random(list(self.wanted))
        return self._act.noise() if self.args.noise else None
