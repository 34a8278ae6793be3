"""Whether texts can be read through an atlas's model and SAE, and if not, why not. Imports neither until it must."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from gemscope.app.worker import Job
from gemscope.atlas.reader import Atlas
from gemscope.errors import GemscopeError, Mismatch

Finder = Callable[[Any], tuple[Any, Any]]
"""From a manifest to its LanguageModel and SAE. Raises GemscopeError where they cannot be had."""

State = Literal["off", "loading", "ready", "resting"]
"""Resting: loaded when a text is to be read."""

SAES = 2 << 30
"""Bytes of weights of SAEs that stay loaded when no text is read through them: beyond, the one that was needed longest
ago is let go of.
"""

_MEASURED = 5_000
"""Tokens that strengths are measured on where the atlas is no measure."""
_LOOKS = 4
"""Looks that are kept: one at a text of 8,000 tokens takes some 15 MB."""


class Off(Exception):
    """There is no model to read with; the message says why."""


class Loaded:
    """The SAEs that are loaded, of all atlases that are served. For the worker's thread."""

    def __init__(self, most: int = SAES) -> None:
        self.most = most
        self._sizes: dict[Live, int] = {}
        """In bytes. The one that was needed last comes last."""

    def needed(self, live: Live) -> None:
        """Keeps it, and lets go of others where all are too many."""
        self._sizes[live] = self._sizes.pop(live, 0) or live.size
        while sum(self._sizes.values()) > self.most and len(self._sizes) > 1:
            oldest = next(iter(self._sizes))
            del self._sizes[oldest]
            oldest.rest()


class Live:
    """The model and the SAE of one atlas. All but `state`, `why`, `on` and `chats` is for the worker's thread."""

    def __init__(self, off: str | None = None, loaded: Loaded | None = None) -> None:
        """To be loaded, or off for a reason."""
        self._loaded = loaded or Loaded()
        self.state: State = "loading" if off is None else "off"
        self.why = off or "the model is being loaded"
        self.loads: Callable[[], None] | None = None
        """How it is loaded: for whoever has something to be read before that was its turn."""
        self._pair: tuple[Any, Any] | None = None
        self._looks: dict[tuple[bytes, int], Any] = {}
        """By ids and number of features. The one that was wanted last comes last."""
        self._units: Any = None
        self._norms: dict[int, Any] = {}

    @property
    def on(self) -> bool:
        """Whether a text may be sent: one that comes while the model is loaded waits for it."""
        return self.state != "off"

    def load(self, find: Finder, manifest: Any) -> None:
        """Makes it ready, or off for a reason."""
        if self.state not in ("loading", "resting"):
            return
        try:
            self._pair = _fitting(find, manifest)
        except GemscopeError as error:
            self.state, self.why = "off", " ".join(str(error).split())
        except Exception as error:  # whatever a model's library may raise: the pages do without it
            self.state, self.why = "off", f"the model cannot be loaded ({type(error).__name__})"
        else:
            self.state, self.why = "ready", ""
            self._loaded.needed(self)

    def rest(self) -> None:
        """Lets go of the SAE until it is needed again."""
        self.state, self.why = "resting", ""
        self._pair, self._units = None, None
        self._looks.clear()
        self._norms.clear()

    @property
    def size(self) -> int:
        """Of its SAE, in bytes."""
        sae = self.sae
        return 0 if sae is None else sum(weight.nbytes for weight in sae.parameters())

    def read(self, job: Job[Any], text: str, *, features: Sequence[int] | None = None, chat: bool = False) -> Any:
        """A `Reading`; with `chat` the text is a user's turn. Raises Off, and what `reading.read` raises."""
        from gemscope.app import reading

        return reading.read(job, *self.pair(job), given(text, chat), features=features)

    def look(self, job: Job[Any], text: str, *, k: int, atlas: Atlas, chat: bool = False) -> Any:
        """A `Look` with the labels of this SAE's atlas; with `chat` the text is a user's turn. The last few are kept,
        for who turns the pages of a long text or pins a feature. Raises Off, and what `gs.look` raises.
        """
        from gemscope.app import reading

        model, sae = self.pair(job)
        tokens = model.tokens(given(text, chat))
        name = tokens.ids.numpy().tobytes(), k
        found = self._looks.pop(name, None)
        if found is None:
            found = reading.look(job, model, sae, tokens, k=k, atlas=atlas)
        self._looks[name] = found
        if len(self._looks) > _LOOKS:
            del self._looks[next(iter(self._looks))]
        return found

    def compare(self, job: Job[Any], atlas: Atlas, asked: Any) -> Any:
        """The `TextPair` of a `requests.Texts`. Raises Off, and what `compare_texts` raises."""
        from gemscope.reports.text_pair import compare_texts

        model, sae = self.pair(job)
        texts = (given(text, asked.chat) for text in (asked.text, asked.other))
        with model.watched(job.check):
            return compare_texts(model, sae, *texts, k=asked.k, atlas=atlas)

    @property
    def sae(self) -> Any:
        """Its SAE where that is loaded already, else None: for pages, which do not wait for it."""
        return None if self._pair is None else self._pair[1]

    @property
    def chats(self) -> bool:
        """Whether its model has a chat template; while it is loaded it may have one."""
        return self.on if self._pair is None else bool(getattr(self._pair[0].tokenizer, "chat_template", None))

    def units(self, job: Job[Any], atlas: Atlas) -> Any:
        """The `Units` of its SAE, by its atlas, or measured where that is no measure: made once. Raises Off."""
        model, sae = self.pair(job)
        if self._units is None:
            from gemscope.atlas.units import measures, units_of
            from gemscope.edits.units import Units
            from gemscope.text.corpus import Corpus

            with model.watched(job.check):
                if measures(atlas.manifest, sae):
                    self._units = units_of(atlas, model, sae, read=self._norms)
                    if atlas.manifest.median_norm is None and self._units.median_norm:
                        atlas.measured(median_norm=self._units.median_norm)
                else:
                    self._units = Units.measured(model, sae, Corpus.sample(), tokens=_MEASURED)
        return self._units

    def steer(self, job: Job[Any], atlas: Any, asked: Any) -> Any:
        """The `steering.Run`s of a `requests.Steering`. Raises Off, and what `steering.stream` raises."""
        from gemscope.app import steering

        model, sae = self.pair(job)
        return steering.stream(job, model, sae, self.units(job, atlas), asked, atlas=atlas)

    def attribute(self, job: Job[Any], atlas: Any, asked: Any) -> Any:
        """The `Attribution` of a `requests.Cause`. Raises Off, and what `attribute` raises."""
        from gemscope.reports.attribute import attribute

        model, sae = self.pair(job)
        return attribute(
            model,
            sae,
            given(asked.text, asked.chat),
            asked.target or None,
            against=asked.against or None,
            position=asked.position,
            k=asked.k,
            atlas=atlas,
            check=job.check,
        )

    def output_score(self, job: Job[Any], atlas: Any, one: Any) -> Any:
        """The `OutputScore` of a `Dashboard`'s feature, at its maximum. Raises Off, and what `output_score` raises."""
        from gemscope.reports.output_score import output_score_of

        model, sae = self.pair(job)
        return output_score_of(model, sae, one, strength=self.units(job, atlas).max(one.index), check=job.check)

    def pair(self, job: Job[Any]) -> tuple[Any, Any]:
        """Model and SAE, loaded now where nobody else has needed them: the job's time is counted from then on. Raises
        Off.
        """
        if self.state in ("loading", "resting") and self.loads is not None:
            self.loads()
            job.begin()
        if self._pair is None:
            raise Off(f"live reading is off: {self.why}")
        self._loaded.needed(self)
        return self._pair


def given(text: str, chat: bool) -> Any:
    """A text, or a turn of a chat."""
    from gemscope.text.chat import turn_of

    return turn_of(text) if chat else text


def _fitting(find: Finder, manifest: Any) -> tuple[Any, Any]:
    from gemscope.atlas.meaning import misfit
    from gemscope.features.fit import require_fit

    model, sae = find(manifest)
    if amiss := misfit(manifest, sae):
        raise Mismatch(f"this atlas {amiss}")
    require_fit(model, sae)
    return model, sae
