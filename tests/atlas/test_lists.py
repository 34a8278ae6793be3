"""Lists of features: orders, filters, pages."""

from __future__ import annotations

import pytest

from gemscope.atlas.reader import Atlas
from gemscope.errors import InputError


def test_lists_are_ordered_filtered_and_paged_as_plain_python_would(planted: Atlas) -> None:
    pages = list(planted)
    keys = {
        "index": lambda page: page.index,
        "density": lambda page: page.density,
        "max": lambda page: page.max,
        "mean": lambda page: page.mean,
    }
    for order, key in keys.items():
        for descending in (False, True):
            ranked = sorted(pages, key=lambda page: (-key(page) if descending else key(page), page.index))
            if order == "index" and descending:
                ranked = pages[::-1]
            found = planted.summaries(order=order, descending=descending, limit=1000)
            assert [one.feature for one in found] == [page.index for page in ranked]
            some = planted.summaries(order=order, descending=descending, offset=7, limit=5)
            assert some == found[7:12]
    for summary, page in zip(planted.summaries(), pages, strict=True):
        assert (summary.count, summary.density, summary.max, summary.mean, summary.label) == (
            page.count,
            page.density,
            page.max,
            page.mean,
            page.label,
        )
        first = page.examples[0] if page.examples else None
        assert summary.token == (first and first.tokens[first.peak])
    bound = sorted(page.density for page in pages)[25]
    filters: list[tuple[dict[str, object], object]] = [
        ({"dead": True}, lambda page: page.dead),
        ({"dead": False, "labelled": True}, lambda page: not page.dead and page.label is not None),
        ({"labelled": False}, lambda page: page.label is None),
        ({"min_density": bound}, lambda page: page.density >= bound),
        ({"max_density": bound, "min_max": 20.0}, lambda page: page.density <= bound and page.max >= 20),
        ({"max_max": 20.0, "text": "WORDS lik"}, lambda page: page.max <= 20 and "words" in (page.label or "")),
        ({"text": "nothing like this"}, lambda page: False),
    ]
    for chosen, keep in filters:
        wanted = [page.index for page in pages if keep(page)]
        assert [one.feature for one in planted.summaries(**chosen)] == wanted
        assert planted.count(**chosen) == len(wanted)
    assert planted.count() == 40


def test_by_label_the_features_without_one_come_last(planted: Atlas) -> None:
    labels = {page.index: page.label for page in planted}
    named = sorted((one for one in labels if labels[one]), key=lambda one: (labels[one].casefold(), one))
    rest = [one for one in labels if not labels[one]]
    assert [one.feature for one in planted.summaries(order="label")] == named + rest
    assert [one.feature for one in planted.summaries(order="label", descending=True)] == named[::-1] + rest


def test_an_order_that_there_is_not_is_refused(planted: Atlas) -> None:
    with pytest.raises(InputError, match="order='size': expected one of index, density, max, mean, label"):
        planted.summaries(order="size")
    with pytest.raises(InputError, match="offset=-1"):
        planted.summaries(offset=-1)


def test_the_scatter_has_every_living_feature(planted: Atlas) -> None:
    ids, densities, maxima = planted.scatter()
    living = [page for page in planted if not page.dead]
    assert ids.tolist() == [page.index for page in living]
    assert densities.tolist() == [page.density for page in living]
    assert maxima.tolist() == [page.max for page in living]
