"""The sparse type: which features are active, where, and how strongly. Knows nothing of SAEs or models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gemscope import checked
from gemscope.checked import Count, Positive
from gemscope.errors import InputError
from gemscope.features import arrays
from gemscope.features.kernels.rows import Rows, by_strength
from gemscope.shapes import Bool, Float, Int

if TYPE_CHECKING:
    import pyarrow as pa

_SAID = b"gemscope"
"""Under what an Arrow table keeps what its columns do not say."""


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What an Arrow table keeps beside its columns."""

    d_sae: Positive | None = None
    lead: tuple[Count, ...] | None = None


@dataclass(frozen=True)
class FeatureActivations:
    """Feature activations of N tokens in compressed sparse rows.

    Token n's active features are `features[offsets[n]:offsets[n + 1]]` (ascending ids) with strengths `values[...]`
    in the same order. `lead` is the shape that the tokens came in, usually (rows, positions); N is its product.
    `counted` says which tokens enter numbers and "top" lists (not BOS, padding, attention sinks); None means all.
    `scale` is, of an SAE with a norm, how much each token's features write: what decoding them takes.
    """

    offsets: Int[Tensor, "starts"]
    features: Int[Tensor, "Z"]
    values: Float[Tensor, "Z"]
    d_sae: int
    lead: tuple[int, ...]
    counted: Bool[Tensor, "..."] | None = None
    scale: Float[Tensor, "..."] | None = None

    def __post_init__(self) -> None:
        if len(self.offsets) != self.n_tokens + 1:
            raise InputError(f"{len(self.offsets)} row offsets do not fit {self.n_tokens} tokens (expected one more)")
        if self.counted is not None and tuple(self.counted.shape) != self.lead:
            raise InputError(f"a mask of shape {tuple(self.counted.shape)} does not fit tokens of shape {self.lead}")

    @classmethod
    def from_dense(
        cls, dense: Float[Tensor, "... F"], counted: Bool[Tensor, "..."] | None = None
    ) -> FeatureActivations:
        """Keeps every entry that is not zero."""
        flat = dense.reshape(-1, dense.shape[-1])
        tokens, features = flat.nonzero(as_tuple=True)
        offsets = torch.zeros(len(flat) + 1, dtype=torch.int64, device=dense.device)
        offsets[1:] = torch.bincount(tokens, minlength=len(flat)).cumsum(0)
        return cls(offsets, features, flat[tokens, features], dense.shape[-1], tuple(dense.shape[:-1]), counted)

    @property
    def n_tokens(self) -> int:
        """Tokens, counted or not."""
        return prod(self.lead)

    @cached_property
    def tokens(self) -> Int[Tensor, "Z"]:
        """For every entry, the flat index of its token."""
        each = self.offsets.diff()
        return torch.repeat_interleave(each, output_size=len(self.features))

    @cached_property
    def l0(self) -> Int[Tensor, "..."]:
        """How many features are active, per token; shape `lead`."""
        return self.offsets.diff().reshape(self.lead)

    @property
    def mean_l0(self) -> float:
        """Mean L0 over the counted tokens; NaN when none counts."""
        l0 = self.l0 if self.counted is None else self.l0[self.counted]
        return l0.double().mean().item()

    @property
    def firing(self) -> int:
        """How many features fire on counted tokens."""
        here = self.features if self.counted is None else self.features[self.counted.reshape(-1)[self.tokens]]
        return int(torch.unique(here).numel())

    def to_dense(self) -> Float[Tensor, "... F"]:
        """[*lead, d_sae], zeros included. Large: 8 GB for 2,048 tokens of a million features."""
        dense = self.values.new_zeros(self.n_tokens, self.d_sae)
        dense[self.tokens, self.features.long()] = self.values
        return dense.reshape(*self.lead, self.d_sae)

    def row(self, token: int) -> tuple[Int[Tensor, "z"], Float[Tensor, "z"]]:
        """Features and strengths of one token (flat index), strongest first."""
        start, stop = self.offsets[token], self.offsets[token + 1]
        values, order = self.values[start:stop].sort(descending=True, stable=True)
        return self.features[start:stop][order], values

    def top(self, k: int) -> tuple[Int[Tensor, "... K"], Float[Tensor, "... K"]]:
        """The k strongest features of each token and their strengths, strongest first.

        Where fewer than k are active the rest is feature -1 and strength 0. Tokens that do not count are included:
        `counted` says which they are.
        """
        ids = self.features.new_full((self.n_tokens, k), -1)
        strengths = self.values.new_zeros(self.n_tokens, k)
        order, rank = by_strength(self.offsets, self.tokens, self.values)
        kept = rank < k
        ids[self.tokens[kept], rank[kept]] = self.features[order[kept]]
        strengths[self.tokens[kept], rank[kept]] = self.values[order[kept]]
        return ids.reshape(*self.lead, k), strengths.reshape(*self.lead, k)

    def of(self, feature: int) -> Float[Tensor, "..."]:
        """One feature's strength on every token; shape `lead`."""
        if not 0 <= feature < self.d_sae:
            raise InputError(f"no feature {feature}: this SAE has features 0 to {self.d_sae - 1}")
        hits = self.features == feature
        strengths = self.values.new_zeros(self.n_tokens)
        strengths[self.tokens[hits]] = self.values[hits]
        return strengths.reshape(self.lead)

    def to(self, device: torch.device | str) -> FeatureActivations:
        """The same on another device."""
        counted = None if self.counted is None else self.counted.to(device)
        return replace(
            self,
            offsets=self.offsets.to(device),
            features=self.features.to(device),
            values=self.values.to(device),
            counted=counted,
            scale=None if self.scale is None else self.scale.to(device),
        )

    # --- other libraries' ---------------------------------------------------------------------------------------

    @property
    def _rows(self) -> Rows:
        return Rows(self.offsets, self.features, self.values)

    def to_scipy(self) -> Any:
        """A `scipy.sparse.csr_array` [n_tokens, d_sae] on the same memory, but for the offsets (which are few): what is
        written into it is written here. Raises MissingDependency.
        """
        return arrays.to_scipy(self._rows, self.d_sae)

    @classmethod
    def from_scipy(
        cls, matrix: Any, *, lead: Sequence[int] | None = None, counted: Bool[Tensor, "..."] | None = None
    ) -> FeatureActivations:
        """Of any sparse matrix [n_tokens, d_sae]; on its memory where its rows are compressed and sorted. `lead` is
        (n_tokens,) unless given. Raises InputError.
        """
        rows, d_sae = arrays.of_scipy(matrix)
        return cls._of(rows, d_sae, lead, counted)

    def to_arrow(self) -> pa.Table:
        """An Arrow table with a row for every token: lists of its `features` and their `values` on the same memory, and
        `counted` where that is known. It keeps `d_sae` and `lead`, also through parquet. Raises MissingDependency.
        """
        columns: dict[str, Any] = dict(arrays.to_lists(self._rows))
        if self.counted is not None:
            columns["counted"] = arrays.array(self.counted.reshape(-1))
        said = json.dumps({"d_sae": self.d_sae, "lead": self.lead})
        table: pa.Table = arrays.library("pyarrow", '"gemscope[parquet]"').table(columns)
        return table.replace_schema_metadata({_SAID: said})

    @classmethod
    def from_arrow(
        cls, table: pa.Table, *, d_sae: int | None = None, lead: Sequence[int] | None = None
    ) -> FeatureActivations:
        """Of a table like that of `to_arrow`; on its memory where a column is in one piece and its lists are sorted.
        `d_sae` has to be given for a table that does not keep it; `lead` is (rows,) for one that does not fit it any
        more. Raises InputError.
        """
        if missing := [name for name in ("features", "values") if name not in table.column_names]:
            raise InputError(f"a table without {' and '.join(missing)}: expected a list of each for every token")
        said = checked.json_of((table.schema.metadata or {}).get(_SAID, b"{}"), _Said, where="what the table says")
        d_sae = said.d_sae if d_sae is None else d_sae
        if d_sae is None:
            raise InputError("this table does not say how many features there are: give d_sae=...")
        if lead is None and said.lead is not None and prod(said.lead) == table.num_rows:
            lead = said.lead
        counted = None
        if "counted" in table.column_names:
            counted = arrays.tensor(table["counted"].to_numpy())
            if counted.dtype != torch.bool:
                raise InputError(f"the column counted is of type {table['counted'].type}: expected bool")
        return cls._of(arrays.of_lists(table["features"], table["values"], d_sae), d_sae, lead, counted)

    def to_pandas(self) -> Any:
        """A data frame with a row for every active feature: `token` (flat index), `feature`, `value`, by token and then
        feature; and `counted` where that is known. On the same memory but for `token` and `counted`. A token without
        active features has no row. Raises MissingDependency.
        """
        return arrays.library("pandas", "pandas").DataFrame(self._entries, copy=False)

    def to_polars(self) -> Any:
        """The same as `to_pandas`, as a frame of polars. Raises MissingDependency."""
        return arrays.library("polars", "polars").DataFrame(self._entries)

    @classmethod
    def from_frame(
        cls, frame: Any, *, d_sae: int, lead: Sequence[int], counted: Bool[Tensor, "..."] | None = None
    ) -> FeatureActivations:
        """Of a data frame of pandas or polars like those of `to_pandas` and `to_polars`, its rows in any order. How
        many features and tokens there are it cannot say. Raises InputError.
        """
        return cls._of(arrays.of_entries(frame, prod(lead), d_sae), d_sae, lead, counted)

    @property
    def _entries(self) -> dict[str, Any]:
        columns = dict(zip(arrays.COLUMNS, (self.tokens, self.features, self.values), strict=True))
        if self.counted is not None:
            columns["counted"] = self.counted.reshape(-1)[self.tokens]
        return {name: arrays.array(column) for name, column in columns.items()}

    @classmethod
    def _of(
        cls, rows: Rows, d_sae: int, lead: Sequence[int] | None, counted: Bool[Tensor, "..."] | None
    ) -> FeatureActivations:
        shape = (len(rows.offsets) - 1,) if lead is None else tuple(map(int, lead))
        if counted is not None and counted.numel() == prod(shape):
            counted = counted.reshape(shape)
        return cls(rows.offsets, rows.ids, rows.values.float(), d_sae, shape, counted)
