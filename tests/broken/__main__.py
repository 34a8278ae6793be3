"""`python -m tests.broken 50000 [--seed 0] [--only atlas]`: that many cases; what ended otherwise than it may, by kind."""

import argparse
import collections
import faulthandler
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from broken.trial import make_samples, trial


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.broken", description=__doc__)
    parser.add_argument("cases", type=int)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--only", default="", help="a reader")
    parser.add_argument("--show", type=int, default=1, help="faults of each kind to show at length")
    given = parser.parse_args()
    faults: dict[str, list[str]] = collections.defaultdict(list)
    endings: collections.Counter[str] = collections.Counter()
    faulthandler.enable()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as aside:
        make_samples(Path(aside))
        for seed in range(given.seed, given.seed + given.cases):
            faulthandler.dump_traceback_later(300, exit=True)  # what no alarm interrupts
            found = trial(Path(aside), seed, given.only)
            if found.fault:
                name = f"{found.case.split()[0]}: {found.ending}"
                faults[name].append(found.case)
                if len(faults[name]) <= given.show:
                    print(f"--- {found.case}: {found.ending}\n{found.fault[:3000]}", flush=True)
            else:
                endings[found.ending] += 1
    print(f"{given.cases:,} cases in {time.monotonic() - started:.0f} s: {dict(endings.most_common())}")
    for name, cases in sorted(faults.items(), key=lambda one: -len(one[1])):
        print(f"{len(cases):6} {name:60} {cases[0]}")
    print(f"{sum(map(len, faults.values())):,} faults of {len(faults)} kinds")
    return bool(faults)


if __name__ == "__main__":
    raise SystemExit(main())
