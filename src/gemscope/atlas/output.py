"""What becomes of the tokens that a feature promotes, and of those of its examples, when it is turned up on prompts
that are about nothing. Measuring it is `reports/output_score.py`'s, keeping it `files/outputs.py`'s.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from gemscope.edits.strength import Strength

_LITTLE, _MUCH = 0.0005, 0.003
"""Rises in the probability of tokens, as the next one after a neutral prompt: below the one steering was seen to do
next to nothing, from the other on mostly something (tools/output_score.py).
"""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What becomes of some tokens as the next one; every figure is a mean over the prompts."""

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    """Of these tokens."""
    score: float
    """(1 − rank / |V|) · probability, 0 to 1: see `output_score`."""
    rank: float
    """How many tokens of the vocabulary are likelier than the likeliest of these, the feature turned up."""
    probability: float
    """Of the likeliest of these, the feature turned up."""
    mass: float
    """Probability of all of these together, the feature turned up."""
    unedited: float
    """The same in the model as it is."""
    control: float
    """The same with random features in its place, added as vectors of the same length; mean over them."""

    @property
    def change(self) -> float:
        """What the feature adds to the probability of these tokens."""
        return self.mass - self.unedited

    @property
    def clear(self) -> bool | None:
        """True where the feature brings the tokens about, and far more than random ones do; False where it does not;
        None in between.
        """
        aside = abs(self.control - self.unedited)
        if self.change < _LITTLE or self.change < 1.5 * aside:
            return False
        return True if self.change >= _MUCH and self.change >= 3 * aside else None

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "tokens": list(self.tokens),
            "output_score": self.score,
            "rank": self.rank,
            "probability": self.probability,
            "mass": self.mass,
            "unedited": self.unedited,
            "control": self.control,
            "change": self.change,
        }


@dataclass(frozen=True, kw_only=True)
class OutputScore(Outcome):
    """What `output_score` found: the effect on the tokens that the feature promotes, and on those of its examples."""

    feature: int
    strength: Strength
    prompts: tuple[str, ...]
    measured: Outcome | None = None
    """On the tokens that it promotes by the measured effect of its site, which is what steering is expected to do,
    where these were given.
    """
    examples: Outcome | None
    """On the tokens on which the feature's strongest examples fire, where these were given."""

    @property
    def writes(self) -> bool | None:
        """Whether the tokens of its examples (its promoted ones, without examples) clearly come when it is turned up;
        None in between.
        """
        return (self.examples or self.measured or self).clear

    @property
    def verdict(self) -> str:
        """One line for people."""
        if self.examples is None:
            sure, unsure = "steering with it writes what it promotes", "it writes a little of what it promotes"
        else:
            sure = "steering with it does what its examples suggest"
            unsure = "steering with it does a little of what its examples suggest"
        return {True: sure, False: "it reads, but hardly writes", None: unsure}[self.writes]

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        effect = super().to_dict()
        return {
            "feature": self.feature,
            "verdict": self.verdict,
            "writes": self.writes,
            "promoted": effect.pop("tokens"),
            **effect,
            "measured": None if self.measured is None else self.measured.to_dict(),
            "examples": None if self.examples is None else self.examples.to_dict(),
            "strength": asdict(self.strength),
            "prompts": list(self.prompts),
        }

    def __str__(self) -> str:
        beside = [("tokens promoted by the measured effect", self.measured), ("examples' tokens", self.examples)]
        effects = [("promoted tokens", self), *((name, one) for name, one in beside if one is not None)]
        told = "; ".join(
            f"its {name} {one.mass:.2%} likely, {one.unedited:.2%} without it, {one.control:.2%} with random features"
            for name, one in effects
        )
        return (
            f"feature {self.feature}: {self.verdict} (output score {self.score:.3g}; {told}; at {self.strength}, mean "
            f"over {len(self.prompts)} neutral prompts)"
        )
