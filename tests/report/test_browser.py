"""The report page in a real browser, opened from file://. Skipped where playwright or Chromium is not installed."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datamodules.files.exclusion import excluded_rows
from rept.report.page import write_report
from rept.results.html_text import visible_html
from rept.results.trace import Trace
from rept.utils.text import UNSAFE
from tests.helpers.runs import HOSTILE, READABLE, Shape, write_run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")

WIDTHS, SCHEMES = (1280, 390), ("light", "dark")
SHAPES = {
    "plain": Shape(queries=12, hits=6, rows=60, opponents=2),
    "hostile": Shape(texts=HOSTILE, labels=HOSTILE[:2], calibrated=True, opponents=2),
    "readable": Shape(texts=READABLE, words=40),
    "bare": Shape(labels=(), scored=0, probes=False),
    "long": Shape(queries=2, hits=1, rows=20, scored=1, words=1500),
    "large": Shape(queries=100, hits=20, rows=2000, scored=3, words=60),
}

# WCAG 2, rule 1.4.3, for every visible text: a contrast of 4.5, or 3 for large letters. Translucent backgrounds are
# blended with what is behind them.
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const known = new Map();
  const rgba = (colour) => known.get(colour) ?? known.set(colour, drawn(colour)).get(colour);
  const drawn = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = (node) => {
    const layers = [];
    for (let n = node; n; n = n.parentElement) layers.push(rgba(getComputedStyle(n).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const faults = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || node.closest("svg, script, :disabled")) continue;
    if (!node.checkVisibility({ visibilityProperty: true })) continue;
    const style = getComputedStyle(node), under = behind(node), size = parseFloat(style.fontSize);
    const [a, b] = [light(over(rgba(style.color), under)), light(under)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const least = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
    if (ratio < least) faults.push(`${ratio.toFixed(2)} ${node.className} ${walker.currentNode.data.slice(0, 30)}`);
  }
  return [...new Set(faults)];
}"""

UNSAFE_CODE_POINTS = """(source) => {
  const unsafe = new RegExp(`^${source}$`, "u");
  return [...Array(0x110000).keys()].filter((code) => unsafe.test(String.fromCodePoint(code)));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # Chromium refuses root
        arguments = ["--disable-gpu", "--disable-dev-shm-usage", *sandbox]
        browser = started.chromium.launch(executable_path=CHROMIUM, headless=True, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trace]:
    made: dict[str, Trace] = {}

    def report(name: str) -> Trace:
        if name not in made:
            made[name] = Trace(write_run(tmp_path_factory.mktemp(name) / "run", SHAPES[name]))
            write_report(made[name])
        return made[name]

    return report


@pytest.fixture
def visit(browser: Any, reports: Callable[[str], Trace]) -> Iterator[Callable[..., Any]]:
    """Opens a report; at the end no page may have logged an error, run a foreign script or used the network."""
    opened = []

    def open_page(name: str, width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, accept_downloads=True
        )
        page = context.new_page()
        page.faults = []
        page.on("console", lambda message: page.faults.append(message.text))
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("dialog", lambda dialog: page.faults.append("dialog"))
        page.on("request", lambda request: page.faults.append(request.url) if request.url[:4] == "http" else None)
        page.goto(reports(name).folder.report.resolve().as_uri())
        page.wait_for_selector("#list [role=option]")
        opened.append(page)
        return page

    yield open_page
    for page in opened:
        assert page.evaluate("window.pwned") is None
        page.context.close()
        assert page.faults == []


def _selected(page: Any) -> int:
    return int(page.locator("#list [aria-selected=true]").get_attribute("data-query"))


def _number(text: str) -> float:
    return float(text.replace("−", "-"))


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        *((name, width, scheme) for name in ("plain", "hostile") for width in WIDTHS for scheme in SCHEMES),
        *((name, *view) for name in ("readable", "bare", "long") for view in ((1280, "light"), (390, "dark"))),
    ],
)
def test_the_page_is_readable_at_any_width_and_in_both_colour_schemes(
    visit: Any, name: str, width: int, scheme: str
) -> None:
    page = visit(name, width, scheme)
    for button in page.locator(".hit .toggle").all():
        if button.get_attribute("aria-expanded") == "false":
            button.click()
    page.locator("input.mark").first.check()
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CONTRAST) == []
    if name == "plain":
        assert len(page.locator(".tokens [class~=p8], .tokens [class~=n8]").all()) > 0


@pytest.mark.parametrize("width", WIDTHS)
def test_a_long_label_leaves_space_for_the_score_beside_it(visit: Any, width: int) -> None:
    parts = visit("hostile", width).locator(".culprits li > *").all()
    overflowing = "(node) => node.scrollWidth > node.clientWidth + 1"
    assert [part.inner_text() for part in parts if part.evaluate(overflowing)] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_every_control_has_a_name_and_every_id_is_unique(visit: Any, width: int) -> None:
    page = visit("hostile", width)
    page.locator("input.mark").first.check()
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "link", "checkbox", "combobox", "searchbox", "slider", "spinbutton", "listbox", "option"}
    roles |= {"img", "meter", "region", "group", "navigation", "search", "figure"}
    nodes = [node for node in tree if not node.get("ignored") and node["role"]["value"] in roles]
    assert {"checkbox", "combobox", "searchbox", "slider", "option", "button"} <= {n["role"]["value"] for n in nodes}
    unnamed = [n["role"]["value"] for n in nodes if not n.get("name", {}).get("value", "").strip()]
    assert [role for role in unnamed if role != "figure"] == []
    focusable = "a[href], button, input, select, summary, [tabindex='0']"
    nested = "[...document.querySelectorAll('button, a, summary')].filter((node) => node.querySelector({})).length"
    assert page.evaluate(nested.format(json.dumps(focusable))) == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((n) => n.id)")
    assert len(ids) == len(set(ids))
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map((n) => Number(n.localName[1]))")
    assert levels[0] == 1 and all(later - earlier <= 1 for earlier, later in zip(levels, levels[1:], strict=False))
    assert page.evaluate("document.documentElement.lang") == "en"


def test_arrow_keys_move_through_the_list(visit: Any) -> None:
    page = visit("plain")
    page.locator("#list").focus()
    moves = (("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1), ("End", 11), ("ArrowDown", 11), ("Home", 0))
    for key, expected in moves:
        page.keyboard.press(key)
        assert _selected(page) == expected
        assert page.locator("#detail-title").inner_text().startswith(f"Query {expected}")
    page.get_by_role("button", name="Next query").click()
    assert _selected(page) == 1


def test_search_finds_queries_hits_and_rows(visit: Any, reports: Any) -> None:
    page, trace = visit("plain"), reports("plain")
    target = trace.queries[7]
    page.locator("#search").fill(target["prompt"][3:30].upper())
    playwright.expect(page.locator("#count")).to_have_text("1 of 12 queries")
    assert _selected(page) == 7
    hit = trace.hits(4)[2]
    page.locator("#search").fill(f"row {hit.row}")
    with_row = [query for query in range(12) if any(h.row == hit.row for h in trace.hits(query))]
    playwright.expect(page.locator("#count")).to_have_text(f"{len(with_row)} of 12 queries")
    page.locator("#search").fill(hit.response[:40])
    with_text = [query for query in range(12) if any(hit.response[:40] in h.response for h in trace.hits(query))]
    playwright.expect(page.locator("#count")).to_have_text(f"{len(with_text)} of 12 queries")
    page.locator("#search").fill("no such words")
    playwright.expect(page.locator("#detail")).to_contain_text("No query matches")


def test_filters_by_behaviour_match_and_score(visit: Any, reports: Any) -> None:
    page, trace = visit("plain"), reports("plain")

    def listed() -> list[int]:
        return [int(node.get_attribute("data-query")) for node in page.locator("#list [role=option]").all()]

    page.locator("#label").select_option("false_fact")
    of_label = [query["query"] for query in trace.queries if query["label"] == "false_fact"]
    assert listed() == of_label
    page.locator("#match").select_option("own")
    assert listed() == [query for query in of_label if trace.hits(query)[0].label == "false_fact"]
    page.locator("#label").select_option("")
    page.locator("#match").select_option("")
    best = sorted(trace.hits(query)[0].score for query in range(12))
    page.locator("#least").evaluate(f"(node) => {{ node.value = {best[6]}; node.dispatchEvent(new Event('input')); }}")
    least = float(page.locator("#least").input_value())
    assert listed() == [query for query in range(12) if trace.hits(query)[0].score >= least]
    assert 0 < len(listed()) < 12


def test_filter_by_what_stands_out(visit: Any) -> None:
    page = visit("hostile")
    page.locator("#flagged").select_option("no")
    assert page.locator("#count").inner_text() == "3 of 6 queries"
    assert "No training sample stands out for this query." in page.locator("#detail").inner_text()
    page.locator("#flagged").select_option("yes")
    assert "stands out (p = 0.01)" in page.locator("#detail").inner_text()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_token_shows_its_score_and_highlights_those_it_agrees_with(visit: Any, reports: Any, width: int) -> None:
    page, trace = visit("plain", width), reports("plain")
    row = trace.scored(0)[0]
    sides = trace.tokens(0, row)
    strongest = max(range(len(sides["train"].tokens)), key=lambda i: sides["train"].scores[i])
    train, query = (page.locator(".pair").first.locator(".side").nth(i) for i in (0, 1))
    readout = page.locator(".readout").first
    for act in ("hover", "focus"):
        page.locator("h1").hover()
        if act == "focus":
            train.locator("[tabindex='0']").focus()
        else:
            train.locator(f"[data-cell='{strongest}']").hover()
        shown = _number(readout.locator("b").inner_text())
        assert shown == pytest.approx(sides["train"].scores[strongest], rel=2e-3)
        assert sides["train"].tokens[strongest].strip() in readout.inner_text()
        highlighted = [int(node.get_attribute("data-cell")) for node in query.locator(".agrees").all()]
        assert sorted(highlighted) == sorted(set(sides["train"].agrees[strongest]))
    page.keyboard.press("ArrowRight")
    assert int(train.locator(".on").get_attribute("data-cell")) > strongest
    page.locator("h1").hover()
    page.locator("#search").focus()
    assert page.locator(".agrees, .on").count() == 0


def test_special_tokens_can_be_hidden(visit: Any) -> None:
    page = visit("plain")
    special = page.locator(".pair .special").first
    assert special.is_visible()
    page.get_by_role("checkbox", name="Special tokens").uncheck()
    assert not special.is_visible()
    page.get_by_role("button", name="Next query").click()
    page.wait_for_selector(".pair .special", state="attached")
    assert not page.locator(".pair .special").first.is_visible()


def test_marked_rows_are_kept_downloaded_and_read_by_training(visit: Any, reports: Any, tmp_path: Path) -> None:
    page, trace = visit("plain"), reports("plain")
    first = trace.hits(0)[0].row
    page.locator("#detail").get_by_role("checkbox", name=f"Mark row {first}").first.check()
    page.locator("#bulk-count").fill("2")
    page.get_by_role("button", name="Mark", exact=True).click()
    expected = sorted({hit.row for query in range(12) for hit in trace.hits(query)[:2]} | {first})
    for kind in ("json", "csv"):
        with page.expect_download() as download:
            page.locator(f"#act [data-save={kind}]").click()
        assert download.value.suggested_filename == f"culprits.{kind}"
        path = tmp_path / f"culprits.{kind}"
        download.value.save_as(path)
        assert sorted(excluded_rows(path, SHAPES["plain"].rows)) == expected
    page.reload()
    page.wait_for_selector("#list [role=option]")
    assert page.locator("#bar-count").inner_text() == f"{len(expected)} rows"
    page.get_by_role("button", name="Unmark all").click()
    assert not page.locator("#bar").is_visible()


def test_marked_rows_are_copied(visit: Any) -> None:
    page = visit("plain")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    box = page.locator("#rows input.mark").nth(1)
    box.check()
    page.locator("#act [data-copy=json]").click()
    playwright.expect(page.locator("#act [data-copy=json]")).to_have_text("Copied")
    assert json.loads(page.evaluate("navigator.clipboard.readText()")) == [int(box.get_attribute("data-rows"))]


def test_near_duplicates_are_one_card_and_are_marked_together(visit: Any, reports: Any) -> None:
    page, trace = visit("plain"), reports("plain")
    query = next(q for q in range(12) if sum(hit.row % 7 == 3 for hit in trace.hits(q)) > 1)
    alike = [hit.row for hit in trace.hits(query) if hit.row % 7 == 3]
    page.locator(f"#option-{query}").click()
    cards = page.locator("#detail .hit")
    assert f"{len(alike) - 1} near-duplicate" in page.locator("#detail .hits-head").first.inner_text()
    card = cards.filter(has_text=f"row {alike[0]}").filter(has_text="near-duplicate").first
    card.get_by_role("checkbox", name=f"Mark row {alike[0]} and").check()
    assert page.locator("#bar-count").inner_text() == f"{len(alike)} rows"


def test_hostile_text_is_shown_as_text(visit: Any, reports: Any) -> None:
    page = visit("hostile")
    for query in range(6):
        page.locator(f"#option-{query}").click()
        page.wait_for_selector("#detail .tokens")
        shown = page.locator("#detail .query-text").inner_text()
        assert HOSTILE[(1000 + query) % len(HOSTILE)].split("\0")[0].strip() in shown
    assert "U+202E" in page.locator("#detail").inner_text() + page.locator("#list").inner_text()
    assert "\u202e" not in page.locator("body").inner_text()
    page.locator("#search").fill(HOSTILE[0])
    page.locator("#label").select_option(HOSTILE[1])
    assert page.evaluate("document.scripts.length") == len(page.query_selector_all("script[id^=block-]")) + 1


def test_the_page_and_python_agree_on_unsafe_characters(visit: Any, reports: Any) -> None:
    page, trace = visit("hostile"), reports("hostile")
    source = re.search(r"const UNSAFE = /(.*)/gu;", page.locator("script").last.text_content())[1]
    found = page.evaluate(UNSAFE_CODE_POINTS, source)
    assert found == [code for code in range(sys.maxunicode + 1) if re.fullmatch(UNSAFE, chr(code))]
    for query in trace.queries:
        page.locator(f"#option-{query['query']}").click()
        shown = page.locator("#detail .query-text .text").first.evaluate("(node) => node.innerHTML")
        assert html.unescape(shown) == html.unescape(visible_html(query["prompt"]))


def test_characters_of_several_tokens_are_never_split(visit: Any) -> None:
    page = visit("readable")
    page.locator("#option-2").click()
    query = page.locator(".pair .side").nth(1)
    query.locator("[data-cell]").first.wait_for(timeout=10_000)  # the pair is unpacked on first use
    cells = [node.inner_text() for node in query.locator("[data-cell]").all()]
    assert "👨‍👩‍👧‍👦" in [cell.strip() for cell in cells] and "🇸🇪" in [cell.strip() for cell in cells]
    page.locator("#option-0").click()
    text = page.locator("#detail .query-text .text").first
    assert text.evaluate("(node) => getComputedStyle(node).unicodeBidi") == "plaintext"
    assert text.evaluate("(node) => getComputedStyle(node).direction") == "rtl"


def test_a_very_long_document_is_cut_until_the_reader_shows_all(visit: Any) -> None:
    page = visit("long")
    clipped = page.locator(".pair .clipped").first
    clipped.locator("xpath=..").get_by_role("button", name="Show all").click()
    assert clipped.evaluate("(node) => node.clientHeight") > 2000
    clipped.locator("xpath=..").get_by_role("button", name="Show less").click()
    assert clipped.evaluate("(node) => node.clientHeight") < 500


def test_a_large_report_loads_within_two_seconds(visit: Any) -> None:
    times = []
    for _ in range(2):  # the better of two, as other processes may slow one down
        page = visit("large")
        times.append(page.evaluate("performance.now()"))
    assert page.locator("#list [role=option]").count() == 100
    assert min(times) < 2000


def test_in_print_the_controls_are_gone_and_the_text_is_whole(visit: Any) -> None:
    page = visit("long", scheme="dark")
    page.emulate_media(media="print")
    for gone in (".list", "nav", "#act .buttons", ".steps"):
        assert not page.locator(gone).first.is_visible()
    assert page.locator(".pair .clipped").first.evaluate("(node) => node.clientHeight") > 2000
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(CONTRAST) == []


def test_an_example_opens_its_query(visit: Any, reports: Any) -> None:
    page = visit("plain")
    link = page.locator(".finding .more a").last
    number = int(link.get_attribute("href").removeprefix("#query-"))
    page.locator("#search").fill("no such words")
    link.click()
    playwright.expect(page.locator("#detail-title")).to_contain_text(f"Query {number}")
    assert page.locator("#search").input_value() == ""
