"""The shell: what it prints, where, and with which exit code."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import gemscope as gs
from gemscope.cli import main as shell_main
from gemscope.cli.main import main
from gemscope.testing import identity_sae

PROMPT = "Would you be able to travel through time using a wormhole?"


def shell(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gemscope", *words], capture_output=True, text=True, check=False, **options
    )  # type: ignore[call-overload,no-any-return]


def test_look_at_a_text_with_the_bundled_model_and_sae(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["look", PROMPT]) == 0
    out = capsys.readouterr().out
    assert "·wormhole" in out or "·worm" in out
    assert "not counted" in out
    assert "L0" in out
    assert "explained variance" in out
    assert "Next:" in out


@pytest.mark.usefixtures("at_hand")
def test_a_look_through_several_saes_takes_one_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for layer in (3, 20):
        gs.save_sae(identity_sae(576, site=f"{layer}.res"), tmp_path / "res" / f"layer_{layer}")
    assert (
        main(["look", "smollm2", str(tmp_path), "The sun and the moon", "--also", "smollm2", "--json", "-k", "2"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert [one["site"] for one in found["sites"]] == ["3.res", "15.res", "20.res"]
    assert [one["order"] for one in found["sites"]] == ["activation", "telling", "activation"]
    assert found["sites"][0]["fvu"] == pytest.approx(0, abs=1e-5)
    assert main(["look", "smollm2", str(tmp_path), "The sun"]) == 0
    assert "in one pass" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["look", "smollm2", str(tmp_path), "The sun", "--atlas", "some"])
    assert "found beside them" in capsys.readouterr().err


@pytest.mark.usefixtures("at_hand")
def test_look_as_json_is_one_object_with_the_promised_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["look", "smollm2", "smollm2", PROMPT, "--json", "-k", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"tokens", "l0", "explained_variance", "model", "sae", "site"} <= set(found)
    assert found["site"] == "15.res"
    assert found["sae"] == "smollm2"
    assert not found["tokens"][0]["counted"]
    assert "".join(token["token"] for token in found["tokens"]) == PROMPT
    assert all(len(token["features"]) == 3 for token in found["tokens"])
    assert 20 < found["l0"] < 100
    assert 0.5 < found["explained_variance"] < 1


@pytest.mark.usefixtures("at_hand")
def test_check_as_json_has_the_promised_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--json", "--tokens", "256"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"ok", "explained_variance", "l0", "declared_l0", "site", "suggestion"} <= set(found)
    assert found["ok"] is True
    assert found["suggestion"] is None


@pytest.mark.usefixtures("at_hand")
def test_the_text_may_come_from_stdin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("Once upon a time"))
    assert main(["look", "-", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["tokens"]) == 4


def test_info_tells_what_an_sae_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "smollm2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["site"] == "15.res"
    assert found["d_in"] == 576
    assert found["d_sae"] >= 6144
    assert len(found["digest"]) == 64


def test_info_alone_tells_the_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert "transformers" in capsys.readouterr().out


def test_the_catalogue_is_listed_without_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["catalog", "--model", "gemma-2-2b", "--site", "res", "--layer", "20", "--width", "16k", "--offline"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    addresses = [entry["address"] for entry in found["saes"]]
    assert "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71" in addresses
    assert main(words) == 0
    out, beside = capsys.readouterr()
    assert "gemma-2-2b/20-gemmascope-res-16k" in out
    assert "look google/gemma-2-2b google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71" in beside


@pytest.mark.usefixtures("at_hand")
def test_harvest_and_train_from_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, run = str(tmp_path / "store"), str(tmp_path / "run")
    words = [
        "harvest",
        "smollm2",
        "sample",
        "--sites",
        "3.res",
        "-o",
        store,
        "--tokens",
        "1024",
        "--length",
        "64",
        "--json",
    ]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["sites"]["3.res"] > 900
    assert (
        main(
            [
                "train",
                store,
                "-o",
                run,
                "--set",
                "width=64",
                "--set",
                "rows=2_560",
                "--set",
                "batch=128",
                "--set",
                "target_l0=8",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "64 features at 3.res" in out
    assert main(["look", "smollm2", f"{run}/sae", "Once upon a time", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["site"] == "3.res"


@pytest.mark.usefixtures("at_hand")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["look", ""], "the text is empty"),
        (["look", "smollm2", "no/such/sae/anywhere", "hi", "--offline"], "no/such/sae"),
        (
            ["look", "smollm2", "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_70", "hi", "--offline"],
            "average_l0_71",
        ),
        (["look", "/no/such/model", "smollm2", "hi", "--offline"], "/no/such/model"),
        (["look", "smollm2", "smollm2", "hi", "--site", "99.res"], "no layer 99: this model has layers 0 to 29"),
        (["look", "smollm2", "smollm2", "hi", "--site", "15.nose"], "nose"),
        (["look", "smollm2", "smollm2", "word " * 9000], "reads up to 8192"),
        (["check", "smollm2", "smollm2", "/no/such/corpus.txt"], "/no/such/corpus.txt"),
        (["harvest", "smollm2", "/no/such.txt", "--sites", "1.res", "-o", "/tmp/never"], "/no/such.txt"),
        (["train", "/no/such/store", "-o", "/tmp/never"], "no harvest in /no/such/store"),
        (["catalog", "--model", "gemma-9-2b", "--offline"], "gemma-9-2b"),
        (["look", "hi", "--dtype", "float13"], "float13"),
        (["describe", "--tokens", "0", "-o", "/no/such/atlas"], "tokens=0: at least 1"),
        (["describe", "--tokens", "600", "-o", "/dev/null/atlas"], "cannot write /dev/null/atlas: Not a dir"),
        (["describe", "smollm2", "smollm2", "/no/such.txt", "-o", "/no/such/atlas"], "/no/such.txt"),
        (["describe", "--top", "0"], 'field "top" is 0, expected a whole number from 1'),
        (["serve", "/no/such/atlas"], "no atlas at /no/such/atlas"),
        (["serve", "--host", "0.0.0.0"], "give a token (--token)"),
        (["atlas", "verify", "/no/such/atlas"], "no atlas in /no/such/atlas"),
        (["atlas", "merge", "/no/such/atlas", "/no/such/other", "-o", "/no/such/place"], "no atlas in /no/such/atlas"),
        (["export", "/no/such/atlas", "--format", "csv", "-o", "/no/such/place"], "no atlas in /no/such/atlas"),
        (["import", "neuronpedia", "/no/such/folder", "-o", "/no/such/place"], "no folder /no/such/folder"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_1(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("gemscope: ")
    assert said.err.count("\n") == 1
    assert expected in said.err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["look"],
        ["look", "a", "b"],
        ["check", "one"],
        ["frobnicate"],
        ["look", "hi", "--no-such"],
        ["describe", "one"],
        ["describe", "--tokens", "many"],
        ["atlas"],
        ["export", "atlas", "--format", "csv"],
        ["export", "atlas", "--format", "csv", "-o", "out", "--features", "0-99999999999"],
        ["export", "atlas", "--format", "csv", "-o", "out", "--features", "9-1"],
    ],
)
def test_wrong_usage_is_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(words)
    assert raised.value.code == 2
    assert "usage: gemscope" in capsys.readouterr().err


def test_what_the_system_refuses_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/there")

    monkeypatch.setattr("gemscope.cli.atlas._verify", refuse)
    assert main(["atlas", "verify", "/no/such/atlas"]) == 1
    assert capsys.readouterr().err == "gemscope: /there: Permission denied\n"


def test_nothing_but_the_answer_goes_to_a_pipe_and_a_closed_pipe_is_no_error() -> None:
    done = shell("catalog", "--offline", "--limit", "0", "--json")
    assert done.returncode == 0
    assert done.stderr == ""
    json.loads(done.stdout)
    cut = subprocess.run(
        f"{sys.executable} -m gemscope catalog --offline --limit 2000 | head -1",  # more than a pipe holds
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in cut.stderr


@pytest.mark.parametrize("words", [["look", "{text}"], ["catalog", "--offline", "{text}"], ["no-such-command"]])
def test_a_terminal_without_utf_8_is_shown_escapes(words: list[str], tmp_path: Path) -> None:
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = shell(*(word.format(text="Größe 水 of the river") for word in words), env=plain, cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert done.stdout.isascii()
    if words[0] == "look":  # what was typed is read as UTF-8, and shown so, with the dot that stands for a blank
        assert "\n\\xf6 " in done.stdout
        assert "\n\\xb7river " in done.stdout


def test_files_are_read_and_written_as_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    program = """
import locale, sys
assert locale.getpreferredencoding(False) != "UTF-8"
from pathlib import Path
import gemscope as gs
from broken.samples import SAMPLES
from broken.readers import READERS
for name in ("corpus", "labelled", "recipe", "report", "atlas", "neuronpedia", "anthropic"):
    folder = Path(sys.argv[1], name)
    folder.mkdir()
    SAMPLES[name](folder)
    READERS[name](folder)
(document,) = gs.Corpus.read(Path(sys.argv[1], "a.txt"))
print(ascii(document.text))
"""
    (tmp_path / "a.txt").write_text("Größe 水", encoding="utf-8")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(words, env=os.environ | plain, capture_output=True, text=True, check=False)
    assert done.stdout == ascii("Größe 水") + "\n", done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no file that is always full")
@pytest.mark.parametrize("words", [["catalog", "--offline", "--limit", "0", "--json"], ["catalog", "--offline"]])
def test_an_answer_that_finds_no_room_is_one_line(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gemscope", *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, "gemscope: no room left on the disk: free some\n")


@pytest.mark.usefixtures("at_hand")
def test_in_a_terminal_bars_are_drawn_on_stderr_and_nothing_else_changes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    text = tmp_path / "text.txt"
    text.write_text("The river sang of hours, and the end of the day was near. " * 4)
    for words in (
        ["look", "Once upon a time"],
        ["check", "smollm2", "smollm2", str(text)],
        ["score", "smollm2", "smollm2", str(text), "--loss-tokens", "0"],
        ["harvest", "smollm2", "sample", "--sites", "1.res", "--tokens", "600", "-o", str(tmp_path / "store")],
        [
            "train",
            str(tmp_path / "store"),
            "--set",
            "width=64",
            "--set",
            "rows=256",
            "--set",
            "batch=128",
            "--set",
            "target_l0=8",
            "-o",
            str(tmp_path / "run"),
        ],
    ):
        assert main([*words, "--json"]) == 0
        said = capsys.readouterr()
        json.loads(said.out)
        assert "load smollm2" in said.err or words[0] == "train"
    assert "train 1.res" in said.err
    assert "/256 rows" in said.err


def test_help_names_every_command_and_each_has_help_of_its_own() -> None:
    done = shell("--help", env={**os.environ, "COLUMNS": "100"})
    assert done.returncode == 0
    for command in ("look", "check", "score", "catalog", "info", "harvest", "train"):
        assert command in done.stdout


def test_a_signal_that_a_library_takes_for_a_fault_of_its_own_ends_it_all_the_same() -> None:
    def work(told: bool) -> None:
        with shell_main._signals_end_it():
            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), signal.SIGTERM if told else 0)
            raise TypeError("could not determine the shape")

    with pytest.raises(shell_main._Ended) as ended:
        work(True)
    assert ended.value.by is signal.SIGTERM
    with pytest.raises(TypeError):
        work(False)


@pytest.mark.parametrize(
    "words",
    [
        ["harvest", "smollm2", "sample", "--sites", "2.res", "-o", "acts"],
        ["train", "--stream", "smollm2", "sample", "--site", "2.res", "-o", "run"],
        ["check", "smollm2", "smollm2", "sample"],
        ["score", "smollm2", "smollm2", "sample"],
        ["effect", "smollm2", "smollm2", "sample", "--features", "1"],
        ["describe", "smollm2", "smollm2", "sample", "-o", "atlas"],
        ["steer", "1=2max", "My friend", "--corpus", "sample"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.usefixtures("at_hand")
def test_a_corpus_is_the_bundled_sample_by_its_name_in_every_command(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.jsonl").write_text("no json")  # the bundled text, in the place of its name: read, it is told
    monkeypatch.setattr(gs.Corpus, "sample", lambda: gs.Corpus.read("broken.jsonl"))
    assert main(words) == 1
    assert "broken.jsonl" in capsys.readouterr().err
    (tmp_path / "sample").mkdir()  # what lies here goes first
    assert main(words) == 1
    assert "sample" in (said := capsys.readouterr().err)
    assert "broken.jsonl" not in said
