"""The line in front of the model: who waits, who runs, who leaves."""

import threading
from collections.abc import Iterator

import pytest

from gemscope.app import worker as lines
from gemscope.app.worker import Cancelled, Full, Job, Overtime, Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(room=3, seconds=1000)
    yield made
    made.close()


class Held:
    """A job that runs until it is let go, and looks whether it should."""

    def __init__(self, worker: Worker, *, patient: bool = False) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.runs = 0
        self.job = worker.submit(self._work, patient=patient)
        assert self.begun.wait(120)

    def _work(self, job: Job[str]) -> str:
        self.runs += 1
        self.begun.set()
        while not self.go.wait(0.005):
            job.check()
        return "done"


def test_jobs_run_one_after_another_in_the_order_in_which_they_came(worker: Worker) -> None:
    held = Held(worker)
    order: list[int] = []
    jobs = [worker.submit(lambda _, n=n: order.append(n) or n) for n in range(3)]  # type: ignore[misc]
    assert [job.ahead for job in jobs] == [1, 2, 3]
    assert worker.waiting == 3
    assert worker.busy
    held.go.set()
    assert [job.outcome.result(120) for job in jobs] == [0, 1, 2]
    assert order == [0, 1, 2]
    assert held.job.outcome.result(120) == "done"
    assert worker.waiting == 0


def test_a_job_that_waits_knows_how_many_are_before_it_now(worker: Worker) -> None:
    held = Held(worker)
    second = worker.submit(lambda _: "second")
    assert (worker.ahead(held.job), worker.ahead(second)) == (0, 1)
    third = worker.submit(lambda _: "third")
    assert worker.ahead(third) == 2
    second.cancel()
    assert worker.ahead(third) == 1
    held.go.set()
    assert third.outcome.result(120) == "third"
    assert worker.ahead(third) == 0


def test_who_is_patient_lets_the_others_go_first(worker: Worker) -> None:
    held = Held(worker)
    order: list[str] = []
    patient = [worker.submit(lambda _, n=n: order.append(n), patient=True) for n in ("page", "too")]  # type: ignore[misc]
    reader = worker.submit(lambda _: order.append("reader"))
    assert reader.ahead == 1
    assert [worker.ahead(one) for one in (reader, *patient)] == [1, 2, 3]
    held.go.set()
    patient[1].outcome.result(120)
    assert order == ["reader", "page", "too"]


def test_a_patient_job_that_runs_gives_way_at_once_and_begins_anew_with_what_it_has_finished(worker: Worker) -> None:
    order: list[str] = []
    done: dict[str, int] = {}
    begun, go = threading.Event(), threading.Event()

    def page(job: Job[int]) -> int:
        """Two parts, of which the second is long."""
        order.append("page")
        if "first" not in done:
            done["first"] = len(order)
        begun.set()
        while not go.wait(0.005):
            job.check()
        return done["first"]

    patient = worker.submit(page, patient=True)
    assert begun.wait(120)
    readers = [worker.submit(lambda _, n=n: order.append(n)) for n in ("one", "two")]  # type: ignore[misc]
    for reader in readers:
        reader.outcome.result(120)  # though nobody lets the page's job go on
    go.set()
    assert patient.outcome.result(120) == 1
    assert [one for one in order if one != "page"] == ["one", "two"]
    assert (order[0], order[-1]) == ("page", "page")


def test_a_patient_job_gives_way_to_no_other_that_is_patient(worker: Worker) -> None:
    held = Held(worker, patient=True)
    other = worker.submit(lambda _: "other", patient=True)
    assert not other.outcome.done()
    assert worker.ahead(other) == 1
    held.go.set()
    assert (held.job.outcome.result(120), other.outcome.result(120)) == ("done", "other")


def test_whose_reader_leaves_after_it_gave_way_is_never_run_again(worker: Worker) -> None:
    held, reader = Held(worker, patient=True), Held(worker)
    assert worker.ahead(held.job) == 1
    held.job.cancel()
    assert worker.waiting == 0
    with pytest.raises(Cancelled):
        held.job.outcome.result(120)
    reader.go.set()
    assert reader.job.outcome.result(120) == "done"
    assert worker.submit(lambda _: 1).outcome.result(120) == 1
    assert held.runs == 1


def test_closing_ends_what_gave_way_too() -> None:
    worker = Worker(room=3)
    held, _ = Held(worker, patient=True), Held(worker)
    worker.close()
    with pytest.raises(Cancelled):
        held.job.outcome.result(120)


def test_a_job_is_found_in_the_line_by_the_name_that_its_reader_gave_it(worker: Worker) -> None:
    held = Held(worker)
    worker.submit(lambda _: None)
    named = worker.submit(lambda _: None, name="mine")
    assert worker.place("mine") == 2
    assert worker.place("another's") is None
    assert worker.place("") is None
    held.go.set()
    named.outcome.result(120)
    assert worker.place("mine") is None


class Clock:
    """What the line takes for the time: it stands still but for what is let pass."""

    def __init__(self) -> None:
        self.now = 1e6

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(lines, "time", made)
    return made


def test_time_before_it_really_begins_is_not_counted(worker: Worker, clock: Clock) -> None:
    def work(job: Job[str]) -> str:
        clock.now += 0.3  # a model is loaded, for everybody
        job.begin()
        clock.now += 0.1
        job.check()
        return "in time"

    assert worker.submit(work, seconds=0.2).outcome.result(120) == "in time"


def test_what_a_job_tells_is_heard_while_it_runs(worker: Worker) -> None:
    heard: list[tuple[int, str]] = []

    def work(job: Job[str]) -> str:
        for word in ("one", "two"):
            job.tell(word)
        return "three"

    job = worker.submit(work, listen=lambda news: heard.append((threading.get_ident(), news)))
    assert job.outcome.result(120) == "three"
    assert [news for _, news in heard] == ["one", "two"]
    assert {where for where, _ in heard} != {threading.get_ident()}
    assert worker.submit(work).outcome.result(120) == "three"  # whether anybody listens or not


def test_when_the_line_is_full_the_next_is_turned_away(worker: Worker) -> None:
    held = Held(worker)
    waiting = [worker.submit(lambda _: None) for _ in range(3)]
    with pytest.raises(Full, match="3 texts wait"):
        worker.submit(lambda _: None)
    extra = worker.submit(lambda _: "let in", always=True)
    held.go.set()
    assert extra.outcome.result(120) == "let in"
    assert all(job.outcome.done() for job in waiting)
    assert worker.submit(lambda _: "again").outcome.result(120) == "again"


def test_who_leaves_the_line_makes_room_and_is_never_run(worker: Worker) -> None:
    held = Held(worker)
    ran: list[str] = []
    jobs = [worker.submit(lambda _, name=name: ran.append(name)) for name in "abc"]  # type: ignore[misc]
    jobs[1].cancel()
    assert worker.waiting == 2
    late = worker.submit(lambda _: ran.append("d"))
    assert late.ahead == 3
    held.go.set()
    late.outcome.result(120)
    assert ran == ["a", "c", "d"]
    assert jobs[1].outcome.cancelled()


def test_a_running_job_ends_at_its_next_check_when_its_reader_leaves(worker: Worker) -> None:
    held = Held(worker)
    held.job.cancel()
    with pytest.raises(Cancelled):
        held.job.outcome.result(120)
    assert worker.submit(lambda _: 1).outcome.result(120) == 1


def test_a_job_that_takes_too_long_is_ended_and_the_next_one_runs(worker: Worker, clock: Clock) -> None:
    steps = []

    def slow(job: Job[None]) -> None:
        while True:
            clock.now += 0.02
            job.check()
            steps.append(1)

    job = worker.submit(slow, seconds=0.05)
    with pytest.raises(Overtime, match=r"longer than 0\.05 seconds"):
        job.outcome.result(120)
    assert len(steps) == 2
    assert worker.submit(lambda _: 1).outcome.result(120) == 1


def test_time_spent_waiting_is_not_counted(worker: Worker, clock: Clock) -> None:
    held = Held(worker)
    job = worker.submit(lambda job: job.check() or "in time", seconds=0.5)  # type: ignore[func-returns-value]
    clock.now += 0.6
    held.go.set()
    assert job.outcome.result(120) == "in time"


def test_whatever_a_job_raises_reaches_its_reader_and_the_next_one_runs(worker: Worker) -> None:
    def wrong(_: Job[None]) -> None:
        raise SystemExit("no")

    with pytest.raises(SystemExit):
        worker.submit(wrong).outcome.result(120)
    assert worker.submit(lambda _: 1).outcome.result(120) == 1


def test_closing_drops_those_who_wait_ends_the_one_that_runs_and_takes_no_more() -> None:
    worker = Worker(room=3)
    held = Held(worker)
    waiting = worker.submit(lambda _: None)
    worker.close()
    assert waiting.outcome.cancelled()
    with pytest.raises(Cancelled):
        held.job.outcome.result(120)
    with pytest.raises(Full):
        worker.submit(lambda _: None, always=True)
    worker.close()


def test_a_worker_that_is_never_asked_has_no_thread() -> None:
    before = threading.active_count()
    worker = Worker()
    assert threading.active_count() == before
    assert worker.waiting == 0
    worker.close()


def test_many_readers_who_come_and_go_leave_nothing_behind() -> None:
    worker = Worker(room=64)
    done: list[int] = []
    turned_away = []

    def reader(seed: int) -> None:
        for turn in range(25):
            try:
                job = worker.submit(lambda job: job.check() or done.append(1))  # type: ignore[func-returns-value]
            except Full:
                turned_away.append(seed)
                continue
            if (seed + turn) % 3 == 0:
                job.cancel()
            else:
                job.outcome.result(120)

    readers = [threading.Thread(target=reader, args=(seed,)) for seed in range(8)]
    for one in readers:
        one.start()
    for one in readers:
        one.join()
    assert not turned_away
    assert len(done) >= 8 * 25 * 2 // 3 - 8
    assert worker.waiting == 0
    worker.close()
