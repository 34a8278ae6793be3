"""An atlas from what Neuronpedia publishes of a source (batches of lines), or from SAEDashboard's own `batch-N.json`.

Files may come in any order and cut anywhere: features, activations and explanations are put together by index. What
such files get wrong is put right, and counted in the manifest; what they do not say is not made up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from gemscope.atlas.exchange.intake import Intake
from gemscope.atlas.exchange.neuronpedia import saedashboard
from gemscope.atlas.exchange.neuronpedia.figures import Figures
from gemscope.atlas.exchange.neuronpedia.lines import (
    batches_in,
    index_of,
    kept,
    lines_of,
    take_activation,
    take_explanation,
)
from gemscope.atlas.exchange.neuronpedia.source import manifest_of, source_of
from gemscope.atlas.reader import Atlas
from gemscope.atlas.writer import Writer
from gemscope.errors import InputError, NotFound
from gemscope.progress import Progress, silent


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
    path, to = Path(path), Path(to)
    writing = Writer(to)  # says at once when there is something in its place
    place = _source_in(path)
    read = saedashboard.read if not (place / "features").is_dir() else _read
    with writing as writer, Intake(writer.place) as intake:
        row, model_id, skipped = read(place, intake, progress)
        source = source_of(place, row, model_id, model)
        size = intake.size(d_sae or source.size, place)
        figures = Figures(intake, source.tokens)
        missing = intake.missing(size, skipped)
        intake.hand_on(writer, size, figures.entry, progress)
        return writer.finish(manifest_of(source, intake, size, missing, figures.has_logits))


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
    return bool(features.is_dir() and batches_in(features)) or any(path.suffix == ".json" for path in batches_in(place))


def _first(path: Path) -> dict[str, Any]:
    return next((row for _, row in lines_of(path)), {}) if path.exists() else {}


def _read(place: Path, intake: Intake, progress: Progress) -> tuple[dict[str, Any], object, Collection[int]]:
    """The published layout. Returns the source's row, its model's id, and features that were left out on purpose."""
    source, model = _first(place / "source.jsonl"), _first(place / "model.jsonl")
    owner = source.get("creatorId")
    folders: list[tuple[str, Callable[[str, dict[str, Any]], None]]] = [
        ("features", lambda where, row: intake.feature(index_of(row, "index", where), kept(row))),
        ("activations", lambda where, row: take_activation(intake, row, where, owner)),
    ]
    # One folder per explainer, for some sources.
    names = sorted(one.name for one in place.iterdir() if one.is_dir() and one.name.startswith("explanations"))
    folders += [(name, lambda where, row: take_explanation(intake, row, where, owner)) for name in names]
    for name, take in folders:
        files = batches_in(place / name) if (place / name).is_dir() else []
        with progress(f"read {name}", len(files), "files") as advance:
            for file in files:
                for where, row in lines_of(file):
                    take(where, row)
                advance(1)
    return source, model.get("id"), ()
