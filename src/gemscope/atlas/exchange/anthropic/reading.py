"""An atlas from features as the pages of attribution graphs read them: a JSON file each, or packed by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gemscope.atlas.exchange.anthropic.figures import Figures, ours_of
from gemscope.atlas.exchange.anthropic.records import MOST, records
from gemscope.atlas.exchange.anthropic.writing import ABOUT
from gemscope.atlas.exchange.effects import measured_read
from gemscope.atlas.exchange.folder import slugged
from gemscope.atlas.exchange.intake import Intake
from gemscope.atlas.exchange.numbers import are_numbers, are_texts, as_number, as_whole, object_of
from gemscope.atlas.exchange.provenance import OURS, from_windows
from gemscope.atlas.files.manifest import Manifest
from gemscope.atlas.reader import Atlas
from gemscope.atlas.writer import Writer
from gemscope.checked import bytes_of
from gemscope.errors import CorruptFile, NotFound
from gemscope.progress import Progress, silent

_UNKNOWN_TOKENS = 1_000_000
"""Tokens that a frequency is a share of where the files do not say."""


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
    path, to = Path(path), Path(to)
    if not path.is_dir():
        raise NotFound(f"no folder {path}: expected one of {{index}}.json files, or one with index.json.gz")
    about = _about(path / ABOUT)
    with Writer(to) as writer, Intake(writer.place) as intake:
        with progress("read", None, "features") as advance:
            for index, record, where in records(path, layer):
                _take(intake, index, record, where)
                about.setdefault("transcoder_id", str(record.get("transcoder_id") or ""))
                advance(1)
        size = intake.size(d_sae or about.get("d_sae"), path)
        figures = Figures(intake, max(as_whole(about.get("tokens")) or 0, 0) or _UNKNOWN_TOKENS, path)
        intake.hand_on(writer, size, figures.entry, progress)
        about |= {name: value for name, value in (("model", model), ("source_id", source)) if value}
        about.setdefault("source_id", "features" if layer is None else f"{layer}-features")
        return writer.finish(_manifest(about, intake, size, figures))


def _about(path: Path) -> dict[str, Any]:
    """What all features have in common: text, but for what counts something and for the effect; anything else is left
    out.
    """
    if not path.exists():
        return {}
    return {
        name: value
        for name, value in object_of(bytes_of(path, most=MOST), str(path)).items()
        if type(value) is (int if name in ("d_sae", "tokens") else dict if name == "effect" else str)
    }


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
    for said in ours_of(ours, where).explanations or ():
        text = said.get("text") if isinstance(said, dict) else None
        if isinstance(text, str) and text.strip():
            known = {name: str(said.get(name) or "") for name in ("method", "author", "rule", "model", "made")}
            known["method"] = known["method"] or "import"
            figures = {name: as_number(said.get(name)) for name in ("score", "control", "confidence")}
            intake.explanation(index, {"text": text, **known, **figures})


def _manifest(about: dict[str, Any], intake: Intake, size: int, figures: Figures) -> Manifest:
    name = str(about.get("transcoder_id") or "")
    model = about.get("model") or name.partition("/")[0] or "unknown"
    source, told = about["source_id"], bool(about.get("tokens"))
    ordered = "in this order; their values are not in the imported files, and stand as 0"
    logits = about.get("logits") or ("as imported: the convention is not said" if figures.has_values else ordered)
    return from_windows(
        intake,
        intake.missing(size),
        format="anthropic",
        metadata={"counts": "as exported" if told else f"frequencies times {figures.tokens:,}: no count is told"},
        text="a text that the files do not name",
        counted=figures.tokens,
        logits=logits if figures.has_logits else None,
        coactivation="as imported" if told else None,
        effect=measured_read(about.get("effect"), ABOUT),
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
    )
