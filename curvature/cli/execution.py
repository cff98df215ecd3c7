"""One command: load, measure, write, print."""

from __future__ import annotations

import contextlib
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from curvature._version import __version__
from curvature.cli import tables
from curvature.cli.configuration import (
    KINDS,
    MATRICES,
    CompareConfiguration,
    Configuration,
    SpectrumConfiguration,
    resolve,
)
from curvature.cli.full import forget_parts, full_settings, measured_parts, parts_beside
from curvature.cli.terminal import Terminal, count, one_line, short_warnings
from curvature.errors import ConfigurationError, ExitCode

if TYPE_CHECKING:
    from torch import nn

    from curvature.linalg.planning import Plan
    from curvature.models import Problem
    from curvature.records import Study

__all__ = ["execute"]

_DEVICES = ("cpu", "cuda", "mps", "xpu")


def execute(command: str, options: dict[str, Any]) -> None:
    """Resolve, measure, write, print."""
    measure = {"spectrum": _spectrum_study, "compare": _compare_study}[command]
    show = {"spectrum": tables.print_spectrum, "compare": tables.print_compare}[command]
    terminal = Terminal(options["quiet"], options["verbose"])
    flags = {name: value for name, value in options.items() if name in KINDS[command].model_fields}
    config = resolve(
        command,
        flags,
        file=options["config"],
        settings=options["settings"] or (),
        trust=options["trust_config"],
        warn=terminal.warn,
    )
    out, started = options["out"], time.time()
    plans = None
    # What user code prints is no result; a warning of a library is one line.
    with contextlib.redirect_stdout(sys.stderr), short_warnings(terminal, options["debug"]):
        from curvature import report

        if out is not None:
            report.check_target(out, overwrite=options["overwrite"])
        with _limited_threads(config.threads):
            if options.get("dry_run"):
                plans = _spectrum_plans(config, terminal)
            else:
                study = measure(config, terminal, started, out)
        if plans is None:
            document = report.study_document(study)
            if out is not None:
                out = report.write_run(study, out, overwrite=options["overwrite"])
                forget_parts(out)

    if plans is not None:
        tables.print_plans(plans, options["as_json"])
        return
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a sign still shows the numbers
    if options["as_json"]:
        typer.echo(json.dumps(document, allow_nan=False))
    else:
        show(study, document, options["verbose"])
    sys.stdout.flush()
    _close(command, study, config, terminal, out)
    failed = [check for check in study.checks if not check.passed]
    if failed:
        terminal.error(
            f"a self-check failed, do not trust the numbers: {failed[0].name}: {failed[0].value:.3g}, allowed "
            f"{failed[0].tolerance:.3g}."
        )
        raise typer.Exit(int(ExitCode.SELF_CHECK))
    open_ones = _unresolved(study) if options["strict"] else []
    if open_ones:
        terminal.error(f"--strict: {len(open_ones)} numbers or verdicts are open, the first: {open_ones[0]}.")
        raise typer.Exit(int(ExitCode.UNRESOLVED))


def _close(command: str, study: Study, config: Configuration, terminal: Terminal, out: Path | None) -> None:
    for warning in study.warnings:
        terminal.warn(warning)
    checks = (*study.self_checks, *study.checks)
    if terminal.verbose:
        for check in checks:
            verdict = "passed" if check.passed else "FAILED"
            terminal.note(f"check {verdict}: {check.name}: {check.value:.2g} (allowed {check.tolerance:.2g})")
    else:
        passed = sum(check.passed for check in checks)
        if checks:
            terminal.note(f"checks: {passed} of {len(checks)} passed (-v lists them)")
    terminal.note(f"time: {study.provenance['seconds']:.1f} s")
    if out is not None:
        terminal.note(f"report: {out / 'report.html'}")
        terminal.note(f"next: curvature {command} --config {out / 'config.toml'} --out {out}-again repeats it")
        return
    changed = config.model_dump(exclude_defaults=True)
    given = "".join(f" --{name} {changed[name]}" for name in ("model", "weights", "data", "loss") if name in changed)
    if command == "spectrum":
        terminal.note(f"next: add --out runs/NAME for a report with figures, or train: curvature compare{given}")
    else:
        terminal.note("next: add --out runs/NAME for a report with figures and every number")


def _unresolved(study: Study) -> list[str]:
    from curvature.records import ConditionNumbers, ExtremalEigenvalues

    unconverged = [
        f"the ends of {measured.record.matrix} in {measured.record.chart} (not converged)"
        for measured in study.of(ExtremalEigenvalues, converged=False)
    ]
    undecided = [f"{v.name} is {v.outcome}" for v in study.verdicts if v.outcome in ("inconclusive", "not tested")]
    return (
        undecided
        + unconverged
        + [
            f"{name} of {measured.record.matrix} in {measured.record.chart} ({quantity.status.replace('_', ' ')})"
            for measured in study.of(ConditionNumbers)
            for name, quantity in measured.record.headline.items()
            if quantity.status in {"lower_bound", "unresolved"}
        ]
    )


def _spectrum_study(
    config: SpectrumConfiguration, terminal: Terminal, started: float, _out: Path | None = None
) -> Study:
    from curvature.studies import run_spectrum

    config, problem, model, data, work = _spectrum_work(config, terminal)

    def announce(plans: Mapping[str, Sequence[tuple[Plan, ...]]]) -> None:
        for line in tables.plan_lines(plans):
            terminal.note(f"plan:  {line}")
        if terminal.verbose:
            for made in plans.values():
                for one in (one for several in made for one in several):
                    terminal.note(f"       {one}" + "".join(f"; not {name}: {why}" for name, why in one.rejected))

    with terminal.progress() as progress:
        study = run_spectrum(
            problem,
            **work,
            model=_about_spectrum_model(config),
            data=_about_data(config, data),
            config=_written(config, "spectrum"),
            progress=progress,
            announce=announce,
        )
    return _with_provenance(study, config, model, data, started)


def _spectrum_plans(config: SpectrumConfiguration, terminal: Terminal) -> dict[str, list[tuple[Plan, ...]]]:
    from curvature.studies import plan_spectrum

    _, problem, _, _, work = _spectrum_work(config, terminal)
    return plan_spectrum(problem, **work)


def _spectrum_work(
    config: SpectrumConfiguration, terminal: Terminal
) -> tuple[SpectrumConfiguration, Problem, nn.Module, Any, dict[str, Any]]:
    """Load what is measured; the configuration with its charts, and what the library is asked to do."""
    import torch

    from curvature.cli import loading
    from curvature.models import Problem

    _header(config, terminal)
    loss = loading.load_loss(config.loss, terminal.say)
    model = _model_builder(config, terminal)(config.seed)
    data = _load_data(config, loss, model, terminal)
    problem = Problem.from_module(model, loss=loss, data=data, dtype=getattr(torch, config.dtype))
    config = _with_charts(config, problem.chart)
    about_model = _about_spectrum_model(config)
    terminal.note(f"model: {about_model}: {problem.dim} weights in {len(problem.layout.entries)} tensors")
    terminal.note(f"data:  {_about_data(config, data)}")
    shared = ("block", "method", "seed", "num_samples", "gradient", "num_eigenvalues", "num_probes", "num_matvecs")
    work = {name: getattr(config, name) for name in shared}
    work["matrices"] = [MATRICES[name] for name in config.matrix]
    work["charts"] = loading.build_charts(config.chart, config.gauge, problem.chart, seed=config.seed)
    return config, problem, model, data, work


def _about_spectrum_model(config: SpectrumConfiguration) -> str:
    return _about_model(config, f"seed {config.seed}" if config.weights is None else None)


def _compare_study(config: CompareConfiguration, terminal: Terminal, started: float, out: Path | None = None) -> Study:
    import torch

    from curvature.studies import CompareSettings, run_compare
    from curvature.studies.full import combined

    _header(config, terminal)
    config = config.model_copy(update={"seeds": config.num_seeds})
    build, data, loss = _prepared(config, terminal)
    first = build(0)
    about_model, about_data = _about_model(config), _about_data(config, data)
    terminal.note(f"model: {about_model}: {sum(p.numel() for p in first.parameters())} parameters")
    terminal.note(f"data:  {about_data}")
    if config.weights is not None and config.seeds > 1:
        terminal.warn("every seed starts from the same --weights: the seeds differ in the order of the data alone")
    written = {"model": about_model, "data_name": about_data, "config": _written(config, "compare")}
    if config.full:
        settings = full_settings(config)
        terminal.note(
            f"plan:  {count(config.seeds, 'paired seed')} x {count(len(settings.arms), 'arm')}, each tuned over "
            f"{len(settings.training.rates)} or more learning rates of {config.tuning_epochs} epochs, then trained for "
            f"{config.epochs}; {count(config.jobs, 'seed')} at a time"
        )
        with terminal.progress() as progress:
            parts = measured_parts(config, _prepared, terminal, parts_beside(out), progress)
        return _with_provenance(combined(parts, settings, **written), config, first, data, started)
    settings = CompareSettings(
        seeds=tuple(range(config.seeds)),
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        momentum=config.momentum,
        matrices=tuple(MATRICES[name] for name in config.matrix),
        stretches=config.stretches,
        relative_dampings=config.dampings,
        relative_damping=config.damping,
        threshold=config.threshold,
    )
    terminal.note(
        f"plan:  {count(config.seeds, 'paired seed')} x 2 arms (standard, weight-norm), {config.epochs} epochs of SGD "
        f"at {config.learning_rate:g}; {count(len(config.matrix), 'matrix', 'matrices')} at 3 checkpoints each"
    )
    with terminal.progress() as progress:
        study = run_compare(
            build, data, loss, settings, dtype=getattr(torch, config.dtype), progress=progress, **written
        )
    return _with_provenance(study, config, first, data, started)


def _prepared(config: Configuration, terminal: Terminal) -> tuple[Callable[[int], nn.Module], Any, Any]:
    """How to build the model of a seed, the data and the loss."""
    from curvature.cli import loading

    loss = loading.load_loss(config.loss, terminal.say)
    build = _model_builder(config, terminal)
    return build, _load_data(config, loss, build(0), terminal), loss


def _model_builder(config: Configuration, terminal: Terminal) -> Callable[[int], nn.Module]:
    """From a seed to the model on its device, with the user's weights in it."""
    from curvature.cli import loading

    device = _device(config)
    build = loading.load_model(config.model, config.arg, terminal.say)
    if config.key is not None and config.weights is None:
        raise ConfigurationError("--key says where in a file of --weights to look; --weights is missing.")
    tensors = None if config.weights is None else loading.load_weights(config.weights, config.key, terminal.say)

    def built(seed: int) -> nn.Module:
        model = build(seed)
        return (model if tensors is None else loading.apply_weights(model, tensors, terminal.say)).to(device)

    return built


def _load_data(config: Configuration, loss: Any, model: nn.Module, terminal: Terminal) -> Any:
    from curvature.cli import loading

    return loading.load_data(
        config.data,
        loss,
        target=config.target,
        num_examples=config.num_examples,
        image=loading.takes_images(model),
        say=terminal.say,
    )


def _device(config: Configuration) -> Any:
    import torch

    if config.device.partition(":")[0] not in _DEVICES:
        raise ConfigurationError(f"--device {config.device!r} is unknown; choose {', '.join(_DEVICES)}, or cuda:1.")
    try:
        device = torch.device(config.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigurationError(f"--device {config.device!r} cannot be used: {reason}. Use --device cpu.") from error
    if device.type == "mps" and config.dtype == "float64":
        raise ConfigurationError("--device mps has no float64: add --dtype float32, or use --device cpu.")
    return device


def _with_charts(config: SpectrumConfiguration, own: Any) -> SpectrumConfiguration:
    """Fill in the charts that were left open: the model's own, and weight norm where a gauge was asked for."""
    has_own = own.name == "weight-norm"
    charts = config.chart or (("standard", "weight-norm") if has_own or config.gauge else ("standard",))
    gauges = config.gauge
    if not gauges and "weight-norm" in charts:
        gauges = ("checkpoint",) if has_own else ("canonical",)
        gauges += ("paper",) if "placebo" in charts else ()
    return config.model_copy(update={"chart": charts, "gauge": gauges})


def _written(config: Configuration, command: str) -> dict[str, Any]:
    """Write the configuration as ``--config`` reads it; TOML has no null, so what is None is left out."""
    return {"command": command} | config.model_dump(mode="json", exclude_none=True)


def _with_provenance(study: Study, config: Configuration, model: nn.Module, data: Any, started: float) -> Study:
    from curvature import provenance

    named = (
        config.model.rpartition(":")[0] or config.model,
        config.weights,
        config.data,
        config.loss.rpartition(":")[0],
    )
    about = provenance.collect(
        started=started,
        device=config.device,
        dtype=config.dtype,
        model_sha256=provenance.hash_tensors(dict(model.named_parameters()) | dict(model.named_buffers())),
        data_sha256=provenance.hash_tensors(data),
        files_sha256={name: provenance.hash_file(name) for name in named if name and Path(name).is_file()},
    )
    return replace(study, provenance={**study.provenance, **about})


def _about_model(config: Configuration, detail: str | None = None) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in config.arg.items())
    text = config.model + (f"({arguments})" if arguments else "")
    text += f" with {config.weights}" if config.weights else ""
    return one_line(text + (f", {detail}" if detail else ""))


def _about_data(config: Configuration, data: Any) -> str:
    inputs, targets = data
    shape = " x ".join(map(str, inputs.shape[1:])) or "1"
    classes = f", classes {int(targets.min())} to {int(targets.max())}" if not targets.is_floating_point() else ""
    return one_line(f"{config.data}: {len(inputs)} examples of {shape}{classes}, loss {config.loss}")


def _header(config: Configuration, terminal: Terminal) -> None:
    import torch

    terminal.note(
        f"curvature {__version__}, python {platform.python_version()}, torch {torch.__version__}, {config.device}, "
        f"{count(torch.get_num_threads(), 'thread')}, {config.dtype}"
    )


@contextlib.contextmanager
def _limited_threads(threads: int | None) -> Iterator[None]:
    """Limit torch and the BLAS under NumPy, which computes the eigenvalues on the CPU."""
    if threads is None:
        yield
        return
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        torch.set_num_threads(before)
