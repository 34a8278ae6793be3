"""Progress bars with rate, time left and a few words beside them, on stderr and only in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from gemscope.progress import Advance, Progress, silent


class Bars:
    """A `Progress` that can say something beside the bar that was opened last."""

    def __init__(self, progress: Progress, say: Callable[[str], None]) -> None:
        self._progress, self.say = progress, say

    def __call__(self, what: str, total: int | None, unit: str) -> AbstractContextManager[Advance]:
        return self._progress(what, total, unit)


@contextmanager
def bars(drawn: bool = True) -> Iterator[Bars]:
    """Bars that draw, or that do nothing where stderr is no terminal, or where somebody else draws."""
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Drawing
    from rich.text import Text

    from gemscope.pages.numbers import short

    console = Console(stderr=True)
    if not (drawn and console.is_terminal):
        yield Bars(silent, lambda text: None)
        return

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            unit = task.fields["unit"]
            return Text("" if speed is None or not unit else f"{short(speed)} {unit}/s", style="cyan")

    class Done(ProgressColumn):
        def render(self, task: Task) -> Text:
            if not task.fields["unit"]:  # something that cannot say how far it is
                return Text()
            total = "" if task.total is None else f"/{short(task.total)}"
            return Text(f"{short(task.completed)}{total} {task.fields['unit']}", style="green")

    drawing = Drawing(
        TextColumn("{task.description}"),
        BarColumn(),
        Done(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}", markup=False, style="dim"),
        console=console,
        transient=True,
    )

    @contextmanager
    def progress(what: str, total: int | None, unit: str) -> Iterator[Advance]:
        task = drawing.add_task(what, total=total, unit=unit, said="")
        try:
            yield lambda done: drawing.advance(task, done)
        finally:
            drawing.remove_task(task)

    def say(text: str) -> None:
        if drawing.task_ids:
            # At once: a short run may be over before the next time that bars are drawn by themselves.
            drawing.update(drawing.task_ids[-1], said=text, refresh=True)

    with drawing:
        yield Bars(progress, say)
