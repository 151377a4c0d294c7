"""The page, as a browser shows it."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import ROOT
from matplotlib.colors import to_hex

from selfdistill.cli import main
from selfdistill.params import read_study
from selfdistill.reporting.figures import draw_figures
from selfdistill.reporting.inline import COLOURS, inline_svg, run_id
from selfdistill.reporting.overview import overview_of, write_overview
from selfdistill.reporting.page import FOLDER, bold, claims_table, rendered, sortable, write_page
from selfdistill.reporting.records import read_records
from selfdistill.reporting.tables import write_tables
from selfdistill.studies import folders
from selfdistill.summary import STYLE
from selfdistill.summary.figure import COLOURS as LOOKS

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
ACCURACY = "#table-accuracy"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 400, "height": 800}


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; install one, or name it in CHROMIUM")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def tiny_study(tiny_study, tmp_path_factory):
    """A copy for these tests alone: other workers' have no page above all studies."""
    folder = tmp_path_factory.mktemp("pages") / "repo"
    shutil.copytree(tiny_study.folder, folder, symlinks=True)
    return type(tiny_study)(folder)


@pytest.fixture(scope="module")
def overview(tiny_study):
    """The page above all studies, of this checkout."""
    return write_overview(tiny_study.folder, folders(tiny_study.folder))


@pytest.fixture(scope="module")
def pages(tiny_study, overview):
    return [(tiny_study / "results/index.html").as_uri(), overview.as_uri()]


@pytest.fixture
def page(browser, pages):
    """The tiny study's page, open; `page.problems` holds console errors and requests that left it."""
    context = browser.new_context(viewport=WIDE, permissions=["clipboard-read", "clipboard-write"])
    opened = context.new_page()
    opened.problems = []
    opened.on("console", lambda m: opened.problems.append(m.text) if m.type in ("error", "warning") else None)
    opened.on("pageerror", lambda e: opened.problems.append(str(e)))
    opened.on(
        "request",
        lambda r: None if r.url == pages[0] or r.url.startswith("data:") else opened.problems.append(r.url),
    )
    opened.goto(pages[0])
    yield opened
    context.close()


def column(page, number: int) -> list[str]:
    return page.locator(f"{ACCURACY} tbody tr > :nth-child({number})").all_inner_texts()


def test_nothing_leaves_the_page_and_the_console_is_quiet(page):
    page.wait_for_load_state("networkidle")
    assert page.problems == []


def figures(study) -> int:
    return len(list((study / "results/figures").glob("*.svg")))


def test_every_figure_is_shown_and_described(page, tiny_study):
    widths = page.eval_on_selector_all("figure svg", "pictures => pictures.map(p => p.getBoundingClientRect().width)")
    assert len(widths) == figures(tiny_study) > 4
    assert all(width > 100 for width in widths)
    named = "pictures => pictures.map(p => document.getElementById(p.getAttribute('aria-labelledby')).textContent)"
    assert all(len(text) > 20 for text in page.eval_on_selector_all("figure svg", named))


def test_names_are_there_once_and_every_way_leads_somewhere(page):
    names = page.eval_on_selector_all("[id]", "elements => elements.map(e => e.id)")
    assert len(names) == len(set(names))
    inside = page.eval_on_selector_all("[href^='#']", "elements => elements.map(e => e.getAttribute('href').slice(1))")
    inside += page.eval_on_selector_all("[data-run]", "elements => elements.map(e => e.dataset.run)")
    inside += re.findall(r"url\(#([^)]+)\)", page.content())
    assert set(inside) <= set(names)


def test_files_that_are_linked_exist(page, tiny_study):
    ways = page.eval_on_selector_all("main a", "links => links.map(link => link.getAttribute('href'))")
    files = {way.partition("#")[0] for way in ways} - {""}
    assert len(files) > 20
    assert [name for name in files if not (tiny_study / "results" / name).exists()] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser, pages, scheme):
    from axe_playwright_python.sync_playwright import Axe

    for url in pages:
        context = browser.new_context(color_scheme=scheme, viewport=WIDE)
        opened = context.new_page()
        opened.goto(url)
        opened.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        for size in (WIDE, NARROW) if scheme == "light" else (WIDE,):
            opened.set_viewport_size(size)
            found = Axe().run(opened).response
            assert len(found["passes"]) > 20
            serious = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
            assert [(v["id"], v["nodes"][0]["html"][:100]) for v in serious] == []
        context.close()


def test_figures_follow_the_page_into_the_dark(page):
    drawn = page.locator("figure svg").first.evaluate("svg => svg.outerHTML")
    assert re.findall(r": #[0-9a-f]{6}", drawn) == []
    tell = """() => {
        const sheets = [...document.querySelectorAll('figure svg')].map((svg) => svg.querySelector('path'));
        return [getComputedStyle(document.body).backgroundColor, ...sheets.map((path) => getComputedStyle(path).fill)];
    }"""
    page.emulate_media(color_scheme="light")
    assert set(page.evaluate(tell)) == {"rgb(255, 255, 255)"}
    page.emulate_media(color_scheme="dark")
    assert set(page.evaluate(tell)) == {"rgb(20, 23, 28)"}


def test_without_its_script_everything_is_there(browser, pages, tiny_study):
    context = browser.new_context(java_script_enabled=False, viewport=NARROW)
    bare = context.new_page()
    bare.goto(pages[0])
    assert bare.locator("figure svg").count() == figures(tiny_study)
    assert bare.locator(f"{ACCURACY} tbody tr").count() == 3
    assert bare.locator("button").count() == 0  # nothing that would do nothing
    assert not bare.locator("form.filter").is_visible()
    assert bare.locator(".contents a").first.is_visible()
    assert bare.evaluate("document.documentElement.scrollWidth") <= 400
    context.close()


def test_a_click_sorts_and_a_second_one_turns_it_round(page):
    button = page.locator(f"{ACCURACY} th button", has_text="Test accuracy")
    button.click()
    rising = [float(cell.split()[0]) for cell in column(page, 3)]
    assert rising == sorted(rising)
    button.focus()
    page.keyboard.press("Enter")  # by keyboard, too
    falling = [float(cell.split()[0]) for cell in column(page, 3)]
    assert falling == sorted(falling, reverse=True)
    assert len(set(rising)) > 1
    heads = page.locator(f"{ACCURACY} th[aria-sort]")
    assert heads.evaluate_all("heads => heads.map(h => h.getAttribute('aria-sort'))") == ["descending"]
    page.locator(f"{ACCURACY} th button", has_text="Method").click()
    assert column(page, 1) == sorted(column(page, 1))


def test_rows_are_filtered_by_method_and_by_group(page):
    shown = page.locator(f"{ACCURACY} tbody tr:visible")
    for words in ("byot, dr-kd", "byot, drkd"):  # by title, and by file
        page.fill("input[name=method]", words)
        assert sorted(shown.locator("th").all_inner_texts()) == ["BYOT", "DR-KD"]
    assert "rows are shown" in page.locator("form.filter output").inner_text()
    assert page.locator("#table-runs tbody tr:not([hidden])").count() == 4
    page.fill("input[name=method]", "")
    page.select_option("select[name=group]", "controls")
    assert shown.locator("th").all_inner_texts() == ["Plain"]
    for table in ("contrasts", "claims"):  # of methods of the papers, against controls
        assert page.locator(f"#table-{table} tbody tr:visible").count() == 0
    page.select_option("select[name=group]", "")
    assert shown.count() == 3
    assert page.locator("form.filter output").inner_text() == ""


def test_a_table_is_copied_as_it_is_shown(page, tiny_study):
    page.fill("input[name=method]", "byot")
    page.locator(f"{ACCURACY} .files button", has_text="CSV").click()
    head, row = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert head == "Method,Seeds,Test accuracy (%),Difference to control"
    assert row.startswith("BYOT,2,")
    page.locator(f"{ACCURACY} .files button", has_text="LaTeX").click()
    lines = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert lines[0] == "\\begin{tabular}{lccc}"
    assert lines[2] == "Method & Seeds & Test accuracy (\\%) & Difference to control \\\\"
    assert "$\\pm$" in lines[4]
    assert page.locator("[role=status]").inner_text() == "1 of 3 rows, those that are shown, are copied as LaTeX."
    assert page.locator(f"{ACCURACY} .files button").all_inner_texts() == ["copied 1 of 3 rows"] * 2
    page.fill("input[name=method]", "")
    page.locator(f"{ACCURACY} .files button").last.click()
    page.locator("[role=status]", has_text="The table is copied as LaTeX.").wait_for(state="attached")


def test_a_dot_tells_its_run(page, tiny_study):
    dot = page.locator("svg [data-run]").first
    dot.scroll_into_view_if_needed()
    dot.locator("use").hover()
    told = page.locator("#tip").inner_text()
    run = re.fullmatch(r"run-(?P<model>.+)-(?P<variant>.+)-(?P<seed>\d+)", dot.get_attribute("data-run"))
    path = f"results/records/measured/{run['model']}/{run['variant']}/{run['seed']}.json"
    assert json.loads((tiny_study / path).read_text())["weights_sha256"][:16] in told
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()


def test_a_narrow_window_scrolls_tables_and_not_the_page(page):
    page.set_viewport_size(NARROW)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    sizes = page.evaluate(
        "[...document.querySelectorAll('p, li, td')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 13
    box = page.locator("#table-contrasts .scroll")
    assert box.get_attribute("tabindex") == "0"  # by keyboard, too
    assert box.evaluate("box => { box.scrollLeft = 150; return box.scrollLeft; }") == 150
    lead = page.locator("#table-contrasts tbody th").first.bounding_box()
    assert lead["x"] == pytest.approx(box.bounding_box()["x"], abs=1)  # the first column stays in sight
    assert not page.locator(".contents a").first.is_visible()  # folded
    page.locator(".contents summary").click()
    assert page.locator(".contents a").first.is_visible()


def test_on_paper_nothing_is_cut_off(page):
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 900})
    assert not page.locator(".contents").is_visible()
    assert not page.locator(".files").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    broken = """() => [...document.querySelectorAll("td, th")].flatMap((cell) => {
        const range = document.createRange(), found = [], texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
        while (texts.nextNode()) for (const word of texts.currentNode.data.matchAll(/[A-Za-z_]+/g)) {
            range.setStart(texts.currentNode, word.index);
            range.setEnd(texts.currentNode, word.index + word[0].length);
            if (new Set([...range.getClientRects()].map((box) => box.top)).size > 1) found.push(word[0]);
        }
        return found;
    })"""
    assert page.evaluate(broken) == []
    overflows = page.eval_on_selector_all(".scroll", "boxes => boxes.map(box => getComputedStyle(box).overflowX)")
    assert set(overflows) == {"visible"}


def test_the_page_states_parameters_hashes_hardware_and_versions(page, tiny_study):
    text = page.content()
    assert "epochs: 2" in text
    assert "torch 2." in text
    assert "SHA-256 of pixels" in text
    for path in (tiny_study / "results/hosts").rglob("*.json"):
        host = json.loads(path.read_text())
        assert host["hardware"] in text
        assert host["weights_sha256"][:16] in text


def test_the_page_says_what_the_study_says_of_the_papers_claims(page):
    rows = page.locator("#table-claims tbody tr").all_inner_texts()
    assert any(row.startswith("drkd-cost") and "contradicted" in row for row in rows)


# ---- without a browser ----


def test_every_colour_of_the_figures_style_has_one_in_the_dark():
    known = {to_hex(colour) for colour in LOOKS.values()}
    known |= {f"#{found}" for found in re.findall(r": ([0-9a-f]{6})$", STYLE.read_text(), re.MULTILINE)}
    assert known <= set(COLOURS)
    light, dark = re.findall(r":root \{(.*?)\}", (FOLDER / "page.css").read_text(), re.DOTALL)
    for name in COLOURS.values():
        assert f"--{name}:" in light
        assert f"--{name}:" in dark


def test_a_figure_keeps_names_of_its_own():
    drawn = """<?xml version="1.0"?><svg width="72pt" height="36pt" viewBox="0 0 72 36"><metadata>m</metadata>
<defs><style type="text/css">*{stroke-linejoin: round}</style></defs><g id="a"><!-- text --><path d="M 0 0
L 1 1" clip-path="url(#p)" style="fill: #ffffff; stroke: #123456"/>
<a xlink:href="#run-net-byot-0" target="_blank"><use xlink:href="#a" style="fill: #0173b2"/></a></g></svg>"""
    expected = (
        '<svg viewBox="0 0 72 36" style="--width: 96px" role="img" aria-labelledby="label"><g id="cost-a">'
        '<path d="M 0 0 L 1 1" clip-path="url(#cost-p)" style="fill: var(--paper); stroke: #123456"/> '
        '<g data-run="run-net-byot-0"><use href="#cost-a" style="fill: var(--blue)"/></g></g></svg>'
    )
    assert inline_svg(drawn, "cost", "label") == expected
    assert run_id("net", "byot", 0) == "run-net-byot-0"


def test_the_page_of_all_studies_leads_to_each_that_has_one(overview, tiny_study):
    text = overview.read_text()
    assert '<a href="index.html">default</a>' in text
    assert '<a href="../studies/digits-all/results/index.html">digits-all</a>' in text
    assert (tiny_study / "studies/digits-all/results/index.html").is_file()
    others = folders(tiny_study.folder).values()
    lacking = sum(not (tiny_study / folder / "results/index.html").is_file() for folder in others)
    assert f"{lacking} studies without results here" in text
    assert "byot-gain: undecided" in text
    assert overview_of(tiny_study.folder, folders(tiny_study.folder)) == text  # the same again


def test_the_committed_page_of_all_studies_is_of_the_committed_results():
    path = ROOT / "results/studies.html"
    if path.is_file():
        assert path.read_text() == overview_of(ROOT, folders(ROOT)), "`selfdistill page --all` writes it again"


def test_open_shows_the_page_in_the_browser(project, tmp_path, monkeypatch, capsys):
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    monkeypatch.chdir(project.folder)
    assert main(["page", "--open"]) == 0
    assert (tmp_path / "opened").read_text().strip() == (project / "results/index.html").as_uri()
    assert main(["page", "--all", "--open"]) == 0
    assert (tmp_path / "opened").read_text().strip() == (project / "results/studies.html").as_uri()


def test_a_thousand_runs_make_a_small_page_quickly(tiny_study, tmp_path, monkeypatch):
    """CPU seconds, for a machine that does other work."""
    content = yaml.safe_load((tiny_study / "params.yaml").read_text())
    content |= {"root": str(tiny_study.folder), "seeds": ["0-333"]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    for kind in ("records/measured", "hosts"):
        for path in sorted((tiny_study / "results" / kind).glob("*/*/0.json")):
            one = json.loads(path.read_text())
            target = tmp_path / "results" / path.relative_to(tiny_study / "results").parent
            target.mkdir(parents=True)
            for seed in range(334):
                (target / f"{seed}.json").write_text(json.dumps({**one, "seed": seed} if "seed" in one else one))
    monkeypatch.chdir(tmp_path)
    study = read_study(Path("params.yaml"))
    write_tables(study)
    draw_figures(study.results)
    begin = time.process_time()
    write_page(study, Path("params.yaml"))
    assert time.process_time() - begin < 2
    page = (tmp_path / "results/index.html").read_text()
    assert page.count('<tr id="run-') == 1002
    assert len(page.encode()) < 3e6


def test_a_contrast_that_a_claim_asks_for_may_be_gone_from_the_study(tiny_study, monkeypatch):
    monkeypatch.chdir(tiny_study.folder)
    study = read_study()
    records = read_records(study)
    whole = claims_table(study, records, "claims.md")
    rest = claims_table(study.model_copy(update={"contrasts": {}}), records, "claims.md")
    assert whole["body"].count("<tr") == rest["body"].count("<tr") > whole["body"].count('data-method=""') == 0
    assert rest["body"].count('data-method=""') > 0


def test_what_a_table_says_is_escaped():
    frame = pd.DataFrame({"title": ['a "b" <c>'], "model": ["net"], "method": ["byot"]})
    body = sortable(pd.DataFrame({"Method": ["<c>"], "Number": [bold("< 0.5", True)]}), frame)["body"]
    assert body == (
        '<tr data-method="a &quot;b&quot; &lt;c&gt;, byot" data-network="net" data-group="the four papers">'
        '<th scope="row" class="lead">&lt;c&gt;</th>'
        '<td class="number" data-value="0.5"><strong>&lt; 0.5</strong></td></tr>\n'
    )
    with pytest.raises(Exception, match="undefined"):
        rendered("page.html")
