"""An SAE published on a loopback imitation of the Hub, by the real client, and read back from there."""

import contextlib
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub  # noqa: F401  # whose log goes where stderr was when it was imported: to nowhere, within a test
import pytest

import gemscope as gs
from atlases import change_json, planted_atlas
from gemscope.activations.store import Store
from gemscope.atlas.files.manifest import read_manifest
from gemscope.cli.main import main
from gemscope.errors import (
    CorruptFile,
    FileError,
    HubUnreachable,
    InputError,
    Mismatch,
    NotFinite,
    NotFound,
    SAENotFound,
)
from gemscope.features.scope_manifest import Made, Manifest, Text, place_of, write_scope
from gemscope.reports.cards import MARK
from gemscope.testing import planted_sae
from gemscope.training.train import train
from hub_server import AUTHOR, EXPIRED, GRANTED, WRITER, HubServer, Repo, child, hub
from lessons import planted, store_of

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the Hub's client of its own

REPO = f"{AUTHOR}/saes"
SETTINGS = {"width": 32, "rows": 640, "batch": 64, "target_l0": 4.0, "log_every": 5}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    rows, _ = planted(700, d=12, features=20, active=2, seed=0)
    return store_of(3 * rows, tmp_path_factory.mktemp("store") / "acts")


@pytest.fixture(scope="module")
def finished(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as `gemscope train` leaves it, its atlas beside it."""
    run = tmp_path_factory.mktemp("finished") / "run"
    sae = train(store, gs.TrainConfig(**SETTINGS), to=run)  # type: ignore[arg-type]
    gs.training_report(run).write()
    with planted_atlas(run / "atlas", features=sae.d_sae):
        pass
    change_json(run / "atlas", sae="../somewhere/run/sae", sae_digest=sae.digest)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def server() -> Iterator[HubServer]:
    with hub({}) as running:
        yield running


@pytest.fixture(autouse=True)
def at_the_server(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's client of this process talks to the imitation. What it learnt on being imported is told it again."""
    from huggingface_hub import constants, file_download

    for module in (constants, file_download):
        for name in ("HUGGINGFACE_CO_URL_TEMPLATE",):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}")
    for name, value in {
        "ENDPOINT": server.url,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GEMSCOPE_CACHE", str(tmp_path / "cache"))


class Told(NamedTuple):
    code: int
    stdout: str
    stderr: str


def shell(*words: object, token: str | None = WRITER) -> Told:
    """`gemscope push ...`, in this process."""
    given = [] if token is None else ["--token", token]
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        code = main(["push", *map(str, words), *given])
    return Told(code, out.getvalue(), err.getvalue())


def pushed(*words: object) -> dict[str, Any]:
    told = shell(*words, "--json")
    assert (told.code, told.stderr) == (0, "")
    return json.loads(told.stdout)  # type: ignore[no-any-return]


def said(done: Told) -> str:
    assert (done.code, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
    assert WRITER not in done.stderr
    return done.stderr


def changes(server: HubServer) -> list[str]:
    return [one.path for one in server.requests if one.method in ("POST", "PUT")]


def test_what_was_sent_is_what_lay_there_and_comes_back_to_the_byte(
    server: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / ".env").write_text("HF_TOKEN=secret")
    (run / "sae" / "notes.txt").write_text("mine")
    shutil.copytree(run / "sae", run / "checkpoints" / "10")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = pushed(run, REPO)
    files = dict(server.repos[REPO].files)
    assert {path: before[path] for path in before} == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert files[f"3.res/{name}"] == before[run / "sae" / name]
    for name in ("report.html", "log.jsonl", "figures.json"):
        assert files[f"3.res/{name}"] == before[run / name]
    for name in ("atlas.sqlite", "corpus.npy"):
        assert files[f"3.res/atlas/{name}"] == before[run / "atlas" / name]
    assert done["files"] == {path: len(data) for path, data in files.items() if path != ".gitattributes"}
    assert done["bytes"] == sum(done["files"].values())
    assert done["saes"] == [f"{REPO}/3.res"]
    assert {".env", "times.jsonl", "sae/notes.txt", "checkpoints/"} <= set(done["left_out"])
    assert not any("notes" in path or "env" in path or "checkpoint" in path for path in files)
    assert done["commit"] == server.repos[REPO].snapshots["main"].commit
    assert len(server.asked("POST", "/commit/main")) == 1

    def digest(address: str) -> list[object]:
        sae = gs.load_sae(address)
        return [sae.digest, str(sae.site), sae.info.model, sae.info.revision]

    def seen(address: str) -> list[Any]:
        with gs.load_atlas(address) as atlas:
            return [atlas.manifest.sae, len(atlas), atlas[3].max, str(atlas.folder)]

    read = [digest(REPO), digest(f"{REPO}/3.res"), seen(f"{REPO}/3.res/atlas"), seen(REPO)]
    sae = gs.load_sae(run / "sae")
    assert read[0] == read[1] == [sae.digest, "3.res", sae.info.model, done["commit"]]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # what was fetched once is there
    assert seen(f"{REPO}/3.res/atlas") == read[2]
    with pytest.raises(HubUnreachable, match=r"no folder nobody/nothing here, and for an address of the Hub.s"):
        gs.load_atlas("nobody/nothing")
    with gs.Atlas(run / "atlas") as atlas:
        assert read[2][:3] == [f"{REPO}/3.res", len(atlas), atlas[3].max]
        fetched = Path(read[2][3])
        assert read[3] == read[2]
        assert asdict(read_manifest(fetched)) == asdict(replace(atlas.manifest, sae=f"{REPO}/3.res"))
    assert (fetched / "atlas.sqlite").read_bytes() == before[run / "atlas" / "atlas.sqlite"]


def test_the_card_says_the_address_and_where_the_report_lies(server: HubServer, run: Path, tmp_path: Path) -> None:
    written = (run / "sae" / "README.md").read_text(encoding="utf-8")
    (run / "sae" / "README.md").write_text(written + "\nWhat I found: a wormhole.\n", encoding="utf-8")
    pushed(run, REPO)
    files = server.repos[REPO].files
    card, front = files["3.res/README.md"].decode(), files["README.md"].decode()
    assert "PATH/TO" in written
    assert card == (written + "\nWhat I found: a wormhole.\n").replace("PATH/TO/THIS/FOLDER", f"{REPO}/3.res").replace(
        "../report.html", "report.html"
    )
    assert front == card.replace("(report.html)", "(3.res/report.html)") + f"\n{MARK}\n"


def test_a_dry_run_says_what_would_go_and_asks_nobody(server: HubServer, run: Path, tmp_path: Path) -> None:
    told = json.loads(shell(run, REPO, "--dry-run", "--json", token=None).stdout)
    assert server.requests == []
    assert told["commit"] is None
    assert pushed(run, REPO)["files"] == told["files"]
    table = shell(run, REPO, "--dry-run").stdout
    for path, size in told["files"].items():
        assert any(line.split() == [path, f"{size:,}"] for line in table.splitlines()), path
    assert any(line.split() == ["in", "all", f"{told['bytes']:,}"] for line in table.splitlines())


def test_a_second_push_replaces_the_first_and_what_it_no_longer_has(
    server: HubServer, run: Path, tmp_path: Path
) -> None:
    pushed(run, REPO)
    theirs = {**server.repos[REPO].files, "3.res/atlas/mine.txt": b"x", "3.res/notes.md": b"y", "LICENSE": b"z"}
    server.repos[REPO] = replace(server.repos[REPO], files=theirs)
    gs.save_sae(planted_sae(12, 16, site="3.res").sae, run / "sae")
    shutil.rmtree(run / "atlas")
    (run / "report.html").unlink()
    done = pushed(run, REPO)
    assert done["removed"] == [
        *(f"3.res/atlas/{name}" for name in ("atlas.sqlite", "corpus.npy", "manifest.json")),
        "3.res/report.html",
    ]
    files = server.repos[REPO].files
    assert {"3.res/atlas/mine.txt", "3.res/notes.md", "LICENSE"} < set(files)
    assert not set(done["removed"]) & set(files)
    assert files["3.res/sae_weights.safetensors"] == (run / "sae" / "sae_weights.safetensors").read_bytes()


def test_what_has_not_changed_is_not_sent_again_nor_is_there_an_empty_commit(
    server: HubServer, run: Path, tmp_path: Path
) -> None:
    first = pushed(run, REPO)
    server.requests.clear()
    assert pushed(run, REPO)["commit"] == first["commit"]
    assert server.asked("PUT") == []
    assert server.asked("POST", "/commit/main") == []


def test_several_saes_lie_side_by_side_and_the_first_page_lists_them(
    server: HubServer, run: Path, tmp_path: Path
) -> None:
    other = gs.save_sae(planted_sae(12, 16, site="5.res").sae, tmp_path / "other")
    pushed(run, REPO)
    pushed(other, REPO)
    pushed(other, REPO, "--as", "wide/5.res", "--message", "again")
    files = server.repos[REPO].files
    front = files["README.md"].decode()
    for place in ("3.res", "5.res", "wide/5.res"):
        assert f"- [{place}]({place}/README.md)" in front
        assert f"{place}/cfg.json" in files
    with pytest.raises(SAENotFound, match=r"there are SAEs in it: 3\.res, 5\.res, wide/5\.res"):
        gs.load_sae(REPO)
    assert gs.load_sae(f"{REPO}/wide").digest == gs.load_sae(f"{REPO}/5.res").digest == gs.load_sae(other).digest


def test_a_page_of_the_owner_s_own_stays(server: HubServer, run: Path, tmp_path: Path) -> None:
    server.repos[REPO] = Repo({"README.md": b"# Mine\n"})
    done = pushed(run, REPO)
    assert done["kept"] == ["README.md"]
    assert server.repos[REPO].files["README.md"] == b"# Mine\n"
    assert server.repos[REPO].files["3.res/README.md"]


def test_a_branch_and_a_repository_for_few_are_made(server: HubServer, run: Path, tmp_path: Path) -> None:
    done = pushed(run, REPO, "--private", "--revision", "v2")
    repo = server.repos[REPO]
    assert done["private"] is repo.private is True
    assert set(repo.files) == {".gitattributes"}
    assert "3.res/cfg.json" in repo.revisions["v2"]
    server.repos[f"{AUTHOR}/open"] = Repo({"a": b"a"})
    server.requests.clear()
    assert "public" in said(shell(run, f"{AUTHOR}/open", "--private"))
    assert changes(server) == []


def test_labels_that_somebody_is_writing_meanwhile_go_too(server: HubServer, run: Path, tmp_path: Path) -> None:
    with gs.Atlas(run / "atlas") as atlas:
        atlas.explain(5, "of the wormhole")
        assert (run / "atlas" / "atlas.sqlite-wal").stat().st_size > 0
        before = (run / "atlas" / "atlas.sqlite").read_bytes()
        done = pushed(run, REPO)
        assert before == (run / "atlas" / "atlas.sqlite").read_bytes()
    sent = tmp_path / "sent"
    sent.mkdir()
    for name in ("atlas.sqlite", "corpus.npy", "manifest.json"):
        (sent / name).write_bytes(server.repos[REPO].files[f"3.res/atlas/{name}"])
        assert done["files"][f"3.res/atlas/{name}"] == (sent / name).stat().st_size
    with gs.Atlas(sent) as atlas:
        assert atlas[5].label == "of the wormhole"


def test_a_scope_goes_as_it_lies_and_is_listed_from_there(server: HubServer, tmp_path: Path) -> None:
    folder, made = tmp_path / "scope", []
    for layer in (2, 10):
        sae = planted_sae(12, 16, site=f"{layer}.res", seed=layer).sae
        path = place_of(sae.site, 16, 4)
        gs.save_sae(sae, folder / path)
        made.append(Made(path=path, site=f"{layer}.res", site_out=f"{layer}.res", width=16, l0=4.0))
    with planted_atlas(folder / made[0].path / "atlas", features=16) as atlas:
        change_json(atlas.folder, sae_digest=gs.load_sae(folder / made[0].path).digest)
    (folder / made[1].path / "score.json").write_text('{"l0": 4.0, "fvu": 0.25, "dead": 0.0, "corpus": "mine"}')
    (folder / made[1].path / "run.json").write_text("{}")
    (folder / "res" / "layer_3").mkdir()
    assert "no SAE in" in said(shell(folder, REPO))
    text = Text(name="planted", digest="0")
    manifest = Manifest(model="planted", revision=None, corpus=text, versions={}, recipe="", saes=tuple(made))
    write_scope(manifest, folder)
    done = pushed(folder, REPO)
    files = server.repos[REPO].files
    assert set(done["left_out"]) == {"res/layer_3/", f"{made[1].path}/run.json"}
    assert done["saes"] == [f"{REPO}/{one.path}" for one in made]
    assert files["scope.json"] == (folder / "scope.json").read_bytes()
    assert {f"{made[0].path}/atlas/atlas.sqlite", f"{made[1].path}/score.json", "README.md"} < set(files)
    assert "| FVU | 0.2500 |" in files[f"{made[1].path}/README.md"].decode()
    scope = gs.load_scope(REPO)
    assert [str(one.site) for one in scope] == ["2.res", "10.res"]
    assert scope.open(scope.find("10.res")).digest == gs.load_sae(folder / made[1].path).digest
    assert "give neither" in said(shell(folder, REPO, "--as", "x"))
    shutil.rmtree(folder / made[1].path)
    assert "which its scope.json names" in said(shell(folder, REPO))


# --- refused before anything is sent ----------------------------------------------------------------------------------


def test_without_a_token_and_with_one_that_may_not_it_is_one_line(server: HubServer, run: Path, tmp_path: Path) -> None:
    assert "`hf auth login`" in said(shell(run, REPO, token=None))
    assert server.requests == []
    assert "does not know this token" in said(shell(run, REPO, token=EXPIRED))
    for repo, token in ((REPO, GRANTED), ("somebody-else/saes", WRITER)):
        refused = said(shell(run, repo, token=token))
        assert f"may not write {repo}" in refused
        assert token not in refused
    assert server.repos == {}


def test_what_is_missing_damaged_or_of_something_else_is_refused_before_anything_is_sent(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemscope.activations.uploading.token_of", lambda token: pytest.fail("it went on to send"))

    def refused(kind: type[Exception], *parts: str, folder: Path = run, **options: Any) -> None:
        with pytest.raises(kind) as caught:
            gs.push(folder, options.pop("repo", REPO), **options)
        assert all(part in str(caught.value) for part in parts), caught.value

    for repo in ("no-owner", "a/b/c", "a b/c", "../x/y", "https://huggingface.co/a/b"):
        refused(InputError, "USER/NAME", repo=repo)
    for place in ("../up", "/abs", "a//b", "a\\b", "", "a/./b"):
        refused(InputError, "no folder of a repository", place=place)
    refused(NotFound, "no folder", folder=tmp_path / "nothing")
    refused(NotFound, "no SAE in", "there are SAEs in it: run", folder=tmp_path)
    refused(NotFound, "no atlas", atlas=tmp_path)

    change_json(run / "atlas", sae_digest="0" * 64)
    refused(Mismatch, "is of another SAE")
    with planted_atlas(tmp_path / "short", features=32) as made:
        change_json(made.folder, sae_digest=gs.load_sae(run / "sae").digest)
    (tmp_path / "short" / "corpus.npy").write_bytes(b"\x93NUMPY")
    refused(CorruptFile, "corpus.npy", atlas=tmp_path / "short")
    shutil.rmtree(run / "atlas")

    weights = run / "sae" / "sae_weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-7])
    refused(CorruptFile, "sae_weights")
    weights.write_bytes(whole[:-4] + b"\xff\xff\xff\x7f")
    refused(NotFinite, "NaN")
    weights.unlink()
    refused(NotFound, "has no sae_weights.safetensors")
    shutil.rmtree(run / "sae")
    refused(NotFound, "has not come to its end")
    nowhere = planted_sae(12, 16).sae
    nowhere.site = None
    with contextlib.suppress(InputError):
        refused(InputError, "site", folder=gs.save_sae(nowhere, tmp_path / "nowhere"))


def test_no_link_leads_a_file_from_elsewhere_into_a_repository(server: HubServer, run: Path, tmp_path: Path) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_text("a key")
    for place in (run / "log.jsonl", run / "sae" / "README.md", run / "score.json"):
        place.unlink(missing_ok=True)
        place.symlink_to(secret)
    (tmp_path / "elsewhere").mkdir()
    shutil.move(run / "atlas", tmp_path / "elsewhere")
    (run / "atlas").symlink_to(tmp_path / "elsewhere" / "atlas")
    inside = run / "sae" / "cfg.json"
    inside.rename(run / "kept.json")
    inside.symlink_to(run / "kept.json")
    done = pushed(run, REPO)
    left = [f"{name} (leads out of the folder)" for name in ("atlas", "log.jsonl", "sae/README.md", "score.json")]
    assert set(left) <= set(done["left_out"])
    assert b"a key" not in b"".join(server.repos[REPO].files.values())
    assert not any("atlas" in path for path in done["files"])
    assert server.repos[REPO].files["3.res/cfg.json"] == (run / "kept.json").read_bytes()

    weights = run / "sae" / "sae_weights.safetensors"
    shutil.move(weights, tmp_path / "weights")
    weights.symlink_to(tmp_path / "weights")
    with pytest.raises(FileError, match=r"sae_weights.safetensors leads out of"):
        gs.push(run, REPO, dry_run=True)
    with planted_atlas(tmp_path / "linked", features=32) as made:
        change_json(made.folder, sae_digest=gs.load_sae(run / "sae").digest)
    shutil.move(weights.resolve(), weights)
    shutil.move(tmp_path / "linked" / "corpus.npy", tmp_path / "corpus.npy")
    (tmp_path / "linked" / "corpus.npy").symlink_to(tmp_path / "corpus.npy")
    with pytest.raises(FileError, match=r"corpus.npy leads out of"):
        gs.push(run, REPO, atlas=tmp_path / "linked", dry_run=True)


# --- what breaks on the way -------------------------------------------------------------------------------------------


def test_what_broke_off_goes_on_and_nobody_sees_half_of_it(server: HubServer, run: Path, tmp_path: Path) -> None:
    large = 3  # the weights, and two files of the atlas
    for failing in (("POST", "/commit/main", None), ("POST", "/commit/main", 403), ("POST", "/preupload/main", 400)):
        server.failing = [failing]
        said(shell(run, REPO))
        assert set(server.repos[REPO].files) == {".gitattributes"}
    assert len(server.asked("PUT")) == large
    server.failing = [("POST", "/commit/main", None)]
    assert "run it again" in said(shell(run, REPO))
    done = pushed(run, REPO)
    assert len(server.asked("PUT")) == large  # what had arrived was not sent twice
    assert set(done["files"]) < set(server.repos[REPO].files)


def test_where_somebody_else_was_quicker_nothing_is_overwritten(server: HubServer, run: Path, tmp_path: Path) -> None:
    server.repos[REPO] = Repo({"a": b"a"})
    server.failing = [("POST", "/commit/main", 412)]
    assert "changed by somebody else" in said(shell(run, REPO))
    assert set(server.repos[REPO].files) == {"a"}


def test_where_nobody_listens_it_is_one_line(server: HubServer, run: Path, tmp_path: Path) -> None:
    env = server.env(tmp_path, token=WRITER)
    done = child("-m", "gemscope", "push", str(run), REPO, env=env | {"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert "cannot be reached" in said(Told(done.code, done.stdout, done.stderr))
    done = child("-m", "gemscope", "push", str(run), REPO, env=env)
    assert (done.code, done.stderr) == (0, "")
    assert "load_sae" not in done.stdout
    assert f"gemscope look planted {REPO}/3.res" in done.stdout
