"""What can be done to a feature, by the words that a shell, an address and a form ask for it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gemscope.errors import InputError

if TYPE_CHECKING:
    from gemscope.activations.editing import Edit, Positions
    from gemscope.edits.strength import Strength
    from gemscope.features.sae import SAE


@dataclass(frozen=True)
class Way:
    """One thing that can be done to a feature."""

    does: str
    short: str
    """For a list to choose from."""
    takes: Literal["a strength", "a factor", "nothing"]


WAYS: Mapping[str, Way] = {
    "add": Way("adds strength × direction, whatever the feature does itself", "add its direction", "a strength"),
    "clamp": Way("holds the feature's activation at the strength", "clamp to", "a strength"),
    "at-least": Way("raises it to the strength where it is lower", "raise to at least", "a strength"),
    "scale": Way("multiplies its activation by a factor", "scale by", "a factor"),
    "ablate": Way("silences it (no strength)", "ablate", "nothing"),
    "project": Way(
        "multiplies what lies along its direction by a factor (0 removes it)", "scale what lies along it", "a factor"
    ),
    "cap": Way("keeps what lies along its direction below the strength", "cap what lies along it", "a strength"),
}
"""By the words that ask for them; the first is what is meant where none is said."""


def edit(
    how: str, sae: SAE, feature: int, by: Strength | float = 0.0, *, at: Positions = "all", every_token: bool = False
) -> Edit:
    """A feature edited in one of the `WAYS`; `by` is what that takes. Raises what the edits raise."""
    from gemscope.edits import clamp, steer

    where: dict[str, Any] = {"at": at, "every_token": every_token}
    match how:
        case "ablate":
            return clamp.Ablate(sae, feature, **where)
        case "cap":
            return steer.Cap(sae, feature, high=by, **where)
    kinds: dict[str, Callable[..., Edit]] = {
        "add": steer.Steer,
        "clamp": clamp.Clamp,
        "at-least": clamp.AtLeast,
        "scale": clamp.Scale,
        "project": steer.Project,
    }
    return kinds[how](sae, feature, by, **where)


def require_added(how: str) -> None:
    """Raises InputError where nothing of a length is added, so that no noise can stand in its place."""
    if WAYS[how].takes != "a strength":
        raise InputError(f"noise as a control for {how}: noise can only be added; take other features as the control")
