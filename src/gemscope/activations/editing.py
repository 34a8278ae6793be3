"""Edits in force: on which tokens each one acts, what it looks at, and how its change gets into the model. What an edit
computes is `edits/`'s work; torch's hooks are `hooks.py`'s.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any, Literal
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from gemscope.activations import sinks
from gemscope.activations import site as places
from gemscope.activations.families import Point
from gemscope.activations.hooks import aside, reading, replacing
from gemscope.activations.passes import Pass
from gemscope.activations.site import Site
from gemscope.errors import InputError, Mismatch, NotFinite
from gemscope.shapes import Bool, Float, Int

Positions = Literal["all", "prompt", "generated"] | tuple[int, ...] | Bool[Tensor, "B T"]
"""Tokens of a row: all of them, those of the prompt or those generated after it; single ones by their place in the row,
padding not counted, negative ones from the prompt's end (-1: its last token); or a mask, taken exactly as it is."""


_NAMED: tuple[Literal["all", "prompt", "generated"], ...] = ("all", "prompt", "generated")


def positions(at: str | Sequence[int] | Tensor) -> Positions:
    """Where an edit shall act, as it is kept. Raises InputError for what names no positions."""
    if isinstance(at, Tensor):
        if at.dtype != torch.bool or at.ndim != 2:
            raise InputError(
                f"at is a tensor of {at.dtype} and shape {tuple(at.shape)}: expected a mask [B, T] of bool"
            )
        return at
    for known in _NAMED:
        if at == known:
            return known
    found = () if isinstance(at, str) else tuple(at)
    if not found or not all(isinstance(one, Integral) for one in found):
        raise InputError(f"at={at!r}: expected 'all', 'prompt', 'generated', positions, or a mask [B, T]")
    return tuple(map(int, found))


class Edit:
    """A change to what flows through one site, as a value. Subclasses say what is added: `change`.

    Special tokens, the first of a row and attention sinks are left alone unless `every_token`: no SAE means anything
    there. All edits of one `model.edited(...)` look at the same arriving activations and their changes add up, so
    their order does not matter; blocks within blocks follow one another.
    """

    site: Site
    """Where it writes."""
    width: int | None = None
    """Numbers per token there; None for an edit that fits any."""
    at: Positions = "all"
    every_token: bool = False

    @property
    def reads(self) -> Site:
        """Where it looks: at the activations that it changes, but for transcoders."""
        return self.site

    @property
    def reads_width(self) -> int | None:
        """Numbers per token there; None for an edit that fits any."""
        return self.width

    @property
    def fixes(self) -> Hashable:
        """What it sets to a value of its own, so that two edits that set the same at one site contradict each other;
        None where it only adds.
        """
        return None

    def change(self, x: Float[Tensor, "N D"], read: Float[Tensor, "N I"]) -> Float[Tensor, "N D"]:
        """What is added to the activations `x` of the tokens on which it acts, given what it reads there. Both come in
        float32, on the model's device.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class _Left:
    """The cache that a pass left, how many tokens it holds, and of how many rows."""

    cache: ReferenceType[Any]
    tokens: int
    rows: int


Unedited = Callable[[Int[Tensor, "B T"], Bool[Tensor, "B T"]], Float[Tensor, "B T"]]
"""From token ids, and which of them are real, to their norms in the middle of the model."""


class Session:
    """What is known of the running pass while edits are in force: its tokens, and which of them count where."""

    def __init__(self, special: Sequence[int], middle: Site, ordinary: float, unedited: Unedited) -> None:
        """`middle` is where sinks are told, `ordinary` the norm there that no ordinary token reaches; `unedited` reads
        the norms in a pass of its own.
        """
        self._special = torch.tensor(sorted(special), dtype=torch.int64)
        self._middle, self._ordinary, self._unedited = middle, ordinary, unedited
        self.prompt: int | None = None
        """How many columns of the next pass (cached ones included) are prompt; None: as `begin` finds them."""
        self.edits: tuple[Edit, ...] = ()
        """Those in force."""
        self._columns: int | None = None
        self._ids: Tensor | None = None
        self._left: _Left | None = None
        self._arrived: Tensor | None = None
        self._read: tuple[Tensor, Tensor] | None = None
        self._known: tuple[Tensor, Tensor, Tensor] | None = None

    def begin(self, this: Pass) -> None:
        """A pass begins. Raises InputError where it does not say which of its tokens are padding."""
        ids, past = this.ids, this.past
        if ids is None:
            raise InputError("edits need token ids, this pass was given embeddings: call the model with input_ids")
        (rows, length), device = ids.shape, ids.device
        whole = _whole(this.mask, rows, past + length).to(device)
        follows = past > 0 and self._follows(this.cache, past, rows)
        told = self.prompt if self.prompt is not None else this.prompt
        if told is None and past == 0:
            told = length
        elif told is None and follows and length == 1:
            told = self._columns
        self.prompt, self._columns = None, told
        self._ids, self._past, self._real = ids, past, whole[:, past:]
        self._position = whole.cumsum(-1)[:, past:] - 1
        column = torch.arange(past, past + length, device=device)
        self._generated = torch.zeros_like(column, dtype=torch.bool) if told is None else column >= told
        self._ends = whole[:, :told].sum(-1)
        special = torch.isin(ids, self._special.to(device))
        self._content = self._real & ~special & (self._position > 0)
        self._arrived = None
        self._read = (ids, self._real) if past == 0 else None
        asked = any(not edit.every_token and not isinstance(edit.at, Tensor) for edit in self.edits)
        if asked and self._early:
            self.sinks()  # now: a pass within a pass would come between what edits read and what they write

    @property
    def _early(self) -> bool:
        """Whether norms arrive in the middle of the model as edits have left them."""
        return any(edit.site < self._middle for edit in self.edits)

    def arrive(self, norms: Float[Tensor, "B T"]) -> None:
        """Norms of the running pass in the middle of the model."""
        self._arrived = norms

    def sinks(self) -> Bool[Tensor, "B T"]:
        """Which tokens of the running pass, or of the last one, are attention sinks of the model as it is unedited.

        Where edits lie below the middle this takes another pass, over the prompt; what is written behind it, or comes
        behind a cache, cannot be told then and passes for ordinary.
        """
        found = torch.zeros_like(self._real)
        if not self._early:
            if self._arrived is not None:
                found = sinks.told(self._arrived, self._ordinary).to(found.device)
        elif self._read is not None:
            ids, real = (part[:, : self._columns] for part in self._read)
            found[:, : ids.shape[1]] = self._told(ids, real)
        return found

    def _told(self, ids: Tensor, real: Tensor) -> Tensor:
        known = self._known
        if known is None or not (torch.equal(known[0], ids) and torch.equal(known[1], real)):
            with aside():
                norms = self._unedited(ids, real)
            known = self._known = (ids, real, sinks.told(norms, self._ordinary).to(ids.device))
        return known[2]

    def end(self, cache: Any) -> None:
        """A pass has ended, and left a cache or None."""
        if self._ids is not None:
            rows, length = self._ids.shape
            self._left = None if cache is None else _Left(ref(cache), self._past + length, rows)
        self._ids = None

    def _follows(self, cache: Any, past: int, rows: int) -> bool:
        """Whether a pass goes on behind what the last one left, or behind a beginning of that."""
        left = self._left
        return left is not None and left.cache() is cache and past <= left.tokens and rows == left.rows

    def changed(
        self,
        values: Float[Tensor, "B T D"],
        edits: Sequence[Edit],
        rows: Tensor | None,
        seen: Mapping[Site, Tensor],
    ) -> Tensor | None:
        """What these edits together make of the values at a point; None where they act on none of its tokens."""
        if self._ids is None or self._ids.shape != values.shape[:2]:
            raise InputError("edits act in passes of the whole model: call the model itself, not one of its modules")
        total, touched = None, None
        for edit in edits:
            where = self._where(edit, values, rows)
            if not where.any():
                continue
            x = values[where].float()
            read = x if edit.reads == edit.site else seen[edit.reads].to(values.device)[where].float()
            change = edit.change(x, read)
            if total is None or touched is None:
                total, touched = values.new_zeros(values.shape, dtype=torch.float32), torch.zeros_like(where)
            total[where] += change.to(total)
            touched |= where
        if total is None or touched is None:
            return None
        # The sum is rounded once: a small change to a large residual would be lost in half precision.
        new = (values.float() + total).to(values.dtype)
        if values.dtype == torch.float16 and not new.isfinite().all():
            raise NotFinite(f"an edit at {edits[0].site} goes beyond what float16 holds: load the model in bfloat16")
        return torch.where(touched[..., None], new, values)

    def _where(self, edit: Edit, values: Tensor, rows: Tensor | None) -> Tensor:
        at = edit.at
        if isinstance(at, Tensor):
            where = self._masked(at).to(values.device)
        else:
            where = self._chosen(at) & (self._real if edit.every_token else self._content & ~self.sinks())
            where = where.to(values.device)
        if rows is not None:
            if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(where):
                raise InputError(f"rows={rows.tolist()}: the batch has rows 0 to {len(where) - 1}")
            among = torch.zeros(len(where), dtype=torch.bool, device=where.device)
            among[rows.to(where.device)] = True
            where = where & among[:, None]
        return where

    def _masked(self, at: Bool[Tensor, "B P"]) -> Bool[Tensor, "B T"]:
        """A mask of the whole text, or of the prompt alone: what is generated behind it is then left alone."""
        rows, end = len(self._real), self._past + self._real.shape[1]
        beyond = end - at.shape[1]
        if at.shape[1] == self._columns and beyond > 0:
            at = torch.nn.functional.pad(at, (0, beyond))
        if at.shape != (rows, end):
            raise InputError(
                f"at has shape {tuple(at.shape)}, the pass has {(rows, end)} (rows, positions): take it from its tokens"
            )
        return at[:, self._past :]

    def _chosen(self, at: str | tuple[int, ...]) -> Tensor:
        if self._columns is None and (at in ("prompt", "generated") or (isinstance(at, tuple) and min(at) < 0)):
            raise InputError(
                f"at={at!r} behind a cache that was filled elsewhere or in pieces, so nothing says where the prompt "
                "ends: call model.hf.generate, or use at='all', positions from the beginning, or a mask"
            )
        if isinstance(at, str):
            return {"all": self._real, "prompt": ~self._generated, "generated": self._generated}[at]
        wanted = torch.tensor(at, dtype=torch.int64, device=self._position.device)
        wanted = torch.where(wanted < 0, self._ends[:, None] + wanted, wanted)  # [B, K]
        return (self._position[..., None] == wanted[:, None, :]).any(-1)


def _whole(mask: Any, rows: int, columns: int) -> Bool[Tensor, "B S"]:
    """Which of the tokens so far are real, as a pass is told. Raises InputError for a mask that does not say it."""
    if mask is None:
        return torch.ones(rows, columns, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[0] != rows or mask.shape[1] < columns:
        what = f"of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"as a {type(mask).__name__}"
        raise InputError(
            f"attention_mask {what} given: edits need it as [{rows}, {columns}] (rows, tokens so far), 0 on padding"
        )
    return mask[:, :columns].bool()


@contextmanager
def in_force(model: nn.Module, session: Session, edits: Sequence[Edit], rows: Sequence[int] | None) -> Iterator[None]:
    """While the block runs, every pass that the session is told of goes through these edits.

    Raises SiteNotFound, Mismatch for another width, InputError for edits that cannot be, or not together.
    """
    at: dict[Point, list[Edit]] = defaultdict(list)
    read: dict[Site, Point] = {}
    for index, edit in enumerate(edits):
        if not isinstance(edit, Edit):
            raise InputError(f"a {type(edit).__name__} is no edit: expected Steer, Clamp, Splice and the like")
        point = _point(model, edit)
        for other in edits[:index]:
            _require_no_clash(other, edit)
        at[point].append(edit)
        if edit.reads != edit.site:
            read[edit.reads] = places.locate(model, edit.reads)
    among = None if rows is None else torch.tensor(list(rows), dtype=torch.int64)
    with ExitStack() as stack:
        seen: Mapping[Site, Tensor] = stack.enter_context(reading(model, read, stop=False))
        acts: dict[Point, Callable[[Tensor], Tensor | None]] = {
            point: partial(session.changed, edits=those, rows=among, seen=seen) for point, those in at.items()
        }
        stack.enter_context(replacing(model, acts))
        before, session.edits = session.edits, (*session.edits, *edits)
        try:
            yield
        finally:
            session.edits = before


def _point(model: nn.Module, edit: Edit) -> Point:
    point = places.locate(model, edit.site)
    if point.transform != "plain":
        raise InputError(f"{edit.site} cannot be edited: it is computed on the side, the model does not read it")
    if edit.reads > edit.site:
        raise InputError(f"an edit at {edit.site} cannot read {edit.reads}: the model computes that later")
    for site, width, does in ((edit.reads, edit.reads_width, "reads"), (edit.site, edit.width, "writes")):
        here = places.width(model, site)
        if width not in (None, here):
            raise Mismatch(f"this edit {does} {width} numbers per token, the model has {here} at {site}: {edit}")
    return point


def _require_no_clash(one: Edit, other: Edit) -> None:
    if one.site == other.site and one.fixes is not None and one.fixes == other.fixes and _overlap(one.at, other.at):
        raise InputError(f"two edits at {one.site} that contradict each other: {one}; {other}: keep one of them")


def _overlap(one: Positions, other: Positions) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape != other.shape or bool((one & other.to(one.device)).any())
    if isinstance(one, tuple) and isinstance(other, tuple):
        return bool(set(one) & set(other)) or min(*one, *other, 0) < 0 < max(*one, *other, 0)
    return {one, other} != {"prompt", "generated"} if isinstance(one, str) and isinstance(other, str) else True
