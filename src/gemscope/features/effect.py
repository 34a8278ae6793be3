"""What is written at a site does to the logits, or to a later site, to first order and on average over text: the mean
Jacobian, as a value and as a file. It is of the site and serves every SAE that writes there; taking it is
`activations/jacobian.py`'s.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from gemscope.activations.direct import unembedding
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site, logit_divisor, require_names
from gemscope.checked import Count, Form, Positive, as_read, checksum_of, require_forms, shown
from gemscope.disk import written_aside
from gemscope.errors import CorruptFile, InputError, Mismatch
from gemscope.features.fit import sites_of
from gemscope.features.jacobian_sums import Sums, Unfinished, unfinished
from gemscope.features.logit_lens import mean_row, pieces, vocabulary
from gemscope.features.sae import SAE
from gemscope.features.sealed import seal, unsealed
from gemscope.progress import Progress, silent
from gemscope.shapes import Float
from gemscope.text.corpus import Corpus

FORMAT = 1
Part = Literal["all", "this", "later"]
"""Of the effect: on the logits of this position, of later ones, or both."""
_EFFECTS = 1 << 24
"""Effects on logits held at a time: 64 MB, and as much for each half of the text."""
_NAME, _REMEDY = "gemscope_effect", "measure the effect again"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What an effect is of, and over which text."""

    model: str
    revision: str | None
    site: str
    dtype: str
    """Number format that the model computed in."""
    corpus: str
    corpus_digest: str
    length: Positive
    """Tokens per row of text: how far later positions reach."""
    rows: Count = 0
    """Rows of text that were asked for; 0: nobody asked."""
    halves: tuple[Positive, Positive]
    """Counted tokens in each half of the text, to which its rows belong in turn."""
    dropped: dict[str, Count]
    """Places of the text that are in no mean, by reason: padding, first, special, sink."""
    until: str | None = None
    """The later site that it is the effect on; None: on the logits."""

    @property
    def tokens(self) -> int:
        """Tokens that the means are over."""
        return sum(self.halves)

    def to_dict(self) -> dict[str, object]:
        """As a file says it: nothing of rows where nobody asked for any, nor of a later site where there is none, as
        files before said nothing of them.
        """
        said: dict[str, object] = as_read(asdict(self))
        return {name: value for name, value in said.items() if value or name not in ("rows", "until")}

    def __post_init__(self) -> None:
        """Raises ValueError for what is no site's name."""
        require_names(self.site, *([self.until] if self.until else []))


@dataclass(frozen=True, kw_only=True)
class Promoted:
    """What a unit of one feature does to the logits, the mean over the vocabulary taken out."""

    feature: int
    promoted: tuple[int, ...]
    """Token ids, most promoted first."""
    promoted_tokens: tuple[str, ...]
    promoted_values: tuple[float, ...]
    suppressed: tuple[int, ...]
    """Token ids, most suppressed first."""
    suppressed_tokens: tuple[str, ...]
    suppressed_values: tuple[float, ...]
    agreement: float
    """Correlation over the vocabulary of what the two halves of the text say; NaN where one says nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Effect:
    """The mean Jacobian from a site to the logits over text, kept up to the unembedding, which is linear; or to a later
    site (`of.until`), and then h is what flows through that one.

    With x what flows through the site, h what the unembedding W_U reads (behind the final norm, linearised where each
    token stands), and N counted tokens of rows of text,

        this  = 1/N Σ_s ∂h_s/∂x_s          later = 1/N Σ_(s<t) ∂h_t/∂x_s          s, t counted, of one row

    and d written at the site on every counted token changes the mean counted token's logits by W_U (this + later) d, to
    first order: before a softcapping of logits, divided as the model divides them.
    """

    of: Measured
    this: Float[Tensor, "halves H O"]
    """Of each half of the text, float32 on the CPU."""
    later: Float[Tensor, "halves H O"]
    along: Float[Tensor, "O width"] | None = None
    """Directions, where the effect was measured of these alone: O of them, as the columns of the matrices."""

    def jacobian(self, part: Part = "all") -> Float[Tensor, "H O"]:
        """Over the whole text. Raises InputError for a part that there is not."""
        first, second = self.halves(part)
        a, b = self.of.halves
        whole: Tensor = (a * first + b * second) / (a + b)
        return whole

    @property
    def digest(self) -> str:
        """Of the matrices and what they are of."""
        return checksum_of(self._tensors, self.of.to_dict())

    @property
    def _tensors(self) -> dict[str, Tensor]:
        return {"this": self.this.contiguous(), "later": self.later.contiguous()}

    @property
    def agreement(self) -> float:
        """Cosine of what the two halves of the text gave, as flat vectors: the nearer to 1, the less would change with
        more text.
        """
        first, second = (half.double().flatten() for half in self.halves("all"))
        return torch.nn.functional.cosine_similarity(first, second, dim=0).item()

    @torch.no_grad()
    def logits(
        self, model: LanguageModel, directions: Float[Tensor, "F O"], *, part: Part = "all"
    ) -> Float[Tensor, "F V"]:
        """What directions written at the site do to the logit of each token of the tokenizer's vocabulary (ids
        ascending), the mean over it taken out, which softmax does not see; float32 on the CPU. Raises Mismatch for
        another model or width, and where the effect is that on a later site.
        """
        self._require_on_logits()
        self._require_of(model, directions.shape[-1])
        return self._read(model, self._hidden(directions.detach().float().cpu(), self.jacobian(part)))

    @torch.no_grad()
    def promoted(
        self, model: LanguageModel, sae: SAE, features: Sequence[int], *, k: int = 10, part: Part = "all"
    ) -> tuple[Promoted, ...]:
        """The `k` tokens whose logits rise most with each of some features, those whose fall most, and how far the two
        halves of the text agree on it. Raises Mismatch for another model, site or width, InputError for a feature that
        there is not.
        """
        if k < 1:
            raise InputError(f"k={k}: at least one token must be asked for")
        if not features:
            raise InputError("no features given: name at least one")
        self.require_of(model, sae)
        directions = torch.stack([sae.direction(feature).detach().float().cpu() for feature in features])
        whole = self.jacobian(part)
        found: list[Promoted] = []
        each = max(1, _EFFECTS // model.vocab)
        for start in range(0, len(features), each):
            some = directions[start : start + each]
            effects = self._read(model, self._hidden(some, whole))
            halves = [self._read(model, self._hidden(some, half)) for half in self.halves(part)]
            agreements = _correlations(*halves)
            high, low = (effects.topk(min(k, effects.shape[1]), largest=largest) for largest in (True, False))
            ids = self._ids(model)
            for row, feature in enumerate(features[start : start + each]):
                up, down = ids[high.indices[row]].tolist(), ids[low.indices[row]].tolist()
                found.append(
                    Promoted(
                        feature=feature,
                        promoted=tuple(up),
                        promoted_tokens=tuple(model.strings(up)),
                        promoted_values=tuple(high.values[row].tolist()),
                        suppressed=tuple(down),
                        suppressed_tokens=tuple(model.strings(down)),
                        suppressed_values=tuple(low.values[row].tolist()),
                        agreement=agreements[row].item(),
                    )
                )
        return tuple(found)

    def to_dict(self) -> dict[str, object]:
        """For JSON: all but the matrices."""
        norms = {part: self.jacobian(part).double().norm().item() for part in get_args(Part)[1:]}
        return {**asdict(self.of), "tokens": self.of.tokens, "agreement": self.agreement, "norms": norms}

    def __str__(self) -> str:
        of = self.of
        left_out = ", ".join(f"{count} {reason}" for reason, count in of.dropped.items() if count) or "none"
        norms = [self.jacobian(part).double().norm().item() for part in get_args(Part)[1:]]
        alone = "" if self.along is None else f", along {len(self.along)} directions alone"
        return (
            f"effect of {of.site} of {of.model} on {of.until or 'the logits'}{alone}: mean Jacobian over {of.tokens:,} "
            f"tokens of {of.corpus} in rows of {of.length} (left out: {left_out}); its halves agree to "
            f"{self.agreement:.3f}; norm on this position {norms[0]:.3g}, on later ones {norms[1]:.3g}"
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """One safetensors file, written aside and moved there when it is whole. Raises FileError, StorageFull, and
        InputError for one of some directions alone.
        """
        from safetensors.torch import save_file

        self._require_whole()
        target = Path(path)
        with written_aside(target) as aside:
            save_file(self._tensors, aside, seal(_NAME, self._tensors, self.of.to_dict(), format=FORMAT))
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Effect:
        """What `save` wrote. Raises NotFound, AccessError, CorruptFile."""
        where = Path(path)
        of, tensors = unsealed(_NAME, where, Measured, lacking="is no effect of a site", remedy=_REMEDY, format=FORMAT)
        require_forms(tensors, {part: Form((2, None, None)) for part in ("this", "later")}, where=shown(where))
        if tensors["this"].shape != tensors["later"].shape:
            raise CorruptFile(f"{shown(where)}: this and later are of different shapes: {_REMEDY}")
        return cls(of=of, this=tensors["this"], later=tensors["later"])

    @classmethod
    def over(cls, effects: Sequence[Effect]) -> Effect:
        """The mean over the texts of several effects of one site, each with the weight of its tokens, half by half.
        Raises Mismatch where they are not of one site of one model, in one number format and rows of one length.
        """
        first = effects[0].of
        for one in effects:
            one._require_whole()
        for other in effects[1:]:
            for name in ("model", "revision", "site", "until", "dtype", "length"):
                ours, theirs = getattr(first, name), getattr(other.of, name)
                if ours != theirs:
                    raise Mismatch(f"effects of another {name} have no mean ({ours!r}, {theirs!r}): measure one anew")
        weights = torch.tensor([one.of.halves for one in effects], dtype=torch.float64)
        shares = (weights / weights.sum(0))[..., None, None]
        this, later = (
            (torch.stack([getattr(one, part).double() for one in effects]) * shares).sum(0).float()
            for part in ("this", "later")
        )
        dropped = sum((Counter(one.of.dropped) for one in effects), Counter[str]())
        names = list(dict.fromkeys((one.of.corpus, one.of.corpus_digest) for one in effects))
        corpus, digest = (" + ".join(part) for part in zip(*names, strict=True))
        rows = sum(one.of.rows for one in effects)
        a, b = (int(count) for count in weights.sum(0).tolist())
        of = replace(first, corpus=corpus, corpus_digest=digest, halves=(a, b), dropped=dict(dropped), rows=rows)
        return cls(of=of, this=this, later=later)

    def halves(self, part: Part = "all") -> Float[Tensor, "halves H O"]:
        """Of each half of the text. Raises InputError for a part that there is not."""
        if part not in get_args(Part):
            raise InputError(f"part={part!r}: expected {', '.join(map(repr, get_args(Part)))}")
        return {"this": self.this, "later": self.later}.get(part, self.this + self.later)

    def require_of(self, model: LanguageModel, sae: SAE) -> None:
        """Raises Mismatch for another model, an SAE that writes elsewhere or in another width, and for an effect that
        is not that on the logits.
        """
        self._require_on_logits()
        self._require_writes(model, sae)

    def require_between(self, model: LanguageModel, sae: SAE, later: SAE) -> None:
        """Raises Mismatch for another model, and for SAEs of which not the first writes where the effect begins and the
        second reads where it ends.
        """
        self._require_writes(model, sae)
        reads, _ = sites_of(later)
        if str(reads) != self.of.until:
            raise Mismatch(f"{later.info.name} reads {reads}, this effect is that on {self.of.until or 'the logits'}")

    def _require_writes(self, model: LanguageModel, sae: SAE) -> None:
        _, writes = sites_of(sae)
        if str(writes) != self.of.site:
            raise Mismatch(f"{sae.info.name} writes at {writes}, this effect is that of {self.of.site}")
        self._require_of(model, sae.d_out)

    def _require_on_logits(self) -> None:
        if self.of.until is not None:
            raise Mismatch(
                f"this effect is that on {self.of.until}, and says nothing of the logits: measure one on them"
            )

    def _require_of(self, model: LanguageModel, width: int) -> None:
        ours, theirs = (self.of.model, self.of.revision), (model.name, model.revision)
        if ours != theirs:
            names = [name if revision is None else f"{name} at {revision}" for name, revision in (ours, theirs)]
            raise Mismatch(f"this effect is of {names[0]}, not of {names[1]}: measure that one's")
        there = (self.this if self.along is None else self.along).shape[-1]
        if width != there:
            raise Mismatch(f"directions of {width} numbers given, {self.of.site} has {there}")

    def _hidden(self, directions: Float[Tensor, "F width"], matrix: Float[Tensor, "H O"]) -> Float[Tensor, "F H"]:
        """What directions written at the site do to what the unembedding reads."""
        if self.along is None:
            return directions @ matrix.T
        same = (directions[:, None] == self.along).all(-1)
        if not same.any(-1).all():
            raise Mismatch("this effect was measured of other directions alone: measure that of the whole site")
        return matrix.T[same.int().argmax(-1)]

    def _require_whole(self) -> None:
        if self.along is not None:
            raise InputError("this effect is of some directions alone: measure that of the whole site")

    def _ids(self, model: LanguageModel) -> Tensor:
        with unembedding(model.hf) as W_U:
            return vocabulary(model, len(W_U))

    def _read(self, model: LanguageModel, hidden: Float[Tensor, "F H"]) -> Float[Tensor, "F V"]:
        with unembedding(model.hf) as W_U:
            tokens = vocabulary(model, len(W_U)).to(W_U.device)
            mean, hidden = mean_row(W_U, tokens), hidden.to(W_U.device) / logit_divisor(model.hf)
            return torch.cat([hidden @ (W_U[some].float() - mean).T for _, some in pieces(tokens, W_U)], dim=1).cpu()


def _correlations(first: Float[Tensor, "F V"], second: Float[Tensor, "F V"]) -> Float[Tensor, "F"]:
    a, b = (half.double() - half.double().mean(-1, keepdim=True) for half in (first, second))
    cosines: Tensor = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    return cosines


def effect(
    model: LanguageModel,
    site: Site | str,
    corpus: Corpus,
    *,
    tokens: int = 160,
    length: int = 32,
    batch: int = 4,
    until: Site | str | None = None,
    directions: Float[Tensor, "F O"] | None = None,
    to: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> Effect:
    """Measures what writing at a site does to the logits, over the first rows of a corpus: about `tokens` tokens in
    rows of `length`, `batch` rows at a time, which memory grows with. The same text always gives the same. With `until`
    it is what writing does to that later site.

    It takes two backward passes over the text for each coordinate of where it ends; with `directions`, two forward
    passes for each of them, and the effect is that of these directions alone. Special tokens, first positions, padding
    and attention sinks are in no mean.

    `to` is a file to keep it in. Stopped, it goes on there after the last whole batch of rows when called again with
    the same arguments, to the same bytes; an effect that is there already is returned where it is this one.

    Raises SiteNotFound, Mismatch for directions of another width, InputError for a site that the model does not read
    itself, for one `until` which it does not come before, for text that has no counted tokens in two rows and where
    `to` holds another effect, AccessError while another process measures the same file, TextTooLong, NotFinite,
    StorageFull, FileError, CorruptFile.
    """
    if tokens < 1 or length < 2 or batch < 1:
        raise InputError(f"tokens={tokens}, length={length}, batch={batch}: expected at least 1, 2 and 1")
    if to is not None and directions is not None:
        raise InputError("an effect along some directions alone is not kept: give `to` or directions")
    place = Site.parse(site)
    rows = max(2, math.ceil(tokens / length))
    asked = _Asked(
        model=model.name,
        revision=model.revision,
        site=str(place),
        until=None if until is None else str(Site.parse(until)),
        dtype=str(model.dtype).removeprefix("torch."),
        corpus=corpus.name,
        corpus_digest=corpus.digest,
        length=length,
        rows=rows,
        batch=2 * max(1, min(batch, rows) // 2),
    )
    if to is None:
        return _measured(model, corpus, asked, directions=directions, progress=progress)
    file = Path(to)
    if file.exists():
        found = Effect.load(file)
        if other := [name for name in ("rows", *_SAME) if getattr(found.of, name) != getattr(asked, name)]:
            raise InputError(f"{shown(file)} holds an effect of another {', '.join(other)}: name another file")
        return found
    with unfinished(file, asdict(asked)) as kept:
        found = _measured(model, corpus, asked, kept=kept, progress=progress)
        found.save(file)
        kept.discard()
    return found


def _measured(
    model: LanguageModel,
    corpus: Corpus,
    asked: _Asked,
    *,
    directions: Float[Tensor, "F O"] | None = None,
    kept: Unfinished | None = None,
    progress: Progress,
) -> Effect:
    end = model.d_model if asked.until is None else model.width(asked.until)
    sums = Sums() if kept is None else kept.resumed((end, model.width(asked.site)))
    columns = end if directions is None else len(directions)
    with progress("effect", 2 * columns * math.ceil(asked.rows / asked.batch), "passes") as advance:
        advance(2 * columns * (sums.rows // asked.batch))
        begun, seen = sums.rows, 0
        for packed in model.rows(corpus, length=asked.length, batch=asked.batch):
            part, seen = packed.first(asked.rows - seen, asked.length), seen + len(packed)
            if seen > begun:
                found = model.jacobians(part, asked.site, 2, until=asked.until, directions=directions, advance=advance)
                sums.add(len(part), found)
                if kept is not None:
                    kept.save(sums)
            if seen >= asked.rows:
                break
    if not all(sums.counts):
        raise InputError(
            f"{corpus.name} gave {sum(sums.counts)} tokens that count, in rows of {asked.length}: expected some in "
            "each of two halves of its rows: give more text, or a smaller length"
        )
    facts = {name: getattr(asked, name) for name in ("rows", *_SAME)}
    of = Measured(**facts, halves=(sums.counts[0], sums.counts[1]), dropped=dict(sums.dropped))
    along = None if directions is None else directions.detach().float().cpu()
    return Effect(of=of, this=sums.mean("this"), later=sums.mean("later"), along=along)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What makes an effect what it is, before it is measured."""

    model: str
    revision: str | None
    site: str
    until: str | None
    dtype: str
    corpus: str
    corpus_digest: str
    length: int
    rows: int
    batch: int


_SAME = ("model", "revision", "site", "until", "dtype", "corpus", "corpus_digest", "length")
"""What an effect says of itself before it is measured, and after."""
