"""Result files, means, comparison and what is made from them, on results written by hand."""

import copy
import json

import cpu_goals
import pytest
import report
import result_file
from environment import ROOT, result_path


def row(
    implementation,
    milliseconds,
    case="layer",
    family="narrow",
    status="ok",
    mebibytes=10.0,
    pass_name="forward",
    description="8→8 k3, 4³",
):
    good = status == "ok"
    time = {
        "median": milliseconds,
        "q1": milliseconds,
        "q3": milliseconds,
        "minimum": milliseconds,
        "samples": 5,
    }
    return {
        "case": case,
        "description": description,
        "family": family,
        "pass": pass_name,
        "dtype": "float32",
        "layout": "contiguous",
        "implementation": implementation,
        "status": status,
        "reason": None if good else "error of output 3.0e-01 > 1.0e-05",
        "time": {"wall": time} if good else None,
        "memory": {"bytes": int(mebibytes * 2**20), "method": "by hand"} if good else None,
        "error": {"output": 1e-7 if good else 0.3},
        "limit": {"output": 1e-5},
        "flops": 10**9,
        "traffic": 10**6,
        "ceilings": {"matrix product": 1e11, "copy": 1e10},
        "ceiling_share": 0.5 if good else None,
    }


def result(rows):
    environment = {
        "machine": "a machine",
        "threads": 2,
        "torch": "2.13",
        "cudnn": None,
        "onednn": "3",
        "device": "cpu",
    }
    return {
        "schema": result_file.SCHEMA,
        "schema_version": result_file.SCHEMA_VERSION,
        "created": "2026-01-02T03:04:05+00:00",
        "command": "python benchmarks/bench.py",
        "settings": {},
        "environment": {**environment, "commit": "0123456789abcdef", "dirty": False},
        "warnings": [],
        "notes": ["a note"],
        "rows": rows,
    }


ROWS = [
    row("acsconv-cuda cpu", 2.0, mebibytes=8),
    row("reference", 5.0),
    row("nn.Conv3d", 4.0, mebibytes=16),
    row("acsconv-cuda cpu", 1.0, case="other", mebibytes=8),
    row("nn.Conv3d", 8.0, case="other", mebibytes=4),
]


def test_save_and_load(tmp_path):
    path = tmp_path / "machine" / "result.json"
    result_file.save(result(ROWS), path)
    assert result_file.load(path) == result(ROWS)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda r: r.update(schema="other"), "no schema"),
        (lambda r: r.update(schema_version=99), "schema version 99"),
        (lambda r: r.pop("environment"), "lacks environment"),
        (lambda r: r["rows"][0].pop("error"), r"lacks rows\[\].error"),
    ],
)
def test_other_files_are_refused(tmp_path, change, text):
    bad = copy.deepcopy(result(ROWS))
    change(bad)
    with pytest.raises(ValueError, match=text):
        result_file.save(bad, tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text(json.dumps(bad))
    with pytest.raises(ValueError, match=text):
        result_file.load(tmp_path / "bad.json")


def test_means_are_geometric_and_relative_to_ours():
    found = {(mean["implementation"], mean["family"]): mean for mean in report.means(ROWS)}
    assert {name for name, _ in found} == {"reference", "nn.Conv3d"}
    conv3d = found["nn.Conv3d", "narrow"]
    assert conv3d["time"] == pytest.approx(4.0)  # of 2 and 8
    assert conv3d["memory"] == pytest.approx(1.0)  # of 2 and 1/2
    assert conv3d["cases"] == 2
    assert found["reference", "narrow"]["time"] == pytest.approx(2.5)
    assert found["nn.Conv3d", "all layers"]["time"] == pytest.approx(4.0)


def test_networks_are_not_averaged_with_layers():
    rows = [*ROWS, row("acsconv-cuda cpu", 1, "net", "network"), row("nn.Conv3d", 100, "net", "network")]
    found = {(mean["implementation"], mean["family"]): mean["time"] for mean in report.means(rows)}
    assert found["nn.Conv3d", "all layers"] == pytest.approx(4.0)
    assert found["nn.Conv3d", "network"] == pytest.approx(100.0)


def test_wrong_rows_are_marked_and_neither_averaged_nor_compared_with():
    rows = [row("acsconv-cuda cpu", 1.0, status="wrong"), row("reference", 5.0), row("nn.Conv3d", 10.0)]
    (mean,) = {mean["time"] for mean in report.means(rows)}
    assert mean == pytest.approx(2.0)
    text = "\n".join(report.table_lines(rows))
    assert "WRONG, not published: error of output" in text
    assert "| wrong |" in report.markdown(result(rows))
    rows = [row("acsconv-cuda cpu", 1.0, status="wrong"), row("nn.Conv3d", 10.0)]
    assert report.means(rows) == []


def test_table_shows_what_was_measured():
    (line,) = [line for line in report.table_lines(ROWS) if "nn.Conv3d" in line and "4.00x" not in line][:1]
    for word in ("2.00x", "250", "50%", "16.0", "1.0e-07", "ok"):
        assert word in line


def test_compare_counts_only_ours_and_allows_for_drift():
    old, new = result(copy.deepcopy(ROWS)), result(copy.deepcopy(ROWS))
    new["rows"][0]["time"]["wall"]["median"] = 3.0
    new["rows"][2]["time"]["wall"]["median"] = 40.0
    new["rows"][0]["ceilings"]["matrix product"] = 0.5e11
    new["environment"]["threads"] = 1
    lines, worst = report.compare(new, old)
    assert worst == pytest.approx(1.5)
    assert any("threads: 2 -> 1" in line for line in lines)
    assert any("1.50x" in line and "(0.75x after drift)" in line for line in lines)
    assert report.compare(new, result([]))[1] is None


def test_markdown_has_every_layer_and_the_conditions():
    text = report.markdown(result(ROWS))
    assert "| layer | 8→8 k3, 4³ | 2 ms | 5 ms (2.50x) | 4 ms (2.00x) | 8.0 / 10.0 / 16.0 |" in text
    assert "| forward | nn.Conv3d | 4.00 | 4.00 |" in text
    for words in (
        "a machine, 2 threads, torch 2.13",
        "commit 0123456789",
        "`python benchmarks/bench.py`",
        "a note",
    ):
        assert words in text


def test_goals_take_each_peer_at_its_better_layout():
    def both(name, contiguous, channels_last, **options):
        last = {"layout": "channels_last"}
        options.setdefault("description", cpu_goals.CASES[options["case"]].describe())
        return [row(name, contiguous, **options), row(name, channels_last, **options) | last]

    name = "nnunet-stage1"  # 64 channels, stride 1
    rows = [
        *both("acsconv-cuda cpu", 12.0, 15.0, case=name),  # 83 % and 67 % of 1e11 FLOP/s
        *both("nn.Conv3d", 30.0, 24.0, case=name),
        *both("acsconv 0.1.1", 14.0, 18.0, case=name),
        *both("acsconv-cuda cpu", 2.0, 2.0, case="soft-32"),
        *both("nn.Conv3d", 8.0, 8.0, case="soft-32"),
        row("acsconv-cuda cpu", 1.0, case="soft-64"),  # in one layout alone: no statement
        *both("acsconv-cuda cpu", 1.0, 9.0, case="kernel5-48", description="of another --scale"),
    ]
    (_, _, classes), (_, _, misses) = cpu_goals.tables(rows)
    forward = "float32 forward, stride 1, 32 input channels or more (1)"
    assert classes[:2] == [
        [forward, "contiguous", "83% (80%), 83% (72%)", "**2.00** (2.10)", "1.17"],
        [forward, "channels_last", "**67%** (80%), **67%** (72%)", "**1.60** (2.10)", "0.93"],
    ]
    assert ["float32 forward, Soft ACS (1)", "contiguous", "500%, 500%", "4.00 (1.00)", "-"] in classes
    assert misses == [
        [
            "nnunet-stage1, 64→64 k3, 32³",
            "float32 forward",
            "channels_last: 0.93 of acsconv 0.1.1's speed; channels_last: 67% of the matrix product, goal 72%; "
            "channels_last: 1.25 times the other layout's time",
        ]
    ]
    assert "**67%** (80%)" in report.markdown(result(rows))
    assert cpu_goals.tables(rows[:1]) == []


def test_command_line(tmp_path, capsys):
    path = tmp_path / "result.json"
    result_file.save(result(ROWS), path)
    assert report.main([str(path)]) == 0
    assert "Geometric mean of time / ours" in capsys.readouterr().out
    assert report.main([str(path), "--compare", str(path)]) == 0
    assert "1.00x over 2 rows" in capsys.readouterr().out
    assert report.main([str(tmp_path / "none.json")]) == 2


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    report.plot(result(ROWS), tmp_path / "plots" / "times.png")
    assert (tmp_path / "plots" / "times.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing to plot"):
        report.plot(result([row("nn.Conv3d", 1.0)]), tmp_path / "none.png")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "Intel-Xeon-Processor-2-cores/2026-01-02-0123456789.json"),
        ({"dirty": True}, "Intel-Xeon-Processor-2-cores/2026-01-02-0123456789-dirty.json"),
        ({"device": "cuda", "machine": "NVIDIA H200"}, "NVIDIA-H200/2026-01-02-0123456789.json"),
        ({"commit": None, "dirty": None}, "Intel-Xeon-Processor-2-cores/2026-01-02-unknown.json"),
    ],
)
def test_results_are_kept_per_machine_and_commit(change, expected):
    record = {
        "device": "cpu",
        "machine": "Intel(R) Xeon(R) Processor",
        "cores": 2,
        "commit": "0123456789abcdef",
    }
    path = result_path({**record, "dirty": False, **change}, "2026-01-02T03:04:05+00:00")
    assert path == ROOT / "benchmarks" / "results" / expected
