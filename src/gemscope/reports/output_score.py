"""Does a feature write what it reads? The output score: what becomes of the tokens that it promotes, and of those of
its examples, when it is turned up on prompts that are about nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gemscope.activations.editing import Edit
from gemscope.activations.model import LanguageModel
from gemscope.edits.steer import Steer
from gemscope.edits.strength import Strength
from gemscope.errors import InputError, TokenOutOfRange
from gemscope.features.fit import sites_of
from gemscope.features.sae import SAE
from gemscope.shapes import Float

PROMPTS = ("From my experience,", "I think that", "This is the", "We found a", "And then it was")
"""About nothing in particular. The first is the one that the paper's authors use."""

CONTROLS = 4
"""Random features that are turned up beside it."""

_LITTLE, _MUCH = 0.0005, 0.003
"""Rises in the probability of tokens, as the next one after a neutral prompt: below the one steering was seen to do
next to nothing, from the other on mostly something (tools/output_score.py).
"""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What becomes of some tokens as the next one; every figure is a mean over the prompts."""

    tokens: tuple[str, ...]
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


def output_score(
    model: LanguageModel,
    sae: SAE,
    feature: int,
    *,
    promoted: Sequence[int],
    strength: Strength,
    measured: Sequence[int] = (),
    examples: Sequence[int] = (),
    prompts: Sequence[str] = PROMPTS,
    check: Callable[[], None] = lambda: None,
) -> OutputScore:
    """Turns a feature up by `strength` on neutral prompts, and looks at some tokens as the next one.

    `promoted` are the ids of its logit lens's strongest tokens, `measured` of those by the measured effect of its site,
    which foretells steering far better (docs/effect.md), `examples` those on which its strongest examples fire.
    With p the probabilities after a prompt while strength · direction is added, and |V| their number, the score of a
    prompt is

        S = (1 − rank / |V|) · max p[promoted],      rank = tokens likelier than the likeliest promoted one

    (Arad, Mueller, Belinkov 2025, "SAEs Are Good for Steering – If You Select the Right Features", arXiv 2505.20063, as
    in the authors' code) and `score` its mean over the prompts. Not as there: several prompts; the feature is turned up
    on every counted token, as steering does, not on the last alone; and by a strength that is given, where the authors
    take 10 times the largest activation of any feature on that token. The examples' tokens are ours.

    How good a guide it is (tools/output_score.py; 74 labelled features of the bundled SAE, at half the median norm,
    rank correlations): 0.60 between `score` and the rise of promoted tokens in steered text, but -0.16 with how much
    more the feature fires on that text; 0.39 between that and the score of the examples' tokens. A verdict is a hint.

    One pass over short texts. `check` is called as each block runs; what it raises ends the work. Raises InputError for
    a feature that there is not or no promoted tokens, TokenOutOfRange, SiteNotFound, Mismatch, NotFinite.
    """
    sets = [list(dict.fromkeys(map(int, ids))) for ids in (promoted, measured, examples)]
    if not sets[0]:
        raise InputError(f"no promoted tokens given for feature {feature}: the score is about these")
    if wrong := [id_ for ids in sets for id_ in ids if not 0 <= id_ < model.vocab]:
        raise TokenOutOfRange(f"no token {wrong[0]}: {model.name} has tokens 0 to {model.vocab - 1}")
    _, site = sites_of(sae)
    directions = [sae.direction(feature), *_others(sae, feature)]
    edits = [Steer.along(site, direction, strength, name=f"feature {feature}") for direction in directions]
    odds = _odds(model, prompts, edits, check)
    whole, *beside = [_figures(model, odds, ids) if ids else None for ids in sets]
    assert whole is not None
    by_effect, by_examples = (None if one is None else Outcome(**one) for one in beside)
    return OutputScore(
        feature=feature,
        strength=strength,
        prompts=tuple(prompts),
        measured=by_effect,
        examples=by_examples,
        **whole,
    )


@torch.no_grad()
def _odds(
    model: LanguageModel, prompts: Sequence[str], edits: Sequence[Edit], check: Callable[[], None]
) -> Float[Tensor, "prompts variants V"]:
    """Probabilities of the next token after each prompt: of the model as it is, then under each of the edits."""
    variants = len(edits) + 1
    tokens = model.tokens([prompt for prompt in prompts for _ in range(variants)], side="left")
    with model.watched(check), ExitStack() as stack:
        for index, edit in enumerate(edits, 1):
            stack.enter_context(model.edited(edit, rows=range(index, len(prompts) * variants, variants)))
        logits = model.logits(tokens)[:, -1].float().cpu()
    return logits.softmax(-1).reshape(len(prompts), variants, -1)


def _figures(model: LanguageModel, odds: Float[Tensor, "prompts variants V"], ids: Sequence[int]) -> dict[str, Any]:
    """What an `Outcome` holds of these tokens."""
    mass = odds[..., ids].sum(-1).mean(0)
    turned_up = odds[:, 1]
    best = turned_up[:, ids].amax(-1)
    rank = (turned_up > best[:, None]).sum(-1).float()
    return {
        "tokens": tuple(model.strings(ids)),
        "score": ((1 - rank / turned_up.shape[-1]) * best).mean().item(),
        "rank": rank.mean().item(),
        "probability": best.mean().item(),
        "mass": mass[1].item(),
        "unedited": mass[0].item(),
        "control": mass[2:].mean().item(),
    }


def _others(sae: SAE, feature: int) -> list[Float[Tensor, "O"]]:
    """Random features' directions, as long as this one's."""
    length = torch.linalg.vector_norm(sae.direction(feature))
    order = torch.randperm(sae.d_sae, generator=torch.Generator().manual_seed(feature)).tolist()
    found = []
    for other in order:
        direction = sae.direction(other)
        norm = torch.linalg.vector_norm(direction)
        if other != feature and norm > 0:
            found.append(direction * (length / norm))
        if len(found) == CONTROLS:
            break
    return found
