"""Does a feature write what it reads? The output score: what becomes of the tokens that it promotes, and of those of
its examples, when it is turned up on prompts that are about nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from gemscope.activations.editing import Edit
from gemscope.activations.model import LanguageModel
from gemscope.atlas.dashboard import Dashboard
from gemscope.atlas.output import Outcome, OutputScore
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

_PROMOTED = 10
"""Tokens that a feature promotes, by which it is judged."""


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


def output_score_of(
    model: LanguageModel,
    sae: SAE,
    page: Dashboard,
    *,
    strength: Strength,
    check: Callable[[], None] = lambda: None,
) -> OutputScore:
    """The same of an atlas's feature: of the tokens that its page says it promotes, by either path, and of those on
    which its strongest examples fire. Raises what `output_score` raises.
    """
    measured = page.writes.promoted if page.writes and page.writes.agreed else []
    return output_score(
        model,
        sae,
        page.index,
        promoted=[logit.id for logit in (page.promoted or measured)[:_PROMOTED]],
        measured=[logit.id for logit in measured[:_PROMOTED]],
        examples=[example.ids[example.peak] for example in page.strongest],
        strength=strength,
        check=check,
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
        "ids": tuple(ids),
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
