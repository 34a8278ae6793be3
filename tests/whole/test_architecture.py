"""Imports point one way: each folder may use those to its left and the ground floor, never those to its right."""

import ast
from functools import cache
from pathlib import Path

from tools import house

import gemscope

ROOT = Path(gemscope.__file__).parent
ORDER = [
    "text",
    "activations",
    "features",
    "edits",
    "training",
    "pages",
    "atlas",
    "reports",
    "scope",
    "app",
    "cli",
    "testing",
]
GROUND = {"errors", "checked", "shapes", "progress", "disk", "world", "__version__"}
ONLY_HERE = {"transformers": {"activations/load.py", "testing/models.py"}, "argparse": {"cli"}}


def _modules() -> list[Path]:
    return [path for path in ROOT.rglob("*.py") if path.parent != ROOT]


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


def test_each_folder_imports_only_from_its_left_and_the_ground_floor() -> None:
    wrong = []
    for path in _modules():
        home = path.relative_to(ROOT).parts[0]
        for name in _imports(path):
            parts = name.split(".")
            if parts[0] != "gemscope" or len(parts) < 2 or parts[1] in GROUND:
                continue
            if ORDER.index(parts[1]) > ORDER.index(home):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_the_ground_floor_imports_nothing_of_ours_but_errors() -> None:
    for name in ("errors", "shapes", "progress", "checked", "disk", "world"):
        ours = [one for one in _imports(ROOT / f"{name}.py") if one.startswith("gemscope")]
        assert all(one.startswith("gemscope.errors.") for one in ours)


def test_modules_do_not_name_each_other_in_a_circle() -> None:
    """Imports within functions count, and those for types alone."""
    paths = {_module(path): path for path in ROOT.rglob("*.py")}
    named = {module: _named(module, path, set(paths)) for module, path in paths.items()}
    left = set(paths)
    while first := {module for module in left if not named[module] & left}:
        left -= first
    assert not left, f"a circle among these, or what stands on one: {', '.join(sorted(left))}"


def _module(path: Path) -> str:
    return ".".join(("gemscope", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def _named(module: str, path: Path, modules: set[str]) -> set[str]:
    """Our modules that a file names, and what folders that it does not lie in run before them (`__init__`)."""
    found = set()
    for name in _imports(path):
        target = name if name in modules else name.rpartition(".")[0]
        parts = target.split(".")
        folders = {".".join(parts[:length]) for length in range(1, len(parts))}
        found |= {target} | {folder for folder in folders if not f"{module}.".startswith(f"{folder}.")}
    return found & modules


def test_only_one_file_knows_transformers_and_only_the_shell_parses_arguments() -> None:
    for package, homes in ONLY_HERE.items():
        for path in _modules():
            place = path.relative_to(ROOT).as_posix()
            if any(name.split(".")[0] == package for name in _imports(path)):
                assert any(place == home or place.startswith(f"{home}/") for home in homes), (
                    f"{place} imports {package}"
                )


def test_only_one_file_touches_the_hooks_of_torch() -> None:
    users = [path.relative_to(ROOT).as_posix() for path in _modules() if "register_forward" in path.read_text()]
    assert users == ["activations/hooks.py"]


def test_only_one_file_lets_processes_talk() -> None:
    users = [path.relative_to(ROOT).as_posix() for path in _modules() if "torch.distributed" in path.read_text()]
    assert users == ["training/group.py"]


def test_pickles_are_read_in_one_place_as_tensors_alone() -> None:
    for path in _modules():
        text = path.read_text()
        assert "import pickle\n" not in text
        assert "allow_pickle=True" not in text
        assert "weights_only=False" not in text
        calls = [
            node
            for node in ast.walk(_tree(path))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
        ]
        assert len(calls) == (path.relative_to(ROOT).as_posix() == "features/files/pickled.py"), path
        assert all("weights_only=True" in ast.unparse(call) for call in calls)


PARSERS = {"json": {"load", "loads", "JSONDecoder"}, "tomllib": {"load", "loads"}, "ast": {"literal_eval"}}
PARSERS |= {"msgspec": {"convert"}, "msgspec.json": {"decode", "Decoder"}, "msgspec.toml": {"decode"}, "yaml": {"*"}}
HEADERS = {"features/files/npz.py", "atlas/files/corpus.py"}
"""An array's header is a literal of Python's, of bounded length."""


def test_only_the_checked_reader_parses_what_comes_from_outside() -> None:
    """JSON and TOML have one way in, where there are bounds, types and one line for what is not so."""
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(_tree(path)):
            used = set()
            if isinstance(node, ast.Attribute):
                used = {(ast.unparse(node.value), node.attr)}
            elif isinstance(node, ast.ImportFrom) and node.module:
                used = {(node.module, name.name) for name in node.names}
            elif isinstance(node, ast.Import):
                used = {(name.name, "*") for name in node.names}
            found |= {(path.relative_to(ROOT).as_posix(), name) for home, name in used if name in PARSERS.get(home, ())}
    assert {place for place, name in found if name == "literal_eval"} == HEADERS
    assert {place for place, name in found if name != "literal_eval"} == {"checked.py"}


def test_the_picture_of_the_house_is_what_the_code_is() -> None:
    """`make docs` draws it (`tools/docs.py --figures` this part alone)."""
    drawn = Path(__file__).parents[2] / "docs" / "house.svg"
    assert tuple(ORDER[: ORDER.index("testing")]) == house.ORDER
    assert drawn.read_text(encoding="utf-8") == house.picture()
