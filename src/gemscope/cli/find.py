"""Commands that find things out without running a model: catalog, info."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemscope.cli import options
from gemscope.progress import silent

if TYPE_CHECKING:
    from gemscope.features.entry import Entry


def add_to(commands: Any) -> None:
    """catalog, info."""
    catalog = commands.add_parser(
        "catalog",
        help="published SAEs: Gemma Scope 1 and 2, and all of SAELens's registry; or those of one scope",
        usage="gemscope catalog [SCOPE] [options]",
        description="Lists what exists, from the Hub where it answers, else from the bundled snapshot. Of a SCOPE (a "
        "folder with SAEs in it, or a repository) a table of its sites and widths, with the L0s of the SAEs there.",
    )
    catalog.add_argument("scope", nargs="?", metavar="SCOPE", help="one's own: a folder; or a repository, a release")
    catalog.add_argument("--model", help="such as gemma-2-2b")
    catalog.add_argument("--site", help="a kind (res, mlp, att, transcoder, embed) or a place (20.res)")
    catalog.add_argument("--layer", type=int)
    catalog.add_argument("--width", help="16k, 65k, ... or a number of features")
    catalog.add_argument("--l0", help="a number, a range such as 50-150, or small, medium, big")
    catalog.add_argument("--canonical", action="store_true", default=None, help="only those with L0 closest to 100")
    catalog.add_argument(
        "--limit", type=int, default=50, help="rows shown (default 50; 0 shows all; --json always prints all)"
    )
    catalog.add_argument("--offline", action="store_true", help="the bundled snapshot, ask nobody")
    catalog.add_argument("--token", help="Hugging Face token")
    options.add_json(catalog)
    catalog.set_defaults(run=_catalog, parser=catalog)

    info = commands.add_parser(
        "info",
        help="what an SAE is, the versions in use, what this machine is quick at",
        usage="gemscope info [SAE] [options]",
        description="What an SAE's file says: sites, width, gate, declared L0, origin; of a cross-layer transcoder "
        "what its layers have in common; of a folder or a repository with several what `catalog` shows. Without one: "
        "versions.",
    )
    info.add_argument("sae", nargs="?")
    info.add_argument(
        "--machine",
        action="store_true",
        help="devices, number formats and kernels with their rates here, which are chosen, what would be faster",
    )
    options.add_json(info)
    options.add_sae(info)
    options.add_hub(info)
    info.set_defaults(run=_info, parser=info)


def _catalog(args: argparse.Namespace) -> int:
    if args.scope is not None:
        return _scope(args)
    from gemscope.features.catalog import catalog

    found = catalog(
        args.model,
        site=args.site,
        layer=args.layer,
        width=args.width,
        l0=_l0(args.l0),
        canonical=args.canonical,
        online=False if args.offline else None,
        token=args.token,
    )
    if args.json:
        options.show({"source": found.source, "saes": [entry.to_dict() for entry in found]}, True)
        return 0
    shown = found[: args.limit] if args.limit else found
    rows = [_row(entry) for entry in shown]
    if sys.stdout.isatty():
        for line in _in_columns(rows):
            print(line)
    else:  # for cut, sort and awk
        print("\n".join("\t".join(row) for row in (_COLUMNS, *rows)))
    more = "" if len(shown) == len(found) else f", {len(shown)} shown (--limit 0 shows all)"
    beside = None if sys.stdout.isatty() else sys.stderr
    print(f"\n{len(found):,} SAEs{more}, from {found.source}", file=beside)
    if found:
        one = next((entry for entry in shown if entry.canonical), next((e for e in shown if not e.closed), shown[0]))
        look = ["look", one.model, one.address, "Your text"]
        options.lead(args, None, ("what does it see in a text?", look), aside=beside is not None)
    return 0


def _scope(args: argparse.Namespace) -> int:
    from gemscope.features.listing import load_scope

    if alone := [name for name in ("model", "l0", "canonical") if getattr(args, name) is not None]:
        args.parser.error(f"--{alone[0]} is for the catalogue: of a SCOPE choose by --site, --layer and --width")
    scope = load_scope(args.scope, token=args.token, offline=args.offline or None)
    if args.site is not None:
        scope = scope[args.site]
    if args.layer is not None:
        scope = scope.layer(args.layer)
    if args.width is not None:
        scope = scope.wide(args.width)
    options.show(scope, args.json)
    return 0


_COLUMNS = ("address", "model", "site", "width", "L0", "Neuronpedia")


def _row(entry: Entry) -> tuple[str, ...]:
    site = str(entry.site or "") if entry.site == entry.site_out else f"{entry.site} → {entry.site_out}"
    if entry.closed:
        site = f"{site} (not opened here)".strip()
    l0 = ("" if entry.l0 is None else str(entry.l0)) + (" canonical" if entry.canonical else "")
    return entry.address, entry.model, site, entry.width_label or "", l0.strip(), entry.neuronpedia_id or ""


def _in_columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Lines for a terminal, whole addresses in each: where the columns do not fit, what belongs to one goes below."""
    wide = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    if sum(wide) + 2 * len(wide) <= shutil.get_terminal_size().columns:
        for row in (_COLUMNS, *rows):
            yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, wide, strict=True)).rstrip()
        return
    for address, *facts in rows:
        yield address
        yield "    " + "  ".join(fact for fact in facts if fact)


def _l0(text: str | None) -> float | str | tuple[float, float] | None:
    if text is None:
        return None
    low, dash, high = text.partition("-")
    try:
        return (float(low), float(high)) if dash else float(low)
    except ValueError:
        return text


def _info(args: argparse.Namespace) -> int:
    if args.machine:
        return _machine(args)
    if args.sae is not None and (scope := options.scope_of(args, args.sae)) is not None:
        options.show(scope, args.json)
        return 0
    facts = _environment() if args.sae is None else _described(args)
    if args.json:
        options.show(facts, True)
        return 0
    wide = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{wide}}  {'—' if value is None else value}")
    return 0


def _machine(args: argparse.Namespace) -> int:
    if args.sae is not None:
        args.parser.error("--machine tells of this machine, not of an SAE: leave one of them out")
    from gemscope.reports.machine import machine

    options.show(machine(), args.json)
    return 0


def _described(args: argparse.Namespace) -> dict[str, Any]:
    from gemscope.features.files.cross_layer import is_clt

    if is_clt(args.sae):
        return _layers(args)
    from rich.filesize import decimal

    sae = options.sae_of(args, args.sae, silent)
    info = sae.info
    slices = [
        f"{part.device}: {part.d_sae:,} features, {decimal(sum(weight.nbytes for weight in part.parameters()))}"
        for part in sae.slices
    ]
    return {
        "name": info.name,
        "format": info.format,
        "model": info.model,
        "site": str(sae.site),
        "site_out": str(sae.site_out),
        "gate": sae.gate if sae.k is None else f"{sae.gate}, k={sae.k}",
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "d_out": sae.d_out,
        "affine_skip": sae.W_skip is not None,
        "centred": sae.centred,
        "norm": sae.norm,
        "declared_l0": info.declared_l0,
        "neuronpedia_id": info.neuronpedia_id,
        "revision": info.revision,
        "context_size": info.context_size,
        "prepend_bos": info.prepend_bos,
        "digest": sae.digest,
        **({"slices": slices} if sae.parts else {}),
    }


def _layers(args: argparse.Namespace) -> dict[str, Any]:
    clt = options.clt_of(args, args.sae, silent)
    return {
        "name": clt.info.name,
        "format": f"{clt.info.format}, a cross-layer transcoder",
        "model": clt.info.model,
        "layers": len(clt),
        "sites": f"{clt.sites[0]} to {clt.sites[-1]}",
        "sites_out": f"{clt.sites_out[0]} to {clt.sites_out[-1]}",
        "gate": clt.encoders[0].gate,
        "d_in": clt.d_in,
        "d_sae": sum(clt.features),
        "d_out": clt.d_out,
        "affine_skip": any(skip is not None for skip in clt.skips),
        "declared_l0": clt.info.declared_l0,
    }


def _environment() -> dict[str, Any]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from gemscope.activations.bundled import cache_dir

    def of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    packages = (
        "gemscope",
        "torch",
        "transformers",
        "huggingface_hub",
        "safetensors",
        "numpy",
        "gguf",
        "accelerate",
        "datasets",
        "pyarrow",
    )
    return {
        "python": platform.python_version(),
        **{package: of(package) for package in packages},
        "package": str(Path(__file__).parent.parent),
        "cache": str(cache_dir()),
    }
