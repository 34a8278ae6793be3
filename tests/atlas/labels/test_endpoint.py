"""A server that answers as it should is understood; each way to go wrong has its name, and none becomes an answer."""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterable
from concurrent import futures
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from answering import Question, Said, answering, completion, good, nobody, plain
from gemscope.atlas.labels import endpoint as module
from gemscope.atlas.labels.endpoint import TRIES, Endpoint, Pace
from gemscope.atlas.labels.questions import Failure, Reply
from gemscope.errors import AccessError, InputError

KEY = "sk-nobody-may-see-this"
LABEL = json.loads(good("of").body)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BACKOFF", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def ask(url: str, *questions: str, **options: object) -> list[Reply | Failure]:
    asked = Endpoint(url, "m", **options).answers(enumerate(questions or ("what?",)))  # type: ignore[arg-type]
    return [found for _, found in sorted(asked, key=lambda pair: pair[0])]


def test_a_good_answer_is_the_models_text() -> None:
    with answering(lambda asked: completion(f"to {asked.text}")) as server:
        assert ask(server.url, "a", "b", "c") == [Reply(f"to {text}", (100, 10)) for text in "abc"]
        assert ask(f"{server.url}/chat/completions") == ask(f"{server.url}/") == [Reply("to what?", (100, 10))]
    assert {one.path for one in server.asked} == {"/v1/chat/completions"}
    assert server.asked[0].body == {
        "model": "m", "temperature": 0, "max_tokens": 400,
        "messages": [{"role": "user", "content": server.asked[0].text}],
    }  # fmt: skip
    assert not any("Authorization" in one.headers for one in server.asked)
    assert {one.headers["Connection"] for one in server.asked} == {"close"}


def once(bad: Said) -> Callable[[Question], Said]:
    return lambda asked: good("of") if asked.before else bad


PASSING = {
    "429": plain({"error": {"message": "slow down"}}, 429),
    "429, wait": plain({"error": "slow down"}, 429, Retry_After="0.01"),
    "429, wait until": plain({}, 429, Retry_After=format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)),
    "429, wait for what": plain({}, 429, Retry_After="a while"),
    "500": Said(b"<html>oops", 500),
    "502": Said(b"", 502),
    "503": plain({"detail": "loading"}, 503),
    "504": Said(b"\xff\xfe", 504),
    "cut": Said(good("of").body, cut=20),
    "cut before a word": Said(good("of").body, cut=0),
    "an error of a server behind": plain({"error": {"code": 502, "message": "behind me"}}),
}


@pytest.mark.parametrize("bad", PASSING)
def test_what_may_pass_is_tried_again(bad: str) -> None:
    with answering(once(PASSING[bad])) as server:
        assert ask(server.url) == [Reply(json.dumps({"text": "of", "rule": ""}), (100, 10))]
        assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("429", r"status 429 \(slow down\), after 8 tries"),
        ("500", r"status 500, after 8 tries"),
        ("503", r"status 503 \(loading\)"),
        ("cut", r"the connection was cut \(\d+ bytes of the answer are missing\)"),
        ("an error of a server behind", r"an error in an answer with status 200 \(behind me 502\), after 8 tries"),
    ],
)
def test_what_does_not_pass_is_a_failure_with_its_reason(
    bad: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(lambda asked: PASSING[bad]) as server:
        (found,) = ask(server.url)
        assert isinstance(found, Failure)
        assert not found.reached
        assert len(server.asked) == TRIES
    assert_that(found.reason, reason)


def assert_that(reason: str, pattern: str) -> None:
    assert re.match(pattern, reason), reason


PATIENCE = (0.4, 2.0, 8.0, 60.0)
"""Seconds, one after the other where the machine itself stood still for so long."""


@pytest.mark.parametrize("bad", [Said(hangs=True), Said(b"late", trickles=True)])
def test_a_server_that_hangs_is_left(bad: Said) -> None:
    for deadline in PATIENCE:
        with answering(lambda asked: bad) as server:
            (found,) = ask(server.url, deadline=deadline)
        if len(server.asked) > 1:
            break
    assert isinstance(found, Failure)
    assert_that(found.reason, r"no answer within \d+\.\d+ s, after \d tries")
    assert 1 < len(server.asked) < TRIES
    for deadline in PATIENCE:
        with answering(once(bad)) as server:
            answers = ask(server.url, deadline=deadline)
        if isinstance(answers[0], Reply):
            break
    assert answers == [Reply(json.dumps({"text": "of", "rule": ""}), (100, 10))]


def test_nobody_there_is_said() -> None:
    (found,) = ask(nobody())
    assert isinstance(found, Failure)
    assert_that(found.reason, r"nobody listens at 127.0.0.1:\d+, after 8 tries")
    with pytest.raises(AccessError, match=r"no server is named gemscope\.invalid"):
        ask("http://gemscope.invalid/v1")


def test_where_one_is_asked_to_wait_all_do(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    monkeypatch.setattr(Pace, "hold", lambda pace, seconds: held.append(seconds))
    with answering(once(PASSING["429, wait"])) as server:
        ask(server.url)
    with answering(once(PASSING["503"])) as server:
        ask(server.url)
    assert held == [0.01]


def test_a_wait_beyond_the_deadline_is_not_waited_for() -> None:
    with answering(lambda asked: plain({}, 429, Retry_After="3600")) as server:
        (found,) = ask(server.url, deadline=600)
        assert found == Failure("status 429, asked to wait 3600 s", reached=False)
        assert len(server.asked) == 1


NONE = {
    "truncated JSON": (Said(good("of").body[:-9]), "the answer is not JSON: "),
    "no JSON": (Said(b"service is fine"), "the answer is not JSON: "),
    "nothing": (Said(b""), "the answer is not JSON: "),
    "a list": (Said(b"[]"), "the answer: it is an empty list, expected an object"),
    "HTML": (Said(b"\n<!doctype html><p>Welcome"), "HTML in place of JSON"),
    "an error": (plain({"error": {"message": "model crashed"}}), r"an error in an answer with status 200 \(model crashed\)"),
    "an error in words": (plain({"error": "crashed"}), r"an error in an answer with status 200 \(crashed\)"),
    "no choices": (plain({"choices": []}), "an answer without choices"),
    "choices null": (plain({"choices": None}), "an answer without choices"),
    "odd choices": (plain({"choices": [7]}), "an answer without choices"),
    "no message": (plain({"choices": [{}]}), "an answer without content"),
    "null": (completion(None), "an answer without content"),
    "blank": (completion(" \n"), "an answer without content"),
    "parts": (completion([{"type": "text"}]), "an answer without content"),
    "cut by length": (completion('{"text": "of', finish_reason="length"), "an answer that was cut after 400 tokens"),
    "filtered": (completion("", finish_reason="content_filter"), "the model refused to answer"),
    "refused": (completion(None, message={"refusal": "I cannot"}), "the model refused to answer"),
    "a book": (Said(b'{"a": "' + b"x" * (4 << 20) + b'"}'), "an answer of more than 4 MB"),
    "one without end": (Said(b"x" * (5 << 20), cut=(4 << 20) + 1, hangs=True), "an answer of more than 4 MB"),
}  # fmt: skip


@pytest.mark.parametrize("bad", NONE)
def test_what_is_no_answer_is_a_failure_at_once(bad: str) -> None:
    said, reason = NONE[bad]
    with answering(lambda asked: said) as server:
        (found,) = ask(server.url)
        assert len(server.asked) == 1
    assert isinstance(found, Failure)
    assert found.reached
    assert_that(found.reason, reason)
    assert len(found.said) <= 500


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (plain({"error": {"message": "bad key"}}, 401), r"answers with status 401 \(bad key\): it wants a key, put one into OPENAI_API_KEY"),
        (Said(b"<html>no", 403), r"answers with status 403: it wants a key"),
        (plain({"error": "no such model"}, 404), r"status 404 \(no such model\): no model 'm' there, or no /v1/chat"),
        (plain({"error": {"message": "context"}}, 400), r"status 400 \(context\): it does not take our question"),
        (plain({"detail": "x"}, 422), r"status 422 \(x\)"),
        (Said(b"", 301, {"Location": "https://elsewhere"}), r"status 301: it sends us elsewhere"),
        (plain({"error": {"message": "pay", "code": "insufficient_quota"}}, 429), r"\(pay insufficient_quota\): the account is used up"),
    ],
)  # fmt: skip
def test_a_server_that_refuses_ends_it_at_once_in_one_line(said: Said, line: str) -> None:
    with answering(lambda asked: said) as server:
        with pytest.raises(AccessError, match=line) as raised:
            ask(server.url, *map(str, range(50)))
        assert len(server.asked) <= 5
    assert "\n" not in str(raised.value)


def test_what_came_beside_a_refusal_is_given_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_of_them(running: Iterable[futures.Future[object]], return_when: str) -> SimpleNamespace:
        return SimpleNamespace(done=sorted(futures.wait(running).done, key=lambda one: one.exception() is None))

    monkeypatch.setattr(module, "wait", all_of_them)
    with answering(lambda asked: plain({}, 401) if asked.text == "b" else good("of")) as server:
        found = []
        with pytest.raises(AccessError):
            found.extend(Endpoint(server.url, "m", at_once=5).answers(enumerate("abcde")))
    assert {number for number, _ in found} == {0, 2, 3, 4}


def test_a_model_that_knows_the_limit_by_another_name_is_asked_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def script(asked: Question) -> Said:
        if "max_tokens" in asked.body:
            return plain({"error": {"message": "Unsupported parameter: use 'max_completion_tokens' instead."}}, 400)
        if "temperature" in asked.body:
            return plain({"error": {"message": "Unsupported value: 'temperature' does not support 0."}}, 400)
        return good("of")

    turns = []
    monkeypatch.setattr(Pace, "turn", lambda pace, wait: turns.append(1))
    with answering(script) as server:
        assert all(isinstance(one, Reply) for one in ask(server.url, "a", "b", "c", at_once=1))
        assert len(server.asked) == len(turns) == 5
        assert set(server.asked[-1].body) == {"model", "messages", "max_completion_tokens"}


def test_the_key_goes_to_the_server_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    with answering(once(Said(b"<html>" + KEY.encode(), 500))) as server:
        assert isinstance(ask(server.url)[0], Reply)
        assert {one.headers["Authorization"] for one in server.asked} == {f"Bearer {KEY}"}
        assert KEY not in repr(Endpoint(server.url, "m"))
        ask(server.url, key_env=None)
        assert "Authorization" not in server.asked[-1].headers
    for repeating in (
        Said(KEY.encode()),
        plain({"error": {"message": f"bad {KEY}"}}),
        plain({"error": {"message": f"bad {KEY}"}}, 503),
    ):
        with answering(lambda asked, said=repeating: said) as server:
            assert KEY not in repr(ask(server.url))
    with answering(lambda asked: plain({"error": {"message": f"Incorrect API key: {KEY}"}}, 401)) as server:
        with pytest.raises(
            AccessError, match=r"\(Incorrect API key: …\): the key in OPENAI_API_KEY is refused"
        ) as raised:
            ask(server.url)
        assert KEY not in repr(raised.value) + repr(raised.value.__context__) + repr(raised.value.__cause__)
    monkeypatch.setenv("MINE", f"{KEY}\n{KEY}")
    with pytest.raises(InputError, match="MINE holds what can be no key") as wrong:
        Endpoint("http://localhost/v1", "m", key_env="MINE")
    assert KEY not in str(wrong.value)
    out = capfd.readouterr()
    assert KEY not in out.out + out.err


def test_a_key_does_not_go_over_the_network_unencrypted_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    Endpoint("http://gpu.example/v1", "m")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(InputError, match=r"OPENAI_API_KEY would go to gpu.example unencrypted.*--plain-http"):
        Endpoint("http://gpu.example/v1", "m")
    for fine in ("http://localhost:1/v1", "http://127.0.0.7/v1", "http://[::1]:1/v1", "https://gpu.example/v1"):
        Endpoint(fine, "m")
    Endpoint("http://gpu.example/v1", "m", plain_http=True)
    Endpoint("http://gpu.example/v1", "m", key_env="")
    for foul in (
        "http://localhost.gpu.example/v1",
        "http://127.0.0.1.gpu.example/v1",
        "http://a.localhost.gpu.example",
    ):
        with pytest.raises(InputError, match="unencrypted"):
            Endpoint(foul, "m")
    with pytest.raises(InputError, match="there is no key in MY_KEY"):
        Endpoint("http://localhost/v1", "m", key_env="MY_KEY")


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000/v1", "ftp://localhost", "http://", "http://a b/", "http://a:99999/", "http://a\r\nX: y/", "http://" + "a" * 70],
)  # fmt: skip
def test_what_is_no_address_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(InputError, match="is no address of a server: expected such as http"):
        Endpoint(url, "m")


def test_a_secret_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError, match="key in the environment alone") as raised:
        Endpoint(f"https://me:{KEY}@host/v1", "m")
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("option", [{"at_once": 0}, {"rate": -1.0}, {"deadline": float("nan")}, {"most": 0}])
def test_numbers_that_cannot_be_meant_are_refused(option: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(option))}=.*above 0"):
        Endpoint("http://localhost/v1", "m", **option)  # type: ignore[arg-type]


def test_turns_come_at_the_rate_whoever_takes_them() -> None:
    now, taken = 0.0, []

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    pace = Pace(120, lambda: now)
    for _ in range(5):
        pace.turn(wait)
        taken.append(now)
    assert taken == [0, 0.5, 1, 1.5, 2]
    now = 10
    pace.turn(wait)
    assert now == 10  # what was not taken is not saved up
    pace.turn(wait)
    assert now == 10.5
    pace.hold(7)
    pace.turn(wait)
    assert now == 17.5
    free = Pace(None, lambda: now)
    for _ in range(3):
        free.turn(lambda seconds: pytest.fail(f"waits {seconds}"))


def test_every_try_takes_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = []
    turn = Pace.turn
    monkeypatch.setattr(Pace, "turn", lambda pace, wait: (turns.append(1), turn(pace, wait)))
    with answering(once(Said(b"", 500))) as server:
        ask(server.url, "a", "b", "c", rate=1e6)
        assert len(turns) == len(server.asked) == 6


def test_as_many_are_under_way_as_may_be() -> None:
    four, most, now, lock = threading.Barrier(4), 0, 0, threading.Lock()

    def script(asked: Question) -> Said:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        four.wait()
        with lock:
            now -= 1
        return good("of")

    with answering(script) as server:
        assert len(ask(server.url, *"abcdefgh", at_once=4)) == 8
    assert most == 4


def test_who_stops_listening_waits_for_nobody() -> None:
    came = threading.Event()

    def script(asked: Question) -> Said:
        came.set()
        return good("of") if asked.text == "a" else Said(hangs=True)

    with answering(script) as server:
        with closing(Endpoint(server.url, "m", at_once=3, deadline=1e6).answers(enumerate("abcd"))) as found:
            assert isinstance(next(found)[1], Reply)
    assert not [one for one in threading.enumerate() if one.name.startswith("ask")]


# --- the same over TLS ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    openssl, path = shutil.which("openssl"), tmp_path_factory.mktemp("certificate") / "both.pem"
    if openssl is None:
        pytest.skip("openssl, which makes a certificate, is not installed")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "-", "-out", "-", "-days", "2", *names]
    path.write_bytes(subprocess.run(made, check=True, capture_output=True).stdout)
    return path


@pytest.fixture
def tls(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_over_tls_it_is_the_same(tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with answering(once(PASSING["cut"]), tls) as server:
        assert all(isinstance(one, Reply) for one in ask(server.url, "a", "b"))
        assert {one.headers["Authorization"] for one in server.asked} == {f"Bearer {KEY}"}
    for bad in (Said(hangs=True), Said(b"late", trickles=True)):
        with answering(lambda asked, said=bad: said, tls) as server:
            (found,) = ask(server.url, deadline=0.5)
            assert isinstance(found, Failure)
            assert_that(found.reason, r"no answer within")
    came = threading.Event()

    def script(asked: Question) -> Said:
        return good("of") if asked.text == "a" else (came.set(), Said(hangs=True))[1]

    with answering(script, tls) as server:
        with closing(Endpoint(server.url, "m", at_once=2, deadline=1e6).answers(enumerate("ab"))) as answers:
            assert isinstance(next(answers)[1], Reply)
            came.wait()


def test_a_server_whose_certificate_nobody_vouches_for_is_told_nothing(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with answering(lambda asked: good("of"), tls) as server:
        with pytest.raises(AccessError, match=r"shows no certificate to be trusted: self.signed"):
            ask(server.url)
        assert not server.asked
