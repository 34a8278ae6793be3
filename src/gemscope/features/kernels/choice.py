"""Which implementation of the kernels runs where."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from gemscope.activations.suited import device_of
from gemscope.errors import InputError
from gemscope.features.kernels import Kernels, native, plain, triton_gpu

Devices = torch.device | str | Sequence[torch.device | str] | None
"""Where an SAE is: on one device, or a slice of its features on each of several."""

_forced: ContextVar[str | None] = ContextVar("kernels", default=None)


def choose(device: torch.device) -> Kernels:
    """The fastest implementation that runs on a device; the one named by `using` or GEMSCOPE_KERNELS if there is one.

    Raises InputError for a name that is not known or does not run here.
    """
    name = _forced.get() or os.environ.get("GEMSCOPE_KERNELS")
    for known, load in _KNOWN.items():
        if name in (None, known) and (kernels := load(device)) is not None:
            return kernels
    running = [known for known, load in _KNOWN.items() if load(device) is not None]
    raise InputError(f"kernels {name!r} do not run on {device}: expected one of {', '.join(running)}")


def place_for(asked: torch.device | str | None, beside: torch.device | None = None) -> torch.device:
    """Where an SAE goes: where it is asked for; by "auto" or None beside its model, or where a model would go, but
    never where no kernels run. Raises InputError for a device that is not there.
    """
    if asked is not None and str(asked) != "auto":
        return device_of(asked)
    found = device_of("auto") if beside is None else beside
    return found if found.type in _SPARSE else torch.device("cpu")


def places_for(asked: Devices, beside: torch.device | None = None) -> list[torch.device]:
    """Where the slices of an SAE go; most have one, the whole. Raises InputError for a device that is not there, and
    for a GPU that is named twice: its slices would take the room that the whole does.
    """
    if asked is None or isinstance(asked, str | torch.device):
        return [place_for(asked, beside)]
    found = [device_of(one) for one in asked]
    if twice := [one for one in found if one.type != "cpu" and found.count(one) > 1]:
        raise InputError(f"{twice[0]} is named twice: slices of an SAE on one device take the room of the whole there")
    if unfit := [one for one in found if one.type not in _SPARSE]:
        raise InputError(f"{unfit[0]} has no sparse products, which slices of an SAE need: take {' or '.join(_SPARSE)}")
    if not found:
        raise InputError("no device is named for an SAE's slices: give one or more, as in ['cuda:0', 'cuda:1']")
    return found


def known(device: torch.device) -> dict[str, str | None]:
    """Every implementation, fastest first, and why it does not run on a device; None for one that does."""
    native_not = native.obstacle() if device.type == "cpu" else "for processors"
    return {"triton": triton_gpu.obstacle(device), "native": native_not, "torch": None}


@contextmanager
def using(name: str) -> Iterator[None]:
    """Forces one implementation within a block: "triton", "native" or "torch"."""
    before = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(before)


def _native(device: torch.device) -> Kernels | None:
    return native.load() if device.type == "cpu" else None


def _plain(_: torch.device) -> Kernels | None:
    return plain.load()


_KNOWN: dict[str, Callable[[torch.device], Kernels | None]] = {
    "triton": triton_gpu.load,
    "native": _native,
    "torch": _plain,
}
"""Fastest first."""
_SPARSE = ("cpu", "cuda")
"""Kinds of device with the sparse products that all of them need: Apple's MPS has none."""
