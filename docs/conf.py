"""How the documentation is built: ``sphinx-build -W docs build/docs``. The pages need no network to be read."""

import shutil
import sys
from pathlib import Path

import curvature

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))
for name in ("figures", "integrations", "zoo"):  # names of the package that are no modules of their own
    sys.modules[f"curvature.{name}"] = getattr(curvature, name)

# The notebooks lie next to their scripts, outside this folder.
for copied in (HERE / "course").glob("*.ipynb"):
    copied.unlink()
for notebook in (HERE.parent / "notebooks").glob("*.ipynb"):
    shutil.copy2(notebook, HERE / "course")

project = "curvature"
author = "The curvature developers"
copyright = author  # noqa: A001
release = version = curvature.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",
    "mathematics",
    "docstrings",
    "commands",
    "gallery",
    "terms",
    "pages",
]
exclude_patterns = ["extensions", "gallery/*.py"]

autodoc_mock_imports = ["lightning", "transformers"]  # slow to import, and only base classes come from them
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
smartquotes = False  # they make a dash of the two hyphens of an option
nb_execution_mode = "off"  # the notebooks are committed with their outputs, and the tests run them

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
napoleon_google_docstring = False
napoleon_use_ivar = True  # attributes that are properties are documented once
napoleon_use_rtype = False

suppress_warnings = [
    "ref.footnote",  # a docstring may list a reference that its text does not cite
    "ref.python",  # an axis "dim" in an annotation is no attribute of a class
]

html_theme = "furo"
html_title = f"curvature {release}"
html_static_path = ["static"]
html_css_files = ["curvature.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
