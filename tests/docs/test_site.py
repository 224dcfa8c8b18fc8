"""The built site: nothing from elsewhere, the search works, pages fit a telephone. Skipped where it is not built."""

from __future__ import annotations

import re
import shutil

import pytest
from blocks import ROOT, is_notebook, pages

SITE = ROOT / "docs" / "_build"
BUILT = pytest.mark.skipif(not (SITE / "index.html").exists(), reason="the site has not been built")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_tutorials_are_notebooks_that_the_build_runs():
    lessons = [page for page in pages() if page.startswith("docs/tutorials/") and not page.endswith("index.md")]
    assert len(lessons) >= 5
    assert all(is_notebook(page) for page in lessons)
    text = (ROOT / "docs" / "conf.py").read_text()
    assert 'nb_execution_mode = "force"' in text
    assert "nb_execution_raise_on_error = True" in text


def test_links_between_files_lead_somewhere():
    for page in pages():
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", (ROOT / page).read_text()):
            path = (ROOT / page).parent / target
            # Pages that Sphinx makes are not there before it has run.
            if "gallery/" not in target and "reference/" not in target and "[" not in target and "/" in target:
                assert path.exists() or path.with_suffix(".md").exists(), f"{page}: {target}"


@BUILT
def test_nothing_comes_from_elsewhere():
    for path in SITE.rglob("*.html"):
        loaded = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?://[^\"]+)\"", path.read_text())
        assert not loaded, f"{path.name} loads {loaded}"


@BUILT
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_in_a_browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 400, "height": 800})
        for name in ("index", "tutorials/first-training", "how-to/model-zoo", "gallery/index", "reference/index"):
            page.goto(f"file://{SITE}/{name}.html")
            assert page.evaluate("document.documentElement.scrollWidth") <= 400, f"{name} is wider than a telephone"
        page.goto(f"file://{SITE}/search.html?q=accuracy")
        page.wait_for_selector("#search-results li", timeout=10_000)
        assert "Measure accuracy" in page.locator("#search-results").inner_text()
        browser.close()
