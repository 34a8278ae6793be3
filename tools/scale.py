"""What SAEs of large models take, on paper: bytes, operations, dollars and hours, by formula (docs/scale.md).

Each function is one formula, in the units that its docstring says; the tables of the page are made of them and of
`GIVEN`, what is assumed. `python tools/scale.py` writes the tables into the page; a test holds them to it, and the
formulas to what Gemma Scope's report says of itself.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

PAGE = Path("docs/scale.md")
TRAINED = Path("benchmarks/results/train.json")
DAY = 86_400
WIDTHS = {"16k": 16_384, "131k": 131_072, "1M": 1_048_576}


@dataclass(frozen=True)
class Model:
    """A model as far as it matters here."""

    name: str
    d_model: int
    layers: int
    parameters: float
    """Without the embedding, which is looked up and not multiplied by."""
    layer: int
    """Whose residual stream is read: the model is run no further."""


MODELS = (
    Model("2B", 2304, 26, 2.02e9, 20),
    Model("9B", 3584, 42, 8.32e9, 20),
    Model("27B", 4608, 46, 26.05e9, 22),
)
"""Gemma 2."""


@dataclass(frozen=True)
class Given:
    """What is assumed. Nothing of it was measured here."""

    flops: float = 989e12
    """A second, of an H100 in bfloat16, dense, as its maker says."""
    reached: float = 0.4
    """The share of it that large products reach."""
    memory: float = 3.35e12
    """Bytes a second to and from an H100's memory."""
    inside: float = 450e9
    """Bytes a second each way between the GPUs of one machine (NVLink)."""
    between: float = 50e9
    """Bytes a second between machines: 400 Gb/s."""
    batch: int = 4096
    l0: float = 100
    hour: float = 2.5
    """Dollars for an H100."""
    month: float = 0.023
    """Dollars for a gigabyte kept for a month."""

    @property
    def rate(self) -> float:
        """Operations a second that are reached."""
        return self.flops * self.reached


GIVEN = Given()

# --- the formulas ----------------------------------------------------------------------------------------------------


def stored(d_model: int, tokens: float, bytes_each: int = 2) -> float:
    """Bytes of a site's rows on disk: the values, and 12 for each row's token, document and position."""
    return (bytes_each * d_model + 12) * tokens


def model_flops(model: Model) -> float:
    """Operations for a token, up to the site: two for each parameter of the layers that are run."""
    return 2 * model.parameters * (model.layer + 1) / model.layers


def dense_flops(d_model: int, d_sae: int) -> float:
    """Operations for a token of a training step whose products are dense: six for each of the 2·D·F weights. The gradient
    to x, which nobody needs, is a sixth of them and is counted, as is usual.
    """
    return 12 * d_model * d_sae


def sparse_flops(d_model: int, d_sae: int, l0: float) -> float:
    """The same where only the search over W_enc is dense, and the rest is of the active features."""
    return 2 * d_model * d_sae + 8 * l0 * d_model


def adam_bytes(d_model: int, d_sae: int, batch: int) -> float:
    """Bytes to and from memory for a token: 28 for each weight a step, which reads weight, gradient and two moments
    and writes all but the gradient.
    """
    return 56 * d_model * d_sae / batch


def held(d_model: int, d_sae: int) -> float:
    """Bytes in memory of a run: weights, gradients and Adam's two moments, in float32."""
    return 4 * 4 * 2 * d_model * d_sae


def data_parallel(d_model: int, d_sae: int, ranks: int) -> float:
    """Bytes that each rank sends in a step which sums gradients: a ring passes 2(N-1)/N of them."""
    return 2 * (ranks - 1) / ranks * 8 * d_model * d_sae


def feature_parallel(d_model: int, batch: int, ranks: int) -> float:
    """The same where each rank holds some features: the sum of the reconstruction in float32, and the rows in bfloat16."""
    return (ranks - 1) / ranks * (2 * 4 + 2) * batch * d_model


def step_seconds(d_model: int, d_sae: int, ranks: int, given: Given = GIVEN, *, sparse: bool = True) -> float:
    """Of the products and of Adam's traffic, which follow one another, spread over the ranks."""
    if not sparse:
        return given.batch * dense_flops(d_model, d_sae) / given.rate / ranks
    products = given.batch * sparse_flops(d_model, d_sae, given.l0) / given.rate
    return (products + given.batch * adam_bytes(d_model, d_sae, given.batch) / given.memory) / ranks


# --- the tables ------------------------------------------------------------------------------------------------------


def models(given: Given = GIVEN) -> str:
    """What reading a model's site takes."""
    tokens = 8e9
    rate = [given.rate / model_flops(one) for one in MODELS]
    rows = {
        "tokens a second, one GPU": [f"{r:,.0f}" for r in rate],
        "GPU hours for a billion tokens": [f"{1e9 / r / 3600:.1f}" for r in rate],
        "dollars for a billion tokens": [f"{1e9 / r / 3600 * given.hour:.0f}" for r in rate],
        "GPUs for 8 billion tokens in a day": [f"{tokens / r / DAY:.1f}" for r in rate],
        "rows on disk, a billion tokens, 16 bits": [f"{stored(m.d_model, 1e9) / 1e12:.1f} TB" for m in MODELS],
        "a month of that, 8 billion": [f"${stored(m.d_model, tokens) / 1e9 * given.month:,.0f}" for m in MODELS],
        "so many readings of the model cost the same": [
            f"{stored(m.d_model, tokens) / 1e9 * given.month / (tokens / r / 3600 * given.hour):.0f}"
            for r, m in zip(rate, MODELS, strict=True)
        ],
        "written by one GPU": [f"{r * stored(m.d_model, 1) / 1e6:.0f} MB/s" for r, m in zip(rate, MODELS, strict=True)],
        "read by an SAE that learns from 8 billion in a day": [
            f"{stored(m.d_model, tokens) / DAY / 1e9:.2f} GB/s" for m in MODELS
        ],
    }
    head = [f"residual stream of {m.name}, layer {m.layer}" for m in MODELS]
    return table(["", *head], [[what, *cells] for what, cells in rows.items()])


def widths(given: Given = GIVEN) -> str:
    """What training takes beside it."""
    lines = []
    for name, d_sae in WIDTHS.items():
        for model in MODELS:
            d = model.d_model
            each = [step_seconds(d, d_sae, 1, given, sparse=sparse) / given.batch for sparse in (False, True)]
            hours = [f"{1e9 * s / 3600:.2f}" for s in each]
            dollars = [f"{1e9 * s / 3600 * given.hour:.2f}" for s in each]
            reads = stored(d, 1) / each[1] / 1e9
            lines.append([name, model.name, f"{held(d, d_sae) / 1e9:,.1f} GB", *hours, *dollars, f"{reads:.1f} GB/s"])
    head = [
        "width",
        "model",
        "weights, gradients, Adam",
        "hours, dense",
        "sparse",
        "dollars, dense",
        "sparse",
        "rows read",
    ]
    return table(head, lines)


def ranks(given: Given = GIVEN, count: int = 8) -> str:
    """What a step computes and what it sends, in milliseconds, at 9B's width."""
    d, lines = MODELS[1].d_model, []
    for name, d_sae in WIDTHS.items():
        computes = [step_seconds(d, d_sae, count, given, sparse=sparse) for sparse in (False, True)]
        sent = (data_parallel(d, d_sae, count), feature_parallel(d, given.batch, count))
        cells = [f"{1e3 * s:.1f}" for s in computes]
        lines.append([name, *cells, *(f"{1e3 * b / link:.1f}" for b in sent for link in (given.inside, given.between))])
    head = ["width", "computes, dense", "sparse", "gradients, NVLink", "network", "reconstructions, NVLink", "network"]
    return table(head, lines)


def pays(given: Given = GIVEN, count: int = 8) -> str:
    """How many times as fast several GPUs are as one, at 9B's width, by width, batch and link. Nothing is hidden."""
    d, lines = MODELS[1].d_model, []
    for name, d_sae in WIDTHS.items():
        for batch in (1024, 4096, 16_384):
            told = replace(given, batch=batch)
            alone, shared = (step_seconds(d, d_sae, ranks, told) for ranks in (1, count))
            talk = feature_parallel(d, batch, count)
            gains = [f"{alone / (shared + talk / link):.1f}" for link in (given.inside, given.between)]
            lines.append([name, f"{batch:,}", f"{1e3 * alone:.1f}", *gains, f"{held(d, d_sae) / count / 1e9:.1f} GB"])
    return table(["width", "batch", "one GPU, ms", "8 by NVLink", "8 by a network", "each holds"], lines)


def here() -> str:
    """What this project's own kernels were measured to do on two cores of a processor, beside the paper's GPU."""
    result = json.loads(TRAINED.read_text())
    found = {(row["d_sae"], row["impl"]): row for row in result["rows"] if row["op"] == "step"}
    lines = []
    for d_model, d_sae in ((2304, 16_384), (576, 4_608)):
        ours, theirs = (found[d_sae, one]["tokens_per_s"] for one in ("gemscope", "saelens"))
        on_paper = GIVEN.batch / step_seconds(d_model, d_sae, 1)
        lines.append(
            [
                f"{d_model:,} × {d_sae:,}",
                f"{ours:,.0f}",
                f"{1e9 / ours / 3600:,.1f}",
                f"{theirs:,.0f}",
                f"{on_paper:,.0f}",
            ]
        )
    head = ["width of the model × of the SAE", "tokens a second", "hours for a billion", "SAELens", "an H100, on paper"]
    return table(head, lines)


def published() -> str:
    """What Gemma Scope's report says of itself, by these formulas."""
    nine = MODELS[1]
    step = dense_flops(nine.d_model, 131_072) * 4096
    rows = [
        ["share of 8 TPUv3's 984 TFLOP/s, 45 ms a batch at 131k of 9B", "50.8 %", f"{step / 0.045 / (8 * 123e12):.1%}"],
        ["read in that time", "more than 1 GiB/s", f"{4096 * nine.d_model * 4 / 0.045 / 2**30:.2f} GiB/s"],
        ["8 billion tokens of one site of 9B, float32", "about 100 TiB", f"{8e9 * nine.d_model * 4 / 2**40:.0f} TiB"],
        ["all sites of 2B and 9B", "about 17 PiB", f"{all_sites() / 2**50:.1f} PiB"],
    ]
    return table(["", "their report", "these formulas"], rows)


def all_sites(tokens: float = 8e9) -> float:
    """Bytes in float32 of residual stream, MLP and attention (heads side by side: 2,048 and 4,096) of all layers of 2B and 9B."""
    heads = {"2B": 2048, "9B": 4096}
    return sum(4 * tokens * m.layers * (2 * m.d_model + heads[m.name]) for m in MODELS[:2])


def table(head: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


TABLES = {"models": models, "widths": widths, "ranks": ranks, "pays": pays, "here": here, "published": published}


def page(text: str) -> str:
    """The page with its tables made anew."""
    for name, made in TABLES.items():
        between = re.compile(f"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        text = between.sub(lambda found, made=made: found[1] + made() + found[2], text)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
