"""Damage to stored files: one flipped bit, a cut, another file of the same name, numbers that contradict each other."""

import io
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import curvature as cv
from curvature import report
from curvature.errors import ConfigurationError
from curvature.records import (
    ConditionNumbers,
    Decomposition,
    Estimate,
    ExtremalEigenvalues,
    Inertia,
    LearningRateSweep,
    Quantity,
    SpectralDensity,
    Spectrum,
    TrainingCurve,
    Where,
)
from curvature.records.sealed import packed, sealed_text, unpacked, unsealed_text
from curvature.records.storage import from_plain, to_json, to_plain
from curvature.studies import SpectrumSettings, run_spectrum

FLIPS = 100  # seeded positions in each file, besides its ends


@pytest.fixture(scope="module")
def spectrum():
    return cv.spectrum(cv.ggn(cv.zoo.digits_problem(10, widths=(2,), seed=0)), gradient=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run directory with every kind of file."""
    study = run_spectrum(cv.zoo.digits_problem(10, widths=(2,), seed=0), SpectrumSettings(("ggn",), (cv.Standard(),)))
    return report.write_run(study, tmp_path_factory.mktemp("runs") / "run")


def flipped(content, seed=0):
    """The content with one bit changed, at many positions."""
    rng = np.random.default_rng(seed)
    size = len(content)
    ends = {0, 1, size - 1, size - 2, *range(size - 90, size, 7)}
    for place in sorted({place % size for place in ends} | set(rng.integers(size, size=FLIPS).tolist())):
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        yield bytes(changed)


def refused(load, path, words="."):
    """The loader raises our error, in one sentence with the name of the file or folder."""
    with pytest.raises(ConfigurationError, match=words) as caught:
        load(path)
    message = str(caught.value)
    assert path.name in message or path.parent.name in message
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------------------------------------- a spectrum


def test_one_flipped_bit_of_a_saved_spectrum_is_an_error(spectrum, tmp_path):
    path = spectrum.save(tmp_path / "ggn.npz")
    content = path.read_bytes()
    for changed in flipped(content):
        path.write_bytes(changed)
        refused(Spectrum.load, path, r"ggn\.npz cannot be read as a saved spectrum: .*Use another copy")
    path.write_bytes(content)
    assert Spectrum.load(path).rank == spectrum.rank


def test_every_bit_of_the_hash_and_of_what_marks_it_counts(spectrum, tmp_path):
    path = spectrum.save(tmp_path / "ggn.npz")
    content = path.read_bytes()
    for place in range(len(content) - 103, len(content)):  # the end record of the archive, the mark and the hash
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            refused(Spectrum.load, path)


def test_other_tools_still_read_a_saved_spectrum(spectrum, tmp_path):
    path = spectrum.save(tmp_path / "ggn.npz")
    with np.load(path) as stored:
        assert stored["eigenvalues"].tolist() == spectrum.eigenvalues.tolist()
        assert json.loads(str(stored["about"]))["rank"] == spectrum.rank
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"curvature sha256 ")


def archive_of(**files):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def other_files(content):
    """What may stand under the name of a saved spectrum."""
    about = json.dumps({"schema": "curvature/spectrum/2", "what": "trace"})
    inertia = {"schema": "curvature/spectrum/2"} | to_plain(Inertia(Where("a"), 2, 0.0, 1, 1, 0.0))
    return {
        "empty": b"",
        "cut in the middle": content[: len(content) // 2],
        "without its last byte": content[:-1],
        "with one byte more": content + b"\0",
        "a zip of something else": archive_of(photo="not an array"),
        "a zip whose array is none": archive_of(**{"about.npy": b"\x93NUMPY\x01\x00garbage"}),
        "a zip of nothing": archive_of(),
        "arrays of something else": packed("{}", {"weights": np.ones(3)}),
        "another record": packed(to_json(inertia), {}),
        "an unknown record": packed(about, {}),
        "a list": packed("[1, 2]", {}),
        "text": b"eigenvalues: 1, 2, 3",
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(200),
        "a netCDF file": b"\x89HDF\r\n\x1a\n" + bytes(200),
        "a pickle": b"\x80\x04\x95" + bytes(50),
        "a future schema": packed(json.dumps({"schema": "curvature/spectrum/9"}), {"eigenvalues": np.ones(2)}),
    }


@pytest.mark.parametrize("load", [Spectrum.load, report.load_summary, report.load_part], ids=lambda load: load.__name__)
def test_other_files_are_refused_by_every_reader_in_our_words(load, spectrum, tmp_path):
    content = spectrum.save(tmp_path / "good.npz").read_bytes()
    for kind, other in other_files(content).items():
        path = tmp_path / "other.npz"
        path.write_bytes(other)
        message = refused(load, path)
        assert "Traceback" not in message, kind
    refused(load, tmp_path / "missing.npz")
    (tmp_path / "folder.npz").mkdir()
    refused(load, tmp_path / "folder.npz")


def test_a_spectrum_of_version_0_1_is_read_with_a_warning_and_saved_with_a_hash(spectrum, tmp_path):
    plain = to_plain(spectrum)
    arrays = {name: plain.pop(name) for name in list(plain) if isinstance(plain[name], np.ndarray)}
    path = tmp_path / "old.npz"
    np.savez(path, about=np.array(to_json({"schema": "curvature/spectrum/1"} | plain)), **arrays)
    with pytest.warns(
        UserWarning, match=r"old\.npz was saved by curvature 0\.1, without a hash.* Save the spectrum again"
    ):
        old = Spectrum.load(path)
    assert old.eigenvalues.tolist() == spectrum.eigenvalues.tolist()
    assert Spectrum.load(old.save(tmp_path / "new.npz")).rank == spectrum.rank


def test_a_new_file_that_lost_its_hash_is_no_old_file(spectrum, tmp_path):
    path = spectrum.save(tmp_path / "ggn.npz")
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez(path, **arrays)
    refused(Spectrum.load, path, "its SHA-256 is missing")


def test_an_archive_that_claims_too_much_is_refused_before_it_is_unpacked():
    content = packed("{}", {"zeros": np.zeros(10_000)})
    with pytest.raises(ValueError, match="declares more than"):
        unpacked(content, max_bytes=1000)


# ------------------------------------------------------------------------------------------- numbers that do not fit

RECORD = Spectrum(Where("ggn"), np.array([0.0, 1.0, 2.0]), True, "dense", 1e-15, 2, "by hand", rank_bounds=(1, 3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank": 4}, "the rank is 4, but the dimension 3"),
        ({"rank": -1, "rank_bounds": None}, "the rank is -1"),
        ({"rank": 0}, r"the rank 0 and its bounds \(1, 3\)"),
        ({"rank_bounds": (2, 4)}, r"bounds \(2, 4\) contradict dimension 3"),
        ({"eigenvalues": np.array([1.0, 0.0, 2.0])}, "eigenvalues is not ascending"),
        ({"eigenvalues": np.array([0.0, 1.0, np.nan])}, "eigenvalues contains NaN or infinity"),
        ({"eigenvalues": np.array([0.0, 1.0, np.inf])}, "eigenvalues contains NaN or infinity"),
        ({"eigenvalues": np.array([0.0, 1.0, 2.0 + 1j])}, "eigenvalues is not an array of real numbers"),
        ({"eigenvalues": np.array(["0", "1", "2"])}, "eigenvalues is not an array of real numbers"),
        ({"eigenvalues": np.zeros((3, 1))}, r"eigenvalues has shape \(3, 1\)"),
        ({"eigenvalues": np.zeros(0)}, "eigenvalues is empty"),
        ({"noise_floor": -1e-15}, "the noise floor is -1e-15"),
        ({"noise_floor": np.nan}, "the noise floor is nan"),
        ({"gradient_weights": np.ones(2)}, r"gradient_weights has shape \(2,\)"),
        ({"gradient_weights": np.array([1.0, -1.0, 0.0])}, "gradient_weights has negative entries"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused_with_the_reason(change, words, tmp_path):
    """By somebody who also wrote the hash."""
    plain = to_plain(RECORD) | change
    arrays = {name: plain.pop(name) for name in list(plain) if isinstance(plain[name], np.ndarray)}
    path = tmp_path / "ggn.npz"
    path.write_bytes(packed(to_json({"schema": "curvature/spectrum/2"} | plain), arrays))
    refused(Spectrum.load, path, words)


ENDS = ExtremalEigenvalues(
    Where("hessian"), 9, np.array([3.0, 2.0]), np.array([-1.0]), np.zeros(3), np.zeros(3), True, 20, noise_floor=1e-15
)
DENSITY = SpectralDensity(Where("hessian"), 9, np.ones((2, 3)), np.full((2, 3), 1 / 3))
CURVE = TrainingCurve("standard", 0, np.array([0, 1]), np.ones(2), np.ones(2))
SWEEP = LearningRateSweep("standard", 0, np.ones(2), np.ones(2), 0.1, False, 10)
PARTS = Decomposition("kappa_80", "ggn", ("a", "b"), np.ones((3, 2)), np.ones(3), (0, 1, 2))
NUMBERS = ConditionNumbers(Where("ggn"), 3, 2, "by hand", 0.0, "dense", {"kappa_50": Quantity(1.0)}, {})


@pytest.mark.parametrize(
    ("record", "change", "words"),
    [
        (ENDS, {"largest": np.array([2.0, 3.0])}, "largest is not descending"),
        (ENDS, {"smallest": np.array([np.nan])}, "smallest contains NaN"),
        (ENDS, {"residuals": np.zeros(2)}, "residuals has shape"),
        (ENDS, {"error_bounds": np.array([0.0, -1.0, 0.0])}, "error_bounds has negative entries"),
        (ENDS, {"dim": 2}, "3 eigenvalues, but the dimension is 2"),
        (ENDS, {"noise_floor": -1.0}, "the noise floor is -1.0"),
        (ENDS, {"unseen": (0.0, np.nan)}, "unseen is"),
        (DENSITY, {"weights": np.ones((2, 2))}, "weights has shape"),
        (DENSITY, {"weights": np.ones((2, 3))}, "weights do not sum to one"),
        (DENSITY, {"nodes": np.ones(3)}, r"nodes has shape \(3,\)"),
        (CURVE, {"losses": np.ones(3)}, "steps, losses and accuracies"),
        (SWEEP, {"final_losses": np.ones(3)}, "rates and final_losses"),
        (PARTS, {"whole": np.ones(2)}, "parts and whole"),
        (NUMBERS, {"rank": 5}, "the rank is 5, but the dimension 3"),
        (Inertia(Where("a"), 2, 0.0, 1, 1, 0.0), {"above": 2}, "contradict dimension 2"),
        (Estimate("trace", 1.0, 0.5, 2.0, 0.95, "xtrace", Where("a"), 3), {"low": 3.0}, "low is above high"),
        (Estimate("trace", 1.0, 0.5, 2.0, 0.95, "xtrace", Where("a"), 3), {"level": 2.0}, "not a probability"),
        (
            Estimate("diagonal", np.ones(3), np.ones(3), np.ones(3), 0.95, "xtrace", Where("a"), 3),
            {"low": np.ones(2)},
            "shapes",
        ),
    ],
)
def test_other_records_are_checked_when_they_are_read(record, change, words):
    from_plain(type(record), to_plain(record))
    with pytest.raises(ValueError, match=words):
        from_plain(type(record), to_plain(record) | change)


def test_what_is_computed_is_always_valid(spectrum):
    spectrum.validate()
    replace(RECORD, rank_bounds=None).validate()
    operator = cv.SymmetricOperator.from_dense(cv.hessian(cv.zoo.softmax_regression()).dense())
    cv.extremal_eigenvalues(operator, num_largest=2, num_smallest=2, verify=True).validate()
    cv.spectral_density(operator, num_matvecs=9).validate()


# ---------------------------------------------------------------------------------------------------- a run directory


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_one_flipped_bit_in_any_file_of_a_run_is_an_error(finished, copy):
    files = [path.relative_to(finished) for path in finished.rglob("*") if path.is_file()]
    assert {"result.nc", "config.toml", "provenance.json", "summary.json", "report.html", "DONE"} <= {*map(str, files)}
    files = [name for name in files if (finished / name).stat().st_size]
    for name in files:
        content = (copy / name).read_bytes()
        for changed in list(flipped(content))[:: 1 if str(name) in ("DONE", "config.toml") else 12]:
            (copy / name).write_bytes(changed)
            refused(report.load_study, copy, "cannot be read as a run: .*Use a complete copy|not a finished run")
        (copy / name).write_bytes(content)
    assert report.load_study(copy).num_examples == 10


def test_one_flipped_bit_of_a_summary_is_an_error_also_away_from_its_run(copy, tmp_path):
    away = tmp_path / "summary.json"
    content = (copy / "summary.json").read_bytes()
    for path in (copy / "summary.json", away):
        for changed in flipped(content):
            path.write_bytes(changed)
            refused(report.load_summary, path)
        path.write_bytes(content)
        assert report.load_summary(path)["num_examples"] == 10


def test_a_summary_without_a_hash_is_read_with_a_warning_unless_it_lost_it(copy):
    document = report.load_summary(copy)
    path = copy / "summary.json"
    path.write_text(json.dumps(document))
    with pytest.warns(UserWarning, match=r"summary\.json has no hash .* damage to it may go unnoticed"):
        assert report.load_summary(copy) == document
    path.write_text(json.dumps(document | {"sha257": "0" * 64}))
    refused(report.load_summary, path, "unknown member 'sha257' and no SHA-256")


def test_one_flipped_bit_of_a_part_or_of_its_hash_is_an_error(copy, tmp_path):
    part = tmp_path / "parts" / "seed-0-abc.nc"
    report.write_part(report.load_study(copy), part)
    for path in (part, part.with_name("seed-0-abc.nc.sha256")):
        content = path.read_bytes()
        for changed in list(flipped(content))[::4]:
            path.write_bytes(changed)
            refused(report.load_part, part, "is damaged: .*Delete it")
        path.write_bytes(content)
    assert report.load_part(part).num_examples == 10


@pytest.mark.parametrize("name", ["result.nc", "config.toml", "provenance.json"])
def test_a_run_that_lacks_a_file_is_refused(name, copy):
    (copy / name).unlink()
    refused(report.load_study, copy, f"{name} is missing. Use a complete copy")


def test_a_run_without_its_report_can_be_read_and_one_with_a_figure_too_many_cannot(copy):
    (copy / "figures" / "another.svg").write_text("<svg/>")
    refused(report.load_study, copy, "another.svg is not listed in DONE")
    shutil.rmtree(copy / "figures")
    (copy / "report.html").unlink()
    assert report.load_study(copy).num_examples == 10


@pytest.mark.parametrize("seed", range(20))
def test_texts_with_a_hash_come_back_and_one_changed_character_is_found(seed):
    rng = np.random.default_rng(seed)
    document = {f"key {k}": "".join(map(chr, rng.integers(32, 300, size=9))) for k in range(int(rng.integers(1, 5)))}
    text = sealed_text(json.dumps(document, indent=1) + "\n")
    assert unsealed_text(text) == (document, True)
    assert unsealed_text(json.dumps(document)) == (document, False)
    place = int(rng.integers(1, text.index("sha256") - 6))
    changed = text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]
    with pytest.raises(ValueError, match=r"SHA-256|JSON|Expecting|Invalid|Extra|Unterminated"):
        unsealed_text(changed)
