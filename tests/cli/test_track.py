"""``curvature track`` as a user runs it: a folder of checkpoints, each measured once, in any number of sittings."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import curvature as cv
from curvature import cli, report
from curvature.cli import loading, track
from curvature.errors import ConfigurationError, ExitCode
from curvature.report.parts import Parts

ROOT = Path(__file__).parents[2]
OPTIONS = ["--arg", "widths=2", "--num-examples", "40", "--threads", "1"]


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, ["track", *arguments])
    assert result.exit_code == code, (result.exit_code, result.stdout[-500:], result.stderr, result.exception)
    return result


def words(text):
    return " ".join(text.split())


def trained(steps, rate=0.5):
    """State dicts of the built-in network along gradient descent."""
    problem = cv.zoo.digits_problem(40, widths=(2,))
    model = loading.load_model("builtin:digits-mlp", {"widths": [2]})(0).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    states = []
    for _ in range(steps):
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(problem.inputs), problem.targets).backward()
        optimizer.step()
    return states


STATES = trained(12)


def save(folder, steps):
    folder.mkdir(exist_ok=True)
    for step in steps:
        torch.save(STATES[step], folder / f"step_{step}.pt")


@pytest.fixture(autouse=True)
def here(empty_folder):
    return empty_folder


@pytest.fixture
def folder(here):
    save(here / "ckpt", (0, 2, 9, 10))
    return here / "ckpt"


def rows(out):
    return report.load_rows(Path(out))


def test_a_row_for_each_checkpoint_in_the_order_of_the_steps_has_the_numbers_of_its_weights(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # a narrow terminal has the columns in two parts
    result = run(str(folder), *OPTIONS, "--top", "3", "--out", "run")
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith("step_")]
    assert [line[0] for line in lines] == [f"step_{step}.pt" for step in (0, 2, 9, 10)] * 2
    assert [line[1] for line in lines[:4]] == ["0", "2", "9", "10"]
    for row, step in zip(rows("run"), (0, 2, 9, 10), strict=True):
        model = loading.load_model("builtin:digits-mlp", {"widths": [2]})(0).double()
        model.load_state_dict(STATES[step])
        X, y = cv.zoo.digits_problem(40, widths=(2,)).inputs, cv.zoo.digits_problem(40, widths=(2,)).targets
        loss = torch.nn.functional.cross_entropy(model(X), y)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        assert row.loss == pytest.approx(loss.item(), rel=1e-13)
        assert row.points[0].gradient_norm == pytest.approx(
            float(sum(g.square().sum() for g in gradients).sqrt()), rel=1e-12
        )
        names, parameters = zip(*model.named_parameters(), strict=True)

        def flat_loss(*values, model=model, names=names, X=X, y=y):
            outputs = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (X,))
            return torch.nn.functional.cross_entropy(outputs, y)

        blocks = torch.autograd.functional.hessian(flat_loss, tuple(p.detach() for p in parameters))
        sizes = [p.numel() for p in parameters]
        dense = torch.cat([torch.cat([b.reshape(n, m) for b, m in zip(r, sizes, strict=True)], 1)
                           for r, n in zip(blocks, sizes, strict=True)])  # fmt: skip
        exact = torch.linalg.eigvalsh(dense).numpy()[::-1]
        (point,) = row.points
        hessian = next(matrix for matrix in point.matrices if matrix.matrix == "hessian")
        np.testing.assert_allclose([q.value for q in hessian.largest], exact[:3], rtol=1e-9)
        assert hessian.trace.value == pytest.approx(exact.sum(), rel=1e-9)


def test_the_run_directory_has_the_report_the_tables_and_what_is_needed_to_continue(folder):
    run(str(folder), *OPTIONS, "--out", "run")
    names = {path.relative_to("run").as_posix() for path in Path("run").rglob("*") if path.is_file()}
    assert names == {"DONE", "config.toml", "provenance.json", "track.json", "track.csv", "checkpoints.json",
                     "report.html", "figures/track.svg"}  # fmt: skip
    with Path("run/track.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 4
    assert lines[0]["hessian/kappa_80"] == ""
    assert lines[0]["hessian/kappa_80_status"] == "indefinite"
    assert float(lines[0]["ggn/kappa_80"]) > 1
    page = Path("run/report.html").read_text()
    assert "<svg" in page
    assert "step_10.pt" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    document = json.loads(run(str(folder), *OPTIONS, "--json", "-q").stdout)
    assert document["schema"] == "curvature/track/1"
    assert [row["step"] for row in document["rows"]] == [0, 2, 9, 10]


def interrupted(*arguments, after):
    keep, kept = Parts.__setitem__, []

    def keep_then_interrupt(parts, name, part):
        keep(parts, name, part)
        kept.append(name)
        if len(kept) == after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parts, "__setitem__", keep_then_interrupt)
        return run(*arguments, code=ExitCode.INTERRUPTED)


@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_interrupted_twice_and_resumed_gives_the_same_rows_exactly(folder, method):
    arguments = [str(folder), *OPTIONS, "--method", method, "-m", "ggn"]
    run(*arguments, "--out", "whole")
    assert "1 finished part of this run is kept" in words(interrupted(*arguments, "--out", "on", after=1).stderr)
    interrupted(*arguments, "--out", "on", "--resume", after=2)
    run(*arguments, "--out", "on", "--resume")
    first, second = (Path(out, "checkpoints.json").read_bytes() for out in ("whole", "on"))
    assert first == second
    assert not Path("on.parts").exists()


def test_a_checkpoint_that_is_added_later_is_measured_and_no_other_one(folder, monkeypatch):
    run(str(folder), *OPTIONS, "-m", "ggn", "--out", "run")
    before = rows("run")
    save(folder, (5,))
    (folder / "step_2.pt").unlink()  # a trainer keeps the last few; the row stays
    measured = []
    keep = Parts.__setitem__
    monkeypatch.setattr(Parts, "__setitem__", lambda *given: measured.append(given[1]) or keep(*given))
    said = words(run(str(folder), *OPTIONS, "-m", "ggn", "--out", "run", "--resume").stderr)
    assert "4 finished checkpoints found in run" in said
    assert "1 measured checkpoint no longer in the folder; the rows are kept" in said
    assert measured == ["step_5.pt"]
    assert [row.step for row in rows("run")] == [0, 2, 5, 9, 10]
    assert [row for row in rows("run") if row.step != 5] == before
    assert not Path("run.parts").exists()
    monkeypatch.setattr(Parts, "__setitem__", lambda *_: pytest.fail("every checkpoint was measured"))
    again = run(str(folder), *OPTIONS, "-m", "ggn", "--out", "run", "--resume")
    assert "no checkpoint was added; nothing is left to do" in again.stderr


def test_a_checkpoint_that_has_changed_is_an_error_that_names_it(folder):
    run(str(folder), *OPTIONS, "-m", "ggn", "--out", "run")
    torch.save(STATES[11], folder / "step_9.pt")
    refused = run(str(folder), *OPTIONS, "-m", "ggn", "--out", "run", "--resume", code=ExitCode.USAGE)
    assert "the checkpoint step_9.pt has changed since it was measured" in words(refused.stderr)
    other = run(str(folder), *OPTIONS, "-m", "ggn", "--top", "2", "--out", "run", "--resume", code=ExitCode.USAGE)
    assert "top was 5, is 2" in words(other.stderr)


def test_what_cannot_be_used_is_named_and_left_out_only_if_asked(folder):
    (folder / "step_1.pt").write_bytes(b"half a file")
    torch.save({"weight": torch.ones(2, 2)}, folder / "step_3.pt")
    torch.save({name: value * float("nan") for name, value in STATES[0].items()}, folder / "step_11.pt")
    refused = run(str(folder), *OPTIONS, "-m", "ggn", "--out", "run", code=ExitCode.LOADING)
    assert "error: the checkpoint step_1.pt cannot be used" in words(refused.stderr)
    assert "--skip-broken. 1 finished part of this run is kept" in words(refused.stderr)
    said = words(run(str(folder), *OPTIONS, "-m", "ggn", "--out", "run", "--resume", "--skip-broken").stderr)
    for name, reason in (
        ("step_1.pt", "cannot be read"),
        ("step_3.pt", "do not fit"),
        ("step_11.pt", "NaN or infinity"),
    ):
        assert f"warning: left out: {name}: " in said
        assert reason in said
    assert [row.step for row in rows("run")] == [0, 2, 9, 10]
    assert "step_11.pt" in Path("run/report.html").read_text()
    save(folder, (1,))
    run(str(folder), *OPTIONS, "-m", "ggn", "--out", "run", "--resume", "--skip-broken")
    assert [row.step for row in rows("run")] == [0, 1, 2, 9, 10]
    run(str(folder), *OPTIONS, "-m", "ggn", "--skip-broken", "--strict", code=ExitCode.UNRESOLVED)
    hit = run(str(folder), *OPTIONS, "-m", "ggn", "--skip-broken", "--fail-on", "largest > 0.1", code=ExitCode.RULE_HIT)
    assert "step_0.pt" in hit.stderr


def test_a_copy_of_a_checkpoint_is_measured_once(folder):
    shutil.copy(folder / "step_10.pt", folder / "last.pt")
    said = run(str(folder), *OPTIONS, "-m", "ggn", "--out", "run").stderr
    assert "last.pt is a copy of step_10.pt; measured once" in said
    assert [row.step for row in rows("run")] == [0, 2, 9, 10]


def save_in_shards(folder, step):
    """Weights in two files with an index, as the packages of Hugging Face write them."""
    folder.mkdir(parents=True)
    parts = {"model-00001-of-00002.safetensors": ("0.",), "model-00002-of-00002.safetensors": ("2.",)}
    places = {}
    for file, begin in parts.items():
        tensors = {name: value.clone() for name, value in STATES[step].items() if name.startswith(begin)}
        save_file(tensors, folder / file)
        places |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize("pattern", ["**/*", "*/*.safetensors", "*/*.json"])
def test_weights_in_several_files_are_one_checkpoint_with_the_numbers_of_its_whole(here, pattern):
    save(here / "whole", (3, 7))
    for step in (3, 7):
        save_in_shards(here / "sharded" / f"checkpoint-{step}", step)
    options = (*OPTIONS, "-m", "ggn", "--json")
    expected = json.loads(run("whole", *options).stdout)["rows"]
    rows = json.loads(run("sharded", *options, "--pattern", pattern).stdout)["rows"]
    assert [row["checkpoint"] for row in rows] == [f"checkpoint-{step}/model.safetensors.index.json" for step in (3, 7)]
    assert [row["step"] for row in rows] == [3, 7]
    assert [row["points"][0]["matrices"] for row in rows] == [row["points"][0]["matrices"] for row in expected]


def test_a_shard_that_has_changed_is_noticed(here):
    save_in_shards(here / "sharded" / "checkpoint-3", 3)
    run("sharded", *OPTIONS, "-m", "ggn", "--out", "out")
    shutil.rmtree(here / "sharded")
    save_in_shards(here / "sharded" / "checkpoint-3", 4)
    refused = run("sharded", *OPTIONS, "-m", "ggn", "--out", "out", "--resume", code=ExitCode.USAGE)
    assert "checkpoint-3/model.safetensors.index.json has changed since it was measured" in words(refused.stderr)


@pytest.mark.usefixtures("folder")
def test_a_dry_run_names_the_checkpoints_and_plans_each_matrix_without_measuring(monkeypatch):
    monkeypatch.setattr(track, "_measured_checkpoint", None)
    text = run("ckpt", *OPTIONS, "--dry-run").stdout
    assert "checkpoints, step_0.pt" in text
    assert "GGN: exact" in text
    plan = json.loads(run("ckpt", *OPTIONS, "--dry-run", "--json", "--method", "lanczos").stdout)
    assert plan["checkpoints"][0] == "step_0.pt"
    assert {row["method"] for row in plan["plans"]} == {"lanczos"}


def test_steps_come_from_lightning_from_hugging_face_and_from_names(here):
    folder = here / "mixed"
    folder.mkdir()
    lightning = {"epoch": 3, "global_step": 700, "state_dict": {f"model.{k}": v for k, v in STATES[0].items()}}
    torch.save(lightning | {"optimizer_states": [{"lr": 0.1}]}, folder / "epoch=3.ckpt")
    hugging = folder / "checkpoint-20"
    hugging.mkdir()
    torch.save(STATES[1], hugging / "pytorch_model.bin")
    torch.save({"state": {}}, hugging / "optimizer.pt")
    (hugging / "trainer_state.json").write_text('{"global_step": 25}')
    found = loading.find_checkpoints(folder, "**/*")
    assert list(found) == ["checkpoint-20/pytorch_model.bin", "epoch=3.ckpt"]
    assert [loading.training_step(path, name) for name, path in found.items()] == [25, 700]
    run(str(folder), *OPTIONS, "-m", "ggn", "--pattern", "*.ckpt", "--key", "state_dict", "--out", "run")
    assert [row.step for row in rows("run")] == [700]


@pytest.mark.parametrize(
    ("name", "step"),
    [("epoch=1-step=40.pt", 40), ("ckpt_007.pt", 7), ("run2/step10_loss0.5.pt", 10), ("last.pt", None)],
)
def test_a_step_in_a_name(here, name, step):
    torch.save(STATES[0], here / "x.pt")
    assert loading.training_step(here / "x.pt", name) == step


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "name the folder with the checkpoints: curvature track FOLDER"),
        (["nowhere"], "'nowhere' is not a folder"),
        (["ckpt", "--pattern", "*.x"], "no file in 'ckpt' fits --pattern '*.x'"),
        (["ckpt", "--pattern", "/x"], "--pattern '/x' is not a glob relative to FOLDER"),
        (["ckpt", "--top", "0"], "--top"),
        (["ckpt", "--method", "slq"], "--method"),
        (["ckpt", "--set", "weights=a.pt"], "leave out --weights"),
        (["ckpt", "--key", "model"], "--key 'model' is not in ckpt/step_0.pt"),
        (["ckpt", "--weights", "a.pt"], "--weights: track reads the weights from the checkpoints in FOLDER"),
    ],
)
def test_a_wrong_option_is_explained(folder, arguments, expected):
    del folder
    result = CliRunner().invoke(cli.app, ["track", *arguments, *OPTIONS])
    assert result.exit_code in (ExitCode.USAGE, ExitCode.LOADING)
    assert expected in words(result.stderr.replace("│", " "))


def test_lanczos_and_exact_agree_and_large_matrices_take_lanczos(folder, monkeypatch):
    arguments = [str(folder), *OPTIONS, "-m", "ggn", "--top", "3"]
    run(*arguments, "--out", "exact")
    monkeypatch.setitem(track._WHOLE_UP_TO, "auto", 100)
    run(*arguments, "--out", "large")
    for first, second in zip(rows("exact"), rows("large"), strict=True):
        exact, estimated = first.points[0].matrices[0], second.points[0].matrices[0]
        assert exact.method != "lanczos"
        assert estimated.method == "lanczos"
        for value, estimate in zip(exact.largest, estimated.largest, strict=True):
            assert estimate.status == "resolved"
            assert estimate.low <= value.value <= estimate.high
        assert estimated.trace.low <= exact.trace.value <= estimated.trace.high
        assert not estimated.kappa_80.has_value


def test_every_chart_that_is_asked_for_has_its_row(folder):
    run(str(folder), *OPTIONS, "-m", "ggn", "--chart", "standard,weight-norm", "--gauge", "canonical", "--out", "run")
    for row in rows("run"):
        assert row.charts == ("standard", "weight-norm (canonical)")
        plain, normed = (point.matrices[0].largest[0].value for point in row.points)
        assert plain == pytest.approx(normed, rel=1e-10)  # at the canonical gauge the map is an isometry


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_process_killed_twice_continues_to_the_same_rows(here, number):
    save(here / "ckpt", range(12))
    arguments = ["ckpt", *OPTIONS]
    run(*arguments, "--out", "whole")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    for lines in (2, 3):
        process = subprocess.Popen(
            [sys.executable, "-m", "curvature", "track", *arguments, "--out", "on", "--resume"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        for line in process.stderr:
            lines -= line.startswith("[")
            if not lines:
                break
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == (130 if number == signal.SIGINT else -9)
    run(*arguments, "--out", "on", "--resume")
    assert Path("on/checkpoints.json").read_bytes() == Path("whole/checkpoints.json").read_bytes()


@pytest.mark.parametrize(("name", "load"), [("checkpoints.json", report.load_rows), ("track.json", report.load_track)])
def test_what_a_report_is_made_from_is_never_to_be_deleted(tmp_path, name, load):
    (tmp_path / "config.toml").touch()
    (tmp_path / name).write_text("{")
    with pytest.raises(
        ConfigurationError, match=r"Restore .* repeat the run: `curvature track --config .*toml --out NEW`"
    ):
        load(tmp_path)
