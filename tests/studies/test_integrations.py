"""Every integration against the real package: rows arrive there, and training is that without a tracker."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import curvature as cv

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 3


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def tracker_of(model, **options):
    return cv.Tracker(cv.Problem.from_module(model, loss="cross-entropy", data=(X, Y)), every=2, **options)


def trained(model, *loggers, steps=4):
    tracker = tracker_of(model, loggers=loggers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
        tracker.step(model)
    return tracker.track


def expected(track, name):
    return [point.scalars()[name] for point in track.points]


def test_tensorboard_has_every_row(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track = trained(network(), cv.integrations.TensorBoardLogger(tmp_path))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    for name in ("loss", "hessian/largest_1", "ggn/trace", "critical_sharpness"):
        scalars = events.Scalars(f"curvature/{name}")
        assert [scalar.step for scalar in scalars] == [2, 4]
        assert [scalar.value for scalar in scalars] == pytest.approx(expected(track, name), rel=1e-6)


@pytest.mark.slow
def test_wandb_has_every_row_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with pytest.raises(cv.ConfigurationError, match="no active run of wandb"):
        cv.integrations.WandbLogger()
    run = wandb.init(project="test", dir=str(tmp_path), mode="offline")
    track = trained(network(), cv.integrations.WandbLogger())
    summary = {name: run.summary[f"curvature/{name}"] for name in ("step", "loss", "hessian/largest_1")}
    run.finish()
    assert summary["step"] == 4
    assert summary["loss"] == track.points[-1].loss
    assert summary["hessian/largest_1"] == expected(track, "hessian/largest_1")[-1]


def test_mlflow_has_every_row_in_a_local_store(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the databases need more than mlflow-skinny
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tmp_path.as_uri())
    mlflow.set_tracking_uri(tmp_path.as_uri())
    with pytest.raises(cv.ConfigurationError, match="no active run of mlflow"):
        cv.integrations.MLflowLogger()
    mlflow.set_experiment("test")
    with mlflow.start_run() as run:
        track = trained(network(), cv.integrations.MLflowLogger())
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "curvature/ggn/largest_1")
    assert [metric.step for metric in history] == [2, 4]
    assert [metric.value for metric in history] == expected(track, "ggn/largest_1")


@pytest.mark.filterwarnings("ignore")  # of packages that are not ours
def test_lightning_trains_as_without_and_logs_every_row(tmp_path):
    pl = pytest.importorskip("lightning.pytorch")

    class Classifier(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fitted(*callbacks, logger=False):
        model = Classifier()
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=4)
        trainer = pl.Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=logger,
            callbacks=[make(model) for make in callbacks],
            accumulate_grad_batches=2,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=str(tmp_path),
        )
        trainer.fit(model, loader)
        return model

    trackers = []

    def callback(model):
        trackers.append(tracker_of(model.net))
        return cv.integrations.LightningCallback(trackers[0], module=lambda module: module.net, along_update=True)

    from lightning.pytorch.loggers import CSVLogger

    followed = fitted(callback, logger=CSVLogger(str(tmp_path), flush_logs_every_n_steps=1))
    for plain, tracked in zip(fitted().parameters(), followed.parameters(), strict=True):
        assert torch.equal(plain, tracked)
    track = trackers[0].track
    assert [point.step for point in track.points] == [2, 4, 6]
    assert {point.update for point in track.points} == {"SGD"}
    assert math.isclose(track.points[-1].loss, nn.functional.cross_entropy(followed.net(X), Y).item(), rel_tol=1e-5)
    (csv,) = tmp_path.rglob("metrics.csv")
    assert "curvature/hessian/largest_1" in csv.read_text()


def test_the_trainer_of_hugging_face_trains_as_without(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x, labels=None):
            logits = self.net(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    rows = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]

    def fitted(*makers):
        model = Classifier()
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=6,
            per_device_train_batch_size=4,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            seed=0,
        )
        callbacks = [make(model) for make in makers]
        transformers.Trainer(model, args=arguments, train_dataset=rows, callbacks=callbacks).train()
        return model

    trackers = []

    def callback(model):
        trackers.append(tracker_of(model.net))
        return cv.integrations.TransformersCallback(trackers[0], module=lambda model: model.net, along_update=True)

    followed = fitted(callback)
    for plain, tracked in zip(fitted().parameters(), followed.parameters(), strict=True):
        assert torch.equal(plain, tracked)
    track = trackers[0].track
    assert [point.step for point in track.points] == [2, 4, 6]
    assert {point.update for point in track.points} == {"AdamW"}
    assert math.isclose(track.points[-1].loss, nn.functional.cross_entropy(followed.net(X), Y).item(), rel_tol=1e-5)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("LightningCallback", "lightning", "lightning"),
        ("TransformersCallback", "transformers", "transformers"),
        ("TensorBoardLogger", "tensorboard", "tensorboard"),
        ("WandbLogger", "wandb", "wandb"),
        ("MLflowLogger", "mlflow", "mlflow-skinny"),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_installs_it(monkeypatch, name, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    for loaded in [key for key in sys.modules if key.startswith((f"{module}.", f"torch.utils.{module}"))]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.delitem(sys.modules, f"curvature.studies.integrations.{module}", raising=False)
    with pytest.raises(ImportError, match=rf"{name} needs the package '{package}'.*curvature-toolkit\[integrations\]"):
        getattr(cv.integrations, name)


def test_no_package_is_imported_before_it_is_used():
    names = ["lightning", "transformers", "tensorboard", "wandb", "mlflow"]
    code = f"import sys, curvature as cv; cv.Tracker, cv.integrations; print([n for n in {names} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_integration_is_an_attribute_error():
    assert "WandbLogger" in dir(cv.integrations)
    with pytest.raises(AttributeError, match="has no attribute 'Comet'"):
        cv.integrations.Comet  # noqa: B018
