"""The atlas: a folder with a page for every feature of an SAE. `Writer` makes one, `Atlas` reads and labels it."""

from gemscope.reports.atlas.manifest import FORMAT, Manifest, Part
from gemscope.reports.atlas.reader import Atlas, TokenHit
from gemscope.reports.atlas.verify import verify
from gemscope.reports.atlas.writer import Writer

__all__ = ["FORMAT", "Atlas", "Manifest", "Part", "TokenHit", "Writer", "verify"]
