"""The ranks that train one SAE together, and all that they say to each other: sums, lists of everybody's values, and
waiting. Torch's own process group does it, and this is the only file that knows it. A group of one says nothing.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NoReturn, TypeVar
from uuid import uuid4

import torch
from torch import Tensor

from gemscope.checked import json_of
from gemscope.errors import AccessError, GemscopeError, Mismatch
from gemscope.world import World

TIMEOUT = 300.0
"""Seconds that a rank waits for the others before it ends. What they may all wait for is the first of them, while it
writes an SAE to the disk."""
_GRACE = 3.0
"""Seconds in which those that are left say that they are, and whoever failed says why."""
_LEAVING = 1.0
"""Seconds for torch to leave a group, whose links may be cut."""

T = TypeVar("T")


class Group:
    """Rank `rank` of `size`. What one of them calls all must call, in the same order."""

    def __init__(self, world: World | None = None, *, store: Any = None, line: Any = None) -> None:
        """Of one alone, unless `joined` makes it. `line` is torch's own group, where that is another."""
        world = world or World()
        self._world, self._line = world, line
        self.rank, self.size, self.first, self.local = world.rank, world.size, world.first, world.local
        self.sent = 0
        """Bytes that this rank gave to sums and lists so far."""
        self._store = store
        self._silent = False
        """Whether the store has not answered."""

    def apart(self) -> Group:
        """The same ranks on a line of their own, for rows on the processor: another thread may talk on it meanwhile,
        and neither answers what the other has asked.
        """
        if self.size == 1:
            return self
        import torch.distributed as dist

        return Group(self._world, store=self._store, line=dist.new_group(backend="gloo"))

    # --- what is said -----------------------------------------------------------------------------------------

    def sum_(self, tensor: Tensor) -> Tensor:
        """All ranks' tensors added up, in its place. Raises AccessError where one is gone."""
        if self.size > 1:
            import torch.distributed as dist

            self.sent += tensor.nbytes
            self._said(lambda: dist.all_reduce(tensor, group=self._line))
        return tensor

    def gather(self, tensor: Tensor, *, even: bool = False, to_first: bool = False) -> list[Tensor]:
        """What each rank has, by rank; nothing for others where it goes `to_first` alone. Their first dimension may
        differ unless they are `even`. Raises AccessError.
        """
        if self.size == 1:
            return [tensor]
        import torch.distributed as dist

        if tensor.dtype == torch.bool:
            return [part.bool() for part in self.gather(tensor.to(torch.uint8), even=even, to_first=to_first)]
        tensor = tensor.contiguous()
        if tensor.dtype == torch.bfloat16:  # which gloo does not know
            bits = self.gather(tensor.view(torch.uint8), even=even, to_first=to_first)
            return [part.view(torch.bfloat16) for part in bits]
        counts = [len(tensor)] * self.size
        if not even:
            mine = torch.tensor([len(tensor)], device=tensor.device)
            counts = torch.cat(self.gather(mine, even=True)).tolist()
        if not max(counts):
            return [tensor] * self.size
        padded = tensor
        if max(counts) > len(tensor):
            padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
            padded[: len(tensor)] = tensor
        found = [torch.empty_like(padded) for _ in counts] if self.first or not to_first else []
        self.sent += tensor.nbytes
        if to_first:
            self._said(lambda: dist.gather(padded, found or None, group=self._line))
        else:
            self._said(lambda: dist.all_gather(found, padded, group=self._line))
        return [part[:count] for part, count in zip(found, counts, strict=False)]

    def barrier(self) -> None:
        """Returns when all have come here. Raises AccessError."""
        self.sum_(torch.zeros(1))

    # --- what is made of it -----------------------------------------------------------------------------------

    def total(self, number: float) -> float:
        """The sum of a number each, exact for whole ones up to 2^53."""
        return self.sum_(torch.tensor([number], dtype=torch.float64)).item() if self.size > 1 else number

    def largest(self, values: Tensor, k: int) -> float | None:
        """The k-th largest of all ranks' values [n], or None where there are fewer."""
        if self.size > 1:
            values = torch.cat(self.gather(values.topk(k).values if len(values) > k else values))
        return values.kthvalue(len(values) - k + 1).values.item() if len(values) >= k else None

    def among(self, values: Tensor, k: int) -> Tensor:
        """Which of a rank's values [B, n], n up to k, are among the k largest of all ranks' in their row."""
        if self.size == 1:
            return torch.ones_like(values, dtype=torch.bool)
        sent = values.new_full((len(values), k), -torch.inf)
        sent[:, : values.shape[1]] = values
        chosen = torch.cat(self.gather(sent, even=True), dim=1).topk(k, dim=1).indices
        taken = torch.zeros(len(values), self.size * k, dtype=torch.bool, device=values.device)
        return taken.scatter_(1, chosen, True)[:, self.rank * k :][:, : values.shape[1]]

    def require_same(self, facts: Mapping[str, Any], differs: Callable[[Any, Any], str]) -> None:
        """Raises Mismatch on all ranks, naming the first that has other facts than rank 0, and what `differs`."""
        if self.size == 1:
            return
        mine = torch.tensor(list(json.dumps(facts, sort_keys=True).encode()), dtype=torch.uint8)
        every = [json_of(bytes(said.tolist()), dict[str, Any], where="a rank") for said in self.gather(mine)]
        for rank, said in enumerate(every):
            if said != every[0]:
                raise Mismatch(
                    f"rank {rank} of {self.size} has other rows, settings or versions than rank 0 "
                    f"({differs(every[0], said)}): start all with the same"
                )

    # --- how it ends ------------------------------------------------------------------------------------------

    def speaks(self, error: BaseException) -> bool:
        """Whether this rank is the one to say what ended them all: one line is enough. A signal is never told of, for
        whoever sent it knows.
        """
        if self.size == 1:
            return True
        if not isinstance(error, Exception) or (isinstance(error, Lost) and error.told):
            return False
        with suppress(Exception):
            return bool(self._asked(lambda: self._store.add("said", 1)) == 1)
        return True

    def named(self, error: GemscopeError) -> GemscopeError:
        """The same error, with the rank whose it is."""
        if self.size == 1 or isinstance(error, Lost):
            return error
        return type(error)(f"rank {self.rank} of {self.size}: {error}")

    def _said(self, word: Callable[[], T]) -> T:
        try:
            return word()
        except RuntimeError as error:  # what torch raises for a closed link and for one that is silent
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> Lost:
        """Who is gone, as far as those that are left can tell."""
        said = " ".join(str(error).split())[:160]
        missing, reasons = list[int](), dict[int, str]()
        try:
            self._asked(lambda: self._store.set(f"here/{self.rank}", "1"))
            end = time.monotonic() + _GRACE
            while time.monotonic() < end:
                missing, reasons = self._asked(self._heard)
                if reasons or not missing:
                    break
                time.sleep(0.05)
        except Exception:  # it lies with the rank that is gone, or behind the link that is cut
            return Lost(f"rank {self.rank} of {self.size} has lost the others ({said}): {_AGAIN}")
        if reasons:
            rank, reason = min(reasons.items())
            lead = f"rank {rank} of {self.size}: "
            return Lost(lead + reason.removeprefix(lead), told=True)
        names = " and ".join(map(str, missing)) or "one"
        return Lost(f"rank {names} of {self.size} is gone or does not answer ({said}): {_AGAIN}")

    def _heard(self) -> tuple[list[int], dict[int, str]]:
        """Ranks that have not said that they are left, and those of them that have said why they are not."""
        missing = [rank for rank in range(self.size) if not self._store.check([f"here/{rank}"])]
        failed = [rank for rank in missing if self._store.check([f"failed/{rank}"])]
        return missing, {rank: self._store.get(f"failed/{rank}").decode() for rank in failed}

    def _failing(self, error: BaseException) -> None:
        """Tells the others why this one ends."""
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        with suppress(Exception):
            self._asked(lambda: self._store.set(f"failed/{self.rank}", reason))

    def _asked(self, word: Callable[[], T]) -> T:
        """What the store answers. It knows no end of waiting where the link to it is cut: whoever has waited for it in
        vain asks it no more. Raises TimeoutError, and what it raises.
        """
        if self._silent:
            raise TimeoutError
        answer = within(_GRACE, word)
        self._silent = answer is None
        if answer is None:
            raise TimeoutError
        return answer()


class Lost(AccessError):
    """Another rank is gone, or does not answer; `told` where it has said itself why."""

    def __init__(self, message: object = "", *, told: bool = False) -> None:
        super().__init__(message)
        self.told = told


_AGAIN = "start all again, they go on from the last checkpoint"

ALONE = Group()


@contextmanager
def joined(world: World, *, timeout: float = TIMEOUT, address: str = "env://") -> Iterator[Group]:
    """The group of this process, which is left in the end. Each waits for another no longer than `timeout` seconds.

    Raises AccessError where not all come together in that time, or one is gone later on.
    """
    if world.size == 1:
        yield ALONE
        return
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    wait = timedelta(seconds=timeout)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        store, _, _ = next(rendezvous(address, world.rank, world.size, timeout=wait))
        store.set_timeout(wait)
        meeting = met(store, world, timeout)
        words, links = (dist.distributed_c10d.PrefixStore(f"{meeting}/{name}", store) for name in ("gemscope", "links"))
        dist.init_process_group(backend, store=links, rank=world.rank, world_size=world.size, timeout=wait)
    except (RuntimeError, ValueError, TimeoutError) as error:
        said = " ".join(str(error).split())[:300]
        raise AccessError(
            f"the {world.size} ranks have not found each other in {timeout:g} s ({said}): start them by torchrun"
        ) from error
    group = Group(world, store=words)
    try:
        yield group
        group.barrier()
    except BaseException as error:
        if not isinstance(error, Lost):
            group._failing(error)
        raise
    finally:
        within(_LEAVING, dist.destroy_process_group)


def met(store: Any, world: World, timeout: float) -> str:
    """A name for this meeting of the ranks, which no earlier one had. torchrun keeps a store over restarts, in which
    the dead have left where they could be reached; and in what it counts as a restart, hosts differ.

    Each rank but the first asks by a number that nobody else has; the first answers, until all have heard it. Raises
    RuntimeError, TimeoutError where one does not come.
    """
    mine, end = uuid4().hex, time.monotonic() + timeout
    if not world.first:
        store.set(f"asks/{world.rank}", mine)
        meeting = str(store.get(f"answer/{mine}").decode())
        store.set(f"{meeting}/heard/{world.rank}", "1")
        return meeting
    others = set(range(1, world.size))
    while others:
        if time.monotonic() > end:
            names = " and ".join(map(str, sorted(others)))
            raise TimeoutError(f"rank {names} did not come")
        for rank in [rank for rank in others if store.check([f"asks/{rank}"])]:
            store.set(f"answer/{store.get(f'asks/{rank}').decode()}", mine)
        others = {rank for rank in others if not store.check([f"{mine}/heard/{rank}"])}
        time.sleep(0.02)
    return mine


def within(seconds: float, work: Callable[[], T]) -> Callable[[], T] | None:
    """What some work comes to, to be called for: it returns or raises that. None where it takes longer, as what torch
    does behind a link that is cut may for ever; the process does not wait for it in its end either.
    """
    outcome = SimpleQueue[Callable[[], T]]()

    def run() -> None:
        try:
            value = work()
        except Exception as error:
            outcome.put(partial(_raised, error))
        else:
            outcome.put(lambda: value)

    Thread(target=run, daemon=True).start()
    try:
        return outcome.get(timeout=seconds)
    except Empty:
        return None


def _raised(error: Exception) -> NoReturn:
    raise error


def launched(size: int, words: Sequence[str]) -> int:
    """`gemscope WORDS` by `size` ranks of this machine, as torchrun starts them; their exit code. What a rank has to
    say it has said; of one that was killed it is said here.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable()  # it would say one line in pages
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // size)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=size,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "gemscope", *words)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return int(failure.exitcode)
        by = signal.Signals(-failure.exitcode).name
        raise Lost(f"rank {rank} of {size} was ended by {by}: {_AGAIN}") from None
    except SignalException as ended:
        return 128 + int(ended.sigval)
    return 0
