"""The shared libraries of gemscope's native kernels. It knows where they lie; gemscope knows what is in them."""

from pathlib import Path


def libraries() -> Path:
    """The folder of the shared libraries: `machine`, which says what this machine can run, and one for each instruction
    set that there are kernels for."""
    return Path(__file__).parent
