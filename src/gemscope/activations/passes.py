"""What is known of each pass of a model before it begins: its tokens, its padding, what a cache holds in front of them,
and which of them are a prompt where transformers' own `generate` runs the model. Hooks are `hooks.py`'s.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, NoReturn

from torch import Tensor, nn

from gemscope.activations.hooks import around
from gemscope.errors import InputError


@dataclass(frozen=True)
class Pass:
    """One pass of a model, over T tokens of B rows."""

    ids: Tensor | None
    """[B, T]; None where the model is given embeddings."""
    mask: Any
    """[B, past + T], 0 on padding; None for none; or what else a caller has made."""
    past: int
    """How many tokens the cache holds in front of them."""
    cache: Any
    prompt: int | None
    """How many of the past + T columns `generate` was given; None outside of it."""


@contextmanager
def announced(model: nn.Module, begin: Callable[[Pass], None], end: Callable[[Any], None]) -> Iterator[None]:
    """While the block runs, `begin` learns of every pass of a transformers model before it runs, and `end` of the cache
    (or None) that it leaves, also where the pass raises.

    `model.generate` may be called as ever; it does not compile the model meanwhile, and what hides from an observer
    where a prompt ends is refused with InputError.
    """
    prompts: list[int] = []
    prepared: dict[str, Any] = {"for": None, "mask": None}

    def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        if cache is not None and not hasattr(cache, "get_seq_length"):
            raise InputError(f"past_key_values is a {type(cache).__name__}: edits need one of transformers' caches")
        begin(
            Pass(
                ids=args[0] if args else kwargs.get("input_ids"),
                # Static caches get masks of their own making; what they were made of says more.
                mask=prepared["mask"] if mask is not None and mask is prepared["for"] else mask,
                past=0 if cache is None else int(cache.get_seq_length()),
                cache=cache,
                prompt=prompts[-1] if prompts else None,
            )
        )

    def after(kwargs: dict[str, Any], output: Any) -> None:
        left = getattr(output, "past_key_values", None)
        end(kwargs.get("past_key_values") if left is None else left)

    def generate(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def generated(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = _uncompiled(model, args, kwargs)
            prompts.append(_columns(args, kwargs))
            try:
                return original(*args, **kwargs)
            finally:
                prompts.pop()

        return generated

    def prepare(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def inputs(*args: Any, **kwargs: Any) -> Any:
            made = original(*args, **kwargs)
            prepared.update({"for": made.get("attention_mask"), "mask": kwargs.get("attention_mask")})
            return made

        return inputs

    wrapped = {
        "generate": generate,
        "prepare_inputs_for_generation": prepare,
        **dict.fromkeys(
            ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager"), _refused
        ),
    }
    with ExitStack() as stack:
        for name, wrapper in wrapped.items():
            if hasattr(model, name):
                stack.enter_context(_instead(model, name, wrapper(getattr(model, name))))
        stack.enter_context(around(model, before, after))
        yield


def _refused(_: Callable[..., Any]) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise InputError("edits do not reach batches that are packed into one row: call model.hf.generate")

    return refuse


@contextmanager
def _instead(model: nn.Module, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """While the block runs, the model's method of that name is another one, on this model alone."""
    own = vars(model).get(name)
    setattr(model, name, function)
    try:
        yield
    finally:
        if own is None:
            delattr(model, name)
        else:
            setattr(model, name, own)


def _columns(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How many columns of a call of `generate` are there before it writes. With a cache filled before it may be given
    all ids or the new ones alone, but then with a mask of all.
    """
    ids = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
    masks = [mask for mask in (ids, kwargs.get("attention_mask")) if isinstance(mask, Tensor) and mask.ndim == 2]
    return max((mask.shape[1] for mask in masks), default=1)  # given nothing, it begins with BOS


def _uncompiled(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of `generate`, with the compilation of static caches off: a compiled pass would not stop at hooks.
    Raises InputError for a prompt in pieces.
    """
    config = args[1] if len(args) > 1 else kwargs.get("generation_config")
    default = getattr(model, "generation_config", None)
    chunk = kwargs.get("prefill_chunk_size", getattr(config or default, "prefill_chunk_size", None))
    if chunk is not None:
        raise InputError(
            f"prefill_chunk_size={chunk}: edits need the whole prompt in one pass, attention sinks are told from it: "
            "leave it out"
        )
    if config is None:
        return args, {**kwargs, "disable_compile": True}
    config = copy.deepcopy(config)  # transformers 5 wants options in one place
    config.disable_compile = True
    if len(args) > 1:
        return (args[0], config, *args[2:]), kwargs
    return args, {**kwargs, "generation_config": config}
