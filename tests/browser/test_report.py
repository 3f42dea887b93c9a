"""The report in Chromium without a network: nothing is asked for or complained of, and what can be clicked works."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from attnbench.analysis.compare.findings import Comparison
from attnbench.analysis.compare.stored_runs import compare
from attnbench.analysis.grid import grids
from attnbench.analysis.history import HistoryRequest, history
from attnbench.analysis.reproduction import Reproduction
from attnbench.analysis.run import read_run
from attnbench.analysis.summary import summarise
from attnbench.measure.paper_figures import drawn_figures
from attnbench.measure.papers import papers
from attnbench.measure.reproduce import commands, reproduce
from attnbench.measure.timed_claims import stored_times
from attnbench.outputs import html
from attnbench.outputs._html_page import LIMIT_BYTES
from attnbench.plan.gate_thresholds import from_options
from tests.browser.conftest import Open
from tests.many_runs import nightly
from tests.outputs.test_html import ATTACK, compared, made

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
RUNS = [
    "cpu-sequence",
    "cpu-image",
    "cpu-modern",
    "cpu-decode",
    "cpu-border",
    "cpu-heads",
    "h100-first",
    "h100-prefill",
]
REPORTS = [*RUNS, "map", "compare", "gate", "papers", "history", "attack", "names"]
SHOTS = os.environ.get("SHOTS")
"""A folder for pictures of every report."""


def compared_runs() -> Comparison:
    """A run, and the same one when everything took 3 % longer and one operator 40 %."""
    before, after = (read_run(REFERENCE / "cpu-heads") for _ in range(2))
    for column in ("wall_time_s", "wall_time_low_s", "wall_time_high_s"):
        after.visits[column] *= 1.03
        after.visits.loc[after.visits["operator"] == after.visits["operator"].iloc[-1], column] *= 1.4
    return compare(before, after, from_options(["wall_time:5%"]))


def history_page() -> str:
    """Of twelve nights, in the last six of which an operator takes longer by a quarter."""
    with tempfile.TemporaryDirectory() as folder:
        nights = nightly(Path(folder), 12, lambda day, cell: 1.25 if day > 5 and cell.operator == "performer" else 1.0)
        return html.history(history(nights, HistoryRequest()))


def text_of(name: str) -> str:
    if name == "history":
        return history_page()
    if name == "map":
        return html.grids(grids(read_run(REFERENCE / "cpu-decode"), "batch"))
    if name == "compare":
        return html.comparisons([compared_runs()])
    if name == "gate":
        return html.comparisons([compared(60), Comparison("a", "b", ())])
    if name == "papers":
        every = papers()
        times = stored_times(None)
        results = reproduce(every, times)
        return html.claims(Reproduction(results, commands(results), "claims", lambda: drawn_figures(every, times)))
    if name == "attack":
        run = made(cpu=ATTACK)
        run.visits.loc[run.visits["operator"] == "local", "operator"] = ATTACK
        run.visits.loc[run.visits["status"] == "wrong", "reason"] = ATTACK
        return html.run(summarise(run))
    if name == "names":
        run = made()
        for old, new in {"local": "long_" * 40, "performer": "انتباه_خطي", "softmax": "注意" * 60}.items():
            run.visits.loc[run.visits["operator"] == old, "operator"] = new
        return html.run(summarise(run))
    return html.run(summarise(read_run(REFERENCE / name)))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    made_files = {}
    for name in REPORTS:
        made_files[name] = folder / f"{name}.html"
        made_files[name].write_text(text_of(name), encoding="utf-8")
        print(f"{name}: {made_files[name].stat().st_size} bytes")
    return made_files


@pytest.mark.parametrize("name", REPORTS)
def test_it_opens_without_a_network_a_complaint_or_a_request_and_without_scrolling_sideways(
    name: str, files: dict[str, Path], opened: Open
) -> None:
    """In a narrow window, which is made wide."""
    found = opened(files[name], width=360)
    assert files[name].stat().st_size <= LIMIT_BYTES
    assert found.page.evaluate("document.documentElement.scrollWidth") <= 360
    found.page.set_viewport_size({"width": 1200, "height": 1000})
    assert found.page.locator("figure.chart").count() == found.page.locator("figure.chart:visible").count()
    for plot in found.page.locator(".plot").all():
        assert plot.locator("svg path").count() > 3
    assert found.requests == [files[name].as_uri()]
    assert found.complaints == []


def test_what_a_page_asks_for_or_runs_besides_is_refused_and_seen(
    files: dict[str, Path], opened: Open, tmp_path: Path
) -> None:
    """The negative control of the test above: the policy of the page keeps out what escaping would have let through."""
    text = files["cpu-heads"].read_text(encoding="utf-8")
    spoilt = tmp_path / "spoilt.html"
    added = "<script>document.title = 'taken'</script><img alt='' src='http://127.0.0.1:9/a.png'></main>"
    spoilt.write_text(text.replace("</main>", added), encoding="utf-8")
    found = opened(spoilt)
    assert found.page.title() != "taken"
    assert len([each for each in found.complaints if "Content Security Policy" in each]) == 2
    assert found.requests == [spoilt.as_uri(), "http://127.0.0.1:9/a.png"]


def column(page: Page, table: int, number: int) -> list[float]:
    """The values of a column of a sortable table, as its cells say them."""
    cells = page.locator("table.sortable").nth(table).locator(f"tbody tr > :nth-child({number})")
    return [float(each.get_attribute("data-v") or "inf") for each in cells.all()]


def test_tables_are_sorted_by_a_click_and_by_the_keyboard(files: dict[str, Path], opened: Open) -> None:
    page = opened(files["cpu-sequence"]).page
    tables = page.locator("table.sortable")
    captions = [each.inner_text() for each in tables.locator("caption").all()]
    wall_time = captions.index("Wall time")
    heading = tables.nth(wall_time).locator("thead th").nth(8)
    before = column(page, wall_time, 9)
    assert before != sorted(before)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column(page, wall_time, 9) == sorted(before)
    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(page, wall_time, 9) == sorted(before, reverse=True)
    assert tables.nth(wall_time).locator("[aria-sort]").count() == 1


def until(page: Page, holds: Callable[[], bool]) -> None:
    """Waits for what a chart shows: it is drawn a moment after what asks for it."""
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end, "the chart did not change"
        page.wait_for_timeout(50)


def lines(page: Page) -> int:
    """How many curves the first chart shows."""
    return page.locator(".plot").first.locator("g.mark-line path[stroke-width='1.8']").count()


def test_operators_are_toggled(files: dict[str, Path], opened: Open) -> None:
    page = opened(files["cpu-sequence"]).page
    legend = page.locator(".legend").first
    shown = legend.locator("[aria-pressed=true]").count()
    assert 0 < lines(page) == shown <= 8
    legend.get_by_role("button", name="performer", exact=True).click()
    assert legend.get_by_role("button", name="performer", exact=True).get_attribute("aria-pressed") == "true"
    until(page, lambda: lines(page) == shown + 1)
    legend.get_by_role("button", name="None").click()
    until(page, lambda: lines(page) == 0)
    legend.get_by_role("button", name="All").press("Enter")
    until(page, lambda: lines(page) == legend.locator("[aria-pressed=true]").count() > 20)
    legend.get_by_role("button", name="As at first").click()
    until(page, lambda: lines(page) == shown)


def labels(page: Page) -> list[str]:
    return page.locator(".plot").first.locator("g.role-axis-label text").all_text_contents()


GAPS = """plot => [...plot.querySelectorAll('g.role-axis')].flatMap(axis => {
  const boxes = [...axis.querySelectorAll('g.role-axis-label text')]
    .filter(text => text.getAttribute('opacity') !== '0').map(text => text.getBoundingClientRect());
  return boxes.slice(1).filter((box, i) => Math.abs(box.top - boxes[i].top) < 2)
    .map((box) => box.left - boxes[boxes.indexOf(box) - 1].right);
})"""
"""Between the labels side by side of a chart's axes, in pixels."""


@pytest.mark.parametrize("name", ["papers", "cpu-sequence"])
def test_labels_along_an_axis_keep_apart(name: str, files: dict[str, Path], opened: Open) -> None:
    page = opened(files[name]).page
    gaps = [gap for plot in page.locator(".plot").all() for gap in plot.evaluate(GAPS)]
    assert min(gaps) >= 5
    plot = page.locator(".plot").first
    plot.evaluate("plot => plot.querySelectorAll('g.role-axis-label text').forEach(t => t.style.fontSize = '90px')")
    assert min(plot.evaluate(GAPS)) < 5, "labels that meet are not seen"


def test_mode_metric_and_baseline_are_chosen(files: dict[str, Path], opened: Open) -> None:
    found = opened(files["cpu-sequence"])
    page = found.page
    plot = page.locator(".plot").first
    values = labels(page)
    assert "10ms" in values
    assert "1024" in values
    page.get_by_label("Mode").first.select_option("fwd_bwd")
    until(page, lambda: labels(page) != values)
    page.get_by_label("Metric").first.select_option("peak_memory")
    until(page, lambda: any(text.endswith("MiB") for text in labels(page)))
    page.get_by_label("Compared with").first.select_option("softmax:sdpa")
    page.get_by_label("Shown as").first.select_option("ratio")
    until(page, lambda: "1×" in labels(page))
    assert "ratio to softmax:sdpa" in (plot.get_attribute("aria-label") or "")
    page.get_by_label("Metric").first.select_option("flops")
    until(page, lambda: "1×" not in labels(page) or "ratio to softmax." in (plot.get_attribute("aria-label") or ""))
    assert found.complaints == []


def test_hover_says_the_figures_of_the_table(files: dict[str, Path], opened: Open) -> None:
    page = opened(files["cpu-sequence"]).page
    tip = page.locator(".tip")
    assert tip.is_hidden()
    tables = page.locator("table.sortable")
    rows = next(each for each in tables.all() if each.locator("caption").inner_text() == "Wall time")
    page.locator(".plot").first.scroll_into_view_if_needed()
    box = page.locator(".plot").first.locator("svg").bounding_box()
    assert box
    heard = set()
    for share in (0.12, 0.3, 0.5, 0.7, 0.95):
        for height in (0.1, 0.4, 0.7):
            page.mouse.move(box["x"] + share * box["width"], box["y"] + height * box["height"])
            tip.wait_for(state="visible")
            name, size, figure, *_ = tip.inner_text().split("\n")
            if figure.startswith("Wall time: "):
                heard.add((name, size, figure.removeprefix("Wall time: ").split(" ")[0]))
    assert len(heard) >= 5
    head = rows.locator("thead th").all_inner_texts()
    told = {
        row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in rows.locator("tbody tr").all()
    }
    for name, size, figure in heard:
        place = next(i for i, text in enumerate(head) if text.split(" ")[0] == size.split(" ")[0])
        assert told[name][place - 1].strip("↓*") == figure


def test_figures_of_papers_show_curves_and_printed_numbers_and_explanations_open(
    files: dict[str, Path], opened: Open
) -> None:
    found = opened(files["papers"])
    page = found.page
    section = page.locator("#paper-kanets")
    plot = section.locator(".plot").first
    assert plot.locator("g.mark-line path[stroke-width='1.8']").count() == 4
    diamonds = plot.locator("g.mark-symbol path[fill='transparent']")
    assert diamonds.count() == 12
    plot.scroll_into_view_if_needed()
    diamonds.first.hover(force=True)
    tip = page.locator(".tip")
    tip.wait_for(state="visible")
    assert "in the paper" in tip.inner_text()
    terms = page.locator("#paper-hamburger details", has_text="lower bread").last
    assert not terms.locator("ul").is_visible()
    terms.locator("summary").press("Enter")
    assert "17 551 065 088" in terms.locator("ul").inner_text()
    page.get_by_role("link", name="performer", exact=True).click()
    assert page.url.endswith("#paper-performer")
    assert found.complaints == []


def look(page: Page) -> list[str]:
    """The colours of the page's ground and of a chart's labels."""
    ground = "getComputedStyle(document.body).backgroundColor"
    label = "document.querySelector('.plot g.role-axis-label text').getAttribute('fill')"
    return list(page.evaluate(f"[{ground}, {label}]"))


def in_dark(page: Page) -> list[str]:
    """Its reader now likes it dark. Returns: its look when the charts have followed."""
    light = look(page)
    page.emulate_media(color_scheme="dark")
    until(page, lambda: look(page)[1] != light[1])
    return look(page)


@pytest.mark.parametrize("name", ["cpu-sequence", "history"])
def test_it_is_light_or_dark_as_the_reader_is_and_charts_follow(
    name: str, files: dict[str, Path], opened: Open
) -> None:
    found = opened(files[name], color_scheme="light")
    page = found.page
    light, dark = look(page), in_dark(page)
    assert light[0] != dark[0]
    assert found.complaints == []


def test_without_scripts_a_history_has_every_run_and_change(files: dict[str, Path], opened: Open) -> None:
    page = opened(files["history"], java_script_enabled=False).page
    with_scripts = opened(files["history"]).page
    assert page.locator("figure.chart:visible").count() == 0 < with_scripts.locator("figure.chart:visible").count()
    rows = page.locator("table tbody tr").count()  # some are in a part that a click opens, with scripts or without
    assert rows == with_scripts.locator("table tbody tr").count() > 12
    said = page.locator("main").text_content() or ""
    assert [day for day in range(12) if f"{day:040x}"[:7] not in said] == []
    assert "performer" in page.locator("table").first.inner_text()


def test_without_scripts_every_table_is_there(files: dict[str, Path], opened: Open) -> None:
    page = opened(files["cpu-sequence"], java_script_enabled=False).page
    assert page.locator("figure.chart:visible").count() == 0
    assert page.locator("noscript p").first.is_visible()
    assert page.locator("th button").count() == 0
    assert page.locator("table:visible").count() > 3
    assert "softmax:sdpa" in page.locator("table").first.inner_text()


def serious(page: Page, part: str, *rules: str) -> list[str]:
    """What axe finds serious or critical in a part of a page. rules: those that are tried; all if there are none."""
    options = {"resultTypes": ["violations"], **({"runOnly": rules} if rules else {})}
    found = Axe().run(page, context=part, options=options).response["violations"]
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize(
    ("name", "part"),
    [("h100-first", "body"), ("map", "body"), ("gate", "body"), ("history", "body"), ("papers", "#paper-kanets")],
)
def test_axe_finds_nothing_serious(name: str, part: str, files: dict[str, Path], opened: Open) -> None:
    """On a page of each kind; part: what of it is looked at in the dark as well, where only colours are others."""
    page = opened(files[name], color_scheme="light", bypass_csp=True).page
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert serious(page, "html") == []
    in_dark(page)
    assert serious(page, part, "color-contrast") == []


def test_axe_finds_what_is_serious(files: dict[str, Path], opened: Open) -> None:
    """The negative control: a button without a name, text that is hardly to be seen."""
    page = opened(files["h100-first"], color_scheme="light", bypass_csp=True).page
    page.evaluate("document.querySelector('.legend button').replaceChildren()")
    page.evaluate("document.querySelector('figcaption').style.color = '#eee'")
    assert {re.split(":", each)[0] for each in serious(page, "html")} == {"button-name", "color-contrast"}
    page.evaluate("document.querySelector('figcaption').style.color = '#222'")
    in_dark(page)
    assert {re.split(":", each)[0] for each in serious(page, "body", "color-contrast")} == {"color-contrast"}


@pytest.mark.skipif(not SHOTS, reason="SHOTS=folder takes pictures")
@pytest.mark.parametrize("name", REPORTS)
def test_pictures(name: str, files: dict[str, Path], opened: Open) -> None:
    for scheme, width in (("light", 1200), ("dark", 1200), ("light", 400)):
        page = opened(files[name], width=width, color_scheme=scheme).page
        page.wait_for_timeout(300)
        page.screenshot(path=Path(SHOTS or "") / f"{name}-{scheme}-{width}.png", full_page=name in ("attack", "map"))
