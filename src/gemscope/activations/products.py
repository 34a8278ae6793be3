"""Matrix products in float32 where they are most of the work: by oneDNN, which torch has beside MKL and takes for half
precision alone. MKL uses half of what AMD's processors with AVX-512 can (107 against 240 GFLOP/s of a core of Zen 5);
where there is no AVX-512 torch's choice is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
"""What torch.compile calls in the place of a linear layer; not there in each build of torch."""


@contextmanager
def quick() -> Iterator[None]:
    """While the block runs, products of two matrices in float32 on the CPU are made by whichever library is quicker:
    passes, and gradients through them. The same but for rounding.
    """
    if _ONEDNN is None or torch.backends.cpu.get_cpu_capability() != "AVX512":
        yield
        return
    with _ByOneDNN():  # type: ignore[no-untyped-call]
        yield


class _ByOneDNN(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Stands below autograd: whatever is multiplied comes by here as plain matrices."""

    def __torch_dispatch__(
        self, operation: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if operation is torch.ops.aten.mm.default and _fits(*args) and not kwargs:
            product: Callable[..., torch.Tensor] = _ONEDNN  # type: ignore[assignment]
            return product(args[0], args[1].t(), None, "none", [], "")
        return operation(*args, **(kwargs or {}))


def _fits(first: torch.Tensor, second: torch.Tensor) -> bool:
    plain = all(one.dtype == torch.float32 and one.device.type == "cpu" for one in (first, second))
    # One number that stands for many (forward mode's zeros) has strides of 0, for which oneDNN has slow loops alone.
    return plain and 0 not in (*first.shape, *second.shape, *first.stride(), *second.stride())
