"""The shared library of gemscope's native kernels. It knows where the library lies; gemscope knows what is in it."""

from pathlib import Path


def library() -> Path:
    """The shared library's path."""
    return next(path for path in Path(__file__).parent.iterdir() if path.suffix in {".so", ".dylib", ".dll"})
