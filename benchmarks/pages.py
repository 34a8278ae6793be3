"""How fast pages are served: one reader of random features, 64 readers while somebody writes labels, and how long an
atlas takes to open from a cold disk. The real server in a process of its own, on synthetic atlases whose pages weigh
what real ones do. README.md says what the rows mean. An answer that is not what it should be ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import measure
import numpy as np
from realistic import CACHE
from synthetic_atlas import VOCABULARY, atlas_folder

SIZES = (16_384, 131_072)
READERS = 64
WARMING = 2.0
"""Seconds that many readers read before their latencies count."""
BARS = {"page": (3.0, 10.0), "readers_p99": 100.0, "open_s": 1.0}
"""What the figures are held against, in ms but for the last: p50 and p99 of a page, p99 with 64 readers, cold open."""
SMOKE = {"sizes": (600,), "pages": 200, "seconds": 2.0, "rounds": 1}


def main() -> None:
    """Measures, checks, prints."""
    args = _arguments()
    if args.cold:
        print(json.dumps(_opened(Path(args.cold))))
        return
    result = measure.surroundings(("gemscope", "starlette", "uvicorn", "jinja2")) | {
        "rounds": args.rounds,
        "bars": BARS,
    }
    result["rows"] = [row for size in args.sizes for row in _measured(size, args)]
    if args.save:
        measure.progress(f"wrote {measure.save('pages', result)}")
    print(json.dumps(result, indent=1)) if args.json else _print(result)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="FEATURES")
    parser.add_argument("--pages", type=int, default=2000, help="that one reader asks for (default 2000)")
    parser.add_argument("--seconds", type=float, default=10.0, help="that 64 readers go on for (default 10)")
    parser.add_argument("--rounds", type=int, default=3, help="cold openings, and turns of one reader (default 3)")
    parser.add_argument("--smoke", action="store_true", help="small: are the answers right?")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/pages.json too")
    parser.add_argument("--cold", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.smoke:
        args.__dict__.update(SMOKE)
    return args


def _measured(features: int, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    kept = atlas_folder(features)
    if args.smoke:
        _verified(kept)
    for number in range(args.rounds):
        measure.progress(f"{features:,} features: opening it cold, {number + 1} of {args.rounds}")
        yield {"features": features, "what": "cold open"} | measure.child("pages.py", "--cold", kept)
    with _copy(kept) as folder, _server(folder) as port:
        for what, path in _PATHS.items():
            measure.progress(f"{features:,} features: {what}")
            yield {"features": features, "what": what} | _one_reader(port, _address(features), path, args, features)
        yield {"features": features, "what": "weight"} | _weight(port, _page(_address(features), _seeded(), features))
        for what, path, pause in (
            ("readers, at once", _page, 0.0),
            ("readers, at once, with ranges", _page_with_ranges, 0.0),
            ("readers, a page a second", _page, 1.0),
        ):
            measure.progress(f"{features:,} features: {READERS} {what}, and a writer")
            row = asyncio.run(_many_readers(port, _address(features), features, args.seconds, pause, path=path))
            yield {"features": features, "what": what} | row


def _address(features: int) -> str:
    return f"/synthetic/0-res-{features}"


def _verified(folder: Path) -> None:
    from gemscope.atlas.verify import verify

    if problems := verify(folder):
        sys.exit(f"the synthetic atlas is not sound: {problems[0]}")


@contextmanager
def _copy(kept: Path) -> Iterator[Path]:
    """Labels are written into a copy, so that every run finds the same."""
    with tempfile.TemporaryDirectory(dir=CACHE) as aside:
        yield Path(shutil.copytree(kept, Path(aside) / "atlas"))


@contextmanager
def _server(folder: Path) -> Iterator[int]:
    """The port of `gemscope serve` in a process of its own."""
    command = [sys.executable, "-m", "gemscope", "serve", str(folder), "--port", "0", "--no-model"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("http://"):
            sys.exit(f"the server did not start: {line.strip()}")
        yield int(line.split()[0].rstrip("/").rpartition(":")[2])
    finally:
        process.terminate()
        process.wait(timeout=10)


# --- one reader -----------------------------------------------------------------------------------------------------


def _page(address: str, draw: np.random.Generator, features: int) -> str:
    return f"{address}/{draw.integers(features)}"


def _page_with_ranges(address: str, draw: np.random.Generator, features: int) -> str:
    return f"{_page(address, draw, features)}?ranges=true"


def _page_data(address: str, draw: np.random.Generator, features: int) -> str:
    return f"{_page(address, draw, features)}.json"


def _browse(address: str, draw: np.random.Generator, features: int) -> str:
    order = ("density", "max", "index", "label")[draw.integers(4)]
    return f"{address}.json?order={order}&descending=true&min_density=0.0001&offset={draw.integers(features // 2)}"


def _labels(address: str, draw: np.random.Generator, _: int) -> str:
    from synthetic_atlas import _word

    return f"{address}/search.json?kind=label&text={_word(int(draw.integers(VOCABULARY))).decode().strip()[:3]}"


def _tokens(address: str, draw: np.random.Generator, _: int) -> str:
    from synthetic_atlas import _word

    return f"{address}/search.json?kind=token&text={_word(int(draw.integers(1, 5000))).decode().strip()}"


_PATHS: dict[str, Callable[[str, np.random.Generator, int], str]] = {
    "page": _page,
    "page with ranges": _page_with_ranges,
    "page as JSON": _page_data,
    "browse as JSON": _browse,
    "search labels": _labels,
    "search tokens": _tokens,
}
"""What one reader asks for, over and over, at random."""


def _one_reader(
    port: int, address: str, path: Callable[..., str], args: argparse.Namespace, features: int
) -> dict[str, Any]:
    """Latencies as the reader sees them, over one connection: the answer's last byte is in."""
    draw = np.random.default_rng(features)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    took, sizes = [], []
    for number in range(args.pages * args.rounds + 100):
        wanted = path(address, draw, features)
        start = time.perf_counter()
        connection.request("GET", wanted)
        answer = connection.getresponse()
        body = answer.read()
        elapsed = time.perf_counter() - start
        if answer.status != 200 or len(body) < 20:
            sys.exit(f"{wanted}: {answer.status}")
        if number >= 100:  # the first ones warm up
            took.append(elapsed)
            sizes.append(len(body))
    connection.close()
    return _latencies(took) | {"kb": sum(sizes) / len(sizes) / 1e3}


def _seeded() -> np.random.Generator:
    return np.random.default_rng(0)


def _weight(port: int, path: str) -> dict[str, Any]:
    """What a browser fetches for one page when it comes for the first time: bytes by kind, and how many requests."""
    html = _fetched(port, path)
    asked = {one.decode() for one in re.findall(rb'(?:href|src)="(/static/[^"]+)"', html)}
    sizes = {one: len(_fetched(port, one)) for one in asked}
    kinds = {"css": ".css", "js": ".js", "other": ""}
    taken = dict.fromkeys(kinds, 0)
    for one, size in sizes.items():
        taken[next(kind for kind, end in kinds.items() if one.partition("?")[0].endswith(end))] += size
    return {"html_kb": len(html) / 1e3, **{f"{kind}_kb": size / 1e3 for kind, size in taken.items()}} | {
        "requests": 1 + len(asked)
    }


def _fetched(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    if answer.status != 200:
        sys.exit(f"{path}: {answer.status}")
    return body


# --- many readers ---------------------------------------------------------------------------------------------------


async def _many_readers(
    port: int,
    address: str,
    features: int,
    seconds: float,
    pause: float,
    *,
    path: Callable[[str, np.random.Generator, int], str] = _page,
) -> dict[str, Any]:
    """64 readers of random pages, each over its own connection, while one writer adds labels without a rest.

    `pause` is how long a reader looks at a page before the next; without one this is the most that the server gives.
    """
    counts = time.perf_counter() + WARMING  # the first to come at once find the processes beside the server starting
    until = counts + seconds
    took: list[float] = []
    wrote: list[float] = []

    async def reader(number: int) -> None:
        draw = np.random.default_rng((1, number))
        ways = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        await asyncio.sleep(pause * draw.random())
        while time.perf_counter() < until:
            wanted = path(address, draw, features)
            start = time.perf_counter()
            status, _ = await _asked(*ways, _request("GET", wanted))
            if start > counts:
                took.append(time.perf_counter() - start)
            if status != 200:
                sys.exit(f"{wanted}: {status}")
            if pause:
                await asyncio.sleep(pause * 2 * draw.random())
        ways[1].close()

    async def writer() -> None:
        draw = np.random.default_rng(2)
        ways = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        while time.perf_counter() < until:
            body = json.dumps({"text": f"written label {len(wrote)}"}).encode()
            wanted = f"{address}/{draw.integers(features)}/labels"
            start = time.perf_counter()
            status, _ = await _asked(*ways, _request("POST", wanted, body))
            wrote.append(time.perf_counter() - start)
            if status != 201:
                sys.exit(f"{wanted}: {status}")
            await asyncio.sleep(0.01)
        ways[1].close()

    await asyncio.gather(*map(reader, range(READERS)), writer())
    ways = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    _, body = await _asked(*ways, _request("GET", f"{address}/search.json?kind=label&text=written&limit=100"))
    found = len(json.loads(body)["features"])
    if found < min(50, len(wrote) // 2):
        sys.exit(f"{len(wrote)} labels were written, and a search finds {found}")
    ways[1].close()
    return _latencies(took) | {"labels": len(wrote), "label_p99_ms": _latencies(wrote)["p99_ms"]}


def _request(method: str, path: str, body: bytes = b"") -> bytes:
    kind = "content-type: application/json\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{kind}content-length: {len(body)}\r\n\r\n".encode() + body


async def _asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes]:
    """Status and body; the server names every answer's length."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head.split(b" ", 2)[1])
    length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
    return status, await reader.readexactly(int(length or 0))


# --- cold -----------------------------------------------------------------------------------------------------------


def _opened(folder: Path) -> dict[str, Any]:
    """Seconds to open an atlas and to read a first page, when none of its files is in the system's cache."""
    from gemscope.atlas.reader import Atlas

    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    atlas = Atlas(folder)
    opened = time.perf_counter() - start
    page = atlas[len(atlas) // 2]
    first = time.perf_counter() - start
    assert page.examples
    atlas.close()
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {"open_s": opened, "first_page_s": first, "mb": size / 1e6}


# --- printing -------------------------------------------------------------------------------------------------------


def _latencies(took: Sequence[float]) -> dict[str, Any]:
    p50, p95, p99 = np.percentile(np.array(took) * 1e3, [50, 95, 99])
    return {
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "p99_ms": float(p99),
        "max_ms": max(took) * 1e3,
        "answers": len(took),
    }


def _print(result: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table()
    for title in ("features", "", "p50 ms", "p95 ms", "p99 ms", "most ms", "answers", "kB", "labels", "label p99 ms"):
        table.add_column(title, justify="left" if not title else "right")
    keys = ("p50_ms", "p95_ms", "p99_ms", "max_ms", "answers", "kb", "labels", "label_p99_ms")
    for row in result["rows"]:
        if "p50_ms" in row:
            cells = [f"{row[key]:,.4g}" if key in row else "" for key in keys]
            table.add_row(f"{row['features']:,}", row["what"], *cells)
    console.print(table)
    for row in result["rows"]:
        if "html_kb" in row:
            parts = ", ".join(f"{kind.upper()} {row[f'{kind}_kb']:.1f} kB" for kind in ("html", "css", "js", "other"))
            console.print(f"{row['features']:,} features, a page's weight: {parts}; {row['requests']} requests")
        if "open_s" in row:
            console.print(
                f"{row['features']:,} features, {row['mb']:.0f} MB, cold: open {row['open_s'] * 1e3:.0f} ms, "
                f"first page after {row['first_page_s'] * 1e3:.0f} ms"
            )
    for line in measure.remarks(result, f"one reader: {result['rounds']} turns over one connection after a warm-up"):
        console.print(line, style="dim", highlight=False)


if __name__ == "__main__":
    main()
