"""One JSON file a feature, in the shape that the pages of attribution graphs read (Anthropic's, circuit-tracer's), out
and in. What that shape has no room for stands under the key `gemscope`, which those pages pass over.

Published dictionaries pack the same objects, compressed, into a file a layer with `index.json.gz` beside it: read too.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemscope.atlas.dashboard import Dashboard, Example
from gemscope.atlas.entry import Entry
from gemscope.atlas.exchange.folder import chosen, slugged
from gemscope.atlas.exchange.intake import (
    Intake,
    Shown,
    are_numbers,
    are_texts,
    arranged,
    as_number,
    as_whole,
    from_zero,
    highest,
    with_examples,
)
from gemscope.atlas.exchange.neuronpedia import short, told
from gemscope.checked import Count, bytes_of, declared, row_of, size_of
from gemscope.disk import folder_aside
from gemscope.errors import CorruptFile, InputError, NotFound
from gemscope.features.histogram import Histogram
from gemscope.progress import Progress, silent

if TYPE_CHECKING:
    from gemscope.atlas.reader import Atlas

OURS = "gemscope"
ABOUT = "gemscope.json"
"""What all features of a folder have in common."""
TOP = "Top activations"
_INTERVALS = 5
"""Equal parts of 0 to the maximum, for examples of groups that do not say what their bounds are."""
_FILE = re.compile(r"(\d{1,9})\.json")
_MOST = 1 << 25
"""Bytes that one feature unpacks to at most; real ones have a few hundred thousand."""
_INDEX = 1 << 27
"""Bytes of the largest index: ten for each of all features of a model."""


# --- out ------------------------------------------------------------------------------------------------------------


def export(atlas: Atlas, to: Path, *, features: Iterable[int] | None = None) -> Path:
    """A folder `to` of `{index}.json` and `gemscope.json`. Raises FileError, StorageFull, NotFound."""
    manifest, wanted = atlas.manifest, chosen(features, len(atlas))
    with folder_aside(to) as aside:
        about = told(manifest) | {"model_id": manifest.model_id, "source_id": manifest.source_id}
        _write(aside / ABOUT, about | {"format": 1})
        for index in wanted:
            _write(aside / f"{index}.json", feature(atlas[index]))
    return to


def feature(page: Dashboard) -> dict[str, Any]:
    """The object that those pages read."""
    histogram = page.histogram
    groups = [(TOP, page.strongest)]
    for number, one in reversed(list(enumerate(page.intervals))):
        if found := page.within(number):
            groups.append((f"Interval {one.low:.3g} to {one.high:.3g} ({one.share:.1%} of firings)", found))
    return {
        "transcoder_id": f"{page.model}/{page.source}",
        "index": page.index,
        "examples_quantiles": [
            {"quantile_name": name, "examples": [_example(one) for one in found]} for name, found in groups
        ],
        "top_logits": [one.token for one in page.promoted],
        "bottom_logits": [one.token for one in page.suppressed],
        "act_min": histogram.low if histogram else 0.0,
        "act_max": page.max,
        "quantile_values": _quantiles(histogram, page.max),
        "histogram": histogram.counts if histogram else [],
        "activation_frequency": page.density,
        OURS: {
            "count": page.count,
            "tokens": page.tokens,
            "mean": page.mean,
            "encoder_cosine": page.encoder_cosine,
            "decoder_norm": page.decoder_norm,
            "histogram_step": histogram.step if histogram else None,
            "intervals": [[one.low, one.high, one.count] for one in page.intervals],
            "top_logits": [short(one.value) for one in page.promoted],
            "bottom_logits": [short(one.value) for one in page.suppressed],
            "logit_histogram": asdict(page.logit_histogram) if page.logit_histogram else None,
            "neighbours": [[one.feature, short(one.cosine)] for one in page.neighbours],
            "coactive": [[one.feature, short(one.jaccard), short(one.share)] for one in page.coactive],
            "explanations": [
                {"text": one.text, "method": one.method, "author": one.author, "score": one.score}
                for one in reversed(page.explanations)
            ],
        },
    }


def _example(one: Example) -> dict[str, Any]:
    return {
        "tokens": one.tokens,
        "tokens_acts_list": [short(value) if value else 0 for value in one.values],
        "train_token_ind": one.peak,
        "is_repeated_datapoint": False,
    }


def _quantiles(histogram: Histogram | None, top: float) -> list[float]:
    """The 0th to 100th percentile of its activations, as far as the histogram tells them."""
    if histogram is None or not sum(histogram.counts):
        return []
    below = np.concatenate([[0], np.cumsum(histogram.counts)]) / sum(histogram.counts)
    bounds = np.minimum(histogram.low + histogram.step * np.arange(len(histogram.counts) + 1), top)
    return [float(value) for value in np.interp(np.linspace(0, 1, 101), below, bounds)]


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False), encoding="utf-8", errors="replace")


# --- in -------------------------------------------------------------------------------------------------------------


def import_atlas(
    path: str | Path,
    to: str | Path,
    *,
    model: str | None = None,
    source: str | None = None,
    layer: int | None = None,
    d_sae: int | None = None,
    progress: Progress = silent,
) -> Atlas:
    """Reads `{index}.json` files, or the packed `layer` of a folder with `index.json.gz`, into a new atlas at `to`.

    `model` (a Hugging Face id) and `source` (such as `12-transcoder`) say what the files are of, where they do not say
    it themselves. Raises NotFound, CorruptFile, FileError, InputError.
    """
    from gemscope.atlas.writer import Writer

    path, to = Path(path), Path(to)
    if not path.is_dir():
        raise NotFound(f"no folder {path}: expected one of {{index}}.json files, or one with index.json.gz")
    about = _about(path / ABOUT)
    with Writer(to) as writer, Intake(writer.place) as intake:
        with progress("read", None, "features") as advance:
            for index, record, where in _records(path, layer):
                _take(intake, index, record, where)
                about.setdefault("transcoder_id", str(record.get("transcoder_id") or ""))
                advance(1)
        size = intake.size(d_sae or about.get("d_sae"), path)
        tokens = _tokens(about)
        with progress("write", size, "features") as advance:
            for rows in intake.windows():
                writer.add_rows(rows)
            makes = _Numbers(intake, tokens)
            for index, figures, examples in intake.features():
                if index < size:
                    writer.add(_made(makes, index, figures or {}, examples, path=path))
                    advance(1)
            writer.add_tokens(*intake.texts())
            for index, said in intake.explanations():
                if index < size:
                    writer.add_explanation(index, said["text"], said["method"], said["author"], said["score"])
            missing = sorted(set(range(size)) - set(intake.indices()))
            about |= {name: value for name, value in (("model", model), ("source_id", source)) if value}
            about.setdefault("source_id", "features" if layer is None else f"{layer}-features")
            return writer.finish(_manifest(about, intake, size, missing, makes))


def _about(path: Path) -> dict[str, Any]:
    """What all features have in common: text, but for what counts something; anything else is left out."""
    if not path.exists():
        return {}
    return {
        name: value
        for name, value in _object(bytes_of(path, most=_MOST), str(path)).items()
        if type(value) is (int if name in ("d_sae", "tokens") else str)
    }


@dataclass(frozen=True)
class _Bars:
    low: float = 0.0
    step: float = 0.0
    counts: tuple[Count, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Ours:
    """What our own export says of a feature beside what the format has."""

    count: Count | None = None
    mean: float | None = None
    encoder_cosine: float | None = None
    decoder_norm: float | None = None
    histogram_step: float | None = None
    logit_histogram: _Bars | None = None
    top_logits: Any = None
    bottom_logits: Any = None
    neighbours: list[tuple[Count, float]] | None = None
    coactive: list[tuple[Count, float, float]] | None = None
    intervals: list[tuple[float, float, Count]] | None = None
    explanations: list[Any] | None = None


def _ours(said: dict[str, Any], where: str) -> _Ours:
    return declared(said, _Ours, where=f"{where}: what stands under {OURS!r}")


def _made(makes: _Numbers, index: int, figures: dict[str, Any], examples: list[Shown], *, path: Path) -> Entry:
    ours = _ours(figures.get(OURS) or {}, f"{path}, feature {index}")
    try:
        return makes.entry(index, figures, ours, examples)
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        raise CorruptFile(f"{path}, feature {index}: its figures are damaged ({error})") from error


def _records(path: Path, layer: int | None) -> Iterator[tuple[int, dict[str, Any], str]]:
    packed = path / "index.json.gz"
    if packed.exists():
        yield from _packed(packed, layer)
        return
    names = sorted((int(match[1]), one) for one in path.iterdir() if (match := _FILE.fullmatch(one.name)))
    for index, one in names:
        yield index, _object(bytes_of(one, most=_MOST), str(one)), str(one)


def _packed(index: Path, layer: int | None) -> Iterator[tuple[int, dict[str, Any], str]]:
    """`{layer: {filename, offsets}}`, and at each offset a length (uint32, little-endian) and compressed JSON."""
    layers = _object(_unpacked(bytes_of(index, most=_INDEX), str(index), _INDEX), str(index))
    if layer is None and len(layers) != 1:
        raise InputError(f"{index} holds {len(layers)} layers: choose one by layer=")
    found = layers.get(str(layer)) if layer is not None else next(iter(layers.values()))
    if not isinstance(found, dict) or not isinstance(found.get("offsets"), list):
        raise NotFound(f"{index} has no layer {layer}: it holds {', '.join(layers)}")
    told = declared(found, _Layer, where=str(index))
    name, path = told.filename, index.parent / told.filename
    if "/" in name or "\\" in name or name.startswith("."):
        raise CorruptFile(f"{index} names the file {name[:80]!r}: expected one beside it")
    whole = size_of(path)
    with path.open("rb") as file:
        for number, (start, end) in enumerate(pairwise(told.offsets)):
            if end <= start:  # nothing is known of it
                continue
            where = f"{path}, feature {number}"
            file.seek(min(start, whole))
            raw = file.read(min(end - start, _MOST))
            if len(raw) < 4 or (size := struct.unpack("<I", raw[:4])[0]) > len(raw) - 4:
                raise CorruptFile(f"{where} is cut short: fetch the file again")
            yield number, _object(_unpacked(raw[4 : 4 + size], where, _MOST), where), where


@dataclass(frozen=True)
class _Layer:
    """Where the features of a layer lie."""

    filename: str
    offsets: list[Count]


def _unpacked(raw: bytes, where: str, most: int) -> bytes:
    try:
        unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
        out = unpacker.decompress(raw, most)
    except zlib.error as error:
        raise CorruptFile(f"{where} is no gzip ({error}): fetch the file again") from error
    if not unpacker.eof:
        raise CorruptFile(f"{where} is cut short, or unpacks to more than {most >> 20} MB")
    return out


def _object(raw: bytes, where: str) -> dict[str, Any]:
    try:
        return row_of(raw, where=where)
    except CorruptFile as error:
        raise CorruptFile(f"{error}: fetch the file again") from error


def _take(intake: Intake, index: int, record: dict[str, Any], where: str) -> None:
    groups = record.get("examples_quantiles")
    if not isinstance(groups, list):
        raise CorruptFile(f"{where} has no list examples_quantiles: expected a feature as attribution graphs show it")
    ours = record.get(OURS)
    ours = ours if isinstance(ours, dict) else {}
    for number, group in enumerate(groups):
        found = group.get("examples") if isinstance(group, dict) else None
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise CorruptFile(f"{where}: group {number} of examples has no list examples")
        # The first group is the strongest; examples of the others go by their value to where they belong.
        low = None if number == 0 else 0.0
        for one in found:
            tokens, values = one.get("tokens"), one.get("tokens_acts_list")
            if not are_texts(tokens) or not are_numbers(values):
                raise CorruptFile(f"{where}: tokens must be strings, and tokens_acts_list finite numbers")
            if len(tokens) != len(values):
                raise CorruptFile(f"{where}: an example has not one activation for each token")
            own = as_whole(one.get("train_token_ind"))
            intake.example(index, tokens, values, -1 if own is None else own, low=low)
    kept = ("top_logits", "bottom_logits", "act_min", "act_max", "histogram", "activation_frequency")
    intake.feature(index, {name: record.get(name) for name in kept} | {OURS: ours})
    for said in _ours(ours, where).explanations or ():
        text = said.get("text") if isinstance(said, dict) else None
        if isinstance(text, str) and text.strip():
            method, author = str(said.get("method") or "import"), str(said.get("author") or "")
            said = {"text": text, "method": method, "author": author, "score": as_number(said.get("score"))}  # noqa: PLW2901
            intake.explanation(index, said)


def _positive(value: object) -> float:
    return max(as_number(value) or 0.0, 0.0)


class _Numbers:
    """Makes entries, and remembers whether there were logits, and values of them."""

    def __init__(self, intake: Intake, tokens: int) -> None:
        self.intake, self.tokens = intake, tokens
        self.has_logits = self.has_values = False

    def entry(self, index: int, figures: Mapping[str, Any], ours: _Ours, examples: list[Shown]) -> Entry:
        top = highest(_positive(figures.get("act_max")), examples)
        heights = np.array([round(_positive(bar)) for bar in figures.get("histogram") or ()], np.int64)
        shown = len({(one.window, int(column)) for one in examples for column in one.columns})
        share = _positive(figures.get("activation_frequency"))
        count = ours.count
        if count is None:
            # Bars may count examples instead of firings: the frequency is what counts here.
            count = max(round(share * self.tokens), shown)
        low, step = _positive(figures.get("act_min")), ours.histogram_step
        width = _positive(step) or ((top - low) / len(heights) if len(heights) else 0.0)
        width, histogram = from_zero([low + (n + 0.5) * width for n in range(len(heights))], heights)
        if histogram.sum() != count:
            width, histogram = 0.0, np.zeros(0, np.int64)
        logits = ours.logit_histogram or _Bars()
        promoted, promoted_values = self._logits(figures.get("top_logits"), ours.top_logits)
        suppressed, suppressed_values = self._logits(figures.get("bottom_logits"), ours.bottom_logits)
        neighbours, partners = ours.neighbours or [], ours.coactive or []
        entry = Entry(
            index=index,
            count=count,
            max=top,
            mean=_positive(ours.mean),
            encoder_cosine=ours.encoder_cosine,
            decoder_norm=ours.decoder_norm,
            step=width,
            histogram=histogram,
            promoted=promoted,
            promoted_values=promoted_values,
            suppressed=suppressed,
            suppressed_values=suppressed_values,
            logit_low=logits.low,
            logit_step=logits.step,
            logit_histogram=np.array(logits.counts, np.int64),
            neighbours=np.array([one[0] for one in neighbours], np.int64),
            cosines=np.array([one[1] for one in neighbours], np.float32),
            partners=np.array([one[0] for one in partners], np.int64),
            jaccards=np.array([one[1] for one in partners], np.float32),
            shares=np.array([one[2] for one in partners], np.float32),
        )
        bounds = ours.intervals or []
        edges = np.array([low for low, _, _ in bounds] + [high for _, high, _ in bounds[-1:]], np.float32)
        if not bounds and top > 0:
            edges = np.linspace(0, top, _INTERVALS + 1, dtype=np.float32)
        found = arranged(examples, count, self.intake.taken, edges)
        if bounds:
            found = replace(found, edges=edges, counts=[number for _, _, number in bounds])
        return with_examples(entry, found, self.intake.length)

    def _logits(self, texts: object, values: object) -> tuple[Any, Any]:
        """Some tools write [text, value] pairs."""
        pairs = [one if isinstance(one, list) and len(one) == 2 else (one, None) for one in texts or ()]  # type: ignore[attr-defined]
        given = list(values) if isinstance(values, list) and len(values) == len(pairs) else [one[1] for one in pairs]
        ids = [self.intake.id_of(str(text)) for text, _ in pairs]
        self.has_logits |= bool(ids)
        self.has_values |= any(as_number(value) is not None for value in given)
        numbers = [as_number(value) or 0.0 for value in given]
        return np.array(ids, np.int64), np.array(numbers, np.float32)


def _tokens(about: dict[str, Any]) -> int:
    tokens = about.get("tokens")
    return max(as_whole(tokens) or 0, 0) or 1_000_000


def _manifest(about: dict[str, Any], intake: Intake, size: int, missing: list[int], makes: _Numbers) -> Any:
    from gemscope import __version__
    from gemscope.atlas.exchange.from_neuronpedia import ranges
    from gemscope.atlas.files.manifest import FORMAT, Manifest, Part

    name = str(about.get("transcoder_id") or "")
    model = about.get("model") or name.partition("/")[0] or "unknown"
    source, tokens = about["source_id"], makes.tokens
    ordered = "in this order; their values are not in the imported files, and stand as 0"
    logits = about.get("logits") or ("as imported: the convention is not said" if makes.has_values else ordered)
    return Manifest(
        format=FORMAT,
        model=model,
        model_id=slugged(about.get("model_id") or model.rsplit("/", 1)[-1]),
        source_id=slugged(source),
        revision=about.get("revision"),
        sae=about.get("sae") or name or source,
        sae_digest=about.get("sae_digest") or "",
        site=about.get("site") or "unknown",
        site_out=about.get("site_out") or "unknown",
        gate=about.get("gate") or "unknown",
        d_sae=size,
        parts=(
            Part(
                name="a text that the files do not name",
                digest="",
                rows=intake.rows,
                documents=0,
                counted=tokens,
                masked={},
            ),
        ),
        length=intake.length,
        before=intake.length,
        after=intake.length,
        bos=False,
        logits=logits if makes.has_logits else None,
        no_logits=None if makes.has_logits else "the imported files hold none",
        coactivation="as imported" if about.get("tokens") else "not measured: the imported files hold none",
        options={"import": "anthropic"},
        versions={"gemscope": __version__},
        metadata={
            "counts": "as exported" if about.get("tokens") else f"frequencies times {tokens:,}: no count is told",
            "missing": ranges(missing),
            "put_right": {name: number for name, number in asdict(intake.taken).items() if number},
        },
    )
