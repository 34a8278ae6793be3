"""Tensors of a device in the processor's memory, many in one copy: the processor waits for each copy, and a device that
is waited for soon stands still.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor


def together(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors in the processor's memory, in one copy from each device; those that lie there are themselves."""
    found = list(tensors)
    by_device: dict[torch.device, list[int]] = defaultdict(list)
    for place, tensor in enumerate(tensors):
        if tensor.device.type != "cpu":
            by_device[tensor.device].append(place)
    for places in by_device.values():
        # Widest numbers first, so that each lies where its kind may lie.
        places.sort(key=lambda place: -found[place].element_size())
        flat = [found[place].contiguous().view(-1).view(torch.uint8) for place in places]
        whole = (flat[0] if len(flat) == 1 else torch.cat(flat)).cpu()
        for place, part in zip(places, torch.split(whole, [len(one) for one in flat]), strict=True):
            found[place] = part.view(found[place].dtype).view(found[place].shape)
    return found
