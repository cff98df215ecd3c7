"""Progress of long work: where it is shown, and the time that is left."""

import io
import sys
import types

import pytest

import curvature as cv
from curvature.cli.terminal import Terminal
from curvature.studies import progress
from curvature.studies.progress import Remaining, shown


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_the_remaining_time_is_that_of_the_pace_since_this_process_began():
    clock = Clock()
    remaining = Remaining(clock)
    assert remaining.text(0.5) == ""  # half of it was done by an earlier process
    clock.now = 4.0
    assert remaining.text(0.6) == ""  # too early to tell
    clock.now = 60.0
    assert remaining.text(0.52) == ""  # too little is done
    assert remaining.text(0.75) == "about 60 s left"  # a quarter took 60 s
    clock.now = 600.0
    assert remaining.text(0.6) == "about 40 min left"
    assert remaining.text(1.0) == ""


class Terminals(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=clock))
    return clock


def work(clock, how):
    with shown(how) as report:
        for share in (0.0, 0.25, 0.5, 1.0) if report is not None else ():
            report("part\x1b[31m", share)
            clock.now += 10.0


def test_on_a_terminal_a_line_of_stderr_is_written_over_and_vanishes(monkeypatch, capsys, clock):
    terminal = Terminals()
    monkeypatch.setattr(sys, "stderr", terminal)
    work(clock, None)
    text = terminal.getvalue()
    assert "\r\x1b[K[ 25%] part\\x1b[31m (about 30 s left)" in text
    assert "[  0%]" not in text  # less than two seconds had passed
    assert text.endswith("\r\x1b[K")
    assert "\n" not in text
    assert capsys.readouterr().out == ""


def test_without_a_terminal_lines_are_written_if_asked_for_and_nothing_otherwise(capsys, clock):
    work(clock, None)
    work(clock, False)
    assert capsys.readouterr() == ("", "")
    work(clock, True)
    assert capsys.readouterr() == ("", "[  0%] part\\x1b[31m\n")


def test_in_a_notebook_one_output_is_updated_and_emptied(monkeypatch, capsys, clock):
    outputs = []

    class Output:
        def update(self, data, raw):
            assert raw
            outputs[0] = data

    def display(data, raw, display_id):
        assert raw
        assert display_id
        outputs.append(data)
        return Output()

    monkeypatch.setitem(
        sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(kernel=1))
    )
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))
    with shown(None) as report:
        report("<b>", 0.0)
        clock.now += 20.0
        report("<b>", 0.5)
        assert outputs == [
            {
                "text/plain": "[ 50%] <b> (about 20 s left)",
                "text/html": '<progress value="0.500" max="1"></progress> [ 50%] &lt;b&gt; (about 20 s left)',
            }
        ]
    assert outputs == [{"text/plain": "", "text/html": ""}]
    assert capsys.readouterr() == ("", "")


def test_study_measure_and_analyze_report_from_zero_to_one_and_can_be_silent(capsys):
    problem = cv.zoo.digits_problem(20, widths=(2,))
    build = lambda _seed: problem  # noqa: E731
    options = {"epochs": 2, "matrices": ("ggn",), "stretches": (), "relative_dampings": (1e-3,), "num_seeds": 1}
    calls = {
        "measure": lambda how: cv.measure(problem, matrices=("ggn", "fisher"), progress=how),
        "analyze": lambda how: cv.analyze(problem, progress=how),
        "study": lambda how: cv.study(build, progress=how, **options),
    }
    for call in calls.values():
        shares = []
        call(lambda _message, share, shares=shares: shares.append(share))
        assert shares[0] == 0.0
        assert shares[-1] == 1.0
        assert shares == sorted(shares)
        assert len(shares) > 2
        call(False)
    assert capsys.readouterr() == ("", "")


def test_a_quiet_command_reports_no_progress(capsys):
    with Terminal(quiet=True).progress() as report:
        assert report is None
    with Terminal().progress() as report:
        report("x", 0.0)
    assert capsys.readouterr() == ("", "[  0%] x\n")
