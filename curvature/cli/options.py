"""The options, once for all commands; their defaults stand in the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from curvature.cli.configuration import MATRICES

_MODEL, _DATA, _COMPUTE, _OUTPUT, _RUN = "Model", "Data", "Compute", "Output", "Run"


def _option(kind: Any, names: str, panel: str, metavar: str | None, words: str) -> Any:
    about = typer.Option(*names.split(), rich_help_panel=panel, metavar=metavar or "", help=words)
    return Annotated[kind if kind is bool else kind | None, about]


_FACTORY = (
    "builtin:digits-mlp (default), builtin:digits-cnn, builtin:mlp (with --arg inputs=N --arg outputs=C), "
    "package.module:factory, path/file.py:factory (executes the file)"
)
Model = _option(str, "--model", _MODEL, "NAME", f"{_FACTORY}, or model.pt2 from torch.export.")
Weights = _option(str, "--weights", _MODEL, "FILE", "state_dict to load: .safetensors, or .pt with tensors only.")
Key = _option(str, "--key", _MODEL, "NAME", "Where a .pt checkpoint holds the state_dict, e.g. model.")
_ARG = "Argument of the model's factory, e.g. widths=32,16 or activation=relu. Repeatable."
Arg = _option(list[str], "--arg", _MODEL, "NAME=VALUE", _ARG)

_SOURCES = (
    "builtin:digits (default), builtin:breast-cancer, wine, diabetes or housing; a .npz or .pt file with x and y, a "
    ".csv file, mnist:FOLDER or cifar10:FOLDER with files you have, or package.module:loader."
)
Data = _option(str, "--data", _DATA, "NAME", _SOURCES)
Target = _option(str, "--target", _DATA, "COLUMN", "Column of the .csv file that is predicted.")
_LOSSES = "cross-entropy (default), bce, mse, half-squared-error, or package.module:function for one example."
Loss = _option(str, "--loss", _DATA, "NAME", _LOSSES)
NumExamples = _option(int, "--num-examples", _DATA, "N", "Use the first N examples only.")

Matrix = _option(list[str], "--matrix -m", _COMPUTE, "NAME", f"{', '.join(MATRICES)}. Repeatable, or a comma list.")
_CHARTS = "Coordinates: standard (default), weight-norm, scaled-standard, placebo (random directions). Repeatable."
Charts = _option(list[str], "--chart", _COMPUTE, "NAME", _CHARTS)
_GAUGES = "canonical (default), paper, checkpoint (the model's own), or a stretch ||v|| / |g| such as 3. Repeatable."
Gauge = _option(list[str], "--gauge", _COMPUTE, "NAME", f"Length of v in weight norm: {_GAUGES}")
_BLOCKS = "all (default), layer or neuron (each block alone), or a regular expression for names of weights."
Block = _option(str, "--block", _COMPUTE, "WHICH", _BLOCKS)
_METHODS = (
    "auto (default: every eigenvalue where that fits in memory, else ends and density), exact (every eigenvalue, or a "
    "refusal), dense (LAPACK on the entries), factor (singular values of B, A = B B^T), gram (LAPACK on B^T B: fast, "
    "fewer digits), lanczos (the ends, with error bounds), slq (the density)."
)
Method = _option(str, "--method", _COMPUTE, "NAME", _METHODS)
_ENDS = "Eigenvalues at each end, for lanczos (default 10; of a semidefinite matrix the largest only)."
NumEigenvalues = _option(int, "--num-eigenvalues", _COMPUTE, "N", _ENDS)
NumProbes = _option(int, "--num-probes", _COMPUTE, "N", "Random probes of the density: its statistics (default 10).")
_STEPS = "Products with each probe, at most the dimension: the resolution of the density (default 60)."
NumMatvecs = _option(int, "--num-matvecs", _COMPUTE, "N", _STEPS)
NumSamples = _option(int, "--num-samples", _COMPUTE, "N", "Labels drawn per example for mc-fisher (default 1).")
Seed = _option(int, "--seed", _COMPUTE, "N", "Draws the model's weights and everything random (default 0).")
_FULL = (
    "The whole study: every arm and control at its own learning rate, every claim decided; goes on where it stopped."
)
Full = _option(bool, "--full", _COMPUTE, None, _FULL)
Seeds = _option(int, "--seeds", _COMPUTE, "N", "Paired seeds; the arms share each of them (default 3, --full 10).")
Jobs = _option(
    int, "--jobs", _COMPUTE, "N", "With --full: seeds measured at the same time, one thread each (default 1)."
)
Epochs = _option(int, "--epochs", _COMPUTE, "N", "Epochs of SGD in each arm (default 30).")
LearningRate = _option(float, "--learning-rate", _COMPUTE, "X", "The same in both arms (default 0.2).")
BatchSize = _option(int, "--batch-size", _COMPUTE, "N", "Examples per step (default 64).")
_DAMPING = "Of the natural gradient, relative to the mean eigenvalue of the Fisher (default 0.001)."
Damping = _option(float, "--damping", _COMPUTE, "X", _DAMPING)
Dtype = _option(str, "--dtype", _COMPUTE, "NAME", "float64 (default) or float32.")
Device = _option(str, "--device", _COMPUTE, "NAME", "cpu (default), cuda, cuda:1, ...")
Threads = _option(
    int, "--threads", _COMPUTE, "N", "CPU threads (default: as torch chooses). On a busy machine 1 is fastest."
)

_RUN_DIRECTORY = "Write a run directory: report.html, summary.csv, summary.json, the result, the configuration."
Out = _option(Path, "--out", _OUTPUT, "DIR", _RUN_DIRECTORY)
Overwrite = _option(bool, "--overwrite", _OUTPUT, None, "Replace an earlier run in --out.")
Json = _option(bool, "--json", _OUTPUT, None, "Print one JSON document to stdout instead of tables.")
Quiet = _option(bool, "--quiet -q", _OUTPUT, None, "Nothing on stderr but warnings, errors and what code is executed.")
Verbose = _option(bool, "--verbose -v", _OUTPUT, None, "All quantities, pictures and self-checks.")
Debug = _option(bool, "--debug", _OUTPUT, None, "Show the traceback of an error.")

_FILE = "TOML file with these options, e.g. config.toml of an earlier run."
Config = _option(Path, "--config", _RUN, "FILE", _FILE)
Set = _option(list[str], "--set", _RUN, "KEY=VALUE", "Any key of the configuration, e.g. momentum=0.9. Repeatable.")
_TRUST = "Run the code that the --config file names as model, data or loss."
TrustConfig = _option(bool, "--trust-config", _RUN, None, _TRUST)
_DRY_RUN = "Print the plan, with its estimated time and memory, and end."
DryRun = _option(bool, "--dry-run", _RUN, None, _DRY_RUN)
_STRICT = "Exit with 3 unless every headline number is resolved and every claim decided: a bound is not enough then."
Strict = _option(bool, "--strict", _RUN, None, _STRICT)
