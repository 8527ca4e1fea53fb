"""The series as pages that need no network: `python -m rso_lib book FOLDER`, or `make book`.

Sphinx and MyST-NB write the pages, with a search that runs in the browser. Formulas become MathML, which browsers draw
by themselves, so no page loads a script from elsewhere. A warning, such as a link that leads nowhere, is an error.
"""

import base64
import io
import mimetypes
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from . import editions

WIDGET = "application/vnd.jupyter.widget-view+json"
PICTURE = re.compile(r'src="\.\./(figures/[^"]+)"')
OUTWARD = re.compile(r"\[([^]]*)\]\(\.\./[^)]*\)")
CONTENTS = """# RSO: a net trained without a gradient

The notebooks of the series, as they were run. Sliders are still pictures here; `jupyter lab notebooks` moves them.

```{{toctree}}
:maxdepth: 1

{}
```
"""
CONF: dict[str, Any] = {
    "project": "RSO, one weight at a time",
    "extensions": ["myst_nb", "rso_lib.teach.book"],
    "myst_enable_extensions": ["dollarmath"],
    "nb_execution_mode": "off",
    "nb_output_stderr": "remove",
    "nb_ipywidgets_js": {},
    "html_math_renderer": "mathml",
    "html_theme": "alabaster",
    "html_theme_options": {
        "page_width": "1280px",
        "font_size": "15px",
        "show_powered_by": False,
        "fixed_sidebar": True,
    },
    "html_show_sourcelink": False,
    "html_copy_source": False,
    "html_show_copyright": False,
    "html_show_search_summary": False,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the book into a folder; open its index.html."""
    editions.write_folder("book", main, arguments, lambda folder: write_book(editions.sources(), folder))


def write_book(notebooks: Sequence[Path], folder: Path) -> Path:
    """Write the pages of some notebooks, and return the first page. Raises RuntimeError with Sphinx's warnings."""
    needs("sphinx", "myst_nb", "latex2mathml")
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    shutil.rmtree(folder, ignore_errors=True)
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as scratch:
        pages = Path(scratch, "pages")
        for path in notebooks:
            editions.write(book_page(path), pages / path.name)
        (pages / "index.md").write_text(CONTENTS.format("\n".join(path.stem for path in notebooks)), encoding="utf-8")
        with patch_docutils(), docutils_namespace(), warnings.catch_warnings(action="ignore"):  # of old interfaces
            doctrees = Path(scratch, "doctrees")
            sphinx = Sphinx(pages, None, folder, doctrees, "html", CONF, None, said, warningiserror=True)
            sphinx.build()
        if sphinx.statuscode:
            raise RuntimeError(said.getvalue().replace(f"{pages}{os.sep}", "").strip())
    return folder / "index.html"


def needs(*modules: str) -> None:
    """Raise RuntimeError, naming the remedy, where a module is not installed."""
    if missing := [name for name in modules if not find_spec(name)]:
        raise RuntimeError(f"{', '.join(missing)} not installed; type: pip install --editable '.[dev]'")


def book_page(path: Path) -> NotebookNode:
    """Return a notebook without widgets, which a page cannot move, and without links out of the book."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = PICTURE.sub(embedded, OUTWARD.sub(r"\1", cell.source))
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)
    return notebook


def embedded(picture: re.Match[str]) -> str:
    """Return the source of a picture in figures/ with the picture itself in it."""
    file = editions.PROJECT / picture[1]
    content = base64.b64encode(file.read_bytes()).decode()
    return f'src="data:{mimetypes.guess_type(file.name)[0]};base64,{content}"'


def mathml(formula: str, block: bool) -> str:
    """Return a formula as MathML. Raises ValueError for one that cannot be read."""
    from latex2mathml.converter import convert

    try:
        shown = str(convert(formula.replace(r"\arg", r"\text{arg}"), display="block" if block else "inline"))
    except Exception as error:
        raise ValueError(f"this formula cannot be read: {formula!r} ({error})") from error
    if "\\" in shown:
        raise ValueError(f"this formula has a command that is not known: {formula!r}")
    return shown


def setup(app: Any) -> dict[str, bool]:
    """Give Sphinx a renderer of formulas that needs no script."""
    from docutils.nodes import SkipNode

    def inline(translator: Any, node: Any) -> None:
        translator.body.append(mathml(node.astext(), block=False))
        raise SkipNode

    def block(translator: Any, node: Any) -> None:
        translator.body.append(f'<div class="math" title="{escape(node.astext())}">{mathml(node.astext(), True)}</div>')
        raise SkipNode

    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
