"""Slides of the notebooks, for a lecture without a network: `python -m rso_lib slides FOLDER`, or `make slides`.

A section is a slide with its first words and its formula, and every picture is one, sliders' pictures too. The tag
`slide` makes a slide of a whole text cell, and `skip` leaves a cell out. Exercises are in the run sheet, not here.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from html import escape, unescape
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from . import editions
from .book import mathml, needs

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<link rel="stylesheet" href="reveal/dist/reset.css"><link rel="stylesheet" href="reveal/dist/reveal.css">
<link rel="stylesheet" href="reveal/dist/theme/white.css">
<style>
.reveal {{ font-size: 30px; }} .reveal h1, .reveal h2 {{ text-transform: none; font-size: 1.5em; }}
.reveal section img {{ width: 1100px !important; height: 540px !important; object-fit: contain; max-height: none; }}
.reveal p, .reveal li {{ line-height: 1.35; }}
.reveal pre {{ font-size: 0.6em; box-shadow: none; width: 100%; }} .reveal table {{ font-size: 0.7em; }}
</style></head>
<body><div class="reveal"><div class="slides">
{slides}
</div></div>
<script src="reveal/dist/reveal.js"></script>
<script>Reveal.initialize({{hash: true, slideNumber: true, width: 1280, height: 720, transition: "none"}})</script>
</body></html>
"""
LIST = "<section><h1>RSO: a net trained without a gradient</h1><ul>{}</ul></section>"
MATHS = re.compile(r"(\$\$?)([^$]+)\1")
MOST = 450
"""Characters of text on a slide, which a back row can read."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a page of slides for every notebook into a folder; open its index.html."""
    editions.write_folder("slides", main, arguments, lambda folder: write_slides(editions.sources(), folder))


def write_slides(notebooks: Sequence[Path], folder: Path) -> Path:
    """Write the slides of some notebooks, reveal.js beside them, and a page that lists them, which is returned."""
    needs("sphinx_revealjs", "latex2mathml")
    import sphinx_revealjs

    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(Path(sphinx_revealjs.__file__).parent / "_static" / "revealjs", folder / "reveal")
    links = []
    for path in notebooks:
        notebook = nbformat.read(path, as_version=4)
        title = notebook.cells[0].source.partition("\n")[0].removeprefix("# ")
        sections = "\n".join(f"<section>{slide}</section>" for slide in slides_of(notebook))
        page = PAGE.format(title=escape(title), slides=sections)
        (folder / f"{path.stem}.html").write_text(page, encoding="utf-8")
        links.append(f'<li><a href="{path.stem}.html">{escape(title)}</a></li>')
    page = PAGE.format(title="RSO", slides=LIST.format("".join(links)))
    (folder / "index.html").write_text(page, encoding="utf-8")
    return folder / "index.html"


def slides_of(notebook: NotebookNode) -> Iterator[str]:
    """Yield each slide as HTML."""
    heading = ""
    for cell in notebook.cells:
        tags, text = cell.metadata.get("tags", []), editions.before_exercise(cell.source)
        if "skip" in tags:
            continue
        if cell.cell_type == "code":
            for picture in pictures(cell):
                yield f"<h2>{heading}</h2>\n{picture}"
        elif "slide" in tags:
            yield html(cell.source)
        elif text.startswith(("# ", "## ")):
            heading = html(text.partition("\n")[0].lstrip("# ")).removeprefix("<p>").removesuffix("</p>")
            yield html(beginning(text))


def pictures(cell: NotebookNode) -> Iterator[str]:
    """Yield the pictures of a cell as HTML, each with its alt text."""
    for output in cell.outputs:
        yield from re.findall(r"<img\b[^>]*>", output.get("data", {}).get("text/html", ""))


def beginning(text: str) -> str:
    """Return the heading of a cell and as many of its paragraphs, from the first on, as a slide holds; no tables."""
    heading, *parts = [part for part in text.split("\n\n") if not part.lstrip().startswith(("|", "```", "<"))]
    kept, room = [heading], MOST
    for part in parts:
        if (room := room - len(part)) < 0 and len(kept) > 1:
            break
        kept.append(part)
    return "\n\n".join(kept)


def html(text: str) -> str:
    """Return Markdown as HTML, with formulas as MathML and links that lead nowhere from here as plain words."""
    from nbconvert.filters import markdown2html

    text = re.sub(r"\[([^]]*)\]\([^)#:]*\)", r"\1", text)
    shown = re.sub(r'<a class="anchor-link".*?</a>', "", markdown2html(text))
    return MATHS.sub(lambda found: mathml(unescape(found[2]), found[1] == "$$"), shown).strip()
