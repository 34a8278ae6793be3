"""Makes src/gemscope/data/catalog/registry.csv.gz: the published SAEs of SAELens's registry that are not Gemma Scope's.

    python tools/registry_snapshot.py registry.csv.gz

The table that it is made from has one SAE a row and the columns release, repo, model, loader, id, path, neuronpedia, l0,
norm_scaling_factor, as SAELens's pretrained_saes.yaml (MIT) has them. What is added here: where each reads and writes,
how wide it is where a name says so, whose format its files are in, and why it cannot be opened where it cannot.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import os
import re
import sys
from pathlib import Path

from gemscope.activations.site import Site
from gemscope.errors import FileError
from gemscope.features.files.hook_names import site_of_hook
from gemscope.features.registry import COLUMNS

TARGET = Path(__file__).parent.parent / "src/gemscope/data/catalog/registry.csv.gz"

LAYOUTS = {
    "": "saelens",
    "connor_rob_hook_z": "hook_z",
    "deepseek_r1": "deepseek_r1",
    "dictionary_learning_1": "dictionary_learning",
    "goodfire": "goodfire",
    "llama_scope": "llama_scope",
    "llama_scope_r1_distill": "llamascopium",
    "mntss_clt_layer_transcoder": "circuit_tracer_clt",
    "mwhanna_transcoder": "circuit_tracer",
    "qwen_scope": "qwen_scope",
    "temporal": "temporal",
}
"""What SAELens calls its readers, and what the formats are called here."""
CLOSED = {
    "temporal": "a temporal SAE: its features depend on earlier tokens, so that it is no function of one activation",
    "circuit_tracer_clt": "one layer of a cross-layer transcoder, which writes to every later layer",
}
FULL_NAMES = {
    "gpt2-small": "openai-community/gpt2",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "pythia-70m-deduped": "EleutherAI/pythia-70m-deduped",
}
LLAMA_SCOPE = {"r": "res", "m": "mlp", "a": "att_out"}
WIDTHS = {"goodfire": 65_536, "deepseek_r1": 65_536, "llamascopium": 32_768, "hook_z": 24_576}
"""Of formats whose published SAEs all are as wide."""
WIDTH_IN_NAMES = (
    (r"width-2pow(\d+)_", lambda found: 2 ** int(found)),
    (r"-W(\d+)K-", lambda found: int(found) * 1024),
    (r"B-Base-L\d*X?[RMA]-(\d+)x", lambda found: 4096 * int(found)),
    (r"hook_resid_p\w+_(\d{3,})$", int),
    (r"_(\d{5})(?::v\d|_anthropic)?$", int),
    (r"-w-(\d+)k-", lambda found: int(found) * 1024),
    (r"v5[-_](\d+)k", lambda found: int(found) * 1024),
    (r"-(4|16|32|65|131)k(?:__|$)", lambda found: {4: 4096, 16: 16384, 32: 32768, 65: 65536, 131: 131072}[int(found)]),
)
NOT_SAID = {"gpt2-small-res-jb": 24_576}


def row_of(given: dict[str, str]) -> dict[str, str]:
    """One line of the list."""
    layout, model = LAYOUTS[given["loader"]], full_name(given["model"])
    sites = (None, None)
    closed = CLOSED.get(layout, "")
    try:
        sites = sites_of(given, layout, model)
    except FileError:
        closed = f"it reads {given['id']}, which is no site here"
    return {
        **{name: given[name] for name in ("release", "repo", "path", "neuronpedia", "l0")},
        "layout": layout,
        "model": model,
        "sae_id": given["id"],
        "site": str(sites[0] or ""),
        "site_out": str(sites[1] or ""),
        "width": str(width_of(given, layout) or ""),
        "factor": given["norm_scaling_factor"] if layout == "saelens" else "",
        "closed": closed,
    }


def full_name(model: str) -> str:
    """The Hugging Face id: TransformerLens leaves the owner off."""
    if "/" in model:
        return model
    if model.startswith("gemma-"):
        return f"google/{model}"
    if model.startswith("qwen3-"):
        return f"Qwen/Qwen3-{model.removeprefix('qwen3-').upper()}"
    return FULL_NAMES[model]


def sites_of(given: dict[str, str], layout: str, model: str) -> tuple[Site, Site]:
    """Where it reads and where it writes. Raises FileError for a place that is no site."""
    name = given["id"]
    if layout in ("circuit_tracer", "circuit_tracer_clt"):
        layer = int(re.fullmatch(r"layer_(\d+)", name)[1])
        return Site(layer, "transcoder"), Site(layer, "mlp")
    if hook := re.match(r"blocks\.\d+\.hook_(?:z|resid_pre|resid_mid|resid_post|mlp_out|attn_out)", name):
        site = site_of_hook(hook[0].replace("hook_z", "attn.hook_z"), model, name)
    elif layout == "llama_scope":
        layer, kind = re.fullmatch(r"l(\d+)([rma])_\d+x", name).groups()
        site = Site(int(layer), LLAMA_SCOPE[kind])
    elif layout == "llamascopium":
        site = Site(int(re.match(r"l(\d+)r_", name)[1]), "res")
    elif found := re.match(r"(?:resid_post_layer_|layer_?)(\d+)(?:_trainer_\d+)?$", name):
        site = Site(int(found[1]), "res")
    else:
        sys.exit(f"where {given['release']} {name} reads is not known")
    return site, site


def width_of(given: dict[str, str], layout: str) -> int | None:
    """As far as a name says it."""
    if (known := WIDTHS.get(layout)) or (known := NOT_SAID.get(given["release"])):
        return known
    for pattern, number in WIDTH_IN_NAMES:
        for name in (given["id"], given["path"], given["repo"], given["neuronpedia"]):
            if found := re.search(pattern, name):
                return number(found[1])
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="a gzipped csv")
    parser.add_argument("-o", type=Path, default=TARGET, help="what to write")
    given = parser.parse_args()
    with gzip.open(given.table, "rt", newline="") as lines:
        rows = [row_of(row) for row in csv.DictReader(lines)]
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    aside = given.o.with_suffix(".new")
    aside.write_bytes(gzip.compress(text.getvalue().encode(), 9, mtime=0))
    os.replace(aside, given.o)
    print(f"{len(rows)} SAEs in {given.o.stat().st_size:,} bytes: {given.o}")


if __name__ == "__main__":
    main()
