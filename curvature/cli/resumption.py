"""``--resume``: whether a run may begin, continues from its finished parts, or is finished already."""

from __future__ import annotations

import contextlib
import json
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from curvature._version import __version__
from curvature.cli.configuration import Configuration
from curvature.cli.options import RunOptions
from curvature.cli.preparation import written_configuration
from curvature.cli.prepared import Prepared, content_hashes
from curvature.cli.terminal import Terminal, count, one_line
from curvature.errors import ConfigurationError

if TYPE_CHECKING:
    from curvature.report import Parts

__all__ = ["Inputs", "Resumption", "check_out"]

Inputs = Prepared | Mapping[str, Any]
"""What a run loaded, or what is known of it instead: the hashes of its inputs."""

# Fields that change no number, up to rounding, or only which checkpoints are measured.
_FREE = ("jobs", "threads", "backend", "scheduler", "folder", "pattern", "skip_broken")


def check_out(run_options: RunOptions) -> None:
    """Refuse an ``--out`` that is in the way of the run, before anything is loaded.

    Parameters
    ----------
    run_options
        With ``out``, ``overwrite`` and ``resume``.

    Raises
    ------
    ConfigurationError
        If the directory or an unfinished run exists and neither ``--resume`` nor ``--overwrite`` says what to do.
    """
    from curvature import report

    out = run_options.out
    if run_options.resume and run_options.overwrite:
        raise ConfigurationError(
            "--resume continues the run in --out and --overwrite replaces it. Use one of them. --resume alone also "
            "continues a replacement that was interrupted."
        )
    if out is None:
        if run_options.resume:
            raise ConfigurationError("--resume continues a run that is written to a directory: add its --out DIR.")
        return
    report.check_target(out, overwrite=run_options.overwrite or run_options.resume)
    parts = report.parts_beside(out)
    report.check_parts(parts)
    if _has_parts(out) and not (run_options.overwrite or run_options.resume):
        raise ConfigurationError(
            f"{one_line(str(parts))} holds an unfinished run. Continue it with --resume, start again with --overwrite, "
            "or choose another --out."
        )


def _has_parts(out: Path) -> bool:
    from curvature import report

    parts = report.parts_beside(out)
    return parts.is_dir() and any(parts.iterdir())


class Resumption:
    """The finished parts of a run: opened when the inputs are loaded, mentioned when the run ends early.

    Parameters
    ----------
    command
        Name of the command.
    run_options
        With ``out``, ``overwrite`` and ``resume``.
    terminal
        Receives notes.
    """

    def __init__(self, command: str, run_options: RunOptions, terminal: Terminal):
        self.command, self.terminal = command, terminal
        self.out, self.resume, self.overwrite = run_options.out, run_options.resume, run_options.overwrite
        self.parts: Parts | None = None

    def finds_finished(self, config: BaseModel, prepared: Inputs) -> bool:
        """Whether ``--resume`` finds this very run finished.

        Parameters
        ----------
        config, prepared
            Everything that the numbers follow from.

        Returns
        -------
        bool
            True if nothing is left to do.

        Raises
        ------
        ConfigurationError
            If the directory holds another run, which is not being replaced.
        """
        from curvature import report

        out = self.out
        if out is None or not self.holds_same(config, prepared):
            return False
        report.forget_parts(out)  # the process may have been killed before it did
        self.terminal.note(f"resume: {one_line(str(out))} is finished already; nothing is left to do")
        return True

    def holds_same(self, config: BaseModel, prepared: Inputs) -> bool:
        """Whether ``--resume`` finds a finished run of the same configuration, model and data.

        Parameters
        ----------
        config, prepared
            Everything that the numbers follow from.

        Returns
        -------
        bool
            False if there is none.

        Raises
        ------
        ConfigurationError
            If the directory holds another run, which is not being replaced.
        """
        from curvature import report

        out = self.out
        if out is None or not self.resume or not (out / "DONE").is_file():
            return False
        facts = self._facts(config, prepared, without=_FREE)
        before = tomllib.loads((out / "config.toml").read_text())
        provenance = json.loads((out / "provenance.json").read_text())
        known = {name: provenance.get(name) for name in facts} | {
            "version": provenance["versions"]["curvature"],
            "config": {name: value for name, value in before.items() if name not in _FREE},
        }
        differing = report.differences(known, json.loads(json.dumps(facts)))
        # Parts beside a finished run are those of its replacement, which was interrupted; open() checks whose they are.
        self.overwrite = bool(differing) and _has_parts(out)
        if differing and not self.overwrite:
            raise ConfigurationError(
                f"{one_line(str(out))} is a finished run of something else. What differs: {'; '.join(differing)}. "
                "Choose another --out, or replace that run with --overwrite."
            )
        return not differing

    def open(
        self, config: BaseModel, prepared: Inputs, kind: type | None = None, *, expected: bool = True
    ) -> Parts | None:
        """Open the place where finished parts are kept.

        Parameters
        ----------
        config, prepared
            Everything that the numbers follow from.
        kind
            Class of a part; None: :class:`~curvature.Study`.
        expected
            Whether to note that ``--resume`` finds no part.

        Returns
        -------
        Parts or None
            None without ``--out``.

        Raises
        ------
        ConfigurationError
            If there are parts of another run.
        """
        from curvature import report
        from curvature.records import Study

        if self.out is None:
            return None
        if self.overwrite and not self.resume:
            report.forget_parts(self.out)
        # A seed does not depend on how many others there are.
        facts = self._facts(config, prepared, without=(*_FREE, "num_seeds"))
        self.parts = report.Parts(report.parts_beside(self.out), facts, kind or Study)
        if len(self.parts):
            self.terminal.note(f"resume: {count(len(self.parts), 'finished part')} found in {self.parts.folder}")
        elif self.resume and expected:
            self.terminal.note(f"resume: {self.parts.folder} has no finished part; the run starts from the beginning")
        return self.parts

    def write(self, files: Mapping[str, str]) -> Path:
        """Write the finished run, and forget its parts.

        Parameters
        ----------
        files
            Content by relative path.

        Returns
        -------
        Path
            The run directory.
        """
        from curvature import report

        assert self.out is not None
        out = report.write_texts(files, self.out, overwrite=self.overwrite or self.resume)
        report.forget_parts(out)
        return out

    @contextlib.contextmanager
    def mentioned(self) -> Iterator[None]:
        """Add to whatever ends the run early how many of its parts are kept, and how to continue.

        Yields
        ------
        None
            While the run is measured and written.
        """
        try:
            yield
        except BaseException as error:
            if self.parts is not None and len(self.parts):
                are = "is" if len(self.parts) == 1 else "are"
                error.add_note(
                    f"{count(len(self.parts), 'finished part')} of this run {are} kept in "
                    f"{one_line(str(self.parts.folder))}: the same command with --resume continues from there."
                )
            raise

    def _facts(self, config: BaseModel, prepared: Inputs, *, without: Collection[str]) -> dict[str, Any]:
        """Everything that the numbers of a run follow from, in plain values."""
        from curvature.report.plain import without_none

        written = without_none(written_configuration(self.command, config))
        chosen = {name: value for name, value in written.items() if name not in without}
        if isinstance(prepared, Prepared):
            assert isinstance(config, Configuration)
            prepared = content_hashes(config, prepared)
        return {"version": __version__, "config": chosen, **prepared}
