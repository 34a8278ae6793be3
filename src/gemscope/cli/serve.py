"""The command that shows atlases in a browser: serve."""

from __future__ import annotations

import argparse
from typing import Any


def add_to(commands: Any) -> None:
    """serve."""
    serve = commands.add_parser(
        "serve",
        help="show an atlas in the browser, a page for every feature",
        usage="gemscope serve [ATLAS ...] [options]",
        description="Serves atlases on this machine (default: the one that ships with this package). Texts of the "
        "reader's are read with the model and the SAE that an atlas names, where they are on this machine already.",
    )
    serve.add_argument("atlases", nargs="*", metavar="ATLAS", help="what describe made, or a folder of such")
    serve.add_argument("--port", type=int, default=8400, help="default 8400; 0 takes one that is free")
    serve.add_argument("--host", default="127.0.0.1", help="another one can be reached by others, and needs --token")
    serve.add_argument("--token", help="what every request has to bring, in words of your own")
    serve.add_argument("--model", help="a model in the place of the one that the atlas names")
    serve.add_argument("--sae", help="an SAE in the place of the one that the atlas names")
    serve.add_argument("--no-model", action="store_true", help="load none: the pages alone")
    serve.add_argument("--open", action="store_true", help="open the browser, too")
    serve.set_defaults(run=_serve, parser=serve)


def _serve(args: argparse.Namespace) -> int:
    import gc

    from gemscope.app.server import serve

    with serve(
        *args.atlases,
        model=args.model,
        sae=args.sae,
        live=not args.no_model,
        host=args.host,
        port=args.port,
        token=args.token,
        block=False,
    ) as server:
        print(f"{server.address} (ctrl-c ends it)", flush=True)
        if args.open:
            import webbrowser

            webbrowser.open(server.address)
        gc.freeze()  # modules and templates stay: looking through them again would take 20 ms from all readers
        server.wait()
    return 0
