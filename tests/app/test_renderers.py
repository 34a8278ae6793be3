"""Pages that processes beside the server's make: the same as its own, whatever becomes of them."""

import asyncio
import gc
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from gemscope.app import feature
from gemscope.app.renderers import Renderers, Wanted
from gemscope.app.server import serve
from gemscope.app.shelf import Shelf, shelf
from gemscope.atlas.reader import Atlas
from gemscope.errors import NotFound
from served import AT, SAE, fetched, planted, until

ADDRESS = tuple(AT.strip("/").split("/"))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Shelf]:
    with Atlas(planted(tmp_path / "atlas")) as atlas:
        yield shelf([atlas], off="no model")


def wanted(index: int, **query: str) -> Wanted:
    return Wanted(*ADDRESS, index, query, live=False, why="no model")


def with_another(served: Shelf, use: Callable[[Renderers], Awaitable[None]]) -> None:
    """One process beside this one, which helps with each page: a model is always busy here."""

    async def run() -> None:
        folders = [source.atlas.folder for source in served]
        renderers = Renderers(partial(feature.made, served), folders, busy=lambda: True, processes=1)
        try:
            await use(renderers)
        finally:
            await renderers.close()

    asyncio.run(run())


async def made_elsewhere(renderers: Renderers, one: Wanted) -> str:
    """Asked for until the other process has made it: bytes are what comes from there."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        for html in await asyncio.gather(*(renderers.page(one) for _ in range(8))):
            if isinstance(html, bytes):
                return html.decode()
    raise AssertionError("no page came from the other process")


def test_pages_from_elsewhere_are_the_server_s_own(served: Shelf) -> None:
    asked = [wanted(index) for index in range(0, SAE.d_sae, 5)] + [wanted(3, embed="true", embedplots="false")]

    async def use(renderers: Renderers) -> None:
        for one in asked:
            assert await made_elsewhere(renderers, one) == feature.made(served, one)

    with_another(served, use)


def test_a_label_is_on_the_next_page_wherever_that_is_made(served: Shelf) -> None:
    (source,) = served

    async def use(renderers: Renderers) -> None:
        await made_elsewhere(renderers, wanted(3))
        source.atlas.explain(3, "words of a writer", author="somebody")
        assert "words of a writer" in await made_elsewhere(renderers, wanted(3))

    with_another(served, use)


def test_what_no_page_can_be_made_of_is_told_by_the_server_itself(served: Shelf) -> None:
    async def use(renderers: Renderers) -> None:
        await made_elsewhere(renderers, wanted(3))
        for failed in await asyncio.gather(*(renderers.page(wanted(10**6)) for _ in range(8)), return_exceptions=True):
            assert isinstance(failed, NotFound)
        assert await made_elsewhere(renderers, wanted(4)) == feature.made(served, wanted(4))

    with_another(served, use)


def test_readers_do_not_notice_that_another_process_dies(served: Shelf) -> None:
    async def use(renderers: Renderers) -> None:
        await made_elsewhere(renderers, wanted(3))
        (pid,) = renderers.pids
        os.kill(pid, signal.SIGINT)  # ctrl-c reaches it too, and is the server's alone
        await made_elsewhere(renderers, wanted(4))
        waiting = [asyncio.ensure_future(renderers.page(wanted(index))) for index in range(SAE.d_sae)]
        os.kill(pid, signal.SIGKILL)
        for index, html in enumerate(await asyncio.gather(*waiting)):
            text = html.decode() if isinstance(html, bytes) else html
            assert text == feature.made(served, wanted(index))
        assert isinstance(await renderers.page(wanted(5)), str)

    with_another(served, use)


def test_one_reader_starts_no_process(served: Shelf) -> None:
    async def run() -> None:
        folders = [source.atlas.folder for source in served]
        renderers = Renderers(partial(feature.made, served), folders, busy=lambda: False, processes=3)
        for index in range(5):
            assert await renderers.page(wanted(index)) == feature.made(served, wanted(index))
        assert renderers.pids == []
        await renderers.close()

    asyncio.run(run())


def test_the_processes_end_with_the_server(folder: Path) -> None:
    with serve(folder, live=False, port=0, block=False) as server:
        server.app.state.renderers._processes = 1

        def crowd() -> list[int]:
            with ThreadPoolExecutor(8) as readers:
                answers = [*readers.map(fetched, [f"{server.url}{AT}/{index}" for index in range(8)])]
            assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
            return server.app.state.renderers.pids

        until(lambda: bool(crowd()))
        (pid,) = crowd()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_where_no_process_can_be_started_the_server_makes_all_pages(
    served: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def refused(*command: str, **how: object) -> None:
        asked.append(command)
        raise BlockingIOError(11, "no more processes")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refused)
    failed: list[object] = []

    async def use(renderers: Renderers) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
        for index, html in enumerate(await asyncio.gather(*(renderers.page(wanted(index)) for index in range(8)))):
            assert html == feature.made(served, wanted(index))
        await asyncio.sleep(0)
        renderers._hands = [hand for hand in renderers._hands if not hand.done()]  # what it raised is told when it goes
        gc.collect()

    with_another(served, use)
    assert len(asked) == 1
    assert failed == []
