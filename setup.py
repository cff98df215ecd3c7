"""Package metadata; the build system and the tool settings are in pyproject.toml."""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# torch.func is functorch, merged into torch. The PyPI distribution "functorch" is not listed on purpose: it pins
# torch <= 2.0 and cannot be installed beside a current torch. `import functorch` works from torch's own wheel.
REQUIRES = [
    "torch>=2.6",
    "numpy",
    "scipy",
    "matplotlib",
    "scikit-learn",
    "joblib",
    "typer",
    "rich",
    "pydantic>=2.10",  # a default that depends on another field
    "pandas",
    "xarray>=2024.10",  # the first with DataTree
    "h5netcdf",
    "h5py",  # h5netcdf 1.8 no longer brings it
    "safetensors",
    "jinja2",
    "markupsafe",
    "psutil",
    "threadpoolctl",
    "tomli-w",
]

EXTRAS = {
    "notebooks": ["ipykernel", "nbclient", "jupytext"],
    "scale": ["dask[distributed]", "submitit"],
    "grid": ["statsmodels>=0.14"],  # curvature compare --grid; on several machines also dask[distributed]
    # What builds the pages of docs/. The theme brings its fonts and scripts: the pages open without a network.
    "docs": ["sphinx>=8", "myst-nb", "furo"],
    # What a Tracker can write to and be called by, and models that come as folders. mlflow-skinny is the client alone.
    "integrations": ["lightning", "transformers", "peft", "tensorboard", "wandb", "mlflow-skinny>=3"],
    # Oracles and benchmark peers, never needed at run time. BackPACK declares torchvision (0.28.0 goes with
    # torch 2.13.0) and imports it in its examples only. hessian-eigenthings has pre-releases only, so name one.
    "peers": [
        "curvlinops-for-pytorch>=3.0.1,<4",
        "pyhessian>=0.1",
        "hessian-eigenthings>=1.0.0a5,<2",
        "backpack-for-pytorch>=1.7.1",
    ],
}
QUALITY = [
    "pytest>=8",
    "pytest-timeout",
    "pytest-xdist",
    "mypy",
    "hypothesis",
    "nbmake",
    "jaxtyping",
    "beartype",
    "coverage",
    "ruff==0.17.6",  # the formatter's output depends on it: one version for pre-commit, CI and editors
    "pre-commit",
    "mpmath",
]
EXTRAS["dev"] = [*(requirement for extra in EXTRAS.values() for requirement in extra), *QUALITY]

setup(
    name="curvature-toolkit",
    version=runpy.run_path(str(HERE / "curvature" / "_version.py"))["__version__"],
    description="Spectra and condition numbers of Hessian, GGN and Fisher matrices, in any parameterization",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The curvature developers",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["curvature", "curvature.*"]),
    package_data={"curvature": ["py.typed", "*.pyi"], "curvature.report": ["glossary.toml", "templates/*"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["curvature = curvature.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Mathematics",
    ],
)
