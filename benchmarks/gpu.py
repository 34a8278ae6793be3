"""What an hour with a GPU is to show, in less than eight minutes: that each kernel and 200 training steps compute what
a processor does; encoding, decoding and training beside dense arithmetic and SAELens's; reading text through a model
shaped like Gemma 2 2B; the memory of each. What does not fit into the time that is left is left out, and said.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import encode_gpu
import measure
import torch
import torch.nn.functional as F
import train as step_by_step
from torch import Tensor

import gemscope as gs
from gemscope.activations.capture import Activations
from gemscope.activations.model import LanguageModel
from gemscope.activations.store import FORMAT, Manifest, Store
from gemscope.activations.writer import Writer
from gemscope.atlas.describe.gather import DescribeConfig
from gemscope.errors import OutOfMemory
from gemscope.features.kernels import Kernels, Rows
from gemscope.features.kernels.choice import choose
from gemscope.features.sae import SAE, SAEInfo
from gemscope.text.tokens import Tokens
from gemscope.training import objective
from gemscope.training.config import TrainConfig
from gemscope.training.products import Products

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of everything that is measured."""

    encode: tuple[tuple[int, int, int], ...] = ((2304, 16_384, 65_536), (2304, 131_072, 16_384), (2304, 1 << 20, 4096))
    """d_model, d_sae, tokens."""
    train: tuple[tuple[int, int, int], ...] = ((2304, 16_384, 4096), (2304, 131_072, 4096), (1024, 1 << 20, 4096))
    """d_model, d_sae, batch. A million features of 2304 have weights, gradients and Adam's memory of 77 GB."""
    l0: float = 70.0
    rounds: int = 5
    steps: int = 200
    kernels: tuple[int, int, int] = (512, 4096, 576)
    """Tokens, features, width of the check."""
    trained: tuple[int, int, int] = (64, 512, 256)
    """d_model, width, batch of the steps that are compared with a processor's."""
    model: tuple[int, int, int, int, int] = (26, 2304, 8, 9216, 256_000)
    """Layers, d_model, heads, d_mlp and vocabulary."""
    layer: int = 20
    d_sae: int = 16_384
    read: int = 65_536
    """Tokens read."""
    length: int = 256
    batch: int = 32


TOY = Sizes(
    encode=((64, 512, 128), (64, 2048, 64)),
    train=((64, 512, 64),),
    l0=8.0,
    rounds=1,
    steps=20,
    kernels=(40, 256, 64),
    trained=(16, 64, 32),
    model=(3, 32, 2, 64, 320),
    layer=1,
    d_sae=64,
    read=512,
    length=32,
    batch=4,
)
DENSE = ("float32", "tf32", "SAELens's arithmetic")


def main() -> None:
    """Measures, checks, prints."""
    args = _arguments()
    device = torch.device("cpu") if args.dry else _cuda()
    sizes, clock = TOY if args.dry else Sizes(), Clock(args.seconds)
    torch.set_grad_enabled(False)
    if args.dry:
        torch.set_num_threads(1)  # so little work is done sooner by one
    result: Row = measure.surroundings(("torch", "triton", "gemscope", "sae-lens", "transformers"))
    result |= {"device": _device(device), "kernels": choose(device).name, "dry": args.dry, "rows": [], "left_out": []}
    for name, part in PARTS.items():
        if args.only and name not in args.only:
            continue
        try:
            for row in part(device, sizes, clock):
                result["rows"].append(measure.rounded({"part": name, **row}))
                if not args.dry:  # what a machine that goes away leaves of it
                    measure.save("gpu", result | {"seconds": clock.passed})
        except Late as late:
            result["left_out"].append(f"{name}: {late}")
    if find_spec("sae_lens") is None:
        result["left_out"].append("SAELens itself: it is not installed here; its arithmetic is measured")
    result["seconds"] = round(clock.passed, 1)
    if not args.dry:
        measure.progress(f"wrote {measure.save('gpu', result)}")
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        _print(result)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="on the processor, at toy sizes")
    parser.add_argument("--seconds", type=float, default=450, help="begin nothing after so many (default 450)")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return parser.parse_args()


def _cuda() -> torch.device:
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: --dry tries everything on the processor")
    return torch.device("cuda", torch.cuda.current_device())


def _device(device: torch.device) -> Row:
    return encode_gpu._gpu(device) if device.type == "cuda" else {"name": "the processor"}


class Late(Exception):
    """There is not enough time left."""


class Clock:
    """How much of the time has passed."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.began = seconds, time.perf_counter()

    @property
    def passed(self) -> float:
        return time.perf_counter() - self.began

    def need(self, seconds: float, what: str) -> None:
        """Raises Late where so much is not left."""
        measure.progress(f"{self.passed:.0f} s: {what}")
        if self.passed + seconds > self.seconds:
            raise Late(f"{what}: no time was left")


# --- time and memory --------------------------------------------------------------------------------------------------


def _timed(device: torch.device, tasks: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Row]:
    """Each once a round, in turns, after a round that warms up: median seconds, and the most memory above what lay
    there before. What finds no room says so.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    peaks: dict[str, float | None] = {}
    lacked = set[str]()
    for number in range(rounds + 1):
        for name, work in tasks.items():
            if name in lacked:
                continue
            try:
                took, peaks[name] = _once(device, work)
            except (torch.OutOfMemoryError, OutOfMemory):
                lacked.add(name)
                torch.cuda.empty_cache()
                continue
            if number:
                seconds[name].append(took)
    return {
        name: {"median_s": None, "why": "out of memory"}
        if name in lacked
        else {"median_s": statistics.median(took), "min_s": min(took), "max_s": max(took), "peak_mb": peaks[name]}
        for name, took in seconds.items()
    }


def _once(device: torch.device, work: Callable[[], object]) -> tuple[float, float | None]:
    with _weighed(device) as weight:
        start = time.perf_counter()
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took = time.perf_counter() - start
    del result
    return took, weight[0]


@contextmanager
def _weighed(device: torch.device) -> Iterator[list[float | None]]:
    """The most memory that is taken while the block runs above what lay there before, in MB; None for a processor."""
    found: list[float | None] = [None]
    if device.type != "cuda":
        yield found
        return
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield found
    found[0] = (torch.cuda.max_memory_allocated(device) - before) / 1e6


def _precise(precision: str, work: Callable[[], object]) -> object:
    torch.set_float32_matmul_precision(precision)
    try:
        return work()
    finally:
        torch.set_float32_matmul_precision("highest")


# --- is it right? -----------------------------------------------------------------------------------------------------


def check_kernels(device: torch.device, sizes: Sizes, clock: Clock) -> Iterator[Row]:
    """Each operation against float64 on the processor, and against itself a second time, to the bit."""
    clock.need(5, "each kernel against float64")
    tokens, features, width = sizes.kernels
    kernels = choose(device)
    data = encode_gpu.planted(width, features, tokens, l0=sizes.l0, device=device)
    packed = kernels.pack(data.W, data.b, data.threshold)
    found = kernels.above(packed, data.x)
    encode_gpu._check(data, found, tokens)
    floor = torch.full((tokens,), float(found.values.median()), device=device)
    above = kernels.above(packed, data.x, floor)
    kept = found.where(found.values > floor[found.rows])
    yield _right(
        "above, with floors of tokens", torch.equal(above.ids, kept.ids) and torch.equal(above.values, kept.values)
    )
    x, W, rows, ids = (one.cpu().double() for one in (data.x, data.W, found.rows, found.ids))
    rows, ids, values = rows.long(), ids.long(), found.values.cpu().double()
    exact = torch.zeros(tokens, features, dtype=torch.float64)
    exact[rows, ids] = values
    for name, work, expected in (
        ("dots", lambda: kernels.dots(found.offsets, found.ids, data.x, data.W), (x[rows] * W[ids]).sum(-1)),
        ("sums", lambda: kernels.sums(found, data.W), exact @ W),
        ("totals", lambda: kernels.totals(found.ids, found.values, features), exact.sum(0)),
    ):
        got, again = work(), work()
        error = float((got.cpu().double() - expected).abs().max() / expected.abs().max())
        yield _right(name, error < 1e-5 and torch.equal(got, again), error)
    yield _right("transposed", _is_transposed(kernels, found, exact))


def _is_transposed(kernels: Kernels, found: Rows, exact: Tensor) -> bool:
    turned, order = kernels.transposed(found, exact.shape[1])
    dense = torch.zeros_like(exact.T)
    dense[turned.rows.cpu(), turned.ids.long().cpu()] = turned.values.cpu().double()
    return torch.equal(dense, exact.T) and torch.equal(found.values[order], turned.values)


def _right(what: str, is_right: bool, error: float | None = None) -> Row:
    if not is_right:
        sys.exit(f"wrong: {what}" + ("" if error is None else f", by {error:.1e} of the largest number"))
    return {"what": what, "right": True, "error": error}


def check_training(device: torch.device, sizes: Sizes, clock: Clock) -> Iterator[Row]:
    """The same steps on the same rows, on the device and on the processor: the same loss and L0 but for rounding. And
    a second time on the device, to the bit.
    """
    clock.need(30, f"{sizes.steps} training steps against the processor")
    d_model, width, batch = sizes.trained
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder)
        store = _rows(d_model, 4 * batch, to / "rows")
        config = TrainConfig(width=width, rows=sizes.steps * batch, batch=batch, target_l0=min(8.0, d_model / 4))
        places = {"processor": torch.device("cpu"), "device": device, "again": device}
        saes = {name: gs.train(store, config, to=to / name, device=where).cpu() for name, where in places.items()}
        logs = {
            name: [json.loads(line) for line in (to / name / "log.jsonl").read_text().splitlines()] for name in places
        }
    same = all(torch.equal(a, b) for a, b in zip(saes["device"].parameters(), saes["again"].parameters(), strict=True))
    yield _right(f"{sizes.steps} steps, a second time the same bits", same)
    for key in ("loss", "l0"):
        ends = {name: next(line[key] for line in reversed(log) if key in line) for name, log in logs.items()}
        error = abs(ends["device"] - ends["processor"]) / max(abs(ends["processor"]), 1e-9)
        yield _right(f"{sizes.steps} steps: {key}", error < 0.02, error)
    W, other = saes["processor"].W_dec, saes["device"].W_dec
    error = float((W - other).norm() / W.norm())
    # Two kernels of the processor itself part by 4 % in as many steps.
    yield _right(f"{sizes.steps} steps: decoder", error < 0.1, error)


def _rows(d_model: int, count: int, folder: Path) -> Store:
    """A harvest of sums of random directions, which no model computed."""
    draw = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(4 * d_model, d_model, generator=draw))
    on = torch.rand(count, len(directions), generator=draw) < 4 / len(directions)
    rows = (on * (1 + 0.3 * torch.randn(count, len(directions), generator=draw)).clamp(min=0.1)) @ directions
    counted = torch.ones(1, count, dtype=torch.bool)
    tokens = Tokens(torch.arange(count)[None], counted, counted)
    with Writer(folder, stored="float32") as writer:
        with writer.piece() as shards:
            shards.add(Activations(rows[None], counted, tokens, gs.Site(0, "res"), "planted"))
        facts = {"model": "planted", "revision": None, "corpus": "planted", "corpus_digest": "0", "versions": {}}
        return writer.finish(
            Manifest(format=FORMAT, dtype="float32", sites={}, read=0, length=count, **facts), pieces=1
        )


# --- encoding and decoding --------------------------------------------------------------------------------------------


def encode(device: torch.device, sizes: Sizes, clock: Clock) -> Iterator[Row]:
    """Encode, decode and both, beside dense arithmetic in float32 and TF32 and SAELens's."""
    for d_model, d_sae, tokens in sizes.encode:
        clock.need(45, f"encode, decode, forward at {d_model} × {d_sae:,}")
        data = encode_gpu.planted(d_model, d_sae, tokens, l0=sizes.l0, device=device)
        sae = _sae(data)
        x, W_enc, W_dec, b_dec = data.x, sae.W_enc, sae.W_dec, sae.b_dec
        features = sae.encode(x)
        encode_gpu._check(data, Rows(features.offsets, features.features, features.values))

        def dense(data: encode_gpu.Planted = data) -> Tensor:
            z = torch.addmm(data.b, data.x, data.W.T)
            return z.mul_(z > data.threshold)

        def saelens(data: encode_gpu.Planted = data, W_enc: Tensor = W_enc) -> Tensor:
            z = data.x @ W_enc + data.b  # JumpReLUSAE.encode of SAELens 6
            return F.relu(z) * (z > data.threshold)

        encoders: dict[str, Callable[[], Any]] = {
            "gemscope": partial(sae.encode, x),
            "float32": dense,
            "tf32": partial(_precise, "high", dense),
            "SAELens's arithmetic": saelens,
        }
        low_x, low_W = x.bfloat16(), data.W.bfloat16()
        product = {"the bf16 product alone": lambda x=low_x, W=low_W: x @ W.T}
        took = _timed(device, encoders | product, sizes.rounds)
        del low_x, low_W, product
        yield from _beside("encode", (d_model, d_sae, tokens), took, l0=features.mean_l0)

        def whole(encoder: Callable[[], Any], W: Tensor = W_dec, b: Tensor = b_dec) -> Tensor:
            return torch.addmm(b, encoder(), W)

        forward = {name: partial(whole, encoders[name]) for name in ("float32", "SAELens's arithmetic")}
        forward["tf32"] = partial(_precise, "high", forward["float32"])
        forward = {"gemscope": partial(sae.read, x)} | forward
        yield from _beside("forward", (d_model, d_sae, tokens), _timed(device, forward, sizes.rounds))
        decoders: dict[str, Callable[[], Any]] = {"gemscope": partial(sae.decode, features)}
        with suppress(torch.OutOfMemoryError):
            f = features.to_dense()
            decoders["float32"] = lambda f=f, W=W_dec, b=b_dec: torch.addmm(b, f, W)
            decoders["tf32"] = partial(_precise, "high", decoders["float32"])
            decoders["SAELens's arithmetic"] = lambda f=f, W=W_dec, b=b_dec: f @ W + b
            got, exact = sae.decode(features), decoders["float32"]()
            error = float((got - exact).norm() / exact.norm())
            if error > 1e-5:
                sys.exit(f"wrong: decode, by {error:.1e}")
            del f, got, exact
        yield from _beside("decode", (d_model, d_sae, tokens), _timed(device, decoders, sizes.rounds))
        del sae, data, x, W_enc, W_dec, b_dec, features, encoders, forward, decoders
        _forget(device)


def _forget(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _sae(data: encode_gpu.Planted) -> SAE:
    d_sae, d_model = data.W.shape
    sae = SAE(d_model, d_sae, site="0.res", info=SAEInfo(name="planted"), device="meta")
    weights = {"W_enc": data.W.T, "b_enc": data.b, "W_dec": data.W, "b_dec": data.x.new_zeros(d_model)}
    sae.load_state_dict(weights | {"threshold": data.threshold}, assign=True)
    return sae.requires_grad_(False)


def _beside(op: str, size: tuple[int, int, int], took: Mapping[str, Row], **more: Any) -> Iterator[Row]:
    """A row for each, with how many times as fast ours is."""
    d_model, d_sae, tokens = size
    ours = took.get("gemscope", {}).get("median_s")
    for impl, row in took.items():
        ratio = row["median_s"] / ours if ours and row["median_s"] and impl != "gemscope" else None
        rate = tokens / row["median_s"] if row["median_s"] else None
        shape = {"op": op, "d_model": d_model, "d_sae": d_sae, "tokens": tokens, "impl": impl}
        yield shape | row | {"tokens_per_s": rate, "gemscope_is_times_as_fast": ratio} | more


# --- a training step --------------------------------------------------------------------------------------------------


def train(device: torch.device, sizes: Sizes, clock: Clock) -> Iterator[Row]:
    """A step beside a tuned dense one, compiled, and SAELens's."""
    for d_model, d_sae, batch in sizes.train:
        clock.need(60, f"a training step at {d_model} × {d_sae:,}")
        data = encode_gpu.planted(d_model, d_sae, batch, l0=sizes.l0, device=device)
        weights = {"W_enc": data.W.T, "b_enc": data.b, "W_dec": data.W, "threshold": data.threshold}
        weights["b_dec"] = data.x.new_zeros(d_model)
        # One after another: the states of all would not lie beside each other.
        took: dict[str, Row] = {}
        for name, make in _trainers(device, d_sae).items():
            try:
                one = make(weights, batch, sizes.l0)
                took |= _timed(device, {name: partial(one, data.x)}, sizes.rounds)
            except torch.OutOfMemoryError:
                took[name] = {"median_s": None, "why": "out of memory"}
            one = None
            _forget(device)
        yield from _beside("step", (d_model, d_sae, batch), took)
        del data, weights
        _forget(device)


Step = Callable[[Tensor], object]


def _trainers(device: torch.device, d_sae: int) -> dict[str, Callable[[Mapping[str, Tensor], int, float], Step]]:
    made: dict[str, Callable[[Mapping[str, Tensor], int, float], Step]] = {
        "gemscope": partial(_ours, Products()),
        "gemscope, bf16 products": partial(_ours, Products(torch.bfloat16)),
        "dense, compiled, float32": partial(_dense, "highest", device),
        "dense, compiled, tf32": partial(_dense, "high", device),
        "SAELens's arithmetic": _as_saelens,
    }
    if find_spec("sae_lens") is not None and d_sae <= 1 << 17:
        made["SAELens"] = lambda weights, batch, l0: step_by_step._saelens(weights, batch, l0).step
    return made


def _ours(products: Products, weights: Mapping[str, Tensor], _: int, l0: float) -> Step:
    own = objective.Weights(
        **{name: part.T.clone() if name == "W_enc" else part.clone() for name, part in weights.items()}
    )
    adam = _adam(own.tensors().values())
    terms = objective.Terms(bandwidth=step_by_step.BANDWIDTH, target=l0, sparsity=step_by_step.SPARSITY)
    terms = replace(terms, products=products)

    def step(x: Tensor) -> None:
        _, grads = objective.step(own, x, x, terms)
        for name, part in own.tensors().items():
            part.grad = grads.tensors()[name]
        torch.nn.utils.clip_grad_norm_([own.W_enc, own.b_enc, own.W_dec, own.b_dec], step_by_step.CLIP)
        adam.step()
        adam.zero_grad()
        own.threshold.clamp_(min=0)

    return step


def _adam(parts: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(list(parts), lr=step_by_step.LR, betas=(0.9, 0.999), fused=True)


def _dense(precision: str, device: torch.device, weights: Mapping[str, Tensor], batch: int, target: float) -> Step:
    """What somebody who knows torch writes without sparsity: the gradients by hand, five products, all else fused by
    torch.compile.
    """
    own = {name: part.clone() for name, part in weights.items()}
    adam = _adam(own.values())
    width, pull = step_by_step.BANDWIDTH, step_by_step.SPARSITY

    def gradients(x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
        W_enc, b_enc, W_dec, b_dec, theta = weights
        z = torch.addmm(b_enc, x, W_enc)
        on = z > theta
        f = torch.where(on, z, 0)
        window = (z > (theta - width / 2).clamp(min=0)) & (z < theta + width / 2)
        g = (torch.addmm(b_dec, f, W_dec) - x) * (2 / batch)
        df = g @ W_dec.T
        dz = torch.where(on, df, 0)
        l0 = on.sum() / batch
        inside = torch.where(window, df, 0).sum(0) * theta
        slope = pull * 2 * (l0 / target - 1) / (target * batch)
        d_theta = (inside + window.sum(0) * slope) * (-1 / width)
        return [x.T @ dz, dz.sum(0), f.T @ g, g.sum(0), d_theta]

    quick = torch.compile(gradients) if device.type == "cuda" else gradients
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")

    def step(x: Tensor) -> None:
        found = _precise(precision, lambda: quick(x, [own[name] for name in names]))
        for name, grad in zip(names, found, strict=True):  # type: ignore[call-overload]
            own[name].grad = grad
        torch.nn.utils.clip_grad_norm_([own[name] for name in names[:4]], step_by_step.CLIP)
        adam.step()
        adam.zero_grad()
        own["threshold"].clamp_(min=0)

    return step


class _Jump(torch.autograd.Function):
    """SAELens's JumpReLU and its step, with straight-through gradients (Rajamanoharan et al. 2024, eq. 11 and 12)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, values: bool) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.values = values
        return z * (z > theta) if values else (z > theta).to(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:  # type: ignore[override]
        z, theta = ctx.saved_tensors
        near = ((z - theta).abs() < step_by_step.BANDWIDTH / 2).to(z)
        through = -(theta if ctx.values else 1) / step_by_step.BANDWIDTH * near * grad
        return (grad * (z > theta) if ctx.values else None), through.sum(0), None


def _as_saelens(weights: Mapping[str, Tensor], batch: int, target: float) -> Step:
    """Its trainer's products and passes over [tokens, features], by autograd, and plain Adam."""
    own = {name: part.clone().requires_grad_() for name, part in weights.items()}
    adam = torch.optim.Adam(list(own.values()), lr=step_by_step.LR, betas=(0.9, 0.999))

    def step(x: Tensor) -> None:
        with torch.enable_grad():
            z = x @ own["W_enc"] + own["b_enc"]
            f = _Jump.apply(F.relu(z), own["threshold"], True)
            error = (f @ own["W_dec"] + own["b_dec"] - x).pow(2).sum(-1).mean()
            l0 = _Jump.apply(z, own["threshold"], False).sum(-1)
            (error + step_by_step.SPARSITY * (l0 / target - 1).pow(2).mean()).backward()
        torch.nn.utils.clip_grad_norm_(list(own.values()), step_by_step.CLIP)
        adam.step()
        adam.zero_grad()

    return step


# --- reading text -----------------------------------------------------------------------------------------------------


def read(device: torch.device, sizes: Sizes, clock: Clock) -> Iterator[Row]:
    """Harvest and describe of a random model shaped like Gemma 2 2B, in bfloat16, beside its own passes alone."""
    clock.need(90, "harvest and describe")
    model = _gemma(device, sizes)
    site = gs.Site(sizes.layer, "res")
    text = gs.Corpus.of(_texts(model, sizes.read))
    batches = list(model.rows(text, length=sizes.length, batch=sizes.batch))
    x = model.capture(batches[0], [site])[site].rows.float()
    sae = _fitting(x, sizes).to(device)
    sae.site = sae.site_out = site
    shape = {"d_sae": sizes.d_sae, "tokens": sizes.read, "impl": "gemscope"}
    options: Row = {"length": sizes.length, "batch": sizes.batch}
    config = DescribeConfig(effect=0, before=8, after=7, **options)
    clocks = _Clocks()
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder)
        ways: dict[str, Callable[[], object]] = {
            "the model's passes alone": lambda: [model.capture(rows, [site]) for rows in batches],
            "harvest": partial(gs.harvest, model, text, [site], to=to / "harvest", **options),
            "describe": partial(
                gs.describe, model, sae, text, to=to / "atlas", config=config, map=False, progress=clocks
            ),
            "score, without losses": partial(gs.score, model, sae, text, loss_tokens=0, **options),
        }
        for what, work in ways.items():
            seconds, peak = _once(device, work)
            parts = {what: seconds}
            if what == "describe":  # its pages are of features, not of tokens
                parts = {"describe, its pass over text": clocks.seconds("describe")}
                parts |= {"describe, pages and all": seconds}
            for name, took in parts.items():
                yield shape | {"op": name, "median_s": took, "tokens_per_s": sizes.read / took, "peak_mb": peak}


class _Clocks:
    """Progress that is not shown but timed, by its first word."""

    def __init__(self) -> None:
        self._took: dict[str, float] = {}

    @contextmanager
    def __call__(self, title: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        start = time.perf_counter()
        try:
            yield lambda _: None
        finally:
            self._took[title.split(maxsplit=1)[0]] = time.perf_counter() - start

    def seconds(self, word: str) -> float:
        return self._took[word]


def _gemma(device: torch.device, sizes: Sizes) -> LanguageModel:
    import transformers

    from gemscope.testing import tiny_model

    layers, width, heads, d_mlp, vocabulary = sizes.model
    config = transformers.Gemma2Config(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        head_dim=256 if width > 256 else 16,
        intermediate_size=d_mlp,
        vocab_size=vocabulary,
        max_position_embeddings=8192,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with device:
            hf = transformers.Gemma2ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return LanguageModel(hf.requires_grad_(False), tiny_model("gemma2").tokenizer, name="random-gemma-2-2b")


def _texts(model: LanguageModel, tokens: int) -> list[str]:
    """Words after Zipf, of about so many tokens."""
    draw = torch.Generator().manual_seed(0)
    words = ["".join(chr(97 + int(one)) for one in torch.randint(26, (3,), generator=draw)) for _ in range(500)]
    rates = 1 / torch.arange(1, len(words) + 1)
    each = len(model.ids(" ".join(words))) / len(words)
    drawn = torch.multinomial(rates, int(tokens / each), replacement=True, generator=draw).tolist()
    return [" ".join(words[one] for one in drawn[start : start + 400]) for start in range(0, len(drawn), 400)]


def _fitting(x: Tensor, sizes: Sizes) -> SAE:
    """Random features of the activations' mean, with a threshold that leaves the L0 wanted."""
    d_sae, d_model = sizes.d_sae, x.shape[1]
    draw = torch.Generator(x.device).manual_seed(0)
    W = F.normalize(torch.randn(d_sae, d_model, generator=draw, device=x.device))
    z = (x - x.mean(0))[:256] @ W.T
    threshold = z.flatten().topk(int(sizes.l0 * len(z))).values[-1].clamp(min=0)
    sae = SAE(d_model, d_sae, info=SAEInfo(name="random"), device=x.device)
    parts = {"W_enc": W.T, "b_enc": -(W @ x.mean(0)), "W_dec": W, "threshold": threshold.expand(d_sae)}
    for name, part in parts.items():
        getattr(sae, name).copy_(part)
    return sae


PARTS: dict[str, Callable[[torch.device, Sizes, Clock], Iterator[Row]]] = {
    "kernels are right": check_kernels,
    "training is right": check_training,
    "encode": encode,
    "train": train,
    "read": read,
}


# --- printing ---------------------------------------------------------------------------------------------------------


def _print(result: Row) -> None:
    device = result["device"]
    print(f"\n{device['name']}, kernels: {result['kernels']}, {result['seconds']:.0f} s in all")
    for row in result["rows"]:
        if "right" in row:
            error = "" if row["error"] is None else f"  {row['error']:.0e}"
            print(f"right: {row['what']}{error}")
            continue
        size = f"{row['d_model']} × {row['d_sae']:>9,}" if "d_model" in row else f"{row['d_sae']:>16,}"
        took = f"{row['median_s'] * 1e3:10.2f} ms" if row["median_s"] else f"{row['why']:>13}"
        rate = f"{row['tokens_per_s']:>13,.0f} tokens/s" if row["tokens_per_s"] else " " * 22
        peak = f"{row['peak_mb']:>8,.0f} MB" if row.get("peak_mb") else " " * 11
        ratio = row.get("gemscope_is_times_as_fast")
        more = f"  gemscope is {ratio:.2f} ×" if ratio else ""
        print(f"{row['op']:<29}{size} {row['tokens']:>7,}  {row['impl']:<24}{took} {rate} {peak}{more}")
    for what in result["left_out"]:
        print(f"left out: {what}")


if __name__ == "__main__":
    main()
