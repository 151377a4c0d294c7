"""The page, as a browser shows it."""

import os
import shutil

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
ACCURACY = 1  # its table, after that of the contrasts
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def page(tiny_study):
    """The tiny study's page, open; `page.problems` holds console errors and requests that left it."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; install one, or name it in CHROMIUM")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        opened = browser.new_page()
        opened.problems = []
        opened.on("console", lambda m: opened.problems.append(m.text) if m.type in ("error", "warning") else None)
        opened.on("pageerror", lambda e: opened.problems.append(str(e)))
        url = (tiny_study / "results/index.html").as_uri()
        opened.on(
            "request",
            lambda r: None if r.url == url or r.url.startswith("data:") else opened.problems.append(r.url),
        )
        opened.goto(url)
        yield opened
        browser.close()


def column(page, number: int) -> list[str]:
    return page.locator("table.sortable").nth(ACCURACY).locator(f"tbody td:nth-child({number})").all_inner_texts()


def test_nothing_leaves_the_page_and_the_console_is_quiet(page):
    page.wait_for_load_state("networkidle")
    assert page.problems == []


def test_every_figure_is_shown(page, tiny_study):
    widths = page.eval_on_selector_all("figure img", "images => images.map(i => i.complete ? i.naturalWidth : 0)")
    assert len(widths) == len(list((tiny_study / "results/figures").glob("*.svg")))
    assert all(width > 100 for width in widths)


def test_a_click_sorts_and_a_second_one_turns_it_round(page):
    button = page.locator("table.sortable").nth(ACCURACY).locator("th button", has_text="Test accuracy")
    button.click()
    rising = [float(cell.split()[0]) for cell in column(page, 3)]
    assert rising == sorted(rising)
    button.click()
    falling = [float(cell.split()[0]) for cell in column(page, 3)]
    assert falling == sorted(falling, reverse=True)
    assert len(set(rising)) > 1
    page.locator("table.sortable").nth(ACCURACY).locator("th button", has_text="Method").click()
    assert column(page, 1) == sorted(column(page, 1))


def test_a_narrow_window_scrolls_tables_and_not_the_page(page):
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    sizes = page.evaluate(
        "[...document.querySelectorAll('p, li, td')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 13
    page.set_viewport_size({"width": 1280, "height": 800})


def test_the_page_states_parameters_hashes_hardware_and_versions(page, tiny_study):
    text = page.content()
    assert "epochs: 2" in text
    assert "torch 2." in text
    assert "SHA-256 of pixels" in text
    for path in (tiny_study / "results/hosts").rglob("*.json"):
        import json

        host = json.loads(path.read_text())
        assert host["hardware"] in text
        assert host["weights_sha256"][:16] in text
