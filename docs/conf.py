"""How Sphinx builds the site: `make docs` writes it to out/docs, and a warning fails the build."""

import re
from importlib.metadata import version as installed_version
from typing import Any

project = "mpskit"
author = "The mpskit authors"
project_copyright = "The mpskit authors"
release = version = installed_version("mpskit")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
exclude_patterns = ["README.md"]  # for a reader of the folder: it points to the index

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # an attribute is described once, in the class's own docstring
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
default_role = "code"
maximum_signature_line_length = 80

html_theme = "furo"
html_title = "mpskit"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False


def mark_examples(*event: Any) -> None:
    """Mark an indented block after a paragraph as code: docstrings do without reST's ``::``."""
    lines: list[str] = event[-1]
    for i in range(len(lines) - 1, 1, -1):
        before = lines[i - 2]
        block = lines[i].startswith("    ") and not lines[i - 1] and before.strip()
        if block and not before.startswith(" ") and not before.endswith(":"):
            lines[i:i] = ["::", ""]


def trim_doctests(*event: Any) -> None:
    """Drop the empty line that ends a doctest's last output, which a reader does not need."""
    source: list[str] = event[-1]
    source[0] = _DOCTEST_END.sub(r"\1\n```", source[0])


_DOCTEST_END = re.compile(r"(^(?:>>> |\.\.\. )(?:(?!^```).)*?)\n\n```$", re.MULTILINE | re.DOTALL)


def setup(app: Any) -> None:
    """Connect both hooks; the docstrings' must come before napoleon's."""
    app.connect("source-read", trim_doctests)
    app.connect("autodoc-process-docstring", mark_examples, priority=400)
