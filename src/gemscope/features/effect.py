"""What is written at a site does to the logits, to first order and on average over text: the mean Jacobian, as a value
and as a file. It is of the site and serves every SAE that writes there; taking it is `activations/jacobian.py`'s.
"""

from __future__ import annotations

import json
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
from gemscope.activations.jacobian import Jacobian
from gemscope.activations.model import LanguageModel
from gemscope.activations.site import Site, logit_divisor
from gemscope.activations.store import require_names
from gemscope.checked import Count, Form, Positive, as_read, checksum_of, json_of, read_tensors, require_forms, shown
from gemscope.disk import written_aside
from gemscope.errors import CorruptFile, InputError, Mismatch
from gemscope.features.fit import sites_of
from gemscope.features.logit_lens import mean_row, pieces, vocabulary
from gemscope.features.sae import SAE
from gemscope.progress import Progress, silent
from gemscope.shapes import Float
from gemscope.text.corpus import Corpus

FORMAT = 1
Part = Literal["all", "this", "later"]
"""Of the effect: on the logits of this position, of later ones, or both."""
_EFFECTS = 1 << 24
"""Effects on logits held at a time: 64 MB, and as much for each half of the text."""
_REMEDY = "measure the effect again"


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
    halves: tuple[Positive, Positive]
    """Counted tokens in each half of the text, to which its rows belong in turn."""
    dropped: dict[str, Count]
    """Places of the text that are in no mean, by reason: padding, first, special, sink."""

    @property
    def tokens(self) -> int:
        """Tokens that the means are over."""
        return sum(self.halves)

    def __post_init__(self) -> None:
        """Raises ValueError for what is no site's name."""
        require_names(self.site)


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
    """The mean Jacobian from a site to the logits over text, kept up to the unembedding, which is linear.

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

    def jacobian(self, part: Part = "all") -> Float[Tensor, "H O"]:
        """Over the whole text. Raises InputError for a part that there is not."""
        first, second = self.halves(part)
        a, b = self.of.halves
        whole: Tensor = (a * first + b * second) / (a + b)
        return whole

    @property
    def digest(self) -> str:
        """Of the matrices and what they are of."""
        return checksum_of(self._tensors, as_read(asdict(self.of)))

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
        another model or width.
        """
        self._require_of(model, directions.shape[-1])
        return self._read(model, directions.detach().float().cpu() @ self.jacobian(part).T)

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
            effects = self._read(model, some @ whole.T)
            halves = [self._read(model, some @ half.T) for half in self.halves(part)]
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
        return (
            f"effect of {of.site} of {of.model} on the logits: mean Jacobian over {of.tokens:,} tokens of {of.corpus} "
            f"in rows of {of.length} (left out: {left_out}); its halves agree to {self.agreement:.3f}; norm on this "
            f"position {norms[0]:.3g}, on later ones {norms[1]:.3g}"
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """One safetensors file, written aside and moved there when it is whole. Raises FileError, StorageFull."""
        from safetensors.torch import save_file

        target = Path(path)
        said = {"format": FORMAT, "of": as_read(asdict(self.of)), "checksum": self.digest}
        with written_aside(target) as aside:
            save_file(self._tensors, aside, {"gemscope_effect": json.dumps(said)})
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Effect:
        """What `save` wrote. Raises NotFound, AccessError, CorruptFile."""
        where = Path(path)
        tensors, metadata = read_tensors(where)
        name = shown(where)
        if "gemscope_effect" not in metadata:
            raise CorruptFile(f"{name} is no effect of a site: {_REMEDY}")
        said = json_of(metadata["gemscope_effect"], _File, where=name)
        if said.format != FORMAT:
            raise CorruptFile(f"{name} is of format {said.format}, this version reads {FORMAT}: {_REMEDY}")
        require_forms(tensors, {part: Form((2, None, None)) for part in ("this", "later")}, where=name)
        if tensors["this"].shape != tensors["later"].shape:
            raise CorruptFile(f"{name}: this and later are of different shapes: {_REMEDY}")
        if checksum_of(tensors, as_read(asdict(said.of))) != said.checksum:
            raise CorruptFile(f"{name} is damaged: its checksum is another: {_REMEDY}")
        return cls(of=said.of, this=tensors["this"], later=tensors["later"])

    @classmethod
    def over(cls, effects: Sequence[Effect]) -> Effect:
        """The mean over the texts of several effects of one site, each with the weight of its tokens, half by half.
        Raises Mismatch where they are not of one site of one model, in one number format and rows of one length.
        """
        first = effects[0].of
        for other in effects[1:]:
            for name in ("model", "revision", "site", "dtype", "length"):
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
        a, b = (int(count) for count in weights.sum(0).tolist())
        of = replace(first, corpus=corpus, corpus_digest=digest, halves=(a, b), dropped=dict(dropped))
        return cls(of=of, this=this, later=later)

    def halves(self, part: Part = "all") -> Float[Tensor, "halves H O"]:
        """Of each half of the text. Raises InputError for a part that there is not."""
        if part not in get_args(Part):
            raise InputError(f"part={part!r}: expected {', '.join(map(repr, get_args(Part)))}")
        return {"this": self.this, "later": self.later}.get(part, self.this + self.later)

    def require_of(self, model: LanguageModel, sae: SAE) -> None:
        """Raises Mismatch for another model, or an SAE that writes elsewhere or in another width."""
        _, writes = sites_of(sae)
        if str(writes) != self.of.site:
            raise Mismatch(f"{sae.info.name} writes at {writes}, this effect is that of {self.of.site}")
        self._require_of(model, sae.d_out)

    def _require_of(self, model: LanguageModel, width: int) -> None:
        here, there = (self.of.model, self.of.revision), (model.name, model.revision)
        if here != there:
            names = [name if revision is None else f"{name} at {revision}" for name, revision in (here, there)]
            raise Mismatch(f"this effect is of {names[0]}, not of {names[1]}: measure that one's")
        if width != self.this.shape[-1]:
            raise Mismatch(f"directions of {width} numbers given, {self.of.site} has {self.this.shape[-1]}")

    def _ids(self, model: LanguageModel) -> Tensor:
        with unembedding(model.hf) as W_U:
            return vocabulary(model, len(W_U))

    def _read(self, model: LanguageModel, hidden: Float[Tensor, "F H"]) -> Float[Tensor, "F V"]:
        with unembedding(model.hf) as W_U:
            tokens = vocabulary(model, len(W_U)).to(W_U.device)
            mean, hidden = mean_row(W_U, tokens), hidden.to(W_U.device) / logit_divisor(model.hf)
            return torch.cat([hidden @ (W_U[some].float() - mean).T for _, some in pieces(tokens, W_U)], dim=1).cpu()


@dataclass(frozen=True, kw_only=True)
class _File:
    """What stands beside the matrices."""

    format: Count
    of: Measured
    checksum: str


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
    batch: int = 8,
    progress: Progress = silent,
) -> Effect:
    """Measures what writing at a site does to the logits, over the first rows of a corpus: about `tokens` tokens in
    rows of `length`, `batch` rows at a time, which memory grows with. The same text always gives the same.

    It takes two backward passes over the text for each coordinate of the last hidden states. Special tokens, first
    positions, padding and attention sinks are in no mean. Raises SiteNotFound, InputError for a site that the model
    does not read itself and for text that has no counted tokens in two rows, TextTooLong, NotFinite.
    """
    if tokens < 1 or length < 2 or batch < 1:
        raise InputError(f"tokens={tokens}, length={length}, batch={batch}: expected at least 1, 2 and 1")
    place = Site.parse(site)
    rows = max(2, math.ceil(tokens / length))
    each = 2 * max(1, min(batch, rows) // 2)
    sums: list[list[Jacobian]] = [[], []]
    dropped = Counter[str]()
    left = rows
    with progress("effect", None, "coordinates") as advance:
        for packed in model.rows(corpus, length=length, batch=each):
            part = packed.first(left, length)
            for half, found in enumerate(model.jacobians(part, place, 2, advance=advance)):
                sums[half].append(found)
                dropped.update(found.dropped)
            left -= len(part)
            if not left:
                break
    counts = [sum(one.n for one in half) for half in sums]
    if not all(counts):
        raise InputError(
            f"{corpus.name} gave {sum(counts)} tokens that count, in rows of {length}: expected some in each of two "
            "halves of its rows: give more text, or a smaller length"
        )
    this, later = (torch.stack([_mean(half, part) for half in sums]) for part in ("this", "later"))
    of = Measured(
        model=model.name,
        revision=model.revision,
        site=str(place),
        dtype=str(model.dtype).removeprefix("torch."),
        corpus=corpus.name,
        corpus_digest=corpus.digest,
        length=length,
        halves=(counts[0], counts[1]),
        dropped=dict(dropped),
    )
    return Effect(of=of, this=this, later=later)


def _mean(found: Sequence[Jacobian], part: str) -> Float[Tensor, "H O"]:
    total: Tensor = torch.stack([getattr(one, part) for one in found]).sum(0) / sum(one.n for one in found)
    return total.float()
