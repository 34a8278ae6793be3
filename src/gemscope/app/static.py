"""The files that pages load (styles, scripts), read once: names that are not in this table do not exist."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gemscope.pages.links import static_digest

_KINDS = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "woff2": "font/woff2",
}
ICON = "gem.svg"
"""What a browser gets that asks for /favicon.ico, as it does beside answers that are not pages."""
_FOR_EVER = "public, max-age=31536000, immutable"


async def static(request: Request) -> Response:
    """A file by name. An address that carries the digest of all files may be kept for ever."""
    found = _table().get(request.path_params.get("name", ICON))
    if found is None:
        raise HTTPException(404, "no such file")
    content, kind = found
    etag = f'"{static_digest()}"'
    kept = _FOR_EVER if request.query_params.get("v") == static_digest() else "no-cache"
    headers = {"etag": etag, "cache-control": kept}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=kind)


@cache
def _table() -> dict[str, tuple[bytes, str]]:
    found: dict[str, tuple[bytes, str]] = {}

    def collect(folder: Traversable, prefix: str) -> None:
        for one in folder.iterdir():
            if one.is_dir():
                collect(one, f"{prefix}{one.name}/")
            elif kind := _KINDS.get(one.name.rpartition(".")[2]):
                found[prefix + one.name] = one.read_bytes(), kind

    collect(files("gemscope.pages") / "static", "")
    return found
