"""Makes the atlas that ships with the package: the bundled SAE's features, described on the bundled sample of text.

The labels come from default_labels.jsonl beside this file: a language model wrote them, with a rule for some, reading each
feature's strongest examples and some from its lower ranges (`sheets.py` writes them out, and takes the answers). "(when strong)" says that
the lower ones do not fit.
"""

import argparse
import json
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import gemscope as gs
from gemscope.atlas.dashboard import Explanation
from gemscope.atlas.describe.gather import DescribeConfig
from gemscope.atlas.describe.mapping import add_map
from gemscope.atlas.files.whole import EFFECT, SUMS
from gemscope.atlas.labels.rules import Weighed
from gemscope.atlas.units import units_of
from gemscope.cli.bars import bars

HOME = Path(gs.__file__).parent / "data" / "atlas"
LABELS = Path(__file__).with_name("default_labels.jsonl")
NOTICE = """The text in this atlas is that of `../sample`: its NOTICE and SOURCES.md say where each document is from and under
which licence. Figures, examples and logits were computed from it, from SmolLM2-135M-Instruct (Apache-2.0) and from the SAE
in `../smollm2-15-res`. Made by tools/default_atlas.py. Labels were written by a language model that read the examples.
"""
CONFIG = DescribeConfig(top=16, each=4, neighbours=12, partners=12, pool=24_576)
"""Less than the default of everything: it has to stay under 18 MB, labels included."""


def main() -> None:
    """Describes, takes out what only merging needs, and puts the folder into the package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=HOME)
    parser.add_argument("--described", type=Path, metavar="ATLAS", help="label this one, described before, instead")
    parser.add_argument("--effect", type=Path, metavar="FILE", help="of its site, measured before (gemscope effect)")
    args = parser.parse_args()
    effect = gs.Effect.load(args.effect) if args.effect else None
    out = args.out
    fresh = out.with_name(out.name + "-new")
    shutil.rmtree(fresh, ignore_errors=True)
    with bars() as progress:
        if args.described:
            shutil.copytree(args.described, fresh)
            if effect is not None:
                model, sae = gs.load_model("smollm2"), gs.load_sae("smollm2")
                gs.add_effect(fresh, model, sae, effect, progress=progress).close()
        else:
            model, sae, text = gs.load_model("smollm2"), gs.load_sae("smollm2"), gs.Corpus.sample()
            gs.describe(model, sae, text, to=fresh, config=CONFIG, effect=effect, progress=progress).close()
    with gs.Atlas(fresh) as atlas:
        if atlas.manifest.median_norm is None:  # described by an older version
            norm = units_of(atlas, gs.load_model("smollm2"), gs.load_sae("smollm2")).median_norm
            atlas.measured(median_norm=float(f"{norm:.4g}"))
        read = [json.loads(line) for line in LABELS.read_text().splitlines()]
        weighed = Weighed(atlas)
        atlas.explain_all({line["feature"]: weighed(line["feature"], _label(line)) for line in read})
        print(gs.explain(atlas))
        with bars() as progress:
            add_map(atlas, gs.load_sae("smollm2"), progress=progress)
        print(atlas)
    # Labels are written through a log beside the file; whoever may only read needs a file that knows of none.
    with closing(sqlite3.connect(fresh / "atlas.sqlite")) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("VACUUM")
    for name in (SUMS, EFFECT):
        (fresh / name).unlink(missing_ok=True)
    (fresh / "NOTICE.md").write_text(NOTICE)
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(fresh, out)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {size / 1e6:.1f} MB")
    sys.exit(size > 18_000_000)


def _label(line: dict[str, str]) -> Explanation:
    return Explanation(id=0, text=line["text"], rule=line.get("rule", ""), method="read", author="a language model")


if __name__ == "__main__":
    main()
