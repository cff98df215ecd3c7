"""``--resume``: an interrupted run that continues has the numbers of one that was never interrupted, bit for bit."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import curvature as cv
from curvature import cli, report
from curvature.errors import ConfigurationError, ExitCode
from curvature.records import LayerSummary
from curvature.report.parts import Parts

ROOT = Path(__file__).parents[2]
# One thread: with several, rounding depends on how they share the work.
SMALL = ["--num-examples", "40", "--arg", "widths=2", "--threads", "1"]
COMMANDS = {
    "spectrum": ["spectrum", *SMALL, "--chart", "standard,weight-norm", "-m", "hessian,ggn"],
    "compare": ["compare", *SMALL, "--epochs", "2", "--num-seeds", "2", "-m", "ggn", "--set", "stretches=[]"],
    "analyze": ["analyze", *SMALL, "--chart", "standard,weight-norm"],
}
COMMANDS["compare"] += ["--set", "relative_dampings=[1e-3]"]
NUM_PARTS = {"spectrum": 4, "compare": 2, "analyze": 6}


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == code, (result.exit_code, result.stdout[-500:], result.stderr, result.exception)
    return result


def words(text):
    return " ".join(text.split())


@pytest.fixture(autouse=True)
def here(empty_folder):
    return empty_folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What each command writes when nothing interrupts it."""
    folder, made = tmp_path_factory.mktemp("whole"), {}

    def of(command):
        if command not in made:
            run(*COMMANDS[command], "--out", str(folder / command))
            made[command] = folder / command
        return made[command]

    return of


def without_seconds(value):
    if isinstance(value, dict):
        return {key: without_seconds(item) for key, item in value.items() if key not in ("seconds", "provenance")}
    return [without_seconds(item) for item in value] if isinstance(value, list | tuple) else value


def numbers(out):
    """Everything that a run directory holds but times."""
    if (out / "analysis.json").exists():
        return without_seconds(json.loads((out / "analysis.json").read_text()))
    return without_seconds(asdict(report.load_study(out)))


def interrupted(*arguments, after):
    """Run a command until it has kept some parts."""
    keep, kept = Parts.__setitem__, []

    def keep_then_interrupt(parts, name, part):
        keep(parts, name, part)
        kept.append(name)
        if len(kept) == after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parts, "__setitem__", keep_then_interrupt)
        return run(*arguments, code=ExitCode.INTERRUPTED)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_was_interrupted_twice_ends_with_the_same_numbers(whole, here, command):
    arguments = [*COMMANDS[command], "--out", "on"]
    stopped = interrupted(*arguments, after=1)
    assert stopped.stdout == ""
    assert words(stopped.stderr).endswith(
        "error: interrupted; 1 finished part of this run is kept in on.parts: the same command with --resume continues "
        "from there."
    )
    assert [path.name for path in here.iterdir()] == ["on.parts"]
    if NUM_PARTS[command] > 2:
        stopped = interrupted(*arguments, "--resume", after=2)
        assert "resume: 1 finished part found in on.parts" in words(stopped.stderr)
        assert "3 finished parts of this run are kept" in words(stopped.stderr)
    made = []
    keep = Parts.__setitem__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parts, "__setitem__", lambda *given: made.append(given[1]) or keep(*given))
        run(*arguments, "--resume")
    assert len(made) == NUM_PARTS[command] - (3 if NUM_PARTS[command] > 2 else 1)
    assert [path.name for path in here.iterdir()] == ["on"]
    np.testing.assert_equal(numbers(here / "on"), numbers(whole(command)))  # NaN equals NaN, no tolerance


@pytest.mark.parametrize("command", COMMANDS)
def test_a_finished_run_is_not_computed_again(whole, here, command, monkeypatch):
    shutil.copytree(whole(command), here / "on")
    (here / "on.parts").mkdir()  # as a process leaves it that is killed right after the last renaming
    Parts(here / "on.parts", {}, LayerSummary)["x"] = None
    monkeypatch.setattr(Parts, "__setitem__", lambda *_: pytest.fail("nothing is left to do"))
    before = {path: path.read_bytes() for path in (here / "on").rglob("*") if path.is_file()}
    resumed = run(*COMMANDS[command], "--out", "on", "--resume", "--json")
    assert "on is finished already; nothing is left to do" in resumed.stderr
    key = "analyses" if command == "analyze" else "spectra"
    assert json.loads(resumed.stdout)[key]
    again = run(*COMMANDS[command], "--out", "on", "--resume", "--fail-on", "trace > 1e-9", code=ExitCode.RULE_HIT)
    assert "ggn" in again.stdout.lower()
    if command == "analyze":
        first, second = (report.load_analyses(folder)[0] for folder in (here / "on", whole(command)))
        np.testing.assert_equal([asdict(analysis) for analysis in first], [asdict(analysis) for analysis in second])
        assert run(*COMMANDS[command]).stdout == again.stdout
    assert {path: path.read_bytes() for path in (here / "on").rglob("*") if path.is_file()} == before
    assert [path.name for path in here.iterdir()] == ["on"]


def test_a_run_of_other_options_is_refused_and_the_message_lists_what_differs(here):
    interrupted(*COMMANDS["spectrum"], "--out", "on", after=1)
    before = sorted(here.rglob("*"))
    other = [part if part != "40" else "41" for part in COMMANDS["spectrum"]]
    refused = run(*other, "--dtype", "float32", "--out", "on", "--resume", code=ExitCode.USAGE)
    assert words(refused.stderr).endswith(
        "error: on.parts belongs to another run, so its parts would not fit. What differs: num_examples was 40, is 41; "
        "dtype was float64, is float32; the data has other values. Use the options of that run, choose another --out, "
        "or start again with --overwrite."
    )
    assert sorted(here.rglob("*")) == before
    # Threads change no number but by rounding: another machine may continue.
    run(*COMMANDS["spectrum"], "--threads", "2", "--out", "on", "--resume")


def test_other_weights_data_and_code_under_the_same_names_are_refused(here):
    (here / "model.py").write_text(
        "import torch\nclass Net(torch.nn.Linear):\n    pass\ndef make():\n    return Net(3, 2)\n"
    )
    inputs, targets = np.eye(3), np.array([0, 1, 1])
    np.savez(here / "data.npz", x=inputs, y=targets)
    arguments = ["spectrum", "--model", "model.py:make", "--data", "data.npz", "--out", "on", "--threads", "1"]
    interrupted(*arguments, after=1)
    changes = {
        "the data has other values; the file data.npz has changed": lambda: np.savez(
            "data.npz", x=2 * inputs, y=targets
        ),
        "the file model.py has changed": lambda: Path("model.py").write_text(Path("model.py").read_text() + "\n"),
        "seed was 0, is 1; the model has other values": lambda: arguments.extend(["--seed", "1"]),
    }
    for expected, change in changes.items():
        kept = {path: path.read_bytes() for path in (here / "model.py", here / "data.npz")}
        change()
        refused = run(*arguments, "--resume", code=ExitCode.USAGE)
        assert f"What differs: {expected}. Use" in words(refused.stderr)
        for path, content in kept.items():
            path.write_bytes(content)


def test_an_unfinished_run_is_neither_continued_nor_replaced_unless_asked(whole, here):
    arguments = [*COMMANDS["analyze"], "--out", "on"]
    interrupted(*arguments, after=2)
    refused = run(*arguments, code=ExitCode.USAGE)
    assert "on.parts holds an unfinished run. Continue it with --resume, start again with --overwrite" in refused.stderr
    again = run(*arguments, "--overwrite")
    assert "resume:" not in again.stderr
    np.testing.assert_equal(numbers(here / "on"), numbers(whole("analyze")))


def test_an_interrupted_replacement_continues_and_then_replaces(whole, here):
    shutil.copytree(whole("analyze"), here / "on")
    other = [*COMMANDS["analyze"], "--seed", "1", "--out", "on"]
    interrupted(*other, "--overwrite", after=2)
    np.testing.assert_equal(numbers(here / "on"), numbers(whole("analyze")))
    assert "seed was 1, is 2" in run(*other, "--seed", "2", "--resume", code=ExitCode.USAGE).stderr
    assert "resume: 2 finished parts" in run(*other, "--resume").stderr
    assert json.loads((here / "on" / "analysis.json").read_text())["config"]["seed"] == 1


@pytest.mark.parametrize("command", ["spectrum", "compare", "analyze", "track"])
def test_to_continue_and_to_begin_again_cannot_both_be_asked_for(command, here):
    arguments = COMMANDS.get(command, ["track", str(here), *SMALL])
    refused = run(*arguments, "--out", "on", "--resume", "--overwrite", code=ExitCode.USAGE)
    assert "--resume continues the run in --out and --overwrite replaces it. Use one of them." in words(refused.stderr)


def test_resume_begins_what_was_never_started_and_needs_an_out():
    assert "the run starts from the beginning" in words(run(*COMMANDS["analyze"], "--out", "on", "--resume").stderr)
    assert "--out DIR" in run(*COMMANDS["analyze"], "--resume", code=ExitCode.USAGE).stderr


def test_seeds_may_be_added_to_an_interrupted_comparison(here):
    interrupted(*COMMANDS["compare"], "--out", "on", after=1)
    resumed = run(*COMMANDS["compare"], "--num-seeds", "3", "--out", "on", "--resume", "-q")
    assert resumed.stderr == ""
    assert len(json.loads((here / "on" / "summary.json").read_text())["seeds"]) == 3


def test_what_is_kept_is_mentioned_with_every_failure(monkeypatch):
    from curvature.studies import spectrum

    measure, done = spectrum._measure, []

    def fails_later(*arguments):
        if done:
            raise MemoryError
        done.append(measure(*arguments))

    monkeypatch.setattr(spectrum, "_measure", fails_later)
    failed = run(*COMMANDS["spectrum"], "--out", "on", code=ExitCode.RESOURCES)
    assert re.search(r"error: out of memory.* 1 finished part of this run is kept", words(failed.stderr))


def test_rows_that_are_known_are_not_computed_again(monkeypatch):
    problem, finished = cv.zoo.digits_problem(20, widths=(3,)), {}
    first = cv.analyze(problem, finished=finished)
    assert list(finished) == ["all", "0", "2"]
    monkeypatch.setattr("curvature.studies.analysis._summarized", lambda *_: pytest.fail("every row is known"))
    assert cv.analyze(problem, finished=finished).rows == first.rows


def test_a_damaged_part_and_a_damaged_guard_are_named(here):
    interrupted(*COMMANDS["analyze"], "--out", "on", after=1)
    for path in sorted((here / "on.parts").glob("*.json")):
        content = path.read_bytes()
        changed = bytearray(content)
        changed[len(content) // 2] ^= 1
        path.write_bytes(changed)
        stderr = words(run(*COMMANDS["analyze"], "--out", "on", "--resume", code=2).stderr)
        assert f"{path.name} is damaged" in stderr
        assert ("Start again with --overwrite" if path.name == "run.json" else "Delete it") in stderr
        path.write_bytes(content)
    (here / "on.parts" / "run.json").unlink()
    assert "run.json is missing" in run(*COMMANDS["analyze"], "--out", "on", "--resume", code=2).stderr


def test_parts_are_read_back_as_they_were_kept(tmp_path):
    row = cv.analyze(cv.zoo.digits_problem(20, widths=(3,), activation="relu"), matrix="hessian").whole
    assert np.isnan(row.kappa_80.value)
    Parts(tmp_path / "x", {"a": (1, 2)}, LayerSummary)["layer one"] = row
    parts = Parts(tmp_path / "x", {"a": [1, 2]}, LayerSummary)
    np.testing.assert_equal(asdict(parts.get("layer one")), asdict(row))
    assert parts.get("layer") is None
    assert parts.within("ggn").get("layer one") is None
    with pytest.raises(ConfigurationError, match=r"a was \[1, 2\], is 3"):
        Parts(tmp_path / "x", {"a": 3}, LayerSummary)


def test_what_a_killed_process_left_while_it_wrote_is_deleted_once_the_run_is_complete(here):
    for name in (".on.0123abcd", ".on.0123abce", ".on.thesis", ".one.0123abcd"):
        (here / name).mkdir()
        (here / name / "config.toml").write_text("x")
    (here / ".on.0123abce" / "thesis.tex").write_text("mine")
    run(*COMMANDS["analyze"], "--out", "on")
    assert sorted(path.name for path in here.iterdir()) == [".on.0123abce", ".on.thesis", ".one.0123abcd", "on"]


# --- real processes


def killed(arguments, number, seconds):
    """Start a process and send it a signal after some time; return whether it was in time, and its messages."""
    process = subprocess.Popen(
        [sys.executable, "-m", "curvature", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell has it ignored
    )
    for line in process.stderr:
        if line.startswith("["):  # the first line of progress
            break
    time.sleep(seconds)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_process_killed_twice_at_random_moments_continues_to_the_same_numbers(whole, here, command, number):
    moments = random.Random(f"{command} {number}")
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
    length = {"spectrum": 0.3, "compare": 6.0, "analyze": 0.3}[command]
    for _ in range(2):
        code, errors = killed([*COMMANDS[command], "--out", "on", "--resume"], number, moments.uniform(0, length))
        assert code in (0, codes[number]), errors
        if code in (130, 143):
            assert errors.splitlines()[-1].startswith("error: interrupted; ")
        names = {path.name for path in here.iterdir()}
        assert {name for name in names if number != signal.SIGKILL or name[0] != "."} <= {"on", "on.parts"}
    run(*COMMANDS[command], "--out", "on", "--resume")
    np.testing.assert_equal(numbers(here / "on"), numbers(whole(command)))
    assert [path.name for path in here.iterdir()] == ["on"]
