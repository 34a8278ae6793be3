"""A device that is not there, so that a mixed-device operation cannot hide where there is none to run on: tensors that
say that they are on it, whose numbers a processor computes, under the rules of a real one. What goes to it and comes
from it is counted, and whatever makes the processor wait for it.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

aten = torch.ops.aten

NAME = "pretended"
_INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
_COPIES = {aten._to_copy, aten.copy_}
_ADDS = {aten.index_add, aten.index_add_, aten.scatter_add, aten.scatter_add_}
"""By atomics: numbers of one place in any order."""
_MAY_BE_APART = _INDEXED | _COPIES
"""What takes tensors of two devices: copies, and indices that the processor holds."""
_WAITS = {
    aten._local_scalar_dense: "item",
    aten.equal: "equal",
    aten.nonzero: "nonzero",
    aten.masked_select: "masked_select",
    aten._unique2: "unique",
    aten.unique_dim: "unique",
    aten.unique_consecutive: "unique",
    aten.bincount: "bincount",
}
"""Whose answer, or its size, the processor needs before it goes on: it waits until all that was asked for is done."""


class Traffic(Counter[str]):
    """How often what happened: "to" and "from" the device, and what waited for it, by name."""

    room: int | None = None
    """Bytes that are left; None: endless."""

    def give_back(self, size: int) -> None:
        self.room = (self.room or 0) + size

    @property
    def waits(self) -> int:
        """How often the processor waited: copies from the device are waited for, too."""
        return sum(number for name, number in self.items() if name != "to")


@contextmanager
def pretended(room: int | None = None) -> Iterator[tuple[torch.device, Traffic]]:
    """A device that exists while the block runs, with `room` for so many bytes (None: endless), and what is told of
    it.
    """
    register()
    traffic = Traffic()
    traffic.room = room
    _open.append(traffic)
    # Or torch.tensor(..., device=...) would copy where no mode sees it.
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with _Device(traffic):
            yield torch.device(NAME, 0), traffic
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        _open.pop()


_open: list[Traffic] = []


@cache
def register() -> None:
    """Torch is told that such a device may be. Autograd takes to no device that it was not told of when it first ran in a
    process, so this comes before.
    """

    class Hook(backend_registration._DummyPrivateUse1Hook):
        def is_available(self) -> bool:
            return bool(_open)  # for other tests in this process there is none

    backend_registration._setup_privateuseone_for_python_backend(NAME, hook=Hook())


class _There(Tensor):
    """A tensor that says that it is on the device; `here` has its numbers."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> _There:
        strided = here.layout == torch.strided  # a sparse one passes for it: nothing asks where its numbers lie
        made: _There = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            here.shape,
            strides=here.stride() if strided else torch.empty(here.shape, device="meta").stride(),
            storage_offset=here.storage_offset() if strided else None,
            dtype=here.dtype,
            device=torch.device(NAME, 0),
            requires_grad=here.requires_grad,
        )
        made.here = here
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["here"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: Mapping[str, Tensor], _: None, size: Any, stride: Any) -> _There:
        return cls(inner["here"])

    def tolist(self) -> Any:
        return self.cpu().tolist()  # torch has none of its own for such tensors

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"{self.here!r} on {NAME}"

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {}, Traffic())


class _Device(TorchDispatchMode):
    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {}, self.traffic)


def _run(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], traffic: Traffic) -> Any:
    tensors = [*_tensors(args), *_tensors(kwargs)]
    there = [one for one in tensors if isinstance(one, _There)]
    asked = kwargs.get("device")
    to_there = asked is not None and torch.device(asked).type == NAME
    if not there and not to_there:
        return operation(*args, **kwargs)
    packet = operation._overloadpacket
    _require_one_device(operation, packet, tensors, traffic)
    if packet in _ADDS:
        _require_one_order(operation, args)
    if packet in _WAITS:
        traffic[_WAITS[packet]] += 1
    elif packet is aten.repeat_interleave and kwargs.get("output_size") is None:
        traffic["repeat_interleave"] += 1
    elif packet in _INDEXED and any(isinstance(one, _There) and one.dtype == torch.bool for one in args[1]):
        traffic["mask"] += 1
    plain = dict(kwargs)
    if asked is not None:
        plain["device"] = torch.device("cpu")
    stays = bool(there) if asked is None else to_there
    if packet is aten._to_copy and asked is not None and bool(there) != to_there:
        traffic["to" if to_there else "from"] += 1
    if packet is aten.copy_ and isinstance(args[0], _There) != isinstance(args[1], _There):
        traffic["to" if isinstance(args[0], _There) else "from"] += 1
        stays = isinstance(args[0], _There)
    inner_args, inner_kwargs = _with_each(list(args), _inner), _with_each(plain, _inner)
    out = operation(*inner_args, **inner_kwargs)
    if not stays:
        return args[0] if packet is aten.copy_ else out
    _take_room(traffic, inner_args, out)
    wrapped = _with_each(out, _There)
    if not _aliases(operation):
        return wrapped
    return return_and_correct_aliasing(operation, tuple(args), dict(kwargs), wrapped)


@cache
def _aliases(operation: Any) -> bool:
    """Whether what comes out may be, or share numbers with, what went in."""
    return "Tensor(" in str(operation._schema)


def _inner(one: Tensor) -> Tensor:
    return one.here if isinstance(one, _There) else one


def _tensors(given: Any) -> Iterator[Tensor]:
    """All in what an operation takes or gives. Torch's own way through such trees is most of the time of all this."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, (list, tuple, dict)):
        for one in given.values() if isinstance(given, dict) else given:
            yield from _tensors(one)


def _with_each(given: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same, with each tensor changed."""
    if isinstance(given, Tensor):
        return change(given)
    if isinstance(given, dict):
        return {name: _with_each(one, change) for name, one in given.items()}
    if isinstance(given, (list, tuple)):
        return type(given)([_with_each(one, change) for one in given])
    return given


def _take_room(traffic: Traffic, given: Any, made: Any) -> None:
    """What is new takes room until it is gone."""
    if traffic.room is None:
        return
    before = {one.untyped_storage().data_ptr() for one in _tensors(given)}
    for one in _tensors(made):
        if (storage := one.untyped_storage()).data_ptr() not in before:
            size = storage.nbytes()
            if size > traffic.room:
                raise torch.OutOfMemoryError(f"{NAME} out of memory. Tried to allocate {size / 1024:.2f} KiB.")
            traffic.room -= size
            weakref.finalize(storage, traffic.give_back, size)


def _require_one_device(operation: Any, packet: Any, tensors: Sequence[Tensor], traffic: Traffic) -> None:
    """As torch has it: numbers of no dimension may be the processor's."""
    here = [one for one in tensors if not isinstance(one, _There) and one.dim() > 0]
    if not here or len(here) == len(tensors):
        return
    if packet not in _MAY_BE_APART:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found {NAME} and {here[0].device} in {operation}"
        )
    if packet not in _COPIES:
        traffic["to"] += len(here)


def _require_one_order(operation: Any, args: Sequence[Any]) -> None:
    """No two numbers that are not whole are added to one place, which would give other bits each time."""
    places, numbers = (one.here if isinstance(one, _There) else one for one in args[2:4])
    if not torch.equal(numbers, numbers.round()) and len(places.unique()) < places.numel():
        raise RuntimeError(f"{operation}: adds to one place several times, in any order, on {NAME}")
