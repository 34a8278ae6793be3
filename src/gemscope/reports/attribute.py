"""Which features, at which tokens, cause a logit: gradient × activation, checked by ablation.

What a gradient is and how an edit gets into the model, `activations/` and `edits/` know.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gemscope.activations.model import LanguageModel
from gemscope.edits.clamp import Ablate
from gemscope.errors import EmptyText, InputError, TokenOutOfRange
from gemscope.features.activations import FeatureActivations
from gemscope.features.fit import require_fit
from gemscope.features.sae import SAE
from gemscope.pages.plain import plain
from gemscope.shapes import Float
from gemscope.text.chat import OneText
from gemscope.text.printable import visible
from gemscope.text.tokens import Tokens

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_ENTRIES = 1 << 12
"""Active entries whose decoder rows are held at a time."""
_LOGITS = 1 << 26
"""Logits held at a time while features are ablated: 256 MB in float32."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A token whose logit is looked into, as the model predicts it at the chosen position."""

    id: int
    token: str
    logit: float
    probability: float


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One feature on one token, and what it adds to the logit there. Positive: it speaks for the target, as in every
    other figure of an `Attribution`."""

    feature: int
    position: int
    token: str
    activation: float
    predicted: float
    """f · (∇ · d), gradient × activation: to first order, by how much the logit falls when the feature is ablated
    there."""
    measured: float | None
    """By how much it falls when the feature really is ablated there and nowhere else; None where that was not asked
    for."""


@dataclass(frozen=True, kw_only=True)
class Total:
    """One feature over all tokens."""

    feature: int
    tokens: int
    """Counted tokens on which it is active and the gradient is not zero."""
    predicted: float
    """Sum of gradient × activation."""


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """What `attribute` found. `str` gives tables, a notebook shows colours, `to_dict` gives what `--json` prints.

    With ∇ the gradient of the logit (or difference) with respect to the activation y at the site that the SAE writes,
    and y = Σ f·d + b_dec (+ W_skip x) + e on counted tokens, the sum over all tokens of ∇·y falls into five parts,
    which add up to `total`: `features`, `error`, `bias`, `skip` and `uncounted`. It is a first-order account: it says
    what would change in proportion, not how the logit's own value comes about.
    """

    model: str
    sae: str
    site: str
    dtype: str
    """The model's number format: in half precision the measured effects are as coarse as its logits."""
    tokens: tuple[str, ...]
    counted: tuple[bool, ...]
    """False for special tokens, the first position and attention sinks: no feature is read there."""
    position: int
    """The token after which the prediction is made, from 0."""
    target: Target
    against: Target | None
    logit: float
    """The target's logit, less the other's where there is one."""
    rows: tuple[Cause, ...]
    """The strongest, by the size of the predicted effect."""
    by_feature: tuple[Total, ...]
    """Features summed over tokens, the strongest by the size of that sum; as many as `rows`."""
    together_predicted: float
    """Sum of the predicted effects of all `rows`."""
    together_measured: float | None
    """By how much the logit falls when all of them are ablated at once."""
    correlation: float | None
    """Pearson's, of predicted and measured over `rows`; None for fewer than three, or where either does not vary."""
    features: float
    """Σ f · (∇·d) over all active features of counted tokens."""
    error: float
    """Σ ∇·e over counted tokens: what the SAE leaves out of y."""
    bias: float
    """Σ ∇·b_dec over counted tokens."""
    skip: float
    """Σ ∇·(W_skip x) over counted tokens, for transcoders with a skip; else 0."""
    uncounted: float
    """Σ ∇·y over the tokens that do not count."""
    total: float
    """Σ ∇·y over all tokens."""
    features_by_token: tuple[float, ...]
    error_by_token: tuple[float, ...]
    active: int
    """Pairs of a counted token and a feature active there, up to the position: what `rows` is chosen from."""
    notes: tuple[str, ...] = ()
    """What a reader should know, one line each."""

    @property
    def error_share(self) -> float:
        """Σ|∇·e| / (Σ|∇·e| + Σ|Σ f(∇·d)|), sums over counted tokens: 0 where the features say it all; NaN for none."""
        error, features = (sum(map(abs, part)) for part in (self.error_by_token, self.features_by_token))
        return error / (error + features) if error + features else math.nan

    def to_dict(self) -> dict[str, object]:
        """For JSON; a figure that does not exist is None."""
        share = self.error_share
        return asdict(self) | {"error_share": None if math.isnan(share) else share}

    # --- how it shows itself ----------------------------------------------------------------------------------

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("feature", justify="right")
        table.add_column("on token", no_wrap=True)
        for name in ("activation", "predicted", "measured"):
            table.add_column(name, justify="right")
        for row in self.rows:
            table.add_row(
                str(row.feature),
                Text(f"{visible(row.token)} ({row.position})"),
                f"{row.activation:.2f}",
                Text(_signed(row.predicted), style=_style(row.predicted)),
                Text("" if row.measured is None else _signed(row.measured), style=_style(row.measured or 0.0)),
            )
        lines: list[RenderableType] = [Text(self._title(), style="bold"), Text(self._question()), Text()]
        if self.rows:
            lines += [Text(self._heading()), table]
        lines += [Text(), *(Text(line) for line in self._summary()), Text(), self._strip()]
        return Group(*lines)

    def __str__(self) -> str:
        return plain(self)

    def _strip(self) -> Text:
        from rich.text import Text

        strip = Text("What all features add, predicted, by token: ")
        for token, counted, value in zip(self.tokens, self.counted, self.features_by_token, strict=True):
            if counted:
                strip.append(visible(token), style=f"bold {_style(value)}")
                strip.append(f" {_signed(value, 2)}  ")
            else:
                strip.append(f"{visible(token)} (not counted)  ", style="dim")
        return strip

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("feature", "on token", "activation", "predicted", "measured"))
        rows = "".join(
            f"<tr><td>{row.feature}</td><td style='text-align:left'>{_code(row.token)} "
            f"<small>({row.position})</small></td><td>{row.activation:.2f}</td><td>{_cell(row.predicted)}</td>"
            f"<td>{'' if row.measured is None else _cell(row.measured)}</td></tr>"
            for row in self.rows
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in self._summary())
        return (
            f"<div><p><b>{html.escape(self._title())}</b><br>{html.escape(self._question())}</p>"
            f"<p>{self._html_strip()}</p><p>{html.escape(self._heading())}</p>{table if rows else ''}"
            f"<ul>{lines}</ul></div>"
        )

    def _html_strip(self) -> str:
        most = max(map(abs, self.features_by_token), default=0.0)
        pieces = []
        for token, counted, value in zip(self.tokens, self.counted, self.features_by_token, strict=True):
            if not counted:
                pieces.append(f"<span style='opacity:.5' title='not counted'>{_code(token)}</span>")
                continue
            ink = f"rgba({'16,160,110' if value >= 0 else '210,110,30'},{0.6 * abs(value) / most if most else 0:.2f})"
            line = "solid" if value >= 0 else "dotted"  # not by colour alone
            style = f"background:{ink};border-bottom:2px {line} {ink};border-radius:3px"
            pieces.append(f"<span style='{style}' title='{_signed(value)}'>{_code(token)}</span>")
        return "".join(pieces)

    def _title(self) -> str:
        return f"{self.model} at {self.site}, read through {self.sae}"

    def _quantity(self) -> str:
        if self.against is None:
            return f"logit of {_quoted(self.target)}"
        return f"logit difference {_quoted(self.target)} − {_quoted(self.against)}"

    def _heading(self) -> str:
        return (
            f"What one feature on one token adds to the {self._quantity()}, as ablating it there shows: where it is + "
            f"the feature speaks for {_quoted(self.target)}"
        )

    def _question(self) -> str:
        asked = [self.target] + ([self.against] if self.against is not None else [])
        odds = ", ".join(f"{_quoted(one)} {_percent(one.probability)}" for one in asked)
        where = f"after “{visible(self.tokens[self.position])}” (token {self.position})"
        return f"What causes the {self._quantity()} {where}: {self.logit:.3f} (probability: {odds})"

    def _summary(self) -> Iterator[str]:
        if not self.rows:
            yield "no feature is active on a counted token that the prediction can see"
        if self.together_measured is not None:
            alike = (
                "" if self.correlation is None else f", correlation of predicted and measured {self.correlation:.3f}"
            )
            yield (
                f"The {len(self.rows)} strongest of {self.active:,}{alike}; all of them together: "
                f"predicted {_signed(self.together_predicted)}, measured {_signed(self.together_measured)}"
            )
        if self.by_feature:
            sums = ", ".join(f"{one.feature} {_signed(one.predicted)} ({one.tokens})" for one in self.by_feature[:5])
            yield f"Predicted, summed over tokens, feature by feature (on how many): {sums}"
        skip = f"W_skip {_signed(self.skip)}, " if self.skip else ""
        apart = self.counted.count(False)
        yield (
            f"Gradient × activation, summed over all tokens: {_signed(self.total)} = "
            f"features {_signed(self.features)}, error {_signed(self.error)}, b_dec {_signed(self.bias)}, {skip}"
            f"{apart} {'token' if apart == 1 else 'tokens'} not counted {_signed(self.uncounted)}"
        )
        if not math.isnan(self.error_share):
            yield (
                f"Error's share: {self.error_share:.0%} of features and error, by size, token by token: "
                f"that much of the answer lies outside the SAE"
            )
        yield from self.notes


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
    check: Callable[[], None] = lambda: None,
) -> Attribution:
    """Which features, at which tokens, cause the logit of `target` in the prediction after token `position`.

    `target` is the text of one token (a leading blank matters), an id (3 or `id:3`), or None for the likeliest next
    token; `against` makes it the difference of two logits. The `k` strongest are verified: each is ablated on its token
    alone, and then all at once (`verify=False` leaves that out). `check` is called as each block of the model runs;
    what it raises ends the work. Raises InputError for a target that is several tokens, a position that the text has
    not, a k below 1; TokenOutOfRange, Mismatch, and what `model.tokens` raises.
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
    at = _position(position, tokens.ids.shape[1])
    check()
    with model.watched(check):
        captured = model.capture(tokens, [site, written], logits=True)
        assert captured.logits is not None
        read, out = captured[site], captured[written].values[0]
        wanted = _target(model, target, captured.logits[0, at])
        other = None if against is None else _target(model, against, captured.logits[0, at])
        if other is not None and other.id == wanted.id:
            raise InputError(f"target and against are the same token, {_quoted(wanted)}: their difference is always 0")
        quantity = _Quantity(at, wanted.id, None if other is None else other.id)
        _, gradient = model.gradient(tokens, written, quantity)
        found, reconstruction = sae.read(read)
        parts = _Parts.of(
            sae, found, reconstruction[0], x=read.values[0], y=out, gradient=gradient[0], counted=read.counted[0]
        )
        rows = parts.strongest(k, model.strings(tokens.ids[0].tolist()))
        together = None
        if verify and rows:
            rows, together = _verified(model, sae, tokens, quantity, rows)
    check()
    return Attribution(
        model=model.name,
        sae=sae.info.name,
        site=str(site) if not sae.is_transcoder else f"{site} → {written}",
        dtype=str(model.dtype).removeprefix("torch."),
        tokens=tuple(model.strings(tokens.ids[0].tolist())),
        counted=tuple(parts.counted.tolist()),
        position=at,
        target=wanted,
        against=other,
        logit=wanted.logit - (0.0 if other is None else other.logit),
        rows=rows,
        by_feature=parts.totals(k),
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
        device = sae.W_dec.device
        g, y = gradient.to(device, torch.float32), y.to(device, torch.float32)
        counted = counted.to(device)
        kept = counted[found.tokens] & (g != 0).any(-1)[found.tokens]
        positions, ids, activations = found.tokens[kept], found.features[kept].long(), found.values[kept].double()
        dots = [
            (sae.W_dec[some].float().double() * g[where].double()).sum(-1)
            for some, where in zip(torch.split(ids, _ENTRIES), torch.split(positions, _ENTRIES), strict=True)
        ]
        contributions = activations * torch.cat(dots) if dots else activations
        g = g.double()
        nothing = torch.zeros_like(g[:, 0])
        past = sae.skipped(x.to(device, torch.float32))
        skip = nothing if past is None else (g * past).sum(-1)
        return cls(
            whole=(g * y).sum(-1).cpu(),
            features=nothing.index_add(0, positions, contributions).cpu(),
            error=((g * (y.double() - reconstruction)).sum(-1) * counted).cpu(),
            bias=(g @ sae.b_dec.double() * counted).cpu(),
            skip=(skip * counted).cpu(),
            counted=counted.cpu(),
            positions=positions.cpu(),
            ids=ids.cpu(),
            activations=activations.cpu(),
            contributions=contributions.cpu(),
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
            values = quantity.of_rows(model.logits(ids)).double()
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
    pair = pair - pair.mean(-1, keepdim=True)
    norms = pair.norm(dim=-1)
    return float(pair[0] @ pair[1] / norms.prod()) if bool((norms > 0).all()) else None


# --- which token is meant -----------------------------------------------------------------------------------------


def _position(position: int, length: int) -> int:
    if not -length <= position < length:
        raise InputError(f"no position {position}: the text has {length} tokens, 0 to {length - 1} (-1 is the last)")
    return position % length


def _target(model: LanguageModel, given: str | int | None, logits: Float[Tensor, "V"]) -> Target:
    if given is None:
        id_ = int(logits.argmax())
    elif isinstance(given, str):
        id_ = token_of(model, given)
    else:
        id_ = int(given)
        if not 0 <= id_ < len(logits):
            raise TokenOutOfRange(f"no token {id_}: {model.name} has tokens 0 to {len(logits) - 1}")
    (token,) = model.strings([id_])
    odds = logits.double().softmax(-1)
    return Target(id=id_, token=token, logit=float(logits[id_]), probability=float(odds[id_]))


def token_of(model: LanguageModel, text: str) -> int:
    """The id of the one token that `text` is, or that it names as `id:NUMBER`.

    Raises InputError, saying how it is tokenised, where it is several; TokenOutOfRange.
    """
    if not text:
        raise InputError("an empty target given: expected the text of one token, such as ' time', or an id")
    kind, _, number = text.partition(":")
    if kind == "id" and number.isascii() and number.isdecimal():
        if len(number) > 9 or int(number) >= model.vocab:
            raise TokenOutOfRange(f"no token {number[:40]}: {model.name} has tokens 0 to {model.vocab - 1}")
        return int(number)
    ids = _ids(model, text)
    if len(ids) == 1 and model.strings(ids) == [text]:
        return ids[0]
    # Some tokenizers put a blank in front of a text's first word: behind another word it is read as it is.
    for before in ("a", ".", "\n"):
        head = _ids(model, before)
        both = _ids(model, before + text)
        if both[: len(head)] == head and len(both) == len(head) + 1 and model.strings(both[-1:]) == [text]:
            return both[-1]
    pieces = " ".join(repr(piece) for piece in model.strings(ids))
    raise InputError(
        f"{text!r} is {len(ids)} tokens to {model.name}, {pieces}: give one of them, a leading blank included, or an id"
    )


def _ids(model: LanguageModel, text: str) -> list[int]:
    return [int(id_) for id_ in model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]


def _notes(model: LanguageModel, wanted: Target, logits: Float[Tensor, "V"], given: str | int | None) -> Iterator[str]:
    if isinstance(given, str) and not given[0].isspace():
        try:
            blank = _target(model, f" {given}", logits)
        except InputError:
            blank = None
        if blank is not None and blank.probability > 10 * wanted.probability:
            yield (
                f"{_quoted(blank)}, with a leading blank, is another token and far likelier here "
                f"({_percent(blank.probability)} against {_percent(wanted.probability)}): was that meant?"
            )
    if model.dtype.itemsize < 4:
        # As many bits as the format keeps of a number of this size.
        step = torch.finfo(model.dtype).eps * 2 ** math.floor(math.log2(max(abs(wanted.logit), 1e-6)))
        name = str(model.dtype).removeprefix("torch.")
        yield (
            f"logits in {name} come in steps of {step:.2g}: measured effects below that are rounding; "
            f"load the model with dtype float32 for finer ones"
        )


# --- figures as text ----------------------------------------------------------------------------------------------


def _quoted(one: Target) -> str:
    return f"“{visible(one.token)}”"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else f"{share:.1e}"


def _signed(value: float, digits: int = 3) -> str:
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def _style(value: float) -> str:
    return "green" if value > 0 else "yellow" if value < 0 else ""


def _code(token: str) -> str:
    return f"<code style='white-space:pre'>{html.escape(visible(token))}</code>"


def _cell(value: float) -> str:
    ink = "rgb(16,140,95)" if value > 0 else "rgb(190,95,20)"
    return f"<span style='color:{ink}'>{_signed(value)}</span>"
