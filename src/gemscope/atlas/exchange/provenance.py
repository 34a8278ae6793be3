"""What a dictionary is of: as other tools are told it, and the manifest of one that came from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from gemscope import __version__
from gemscope.atlas.exchange.intake import Intake
from gemscope.atlas.files.manifest import Manifest, Part

OURS = "gemscope"
"""Where objects of any fields hold what other tools' own fields have no room for."""


def told(manifest: Manifest) -> dict[str, Any]:
    """What a manifest says that no field of another tool has room for."""
    return {
        "model": manifest.model,
        "revision": manifest.revision,
        "sae": manifest.sae,
        "sae_digest": manifest.sae_digest,
        "site": manifest.site,
        "site_out": manifest.site_out,
        "gate": manifest.gate,
        "d_sae": manifest.d_sae,
        "tokens": manifest.tokens,
        "logits": manifest.logits,
        "no_logits": manifest.no_logits,
        "effect": None if manifest.effect is None else asdict(manifest.effect),
    }


def imported(
    *,
    text: str,
    rows: int,
    counted: int,
    logits: str | None,
    coactivation: str | None = None,
    none: str = "the imported files hold none",
    **facts: Any,
) -> Manifest:
    """A manifest, with what is the same of all that is imported; `facts` are the rest of its fields."""
    return Manifest(
        parts=(Part(name=text, digest="", rows=rows, documents=0, counted=counted, masked={}),),
        bos=False,
        logits=logits,
        no_logits=None if logits else none,
        coactivation=coactivation or f"not measured: {none}",
        versions={"gemscope": __version__},
        **facts,
    )


def from_windows(
    intake: Intake, missing: Iterable[int], *, format: str, metadata: dict[str, Any], **facts: Any
) -> Manifest:
    """The manifest of an atlas whose corpus is what came in: windows of text, each shown whole."""
    length, right = intake.length, {name: number for name, number in asdict(intake.taken).items() if number}
    return imported(
        rows=intake.rows,
        length=length,
        before=length,
        after=length,
        options={"import": format},
        metadata=metadata | {"missing": _ranges(missing), "put_right": right},
        **facts,
    )


def in_catalog(field: str, value: str) -> Any:
    """The published SAE that says so of itself; None where there is none."""
    from gemscope.features.published import snapshot

    return next((entry for entry in snapshot() if getattr(entry, field) == value), None)


def _ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers as text: `3, 5-7`."""
    out: list[list[int]] = []
    for number in numbers:
        if out and number == out[-1][1] + 1:
            out[-1][1] = number
        else:
            out.append([number, number])
    return ", ".join(f"{low}" if low == high else f"{low}-{high}" for low, high in out)
