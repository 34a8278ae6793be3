"""gemscope serve."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path

import pytest

from atlases import planted_atlas
from gemscope.app import bundled as ours
from gemscope.app.server import serve
from gemscope.atlas.reader import Atlas
from gemscope.cli.main import main
from gemscope.errors import InputError, NotFound
from served import AT, fetched, planted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("atlases") / "atlas")


@pytest.mark.parametrize(("by", "codes"), [(signal.SIGINT, (0, 130)), (signal.SIGTERM, (143,))])
def test_serve_from_the_shell_says_where_it_is_and_ends_when_it_is_told_to(
    by: signal.Signals, codes: tuple[int, ...], folder: Path
) -> None:
    command = [sys.executable, "-m", "gemscope", "serve", str(folder), "--port", "0", "--no-model"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    # Whoever runs the tests in the background may have interrupts ignored, which a child inherits.
    listens = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=listens,  # noqa: PLW1509 what it runs takes no lock
    ) as process:
        assert process.stdout
        line = process.stdout.readline()
        url = line.partition(" ")[0]
        assert b" 200 " in fetched(f"{url}tiny-model/1-res-tiny/3")
        process.send_signal(by)
        assert process.wait(120) in codes
        assert process.stderr
        told = process.stderr.read()
        assert "Traceback" not in told, told


def test_the_atlas_that_ships_with_the_package_is_served_when_none_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GEMSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ours, "BUNDLED", folder)
    with serve(live=False, port=0, block=False) as server:
        assert b" 200 " in fetched(f"{server.url}{AT}/3")
    monkeypatch.setattr(ours, "BUNDLED", tmp_path / "none")
    with pytest.raises(NotFound, match="no atlas ships"):
        serve(live=False, port=0, block=False)


def test_the_other_address_of_this_machine_is_served_too(folder: Path) -> None:
    try:
        server = serve(folder, live=False, host="::1", port=0, block=False)
    except InputError as error:
        pytest.skip(f"this machine has no ::1: {error}")
    with server:
        assert server.url.startswith("http://[::1]:")
        with urllib.request.urlopen(f"{server.url}{AT}/3") as answer:
            assert answer.status == 200


def test_verify_from_the_shell(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["atlas", "verify", str(folder)]) == 0
    assert "is sound" in capsys.readouterr().out
    assert main(["atlas", "verify", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(folder), "sound": True, "problems": []}
    broken = planted(tmp_path / "atlas", features=8)
    corpus = broken / "corpus.npy"
    corpus.write_bytes(corpus.read_bytes()[:-100])
    assert main(["atlas", "verify", str(broken)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "corpus" in said.err
    assert main(["atlas", "verify", str(tmp_path / "none")]) == 1


def test_serve_without_an_atlas_that_is_there_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["serve", str(tmp_path), "--no-model"]) == 1
    assert "no atlas at" in capsys.readouterr().err


def test_the_server_starts_without_torch_and_the_shell_without_the_server(folder: Path) -> None:
    code = (
        "import sys, gemscope, gemscope.cli.main\n"
        "gemscope.cli.main.parser().format_help()\n"
        "early = [name for name in ('starlette', 'uvicorn', 'jinja2', 'torch') if name in sys.modules]\n"
        "assert not early, early\n"
        "from gemscope.app.server import serve\n"
        f"server = serve({str(folder)!r}, live=False, port=0, block=False)\n"
        "import urllib.request\n"
        "for page in ('3', 'steer?feature=3&add=sea', 'attribute', 'prompt'):\n"
        "    assert urllib.request.urlopen(server.url + '/tiny-model/1-res-tiny/' + page).status == 200\n"
        "heavy = [name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules]\n"
        "assert not heavy, heavy\n"
        "server.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_bundled_atlas_is_labelled_in_a_copy_of_the_reader_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_atlas(tmp_path / "package").close()
    before = {path.name: path.read_bytes() for path in (tmp_path / "package").iterdir()}
    monkeypatch.setattr(ours, "BUNDLED", tmp_path / "package")
    monkeypatch.setenv("GEMSCOPE_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        folder = ours.bundled()
        assert Path(folder).is_relative_to(tmp_path / "cache")
        with Atlas(folder) as atlas:
            atlas.explain(1, "mine")
    with Atlas(folder) as atlas:
        assert [one.text for one in atlas[1].explanations][:2] == ["mine", "mine"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "package").iterdir()} == before
    monkeypatch.setenv("GEMSCOPE_CACHE", "/proc/nowhere")
    assert ours.bundled() == tmp_path / "package"


def test_a_package_that_nobody_may_write_and_a_home_that_nobody_may_enter_are_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_atlas(tmp_path / "package").close()
    for path in (*(tmp_path / "package").iterdir(), tmp_path / "package"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    monkeypatch.setattr(ours, "BUNDLED", tmp_path / "package")
    monkeypatch.setenv("GEMSCOPE_CACHE", str(tmp_path / "cache"))
    folder = ours.bundled()
    assert all(path.stat().st_mode & 0o200 for path in (Path(folder), *Path(folder).iterdir()))

    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_file", refuse)
        assert ours.bundled() == tmp_path / "package"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(ours, "cache_dir", homeless)
    assert ours.bundled() == tmp_path / "package"
