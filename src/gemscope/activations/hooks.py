"""Reading and replacing what flows through the modules of a model: the only file that touches torch's hooks.

Hooks live exactly as long as the `with` block, also when something inside it raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.functional import embedding, layer_norm

from gemscope.activations.bare import bare
from gemscope.activations.families import Point
from gemscope.errors import InputError

Key = TypeVar("Key")


_depth: ContextVar[int] = ContextVar("_depth", default=0)
"""Of passes within passes: what was attached further out does not see them."""


class Enough(Exception):
    """Raised inside a forward pass once every point has been read."""


@contextmanager
def reading(model: nn.Module, points: Mapping[Key, Point], *, stop: bool) -> Iterator[dict[Key, Tensor]]:
    """While the block runs, one forward pass fills the yielded dict with what flows through `points`.

    With `stop`, the pass ends with `Enough` as soon as the last of them has been read.
    """
    seen: dict[Key, Tensor] = {}
    with ExitStack() as hooks:
        for key, point in points.items():
            take = _taker(model.get_submodule(point.module), point)

            def keep(tensor: Tensor, key: Key = key, take: Callable[[Tensor], Tensor] = take) -> None:
                seen[key] = take(tensor.detach())
                if stop and len(seen) == len(points):
                    raise Enough

            hooks.enter_context(_attached(model, point, keep))
        yield seen


@contextmanager
def replacing(model: nn.Module, edits: Mapping[Point, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """While the block runs, what flows through each point is replaced by what its function returns for it (None: left
    as it is).
    """
    with ExitStack() as hooks:
        for point, edit in edits.items():
            hooks.enter_context(_attached(model, point, edit))
        yield


@contextmanager
def aside() -> Iterator[None]:
    """While the block runs, nothing that was attached before it sees or changes a pass, `watching` apart: for a pass of
    the model as it is while another is under way.
    """
    before = _depth.set(_depth.get() + 1)
    try:
        yield
    finally:
        _depth.reset(before)


@contextmanager
def telling(model: nn.Module, point: Point, tell: Callable[[Tensor], None]) -> Iterator[None]:
    """While the block runs, `tell` is given what flows through the point in every pass."""
    take = _taker(model.get_submodule(point.module), point)
    with _attached(model, point, lambda tensor: tell(take(tensor.detach()))):
        yield


@contextmanager
def around(
    module: nn.Module,
    before: Callable[[tuple[Any, ...], dict[str, Any]], None],
    after: Callable[[dict[str, Any], Any], None],
) -> Iterator[None]:
    """While the block runs, each call of the module is told to `before` (positional arguments, named ones) and `after`
    (named ones, what it returned: None where it raised).
    """
    depth = _depth.get()

    def on_call(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _depth.get() == depth:
            before(args, kwargs)

    def on_return(_: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if _depth.get() == depth:
            after(kwargs, output)

    handles = [
        module.register_forward_pre_hook(on_call, with_kwargs=True),
        module.register_forward_hook(on_return, with_kwargs=True, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watching(modules: Iterable[nn.Module], check: Callable[[], None]) -> Iterator[None]:
    """While the block runs, `check` is called before each of the modules; what it raises ends the pass."""
    handles = [module.register_forward_pre_hook(lambda *_: check()) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def grasping(model: nn.Module, point: Point, *, stop: bool = False) -> Iterator[list[Tensor]]:
    """While the block runs, a pass puts into the yielded list the tensor that flows through a point from there on, as
    one that gradients can be taken with respect to where the point is a plain one. With `stop` the pass ends there,
    with `Enough`.
    """
    held: list[Tensor] = []
    beside = point.transform == "normalized"

    def hold(tensor: Tensor) -> Tensor:
        # A copy goes on: the block may go on to write into the tensor itself (Falcon does), and that one is kept.
        kept = tensor.clone()
        if not kept.requires_grad:  # nothing before it does: it is where the graph begins
            kept.requires_grad_()
        held.append(_normalized(bare(model.get_submodule(point.module)), kept) if beside else kept)
        if stop:
            raise Enough
        return kept.clone()

    with _attached(model, point, hold):
        yield held


@contextmanager
def pushing(model: nn.Module, point: Point, by: Tensor) -> Iterator[None]:
    """While the block runs, inside of a level of torch's forward mode, what flows through a plain point has `by` as its
    tangent.
    """

    def push(tensor: Tensor) -> Tensor:
        dual: Tensor = forward_ad.make_dual(tensor.clone(), by.to(tensor))  # type: ignore[no-untyped-call]
        return dual

    with _attached(model, point, push):
        yield


@contextmanager
def _attached(model: nn.Module, point: Point, act: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Calls `act` with the values at the point; puts what it returns, unless None, in their place."""
    module = model.get_submodule(point.module)
    depth = _depth.get()
    rows: list[torch.Size] = []  # of the running pass

    def changed(old: Tensor) -> Tensor | None:
        x = old.flatten(2) if point.heads else old if point.flat is None else old.view(*rows[-1], -1)
        values = x if point.transform == "rows" else _scaled(x, point.scale)
        new = act(values)
        if new is None:
            return None
        if point.scale != 1:  # what was left alone keeps its bits
            exact = torch.promote_types(x.dtype, torch.float32)
            new = (x.to(exact) + (new.to(exact) - values.to(exact)) / point.scale).to(x.dtype)
        if point.heads:
            return new.view(old.shape)
        return new if point.flat is None else new.flatten(0, 1)

    def on_input(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if _depth.get() != depth:
            return None
        # Some callers pass hidden states by name; the first argument is them either way.
        name = None if args else next(iter(kwargs))
        old: Tensor = args[0] if name is None else kwargs[name]
        new = changed(old)
        if new is None:
            return None
        if point.shared:
            old.copy_(new)
            return None
        return ((new, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: new})

    def on_output(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if _depth.get() != depth:
            return None
        # Blocks and attention return (hidden, ...) in transformers 4.57, blocks a bare tensor in 5.
        many = isinstance(output, tuple)
        new = changed(output[0] if many else output)
        if new is None:
            return None
        return (new, *output[1:]) if many else new

    def on_rows(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden: Tensor = args[0] if args else next(iter(kwargs.values()))
        rows[:] = [hidden.shape[:2]]

    with ExitStack() as handles:
        if point.flat is not None:
            handles.callback(
                model.get_submodule(point.flat).register_forward_pre_hook(on_rows, with_kwargs=True).remove
            )
        if point.end == "input":
            handles.callback(module.register_forward_pre_hook(on_input, with_kwargs=True).remove)
        else:
            handles.callback(module.register_forward_hook(on_output).remove)
        yield


def _taker(module: nn.Module, point: Point) -> Callable[[Tensor], Tensor]:
    if point.transform == "normalized":
        return lambda x: _normalized(bare(module), x)
    if point.transform == "rows":
        return lambda ids: _scaled(_rows(bare(module), ids), point.scale)
    if point.transform == "norm":
        return lambda x: torch.linalg.vector_norm(x, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))
    # A copy: a block may go on to write into the tensor itself (Falcon adds attention's output to its MLP's in place).
    return lambda x: x.clone() if point.scale == 1 else x


def _scaled(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1 else x * scale


def _rows(module: nn.Module, ids: Tensor) -> Tensor:
    """The rows of an embedding matrix, which accelerate may keep elsewhere until the module itself runs."""
    if hasattr(module, "base_layer"):
        raise InputError("the embedding has an adapter, so that no matrix has its rows: merge it first")
    if not hasattr(module, "_hf_hook"):
        return embedding(ids, module.weight)  # type: ignore[arg-type]
    from accelerate.utils import align_module_device

    with align_module_device(module):
        weight: Tensor = module.weight  # type: ignore[assignment]
        return embedding(ids.to(weight.device), weight)


def _normalized(norm: nn.Module, x: Tensor) -> Tensor:
    """What a LayerNorm or RMSNorm makes of `x` before its gain (and bias), in float32."""
    x = x.float()
    if isinstance(norm, nn.LayerNorm):
        return layer_norm(x, norm.normalized_shape, eps=norm.eps)
    # transformers' RMSNorms call it `eps` (Gemma) or `variance_epsilon` (Llama and its kin).
    eps: float = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon  # type: ignore[assignment]
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
