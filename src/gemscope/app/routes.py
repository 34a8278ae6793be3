"""Where everything is. An address without a method is read; what writes or costs work may be posted."""

from __future__ import annotations

from starlette.convertors import Convertor, register_url_convertor
from starlette.routing import Route

from gemscope.app import (
    api,
    causes,
    compare,
    everywhere,
    feature,
    home,
    kept,
    layers,
    lists,
    map_view,
    prompt,
    search,
    steer_view,
)
from gemscope.app.static import static

_AT = "/{model}/{source}"
_ONE = f"{_AT}/{{index}}"
_LIST = "/lists/{list}"


class _Digits(Convertor[str]):
    """A number that a feature may have, as it is written."""

    regex = "[0-9]{1,12}"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("digits", _Digits())

ROUTES: list[Route] = [
    # What is asked for most, and by an address that no other is like: looked for first, not after fifty others.
    Route(f"{_AT}/{{index:digits}}", feature.feature),
    Route("/", home.home),
    Route("/.json", home.home),
    Route("/index.json", home.home),
    Route("/health", lists.health),
    Route("/queue/{name}.json", lists.queue),
    Route("/search.json", everywhere.everywhere),
    Route("/search", everywhere.everywhere),
    Route("/static/{name:path}", static),
    Route("/favicon.ico", static),
    *api.ROUTES,
    Route("/compare.json", compare.pair),
    Route("/compare", compare.pair),
    Route("/lists.json", kept.all_lists),
    Route("/lists", kept.all_lists),
    Route("/lists/new", kept.new, methods=["POST"]),
    Route("/lists/keep", kept.keep, methods=["POST"]),
    Route("/lists/import", kept.take_in, methods=["POST"]),
    Route(f"{_LIST}.json", kept.one_list),
    Route(f"{_LIST}.html", kept.share),
    Route(_LIST, kept.one_list),
    Route(f"{_LIST}/head", kept.head, methods=["POST"]),
    Route(f"{_LIST}/move", kept.move, methods=["POST"]),
    Route(f"{_LIST}/note", kept.note, methods=["POST"]),
    Route(f"{_LIST}/remove", kept.remove, methods=["POST"]),
    Route(f"{_LIST}/delete", kept.delete, methods=["POST"]),
    Route("/{model}/prompt.json", layers.layers, methods=["GET", "POST"]),
    Route("/{model}/prompt", layers.layers, methods=["GET", "POST"]),
    Route("/{model}.json", home.model),
    Route("/{model}", home.model),
    Route(f"{_AT}/random", lists.anywhere),
    Route(f"{_AT}/search.json", search.search, methods=["GET", "POST"]),
    Route(f"{_AT}/search", search.search, methods=["GET", "POST"]),
    Route(f"{_AT}/prompt.json", prompt.prompt, methods=["GET", "POST"]),
    Route(f"{_AT}/prompt", prompt.prompt, methods=["GET", "POST"]),
    Route(f"{_AT}/steer.json", steer_view.steer, methods=["GET", "POST"]),
    Route(f"{_AT}/steer", steer_view.steer, methods=["GET", "POST"]),
    Route(f"{_AT}/steer/stream", steer_view.stream, methods=["GET", "POST"]),
    Route(f"{_AT}/steer/units.json", steer_view.units),
    Route(f"{_AT}/compare.json", compare.texts, methods=["GET", "POST"]),
    Route(f"{_AT}/compare", compare.texts, methods=["GET", "POST"]),
    Route(f"{_AT}/attribute.json", causes.attribute, methods=["GET", "POST"]),
    Route(f"{_AT}/attribute", causes.attribute, methods=["GET", "POST"]),
    Route(f"{_AT}/map.json", map_view.feature_map),
    Route(f"{_AT}/map", map_view.feature_map),
    Route(f"{_AT}/map/points", map_view.points),
    Route(f"{_AT}/map/tiles/{{tile}}.json", map_view.tile),
    Route(f"{_AT}/browse.json", lists.browse),
    Route(f"{_AT}.json", lists.browse),
    Route(_AT, lists.browse),
    Route(f"{_ONE}/output-score.json", feature.output_score),
    Route(f"{_ONE}/output-score", feature.output_score),
    Route(f"{_ONE}.json", feature.feature),
    Route(_ONE, feature.feature),
    Route(f"{_ONE}/test", feature.trial, methods=["POST"]),
    Route(f"{_ONE}/labels", feature.explain, methods=["POST"]),
    Route(f"{_ONE}/labels/{{label}}", feature.forget, methods=["DELETE"]),
    # Forms can only post.
    Route(f"{_ONE}/explain", feature.explain, methods=["POST"]),
    Route(f"{_ONE}/forget", feature.forget, methods=["POST"]),
]
