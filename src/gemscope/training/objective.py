"""The loss of an SAE and its gradients in closed form, computed only where a feature is active or nearly so.

For one batch of B rows x, what each shall become y (x itself, but for transcoders), z = x W_enc + b_enc, f the gated z:

    loss = Σ_g w_g 1/B Σ ‖y − x̂_g‖² + penalty,     x̂_g = Σ_{i < m_g} f_i d_i + b_dec (+ W_skip x)

The prefixes m_g are Matryoshka's (Bussmann et al. 2025, arXiv 2503.17547); an ordinary SAE has one, all features.

    gate        f
    jumprelu    z where z > θ and z > 0, θ learned
    relu        z where z > 0
    topk        z where it is positive and among the row's k largest (Gao et al. 2024, arXiv 2406.04093)
    batchtopk   z where it is positive and z‖d‖ among the batch's k·B largest (Bussmann et al. 2024, arXiv 2412.06410,
                where ‖d‖ is 1)

    penalty     with L0 = 1/B Σ_b L0_b, n_i = ‖d_i‖, of a crosscoder Σ_s ‖d_i^s‖ over its sites' parts of the row
    target      λ (L0/L0* − 1)²                              Rajamanoharan et al. 2024 (arXiv 2407.14435), appendix
    l0          λ L0                                         the same, eq. 9
    quadratic   λ 1/B Σ_b 2/L0* (L0_b − L0*)²                Gemma Scope 2, token by token
    tanh        λ 1/B Σ tanh(4 f_i n_i)                      Anthropic, January 2025
    l1          λ 1/B Σ f_i n_i                              Anthropic, April 2024: rows of the decoder are free;
                                                             crosscoders: Lindsey et al., October 2024
    none        0

    and with jumprelu, against features that fire everywhere (Gemma Scope 2), the hinge

    frequency Σ_i max(0, p_i − frequency_limit)²,     p_i = 1/B Σ_b 1[z_i > θ_i]

Weights get the plain gradient through active entries. Thresholds get the pseudo-derivatives of Rajamanoharan et al.
(eqs. 11 and 12) with the rectangle K of width ε around θ, taken on z and only where z > 0:

    ∂f/∂θ = −(θ/ε) K((z − θ)/ε),      ∂1[z > θ]/∂θ = −(1/ε) K((z − θ)/ε)

and, where `to_input`, z gets their opposites as Anthropic has it. While few entries lie above their floors those alone
are computed; while many do (a fresh SAE), dense products are cheaper.

Ranks that hold a share of the features each (`deal.py`) have the same rows, and add up what they make of them, x̂_g; of
all else that needs more than a feature and the error, numbers alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from gemscope.features.kernels import Kernels, Rows
from gemscope.features.kernels.choice import choose
from gemscope.shapes import Bool, Float, Int
from gemscope.training.deal import Deal
from gemscope.training.products import FLOAT32, Products
from gemscope.training.weights import Weights, at_once, cut, largest, lengths, norms_by_part

Gate = Literal["jumprelu", "relu", "topk", "batchtopk"]
Penalty = Literal["target", "l0", "quadratic", "tanh", "l1", "none"]

_TANH = 4.0
_QUICKER = 8
"""By how much dense products in bfloat16 beat those in float32 on a GPU: an estimate from rates that makers give."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the loss is made of at one step."""

    gate: Gate = "jumprelu"
    penalty: Penalty = "target"
    sparsity: float = 1.0
    """λ."""
    target: float = 50.0
    """L0*, and k of the gates that have one."""
    bandwidth: float = 0.0
    """ε."""
    prefixes: tuple[int, ...] = ()
    """Ends m_g of the prefixes, ascending, all features last; empty: that one alone. Their errors are averaged."""
    parts: tuple[int, ...] = ()
    """Numbers of each site in a decoder row, of a crosscoder; empty: one site."""
    to_input: bool = False
    auxiliary: float = 0.0
    """Weight of the silent features' own loss."""
    frequency: float = 0.0
    """Weight of the hinge on how often a feature fires."""
    frequency_limit: float = 0.1
    """Share of rows up to which it costs nothing."""
    products: Products = FLOAT32


@dataclass(frozen=True)
class Step:
    """What one batch says: the loss and its parts, all means over the batch."""

    loss: float
    error: float
    """Mean ‖y − x̂‖² with all features; the FVU where y has mean 0 and mean squared norm 1."""
    l0: float
    window: float
    """Entries per row within ε/2 of their threshold: what the thresholds' gradient is estimated from."""
    firings: Int[Tensor, "F"]
    auxiliary: float = 0.0
    """What the silent features leave unexplained of the error, as a share of it; 0 where there are none."""
    tau: float = 0.0
    """The smallest z‖d‖ that batchtopk let through; 0 where fewer were positive than might fire."""
    penalty: float = 0.0
    """What the loss has of it."""


def step(
    weights: Weights,
    x: Float[Tensor, "B D"],
    y: Float[Tensor, "B O"],
    terms: Terms,
    *,
    silent: Bool[Tensor, "F"] | None = None,
    kernels: Kernels | None = None,
    dense: bool | None = None,
    deal: Deal | None = None,
) -> tuple[Step, Weights]:
    """Loss and gradients (a `Weights` of the same shapes) on one batch.

    `silent` are the features that the auxiliary loss is for. `kernels` are those that suit the device, and `dense` is
    decided by a look at a few rows, unless given. With a `deal` the weights are this rank's share of them.
    """
    kernels = kernels or choose(x.device)
    pass_ = _Pass(weights, x, y, terms, kernels=kernels, deal=deal or Deal(len(weights.b_enc)))
    if terms.gate in ("jumprelu", "relu") and not terms.to_input:
        quick = kernels.sparse_below / (1 if terms.products.of == torch.float32 or x.device.type == "cpu" else _QUICKER)
        if _share_above(weights, pass_, x) > quick if dense is None else dense:
            pass_.densely()
        else:
            pass_.sparsely()
    else:
        pass_.sparsely()
    if terms.auxiliary and silent is not None:
        pass_.revive(silent)
    return pass_.told(), pass_.grads


class _Pass:
    """One batch: what is found of it, and the gradients as they add up. Numbers that only `told` asks for stay where
    they are until then: a GPU is waited for whenever one is looked at.
    """

    def __init__(self, weights: Weights, x: Tensor, y: Tensor, terms: Terms, *, kernels: Kernels, deal: Deal) -> None:
        self.weights, self.x, self.y, self.terms, self.kernels = weights, x, y, terms, kernels
        self.deal, self.group = deal, deal.group
        self.count, self.width = len(x), len(weights.b_enc)
        self.by_name: dict[str, Tensor] = {}
        """Gradients."""
        self.groups = list(pairwise((0, *map(deal.of_first, terms.prefixes or (deal.width,)))))
        """First feature and end of each group: the g-th prefix is the groups up to the g-th."""
        self.parts = norms_by_part(weights.W_dec, terms.parts) if terms.penalty in ("tanh", "l1") else []
        self.norms = sum(self.parts[1:], self.parts[0]) if self.parts else None
        self.tau = 0.0
        self.near = 0
        self.l0 = 0.0
        self.errors: list[Tensor] = []
        """Σ ‖y − x̂_g‖² of some rows, group after group."""
        self.extra: list[tuple[float, Tensor]] = []
        """Parts of the penalty: a weight, and what it is of with this rank's features."""
        self.left: list[Tensor] = []
        """What the silent features leave of some rows, as Σ ‖·‖²; after all of them what there was."""
        self.firings = torch.zeros(self.width, dtype=torch.int64, device=x.device)
        self.floor = self._floor()
        self.unexplained: list[Tensor] = []
        """y − x̂, some rows each; kept where the silent features shall explain it."""

    @property
    def grads(self) -> Weights:
        """Of the same shapes as the weights."""
        return Weights(**{name: self._gradient(name) for name in self.weights.tensors()})

    def _gradient(self, name: str) -> Tensor:
        """One to add to."""
        if name not in self.by_name:
            self.by_name[name] = torch.zeros_like(self.weights.tensors()[name])
        return self.by_name[name]

    def _add(self, name: str, parts: list[Tensor]) -> None:
        """Parts of a gradient below each other: zeros are not made where there is nothing yet."""
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        if name in self.by_name:
            self.by_name[name] += whole
        else:
            self.by_name[name] = whole

    def told(self) -> Step:
        terms, l0 = self.terms, self.l0
        often = self._excess().double().pow(2).sum() if terms.frequency else None
        waiting = [*self.errors, *self.left, *(of for _, of in self.extra), *([] if often is None else [often])]
        numbers = torch.stack([number.double() for number in waiting])
        if self.group.size > 1:
            numbers = torch.cat([numbers, numbers.new_tensor([self.near])])
            self.group.sum_(numbers[len(self.errors) + len(self.left) :])
        found = numbers.tolist()
        near = self.near if self.group.size == 1 else found.pop()
        errors, found = found[: len(self.errors)], found[len(self.errors) :]
        left, found = found[: len(self.left)], found[len(self.left) :]
        weighed, found = found[: len(self.extra)], found[len(self.extra) :]
        groups = len(self.groups)
        nested = error = 0.0
        for place, squares in enumerate(errors):
            nested += squares / self.count / groups
            error += squares / self.count if place % groups == groups - 1 else 0.0
        extra = 0.0
        for (weight, _), number in zip(self.extra, weighed, strict=True):
            extra += weight * number
        auxiliary = 0.0
        for number in left[:-1]:
            auxiliary += number / left[-1]
        penalty = {
            "target": lambda: terms.sparsity * (l0 / terms.target - 1) ** 2,
            "l0": lambda: terms.sparsity * l0,
        }.get(terms.penalty, lambda: extra)()
        penalty += terms.frequency * found[-1] if terms.frequency else 0.0
        loss = nested + penalty + terms.auxiliary * auxiliary
        return Step(loss, error, l0, near / self.count, self.firings, auxiliary, self.tau, penalty)

    def _floor(self) -> Tensor:
        theta = self.weights.threshold
        if self.terms.gate == "relu":
            return torch.zeros_like(theta)
        if self.terms.gate == "batchtopk":  # what was enough for the batch before nearly is for this one
            return cut(self.weights, 0.9)
        # A little below θ − ε/2, for the window's edge is computed in another order below.
        return (theta * (1 - 2.0**-22) - self.terms.bandwidth / 2 * (1 + 2.0**-22)).clamp_(min=0)

    # --- entry by entry ---------------------------------------------------------------------------------------

    def sparsely(self) -> None:
        """Everything from the entries above their floors alone."""
        weights, terms, x, kernels = self.weights, self.terms, self.x, self.kernels
        found, active, near = self._entries()
        on, window = found.where(active), near.nonzero()[:, 0]
        self.near = len(window)
        by_feature, origin = kernels.transposed(on, self.width)
        self.firings = by_feature.offsets.diff()

        decoder = terms.products.rounded(weights.W_dec)
        parts, l0, all_on = self._of_all([kernels.sums(part, decoder) for part in self._split(on)], on.offsets.diff())
        self.l0 = (len(on.ids) if all_on is None else all_on.item()) / self.count
        backwards = self._residuals(parts)
        low_backwards = [terms.products.rounded(g) for g in backwards]
        moved = active | near if terms.to_input else active
        df = torch.empty_like(found.values)
        for (low, high), g in zip(self.groups, low_backwards, strict=True):
            if len(self.groups) == 1:
                df = kernels.dots(found.offsets, found.ids, g, decoder)
            else:
                here = (found.ids >= low) & (found.ids < high)
                part = found.where(here)
                df[here] = kernels.dots(part.offsets, part.ids, g, decoder)
        row = found.rows
        if self.norms is not None:
            df += self._penalised(found.ids, found.values.masked_fill(~active, 0.0))
        each = self._pull(l0, row)
        if terms.frequency:
            each = each + self._often_pull()[found.ids]

        by_group = zip(self._by_group(by_feature), low_backwards, strict=True)
        self._add("W_dec", [kernels.sums(part, g) for part, g in by_group])
        dz = df * active
        if terms.gate == "jumprelu":
            theta = weights.threshold[found.ids]
            pull = (theta * df + each) / terms.bandwidth
            self._gradient("threshold").sub_(kernels.totals(found.ids[window], pull[window], self.width))
            if terms.to_input:
                dz = dz + pull * near
        if terms.to_input:
            by_feature, origin = kernels.transposed(found.where(moved), self.width)
        pulled = dz[moved]
        pulls = Rows(by_feature.offsets, by_feature.ids, pulled[origin])
        self._add("W_enc", [kernels.sums(pulls, terms.products.rounded(x))])
        ids = found.ids[moved] if terms.to_input else on.ids
        self._gradient("b_enc").add_(kernels.totals(ids, pulled, self.width))

    def _entries(self) -> tuple[Rows, Tensor, Tensor]:
        """Entries, which of them are active, and which lie in the window of their threshold."""
        weights, terms, x, kernels = self.weights, self.terms, self.x, self.kernels
        if terms.gate == "topk":
            found = largest(weights, x, round(terms.target), terms.products, self.deal)
            everything = torch.ones_like(found.ids, dtype=torch.bool)
            return found, everything, ~everything
        found = kernels.above(kernels.pack(weights.W_enc, weights.b_enc, self.floor), x)
        if terms.gate == "batchtopk":
            wanted, norms = max(1, round(terms.target * self.count)), lengths(weights)
            written = found.values * norms[found.ids]
            tau = self.group.largest(written, wanted)
            if tau is None and self.group.total(int(self.floor.any())):
                zero = torch.zeros_like(self.floor)
                found = kernels.above(kernels.pack(weights.W_enc, weights.b_enc, zero), x)
                written = found.values * norms[found.ids]
                tau = self.group.largest(written, wanted)
            self.tau = tau or 0.0
            active = written >= self.tau
            return found, active, torch.zeros_like(active)
        theta = weights.threshold[found.ids]
        active = found.values > theta
        if terms.gate == "relu":
            return found, active, torch.zeros_like(active)
        return found, active, (found.values - theta).abs_() < terms.bandwidth / 2

    def _split(self, on: Rows) -> Iterator[Rows]:
        for low, high in self.groups:
            yield on if len(self.groups) == 1 else on.where((on.ids >= low) & (on.ids < high))

    def _by_group(self, by_feature: Rows) -> Iterator[Rows]:
        """The features of each group."""
        if len(self.groups) == 1:
            yield by_feature
            return
        starts = torch.stack([by_feature.offsets[low] for low in (0, *(high for _, high in self.groups))]).tolist()
        for (low, high), part in zip(self.groups, map(slice, starts, starts[1:]), strict=True):
            offsets = by_feature.offsets[low : high + 1] - by_feature.offsets[low]
            yield Rows(offsets, by_feature.ids[part], by_feature.values[part])

    # --- all at once ------------------------------------------------------------------------------------------

    def densely(self) -> None:
        """The same by products over all features, some rows at a time."""
        weights, terms, theta, products = self.weights, self.terms, self.weights.threshold, self.terms.products
        encoder, decoder = products.rounded(weights.W_enc), products.rounded(weights.W_dec)
        firings, near, pulled, inside = (torch.zeros_like(theta) for _ in range(4))
        all_on = torch.zeros((), dtype=torch.float64, device=self.x.device)
        rows = at_once(self.x, self.deal.most)
        buffers = torch.empty(4, min(self.count, rows), self.width, device=self.x.device)
        whole_y, whole_x = self.y, self.x
        for x, y in zip(torch.split(whole_x, rows), torch.split(whole_y, rows), strict=True):
            z, active, window, df = buffers[:, : len(x)]
            z = products.affine(weights.b_enc, x, encoder.T, out=z)
            # Masks as numbers: torch multiplies and sums those many times faster than booleans.
            torch.gt(z, theta.clamp(min=0), out=active)
            torch.gt(z, (theta - terms.bandwidth / 2).clamp(min=0), out=window)
            window.mul_(torch.lt(z, theta + terms.bandwidth / 2, out=df))
            l0 = active.sum(1)
            firings += active.sum(0)
            f = z.mul_(active)
            self.x, self.y = x, y
            parts = [products.mm(f[:, low:high], decoder[low:high]) for low, high in self.groups]
            parts, l0, _ = self._of_all(parts, l0)
            all_on += l0.double().sum()
            backwards = self._residuals(parts)
            for (low, high), g in zip(self.groups, backwards, strict=True):
                products.into(df[:, low:high], g, decoder[low:high].T)
                products.add(self._gradient("W_dec")[low:high], f[:, low:high].T, g)
            df += self._penalised(None, f)
            pulled += (window * df).sum(0)
            near += window.sum(0) if terms.penalty != "quadratic" else (window * self._row_pull(l0)[:, None]).sum(0)
            inside += window.sum(0)
            dz = df.mul_(active)
            products.add(self._gradient("W_enc"), dz.T, x)
            self._gradient("b_enc").add_(dz.sum(0))
        self.x, self.y = whole_x, whole_y
        self.l0 = all_on.item() / self.count
        self.firings = firings.to(torch.int64)
        self.near = int(inside.double().sum())
        if terms.gate == "jumprelu":
            each = 1.0 if terms.penalty == "quadratic" else self._batch_pull()
            often = self._often_pull() * inside if terms.frequency else 0.0
            self._gradient("threshold").sub_((theta * pulled + each * near + often) / terms.bandwidth)

    # --- what both ways share ---------------------------------------------------------------------------------

    def _of_all(self, parts: list[Tensor], l0: Tensor) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """What the features of all ranks add to x̂, group after group, from what this one's do; L0 by row, and its sum
        over rows, which one process alone need not ask for. One word, in which the counts ride along.
        """
        if self.group.size == 1:
            return parts, l0, None
        said = self.group.sum_(torch.cat([*parts, l0[:, None].float()], dim=1))
        *parts, counts = torch.split(said, [*(part.shape[1] for part in parts), 1], dim=1)
        return [part.contiguous() for part in parts], counts[:, 0], counts.double().sum()

    def _residuals(self, parts: list[Tensor]) -> list[Tensor]:
        """From what each group adds to x̂: the errors, the biases' gradients, and for each group ∂loss/∂x̂ of all the
        prefixes that it is part of.
        """
        weights = self.weights
        out = weights.b_dec if weights.W_skip is None else weights.b_dec + self.x @ weights.W_skip.T
        backwards = []
        for part in parts:
            out = part.add_(out)
            residual = out - self.y
            self.errors.append(residual.pow(2).sum())
            backwards.append(residual.mul_(2 / (self.count * len(parts))))
        if self.terms.auxiliary:
            self.unexplained.append(self.y - out)
        for later, earlier in zip(backwards[::-1], backwards[-2::-1], strict=False):
            earlier.add_(later)
        self._gradient("b_dec").add_(backwards[0].sum(0))
        if weights.W_skip is not None:
            self._gradient("W_skip").addmm_(backwards[0].T, self.x)
        return backwards

    def _penalised(self, ids: Tensor | None, f: Tensor) -> Tensor | float:
        """∂penalty/∂f of penalties on activations; the decoder rows' part is added to their gradient here. Entries by
        their ids, or a row of all features each.
        """
        if self.norms is None:
            return 0.0
        norms = self.norms if ids is None else self.norms[ids]
        weight = self.terms.sparsity / self.count
        if self.terms.penalty == "l1":
            self.extra.append((weight, (f * norms).sum()))
            slope, by_norm = weight * norms, weight * f
        else:
            bent = torch.tanh(_TANH * f * norms)
            self.extra.append((weight, bent.sum()))
            steep = weight * _TANH * (1 - bent * bent)
            slope, by_norm = steep * norms, steep * f
        summed = by_norm.sum(0) if ids is None else self.kernels.totals(ids, by_norm, self.width)
        widths = [*(self.terms.parts or self.weights.W_dec.shape[1:])]
        for grad, rows, norms in zip(
            *(torch.split(W_dec, widths, dim=-1) for W_dec in (self._gradient("W_dec"), self.weights.W_dec)),
            self.parts,
            strict=True,
        ):
            grad.addcmul_((summed / norms.clamp(min=1e-12))[:, None], rows)
        return slope

    def _pull(self, l0: Tensor, row: Tensor) -> Tensor | float:
        """∂penalty/∂1[z > θ] of each entry."""
        if self.terms.penalty == "quadratic":
            pulls: Tensor = self._row_pull(l0.float())[row]
            return pulls
        return self._batch_pull()

    def _row_pull(self, l0: Tensor) -> Tensor:
        """The same of all entries of a row, for the penalty that looks at each row by itself."""
        terms = self.terms
        each = 2 * terms.sparsity / (terms.target * self.count)
        known = (l0 - terms.target).pow(2).sum()
        self.extra.append((each, known if self.group.first else torch.zeros_like(known)))  # all know it alike
        return 2 * each * (l0 - terms.target)

    def _batch_pull(self) -> float:
        """The same of all entries of the batch."""
        terms = self.terms
        if terms.penalty == "target":
            return terms.sparsity * 2 * (self.l0 / terms.target - 1) / (terms.target * self.count)
        return terms.sparsity / self.count if terms.penalty == "l0" else 0.0

    def _excess(self) -> Tensor:
        """By how much each feature fires more often than the limit."""
        return (self.firings / self.count - self.terms.frequency_limit).clamp_(min=0)

    def _often_pull(self) -> Tensor:
        """∂hinge/∂1[z > θ] of each feature's entries."""
        return 2 * self.terms.frequency / self.count * self._excess()

    # --- silent features --------------------------------------------------------------------------------------

    def revive(self, silent: Tensor) -> None:
        """AuxK (Gao et al. 2024, appendix A.2): of the silent features, the half of D largest pre-activations of each
        row shall explain what the others leave. Adds their gradients.
        """
        weights, terms = self.weights, self.terms
        chosen = silent.nonzero()[:, 0]
        of_all = int(self.group.total(len(chosen)))
        if not of_all:
            return
        encoder, decoder, bias = weights.W_enc[chosen], weights.W_dec[chosen], weights.b_enc[chosen]
        error = torch.cat(self.unexplained)
        spread = (error - error.mean(0)).pow(2).sum()
        if spread <= 1e-9 * error.pow(2).sum():  # every row leaves the same, or nothing: that is the bias's part
            return
        k = min(of_all, max(1, self.x.shape[1] // 2))
        rows = at_once(self.x, of_all)
        for x, e in zip(torch.split(self.x, rows), torch.split(error, rows), strict=True):
            z = torch.addmm(bias, x, encoder.T)
            kept = z.topk(min(k, len(chosen)), dim=-1)
            values = kept.values.clamp(min=0)
            if k < of_all:
                values.masked_fill_(~self.group.among(kept.values, k), 0.0)
            f = torch.zeros_like(z).scatter(1, kept.indices, values)
            residual = self.group.sum_(f @ decoder) - e
            self.left.append(residual.pow(2).sum())
            g = residual.mul_(2 * terms.auxiliary / spread)
            self._gradient("W_dec").index_add_(0, chosen, f.T @ g)
            dz = (g @ decoder.T) * (f > 0)
            self._gradient("W_enc").index_add_(0, chosen, dz.T @ x)
            self._gradient("b_enc").index_add_(0, chosen, dz.sum(0))
        self.left.append(spread)


def _share_above(weights: Weights, pass_: _Pass, x: Tensor) -> float:
    """Of a few rows spread over the batch: a function of the batch alone, so that a run can be repeated, and the same
    with every rank, for they must go one way.
    """
    few, group = x[:: max(1, len(x) // 16)], pass_.group
    share = (torch.addmm(weights.b_enc, few, weights.W_enc.T) > pass_.floor).float().mean().item()
    return group.total(share) / group.size
