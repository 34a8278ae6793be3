"""`gemscope completion`: what a shell makes of the script, asked of the shell itself."""

import shutil
import subprocess
from pathlib import Path

import pytest

from gemscope.cli.completion import SHELLS
from gemscope.cli.main import main

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_shtab_gemscope
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def asked(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """What bash offers for the last of some words."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "my.atlas").mkdir()
    monkeypatch.chdir(tmp_path)

    def ask(*words: str) -> list[str]:
        command = [bash, "--norc", "-c", ASK, "-", "./script", "gemscope", *words]
        return sorted(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())

    return ask


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["lo"], ["look"]),
        (["atlas", "me"], ["merge"]),
        (["look", "--sae-r"], ["--sae-revision"]),
        (["look", "--order", ""], ["activation", "telling"]),
        (["steer", "--how", "at-"], ["at-least"]),
        (["serve", "my"], ["my.atlas"]),
        (["describe", "smollm2", "smollm2", "--port", "my"], ["my.atlas"]),
        (["look", "--atlas", "my"], ["my.atlas"]),
        (["completion", "z"], ["zsh"]),
    ],
)
def test_bash_offers_commands_options_their_words_and_files(
    words: list[str], offered: list[str], asked: object
) -> None:
    assert asked(*words) == offered  # type: ignore[operator]


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_s_script_has_every_kind_of_word_and_is_one_that_it_reads(
    shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("look", "catalog", "train", "sae-revision", "at-least", "gemma-scope-2"):
        assert word in script
    if found := shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([found, "-n", str(tmp_path / "script")], check=True)


def test_another_shell_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["completion", "cmd"])
    assert "invalid choice: 'cmd'" in capsys.readouterr().err
