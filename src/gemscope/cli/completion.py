"""`gemscope completion`: a script that teaches a shell to complete the words of every command, and files elsewhere."""

from __future__ import annotations

import argparse

SHELLS = ("bash", "zsh", "fish")


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser], of: argparse.ArgumentParser) -> None:
    """Adds the command. `of` is the parser whose words are completed."""
    parser = commands.add_parser(
        "completion",
        help="a script that completes words and files in your shell",
        description='Prints the script. In bash: eval "$(gemscope completion bash)", in ~/.bashrc; in zsh: gemscope '
        "completion zsh > _gemscope, in a folder of $fpath; in fish: gemscope completion fish | source, in its config.",
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that is to learn them")
    parser.set_defaults(run=lambda args: _print(of, args.shell))


def _print(parser: argparse.ArgumentParser, shell: str) -> int:
    print(script(parser, shell), end="")
    return 0


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """What the shell has to read."""
    import shtab

    _files(parser, shtab.FILE)
    return str(shtab.complete(parser, shell))


def _files(parser: argparse.ArgumentParser, files: dict[str, str]) -> None:
    """What is not one of a few words is a file, as far as a shell can know; shtab by itself would complete nothing."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                _files(one, files)
        elif action.nargs != 0 and action.choices is None:
            action.complete = files  # type: ignore[attr-defined]
