"""A headless Chromium, and the interactive page in it; nothing is downloaded and no server runs."""

import json
import shutil
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "interactive"
FILES = ("index.html", "style.css", "problems.js", "mathematics.js", "plot.js", "page.js")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def browser():
    driver = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser` (Playwright)")
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        pytest.skip(f"needs one of {', '.join(names)} on the path")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def open_page(browser):
    """Opens the page, offline; when all is done no page may have complained or asked for anything but its files."""
    complaints, asked, contexts = [], [], []

    def open_page(fragment="", width=1280, height=900, **settings):
        context = browser.new_context(viewport={"width": width, "height": height}, offline=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url.split("#")[0]))
        page.goto((FOLDER / "index.html").as_uri() + fragment)
        page.evaluate("relaxation.ready")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    allowed = {(FOLDER / name).as_uri() for name in FILES} | {"data:,"}
    assert set(asked) <= allowed
    assert set(asked) >= allowed - {"data:,"}


@pytest.fixture(scope="module")
def page(open_page):
    """The page as it opens on a desktop; tests leave it in some setting."""
    return open_page()


@pytest.fixture(scope="module")
def read():
    """read(page, expression): a value of the page; typed arrays become lists of floats."""
    plain = "(key, value) => ArrayBuffer.isView(value) ? Array.from(value) : value"
    return lambda page, expression: json.loads(page.evaluate(f"JSON.stringify({expression}, {plain})"))
