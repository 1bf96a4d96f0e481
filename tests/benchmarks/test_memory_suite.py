"""The memory suite: its networks, its limit, its rows, tables and plot. Real processes run in the estimate's tests."""

import itertools
import resource
import sys

import bench
import memory_report
import memory_suite
import pytest
import report
import result_file
import torch
from acsconv.operators import ACSConv
from memory_networks import NETWORKS, MemoryNetwork
from peers import PeerMissing, load_acsconv
from torch import nn

CPU = torch.device("cpu")
OURS = "acsconv-cuda cpu"
TOY = MemoryNetwork("toy", "one layer", lambda conv: conv(1, 4, kernel_size=3, padding=1), 1, 4, 4)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=lambda network: network.name)
def test_the_networks_hold_equal_weights(network):
    plain, efficient = (memory_suite.build(network, name) for name in (OURS, OURS + memory_suite.EFFICIENT))
    volume = torch.rand(1, network.channels, 16, 16, 16)
    expected = plain(volume)
    assert tuple(expected.shape) == (1, 4, 16, 16, 16)
    assert torch.equal(efficient(volume), expected)
    assert any(isinstance(module, ACSConv) for module in plain.modules())
    dense = memory_suite.build(network, memory_suite.CONV3D)
    assert not any(isinstance(module, ACSConv) for module in dense.modules())
    assert [type(m) for m in dense.modules() if not isinstance(m, nn.Conv3d)] == [
        type(m) for m in plain.modules() if not isinstance(m, (ACSConv, nn.Conv3d))
    ]
    try:
        load_acsconv()
    except PeerMissing as missing:
        pytest.skip(str(missing))
    peer = memory_suite.build(network, memory_suite.ACSCONV)
    torch.testing.assert_close(peer(volume), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="RLIMIT_DATA counts mapped memory on Linux only"
)
def test_it_ends_where_memory_does():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    edges = iter((4, 8, 1024, 2048))  # 1024³ voxels are 4 GiB
    found = list(memory_suite.measure_sizes(TOY, memory_suite.CONV3D, edges, CPU, 256 << 20, steps=2))
    assert [(item["edge"], item["status"]) for item in found] == [(4, "ok"), (8, "ok"), (1024, "failed")]
    assert len(found[0]["seconds"]) == 2
    assert found[0]["loss"] > 0
    assert len(found[0]["gradient"]) == 2  # weight and bias
    assert found[2]["reason"].startswith("out of memory: ")
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_a_wrong_gradient_shows_in_the_sketch():
    network = MemoryNetwork(
        "two", "two layers", lambda conv: nn.Sequential(TOY.build(conv), conv(4, 4, 1)), 1, 4, 4
    )
    model = memory_suite.build(network, OURS)
    found = memory_suite.Training(network, model, 4, CPU, steps=1).run()
    again = memory_suite.Training(network, model, 4, CPU, steps=0).run()
    assert (found[:2], len(found[2]), len(again[2])) == (again[:2], 1, 0)
    model[1].register_full_backward_hook(lambda module, inputs, outputs: (-inputs[0],))
    loss, gradient, _ = memory_suite.Training(network, model, 4, CPU, steps=0).run()
    assert loss == found[0]
    right = {"loss": loss, "gradient": found[1]}
    errors = memory_suite._errors({"loss": loss, "gradient": gradient}, right)
    assert errors["loss"] == 0
    assert errors["gradient"] > 10 * memory_suite.LIMITS["gradient"]


def test_sizes_grow_without_end():
    edges = memory_suite.sizes(NETWORKS["FCN ResNet-18"], CPU)
    assert [next(edges) for _ in range(3)] == [24, 32, 40]


def item(edge, status="ok", loss=1.0, gradient=(3.0, -4.0), mebibytes=100, seconds=2.0):
    if status != "ok":
        return {"edge": edge, "status": status, "reason": "out of memory: RuntimeError: no"}
    memory = {"bytes": mebibytes << 20, "method": "by hand"}
    values = {"loss": loss, "gradient": list(gradient), "seconds": [seconds] * 3, "memory": memory}
    return {"edge": edge, "status": "ok", **values}


@pytest.fixture
def processes(monkeypatch):
    """What the processes print, by implementation; no process is started."""
    printed = {
        OURS: [item(48), item(64, "failed")],
        OURS + memory_suite.EFFICIENT: [item(48, mebibytes=50, seconds=3.0), item(64), item(80, "failed")],
        memory_suite.ACSCONV: [item(48, mebibytes=125, seconds=4.0), item(64, "failed")],
        memory_suite.CONV3D: [item(48, loss=7.0), item(64, "failed")],
    }

    def run_child(arguments, report):
        for found in printed[arguments[1]]:
            report(found)

    monkeypatch.setattr(memory_suite, "run_child", run_child)
    monkeypatch.setattr(bench, "load_acsconv", lambda: object())
    monkeypatch.setattr(bench, "choose_backends", lambda *_: (["cpu"], []))
    return printed


def test_rows_tables_and_plot(processes, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path, plot = tmp_path / "result.json", tmp_path / "plot.png"
    arguments = ["--suite", "memory", "--device", "cpu", "--memory-limit", "1GiB"]
    assert bench.main([*arguments, "--json", str(path), "--plot", str(plot)]) == 0
    result = result_file.load(path)
    assert {row["network"] for row in result["rows"]} == set(NETWORKS)
    assert all(row["memory_limit"] == 1 << 30 for row in result["rows"])
    assert len(result["rows"]) == 9 * len(NETWORKS)
    assert not report.means(result["rows"])
    assert plot.read_bytes().startswith(b"\x89PNG")
    text = capsys.readouterr().out
    for words in (
        "PoC U-Net: peak memory",
        "out of memory",
        "50.0 MiB, 3 s",
        "Memory and time over those of acsconv",
    ):
        assert words in text
    *_, (_, header, body) = memory_report.tables(result["rows"])
    assert header[3] == "memory / acsconv 0.1.1"
    efficient = next(cells for cells in body if cells[1].endswith(memory_suite.EFFICIENT))
    assert efficient[2:] == ["48³", "0.40", "0.75", "64³"]
    assert "| 48³ | 100.0 MiB, 2 s |" in report.markdown(result)
    assert report.compare(result, result)[1] == 1


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"loss": 1.01}, "error of loss 1.0e-02"),
        ({"gradient": [3.0, 4.0]}, "error of gradient 1.6e+00"),
        ({"gradient": [3.0, float("nan")]}, "error of gradient nan"),
    ],
)
def test_a_wrong_result_is_not_published(processes, tmp_path, capsys, wrong, reason):
    processes[OURS + memory_suite.EFFICIENT][0].update(wrong)
    path = tmp_path / "result.json"
    assert bench.main(["--suite", "memory", "--device", "cpu", "--json", str(path)]) == 1
    wrong = [row for row in result_file.load(path)["rows"] if row["status"] == "wrong"]
    assert {(row["implementation"], row["edge"]) for row in wrong} == {(OURS + memory_suite.EFFICIENT, 48)}
    assert all(row["time"] is None and row["memory"] is None for row in wrong)
    assert [row["reason"].split(" >")[0] for row in wrong] == [reason] * len(NETWORKS)
    assert "wrong result" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_process_that_dies_is_a_row_at_the_size_that_it_was_at(monkeypatch, device):
    device, done = torch.device(device), 0

    def run_child(arguments, report):
        for edge in itertools.islice(memory_suite.sizes(NETWORKS[arguments[0]], device), done):
            report(item(edge))
        return "the process ended with -9: "

    monkeypatch.setattr(memory_suite, "run_child", run_child)
    network = NETWORKS["PoC U-Net"]
    for done in (0, 1, 2):
        rows = memory_suite.measure_all(device, [OURS], None, 1, 1, None, lambda *_: None)
        here = [row for row in rows if row["network"] == network.name]
        assert [row["status"] for row in here] == ["ok"] * done + ["failed"]
        edges = itertools.islice(memory_suite.sizes(network, device), done + 1)
        assert [row["edge"] for row in here] == list(edges)
        assert here[-1]["reason"] == "the process ended with -9: "


def test_why_a_process_ended_is_told():
    found = []
    assert "invalid choice" in memory_suite.run_child(["no network", OURS], found.append)
    assert not found


def test_a_process_may_warn_at_length(monkeypatch, tmp_path):
    """More than a pipe holds; a process that waits for a reader is ended by its alarm."""
    program = tmp_path / "program.py"
    program.write_text(
        "import signal, sys\nsignal.alarm(10)\nsys.stderr.write('warning\\n' * 100000)\nprint('{}')\n"
    )
    monkeypatch.setattr(memory_suite, "__file__", str(program))
    found = []
    assert memory_suite.run_child([], found.append) is None
    assert found == [{}]


def test_the_program_computes_in_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    found = []

    def measure_sizes(*_):
        found.append(torch.backends.cudnn.allow_tf32)
        return iter(())

    monkeypatch.setattr(memory_suite, "measure_sizes", measure_sizes)
    memory_suite.main(["PoC U-Net", OURS])
    assert found == [False]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--memory-limit", "much"], "--memory-limit: expected a number"),
        (["--largest", "0"], "--largest must be"),
    ],
)
def test_bad_options(capsys, arguments, text):
    with pytest.raises(SystemExit):
        bench.parse(["--suite", "memory", *arguments])
    assert text in capsys.readouterr().err
