"""Would the tests notice? Changes one operator, number or condition of a module at a time and runs the tests against it.

    make mutants MODULES="features/tally.py training/fold.py" TESTS="tests/features tests/training"

What can be changed comes from cosmic-ray; places are drawn at random by a seed, one change for each. A process that has
torch and the tests loaded forks for every mutant, replaces the code in memory, and runs the tests that reach the changed
line, quickest first, until one fails: a second or two instead of ten. Nothing is written into the tree. One line of JSON
for each mutant is appended to the file given with `-o`; `--again` tries those anew that survived by such a file, `--lines`
all that can be changed in the lines with a text.

Changes in annotations, in what is raised and in words are left out: they change no number.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import json
import os
import random
import resource
import signal
import site
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src" / "gemscope"
MEMORY, FILES = 20 << 30, 1 << 30
"""Bounds, in bytes, on the addresses of a process and on a file: a mutant may ask for anything."""


NOWHERE = "in no function that is loaded"

Place = tuple[int, int]


@dataclass(frozen=True)
class Mutant:
    """One changed place. `source` is the whole module."""

    module: str
    line: int
    operator: str
    before: str
    after: str
    source: str
    inside: bool
    """Whether a function's body was changed, which can be replaced where it lies; else the module is loaded anew."""


# --- what can be changed ---------------------------------------------------------------------------------------------


class Changes:
    """All that cosmic-ray would change in a module, by place (line, column)."""

    def __init__(self, module: str) -> None:
        from cosmic_ray import plugins
        from cosmic_ray.ast import ast_nodes, get_ast

        self.module = module
        self.source = (SOURCES / module).read_text(encoding="utf-8")
        self.lines = self.source.splitlines()
        tree = ast.parse(self.source)
        self._bodies, silent = _bodies(tree), _silent(tree)
        self.operators = {name: plugins.get_operator(name)() for name in plugins.operator_names() if _sensible(name)}
        self.places: dict[Place, list[tuple[str, int]]] = {}
        """By place, operators and which occurrence of what they change it is."""
        nodes = list(ast_nodes(get_ast(self.source)))
        for name, operator in self.operators.items():
            found = (start for node in nodes for start, _ in operator.mutation_positions(node))
            for occurrence, place in enumerate(found):
                star = self.lines[place[0] - 1][place[1] :].startswith("*,")  # between parameters: no product
                if not star and not any(start <= place < stop for start, stop in silent):
                    self.places.setdefault(place, []).append((name, occurrence))

    def mutant(self, place: Place, name: str, occurrence: int) -> Mutant | None:
        """None where nothing is changed, or into what is no Python."""
        from cosmic_ray.mutating import mutate_code

        try:
            source = mutate_code(self.source, self.operators[name], occurrence)
            if source is None or ast.dump(ast.parse(source)) == ast.dump(ast.parse(self.source)):
                return None
        except (SyntaxError, AttributeError):  # cosmic-ray looks for the value of some nodes that have none
            return None
        pairs = zip(self.lines, source.splitlines(), strict=True)
        line, before, after = next((n, one, other) for n, (one, other) in enumerate(pairs, 1) if one != other)
        inside = any(start <= place < stop for start, stop in self._bodies)
        return Mutant(self.module, line, name.split("/")[1], before.strip(), after.strip(), source, inside)

    def every(self) -> Iterator[Mutant]:
        """All mutants, in the order of the file."""
        made = (self.mutant(place, *option) for place in sorted(self.places) for option in self.places[place])
        return (mutant for mutant in made if mutant is not None)

    def drawn(self, count: int, seed: int) -> Iterator[Mutant]:
        """`count` mutants, each at another place; few of those for which the module is loaded anew."""
        anew = count // 16
        dice = random.Random(f"{seed} {self.module}")
        places = sorted(self.places)
        for place in dice.sample(places, len(places)):
            options = self.places[place]
            made = (self.mutant(place, *option) for option in dice.sample(options, len(options)))
            mutant = next((one for one in made if one is not None), None)
            if count and mutant is not None and (mutant.inside or anew):
                yield mutant
                count -= 1
                anew -= not mutant.inside


def _sensible(name: str) -> bool:
    """Leaves out what only ever ends in a TypeError, such as `<<` for `+` of floats, and what needs more than a place."""
    kind, *pair = name.split("/")[1].split("_")
    if kind in ("VariableReplacer", "VariableInserter", "RemoveDecorator"):
        return False
    if kind not in ("ReplaceBinaryOperator", "ReplaceComparisonOperator"):
        return True
    alike = ({"Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"}, {"RShift", "LShift", "BitOr", "BitAnd", "BitXor"},
             {"Eq", "NotEq", "Lt", "LtE", "Gt", "GtE"}, {"Is", "IsNot"})  # fmt: skip
    return any(set(pair) <= these for these in alike)


def outcomes(path: Path) -> dict[tuple[str, ...], str]:
    """The last word of a file of results on each mutant, by its texts: lines may have moved since."""
    last: dict[tuple[str, ...], str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        told = json.loads(line)
        last[told["module"], told["operator"], told["before"], told["after"]] = told["outcome"]
    return last


def table(path: Path) -> str:
    """By module: mutants, and how many of them the tests noticed."""
    found: dict[str, list[bool]] = {}
    for (module, *_), outcome in outcomes(path).items():
        found.setdefault(module, []).append(outcome == "killed")
    rows = [(module, len(killed), sum(killed)) for module, killed in sorted(found.items())]
    rows.append(("together", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    return "\n".join(f"{module:40} {count:5} mutants {killed:5} noticed" for module, count, killed in rows)


def _span(nodes: list[Any]) -> tuple[Place, Place]:
    first, last = nodes[0], nodes[-1]
    return (first.lineno, first.col_offset), (last.end_lineno, last.end_col_offset)


def _bodies(tree: ast.AST) -> list[tuple[Place, Place]]:
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return [_span(node.body) for node in functions]


def _silent(tree: ast.AST) -> list[tuple[Place, Place]]:
    """Where a change would not run, or change words only."""
    found: list[list[Any]] = []
    for node in ast.walk(tree):
        for name in ("annotation", "returns", "exc"):
            part = getattr(node, name, None)
            if isinstance(part, ast.AST):
                found.append([part])
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            found.append([node])
    return [_span(nodes) for nodes in found]


# --- in memory -------------------------------------------------------------------------------------------------------


def _codes(code: CodeType) -> Iterator[tuple[tuple[str, int], CodeType]]:
    yield (code.co_qualname, code.co_firstlineno), code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def replace_functions(mutant: Mutant) -> int:
    """Every function object of the module runs the mutant's code from now on; how many there are that it changes."""
    path = str(SOURCES / mutant.module)
    name = "gemscope." + mutant.module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    loader: Any = sys.modules[name].__loader__
    mutated: dict[tuple[str, int], list[CodeType]] = {}
    for key, code in _codes(loader.source_to_code(mutant.source.encode(), path)):
        mutated.setdefault(key, []).append(code)
    original: dict[tuple[str, int], list[CodeType]] = {}
    for key, code in _codes(loader.source_to_code((SOURCES / mutant.module).read_bytes(), path)):
        original.setdefault(key, []).append(code)
    changed = 0
    gc.unfreeze()  # what is frozen is not told of: the tests freeze all that they import
    for function in gc.get_objects():
        if type(function) is FunctionType and function.__code__.co_filename == path:
            key = (function.__code__.co_qualname, function.__code__.co_firstlineno)
            if function.__code__ not in original.get(key, []):  # the file is no longer what was loaded
                continue
            code = mutated[key][original[key].index(function.__code__)]
            changed += function.__code__ != code
            function.__code__ = code
    return changed


def replace_module(mutant: Mutant) -> None:
    """The module, once imported, is the mutant."""
    from importlib.machinery import SourceFileLoader

    path, real = str(SOURCES / mutant.module), SourceFileLoader.get_code

    def code_of(loader: Any, name: str) -> Any:
        if loader.path == path:
            return loader.source_to_code(mutant.source.encode(), path)
        return real(loader, name)

    SourceFileLoader.get_code = code_of  # type: ignore[assignment,method-assign]


# --- tests -----------------------------------------------------------------------------------------------------------


class Forks:
    """A pytest plugin: once all tests are collected, each mutant is tried in a fork."""

    def __init__(self, modules: list[str], options: argparse.Namespace, told: Callable[..., None]) -> None:
        self.modules, self.options, self.told = modules, options, told
        self.failed = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_internalerror(self, excrepr: Any) -> None:
        print(excrepr, file=sys.stderr)

    def pytest_runtestloop(self, session: Any) -> bool:
        items = _few_of_each(session.items, self.options.params)
        reached = _child(lambda: self.baseline(items), self.options.baseline * 6)
        if not isinstance(reached, dict):
            raise SystemExit(f"the tests do not pass without a mutant: {reached}")
        by_id = {item.nodeid: item for item in items}
        for module in self.modules:
            lines = reached["lines"].get(module, {})
            for mutant in self.options.mutants(module):
                ids = lines.get(str(mutant.line)) or lines.get("0", []) if mutant.inside else lines.get("0", [])
                if mutant.inside and str(mutant.line) not in lines:
                    ids = _nearest(lines, mutant.line)
                ids = _within(ids, reached["seconds"], self.options.budget)
                cost = sum(reached["seconds"][one] for one in ids)
                if not ids:
                    self.told(mutant, "not reached", "", 0, 0.0)
                    continue
                began = time.monotonic()
                if mutant.inside:
                    outcome = _child(lambda m=mutant, i=ids: self.tried(m, [by_id[one] for one in i]), 5 + 4 * cost)
                    self.told(mutant, *_verdict(outcome), len(ids), time.monotonic() - began)
                else:
                    self.told(mutant, "later", ids, len(ids), 5 + 4 * cost)
        os._exit(0)

    def baseline(self, items: list[Any]) -> dict[str, Any]:
        """Which tests pass, what they cost, and which lines of the modules each reaches ("0": any)."""
        from coverage import Coverage

        paths = {module: str(SOURCES / module) for module in self.modules}
        coverage = Coverage(data_file=None, include=list(paths.values()), config_file=False)
        coverage.set_option("run:disable_warnings", ["no-data-collected", "module-not-measured"])
        coverage.start()
        seconds: dict[str, float] = {}
        spent = 0.0
        for item in items:
            if spent > self.options.baseline:
                break
            began, self.failed = time.process_time(), ""
            coverage.switch_context(item.nodeid)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            took = time.process_time() - began
            spent += took
            if not self.failed:
                seconds[item.nodeid] = took
            else:
                print("fails without a mutant:", self.failed, file=sys.stderr)
        coverage.stop()
        data = coverage.get_data()
        lines: dict[str, dict[str, list[str]]] = {}
        for module, path in paths.items():
            by_line = {
                str(line): [one for one in contexts if one in seconds]
                for line, contexts in data.contexts_by_lineno(path).items()
            }
            lines[module] = by_line | {"0": sorted({one for ids in by_line.values() for one in ids})}
        return {"seconds": seconds, "lines": lines}

    def tried(self, mutant: Mutant, items: list[Any]) -> str:
        """The test that failed, or nothing."""
        if not replace_functions(mutant):
            return NOWHERE
        for item in items:
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            if self.failed:
                break
        return self.failed


class Failed:
    """A pytest plugin that remembers the first test that failed."""

    failed = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid or "loading"


def _few_of_each(items: list[Any], most: int) -> list[Any]:
    """Of a test with many parameters, some: the first, the last, and those between at equal steps."""
    by_name: dict[str, list[Any]] = {}
    for item in items:
        by_name.setdefault(item.nodeid.split("[")[0], []).append(item)
    kept = set()
    for each in by_name.values():
        count = min(most, len(each))
        kept |= {each[round(i * (len(each) - 1) / max(1, count - 1))].nodeid for i in range(count)}
    return [item for item in items if item.nodeid in kept]


def _nearest(lines: dict[str, list[str]], line: int) -> list[str]:
    """Of a line within a statement, whose first line was counted: the tests of the nearest line above, within reason."""
    for above in range(line, max(0, line - 12), -1):
        if lines.get(str(above)):
            return lines[str(above)]
    return []


def _within(ids: list[str], seconds: dict[str, float], budget: float) -> list[str]:
    """Quickest first, as many as fit the budget; one at least."""
    chosen: list[str] = []
    spent = 0.0
    for one in sorted(ids, key=lambda one: seconds[one]):
        if chosen and spent + seconds[one] > budget:
            break
        chosen.append(one)
        spent += seconds[one]
    return chosen


def _verdict(outcome: Any) -> tuple[str, str]:
    if outcome in ("", NOWHERE):  # in code that nobody has loaded, or in a function made anew by each call
        return "survived", outcome
    if isinstance(outcome, int):
        return "killed", f"signal or exit {outcome}"
    return "killed", str(outcome)


def _child(work: Callable[[], Any], seconds: float) -> Any:
    """What `work` returns in a fork; an exit code where it ends without."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer"
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_FSIZE, (FILES, FILES))
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 5))
            os.environ["TMPDIR"] = tempfile.tempdir = folder
            code = 1
            try:
                answer.write_text(json.dumps(work()), encoding="utf-8")
                code = 0
            except BaseException as error:
                import traceback

                traceback.print_exc()
                code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
            finally:
                os._exit(code)
        deadline = time.monotonic() + 15 * seconds
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() > deadline:
                os.killpg(child, signal.SIGKILL)
                status = os.waitpid(child, 0)[1]
                break
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # servers that it may have left
        if status == 0:
            return json.loads(answer.read_text(encoding="utf-8"))
        return status


# --- the run ---------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="+", help="files below src/gemscope")
    parser.add_argument("--tests", nargs="+", required=True, help="files or folders of tests")
    parser.add_argument("-k", help="as pytest's")
    parser.add_argument("--count", type=int, default=20, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--params", type=int, default=3, help="of a test with many parameters, how many are run")
    parser.add_argument("--baseline", type=float, default=90.0, help="CPU seconds that all tests together may take")
    parser.add_argument("--budget", type=float, default=8.0, help="CPU seconds of tests for one mutant")
    parser.add_argument("--tools", help="folder with cosmic-ray and coverage, put behind everything else on the path")
    parser.add_argument("--again", type=Path, help="only what survived in this file of results")
    parser.add_argument("--lines", help="instead of a draw: all mutants of the lines with this text")
    parser.add_argument("-o", "--output", type=Path, default=Path("mutants.jsonl"))
    options = parser.parse_args()
    if options.tools:
        site.addsitedir(options.tools)
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    import numpy  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    known = outcomes(options.again) if options.again else {}

    def mutants(module: str) -> Iterator[Mutant]:
        changes = Changes(module)
        if options.again:
            names = {key for key, outcome in known.items() if outcome != "killed"}
            return (one for one in changes.every() if (module, one.operator, one.before, one.after) in names)
        if options.lines:
            return (one for one in changes.every() if options.lines in one.before)
        return changes.drawn(options.count, options.seed)

    options.mutants = mutants

    def told(mutant: Mutant, outcome: str, by: str, tests: int, seconds: float) -> None:
        line = asdict(mutant)
        del line["source"]
        line |= {"outcome": outcome, "by": by, "tests": tests, "seconds": round(seconds, 1)}
        with options.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{outcome:11} {mutant.module}:{mutant.line} {mutant.operator}\n{'':12}{mutant.after}", file=sys.stderr)

    later: list[tuple[Mutant, list[str], float]] = []
    box = Path(tempfile.mkdtemp()) / "later.jsonl"
    box.touch()

    def in_the_fork(mutant: Mutant, outcome: str, by: Any, tests: int, seconds: float) -> None:
        if outcome == "later":
            with box.open("a", encoding="utf-8") as file:
                file.write(json.dumps([asdict(mutant), by, seconds]) + "\n")
        else:
            told(mutant, outcome, by, tests, seconds)

    common = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0"]
    common += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # what torch brought along is loaded already
    chosen = ["-k", options.k] if options.k else []

    def session() -> None:
        import pytest

        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        pytest.main([*options.tests, *chosen, *common], plugins=[Forks(options.modules, options, in_the_fork)])

    child = os.fork()
    if child == 0:
        try:
            session()
        finally:
            os._exit(3)
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit("the tests could not be run")
    for line in box.read_text(encoding="utf-8").splitlines():
        told_mutant, ids, seconds = json.loads(line)
        later.append((Mutant(**told_mutant), ids, seconds))

    def tried(mutant: Mutant, ids: list[str]) -> str:
        import pytest

        replace_module(mutant)
        plugin = Failed()
        code = pytest.main([*ids, "-x", *common], plugins=[plugin])
        return plugin.failed or ("" if code == 0 else f"pytest ended with {code}")

    for mutant, ids, seconds in later:
        began = time.monotonic()
        outcome = _child(lambda m=mutant, i=ids: tried(m, i), seconds + 40)
        told(mutant, *_verdict(outcome), len(ids), time.monotonic() - began)
    print(table(options.output))


if __name__ == "__main__":
    main()
