"""An atlas from what Neuronpedia publishes of a source (batches of lines), or from SAEDashboard's own `batch-N.json`.

Files may come in any order and cut anywhere: features, activations and explanations are put together by index. What
such files get wrong is put right, and counted in the manifest; what they do not say is not made up.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemscope.atlas.entry import Entry, Floats, Ints
from gemscope.atlas.exchange.folder import slugged
from gemscope.atlas.exchange.intake import (
    Intake,
    Shown,
    Taken,
    are_numbers,
    are_texts,
    arranged,
    as_number,
    as_whole,
    firings,
    from_zero,
    highest,
    with_examples,
)
from gemscope.atlas.exchange.neuronpedia import OUR_CONFIG
from gemscope.checked import EXACT, bytes_of, quoted, row_of, size_of
from gemscope.errors import CorruptFile, FileError, InputError, NotFound
from gemscope.progress import Progress, silent

if TYPE_CHECKING:
    from gemscope.atlas.reader import Atlas

_LINE = 1 << 26
"""Bytes of the longest line that is read: a feature's line holds its vector, an explanation's its embedding."""
_BATCHED = 1 << 30
"""Bytes of a batch that is one document."""
_BATCH = re.compile(r"batch-(\d+)\.(json|jsonl|jsonl\.gz)")
_MISSING = (-10000.0, -9999.0, 9999.0)
"""Stand for a logit that is missing, or once was NaN or infinite."""
_UNKNOWN_TOKENS = 100_000
"""Tokens that a density is a share of where a source does not say: it is told with five digits."""
_METHOD = "neuronpedia"


def import_atlas(
    path: str | Path,
    to: str | Path,
    *,
    model: str | None = None,
    d_sae: int | None = None,
    progress: Progress = silent,
) -> Atlas:
    """Reads a source's folder (with `features/` and `activations/`, or `batch-N.json`) into a new atlas at `to`.

    `path` may be any folder above it that holds no other source. `model` is the Hugging Face id of the model where
    the catalogue does not know it, `d_sae` the number of features where the files do not say. Which features are
    missing, and what was put right, stands in the manifest's metadata.

    Raises NotFound, CorruptFile (naming file and line), FileError, InputError.
    """
    from gemscope.atlas.writer import Writer

    path, to = Path(path), Path(to)
    writing = Writer(to)  # says at once when there is something in its place
    place = _source_in(path)
    intermediate = not (place / "features").is_dir()
    with writing as writer, Intake(writer.place) as intake:
        about = _read_intermediate(place, intake, progress) if intermediate else _read_lines(place, intake, progress)
        facts = _facts(place, about, model)
        size = intake.size(d_sae or facts["d_sae"], place)
        missing = sorted(set(range(size)) - set(intake.indices()) - set(about.get("skipped", ())))
        with progress("write", size, "features") as advance:
            for rows in intake.windows():
                writer.add_rows(rows)
            numbers = _Numbers(intake, facts["tokens"])
            for index, record, examples in intake.features():
                if index < size:
                    writer.add(numbers.entry(index, record, examples))
                    advance(1)
            writer.add_tokens(*intake.texts())
            for index, said in intake.explanations():
                if index < size:
                    writer.add_explanation(index, said["text"], said["method"], said["author"], said["score"])
            return writer.finish(_manifest(facts, intake, size, missing, numbers.has_logits))


# --- finding and reading files --------------------------------------------------------------------------------------


def _source_in(path: Path) -> Path:
    """The one folder at or below `path` that holds a source."""
    if not path.is_dir():
        raise NotFound(f"no folder {path}: expected a source's, with features/ and activations/ or with batch-N.json")
    found = [place for place in (path, *sorted(one for one in path.rglob("*") if one.is_dir())) if _is_source(place)]
    if not found:
        raise NotFound(f"{path} holds neither features/batch-N.jsonl.gz nor batch-N.json: is it the source's folder?")
    if len(found) > 1:
        raise InputError(f"{path} holds {len(found)} sources ({found[0].name}, {found[1].name}, ...): name one of them")
    return found[0]


def _is_source(place: Path) -> bool:
    features = place / "features"
    return bool(features.is_dir() and _batches(features)) or any(path.suffix == ".json" for path in _batches(place))


def _batches(folder: Path) -> list[Path]:
    found = [(int(match[1]), one) for one in folder.iterdir() if (match := _BATCH.fullmatch(one.name))]
    return [one for _, one in sorted(found)]


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every line's object, and where it stands. Raises CorruptFile."""
    number = 0
    size_of(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while line := file.readline(_LINE):
                number += 1
                if line.isspace():
                    continue
                where = f"{path}, line {number}"
                if len(line) == _LINE:
                    raise CorruptFile(f"{where} is longer than {_LINE >> 20} MB: no such file has one")
                yield where, _object(line, where)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorruptFile(f"{path} is damaged or cut short behind line {number} ({error}): fetch it again") from error
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        return row_of(line, where=where)
    except CorruptFile as error:
        raise CorruptFile(f"{error}: fetch the file again") from error


def _first(path: Path) -> dict[str, Any]:
    return next((row for _, row in _lines(path)), {}) if path.exists() else {}


def _read_lines(place: Path, intake: Intake, progress: Progress) -> dict[str, Any]:
    """The published layout. Returns what the rows beside the batches say."""
    source, model = _first(place / "source.jsonl"), _first(place / "model.jsonl")
    owner = source.get("creatorId")
    folders: list[tuple[str, Callable[[str, dict[str, Any]], None]]] = [
        ("features", lambda where, row: intake.feature(_index(row, "index", where), _kept(row))),
        ("activations", lambda where, row: _take_activation(intake, row, where, owner)),
    ]
    # One folder per explainer, for some sources.
    names = sorted(one.name for one in place.iterdir() if one.is_dir() and one.name.startswith("explanations"))
    folders += [(name, lambda where, row: _take_explanation(intake, row, where, owner)) for name in names]
    for name, take in folders:
        files = _batches(place / name) if (place / name).is_dir() else []
        with progress(f"read {name}", len(files), "files") as advance:
            for file in files:
                for where, row in _lines(file):
                    take(where, row)
                advance(1)
    return {"source": source, "model": model, "release": _first(place / "release.jsonl")}


def _read_intermediate(place: Path, intake: Intake, progress: Progress) -> dict[str, Any]:
    """SAEDashboard's output, before it is converted."""
    files = [path for path in _batches(place) if path.suffix == ".json"]
    first: dict[str, Any] = {}
    with progress("read", len(files), "files") as advance:
        for file in files:
            batch = _object(bytes_of(file, most=_BATCHED), str(file))
            first = first or {key: value for key, value in batch.items() if key != "features"}
            features = batch.get("features")
            if not isinstance(features, list):
                raise CorruptFile(f"{file} has no list of features: expected SAEDashboard's batch-N.json")
            for number, row in enumerate(features):
                where = f"{file}, feature {number}"
                if not isinstance(row, dict):
                    raise CorruptFile(f"{where} is a {type(row).__name__}, expected a JSON object")
                index = _index(row, "feature_index", where)
                intake.feature(index, _kept(row))
                for field in ("n_prompts_total", "n_tokens_in_prompt", "dataset"):
                    first.setdefault(field, row.get(field))
                activations = row.get("activations") or []
                if not isinstance(activations, list):
                    raise CorruptFile(f"{where}: activations is {quoted(activations)}, expected a list")
                for activation in activations:
                    _take_activation(intake, _camel(activation, where) | {"index": index}, where, None)
            advance(1)
    skipped = place / "skipped_indexes.json"
    settings = place / "run_settings.json"
    said = _object(bytes_of(settings, most=_BATCHED), str(settings)) if settings.exists() else {}
    return {
        "skipped": _skipped(skipped) if skipped.exists() else (),
        "source": _as_source(first, said),
        "model": {"id": first.get("model_id")},
        "release": {},
    }


def _skipped(path: Path) -> list[int]:
    found = _object(bytes_of(path, most=_BATCHED), str(path)).get("skipped_indexes", [])
    if not isinstance(found, list) or any(as_whole(one) is None for one in found):
        raise CorruptFile(f"{path}: skipped_indexes is no list of numbers")
    return found


def _as_source(batch: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    layer, name, suffix = batch.get("layer"), batch.get("sae_set"), batch.get("sae_id_suffix")
    said = batch | {key: value for key, value in settings.items() if value is not None}
    return {
        "id": f"{layer}-{name}" + (f"__{suffix}" if suffix else ""),
        "modelId": batch.get("model_id"),
        "setName": name,
        "dataset": said.get("dataset") or said.get("huggingface_dataset_path"),
        "num_prompts": said.get("n_prompts_total"),
        "num_tokens_in_prompt": said.get("n_tokens_in_prompt"),
    }


def _camel(activation: object, where: str) -> dict[str, Any]:
    if not isinstance(activation, dict):
        raise CorruptFile(f"{where}: an activation is a {type(activation).__name__}, expected a JSON object")
    names = {
        "bin_min": "binMin",
        "bin_max": "binMax",
        "bin_contains": "binContains",
        "qualifying_token_index": "qualifyingTokenIndex",
    }
    return {names.get(key, key): value for key, value in activation.items()}


# --- one line -------------------------------------------------------------------------------------------------------

_FIGURES = (
    "maxActApprox", "frac_nonzero", "pos_str", "pos_values", "neg_str", "neg_values", "topkCosSimIndices",
    "topkCosSimValues", "freq_hist_data_bar_heights", "freq_hist_data_bar_values", "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values",
)  # fmt: skip
"""What a feature's line says that an atlas keeps. `correlated_*` is within a batch of features alone, or blank."""


def _kept(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in _FIGURES if row.get(name) is not None}


def _index(row: Mapping[str, Any], field: str, where: str) -> int:
    """Theirs is a string."""
    value = row.get(field)
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,9}", str(value)):
        raise CorruptFile(f"{where}: {field} is {value!r}, expected the number of a feature")
    return int(str(value))


def _take_activation(intake: Intake, row: dict[str, Any], where: str, owner: object) -> None:
    index = _index(row, "index", where)
    author = row.get("creatorId")
    if owner is not None and author is not None and author != owner:
        intake.taken.foreign += 1
        return
    tokens, values = row.get("tokens"), row.get("values")
    if not are_texts(tokens):
        raise CorruptFile(f"{where}: tokens is no list of strings")
    if not are_numbers(values) or len(values) != len(tokens):
        raise CorruptFile(f"{where}: values is no list of {len(tokens)} finite numbers, one for each token")
    places = (as_whole(row.get(name)) for name in ("qualifyingTokenIndex", "maxValueTokenIndex"))
    own = next((place for place in places if place is not None), -1)
    low, high, share = (as_number(row.get(name)) for name in ("binMin", "binMax", "binContains"))
    if low is None or high is None or low < 0 or share is None or share < 0:  # -1: among the strongest
        low = high = share = None
    intake.example(index, tokens, values, own, low=low, high=high, share=share)


def _take_explanation(intake: Intake, row: dict[str, Any], where: str, owner: object) -> None:
    text = row.get("description")
    if not isinstance(text, str):
        raise CorruptFile(f"{where}: description is {type(text).__name__}, expected text")
    if not text.strip():
        return
    method, explainer, author = row.get("typeName"), row.get("explanationModelName"), row.get("authorId")
    said = {
        "text": text,
        "method": " · ".join(str(one) for one in (method, explainer) if one) or _METHOD,
        "author": "" if author in (None, owner) else str(author),
        "score": as_number(row.get("score")),
    }
    intake.explanation(_index(row, "index", where), said)


# --- one feature ----------------------------------------------------------------------------------------------------


class _Numbers:
    """Makes entries, and keeps count of what it put right."""

    def __init__(self, intake: Intake, tokens: int) -> None:
        self.intake, self.tokens = intake, tokens
        self.has_logits = False

    def entry(self, index: int, record: dict[str, Any] | None, examples: list[Shown]) -> Entry:
        figures, taken = record or {}, self.intake.taken
        shown = len({(one.window, int(column)) for one in examples for column in one.columns})
        share = as_number(figures.get("frac_nonzero")) or 0.0
        count, heights = firings(share, self.tokens, _numbers(figures, "freq_hist_data_bar_heights"), shown, taken)
        step, histogram = from_zero(_numbers(figures, "freq_hist_data_bar_values"), heights)
        promoted, suppressed = self._logits(figures, "pos", taken), self._logits(figures, "neg", taken)
        self.has_logits |= bool(promoted)
        low, width, logits = _logit_histogram(figures)
        neighbours, cosines = _neighbours(figures)
        entry = Entry(
            index=index,
            count=count,
            # maxActApprox is the maximum of the examples, and so the least that the true one can be.
            max=highest(as_number(figures.get("maxActApprox")), examples),
            mean=_mean(step, histogram),
            decoder_norm=1.0,
            step=step,
            histogram=histogram,
            promoted=np.array([id_ for id_, _ in promoted], np.int64),
            promoted_values=np.array([value for _, value in promoted], np.float32),
            suppressed=np.array([id_ for id_, _ in suppressed], np.int64),
            suppressed_values=np.array([value for _, value in suppressed], np.float32),
            logit_low=low,
            logit_step=width,
            logit_histogram=logits,
            neighbours=neighbours,
            cosines=cosines,
        )
        return with_examples(entry, arranged(examples, count, taken), self.intake.length)

    def _logits(self, figures: dict[str, Any], side: str, taken: Taken) -> list[tuple[int, float]]:
        texts, values = figures.get(f"{side}_str"), figures.get(f"{side}_values")
        if not isinstance(texts, list) or not isinstance(values, list):
            return []
        out = []
        for text, value in zip(texts, map(as_number, values), strict=False):
            if value is None or value in _MISSING or not isinstance(text, str):
                taken.logits += 1
            else:
                out.append((self.intake.id_of(text), value))
        return sorted(out, key=lambda pair: pair[1], reverse=side == "pos")


def _numbers(figures: dict[str, Any], name: str) -> list[float]:
    values = figures.get(name)
    return [as_number(value) or 0.0 for value in values] if isinstance(values, list) else []


def _mean(step: float, histogram: Ints) -> float:
    """Of the histogram's middles: half a bin from the true mean at most."""
    counts = np.asarray(histogram, np.float64)
    total = counts.sum()
    return float(((np.arange(len(counts)) + 0.5) * step * counts).sum() / total) if total else 0.0


def _logit_histogram(figures: dict[str, Any]) -> tuple[float, float, Ints]:
    heights, values = (_numbers(figures, f"logits_hist_data_bar_{name}") for name in ("heights", "values"))
    if len(values) < 2 or len(heights) != len(values):
        return 0.0, 0.0, np.zeros(0, np.int64)
    step = (values[-1] - values[0]) / (len(values) - 1)
    return values[0] - step / 2, step, np.rint(np.array(heights)).clip(0).astype(np.int64)


def _neighbours(figures: dict[str, Any]) -> tuple[Ints, Floats]:
    indices, cosines = figures.get("topkCosSimIndices"), figures.get("topkCosSimValues")
    if not isinstance(indices, list) or not isinstance(cosines, list):
        indices, cosines = [], []
    pairs = [
        (index, cosine)
        for index, cosine in zip(indices, map(as_number, cosines), strict=False)
        if type(index) is int and 0 <= index < 1 << 31 and cosine is not None
    ]
    pairs.sort(key=lambda pair: -pair[1])
    return np.array([one for one, _ in pairs], np.int64), np.array([one for _, one in pairs], np.float32)


# --- what it is of --------------------------------------------------------------------------------------------------


def _facts(place: Path, about: dict[str, Any], model: str | None) -> dict[str, Any]:
    """Model, site and size, as the rows beside the batches and the catalogue say."""
    source = about["source"]
    model_id = str(source.get("modelId") or about["model"].get("id") or place.parent.name)
    source_id = str(source.get("id") or place.name)
    config = source.get("saelensConfig")
    config = config if isinstance(config, dict) else {}
    ours = config.get(OUR_CONFIG)
    ours = ours if isinstance(ours, dict) else {}
    entry = _in_catalog(f"{model_id}/{source_id}")
    tokens = ours.get("tokens") or _product(source.get("num_prompts"), source.get("num_tokens_in_prompt"))
    known = type(tokens) is int and 0 < tokens < EXACT
    size = next((one for one in (ours.get("d_sae"), config.get("d_sae"), entry and entry.width) if one), None)
    return {
        "model": model or str(ours.get("model") or (entry.model if entry else model_id)),
        "model_id": slugged(model_id),
        "source_id": slugged(source_id),
        "neuronpedia_id": f"{model_id}/{source_id}",
        "revision": _text(ours.get("revision")),
        "sae": str(ours.get("sae") or (entry.address if entry else _hub(source) or f"{model_id}/{source_id}")),
        "sae_digest": str(ours.get("sae_digest") or ""),
        "site": str(ours.get("site") or (entry.site if entry else _site(source_id))),
        "site_out": str(ours.get("site_out") or (entry.site_out if entry else _site(source_id))),
        "gate": str(ours.get("gate") or ("jumprelu" if entry else "unknown")),
        "d_sae": size,
        "tokens": tokens if known else _UNKNOWN_TOKENS,
        "tokens_known": known,
        "dataset": str(source.get("dataset") or "a text that the files do not name"),
        "logits": _text(ours.get("logits")),
    }


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _product(prompts: object, length: object) -> int | None:
    one, other = as_whole(prompts), as_whole(length)
    return None if one is None or other is None else one * other


def _hub(source: dict[str, Any]) -> str | None:
    repo, folder = source.get("hfRepoId"), source.get("hfFolderId")
    return f"{repo}/{folder}" if repo and folder else repo


def _site(source_id: str) -> str:
    """As far as a name tells: `20-gemmascope-res-16k` reads the residual stream behind block 20."""
    layer, _, rest = source_id.partition("-")
    words = set(re.split(r"[-_]", rest))
    kind = next((kind for kind in ("res", "mlp", "att", "transcoder") if words & {kind, f"{kind}s"}), None)
    return f"{layer}.{kind}" if kind and layer.isdecimal() else "unknown"


def _in_catalog(neuronpedia_id: str) -> Any:
    from gemscope.features.catalog import snapshot

    return next((entry for entry in snapshot() if entry.neuronpedia_id == neuronpedia_id), None)


def _manifest(facts: dict[str, Any], intake: Intake, size: int, missing: list[int], logits: bool) -> Any:
    from gemscope import __version__
    from gemscope.atlas.files.manifest import FORMAT, Manifest, Part

    taken = intake.taken
    known = facts["tokens_known"]
    convention = facts["logits"] or "decoder times unembedding, as Neuronpedia has it: which norm is folded is not said"
    return Manifest(
        format=FORMAT,
        model=facts["model"],
        model_id=facts["model_id"],
        source_id=facts["source_id"],
        revision=facts["revision"],
        sae=facts["sae"],
        sae_digest=facts["sae_digest"],
        site=facts["site"],
        site_out=facts["site_out"],
        gate=facts["gate"],
        d_sae=size,
        parts=(
            Part(name=facts["dataset"], digest="", rows=intake.rows, documents=0, counted=facts["tokens"], masked={}),
        ),
        length=intake.length,
        before=intake.length,
        after=intake.length,
        bos=False,
        logits=convention if logits else None,
        no_logits=None if logits else "the imported files hold none",
        coactivation="not measured: the imported files hold none",
        options={"import": "neuronpedia"},
        versions={"gemscope": __version__},
        metadata={
            "units": "activations are those of a decoder of norm 1",
            "counts": (
                f"{taken.exact} exact, out of histograms; {taken.rounded} are shares of the tokens, rounded to 0.001 %"
                if known
                else f"the number of tokens is not told: shares of {_UNKNOWN_TOKENS:,} stand for counts"
            ),
            "missing": ranges(missing),
            "put_right": {name: number for name, number in asdict(taken).items() if number},
        },
        neuronpedia_id=facts["neuronpedia_id"],
    )


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as text: `3, 5-7`."""
    out: list[list[int]] = []
    for number in numbers:
        if out and number == out[-1][1] + 1:
            out[-1][1] = number
        else:
            out.append([number, number])
    return ", ".join(f"{low}" if low == high else f"{low}-{high}" for low, high in out)
