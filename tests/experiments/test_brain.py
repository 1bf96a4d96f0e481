"""experiments/brain on small made volumes, in the files and folders that the packages have."""

import numpy
import pytest
import torch
from made_brains import distance, save

from experiments.brain import networks, tasks
from experiments.brain.sampling import Jitter, Patches, Regions, _look_up, _points

STILL = Jitter(rotation=0, scale=0, contrast=0)

pytestmark = pytest.mark.usefixtures("peers")


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


@pytest.mark.parametrize("spacing", [1.0, 2.0])
def test_colin27_is_closed_by_4_mm_at_any_spacing(tmp_path, monkeypatch, spacing):
    monkeypatch.setenv("ACSCONV_VOLUMES", str(tmp_path))
    edge, widest = int(48 / spacing), int(8 / spacing)  # voxels: of a block, of the widest gap that is closed
    first = slice(widest, 2 * widest)
    second = slice(3 * widest, 4 * widest + 1)  # a voxel wider
    for axis in range(3):
        mask = numpy.ones((edge,) * 3)
        across = mask.swapaxes(0, axis)  # a view: the gaps are cut across one axis, through the whole block
        across[first] = across[second] = 0
        save("colin27", "mask", mask, spacing)
        save("colin27", "t1", mask, spacing)
        _, found = tasks.head("colin27")
        line = found.swapaxes(0, 2 - axis)[:, edge // 2, edge // 2]
        assert line[first].all() and not line[second].any()
        line[second] = 1
        assert line.all()


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
