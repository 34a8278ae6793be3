"""What a distribution brings with it: `python startup_installed.py NAME`, in the environment where it is installed.

Follows the requirements that hold here, extras only where asked for: other things in the environment do not count.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def closure(root: str) -> dict[str, Distribution]:
    """Every distribution that `root` needs, itself included, by name."""
    found: dict[str, Distribution] = {}
    seen = set()
    waiting = [Requirement(root)]
    while waiting:
        wanted = waiting.pop()
        key = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            one = found[key[0]] = distribution(wanted.name)
        except PackageNotFoundError:
            sys.exit(f"{wanted.name} is required and not installed: the count would be wrong")
        for text in one.requires or ():
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in {"", *wanted.extras}):
                waiting.append(needed)
    return found


def size(one: Distribution) -> int:
    """Bytes of its files. One installed from a working tree lies there, and is measured there."""
    paths = {Path(str(one.locate_file(file))) for file in one.files or ()}
    name = one.metadata["Name"]
    if not any(path.parts[-2:-1] == (name,) for path in paths) and (spec := find_spec(name.replace("-", "_"))):
        for place in spec.submodule_search_locations or ():
            paths |= set(Path(place).rglob("*"))
    return sum(path.stat().st_size for path in paths if path.is_file())


def main() -> None:
    found = closure(sys.argv[1])
    torch = closure("torch").keys()
    sizes = {name: size(one) for name, one in found.items()}
    print(
        json.dumps(
            {
                "packages": len(found),
                "installed_mb": sum(sizes.values()) / 1e6,
                "installed_mb_without_torch": sum(of for name, of in sizes.items() if name not in torch) / 1e6,
            }
        )
    )


if __name__ == "__main__":
    main()
