"""The interactive page in use: sliders, keys, links, small screens, light and dark, and a wish for no motion."""

import re
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "docs" / "interactive"

# Every element with text of its own: its font size, its colour, and the ground it stands on.
TEXTS = """() => {
  const opaque = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const ground = getComputedStyle(e).backgroundColor;
      if (!ground.startsWith("rgba(") || !ground.endsWith(" 0)")) return ground;
    }
    return "rgb(255, 255, 255)";
  };
  return [...document.body.querySelectorAll("*")].filter((e) => e.checkVisibility()
      && !e.matches("option, script, noscript, .visually-hidden, .skip") && (e.matches("select")
      || [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())))
    .map((e) => { const style = getComputedStyle(e), svg = e instanceof SVGElement; return {
      text: e.textContent.slice(0, 30), size: parseFloat(style.fontSize), ground: opaque(e),
      colour: svg ? style.fill : style.color}; });
}"""


def luminance(colour):
    """Relative luminance of WCAG 2 from "rgb(r, g, b)"."""
    channels = np.array([float(part) for part in re.findall(r"[\d.]+", colour)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def focused(page):
    return page.evaluate("document.activeElement.id || document.activeElement.className")


@pytest.mark.parametrize("name", ["t", "T"])
def test_sliders_move_the_curve(page, name):
    """Both ways of a user: the arrow keys and the pointer. The drawn line is what moves, and the words with it."""
    page.evaluate("relaxation.set({f: 'rugged', t: 0.1, T: 0.3, k: 0})")
    slider, line = page.locator(f"#{name}"), page.locator("#plot-loss .line.u")
    seen = [(line.get_attribute("d"), page.text_content(f"#{name}-value"))]
    slider.focus()
    for action in (lambda: page.keyboard.press("PageUp"), lambda: slider.click(position={"x": 40, "y": 10})):
        before = page.evaluate(f"relaxation.state.{name}")
        action()
        page.wait_for_function(f"relaxation.state.{name} !== {before}")
        text = page.text_content(f"#{name}-value")
        assert slider.get_attribute("aria-valuetext") == text
        seen.append((line.get_attribute("d"), text))
    assert len({path for path, _ in seen}) == len({text for _, text in seen}) == 3
    page.keyboard.press("Home")
    page.wait_for_function(f"relaxation.state.{name} === {0.0 if name == 'T' else '10 ** -2.7'}")


def test_temperature_zero_is_hopf_lax(page):
    page.focus("#T")
    page.keyboard.press("Home")
    page.wait_for_function("relaxation.state.T === 0")
    assert page.text_content("#T-value") == "0 (Hopf–Lax)"
    page.keyboard.press("ArrowRight")
    page.wait_for_function("relaxation.state.T > 0")
    assert page.evaluate("relaxation.state.T") == pytest.approx(0.01)


def test_tab_goes_through_the_controls_in_order(open_page):
    page = open_page()
    order = []
    for _ in range(20):
        page.keyboard.press("Tab")
        order.append(focused(page))
    first = ["skip", "theme", "formula", "f", "t", "T", "k", "play-1", "step-1", "reset-1"]
    assert order[: len(first)] == first
    assert order[len(first) : 18] == ["formula", "T2", "c", "s", "play-2", "step-2", "reset-2", *order[17:18]]
    unlabelled = "[...document.querySelectorAll('input, select')].filter((e) => !e.labels.length).length"
    assert page.evaluate(unlabelled) == 0
    page.focus("#t")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "3px"


@pytest.mark.parametrize(("panel", "place", "stop"), [(1, "k", 400), (2, "s", 4)])
def test_space_plays_and_pauses(open_page, panel, place, stop):
    """Space on a slider of the panel; on a button it is the button's own. At the end it stops, and starts anew."""
    page = open_page()
    page.focus("#t" if panel == 1 else "#c")
    page.keyboard.press(" ")
    page.wait_for_function(f"relaxation.state.{place} > 0.1")
    assert page.text_content(f"#play-{panel}") == "Pause"
    page.keyboard.press(" ")
    assert page.evaluate("relaxation.playing") == [False, False]
    reached = page.evaluate(f"relaxation.state.{place}")
    page.wait_for_timeout(150)
    assert page.evaluate(f"relaxation.state.{place}") == reached
    page.click(f"#step-{panel}")
    assert page.evaluate(f"relaxation.state.{place}") == pytest.approx(
        reached + (1 if panel == 1 else 0.05), abs=1e-6
    )
    page.focus(f"#play-{panel}")
    page.keyboard.press(" ")
    page.wait_for_function(f"relaxation.state.{place} === {stop} && !relaxation.playing[{panel - 1}]")
    page.wait_for_function(
        f"document.getElementById('status-{panel}').textContent.length > 20"
    )  # and it is said
    page.click(f"#reset-{panel}")
    assert page.evaluate(f"relaxation.state.{place}") == 0


def test_tapping_the_tracks_sets_the_time(page):
    page.evaluate("relaxation.set({f: 'rugged', t: 0.01})")
    box = page.locator("#plot-tracks svg").bounding_box()
    page.locator("#plot-tracks svg").click(
        position={"x": box["width"] / 2, "y": 28 + (box["height"] - 72) / 2}
    )
    assert page.evaluate("relaxation.state.t") == pytest.approx(
        0.1, rel=0.1
    )  # the middle of a logarithmic axis


def test_no_motion_where_none_is_wanted(open_page):
    """Play shows nine still pictures."""
    page = open_page(reduced_motion="reduce")
    page.evaluate("""() => { window.seen = new Set();
      const heard = new MutationObserver(() => seen.add(relaxation.state.k));
      heard.observe(document.getElementById("k-value"), {childList: true}); }""")
    page.click("#play-1")
    page.wait_for_function("relaxation.state.k === 400", timeout=15_000)
    assert sorted(page.evaluate("[...seen]")) == [50 * i for i in range(9)]


def test_links_hold_the_setting(open_page):
    page = open_page("#f=sharp&t=0.05&T=0&k=37&T2=0.25&c=2&s=1.5&theme=dark&unknown=1")
    wanted = {"f": "sharp", "t": 0.05, "T": 0, "k": 37, "T2": 0.25, "c": 2, "s": 1.5, "theme": "dark"}
    state = page.evaluate("relaxation.state")
    assert {key: state[key] for key in ("f", "T", "k", "s", "theme")} == {
        key: wanted[key] for key in ("f", "T", "k", "s", "theme")
    }
    for key in ("t", "T2", "c"):  # to half a step of the slider
        assert abs(np.log10(state[key] / wanted[key])) <= 0.01 + 1e-9
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    odd = open_page("#%E0%A4%A&constructor=1&f=toString&t=0&T=-1&k=abc&s=1e9").evaluate("relaxation.state")
    assert odd["t"] == pytest.approx(10**-2.7)
    assert (odd["f"], odd["T"], odd["k"], odd["s"]) == ("rugged", 0, 0, 4)
    page.select_option("#f", "rastrigin")
    page.wait_for_function("location.hash.includes('f=rastrigin')")
    again = open_page(page.evaluate("location.hash"))
    assert again.evaluate("relaxation.state") == page.evaluate("relaxation.state")
    # A change between the page's own link and the browser's word of it is kept, and a link typed in is followed.
    again.evaluate("relaxation.set({k: 50})")
    again.wait_for_function("location.hash.includes('k=50&')")
    again.evaluate("relaxation.set({k: 60}), dispatchEvent(new HashChangeEvent('hashchange'))")
    assert again.evaluate("relaxation.state.k") == 60
    again.wait_for_function("location.hash.includes('k=60&')")
    again.evaluate("location.hash = '#f=well&k=7'")
    again.wait_for_function("relaxation.state.f === 'well' && relaxation.state.k === 7")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_all_can_be_read(open_page, scheme, width):
    """No sideways scrolling, text of 12 px or more, contrast of text 4.5 and of lines 3 or more, targets of 36 px."""
    page = open_page(width=width, height=740, color_scheme=scheme)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    texts = page.evaluate(TEXTS)
    assert len(texts) > 100
    assert {part["text"] for part in texts if part["size"] < 12} == set()
    assert {part["text"] for part in texts if contrast(part["colour"], part["ground"]) < 4.5} == set()
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for look in ("f", "u", "minima", "on-f", "on-u"):
        drawn = page.evaluate(
            f"getComputedStyle(document.querySelector('.swatch.{look}')).getPropertyValue('--c')"
        )
        colour = [int(drawn.strip()[i : i + 2], 16) for i in (1, 3, 5)]
        assert contrast(f"rgb{tuple(colour)}", ground) >= 3
    heights = page.evaluate(
        "[...document.querySelectorAll('main input, select, button')].map((e) => e.getBoundingClientRect().height)"
    )
    assert min(heights) >= 36
    outside = page.evaluate(
        """[...document.querySelectorAll("svg text")].filter((e) => { const a = e.getBoundingClientRect(),
        b = e.closest("svg").getBoundingClientRect(); return a.left < b.left - 1 || a.right > b.right + 1; }).length"""
    )
    assert outside == 0


def test_toggle_overrules_the_systems_colours(open_page):
    page = open_page(color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.click("#theme")
    assert page.evaluate(ground) != light
    page.emulate_media(color_scheme="dark")
    page.click("#theme")
    assert page.evaluate(ground) == light


def test_nothing_moves_in_the_layout(page):
    """Sliders at their ends and other losses leave every control where it is."""
    controls = "[...document.querySelectorAll('#panel-1 input, #panel-1 button, #panel-1 dd')]"
    places = f"{controls}.map((e) => e.getBoundingClientRect().top + scrollY)"
    page.evaluate("relaxation.set({f: 'rugged', t: 0.1, T: 0.3, k: 0})")
    before = page.evaluate(places)
    for some in ("{t: 5, T: 3}", "{t: 0.002, T: 0}", "{f: 'rastrigin', k: 399}", "{f: 'absolute', t: 5}"):
        page.evaluate(f"relaxation.set({some})")
        assert page.evaluate(places) == before


def test_the_page_is_self_contained():
    """No address of another place, and small enough to mail."""
    files = [*sorted(FOLDER.glob("*.*s")), FOLDER / "index.html"]
    texts = [path.read_text(encoding="utf-8") for path in files]
    allowed = "http://www.w3.org/2000/svg"  # the name of a vocabulary, not fetched
    assert not any("//" in re.sub(r"(^|\s)//.*", "", text.replace(allowed, "")) for text in texts)
    assert not any(
        word in text for text in texts for word in ("import(", "fetch(", "XMLHttpRequest", 'type="module"')
    )
    assert sum(len(text.encode()) for text in texts) < 200_000
