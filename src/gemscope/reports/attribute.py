"""Which features, at which tokens, cause a logit: gradient × activation, checked by ablation.

What a gradient is and how an edit gets into the model, `activations/` and `edits/` know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gemscope.activations.fetch import together
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import described
from gemscope.activations.suited import with_float64
from gemscope.atlas.meaning import Given, meanings
from gemscope.edits.clamp import Ablate
from gemscope.errors import EmptyText, InputError
from gemscope.features.activations import FeatureActivations
from gemscope.features.fit import computed_by, require_fit
from gemscope.features.sae import SAE
from gemscope.reports.attribution import Attribution, Cause, Target, Total
from gemscope.reports.targets import position_of, target_of
from gemscope.shapes import Float
from gemscope.text.chat import OneText
from gemscope.text.tokens import Tokens

_ENTRIES = 1 << 12
"""Active entries whose decoder rows are held at a time."""
_LOGITS = 1 << 26
"""Logits held at a time while features are ablated: 256 MB in float32."""


def attribute(
    model: LanguageModel,
    sae: SAE,
    text: OneText,
    target: str | int | None = None,
    *,
    against: str | int | None = None,
    position: int = -1,
    k: int = 20,
    verify: bool = True,
    atlas: Given = None,
    check: Callable[[], None] = lambda: None,
) -> Attribution:
    """Which features, at which tokens, cause the logit of `target` in the prediction after token `position`.

    `target` is the text of one token (a leading blank matters), an id (3 or `id:3`), or None for the likeliest next
    token; `against` makes it the difference of two logits. The `k` strongest are verified: each is ablated on its token
    alone, and then all at once (`verify=False` leaves that out). Labels are those of an atlas of the SAE (None: the
    bundled one, where it is this SAE's). `check` is called as each block of the model runs; what it raises ends the
    work. Raises InputError for a target that is several tokens, a position that the text has not, a k below 1;
    TokenOutOfRange, Mismatch, and what `model.tokens` raises.
    """
    if k < 1:
        raise InputError(f"k={k}: at least one feature must be asked for")
    if isinstance(text, str) and not text:
        raise EmptyText("the text is empty: there is nothing to attribute")
    site = require_fit(model, sae)
    written = sae.site_out or site
    tokens = model.tokens(text, reply=True)
    if len(tokens) != 1 or tokens.padded:
        raise InputError(f"{len(tokens)} rows of tokens given: attribution is of one text without padding")
    at = position_of(position, tokens.ids.shape[1])
    check()
    with meanings(sae, atlas) as known_of, model.watched(check):
        captured = model.capture(tokens, [site, written], logits=True)
        assert captured.logits is not None
        read, out = captured[site], captured[written].values[0]
        wanted = target_of(model, target, captured.logits[0, at])
        other = None if against is None else target_of(model, against, captured.logits[0, at])
        if other is not None and other.id == wanted.id:
            raise InputError(f"target and against are the same token, {wanted.quoted}: their difference is always 0")
        quantity = _Quantity(at, wanted.id, None if other is None else other.id)
        _, gradient = model.gradient(tokens, written, quantity)
        found, reconstruction = sae.read(read)
        parts = _Parts.of(
            sae, found, reconstruction[0], x=read.values[0], y=out, gradient=gradient[0], counted=read.counted[0]
        )
        rows = parts.strongest(k, model.texts(tokens.ids[0].tolist()))
        together = None
        if verify and rows:
            rows, together = _verified(model, sae, tokens, quantity, rows)
        totals = parts.totals(k)
        shown = {row.feature for row in rows} | {one.feature for one in totals}
        labels = {} if known_of is None else known_of.atlas.meanings(shown)
    check()
    return Attribution(
        model=model.name,
        sae=sae.info.name,
        site=described(site, written),
        dtype=str(model.dtype).removeprefix("torch."),
        computed=computed_by(model, sae),
        tokens=tuple(model.texts(tokens.ids[0].tolist())),
        counted=tuple(parts.counted.tolist()),
        position=at,
        target=wanted,
        against=other,
        logit=wanted.logit - (0.0 if other is None else other.logit),
        rows=tuple(replace(one, label=labels.get(one.feature)) for one in rows),
        by_feature=tuple(replace(one, label=labels.get(one.feature)) for one in totals),
        together_predicted=sum(row.predicted for row in rows),
        together_measured=together,
        correlation=_correlation(rows),
        features=parts.features.sum().item(),
        error=parts.error.sum().item(),
        bias=parts.bias.sum().item(),
        skip=parts.skip.sum().item(),
        uncounted=parts.whole[~parts.counted].sum().item(),
        total=parts.whole.sum().item(),
        features_by_token=tuple(parts.features.tolist()),
        error_by_token=tuple(parts.error.tolist()),
        active=len(parts.contributions),
        notes=tuple(_notes(model, wanted, captured.logits[0, at], target)),
    )


@dataclass(frozen=True)
class _Quantity:
    """A logit, or the difference of two, of the prediction at one position; of each row of a batch."""

    position: int
    target: int
    against: int | None

    def __call__(self, logits: Float[Tensor, "B T V"]) -> Float[Tensor, ""]:
        return self.of_rows(logits).sum()

    def of_rows(self, logits: Float[Tensor, "B T V"]) -> Float[Tensor, "B"]:
        here = logits[:, self.position].float()
        return here[:, self.target] - (0.0 if self.against is None else here[:, self.against])


@dataclass(frozen=True)
class _Parts:
    """∇·y, token by token [T] and taken apart, in float64; and every active feature that has a part in it."""

    whole: Tensor
    features: Tensor
    error: Tensor
    bias: Tensor
    skip: Tensor
    counted: Tensor
    positions: Tensor
    ids: Tensor
    activations: Tensor
    contributions: Tensor

    @classmethod
    def of(
        cls,
        sae: SAE,
        found: FeatureActivations,
        reconstruction: Float[Tensor, "T O"],
        *,
        x: Float[Tensor, "T D"],
        y: Float[Tensor, "T O"],
        gradient: Float[Tensor, "T O"],
        counted: Tensor,
    ) -> _Parts:
        device, decoder = sae.device, sae.decoder
        g, y = gradient.to(device, torch.float32), y.to(device, torch.float32)
        counted = counted.to(device)
        kept = counted[found.tokens] & (g != 0).any(-1)[found.tokens]
        positions, ids, activations = found.tokens[kept], found.features[kept].long(), found.values[kept].double()
        dots = [
            (decoder[some].float().double() * g[where].double()).sum(-1)
            for some, where in zip(torch.split(ids, _ENTRIES), torch.split(positions, _ENTRIES), strict=True)
        ]
        contributions = activations * torch.cat(dots) if dots else activations
        g = g.double()
        scale = torch.ones_like(g[:, 0]) if found.scale is None else found.scale.reshape(-1).double()
        contributions = contributions * scale[positions]
        past = sae.skipped(x.to(device, torch.float32))
        skip = torch.zeros_like(g[:, 0]) if past is None else (g * past).sum(-1)
        whole, error, bias, skip, counted, positions, ids, activations, contributions = together(
            [
                (g * y).sum(-1),
                (g * (y.double() - reconstruction)).sum(-1) * counted,
                g @ sae.b_dec.double() * scale * counted,
                skip * counted,
                counted,
                positions,
                ids,
                activations,
                contributions,
            ]
        )
        return cls(
            whole=whole,
            # Here, where they are added up in their order.
            features=torch.zeros_like(whole).index_add(0, positions, contributions),
            error=error,
            bias=bias,
            skip=skip,
            counted=counted,
            positions=positions,
            ids=ids,
            activations=activations,
            contributions=contributions,
        )

    def strongest(self, k: int, tokens: Sequence[str]) -> tuple[Cause, ...]:
        order = self.contributions.abs().argsort(descending=True, stable=True)[:k]
        return tuple(
            Cause(
                feature=int(self.ids[entry]),
                position=int(self.positions[entry]),
                token=tokens[int(self.positions[entry])],
                activation=float(self.activations[entry]),
                predicted=float(self.contributions[entry]),
                measured=None,
            )
            for entry in order.tolist()
        )

    def totals(self, k: int) -> tuple[Total, ...]:
        ids, whose, counts = torch.unique(self.ids, return_inverse=True, return_counts=True)
        sums = torch.zeros(len(ids), dtype=torch.float64).index_add(0, whose, self.contributions)
        order = sums.abs().argsort(descending=True, stable=True)[:k].tolist()
        return tuple(Total(feature=int(ids[one]), tokens=int(counts[one]), predicted=float(sums[one])) for one in order)


def _verified(
    model: LanguageModel, sae: SAE, tokens: Tokens, quantity: _Quantity, rows: tuple[Cause, ...]
) -> tuple[tuple[Cause, ...], float]:
    """The rows with how much the logit falls when they are ablated, one at a time, and when all are at once.

    Each is a row of a batch beside an untouched one: in a batch the same sums may be taken in another order than alone,
    and effects are small.
    """
    trials: list[tuple[Cause, ...]] = [(row,) for row in rows] + [rows]
    each = max(1, _LOGITS // (tokens.ids.shape[1] * model.vocab) - 1)
    effects: list[float] = []
    for start in range(0, len(trials), each):
        batch = ((), *trials[start : start + each])
        ids = tokens.ids.expand(len(batch), -1)
        with model.edited(*_ablations(sae, batch, ids.shape)):
            values = with_float64(quantity.of_rows(model.logits(ids))).double()
        effects += (values[0] - values[1:]).tolist()
    *single, together = effects
    return tuple(replace(row, measured=effect) for row, effect in zip(rows, single, strict=True)), together


def _ablations(sae: SAE, batch: Sequence[tuple[Cause, ...]], shape: torch.Size) -> list[Ablate]:
    """One edit for each feature, acting on those rows and tokens of the batch where it is to be taken out."""
    where: dict[int, Tensor] = {}
    for index, causes in enumerate(batch):
        for cause in causes:
            mask = where.setdefault(cause.feature, torch.zeros(shape, dtype=torch.bool))
            mask[index, cause.position] = True
    return [Ablate(sae, feature, at=mask) for feature, mask in where.items()]


def _correlation(rows: Sequence[Cause]) -> float | None:
    measured = [row.measured for row in rows if row.measured is not None]
    if len(measured) < 3:
        return None
    pair = torch.tensor([[row.predicted for row in rows], measured], dtype=torch.float64)
    found = float(pair.corrcoef()[0, 1])
    return None if math.isnan(found) else found


def _notes(model: LanguageModel, wanted: Target, logits: Float[Tensor, "V"], given: str | int | None) -> Iterator[str]:
    if isinstance(given, str) and not given[0].isspace():
        try:
            blank = target_of(model, f" {given}", logits)
        except InputError:
            blank = None
        if blank is not None and blank.probability > 10 * wanted.probability:
            yield (
                f"{blank.quoted}, with a leading blank, is another token and far likelier here "
                f"({blank.likely} against {wanted.likely}): was that meant?"
            )
    if model.dtype.itemsize < 4:
        # As many bits as the format keeps of a number of this size.
        step = torch.finfo(model.dtype).eps * 2 ** math.floor(math.log2(max(abs(wanted.logit), 1e-6)))
        name = str(model.dtype).removeprefix("torch.")
        yield (
            f"logits in {name} come in steps of {step:.2g}: measured effects below that are rounding; "
            f"load the model with dtype float32 for finer ones"
        )
