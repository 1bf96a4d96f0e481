"""The benchmark's command line at toy size: every class of layer, the result file, comparison, wrong results."""

import json
import subprocess
import sys
from pathlib import Path

import bench
import harness
import implementations
import networks
import peers
import pytest
import report
import result_file
import torch
from cases import select

BENCH = Path(bench.__file__)
FAST = ["--quick", "--device", "cpu", "--threads", "1"]  # toy layers: threads would only wait for each other


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def small_ceilings(monkeypatch):
    """Filling the machine for every toy run would take most of the tests' time."""
    ones = torch.ones(64, 64)
    small = {
        "matrix product": harness.Ceiling(lambda: ones @ ones, 2.0 * 64**3, "FLOP"),
        "copy": harness.Ceiling(lambda: ones.clone(), 2.0 * 4 * 64**2, "B"),
    }
    monkeypatch.setattr(bench, "ceilings", lambda device, dtype: small)


@pytest.fixture
def toy(monkeypatch):
    """The smoke suite on volumes of a few voxels."""
    monkeypatch.setattr(
        bench, "select", lambda suite, patterns: [case.small() for case in select(suite, patterns)]
    )


def test_every_kind_of_layer_gives_checked_rows(toy, tmp_path, capsys):
    path, plot = tmp_path / "result.json", tmp_path / "plot.png"
    arguments = ["--suite", "smoke", *FAST, "--json", str(path)]
    if bench.tqdm is not None:
        pytest.importorskip("matplotlib")
        arguments += ["--plot", str(plot)]
    assert bench.main(arguments) == 0
    result = result_file.load(path)
    names = {row["implementation"] for row in result["rows"]}
    assert {"reference", "nn.Conv3d"} <= names
    for row in result["rows"]:
        if row["implementation"] in ("reference", "nn.Conv3d", "acsconv 0.1.1"):
            assert row["status"] == "ok", row
        if row["status"] == "ok":
            assert 0 < row["time"]["wall"]["minimum"] <= row["time"]["wall"]["median"]
            assert row["time"]["wall"]["samples"] >= bench.QUICK[0]
            assert max(row["error"].values()) > 0, (
                "float32 cannot equal the float64 oracle: what was compared?"
            )
            expected = {"output"}
            if row["pass"] == "train":
                expected |= (
                    {"grad_weight", "grad_bias"} if row["case"] != "smoke-first-k7-s2" else {"grad_weight"}
                )
                if row["case"] == "smoke-soft" and row["implementation"] != "nn.Conv3d":
                    expected.add("grad_view_logits")
            assert expected <= set(row["error"]) <= expected | {"grad_input"}
    cases = {row["case"] for row in result["rows"]}
    assert cases == {case.name for case in select("smoke")}
    text = capsys.readouterr().out
    for words in ("torch 2.", "oneDNN", "commit", "Geometric mean of time / ours", "Peak memory: "):
        assert words in text


def test_result_file_tells_nothing_about_the_machine_s_folders(toy, tmp_path):
    path = tmp_path / "result.json"
    bench.main(["--case", "smoke-narrow", "--pass", "forward", *FAST, "--json", str(path)])
    result = json.loads(path.read_text())
    del result["command"]  # as the user typed it
    assert str(bench.ROOT) not in json.dumps(result)
    assert str(tmp_path) not in json.dumps(result)


def test_options_choose_what_is_measured(toy, tmp_path):
    path = tmp_path / "result.json"
    arguments = [
        "--case",
        "smoke-wide",
        "--backend",
        "torch",
        "--pass",
        "train",
        "--device",
        "cpu",
        "--threads",
        "1",
    ]
    arguments += ["--repeats", "3", "--min-time", "0"]
    arguments += ["--dtype", "float32", "bfloat16", "--layout", "contiguous", "channels_last"]
    assert bench.main([*arguments, "--json", str(path)]) == 0
    rows = result_file.load(path)["rows"]
    assert {(row["dtype"], row["layout"]) for row in rows} == {
        (dtype, layout) for dtype in ("float32", "bfloat16") for layout in ("contiguous", "channels_last")
    }
    assert {(row["case"], row["pass"]) for row in rows} == {("smoke-wide", "train")}
    assert not [row for row in rows if row["implementation"].startswith("acsconv-cuda")]
    assert {row["time"]["wall"]["samples"] for row in rows if row["time"]} == {3}


def test_compare_is_a_gate(toy, tmp_path, capsys):
    path = tmp_path / "old.json"
    arguments = ["--case", "smoke-narrow", "--pass", "forward", *FAST]
    assert bench.main([*arguments, "--json", str(path)]) == 0
    for factor, expected in ((1000.0, 0), (0.001, 1)):
        old = result_file.load(path)
        for row in old["rows"]:
            if row["time"]:
                row["time"]["wall"]["median"] *= factor
        result_file.save(old, tmp_path / "doctored.json")
        gate = ["--compare", str(tmp_path / "doctored.json"), "--fail-above", "10"]
        assert bench.main([*arguments, *gate]) == expected
    assert "allowed 10.00" in capsys.readouterr().err


def with_fault(fault):
    """Our implementation with its output changed."""

    def build(case, data):
        layer = implementations.ORACLE.build(case, data)
        return implementations.Layer(lambda x: fault(layer.call(x)), layer.parameters)

    return implementations.Implementation("acsconv-cuda planted", build)


def border(output):
    return torch.cat([output[..., :-1], 0 * output[..., -1:]], -1)


def permuted(output):
    return output.flip(1)


@pytest.mark.parametrize(
    "fault", [border, permuted, lambda output: output * (1 + 1e-3), lambda output: output[:, 1:]]
)
def test_a_wrong_result_is_not_published(toy, tmp_path, monkeypatch, capsys, fault):
    genuine = bench.available
    monkeypatch.setattr(bench, "available", lambda *arguments: [with_fault(fault), *genuine(*arguments)])
    path = tmp_path / "result.json"
    arguments = [
        "--case",
        "smoke-narrow",
        "--pass",
        "forward",
        "--backend",
        "torch",
        *FAST,
        "--json",
        str(path),
    ]
    assert bench.main(arguments) == 1
    planted, reference, conv3d = result_file.load(path)["rows"][:3]
    assert planted["status"] == "wrong"
    assert "error of output" in planted["reason"]
    assert planted["time"] is None
    assert planted["memory"] is None
    assert (reference["status"], conv3d["status"]) == ("ok", "ok")
    printed = capsys.readouterr()
    assert "WRONG, not published" in printed.out
    assert "wrong result: smoke-narrow forward acsconv-cuda planted" in printed.err


def test_a_wrong_gradient_is_found(toy, tmp_path, monkeypatch):
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(context, output):
            return output.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * 0.5

    genuine = bench.available
    monkeypatch.setattr(
        bench, "available", lambda *arguments: [with_fault(Halved.apply), *genuine(*arguments)]
    )
    path = tmp_path / "result.json"
    arguments = ["--case", "smoke-narrow", "--backend", "torch", *FAST, "--json", str(path)]
    assert bench.main(arguments) == 1
    rows = [row for row in result_file.load(path)["rows"] if row["implementation"] == "acsconv-cuda planted"]
    assert {row["pass"]: row["status"] for row in rows} == {"forward": "ok", "train": "wrong"}
    assert "error of grad_weight" in rows[-1]["reason"]


def test_a_peer_that_fails_is_a_row_with_a_reason(toy, tmp_path, monkeypatch):
    def build(case, data):
        raise AssertionError("only support standard or depthwise conv\nand a second line")

    refuses = implementations.Implementation("refuses", build)
    genuine = bench.available
    monkeypatch.setattr(bench, "available", lambda *arguments: [*genuine(*arguments), refuses])
    path = tmp_path / "result.json"
    assert bench.main(["--case", "smoke-narrow", "--pass", "forward", *FAST, "--json", str(path)]) == 0
    row = result_file.load(path)["rows"][-1]
    assert (row["status"], row["reason"]) == (
        "failed",
        "AssertionError: only support standard or depthwise conv",
    )


def test_without_the_peer_it_says_so_and_goes_on(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACSCONV_PEER", str(tmp_path))
    assert bench.main(["--case", "smoke-narrow", "--pass", "forward", *FAST]) == 0
    assert "Without acsconv 0.1.1: " in capsys.readouterr().out


@pytest.mark.parametrize("real", [False, True])
def test_main_job(tmp_path, monkeypatch, capsys, real):
    pytest.importorskip("matplotlib")
    if real:
        try:
            peers.load_volume()
        except peers.PeerMissing as missing:
            pytest.skip(str(missing))
    else:
        monkeypatch.setenv("ACSCONV_VOLUME_PEER", str(tmp_path))
    path, figure = tmp_path / "result.json", tmp_path / "figure.png"
    arguments = ["--suite", "networks", "--patch", "12", *FAST, "--figure", str(figure), "--json", str(path)]
    assert bench.main(arguments) == 0
    result = result_file.load(path)
    rows = {(row["case"], row["pass"], row["implementation"]): row for row in result["rows"]}
    parameters = {"ACSUNet": (389_220, 1_164_516), "MobileNetV2": (3_504_872, 3_635_048)}
    for (case, pass_name, name), row in rows.items():
        assert row["status"] == "ok", row
        assert set(row["error"]) == ({"output"} if pass_name == "forward" else {"loss", "gradient"})
        assert row["parameters"] == parameters[case][name == "nn.Conv3d"]
    notes = " ".join(result["notes"])
    networks_run = {"ACSUNet"} if "Without MobileNetV2" in notes else set(parameters)
    assert {case for case, _, _ in rows} == networks_run
    for case in networks_run:
        for kind in (("forward", "reference"), ("train", "reference"), ("train", "nn.Conv3d")):
            assert (case, *kind) in rows
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert ("MNI152 T1" in notes and "nilearn" in notes) == real
    assert ("random numbers, not a real volume" in notes) == (not real)


def test_the_main_job_without_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("ACSCONV_WEIGHTS_PEER", str(tmp_path))
    path = tmp_path / "result.json"
    arguments = [
        "--suite",
        "networks",
        "--patch",
        "12",
        *FAST,
        "--figure",
        str(tmp_path / "f.png"),
        "--json",
        str(path),
    ]
    assert bench.main([*arguments, "--layout", "channels_last"]) == 0
    result = result_file.load(path)
    assert {row["case"] for row in result["rows"]} == {"ACSUNet"}
    assert any("run `make peers` or set ACSCONV_WEIGHTS_PEER" in note for note in result["notes"])


def test_mobilenet_holds_its_imagenet_weights():
    try:
        weights = torch.load(peers.mobilenet_weights(), weights_only=True)
        built = networks.build_mobilenet(None, ["torch"], [])
    except peers.PeerMissing as missing:
        pytest.skip(str(missing))
    for name, (network, _) in built.items():
        state = network.state_dict()
        for key, value in weights.items():
            if name == "nn.Conv3d" and value.dim() == 4:  # I3D: repeated along D, divided by their number
                torch.testing.assert_close(state[key].sum(2), value, rtol=1e-5, atol=1e-6)
            else:
                assert torch.equal(state[key], value)


def test_labels_are_three_equal_classes_and_background():
    patch = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.2
    patch[0] = 0
    counts = networks.labels_of(patch).flatten().bincount()
    assert counts[0] == 64
    assert counts[1:].float().std() < 2
    assert networks.labels_of(torch.zeros(4, 4, 4)).max() == 0


def test_patch_must_fit():
    volume = torch.zeros(20, 12, 16)
    volume[4:16, :, 2:14] = 1
    assert torch.equal(networks.patch_of(volume, 12), torch.ones(12, 12, 12))
    for edge in (10, 16):
        with pytest.raises(ValueError, match="multiple of 4 up to 12"):
            networks.patch_of(volume, edge)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--suite", "none"], "invalid choice"),
        (["--fail-above", "1.1"], "--fail-above needs --compare"),
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--case", "no such layer"], "no layer matches"),
        (["--backend", "tpu", "--case", "smoke-narrow"], "--backend tpu: on cpu there are cpu, torch"),
        (
            ["--backend", "torch", "cuda", "--case", "smoke-narrow"],
            "--backend cuda: on cpu there are cpu, torch",
        ),
        (["--compare", "no_such_file.json"], "no_such_file.json"),
        (["--suite", "networks", "--patch", "10"], "multiple of 4"),
        (["--dtype", "tf32", "--device", "cpu"], "--dtype tf32"),
    ],
)
def test_bad_options(toy, capsys, arguments, text):
    try:
        code = bench.main([*arguments, *FAST])
    except SystemExit as stopped:
        code = stopped.code
    assert code != 0
    assert text in capsys.readouterr().err


def test_a_forced_backend_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("ACSCONV_BACKEND", "torch")
    with pytest.raises(SystemExit):
        bench.main(["--case", "smoke-narrow", *FAST])
    assert "ACSCONV_BACKEND is set" in capsys.readouterr().err


def test_runs_as_a_script_from_any_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, str(BENCH), "--suite", "layers", "--case", "acsunet", "--list"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "acsunet-enc1b" in done.stdout
    assert "64→64 k3, 48³" in done.stdout


@pytest.mark.parametrize("fresh", [False, True])
def test_results_say_whether_pages_were_fresh(toy, tmp_path, capsys, fresh):
    path = tmp_path / "result.json"
    arguments = ["--case", "smoke-narrow", "--pass", "forward", *FAST, "--json", str(path)]
    assert bench.main(arguments + ["--fresh-pages"] * fresh) == 0
    kept = harness.can_keep_freed_memory() and not fresh
    assert result_file.load(path)["environment"]["freed_memory_kept"] == kept
    words = "Freed memory is kept for the next call."
    assert (words in report.markdown(result_file.load(path))) == kept
    assert ("freed memory is kept" in capsys.readouterr().out) == kept
