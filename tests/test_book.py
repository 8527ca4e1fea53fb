"""The book and the slides: built from notebooks, and opened in a browser without a network."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

pytest.importorskip("myst_nb", reason="the book needs MyST-NB: pip install myst-nb")
pytest.importorskip("sphinx_revealjs", reason="the slides need reveal.js: pip install sphinx-revealjs")
pytest.importorskip("latex2mathml", reason="formulas need latex2mathml: pip install latex2mathml")
pytest.importorskip("playwright", reason="the browser tests need Playwright: pip install playwright")

from browser import KERNEL, Visit, chromium, find_chromium, free_port, serve
from playwright.sync_api import Browser, Page

from rso_lib.teach import book, editions, slides

needs_browser = pytest.mark.skipif(find_chromium() is None, reason="no chromium: install it, or let CHROMIUM name one")
NOTEBOOKS = [path for path in editions.sources() if path.stem.startswith(("00", "01", "09"))]
LIVE = NOTEBOOKS[1]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of the notebooks as a book, links between others left out."""
    folder, out = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("book")
    there = {path.stem for path in NOTEBOOKS}
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            for other in {path.stem for path in editions.sources()} - there:
                cell.source = cell.source.replace(f"]({other}.ipynb)", "](https://example.org/)")
        nbformat.write(notebook, folder / path.name)
    book.write_book(sorted(folder.glob("*.ipynb")), out)
    return out


@pytest.fixture(scope="module")
def decks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("slides")
    slides.write_slides(NOTEBOOKS, out)
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@contextlib.contextmanager
def offline(browser: Browser, url: str) -> Iterator[Page]:
    """A page of the disk in a browser without a network; it asks for nothing else, and nothing fails in it."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 720})
    page, asked, wrong = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(url)
    yield page
    assert [one for one in asked if not one.startswith(("file:", "data:"))] == wrong == []
    context.close()


def written_in(path: Path) -> int:
    """Pictures in the text of a notebook."""
    return sum(cell.source.count("<img") for cell in nbformat.read(path, as_version=4).cells)


def pictures_in(path: Path) -> int:
    cells = nbformat.read(path, as_version=4).cells
    shown = [output.get("data", {}).get("text/html", "") for cell in cells for output in cell.get("outputs", [])]
    return "".join(shown).count("<img")


SEEN = "() => [...document.images].filter(image => image.complete && image.naturalWidth > 20).length"
DRAWN = "() => [...document.querySelectorAll('math')].every(formula => formula.getBoundingClientRect().width > 3)"


@needs_browser
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_book_has_its_pictures_and_formulas(path: Path, pages: Path, browser: Browser) -> None:
    """Sliders' pictures too: notebook 01 ends with three panels."""
    with offline(browser, (pages / f"{path.stem}.html").as_uri()) as page:
        assert page.evaluate(SEEN) == pictures_in(path) + written_in(path)
        assert page.get_by_text("$").count() == 0
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.evaluate(DRAWN)
        if path == LIVE:
            assert pictures_in(path) > 10 and page.locator("math").count() > 20
            page.get_by_role("link", name="Start here").first.click()
            page.wait_for_url("**/00_start_here.html")


@needs_browser
def test_the_book_can_be_searched(pages: Path, browser: Browser) -> None:
    with offline(browser, (pages / "search.html").as_uri() + "?q=momentum") as page:
        page.get_by_text("Search finished").wait_for()
        assert "One weight at a time" in page.locator("#search-results").inner_text()


@needs_browser
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_slides_have_their_pictures_and_fit(path: Path, decks: Path, browser: Browser) -> None:
    with offline(browser, (decks / f"{path.stem}.html").as_uri()) as page:
        page.wait_for_function("() => window.Reveal && Reveal.isReady()")
        assert page.evaluate(SEEN) == pictures_in(path)
        assert page.evaluate("Reveal.getTotalSlides()") > 3
        for k in range(page.evaluate("Reveal.getTotalSlides()")):
            page.evaluate(f"Reveal.slide({k})")
            height = page.evaluate("Reveal.getCurrentSlide().scrollHeight")
            assert height <= 720, f"slide {k + 1} is {height} high"
        assert page.get_by_text("Exercise").count() == 0


@needs_browser
def test_a_page_lists_the_slides(decks: Path, browser: Browser) -> None:
    with offline(browser, (decks / "index.html").as_uri()) as page:
        page.get_by_role("link", name="One weight at a time").click()
        page.wait_for_url(f"**/{LIVE.stem}.html*")


def test_a_warning_is_an_error(tmp_path: Path) -> None:
    """A link that leads nowhere, and a heading that is left out: both are said."""
    path = tmp_path / "01_a.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("# A\n\n### C\n\n[on](02_not_there.ipynb)")]), path)
    with pytest.raises(RuntimeError, match=r"(?s)H1 to H3.*02_not_there"):
        book.write_book([path], tmp_path / "out")


def test_formulas_are_read_or_refused() -> None:
    assert book.mathml(r"\sqrt{w}", block=True).startswith("<math") and "msqrt" in book.mathml(r"\sqrt{w}", block=True)
    with pytest.raises(ValueError, match="not known"):
        book.mathml(r"\nosuchcommand w", block=False)


def test_tags_choose_slides() -> None:
    picture = new_output("display_data", {"text/html": '<img alt="a valley" src="data:,">'})
    cells = [
        new_markdown_cell("# Title\n\nShort.\n\n| a |\n|---|"),
        new_markdown_cell("## Section\n\nWith $w^2$ and [a link](02.ipynb)." + "\n\nMore." + " long" * 200),
        new_markdown_cell("Not shown."),
        new_markdown_cell("A whole cell.", metadata={"tags": ["slide"]}),
        new_code_cell("plot()", outputs=[picture]),
        new_code_cell("plot()", outputs=[picture], metadata={"tags": ["skip"]}),
        new_markdown_cell("## 7. Exercises\n\nWrite."),
    ]
    title, section, whole, shown = slides.slides_of(new_notebook(cells=cells))
    assert "Title" in title and "Short." in title and "<table" not in title
    assert "<math" in section and "a link." in section and "long" not in section and "$" not in section
    assert "A whole cell." in whole
    assert "Section" in shown and 'alt="a valley"' in shown


@needs_browser
def test_the_demos_are_listed(browser: Browser, tmp_path: Path, project: Path) -> None:
    """`make voila`: a page of links, which asks for nothing from elsewhere, and a notebook behind each of them."""
    page = new_notebook(cells=[new_markdown_cell("# Start here")], metadata={"kernelspec": KERNEL})
    editions.write(page, tmp_path / "demos" / "00_start_here.ipynb")
    command = ["voila", "--template=demos", "demos", "--no-browser", f"--port={free_port()}"]
    places = [str(project / folder) for folder in ("notebooks", "teach")]
    with serve(command, tmp_path, tmp_path, places) as url, Visit(browser, url) as visit:
        visit.page.get_by_role("link", name="00 start here").click()
        visit.page.get_by_role("heading", name="Start here").wait_for()
        assert visit.outside == []
