"""NIfTI files of experiments/brain: what is read, what is refused, and that what is written fits what was read."""

import gzip
import itertools
import re
from pathlib import Path

import nibabel
import numpy
import pytest
import torch

from experiments.brain import volumes

AFFINE = numpy.array([[2.5, 0, 0, -10], [0, 3.0, 0, -20], [0, 0, 4.0, -30], [0, 0, 0, 1]])


def ramp(shape=(9, 10, 11)) -> numpy.ndarray:
    return numpy.arange(numpy.prod(shape), dtype=numpy.float32).reshape(shape)


def save(path: Path, values: numpy.ndarray, affine=AFFINE) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def test_reading_gives_axial_coronal_sagittal(tmp_path):
    volume = volumes.read(save(tmp_path / "a.nii.gz", ramp()))
    assert volume.values.dtype == torch.float32
    assert torch.equal(volume.values, torch.from_numpy(ramp()).permute(2, 1, 0))
    assert volume.spacing == (4.0, 3.0, 2.5)


@pytest.mark.parametrize("codes", ["LPS", "ASR", "ILP", "PIR"])
def test_any_orientation_is_read_the_same_and_written_back(tmp_path, codes):
    straight = nibabel.Nifti1Image(ramp(), AFFINE)
    turned = straight.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.io_orientation(AFFINE), nibabel.orientations.axcodes2ornt(codes)
        )
    )
    assert "".join(nibabel.aff2axcodes(turned.affine)) == codes
    nibabel.save(turned, tmp_path / "turned.nii")
    volume = volumes.read(tmp_path / "turned.nii")
    assert torch.equal(volume.values, torch.from_numpy(ramp()).permute(2, 1, 0))
    assert volume.spacing == (4.0, 3.0, 2.5)

    volumes.write(tmp_path / "labels.nii.gz", volume.values % 7, volume)
    written = nibabel.load(tmp_path / "labels.nii.gz")
    assert numpy.array_equal(written.affine, turned.affine)
    assert written.header.get_zooms() == turned.header.get_zooms()
    assert numpy.array_equal(numpy.asarray(written.dataobj), turned.get_fdata() % 7)


@pytest.mark.parametrize("units", [0, 2 + 8, 7 + 80])  # none; mm and seconds; codes of nothing
def test_codes_and_units_are_kept(tmp_path, units):
    image = nibabel.Nifti1Image(ramp(), None)
    image.set_qform(AFFINE, code=1)
    image.set_sform(None, code=0)
    image.header["xyzt_units"] = units
    nibabel.save(image, tmp_path / "a.nii.gz")
    volumes.write(tmp_path / "b.nii.gz", torch.zeros(11, 10, 9), volumes.read(tmp_path / "a.nii.gz"))
    written = nibabel.load(tmp_path / "b.nii.gz")
    assert written.get_qform(coded=True)[1] == 1
    assert written.get_sform(coded=True)[1] == 0
    assert written.header["xyzt_units"] == units
    assert numpy.allclose(written.affine, AFFINE)


def truncated(path: Path) -> None:
    save(path, numpy.random.default_rng(0).random((20, 20, 20)))
    path.write_bytes(path.read_bytes()[:-2000])


def damaged(path: Path) -> None:
    save(path, numpy.zeros((20, 20, 20)))
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[1000] ^= 1
    whole = bytearray(gzip.compress(bytes(content)))
    whole[-6] ^= 1  # the checksum
    path.write_bytes(whole)


def with_values(*shape: int, value: float = 1.0):
    def write(path: Path) -> None:
        values = ramp(shape)
        values.flat[0] = value
        save(path, values)

    return write


def flat(path: Path) -> None:
    content = bytearray(gzip.decompress(save(path, ramp()).read_bytes()))
    content[280:296] = bytes(16)  # srow_x
    path.write_bytes(gzip.compress(content))


REFUSED = {
    "text": (lambda path: path.write_text("not a volume"), "damaged or truncated"),
    "empty": (lambda path: path.write_bytes(b""), "damaged or truncated"),
    "truncated": (truncated, "damaged or truncated"),
    "damaged": (damaged, "damaged or truncated"),
    "2D": (with_values(16, 16), r"expected one 3D volume, got 2 axes: \[16, 16\]"),
    "4D": (with_values(9, 9, 9, 2), r"expected one 3D volume, got 4 axes: \[9, 9, 9, 2\]"),
    "NaN": (with_values(9, 9, 9, value=float("nan")), "1 of 729 voxels NaN or infinite"),
    "infinite": (with_values(9, 9, 9, value=float("inf")), "1 of 729 voxels NaN or infinite"),
    "thin": (with_values(9, 9, 3), "at least 8 voxels along every axis"),
    "constant": (lambda path: save(path, numpy.ones((9, 9, 9))), "got 1 in every voxel"),
    "complex": (lambda path: save(path, numpy.ones((9, 9, 9), numpy.complex64)), "complex64"),
    "flat": (flat, "an affine that places the voxels"),
    "sheared": (
        lambda path: save(path, ramp(), AFFINE + numpy.diag([1e20] * 3, 1)),
        "an affine that places the voxels",
    ),
    "micrometres": (
        lambda path: save(path, ramp(), AFFINE / 50),
        r"got \[0\.5, 0\.6, 0\.9\]: are the affine's",
    ),
    "metres": (lambda path: save(path, ramp(), AFFINE * 1000), "expected 20 to 2000 mm along every axis"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_used_is_refused_by_name(tmp_path, what):
    make, message = REFUSED[what]
    path = tmp_path / "head.nii.gz"
    make(path)
    with pytest.raises(volumes.VolumeError, match=message) as found:
        volumes.read(path)
    assert str(found.value).startswith(str(path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "none.nii"))):
        volumes.read(tmp_path / "none.nii")


def test_a_fourth_axis_of_one_is_no_fourth_axis(tmp_path):
    volume = volumes.read(save(tmp_path / "a.nii.gz", ramp((9, 10, 11, 1))))
    assert volume.values.shape == (11, 10, 9)


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    volume = volumes.read(save(tmp_path / "a.nii.gz", ramp()))

    def interrupted(image, path):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(volumes.nibabel, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        volumes.write(tmp_path / "b.nii.gz", volume.values, volume)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


@pytest.mark.parametrize("name", ["b.png", "nowhere/b.nii.gz"])
def test_output_names(tmp_path, name):
    with pytest.raises(volumes.VolumeError, match=re.escape(str(tmp_path / name))):
        volumes.check_output(tmp_path / name)


def test_resampling_keeps_the_field_of_view():
    # A linear ramp over the field of view [0, 1] stays one, away from the border, at any resolution. Sums over discrete
    # weights are not quite symmetric; a shift by half a voxel would be 0.02 and more.
    def ramps(*sizes: int) -> torch.Tensor:
        axes = [(torch.arange(size) + 0.5) / size for size in sizes]
        depth, height, width = torch.meshgrid(*axes, indexing="ij")
        return depth + 2 * height - 3 * width

    old = ramps(20, 24, 18)
    for size in itertools.product((10, 31), (11, 24), (7, 40)):
        new = volumes.resample(old, size)
        inner = tuple(slice(n // 6 + 1, n - n // 6 - 1) for n in size)
        assert new.shape == size
        torch.testing.assert_close(new[inner], ramps(*size)[inner], atol=0.01, rtol=0)


def test_normalising_is_of_the_head_alone():
    values = torch.zeros(12, 12, 12)
    values[3:9, 3:9, 3:9] = 50 + 10 * torch.randn(6, 6, 6)
    for scaled in (values, values * 37):
        normal = volumes.normalise(scaled)
        head = normal[3:9, 3:9, 3:9]
        assert abs(float(head.mean())) < 1e-3 and abs(float(head.std()) - 1) < 1e-3
        assert float(normal.min()) == -4
