"""acsconv 0.1.1 under an alias, and the reader of the brain volume."""

import gzip
import struct
import sys

import peers
import pytest
import torch


@pytest.fixture(autouse=True)
def no_trace_of_the_alias():
    def take_out():
        names = [name for name in sys.modules if name.startswith(peers.ACSCONV_ALIAS)]
        return {name: sys.modules.pop(name) for name in names}

    before = take_out()
    yield
    take_out()
    sys.modules.update(before)


def install(folder, version="0.1.1", operators="from .. import __version__ as seen\n"):
    """A package of the shape of acsconv 0.1.1."""
    package = folder / "acsconv"
    for name in ("operators", "models"):
        (package / name).mkdir(parents=True)
    (package / "__init__.py").write_text(f"__version__ = {version!r}\n")
    (package / "operators" / "__init__.py").write_text(operators)
    (package / "models" / "__init__.py").write_text("from .acsunet import ACSUNet\n")
    (package / "models" / "acsunet.py").write_text("class ACSUNet:\n    pass\n")
    return folder


def test_peer_is_loaded_beside_ours(tmp_path, monkeypatch):
    ours = sys.modules.get("acsconv")
    path = list(sys.path)
    peer = peers.load_acsconv(install(tmp_path))
    assert peer.operators.seen == "0.1.1"
    assert peer.models.acsunet.ACSUNet.__module__ == "acsconv_0_1_1.models.acsunet"
    assert sys.modules.get("acsconv") is ours
    assert sys.path == path
    assert peers.load_acsconv(tmp_path) is peer
    monkeypatch.setenv("ACSCONV_PEER", str(install(tmp_path / "other")))
    assert peers.load_acsconv() is not peer


@pytest.mark.parametrize(
    ("contents", "text"),
    [
        (None, "run `make peers` or set ACSCONV_PEER"),
        ({"version": "0.2.0"}, "holds acsconv 0.2.0, not 0.1.1"),
        ({"operators": "import no_such_module_here\n"}, "does not import: ModuleNotFoundError"),
    ],
)
def test_a_missing_or_strange_peer_is_one_sentence(tmp_path, contents, text):
    if contents is not None:
        install(tmp_path, **contents)
    with pytest.raises(peers.PeerMissing, match=text) as caught:
        peers.load_acsconv(tmp_path)
    assert "\n" not in str(caught.value)
    assert not [name for name in sys.modules if name == peers.ACSCONV_ALIAS]


def test_the_real_peer():
    try:
        peer = peers.load_acsconv()
    except peers.PeerMissing as missing:
        pytest.skip(str(missing))
    layer = peer.operators.ACSConv(2, 7, 3, padding=1)
    assert layer.acs_kernel_split == (3, 2, 2)
    assert layer(torch.zeros(1, 2, 4, 5, 6)).shape == (1, 7, 4, 5, 6)


def nifti(values, code, pack, slope=0.0, intercept=0.0, magic=b"n+1\0", rank=3):
    """A NIfTI-1 file of a nested [x][y][z] list of values."""
    shape = (len(values), len(values[0]), len(values[0][0]))
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, rank, *shape, 1, 1, 1, 1)
    struct.pack_into("<h", header, 70, code)
    struct.pack_into("<3f", header, 108, 352.0, slope, intercept)
    header[344:348] = magic
    x, y, z = shape
    order = [values[i][j][k] for k in range(z) for j in range(y) for i in range(x)]  # x runs fastest
    return bytes(header) + struct.pack(f"<{len(order)}{pack}", *order)


VALUES = [[[100 * i + 10 * j + k for k in range(4)] for j in range(3)] for i in range(2)]


@pytest.mark.parametrize(("code", "pack"), [(2, "B"), (4, "h"), (8, "i"), (16, "f"), (64, "d")])
def test_nifti_values_and_axes(tmp_path, code, pack):
    path = tmp_path / "volume.nii"
    path.write_bytes(nifti(VALUES, code, pack))
    assert torch.equal(peers.read_nifti(path), torch.tensor(VALUES, dtype=torch.float32))
    path = tmp_path / "volume.nii.gz"
    path.write_bytes(gzip.compress(nifti(VALUES, code, pack, slope=2.0, intercept=-1.0)))
    assert torch.equal(peers.read_nifti(path), torch.tensor(VALUES, dtype=torch.float32) * 2 - 1)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "not a little-endian, single-file NIfTI-1"),
        (nifti(VALUES, 2, "B", magic=b"ni1\0"), "not a little-endian, single-file NIfTI-1"),
        (nifti(VALUES, 2, "B", rank=4), "got rank 4"),
        (nifti(VALUES, 128, "B"), "data type 128"),
    ],
)
def test_other_files_are_refused(tmp_path, data, text):
    path = tmp_path / "volume.nii"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=text):
        peers.read_nifti(path)


def test_volume_comes_axes_in_order_of_depth_height_width(tmp_path, monkeypatch):
    path = tmp_path / peers.VOLUME_FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(nifti(VALUES, 2, "B")))
    monkeypatch.setenv("ACSCONV_VOLUME_PEER", str(tmp_path))
    volume = peers.load_volume()
    assert volume.shape == (4, 3, 2)  # z, y, x
    assert volume.max() == 1
    assert volume[2, 1, 1] == pytest.approx(112 / 123)


def test_missing_volume_is_one_sentence(tmp_path):
    with pytest.raises(peers.PeerMissing, match="make peers"):
        peers.load_volume(tmp_path)


def test_the_real_volume():
    try:
        volume = peers.load_volume()
    except peers.PeerMissing as missing:
        pytest.skip(str(missing))
    assert volume.shape == (189, 233, 197)
    assert torch.equal(volume, volume.flip(2))  # the template is symmetric, so the last axis is left-right
    assert not torch.equal(volume, volume.flip(1))
