"""The public names: listed once, lazy, and the same for type checkers."""

import ast
import subprocess
import sys
from pathlib import Path

import gemscope as gs


def test_every_public_name_can_be_had() -> None:
    for name in gs.__all__:
        assert getattr(gs, name) is not None


def test_type_checkers_see_the_same_names() -> None:
    stub = ast.parse((Path(gs.__file__).parent / "__init__.pyi").read_text())
    imported = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported | {"__version__"} == set(gs.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(gs, "no_such_name")


def test_importing_and_asking_for_help_load_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, gemscope\n"
        "from gemscope.cli.main import parser\n"
        "text = parser().format_help()\n"
        "assert 'look' in text\n"
        "heavy = [name for name in ('torch', 'transformers', 'numpy', 'rich', 'huggingface_hub') if name in sys.modules]\n"
        "assert not heavy, heavy\n"
        "import gemscope.features.published\n"
        "gemscope.features.published.snapshot()\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_version_is_the_package_s() -> None:
    from importlib.metadata import version

    assert gs.__version__ == version("gemscope")
