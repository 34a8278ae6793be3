"""A feature page in somebody else's frame: which of its parts the address asks for, in Neuronpedia's own words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Which parts a frame shows. Each is on unless its parameter (`embedplots`, ...) is the string `false`, but for
    steering, which is off unless `embedsteer` is `true`: few frames are for that.
    """

    explanation: bool = True
    plots: bool = True
    activations: bool = True
    test: bool = True
    """What the feature does on a text of the reader's."""
    testfield: bool = True
    """The field to change that text in; without it only `default_test_text` is read."""
    steer: bool = False
    link: bool = True
    """The link to the whole page."""
    default_test_text: str = ""

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Embed | None:
        """The frame that an address's query asks for; None unless it says `embed=true`.

        Parameters that are not known, `height` among them, are left alone.
        """
        if query.get("embed") != "true":
            return None
        parts = ("explanation", "plots", "activations", "test", "testfield", "link")
        shown = {part: query.get(f"embed{part}") != "false" for part in parts}
        return cls(**shown, steer=query.get("embedsteer") == "true", default_test_text=query.get("defaulttesttext", ""))
