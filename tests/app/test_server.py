"""The server as a process's guest: its port, its end, and connections that mean harm."""

import contextlib
import re
import time
from pathlib import Path
from typing import Any

import pytest

from gemscope.app import connection
from gemscope.app.server import serve
from gemscope.cli.main import main
from gemscope.errors import InputError
from served import AT, MODEL, SAE, fetched, said, spoken_to, until


def test_serve_answers_in_the_background_until_it_is_closed(folder: Path) -> None:
    with serve(folder, live=False, port=0, block=False) as server:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", server.url)
        answer = fetched(f"{server.url}{AT}/3")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"content-security-policy" in answer
        assert b"server:" not in answer.lower()
        assert server.url in server._repr_html_()
        assert server.running
    assert not server.running
    assert "closed" in repr(server)
    assert server.url not in server._repr_html_()
    with pytest.raises(OSError):
        fetched(server.url)


def test_serve_reads_texts_with_what_it_is_given(folder: Path) -> None:
    with serve(folder, model=MODEL, sae=SAE, port=0, block=False) as server:
        until(lambda: b'"ready"' in fetched(f"{server.url}/health"))
        assert b'"l0":' in fetched(f"{server.url}{AT}/prompt.json?text=the+cat+and+the+sun")


def test_a_long_text_may_stand_in_an_address(folder: Path) -> None:
    with serve(folder, live=False, port=0, block=False) as server:
        answer = fetched(f"{server.url}{AT}/prompt?text={'%F0%9F%98%80' * 9_000}")
        assert answer.startswith(b"HTTP/1.1 200")


def test_a_taken_port_is_one_clear_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(folder, live=False, port=0, block=False) as server:
        port = server.url.rpartition(":")[2]
        assert main(["serve", str(folder), "--port", port, "--no-model"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"port {port}" in said


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"host": "0.0.0.0"}, "give a token"),
        ({"host": ""}, "give a token"),
        ({"host": "192.168.1.5"}, "give a token"),
        ({"host": "example.org"}, "give a token"),
        ({"host": "::"}, "give a token"),
        ({"token": ""}, "the token can be"),
        ({"token": "two\nlines"}, "the token can be"),
        ({"token": "ключ"}, "the token can be"),
        ({"port": 65536}, "port=65536"),
        ({"port": -1}, "port=-1"),
        ({"host": "203.0.113.7", "token": "t"}, "cannot listen on 203.0.113.7"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_listens(
    folder: Path, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InputError, match=re.escape(expected)):
        serve(folder, live=False, block=False, **{"port": 0, **options})


def test_a_server_that_others_can_reach_asks_all_of_them_for_the_token(folder: Path) -> None:
    with serve(folder, live=False, host="0.0.0.0", port=0, token="sesame", block=False) as server:
        assert b" 401 " in fetched(f"{server.url}/")
        assert b" 200 " in fetched(f"{server.url}/", "Authorization: Bearer sesame\r\n")
        assert b" 303 " in fetched(server.address)
        assert "sesame" not in server.url
        assert "sesame" not in repr(server)


@pytest.mark.parametrize("part", [b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
def test_a_request_that_never_arrives_is_hung_up_on(folder: Path, monkeypatch: pytest.MonkeyPatch, part: bytes) -> None:
    with serve(folder, live=False, port=0, block=False) as server:
        port = int(server.url.rpartition(":")[2])
        with monkeypatch.context() as hurried, contextlib.ExitStack() as stack:
            if part:  # behind a request that is answered, which may take its time
                slow = stack.enter_context(spoken_to(port))
                slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert b" 200 " in slow.recv(65536)
            hurried.setattr(connection, "HEAD_SECONDS", 0.3)
            if not part:
                slow = stack.enter_context(spoken_to(port))
            slow.sendall(part)
            slow.settimeout(120)  # of a connection that stays open nothing is heard, and that is an error
            said(slow)
        assert b" 200 " in fetched(f"{server.url}/health")


REFUSED = {
    "another name": (b"POST /api/steer HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 900000\r\n\r\n", b" 421 "),
    "another site": (
        b"POST /api/steer HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\nContent-Length: 900000\r\n\r\n",
        b" 403 ",
    ),
    "too long": (b"POST /api/steer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n", b" 413 "),
    "no such page": (b"POST /a/b/c/d HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n", b" 404 "),
    "no such method": (
        b"POST /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n",
        b" 405 ",
    ),
    "answered without a body": (b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\n", b" 200 "),
}
"""Requests that are answered before all of them is there."""


def test_who_is_answered_and_goes_on_sending_is_hung_up_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LINGER_SECONDS", 0.3, raising=False)
    with serve(folder, live=False, port=0, block=False) as server, contextlib.ExitStack() as stack:
        port = int(server.url.rpartition(":")[2])
        senders = [(stack.enter_context(spoken_to(port)), status) for _, status in REFUSED.values() for _ in range(4)]
        for (one, _), (head, _) in zip(senders, [pair for pair in REFUSED.values() for _ in range(4)], strict=True):
            one.sendall(head)
        left, until_then = [one for one, _ in senders], time.monotonic() + 120
        while left and time.monotonic() < until_then:
            for one in list(left):
                try:
                    one.sendall(b"a")  # a trickle: fast enough never to be silent
                except OSError:
                    left.remove(one)
            time.sleep(0.05)
        assert len(left) == 0
        for one, status in senders:  # all of the answer is there
            answer = said(one)
            length = re.search(rb"content-length: (\d+)", answer)
            assert status in answer.partition(b"\r\n")[0], answer
            assert length
            assert len(answer.partition(b"\r\n\r\n")[2]) == int(length[1])
        until(lambda: not server._server.server_state.connections)
        assert b" 200 " in fetched(f"{server.url}/health")


def test_who_asks_and_never_reads_is_hung_up_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALL_SECONDS", 0.3, raising=False)
    with serve(folder, live=False, port=0, block=False) as server, spoken_to(int(server.url.rpartition(":")[2])) as one:
        page = f"GET {AT} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            one.sendall(page * 1000)
        until(lambda: server._server.server_state.total_requests)
        until(lambda: not server._server.server_state.connections)
        assert b" 200 " in fetched(f"{server.url}/health")


def test_a_body_in_pieces_is_cut_off_by_the_real_server_too(folder: Path) -> None:
    with serve(folder, live=False, port=0, block=False) as server, spoken_to(int(server.url.rpartition(":")[2])) as one:
        one.sendall(
            f"POST {AT}/3/labels HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        piece = b"%x\r\n" % 100_000 + b"a" * 100_000 + b"\r\n"
        with contextlib.suppress(OSError):
            for _ in range(80):
                one.sendall(piece)
        with contextlib.suppress(OSError):
            assert b" 413 " in one.recv(65536)
        assert b" 200 " in fetched(f"{server.url}/health")


@pytest.mark.parametrize(
    "head",
    [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\nX: \x00\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_and_the_server_goes_on(folder: Path, head: str) -> None:
    with serve(folder, live=False, port=0, block=False) as server:
        with spoken_to(int(server.url.rpartition(":")[2])) as one:
            one.sendall(head.encode("latin-1"))
            one.settimeout(120)
            assert re.match(rb"HTTP/1\.1 (400|421) ", one.recv(65536))
        assert b" 200 " in fetched(f"{server.url}/health")


def test_a_path_outside_is_404_on_the_real_server(folder: Path) -> None:
    with serve(folder, live=False, port=0, block=False) as server:
        for path in ("/static/../server.py", "/static/..%2f..%2fpages/render.py", "/../../etc/passwd", "//etc/passwd"):
            answer = fetched(f"{server.url}{path}")
            assert b" 404 " in answer.partition(b"\r\n")[0] + b" "
