"""The report as a reader meets it, in a headless Chromium without a network."""

import pytest
from browser import opened
from test_report import EVIL, hostile, records, run

from torch_gfshadow.report import write_report


@pytest.fixture(scope="module")
def page_of(tmp_path_factory):
    made = {}

    def make(*runs):
        key = tuple(r.name for r in runs)
        if key not in made:
            path = tmp_path_factory.mktemp("report") / "r.html"
            made[key] = write_report(runs, path)
        return made[key]

    return make


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_renders_every_figure_without_a_complaint_or_a_request(page_of, scheme):
    with opened(page_of(run("a"), run("b", edge=2.5)), scheme) as (page, wrong):
        plots = page.locator(".plot")
        assert plots.count() == 7
        for index in range(7):
            assert plots.nth(index).locator(".scatterlayer path.js-line").count() >= 1
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}[scheme]
        drawn = page.locator(".plot .main-svg").first.evaluate("e => e.style.background")
        assert drawn == paper
    assert wrong == []


def test_hovering_shows_values_with_their_error_bars(page_of):
    with opened(page_of(run("a"))) as (page, wrong):
        plot = page.locator("#plot-distances")
        plot.scroll_into_view_if_needed()
        box = plot.locator(".nsewdrag").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
        page.wait_for_selector("#plot-distances .hoverlayer .legendtext", timeout=5000)
        text = plot.locator(".hoverlayer .legendtext").all_text_contents()
        assert any("discrepancy from gradient flow" in t and "±" in t for t in text), text
    assert wrong == []


def test_the_keyboard_moves_along_a_figure_and_the_values_are_announced(page_of):
    with opened(page_of(run("a"))) as (page, wrong):
        page.focus("#plot-distances")
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        said = page.locator("#said").text_content()
        assert said.startswith("step 5: ")
        assert "discrepancy from gradient flow 0.0025 ± 0.0001" in said
        page.keyboard.press("End")
        assert page.locator("#said").text_content().startswith("step 59: ")
    assert wrong == []


def test_the_axis_button_puts_flow_time_on_every_figure(page_of):
    with opened(page_of(run("a"))) as (page, wrong):
        ends = "() => [...document.querySelectorAll('.plot')].map((p) => Math.max(...p.data[0].x))"
        assert set(page.evaluate(ends)) <= {50.0, 59.0}
        page.focus("#axis")
        page.keyboard.press("Enter")
        assert {round(end, 6) for end in page.evaluate(ends)} <= {5.0, 5.9}
        assert page.locator("#axis").text_content() == "Show steps"
        page.focus("#plot-distances")
        page.keyboard.press("End")
        assert page.locator("#said").text_content().startswith("time 5.9")
    assert wrong == []


def test_the_theme_button_redraws_the_figures(page_of):
    with opened(page_of(run("a"))) as (page, wrong):
        background = "e => e.style.background"
        before = page.locator(".plot .main-svg").first.evaluate(background)
        page.focus("#theme")
        page.keyboard.press("Enter")
        page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
        assert page.locator(".plot .main-svg").first.evaluate(background) != before
        assert page.locator("#theme").text_content() == "Light mode"
    assert wrong == []


def test_hostile_strings_are_shown_and_never_run(page_of):
    with opened(page_of(hostile(), run("b"))) as (page, wrong):
        assert page.locator("h1").text_content() == f"{EVIL} · b"
        assert page.locator("img").count() == 0
        names = page.locator("#plot-bounds .legendtext").all_text_contents()
        assert any(EVIL in name for name in names), names
        page.focus("#plot-bounds")
        page.keyboard.press("ArrowRight")
        assert EVIL in page.locator("#said").text_content()
        page.wait_for_selector("#plot-bounds .hoverlayer .legendtext", timeout=5000)
        hovered = page.locator("#plot-bounds .hoverlayer .legendtext").all_text_contents()
        assert any("onerror" in text for text in hovered), hovered
        assert page.locator("#plot-bounds a[href^='javascript']").count() == 0
    assert wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa_and_curves_that_of_graphics(page_of, scheme):
    ratios = """() => {
      const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
      const luminance = (c) => {
        const [r, g, b] = c.match(/[\\d.]+/g).map((v) => linear(Number(v) / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const ratio = (a, b) => { const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p);
        return (x + 0.05) / (y + 0.05); };
      const probe = document.createElement("i"); document.body.append(probe);
      const of = (name) => {
        probe.style.color = `var(--${name})`;
        return getComputedStyle(probe).color; };
      const out = {};
      for (const ground of ["paper", "shade"]) {
        for (const name of ["ink", "soft", "link", "good", "note", "warning", "problem"])
          out[`text ${name} on ${ground}`] = ratio(of(name), of(ground)) / 4.5;
      }
      const runs = [..."01234567"].map((i) => "run" + i);
      for (const name of ["blue", "vermillion", "green", "purple", ...runs])
        out[`curve ${name}`] = ratio(of(name), of("paper")) / 3;
      return out; }"""
    with opened(page_of(run("a")), scheme) as (page, _):
        found = page.evaluate(ratios)
    assert {name: value for name, value in found.items() if value < 1} == {}


def test_it_fits_a_phone(page_of):
    with opened(page_of(run("a")), width=390) as (page, wrong):
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0
    assert wrong == []


def test_ten_thousand_records_are_drawn_in_seconds(tmp_path):
    path = write_report([run("long", n=10_000)], tmp_path / "r.html")
    assert path.stat().st_size < 8e6
    with opened(path) as (page, wrong):
        took = page.evaluate("performance.now()")
    assert took < 20_000
    assert wrong == []
    assert len(records(10)) == 10
