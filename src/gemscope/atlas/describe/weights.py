"""What is known of an SAE's features without any text: of its weights, and of the model it was made for."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gemscope.activations.harvest import versions
from gemscope.activations.model import LanguageModel
from gemscope.atlas.describe.effects import keep, measured, writings
from gemscope.atlas.describe.gather import DescribeConfig
from gemscope.atlas.describe.mapping import plane_or_why
from gemscope.atlas.entry import Written
from gemscope.atlas.files.manifest import FORMAT
from gemscope.features.effect import Effect
from gemscope.features.logit_lens import convention, logit_effects, no_logits
from gemscope.features.map import Plane
from gemscope.features.neighbours import encoder_cosines, nearest
from gemscope.features.sae import SAE
from gemscope.progress import Progress

Array = np.ndarray[Any, np.dtype[Any]]


class FromModel:
    """What weights at hand say."""

    def __init__(self, model: LanguageModel, sae: SAE, config: DescribeConfig, effect: Effect | str, map: bool) -> None:
        """With the effect of the site at which the SAE writes, or why there is none; and a `map`, or none."""
        self._map = map
        self.model, self.sae, self.config, self.effect = model, sae, config, effect
        self._no_logits = no_logits(sae) if config.logits else "none were asked for"

    @property
    def facts(self) -> Mapping[str, Any]:
        """Of the manifest."""
        model, sae = self.model, self.sae
        model_id, source_id = address_of(model.name, sae)
        return {
            "format": FORMAT,
            "model": model.name,
            "model_id": model_id,
            "source_id": source_id,
            "revision": model.revision,
            "sae": sae.info.name,
            "sae_digest": sae.digest,
            "site": str(sae.site),
            "site_out": str(sae.site_out),
            "gate": sae.gate,
            "d_sae": sae.d_sae,
            "logits": convention(model, sae) if self._no_logits is None else None,
            "no_logits": self._no_logits,
            "effect": measured(self.effect) if isinstance(self.effect, Effect) else None,
            "no_effect": self.effect if isinstance(self.effect, str) else None,
            "versions": versions(),
            "neuronpedia_id": sae.info.neuronpedia_id,
        }

    def plane(self, progress: Progress) -> Plane | str:
        """The map of all features, or why there is none."""
        return plane_or_why(self.sae, progress) if self._map else "none was asked for"

    def texts(self, ids: Sequence[int]) -> tuple[Mapping[int, bytes], Collection[int]]:
        """What tokens stand for, and which of them are special."""
        return dict(zip(ids, self.model.token_bytes(ids), strict=True)), self.model.special_ids.intersection(ids)

    def features(self) -> Iterator[dict[str, Any]]:
        """For each feature in order, the fields of its entry that weights alone decide."""
        W_dec = self.sae.decoder
        norms = W_dec.norms(torch.float64).float().tolist()
        cosines = encoder_cosines(self.sae)
        near = None
        if self.config.neighbours:
            near = tuple(part.cpu().numpy() for part in nearest(W_dec, self.config.neighbours))
        logits = self._logits()
        written = self._written()
        for feature, norm in enumerate(norms):
            yield {
                "encoder_cosine": None if cosines is None else float(cosines[feature]),
                "decoder_norm": norm,
                **next(logits),
                "written": next(written),
                **present(("neighbours", "cosines"), near, feature),
            }

    def keep(self, folder: Path) -> None:
        """Puts the effect beside an atlas."""
        if isinstance(self.effect, Effect):
            keep(self.effect, folder)

    def _written(self) -> Iterator[Written | None]:
        """Feature after feature."""
        if isinstance(self.effect, Effect):
            return writings(self.model, self.sae, self.effect, k=max(1, self.config.logits))
        return repeat(None)

    def _logits(self) -> Iterator[dict[str, Any]]:
        """Feature after feature; nothing where there is no direct path to the logits."""
        while self._no_logits is not None:
            yield {}
        for block in logit_effects(self.model, self.sae, k=self.config.logits):
            columns = {
                "promoted": block.promoted,
                "promoted_values": block.promoted_values,
                "suppressed": block.suppressed,
                "suppressed_values": block.suppressed_values,
                "logit_low": block.low,
                "logit_step": block.step,
                "logit_histogram": block.counts,
            }
            arrays = {name: column.numpy() for name, column in columns.items()}
            for index in range(len(block.features)):
                row = {name: array[index] for name, array in arrays.items()}
                yield row | {name: float(row[name]) for name in ("logit_low", "logit_step")}


def address_of(model: str, sae: SAE) -> tuple[str, str]:
    """The first two parts of the addresses of an SAE's pages: Neuronpedia's where it has them, else of that kind."""
    known = re.fullmatch(r"([\w.-]+)/([\w.-]+)", sae.info.neuronpedia_id or "")
    if known:
        return known[1], known[2]
    site = sae.site
    layer = "" if site is None or site.layer is None else f"{site.layer}-"
    kind = "sae" if site is None else site.kind
    width = f"{sae.d_sae // 1024}k" if sae.d_sae % 1024 == 0 else str(sae.d_sae)
    return re.sub(r"[^a-z0-9._-]+", "-", model.rstrip("/").split("/")[-1].lower()) or "model", f"{layer}{kind}-{width}"


def present(names: tuple[str, ...], columns: tuple[Array, ...] | None, feature: int) -> dict[str, Any]:
    """A feature's relatives; -1 stands where there are no more."""
    if columns is None:
        return {}
    there = columns[0][feature] >= 0
    return {name: column[feature][there] for name, column in zip(names, columns, strict=True)}
