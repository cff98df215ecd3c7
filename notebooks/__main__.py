"""Run notebooks and write them with their outputs: ``python -m notebooks [01 04 ...]``, all of them without numbers.

The scripts are the source. The outputs are committed, so that the notebooks can be read where nothing runs them.
"""

from __future__ import annotations

import base64
import io
import os
import sys
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).parent
COLORS = 256  # of a picture: less than half of the size, without a difference to the eye


def scripts(*numbers: str) -> list[Path]:
    """The scripts with these numbers in order, all of them if there are none."""
    return [path for path in sorted(FOLDER.glob("[0-9]*.py")) if not numbers or path.name[:2] in numbers]


def executed(script: Path, *, fast: bool = False, timeout: int = 300) -> NotebookNode:
    """The notebook of a script with its outputs, without what differs from one run to the next."""
    notebook = jupytext.read(script)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": FOLDER}},
        record_timing=False,
    )
    pictures = "module://matplotlib_inline.backend_inline"  # not those of the caller
    client.execute(env=os.environ | {"CURVATURE_FAST": str(int(fast)), "MPLBACKEND": pictures})
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    notebook.metadata["language_info"] = {"name": "python", "file_extension": ".py", "pygments_lexer": "ipython3"}
    return notebook


def smaller(picture: str) -> str:
    """The same PNG with a palette."""
    content = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB").quantize(COLORS).save(
        content, "png", optimize=True
    )
    return base64.b64encode(content.getvalue()).decode()


if __name__ == "__main__":
    for path in scripts(*sys.argv[1:]):
        jupytext.write(executed(path), path.with_suffix(".ipynb"))
        print(path.with_suffix(".ipynb"))
