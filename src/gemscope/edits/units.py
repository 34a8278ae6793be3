"""How strong an edit is, in units that mean something: multiples of a feature's largest activation, or shares of the
norm that activations have where it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gemscope.activations.model import LanguageModel
from gemscope.edits.strength import Amount, Strength, Unit
from gemscope.errors import InputError
from gemscope.features.fit import sites_of
from gemscope.features.sae import SAE
from gemscope.progress import Progress, silent
from gemscope.shapes import Float
from gemscope.text.corpus import Corpus


class Units:
    """What strengths of an SAE's features are measured against: their largest activations, and the median norm of what
    they write into, on some text.
    """

    def __init__(
        self,
        sae: SAE,
        *,
        maxima: Mapping[int, float] | Float[Tensor, "F"],
        median_norm: float | None,
        source: str,
        tokens: int,
    ) -> None:
        """`maxima` by feature, in the units of `sae.encode`; on `tokens` counted tokens of the text `source`."""
        if isinstance(maxima, Tensor):
            maxima = {feature: value for feature, value in enumerate(maxima.tolist()) if value > 0}
        self._maxima = maxima
        self._sae = sae
        self.median_norm = median_norm
        """Median ‖x‖ of the counted tokens at the site that the SAE writes to; None where it is not known."""
        self.source = source
        self.tokens = tokens

    @classmethod
    def measured(
        cls, model: LanguageModel, sae: SAE, corpus: Corpus, *, tokens: int = 20_000, progress: Progress = silent
    ) -> Units:
        """From one pass over about `tokens` tokens of a corpus. Raises InputError where none of them counts."""
        reads, written = sites_of(sae)
        maxima, norms, read = torch.zeros(sae.d_sae), [], 0
        with progress("measure", tokens, "tokens") as advance:
            for rows in model.rows(corpus, length=min(256, model.context), batch=8):
                captured = model.capture(rows, {reads, written})
                acts = captured[reads]
                found = sae.encode(acts.rows).to("cpu")
                maxima.scatter_reduce_(0, found.features.long(), found.values, "amax")
                written_rows = captured[written].values[acts.counted.to(captured[written].values.device)]
                norms.append(torch.linalg.vector_norm(written_rows.float(), dim=-1).cpu())
                step = int(rows.real.sum())
                read += step
                advance(step)
                if read >= tokens:
                    break
        every = torch.cat(norms) if norms else torch.zeros(0)
        if not len(every):
            raise InputError(f"{corpus.name} gave no token that counts: nothing to measure strengths against")
        return cls(sae, maxima=maxima, median_norm=every.median().item(), source=corpus.name, tokens=len(every))

    def maximum(self, feature: int) -> float:
        """The feature's largest activation. Raises InputError for one that never fired."""
        self._sae.direction(feature)
        found = self._maxima.get(feature, 0.0)
        if not found > 0:
            raise InputError(
                f"feature {feature} fires on none of the {self.tokens:,} tokens of {self.source}: "
                "give its strength in raw units"
            )
        return float(found)

    def of(self, amount: Amount, feature: int) -> Strength:
        """The strength that an amount is for a feature. Raises InputError where its unit has no measure."""
        made: dict[Unit, Callable[[int, float], Strength]] = {"raw": self.raw, "max": self.max, "norm": self.norm}
        return made[amount.unit](feature, amount.value)

    def max(self, feature: int, times: float = 1.0) -> Strength:
        """So many times the feature's largest activation. Raises InputError for one that never fired."""
        return self.raw(feature, times * self.maximum(feature))

    def norm(self, feature: int, share: float) -> Strength:
        """What adds a vector of this share of the median norm. Raises InputError where that norm is not known."""
        length = self._length(feature)
        if self.median_norm is None or length == 0 or self._sae.norm:
            why = "the median norm is not known" if length else f"feature {feature} writes nothing"
            if self._sae.norm:
                why = f"what feature {feature} writes differs from token to token, by the norm of its SAE"
            raise InputError(f"{why}: give the strength in raw units")
        return self.raw(feature, share * self.median_norm / length)

    def raw(self, feature: int, value: float) -> Strength:
        """A strength in units of the feature's activation, with the other units beside it where they are known."""
        largest = self._maxima.get(feature, 0.0)
        return Strength(
            value,
            value / largest if largest > 0 else None,
            value * self._length(feature) / self.median_norm if self.median_norm and not self._sae.norm else None,
        )

    def _length(self, feature: int) -> float:
        return float(self._sae.direction(feature).norm())

    def __repr__(self) -> str:
        norm = "unknown" if self.median_norm is None else f"{self.median_norm:.4g}"
        return f"Units({self._sae.info.name}: median norm {norm}, {self.tokens:,} tokens of {self.source})"
