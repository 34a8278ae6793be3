"""Makes the atlas that ships with the package: the bundled SAE's features, described on the bundled sample of text."""

import argparse
import shutil
import sys
from pathlib import Path

import gemscope as gs
from gemscope.cli.bars import bars
from gemscope.reports.describe import DescribeConfig
from gemscope.reports.describe.compose import SUMS

HOME = Path(gs.__file__).parent / "data" / "atlas"
CONFIG = DescribeConfig(top=16, each=4, neighbours=12, partners=12)
"""Less than the default of everything: it has to stay under 10 MB."""


def main() -> None:
    """Describes, takes out what only merging needs, and puts the folder into the package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=HOME)
    out = parser.parse_args().out
    fresh = out.with_name(out.name + "-new")
    shutil.rmtree(fresh, ignore_errors=True)
    with bars() as progress:
        model, sae = gs.load_model("smollm2"), gs.load_sae("smollm2")
        atlas = gs.describe(model, sae, gs.Corpus.sample(), to=fresh, config=CONFIG, progress=progress)
        print(atlas)
        atlas.close()
    (fresh / SUMS).unlink()
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(fresh, out)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {size / 1e6:.1f} MB")
    sys.exit(size > 10_000_000)


if __name__ == "__main__":
    main()
