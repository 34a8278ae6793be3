"""What a model loses when all SAEs or transcoders of a stack stand in it at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from gemscope.pages.plain import known


@dataclass(frozen=True, kw_only=True)
class Replaced:
    """Losses of the replacement model (Ameisen et al., March 2025): every layer reads what is left of the model after
    the earlier ones were replaced, so that errors add up. In nats per token, over the next tokens of counted tokens;
    the ablations put zero, or each site's mean, in the place of all of them at once.
    """

    name: str
    layers: int
    """How many SAEs, transcoders or layers of a cross-layer transcoder."""
    loss: float | None = None
    spliced_loss: float | None = None
    delta_loss: float | None = None
    kl: float | None = None
    """KL(clean ‖ replaced)."""
    zero_loss: float | None = None
    zero_kl: float | None = None
    mean_loss: float | None = None
    mean_kl: float | None = None
    loss_recovered_zero: float | None = None
    loss_recovered_mean: float | None = None
    """(ablated − replaced) / (ablated − clean)."""
    kl_score_zero: float | None = None
    kl_score_mean: float | None = None
    loss_tokens: int = 0
    no_losses: str | None = None
    """Why there are none."""

    def to_dict(self) -> Mapping[str, object]:
        """For JSON; a figure that does not exist is None."""
        return {key: known(value) for key, value in asdict(self).items()}
