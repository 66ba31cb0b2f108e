"""The report in a real browser: nothing fails or is fetched, and it fits every screen and paper, and can be read."""

import shutil

import pytest

from hamjepa_jax.report.page import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome in PATH"),
]

LONG = "a_name_that_is_far_too_long_for_a_telephone_and_has_no_space_in_it_at_all"
# Of everything with text of its own: the least contrast with what is behind it, and what has it.
LEAST_CONTRAST = """() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  let least = [Infinity, ""];
  for (const node of document.body.querySelectorAll("*")) {
    const text = [...node.childNodes].filter((c) => c.nodeType === 3 && c.textContent.trim());
    if (!text.length || node.tagName === "STYLE") continue;
    const computed = getComputedStyle(node);
    const color = parse(node instanceof SVGElement ? computed.fill : computed.color);
    const [low, high] = [luminance(color), luminance(behind(node))].sort((a, b) => a - b);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < least[0]) least = [contrast, `${node.tagName}: ${text[0].textContent.trim()}`];
  }
  return least;
}"""
# Mean brightness of the text and of the background, from 0 to 1.
BRIGHTNESS = """() => [getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]
  .map((color) => color.match(/\\d+/g).slice(0, 3).reduce((sum, c) => sum + Number(c) / 765, 0))"""


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    with playwright.sync_playwright() as started:
        # As root, as in a container, there is no sandbox.
        running = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module", params=["one", "three"])
def address(request, make_run, tmp_path_factory):
    """Where the report of one run, or of three, lies."""
    directories = [make_run("whole")]
    if request.param == "three":
        directories += [
            make_run("other", variant=LONG, seed=1, config={LONG: {LONG: LONG}}),
            make_run("begun", variant="sigreg", split=False, without=("evaluation/metrics.json",)),
        ]
    path = tmp_path_factory.mktemp("browser") / "report.html"
    write_report(directories, path)
    return path.as_uri()


@pytest.fixture
def open_page(browser, address):
    """A function that opens the report, and fails at the end if anything went wrong in the browser."""
    contexts, problems = [], []

    def requested(request):
        if request.url != address and not request.url.startswith("data:"):
            problems.append(f"fetched {request.url}")

    def open_(*, width=1280, scheme="light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("console", lambda message: problems.append(f"console {message.type}: {message.text}"))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(f"failed {request.url[:80]}"))
        page.on("request", requested)
        page.goto(address)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not problems


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_and_can_be_read(open_page, width, scheme):
    page = open_page(width=width, scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    scroll, client = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert scroll <= client == width
    contrast, where = page.evaluate(LEAST_CONTRAST)
    assert contrast >= 4.5, where


def test_light_and_dark_are_different(open_page):
    brightness = {scheme: open_page(scheme=scheme).evaluate(BRIGHTNESS) for scheme in ("light", "dark")}
    text, background = brightness["light"]
    assert text < 0.25 < 0.9 < background
    text, background = brightness["dark"]
    assert background < 0.15 < 0.8 < text


def test_every_image_is_shown_and_every_id_is_unique(open_page):
    page = open_page()
    images = page.evaluate("[...document.images].map((image) => image.naturalWidth)")
    assert len(images) > 50
    assert min(images) > 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((node) => node.id)")
    assert len(ids) == len(set(ids))
    # What figures refer to is there: markers, and what cuts them off.
    missing = page.evaluate(
        "[...document.querySelectorAll('use')].map((use) => use.getAttribute('href'))"
        ".filter((href) => !document.querySelector(href))"
    )
    assert missing == []
    clipped = page.evaluate(
        "[...document.querySelectorAll('[clip-path]')].map((node) => node.getAttribute('clip-path').slice(4, -1))"
        ".filter((href) => !document.querySelector(href))"
    )
    assert clipped == []


def test_text_of_figures_is_legible_on_a_phone(open_page):
    page = open_page(width=390)
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('figure svg text')].map((text) =>"
        " parseFloat(getComputedStyle(text).fontSize) * text.ownerSVGElement.getScreenCTM().a))"
    )
    assert smallest >= 8


def test_labels_of_figures_are_not_cut_off(open_page):
    page = open_page(width=390)
    cut_off = page.evaluate(
        "[...document.querySelectorAll('figure svg text')].filter((text) => {"
        "  const [own, whole] = [text.getBoundingClientRect(), text.ownerSVGElement.getBoundingClientRect()];"
        "  return own.left < whole.left - 1 || own.right > whole.right + 1"
        "    || own.top < whole.top - 1 || own.bottom > whole.bottom + 1;"
        "}).map((text) => text.textContent)"
    )
    assert cut_off == []


def test_paper_is_light_and_shows_what_is_folded(open_page):
    page = open_page(scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    text, _ = page.evaluate(BRIGHTNESS)
    assert text < 0.25
    visible = "[...document.querySelectorAll('.settings td')].map((cell) => cell.checkVisibility())"
    assert set(page.evaluate(visible)) == {True}
    page.emulate_media(media="screen")
    assert set(page.evaluate(visible)) == {False}
    assert len(page.pdf()) > 10_000
