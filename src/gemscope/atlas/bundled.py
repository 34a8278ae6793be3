"""Where the atlas lies that comes with the package."""

from pathlib import Path

BUNDLED = Path(__file__).parent.parent / "data" / "atlas"
"""Of the default model and SAE."""
