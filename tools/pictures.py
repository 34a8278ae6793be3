"""The pictures of docs/atlas.md, taken of the bundled atlas in a browser (GEMSCOPE_CHROMIUM, or the chromium on the path).

By hand, after the pages have changed: `.venv/bin/python tools/pictures.py`. With the folder of a scope of the bundled model,
those of a whole model alone: `tools/pictures.py my-scope`.
"""

import base64
import os
import shutil
import struct
import sys
import tempfile
import zlib
from pathlib import Path
from urllib.parse import quote

import numpy as np

import gemscope as gs

HOME = Path(__file__).parent.parent / "docs" / "pictures"
BUNDLED = Path(gs.__file__).parent / "data" / "atlas"
AT = "/smollm2-135m-instruct/15-res-8k"
GREETINGS, TIME = 5078, 4920
PROMPT = quote("Would you be able to travel through time using a wormhole?")
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 800}
MOST = 150_000
"""Bytes of a picture."""
LIVE = 300_000


def main() -> None:
    """Takes them all, in a copy of the atlas."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("GEMSCOPE_CHROMIUM") or shutil.which("chromium")
    if path is None:
        sys.exit("no chromium: install it, or name it in GEMSCOPE_CHROMIUM")
    HOME.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as play:
        if len(sys.argv) > 1:
            browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
            grid(browser, sys.argv[1], Path(scratch))
            with gs.serve(sys.argv[1], block=False, port=0) as server:
                whole(browser, server.url)
            browser.close()
            return
        folder = Path(shutil.copytree(BUNDLED, Path(scratch) / "bundled.atlas"))
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        with gs.serve(folder, block=False, port=0) as server:
            pages(browser, server.url)
            notebook(browser, server.url, Path(scratch))
        site(browser, folder, Path(scratch))
        browser.close()
    for picture in sorted(HOME.glob("*.png")):
        size = picture.stat().st_size
        print(f"{picture.name}: {size / 1000:.0f} kB{', too large' if size > MOST else ''}")


def pages(browser, url: str) -> None:
    """What the server shows."""
    page = browser.new_page(viewport=DESK, base_url=url)
    page.goto(f"{AT}/{GREETINGS}")
    page.hover("mark.p[tabindex] >> nth=0")
    take(page, "feature")
    page.mouse.move(0, 0)
    page.emulate_media(color_scheme="dark")
    page.goto(f"{AT}/{GREETINGS}?text={quote('Happy birthday, and good luck to you both! Welcome home.')}")
    page.click(".test button")
    page.wait_for_selector(".test mark", timeout=LIVE)
    page.locator(".modes label", has_text="Snippet").click()
    take(page, "dark")
    page.emulate_media(color_scheme="light")
    page.goto(f"{AT}?order=max&descending=true&labelled=true")
    page.wait_for_selector("feature-scatter canvas")
    take(page, "browse")
    page.goto(f"{AT}/search?kind=text&text={PROMPT}")
    page.click("form.search button")
    page.wait_for_selector(".looks li", timeout=LIVE)
    take(page, "search")
    page.goto(f"{AT}/prompt?text={PROMPT}&pin={TIME}")
    page.click("button:has-text('Look')")
    page.wait_for_selector(".pinned mark", timeout=LIVE)
    page.evaluate("document.querySelector('.pinned').scrollIntoView()")
    take(page, "prompt")
    page.goto(f"{AT}/prompt?text={quote('In the evening we sat by the fire: my mother and my')}")
    page.click("button:has-text('Look')")
    page.wait_for_selector("table.look", timeout=LIVE)
    page.locator("table.look th button").last.click()
    page.wait_for_selector("section.causes", timeout=LIVE)
    page.evaluate("document.querySelector('section.causes').scrollIntoView()")
    take(page, "causes")
    page.goto(
        f"{AT}/steer?feature={GREETINGS}&strength=1max&feature={TIME}&strength=-1max&prompt=I+think+that&tokens=32&noise=true"
    )
    wrote(page)
    page.evaluate("document.querySelector('steer-panel').scrollIntoView()")
    take(page, "steer")
    page.goto(f"{AT}/{GREETINGS}#steer")
    page.fill("steer-panel [name=tokens]", "24")
    page.click(".effect button")
    page.wait_for_selector(".effect table", timeout=LIVE)
    wrote(page)
    page.evaluate("document.querySelector('.fold:has(steer-panel)').scrollIntoView()")
    take(page, "panel")
    page.close()
    page = browser.new_page(viewport=PHONE, base_url=url)
    page.goto(f"{AT}/{GREETINGS}")
    take(page, "phone")
    page.close()


def grid(browser, scope: str, scratch: Path) -> None:
    """The figures of a whole model's SAEs, by layer and kind of site."""
    (scratch / "grid.html").write_text(gs.grid(gs.load_scope(scope)).to_html(), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1280, "height": 1130})
    page.goto((scratch / "grid.html").as_uri())
    (HOME / "scope-grid.png").write_bytes(paletted(page, page.screenshot(animations="disabled")))


def whole(browser, url: str) -> None:
    """What the server shows of a whole model."""
    page = browser.new_page(viewport=DESK, base_url=url)
    page.set_default_timeout(LIVE)
    page.goto(f"/smollm2-135m-instruct/prompt?text={PROMPT}")
    page.click("#prompt button")
    page.wait_for_selector("table.layers")
    page.locator("table.layers thead button").nth(10).click()
    page.wait_for_selector(".token-through")
    page.evaluate("document.querySelector('.with-token').scrollIntoView()")
    take(page, "layers")
    page.close()


def wrote(page) -> None:
    """Waits until a steer panel has its texts."""
    page.click("steer-panel button.main")
    page.locator("steer-panel [role=status]", has_text="Done").wait_for(timeout=LIVE)


def notebook(browser, url: str, scratch: Path) -> None:
    """A page of somebody else's with a feature in a frame."""
    frame = f"{url}{AT}/{GREETINGS}?embed=true&embedplots=false&defaulttesttext={quote('Thank you, and good luck!')}"
    (scratch / "host.html").write_text(
        '<!doctype html><meta charset="utf-8"><title>notes</title><style>body { font: 16px/1.5 Georgia, serif; max-width: 820px; '
        "margin: 32px auto } code { font-size: 14px } iframe { border: 1px solid #bbb; border-radius: 8px }</style>"
        "<h1>Notes on politeness</h1><p>One feature of layer 15 fires where people wish each other well:</p>"
        f'<iframe src="{frame}" width="820" height="480" title="feature {GREETINGS}"></iframe>',
        encoding="utf-8",
    )
    page = browser.new_page(viewport={"width": 960, "height": 660})
    page.goto((scratch / "host.html").as_uri())
    page.wait_for_timeout(500)  # a press counts once the browser has vouched that the button can be seen
    page.frame_locator("iframe").locator(".test button").click()
    page.frame_locator("iframe").locator(".test mark").first.wait_for(timeout=LIVE)
    take(page, "embed")
    page.close()


def site(browser, folder: Path, scratch: Path) -> None:
    """A folder of files, opened from the disk."""
    gs.export(folder, scratch / "site", format="site")
    page = browser.new_page(viewport=DESK)
    page.goto((scratch / "site" / AT.strip("/") / "index.html").as_uri())
    page.fill("input[type=search]", "name")
    page.wait_for_selector("ol.found li")
    take(page, "site")
    page.close()


def take(page, name: str) -> None:
    """One picture, in 256 colours."""
    (HOME / f"atlas-{name}.png").write_bytes(paletted(page, page.screenshot(animations="disabled")))


def paletted(page, png: bytes) -> bytes:
    """A PNG of half the size: the 256 most frequent colours stand for those that are like them."""
    # The browser knows how to read a PNG.
    blank = page.context.browser.new_page()
    pixels = blank.evaluate(
        """async png => {
            const picture = await createImageBitmap(await (await fetch(`data:image/png;base64,${png}`)).blob());
            const canvas = new OffscreenCanvas(picture.width, picture.height).getContext("2d");
            canvas.drawImage(picture, 0, 0);
            const {data} = canvas.getImageData(0, 0, picture.width, picture.height);
            const blob = new Blob([data]), reader = new FileReader();
            await new Promise(done => { reader.onload = done; reader.readAsDataURL(blob); });
            return [picture.width, picture.height, reader.result.split(",")[1]];
        }""",
        base64.b64encode(png).decode(),
    )
    blank.close()
    wide, high, data = pixels
    flat = np.frombuffer(base64.b64decode(data), np.uint8).reshape(-1, 4)[:, :3].astype(np.int32)
    packed, back, counts = np.unique(flat @ [1 << 16, 1 << 8, 1], return_inverse=True, return_counts=True)
    colours = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], 1)
    palette = colours[np.argsort(-counts, kind="stable")[:256]]
    nearest = ((colours[:, None] - palette) ** 2).sum(-1).argmin(1).astype(np.uint8)
    rows = np.zeros((high, wide + 1), np.uint8)  # each begins with its filter: none
    rows[:, 1:] = nearest[back].reshape(high, wide)
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", wide, high, 8, 3, 0, 0, 0),
        b"PLTE": palette.astype(np.uint8).tobytes(),
        b"IDAT": zlib.compress(rows.tobytes(), 9),
        b"IEND": b"",
    }
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


if __name__ == "__main__":
    main()
