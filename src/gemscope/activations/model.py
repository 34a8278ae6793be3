"""An unmodified Hugging Face causal language model and its tokenizer, and what one does with them here.

Loading is `load.py`'s work, its tokenizer `reader.py`'s; where a site lies is `site.py`'s.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from functools import cached_property
from typing import Any, NoReturn, overload

import torch
from torch import Tensor

from gemscope.activations import jacobian, memory, products, sinks
from gemscope.activations import site as places
from gemscope.activations.capture import Activations, Captured
from gemscope.activations.editing import Edit, Session, in_force
from gemscope.activations.families import Point
from gemscope.activations.fetch import together
from gemscope.activations.generation import Dice, Step, continued
from gemscope.activations.handed import unwrapped
from gemscope.activations.hooks import Enough, aside, grasping, pushing, reading, telling, watching
from gemscope.activations.passes import announced
from gemscope.activations.reader import Reader
from gemscope.activations.site import Site
from gemscope.activations.transformer_lens import require_as_it_was
from gemscope.errors import InputError, Mismatch, NotFinite, TextTooLong
from gemscope.shapes import Bool, Float, Int
from gemscope.text.chat import Text, Turn, is_one_chat
from gemscope.text.tokens import Tokens


class LanguageModel(Reader):
    """A causal language model as transformers loads it (`hf`, untouched) and its tokenizer. Of a model in the hands of
    nnsight, PEFT or TransformerLens, `hf` is the one inside, with adapters as active as they are.
    """

    def __init__(
        self,
        hf: Any,
        tokenizer: Any,
        *,
        name: str,
        revision: str | None = None,
        origin: str = "memory",
        why: str = "",
    ) -> None:
        self.hf = unwrapped(hf).eval()
        self.tokenizer = tokenizer
        self.name = name
        self.revision = revision
        self.origin = origin
        """Where its weights come from, in words: the Hub, a folder, a package."""
        self.why = why
        """Why it has its number format, where that was chosen for it."""
        self._session: Session | None = None
        require_as_it_was(self.hf)

    # --- what it is -------------------------------------------------------------------------------------------

    @property
    def n_layers(self) -> int:
        """Blocks, counted from 0 in sites."""
        return places.n_layers(self.hf)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(places.text_config(self.hf).hidden_size)

    @property
    def vocab(self) -> int:
        """Rows of the embedding matrix: ids are 0 to vocab - 1."""
        return int(places.text_config(self.hf).vocab_size)

    @property
    def context(self) -> int:
        """The most tokens that one row may have."""
        return places.context(self.hf)

    @property
    def device(self) -> torch.device:
        """Where token ids go: the first module's device."""
        device = next(self.hf.parameters()).device
        return torch.device("cpu") if device.type == "meta" else device  # weights offloaded to disk lie on "meta"

    @property
    def dtype(self) -> torch.dtype:
        """The weights' number format."""
        return next(self.hf.parameters()).dtype

    @property
    def computed(self) -> str:
        """The number format and the device of what it computes, as reports say them, and why where it was chosen."""
        said = f"{_named(self.dtype)} on {self.device}"
        return f"{said} ({self.why})" if self.why else said

    def width(self, site: Site | str) -> int:
        """Numbers per token at `site`. Raises SiteNotFound."""
        return places.width(self.hf, Site.parse(site))

    def __repr__(self) -> str:
        return (
            f"LanguageModel({self.name} from {self.origin}, {self.n_layers} layers, d_model={self.d_model}, "
            f"{self.dtype}, {self.device})"
        )

    # --- running it -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def capture(
        self,
        text: Text,
        sites: Iterable[Site | str],
        *,
        every_token: bool = False,
        logits: bool = False,
        device: torch.device | str | None = None,
    ) -> Captured:
        """Activations at any number of sites, in one pass that ends after the last of them.

        Special tokens, the first position, padding and attention sinks do not count unless `every_token` (padding
        never does). Sinks are told in the middle of the model, so unless `every_token` the pass goes on as far as that.
        `logits` lets it run to its end and keeps them ([B, T, vocab]). `device` is where the activations go; they stay
        where they arise otherwise. Raises SiteNotFound, NotFinite where the model computes NaN or Inf, and what
        `tokens` raises.
        """
        tokens = self.tokens(text, every_token=every_token)
        if isinstance(sites, str | Site):
            sites = [sites]
        points: dict[Site | None, Point] = {}  # None: where sinks are told
        points |= {site: places.locate(self.hf, site) for site in dict.fromkeys(map(Site.parse, sites))}
        if not points:
            raise InputError("no sites given: name at least one, as in sites=['12.res']")
        ordinary = None if every_token else self._ordinary
        if ordinary is not None:
            points[None] = sinks.norms_at_middle(self.hf)
        out = None
        with reading(self.hf, points, stop=not logits) as seen, suppress(Enough):
            out = self._forward(tokens).logits
        counted, wrong = tokens.counted, [self._not_finite(values, tokens) for site, values in seen.items() if site]
        if ordinary is not None:
            norms = seen.pop(None)
            here = sinks.told(norms, ordinary) if self._session is None else self._session.sinks()
            here, *wrong = together([here, *wrong])  # nobody waits for the device again
            counted = counted & ~here
        else:
            wrong = together(wrong)
        found: dict[Site, Activations] = {}
        there: dict[torch.device, Tensor] = {}
        for (site, values), amiss in zip(seen.items(), wrong, strict=True):
            assert site is not None
            if amiss:
                self._refuse(f"at {site}")
            values = values if device is None else values.to(device)  # noqa: PLW2901
            mask = there.setdefault(values.device, counted.to(values.device))
            found[site] = Activations(values, mask, tokens, site, self.name, (mask, counted))
        return Captured(found, out)

    @cached_property
    def _ordinary(self) -> float:
        """The norm in the middle of the model that no ordinary token reaches, of the model as it is: measured once, on
        tokens of its vocabulary.
        """
        ids = sinks.vocabulary(min(self.vocab, len(self.tokenizer)), without=self.special_ids)[: self.context - 1]
        if not len(ids):
            return float("inf")
        row = ids if self.bos is None else torch.cat([torch.tensor([self.bos]), ids])
        tokens = self.tokens(row)
        return sinks.limit(self._norms_at_middle(tokens.ids, tokens.real).cpu()[tokens.counted])

    @torch.no_grad()
    def _norms_at_middle(self, ids: Int[Tensor, "B T"], real: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        with reading(self.hf, {None: sinks.norms_at_middle(self.hf)}, stop=True) as seen, suppress(Enough):
            self._forward(Tokens(ids, real, real))
        return seen[None]

    @torch.no_grad()
    def logits(self, text: Text, *, prompt: int | None = None) -> Float[Tensor, "B T V"]:
        """What it predicts after every token, edits in force included. The first `prompt` columns are the prompt to
        edits that tell it from what was generated after it (None: all). Raises NotFinite, and what `tokens` raises.
        """
        logits: Tensor = self._forward(self.tokens(text), prompt=prompt).logits
        return logits

    def gradient(
        self,
        text: Text,
        site: Site | str,
        of: Callable[[Float[Tensor, "B T V"]], Tensor],
    ) -> tuple[Activations, Float[Tensor, "B T D"]]:
        """Activations at a site, and how a number `of` the logits changes with each of them, to first order; float32.

        Edits in force are included, and stand before the site where they are at it. Raises SiteNotFound, InputError for
        a site that the model computes on the side, and what `tokens` raises.
        """
        tokens, site = self.tokens(text), Site.parse(site)
        point = self._differentiable(site)
        ordinary, middle = self._ordinary, {None: sinks.norms_at_middle(self.hf)}
        with torch.enable_grad(), grasping(self.hf, point) as held, reading(self.hf, middle, stop=False) as seen:
            number = of(self._forward(tokens).logits.float())
            (gradient,) = torch.autograd.grad(number, held[-1:])
        values = held[-1].detach()
        self._require_finite(values, tokens, f"at {site}")
        self._require_finite(gradient, tokens, f"in the gradient at {site}")
        here = sinks.told(seen[None], ordinary) if self._session is None else self._session.sinks()
        counted = (tokens.counted & ~here.cpu()).to(values.device)
        return Activations(values, counted, tokens, site, self.name), gradient.float()

    def jacobians(
        self,
        text: Text,
        site: Site | str,
        parts: int,
        *,
        until: Site | str | None = None,
        directions: Float[Tensor, "F O"] | None = None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> tuple[jacobian.Jacobian, ...]:
        """How the last hidden states, as the unembedding reads them, or what flows through the site `until`, change
        with what is written at a site, to first order: summed over counted tokens (no special ones, first positions,
        padding, attention sinks), this position and later ones apart, in `parts` sums to which the rows of the text
        belong in turn.

        Once through the rows, for the sum of both, and once through each counted token behind a cache of those before
        it, which no other position answers to: backward for each coordinate of the last hidden states, or forward for
        each of some `directions`, of which `advance` is told. Raises SiteNotFound, Mismatch for directions of another
        width, InputError for a site that the model computes on the side, one `until` which it does not come before,
        while edits are in force, and for directions in a model that torch's forward mode does not get through,
        NotFinite, and what `tokens` raises.
        """
        tokens, site = self.tokens(text), Site.parse(site)
        point, head = self._differentiable(site), self._end(site, until)
        if self._session is not None:
            raise InputError("no Jacobian while edits are in force: take it outside of `with model.edited(...)`")
        if directions is not None and directions.shape[-1] != self.width(site):
            raise Mismatch(f"directions of {directions.shape[-1]} numbers given, {site} has {self.width(site)}")
        seen = self.capture(tokens, [site])[site]
        counted, owners = seen.counted.cpu(), torch.arange(len(tokens)) % parts
        with products.quick():
            through = jacobian.Through(counted, owners, parts)
            both = self._through(through, tokens, point, head, directions, advance=advance)
            this = torch.zeros_like(both)
            for rows, of in jacobian.ends(tokens, counted, pad=self._pad):
                before = rows.first(len(rows), rows.ids.shape[1] - 1)
                with torch.no_grad():
                    cache = self._forward(before, keep=1, use_cache=True).past_key_values
                through = jacobian.Through(torch.ones(len(rows), 1, dtype=torch.bool), owners[of], parts)
                this += self._through(through, rows, point, head, directions, cache=cache, advance=advance)
        if not torch.stack([this, both]).isfinite().all():
            self._require_finite(torch.full((*tokens.ids.shape, 1), torch.nan), tokens, f"in the gradient at {site}")
        every = [seen.every(parts, part) for part in range(parts)]
        return tuple(
            jacobian.Jacobian(this[part], both[part] - this[part], int(own.counted.sum()), own.dropped)
            for part, own in enumerate(every)
        )

    def _through(
        self,
        through: jacobian.Through,
        tokens: Tokens,
        point: Point,
        head: Point,
        directions: Float[Tensor, "F O"] | None,
        *,
        cache: Any = None,
        advance: Callable[[int], None],
    ) -> Float[Tensor, "parts H columns"]:
        cached = cache is not None
        times = 1 if cached else through.copies
        if directions is None:
            grasped = grasping(self.hf, head, stop=True)
            with torch.enable_grad(), grasping(self.hf, point) as x, grasped as h, suppress(Enough):
                self._forward(jacobian.repeated(tokens, times), cache=cache, use_cache=cached)
            return through.backward(h[-1], x[-1], advance)
        found = []
        for start in range(0, len(directions), times):
            some = directions[start : start + times]
            pushed, grasped = pushing(self.hf, point, through.tangent(some)), grasping(self.hf, head, stop=True)
            with jacobian.forward(), pushed, grasped as h:
                with suppress(Enough):
                    # A cache holds one more token after each pass.
                    self._forward(jacobian.repeated(tokens, len(some)), cache=deepcopy(cache), use_cache=cached)
                found.append(through.forward(h[-1]))
            advance(len(some))
        return torch.cat(found, dim=-1)

    def jacobian(
        self,
        text: Text,
        site: Site | str,
        *,
        until: Site | str | None = None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> jacobian.Jacobian:
        """The sums over all rows of a text: `jacobians` with one part."""
        return self.jacobians(text, site, 1, until=until, advance=advance)[0]

    def _end(self, site: Site, until: Site | str | None) -> Point:
        """Where the answer to what is written at a site is read."""
        if until is None:
            return jacobian.unembedding_reads(self.hf)
        end = Site.parse(until)
        if not site < end:
            raise InputError(f"{end} does not come behind {site}: what is written there cannot reach it")
        return places.locate(self.hf, end)

    def _differentiable(self, site: Site) -> Point:
        point = places.locate(self.hf, site)
        if point.transform != "plain":
            raise InputError(f"no gradient at {site}: it is computed on the side, the model does not read it")
        return point

    def _forward(
        self, tokens: Tokens, *, prompt: int | None = None, cache: Any = None, keep: int = 0, use_cache: bool = False
    ) -> Any:
        """One pass over what the cache does not hold yet; `keep` is how many last logits are made, 0 all of them.
        Raises NotFinite.
        """
        require_as_it_was(self.hf)  # it may have been rewritten since
        if self._session is not None:
            self._session.prompt = prompt
        past = 0 if cache is None else int(cache.get_seq_length())
        inputs: dict[str, Any] = {"input_ids": tokens.ids[:, past:].to(self.device), "logits_to_keep": keep}
        if tokens.padded:
            # Positions must follow the text, not the padding, where embeddings are absolute (GPT-2).
            inputs["attention_mask"] = tokens.real.long().to(self.device)
            inputs["position_ids"] = tokens.positions[:, past:].to(self.device)
        if cache is not None:
            inputs["past_key_values"] = cache
        # Asked for by a model's own config, these would have transformers 4 patch modules that `Enough` leaves patched.
        never = {"output_hidden_states": False, "output_attentions": False}
        inputs = {name: value for name, value in inputs.items() if name not in self._not_taken}
        inputs |= never | {"use_cache": use_cache, "return_dict": True}
        size = f"{len(tokens)} × {tokens.ids.shape[1]} tokens through {self.name} in {_named(self.dtype)}"
        with memory.room(size, self.device, lambda: self._fitting(inputs)):
            try:
                out = self.hf(**inputs)
            except RuntimeError as error:
                self._require_together(error)
                raise
        self._require_finite(out.logits, tokens, "in its logits")
        return out

    def _require_together(self, error: RuntimeError) -> None:
        """Raises Mismatch where an error is for weights that were moved apart by hand."""
        where = sorted({str(weight.device) for weight in self.hf.parameters()})
        if "same device" in str(error) and len(where) > 1:
            raise Mismatch(
                f"the weights of {self.name} lie on {' and '.join(where)}: move them together, as in "
                "model.hf.to('cpu'), or load the model with device_map"
            ) from error

    def _fitting(self, inputs: Mapping[str, Any]) -> str:
        """How much of what found no room fits, as a try shows, and what else can be done."""
        other = f"take {memory.elsewhere(self.device)}"
        if self.dtype.itemsize > 2:
            other = f"load the model in half the bytes (dtype='bfloat16', --dtype bfloat16), or {other}"
        rows, length = inputs["input_ids"].shape
        if torch.is_grad_enabled() or "past_key_values" in inputs:  # the pass is not all that needs room
            return f"take fewer or shorter texts at a time, {other}"

        def fits(rows: int, length: int) -> bool:
            some = {name: one[:rows, :length] if isinstance(one, Tensor) else one for name, one in inputs.items()}
            with aside():
                return memory.succeeds(lambda: self.hf(**some))

        if (found := memory.most(lambda some: fits(some, length), rows)) > 0:
            return f"{found} at a time fit (batch={found}, --batch {found}); or {other}"
        if (found := memory.most(lambda some: fits(1, some), length)) > 0:
            return f"one row of {found} fits (a shorter text, or length={found}, batch=1); or {other}"
        return other

    @cached_property
    def _not_taken(self) -> frozenset[str]:
        """What this model's passes cannot be given: BLOOM tells distances from the attention mask, and older
        transformers make all logits of some models.
        """
        taken = inspect.signature(self.hf.forward).parameters
        return frozenset({"position_ids", "logits_to_keep"} - set(taken))

    def _require_finite(self, values: Float[Tensor, "B S D"], tokens: Tokens, where: str) -> None:
        """Raises NotFinite for what `_not_finite` finds."""
        if self._not_finite(values, tokens, logits=where == "in its logits"):
            self._refuse(where)

    @staticmethod
    def _not_finite(values: Float[Tensor, "B S D"], tokens: Tokens, *, logits: bool = False) -> Bool[Tensor, ""]:
        """Whether there is NaN or Inf in the last S tokens of any row, padding aside. Only the largest and smallest of
        each token are looked at: both are NaN where any is, and a whole pass over the logits would show beside the
        model's own work.
        """
        fine = values.amax(-1).isfinite()
        if not logits:  # there −inf says that a token is never written
            fine &= values.amin(-1).isfinite()
        if tokens.padded:
            fine |= ~tokens.real[:, -values.shape[1] :].to(fine.device)
        return ~fine.all()

    def _refuse(self, where: str) -> NoReturn:
        # Which token it comes from cannot be told: attention spreads NaN over the row, and backwards too.
        if self._session is not None and (edits := self._session.edits):
            more = f" and {len(edits) - 1} more" if len(edits) > 1 else ""
            raise NotFinite(f"NaN or Inf {where}, under {edits[0]}{more}: use less strength")
        raise NotFinite(
            f"{self.name} computes NaN or Inf {where}: its weights are damaged, or too large for "
            f"{_named(self.dtype)}: get it again, or load it as float32"
        )

    @contextmanager
    def edited(self, *edits: Edit, rows: Sequence[int] | None = None) -> Iterator[LanguageModel]:
        """While the block runs, every pass goes through the edits (on these `rows` of a batch; None: on all);
        afterwards the model is as before.

        Edits of one block all look at what arrives at their site, and their changes add up; a block within a block
        follows the outer one. Raises SiteNotFound, Mismatch for an edit of another width, InputError for edits that
        contradict each other.
        """
        require_as_it_was(self.hf)
        ordinary = self._ordinary  # measured on the model as it is, before edits are in force
        with ExitStack() as stack:
            if self._session is None:
                self._session = Session(
                    sorted(self.special_ids), sinks.middle(self.hf), ordinary, self._norms_at_middle
                )
                stack.callback(self._forget)
                stack.enter_context(announced(self.hf, self._session.begin, self._session.end))
                # Before any edit that acts in the middle itself: hooks run in the order in which they were attached.
                stack.enter_context(telling(self.hf, sinks.norms_at_middle(self.hf), self._session.arrive))
            stack.enter_context(in_force(self.hf, self._session, edits, rows))
            yield self

    def _forget(self) -> None:
        self._session = None

    @contextmanager
    def watched(self, check: Callable[[], None]) -> Iterator[LanguageModel]:
        """While the block runs, `check` is called before each block of each pass; what it raises ends the pass."""
        with watching(places.blocks(self.hf), check):
            yield self

    def stream(
        self,
        text: Text,
        *,
        max_new_tokens: int = 50,
        temperature: float = 0.0,
        seed: int | None = None,
        draws: Sequence[int] | None = None,
        cache: bool = True,
    ) -> Iterator[Step]:
        """Texts continued, or chats replied to, one token of each at a time. `temperature` 0 takes the likeliest token.

        `draws` says which stream of the seed's noise each row is given (each its own unless said): rows with the same
        number and the same predictions go on in the same words. `cache=False` reads everything anew for each token.
        Raises InputError, and TextTooLong where the model's context cannot hold what is asked for, before it begins;
        NotFinite while iterated, where the model computes NaN or Inf.
        """
        tokens = text.here if isinstance(text, Tokens) else self.tokens(text, side="left", reply=True)
        rows, length = tokens.ids.shape
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens={max_new_tokens}: at least 1 token must be asked for")
        if not 0 <= temperature < float("inf"):
            raise InputError(f"temperature={temperature}: expected a number from 0 (the likeliest token) up")
        if draws is not None and len(draws) != rows:
            raise InputError(f"{len(draws)} draws for {rows} texts: expected one for each")
        if not tokens.real[:, -1].all():
            raise InputError("texts that are continued must be padded on the left: model.tokens(..., side='left')")
        if length + max_new_tokens > self.context:
            raise TextTooLong(
                f"{length} tokens and {max_new_tokens} new ones do not fit: {self.name} reads up to {self.context}"
            )

        def forward(tokens: Tokens, kept: Any) -> tuple[Tensor, Any]:
            out = self._forward(tokens, prompt=length, cache=kept, keep=1, use_cache=cache)
            return out.logits[:, -1], out.past_key_values if cache else None

        seed = int(torch.randint(1 << 62, ())) if seed is None else seed
        return continued(
            forward,
            tokens,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            dice=Dice(seed, range(rows) if draws is None else draws),
            ends=self.ends,
            pad=self._pad,
            cache=cache,
        )

    @cached_property
    def ends(self) -> frozenset[int]:
        """The ids that end a text when it is continued."""
        config = getattr(self.hf, "generation_config", None)
        found = getattr(config, "eos_token_id", None)
        found = self.tokenizer.eos_token_id if found is None else found
        return frozenset(() if found is None else [found] if isinstance(found, int) else found)

    @overload
    def generate(self, text: str | Sequence[Turn], **options: Any) -> str: ...
    @overload
    def generate(self, text: list[str] | Sequence[Sequence[Turn]], **options: Any) -> list[str]: ...
    def generate(
        self,
        text: str | list[str] | Sequence[Turn] | Sequence[Sequence[Turn]],
        *,
        max_new_tokens: int = 50,
        temperature: float = 0.0,
        seed: int | None = None,
        cache: bool = True,
    ) -> str | list[str]:
        """The text continued, the text itself left out; of a chat the reply. Of several a list. What it
        takes and raises is what `stream` does.
        """
        steps = list(self.stream(text, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, cache=cache))
        ids, ended = torch.stack([step.ids for step in steps], 1), torch.stack([step.ended for step in steps], 1)
        written = [row[: len(row) - max(0, int(over.sum()) - 1)] for row, over in zip(ids, ended, strict=True)]
        texts = [str(self.tokenizer.decode(row, skip_special_tokens=True)) for row in written]
        return texts[0] if isinstance(text, str) or is_one_chat(text) else texts


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
