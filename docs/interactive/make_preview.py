"""Draws preview.png, the still picture of the page, by a Chromium that is installed.

pip install -e ".[browser]"
python docs/interactive/make_preview.py
"""

import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parent
SETTING = "#f=rugged&t=0.1&T=0.3&k=12"


def main() -> None:
    """The first panel, at twice the resolution, with colours from a palette."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("make_preview needs chromium, chromium-browser or google-chrome on the path.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1120, "height": 1000}, device_scale_factor=2)
        page.goto((FOLDER / "index.html").as_uri() + SETTING)
        page.evaluate("relaxation.ready")
        box = page.locator("#panel-1 .panel").bounding_box()
        clip = {
            "x": box["x"] - 14,
            "y": box["y"] - 6,
            "width": box["width"] + 28,
            "height": box["height"] + 12,
        }
        picture = page.screenshot(clip=clip, full_page=True)
        browser.close()
    with Image.open(io.BytesIO(picture)) as image:
        image.convert("RGB").quantize(128).save(FOLDER / "preview.png", optimize=True)


if __name__ == "__main__":
    main()
