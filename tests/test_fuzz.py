"""Random command lines, configurations and files: every one ends in a documented exit code and one message.

A few examples of each run by default, the same ones every time; ``-m slow`` draws thousands, others every time. What it
found is kept as an ``@example``.
"""

import contextlib
import os
import signal
import string
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from typer.testing import CliRunner

from curvature import cli, report
from curvature.cli import configuration
from curvature.errors import ConfigurationError, ExitCode
from curvature.records import Study

SECONDS = 20  # of one processor: what takes longer hangs
DOCUMENTED = {int(code) for code in ExitCode} - {ExitCode.INTERNAL}
SMALL = ["--threads", "1", "--num-eigenvalues", "2", "--num-probes", "2", "--num-matvecs", "3"]


SHORT = [
    "--threads",
    "1",
    "--num-seeds",
    "1",
    "--epochs",
    "2",
    "--set",
    "stretches=2",
    "--set",
    "relative_dampings=0.1",
]
USER = ["--model", "net.py:make", "--data", "d.npz"]


class Hang(BaseException):
    """Not an Exception: nothing on the way may catch it."""


@contextlib.contextmanager
def limited():
    def stop(*_):
        raise Hang

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def ends(*arguments, **environment):
    """Run the command line; whatever it was given, it ends as documented and says why."""
    with limited():
        result = CliRunner().invoke(cli.app, list(arguments), env=environment, color=True)
    assert result.exit_code in DOCUMENTED, (result.exit_code, result.stderr, result.exception)
    assert isinstance(result.exception, SystemExit | None)
    assert "Traceback" not in result.output
    assert not set(result.stderr) & {"\x1b", "\x07", "\x00", "\x9b", "\u202e"}
    if result.exit_code:
        (line,) = [line for line in result.stderr.splitlines() if line.startswith(("error: ", "╭─ Error"))]
        assert len(line) < 5000
    return result.exit_code


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory):
    """A user's folder: a model of their own, and its data and weights in every format."""
    folder = tmp_path_factory.mktemp("user")
    random = np.random.default_rng(0)
    x, y = random.normal(size=(5, 2)), np.array([0, 1, 0, 1, 1])
    (folder / "net.py").write_text(
        "from torch import nn\n"
        "def make(seed=0): return nn.Sequential(nn.Linear(2, 1), nn.Tanh(), nn.Linear(1, 2))\n"
        "def fails(): raise KeyError('\\x1b[31m\\nerror: none')\n"
        "def named(): return nn.ModuleDict({'\\x1b[31m\\u202e\\nerror: ': nn.Linear(2, 2)})\n"
    )
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Tanh(), torch.nn.Linear(1, 2))
    tensors = model.state_dict()
    np.savez(folder / "d.npz", x=x, y=y)
    np.savez_compressed(folder / "packed.npz", x=x, y=y)
    torch.save((torch.from_numpy(x), torch.from_numpy(y)), folder / "d.pt")
    torch.save(tensors, folder / "w.pt")
    torch.save(tensors, folder / "old.pt", _use_new_zipfile_serialization=False)
    save_file(tensors, folder / "w.safetensors")
    (folder / "d.csv").write_text("a,b,t\n1,2,0\n0.5,-1e3,1\n0,0,1\n")
    with pytest.MonkeyPatch.context() as patched:
        for name in [name for name in os.environ if name.startswith("CURVATURE_")]:
            patched.delenv(name)
        patched.chdir(folder)
        ends("spectrum", "--model", "net.py:make", "--data", "d.npz", "-m", "ggn,hessian", *SMALL, "--out", "run")
        yield folder


# --- strategies

FIELDS = sorted(set().union(*(kind.model_fields for kind in configuration.KINDS.values())))
FLAGS = [name for name in FIELDS if name not in {"momentum", "stretches", "relative_dampings", "gradient", "threshold",
                                                 "tuning_epochs", "full"}]  # fmt: skip
NAMES = st.sampled_from(
    ["net.py:make", "net.py:fails", "net.py:named", "net.py", "builtin:digits-mlp", "builtin:", "builtin:mlp",
     "torch.nn:Linear", "d.npz", "d.pt", "d.csv", "w.pt", "old.pt", "w.safetensors", "mnist:.", "cifar10:.",
     "cross-entropy", "mse", "bce", "half-squared-error", "hessian", "ggn", "fisher", "mc-fisher",
     "empirical-fisher", "gradient-covariance", "standard", "weight-norm", "placebo", "scaled-standard",
     "canonical", "paper", "checkpoint", "all", "layer", "neuron", "auto", "exact", "dense", "factor", "gram",
     "lanczos", "slq", "float32", "float64", "cpu", "cuda", "t", "~", "~nobody", ".", "..", "/dev/null",
     "/dev/zero", "run", "net.toml", "widths=1", "seed=1", "a=nan"]
)  # fmt: skip
# No number between a thousand and what is refused: it may be long work that was asked for.
NUMBERS = st.sampled_from([-(10**30), -1, 0, 1, 2, 3, 2**31, 2**63, 2**64, 10**30]) | st.sampled_from(
    [-0.0, 0.5, 1e-320, 1e-9, 1e300, float("inf"), float("-inf"), float("nan")]
)
TEXTS = st.text(max_size=8) | st.text(
    st.sampled_from("\x00\x1b\x07\x9b\u202e\u2028\n\t'\"\\%[](){}*?=,:.~/é漢𝔸"), max_size=8
)
LONG = st.sampled_from(["x" * 300, "[" * 3000, "9" * 5000, "a." * 2000, "/" * 5000])
WORDS = NAMES | NUMBERS.map(str) | TEXTS | LONG


@st.composite
def command_lines(draw):
    command = draw(st.sampled_from(["spectrum"] * 8 + ["compare"]))
    found = [command, *(SMALL if command == "spectrum" else SHORT)]
    found += draw(st.sampled_from([["--arg", "widths=1", "--num-examples", "3"], USER, ["--data", "d.csv"]]))
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.integers(0, 9))
        if kind < 7:
            name = draw(st.sampled_from([*FLAGS, "config", "out", "m"]))
            word = draw(WORDS if name != "out" else WORDS.filter(lambda text: "/" not in text))  # stay in the folder
            found += [f"--{name.replace('_', '-')}" if len(name) > 1 else f"-{name}", word]
        elif kind == 7:
            found += ["--set", f"{draw(st.sampled_from(FIELDS) | TEXTS)}={draw(WORDS)}"]
        elif kind == 8:
            found += [
                draw(st.sampled_from(["--dry-run", "--json", "-q", "-v", "--strict", "--overwrite", "--trust-config"]))
            ]
        else:
            found += [draw(WORDS)]
    return found


VALUES = st.recursive(
    st.booleans() | NUMBERS | WORDS | st.dates() | st.datetimes() | st.times(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
TABLES = st.dictionaries(st.sampled_from([*FIELDS, "command", "arg.widths"]) | TEXTS, VALUES, min_size=1, max_size=4)
TOML = (
    TABLES.map(lambda table: toml(table))
    | st.binary(max_size=40)
    | st.text(string.printable, max_size=40).map(str.encode)
    | st.sampled_from([b"seed = " + b"[" * 5000, b"seed = " + b"9" * 5000, b"[a" * 1000, b"a." * 4000, b"#" * 2**21])
)


def toml(table):
    """What tomli_w cannot write stands as a broken line, which has to be refused as well."""
    lines = []
    for key, value in table.items():
        try:
            lines.append(tomli_w.dumps({key: value}))
        except (TypeError, ValueError):
            lines.append(f"{key} = {value!r}\n")
    return "\n".join(lines).encode(errors="surrogatepass")


@st.composite
def damages(draw, length):
    """A change of a file of this length: cut, flipped, overwritten or lengthened, as a function of its bytes."""
    kind = draw(st.sampled_from(["cut", "flip", "write", "repeat", "insert"]))
    place = draw(st.integers(0, max(length - 1, 0)))
    if kind == "cut":
        return lambda content: content[:place]
    if kind == "flip":
        bits = draw(st.lists(st.tuples(st.integers(0, max(length - 1, 0)), st.integers(0, 7)), min_size=1, max_size=4))

        def flip(content):
            found = bytearray(content)
            for byte, bit in bits:
                found[byte] ^= 1 << bit
            return bytes(found)

        return flip
    more = draw(st.binary(min_size=1, max_size=16) | st.sampled_from([b"\xff" * 8, b"\x00" * 8, b"\x7f" + b"\xff" * 7]))
    if kind == "write":
        return lambda content: content[:place] + more + content[place + len(more) :]
    if kind == "insert":
        return lambda content: content[:place] + more + content[place:]
    return lambda content: content + content[place:]


@st.composite
def damaged(draw, names):
    name = draw(st.sampled_from(names))
    content = Path(name).read_bytes()
    change = draw(damages(len(content)) | st.binary(max_size=64).map(lambda other: lambda _: other))
    return name, change(content)


def quick_and_long(few, many, *found, **strategies):
    """Make two tests of one body: a few examples always, many behind the marker ``slow``, drawn anew each time.

    ``found`` are examples that once ended in an internal error; both begin with them.
    """

    def both(body):
        quick, long = (given(**strategies)(body) for _ in range(2))
        for one in found:
            quick, long = example(**one)(quick), example(**one)(long)
        long = settings(max_examples=many, derandomize=False, print_blob=True)(long)
        return settings(max_examples=few)(quick), pytest.mark.slow(pytest.mark.timeout(3600)(long))

    return both


# --- the command line


@quick_and_long(40, 1000, words=command_lines())
def _command_line(words):
    ends(*words)


test_any_command_line_ends_as_documented, test_a_thousand_command_lines_end_as_documented = _command_line

VARIABLES = [f"CURVATURE_{name.upper()}" for name in FIELDS if name not in {"epochs", "num_seeds"}]
VALUES_OF_VARIABLES = WORDS.filter(lambda text: "\x00" not in text)


@quick_and_long(15, 1000, name=st.sampled_from(VARIABLES), value=VALUES_OF_VARIABLES)
def _environment(name, value):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(name, value)
        ends("spectrum", "--arg", "widths=1", "--num-examples", "3", *SMALL)


test_any_environment_ends_as_documented, test_a_thousand_environments_end_as_documented = _environment


# --- configurations


@quick_and_long(40, 1000, content=TOML, command=st.sampled_from(["spectrum"] * 6 + ["compare"]))
def _configuration(content, command):
    Path("c.toml").write_bytes(content)
    size = ["--arg", "widths=1", "--num-examples", "3"]  # the flags win: no long work that was asked for
    ends(command, "--config", "c.toml", *size, *(SMALL if command == "spectrum" else SHORT))


test_any_configuration_ends_as_documented, test_a_thousand_configurations_end_as_documented = _configuration


# --- files


def mutations(*names):
    """A file of the user's by name, and what became of its bytes."""
    return st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), st.deferred(lambda: changed(name))))


def changed(name):
    content = Path(name).read_bytes()
    return damages(len(content)).map(lambda change: change(content)) | st.binary(max_size=64)


def put(name, content):
    """Write it elsewhere under the same suffix."""
    path = Path(f"damaged{Path(name).suffix}")
    path.write_bytes(content)
    return str(path)


ONE_ROW = {"file": ("d.csv", b"a,b,t\n1,2,0")}  # a column of one entry, with a stride of three


@quick_and_long(60, 1000, ONE_ROW, file=mutations("d.npz", "packed.npz", "d.pt", "d.csv"))
def _data(file):
    more = ["--target", "t"] if file[0].endswith(".csv") else []
    ends("spectrum", "--model", "net.py:make", "--data", put(*file), *more, "-m", "ggn", *SMALL)


test_any_data_file_ends_as_documented, test_a_thousand_data_files_end_as_documented = _data


@quick_and_long(60, 1000, file=mutations("w.pt", "old.pt", "w.safetensors"))
def _weights(file):
    ends("spectrum", "--model", "net.py:make", "--data", "d.npz", "--weights", put(*file), "-m", "ggn", *SMALL)


test_any_weights_file_ends_as_documented, test_a_thousand_weights_files_end_as_documented = _weights


@quick_and_long(
    60, 1000, file=mutations("run/result.nc", "run/config.toml", "run/provenance.json"), rehash=st.booleans()
)
def _result(file, rehash):
    """Damage is found by the hashes; who writes new hashes too gets a study that is one, or the same refusal."""
    name, content = file
    original = Path(name).read_bytes()
    written = Path("run/DONE").read_text()
    Path(name).write_bytes(content)
    if rehash:
        Path("run/DONE").write_text(report.atomic.manifest(Path("run")))
    try:
        with limited():
            study = report.load_study("run")
        assert isinstance(study, Study)
        assert rehash or content == original
    except ConfigurationError:
        assert content != original
    finally:
        Path(name).write_bytes(original)
        Path("run/DONE").write_text(written)


test_any_run_directory_is_read_or_refused, test_a_thousand_run_directories_are_read_or_refused = _result
