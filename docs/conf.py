"""The site: ``make docs``, without the network, failing on warnings and on public names without documentation."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "_extensions"), str(Path(__file__).parents[1])]

from docstring_markup import SECTIONS  # noqa: E402

import jaxopt_pde  # noqa: E402

project = "jaxopt_pde"
author = "the jaxopt_pde authors"
copyright = f"{author}, Apache-2.0"
release = version = jaxopt_pde.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "docstring_markup",
    "full_size",
    "api_links",
    "api_pages",
    "gallery_pages",
    "repository_pages",
    "offline",
]
exclude_patterns = ["_build", "_extensions", "interactive"]
nitpicky = True
nitpick_ignore_regex = [("py:exc", r".*")]

source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
myst_enable_extensions = ["colon_fence", "attrs_inline"]
myst_heading_anchors = 4
smartquotes_action = "D"  # dashes alone: u' is a derivative
highlight_language = "none"  # indented blocks are formulas
pygments_style = "friendly"
pygments_dark_style = "github-dark"

autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = False  # the signature has the types
napoleon_use_rtype = False
napoleon_custom_sections = [
    (name, "params_style") if name in ("Attributes", "Extra args of update", "Methods") else name
    for name in ("Attributes", *SECTIONS)
]
add_module_names = False
toc_object_entries = False
bibtex_bibfiles = ["references.bib"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"jaxopt_pde {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
