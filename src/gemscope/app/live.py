"""Whether texts can be read through an atlas's model and SAE, and if not, why not. Imports neither until it must."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from gemscope.app.worker import Job
from gemscope.errors import GemscopeError, Mismatch

Finder = Callable[[Any], tuple[Any, Any]]
"""From a manifest to its LanguageModel and SAE. Raises GemscopeError where they cannot be had."""

State = Literal["off", "loading", "ready"]


class Off(Exception):
    """There is no model to read with; the message says why."""


class Live:
    """The model and the SAE of one atlas. `read`, `look` and `load` are for the worker's thread."""

    def __init__(self, off: str | None = None) -> None:
        """To be loaded, or off for a reason."""
        self.state: State = "loading" if off is None else "off"
        self.why = off or "the model is being loaded"
        self._pair: tuple[Any, Any] | None = None

    @property
    def on(self) -> bool:
        """Whether a text may be sent: one that comes while the model is loaded waits for it."""
        return self.state != "off"

    def load(self, find: Finder, manifest: Any) -> None:
        """Makes it ready, or off for a reason."""
        try:
            self._pair = _fitting(find, manifest)
        except GemscopeError as error:
            self.state, self.why = "off", " ".join(str(error).split())
        except Exception as error:  # whatever a model's library may raise: the pages do without it
            self.state, self.why = "off", f"the model cannot be loaded ({type(error).__name__})"
        else:
            self.state, self.why = "ready", ""

    def read(self, job: Job[Any], text: str, *, features: Sequence[int] | None = None) -> Any:
        """A `Reading`. Raises Off, and what `reading.read` raises."""
        from gemscope.app import reading

        return reading.read(job, *self._both(), text, features=features)

    def look(self, job: Job[Any], text: str, *, k: int) -> Any:
        """A `Look`. Raises Off, and what `gs.look` raises."""
        from gemscope.app import reading

        return reading.look(job, *self._both(), text, k=k)

    def _both(self) -> tuple[Any, Any]:
        if self._pair is None:
            raise Off(f"live reading is off: {self.why}")
        return self._pair


def _fitting(find: Finder, manifest: Any) -> tuple[Any, Any]:
    from gemscope.reports.fit import require_fit

    model, sae = find(manifest)
    if sae.digest != manifest.sae_digest:
        raise Mismatch(
            f"{sae.info.name} is not the SAE that this atlas was made with: its digest is {sae.digest[:12]}, "
            f"the atlas names {manifest.sae_digest[:12] or 'none'}"
        )
    require_fit(model, sae)
    return model, sae
