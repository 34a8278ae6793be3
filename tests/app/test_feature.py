"""What a feature's page leaves out until it is asked for."""

from __future__ import annotations

from starlette.testclient import TestClient

from html_tree import parse
from served import AT


def test_lower_ranges_are_a_link_away_and_a_script_may_fetch_them_alone(still: TestClient) -> None:
    (source,) = still.app.state.shelf  # type: ignore[attr-defined]
    ranged = 0
    for feature in range(len(source.atlas)):
        whole = source[feature]
        page = parse(still.get(f"{AT}/{feature}").text)
        assert len(page.all("ol", class_="strips")) == bool(whole.examples)
        drawn = len(whole.examples) - len(whole.strongest)
        if not drawn:
            assert not page.all("section", class_="ranges")
            continue
        ranged += 1
        (link,) = page.one("section", class_="ranges").all("a")
        assert link.text.startswith(f"{drawn} more example")
        url, _, heading = link.attributes["href"].partition("#")
        assert link.attributes["hx-get"] == url
        followed, fetched = still.get(url).text, still.get(url, headers={"hx-request": "true"}).text
        there = parse(followed).one("section", class_="ranges")
        assert len(there.all("token-strip")) == drawn
        assert there.one("h2").attributes["id"] == heading == link.attributes["id"]
        assert fetched.strip() in followed
        assert "<html" not in fetched
    assert ranged > 5
