"""What the experiments share, but for training: options, metrics, networks, figures, result files."""

from dataclasses import dataclass
from typing import Literal
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from sklearn.metrics import roc_auc_score
from torch import nn

from experiments.mylib import figures
from experiments.mylib.classification import ClassificationModule
from experiments.mylib.figures import draw_curves, three_planes
from experiments.mylib.files import read_checkpoint
from experiments.mylib.networks import CONVS, to_3d
from experiments.mylib.options import parse, setting
from experiments.mylib.results import read_results, table, write_results
from experiments.mylib.saving import read_curve
from experiments.mylib.segmentation import SegmentationModule

# --- options ----------------------------------------------------------------------------------------------------------


@dataclass
class Config:
    n_epochs: int = setting(50, "passes")
    lr: float = setting(0.01, "100 % of the rate")
    pretrained: bool = setting(True, "weights")
    milestones: tuple[float, ...] = setting((0.5, 0.75), "parts")
    limit: int | None = setting(None, "at most")
    conv: Literal["ACSConv", "Conv3d"] = setting("ACSConv", "layers")
    plane: str = setting("axial", "of slices", ("axial", "coronal"))


def test_a_dataclass_is_a_command_line(capsys):
    assert parse(Config, "", []) == Config()
    words = "--n-epochs 3 --lr 1e-3 --no-pretrained --milestones 0.1 --limit 7 --conv Conv3d --plane coronal"
    expected = Config(3, 1e-3, False, (0.1,), 7, "Conv3d", "coronal")
    assert parse(Config(n_epochs=9), "", words.split()) == expected
    assert parse(Config(limit=7), "", ["--limit", "none", "--milestones", "--n_epochs", "1"]) == Config(
        1, milestones=()
    )
    with pytest.raises(SystemExit):
        parse(Config, "what it does", ["--help"])
    shown = capsys.readouterr().out
    assert "what it does" in shown and "100 % of the rate (default: 0.01)" in " ".join(shown.split())


def test_several_dataclasses_share_a_command_line():
    @dataclass
    class Env:
        data: str = "here"

    assert parse((Config, Env("there")), "", ["--n-epochs", "2"]) == (Config(2), Env("there"))
    with pytest.raises(TypeError, match="n_epochs: a field of two dataclasses"):
        parse((Config, Config), "", [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--lr fast", "argument --lr: invalid float value: 'fast'"),
        ("--limit x", "argument --limit: invalid int value: 'x'"),
        ("--conv Conv4d", "argument --conv: invalid choice: 'Conv4d'"),
        ("--plane top", "argument --plane: invalid choice: 'top'"),
        ("--epochs 3", "unrecognized arguments: --epochs 3"),
    ],
)
def test_what_is_unknown_is_refused_by_name(words, message, capsys):
    with pytest.raises(SystemExit):
        parse(Config, "", words.split())
    assert message in capsys.readouterr().err


# --- modules ----------------------------------------------------------------------------------------------------------


def logged(module, stage, batches):
    """What an epoch of validation or test logs."""
    values = {}
    module.log = lambda name, value, **_: values.update({name: float(value)})
    module.log_dict = lambda found, **_: values.update({name: float(value) for name, value in found.items()})
    for batch in batches:
        getattr(module, "validation_step" if stage == "val" else "test_step")(batch, 0)
    getattr(module, "on_validation_epoch_end" if stage == "val" else "on_test_epoch_end")()
    return values


@pytest.mark.parametrize("stage", ["val", "test"])
@pytest.mark.parametrize("include_background", [False, True])
def test_dice_and_iou_are_those_of_all_voxels_together(stage, include_background):
    names = ("background", "a", "b", "absent")
    module = SegmentationModule(nn.Identity(), names, include_background=include_background)
    labels = torch.randint(0, 3, (5, 2, 4, 4))
    logits = torch.randn(5, 4, 2, 4, 4)
    logits[:, 3] = -10.0  # neither in the labels nor predicted
    predicted = logits.argmax(1)
    logged(module, stage, [(logits, torch.zeros_like(labels))])  # an epoch that the next one does not know of
    found = logged(module, stage, [(logits[:3], labels[:3]), (logits[3:], labels[3:])])
    dice, iou = [], []
    for label, name in enumerate(names[:3]):
        is_label, is_predicted = labels == label, predicted == label
        both = (is_label & is_predicted).sum()
        dice.append(float(2 * both / (is_label.sum() + is_predicted.sum())))
        iou.append(float(both / (is_label | is_predicted).sum()))
        assert found[f"{stage}_dice_{name}"] == pytest.approx(dice[-1])
        assert found[f"{stage}_iou_{name}"] == pytest.approx(iou[-1])
    assert np.isnan(found[f"{stage}_dice_absent"])
    first = 0 if include_background else 1
    assert found[f"{stage}_dice"] == pytest.approx(np.mean(dice[first:]))
    assert found[f"{stage}_iou"] == pytest.approx(np.mean(iou[first:]))


def wrong_share(logits, labels):
    return (logits.argmax(1) != labels).float().mean()


@pytest.mark.parametrize("loss", ["dice_ce", wrong_share])
def test_losses_fall_as_predictions_get_better_in_2d_and_3d(loss):
    module = SegmentationModule(nn.Identity(), ("background", "a", "b"), loss=loss)
    for shape in ((2, 6, 6), (2, 6, 6, 6)):
        labels = torch.randint(0, 3, shape)
        right = nn.functional.one_hot(labels, 3).movedim(-1, 1) * 40.0 - 20.0
        noise = torch.randn_like(right)
        bad, better, best = (float(module.loss(x, labels)) for x in (noise, noise + right / 20, right))
        assert bad > better > best and best == pytest.approx(0.0, abs=1e-3)


def test_accuracy_and_auc():
    module = ClassificationModule(nn.Identity(), ("a", "b", "c"))
    labels, logits = torch.randint(0, 3, (50,)), torch.randn(50, 3)
    found = logged(module, "val", [(logits[:30], labels[:30]), (logits[30:], labels[30:])])
    assert found["val_accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    scores = logits.softmax(1)
    assert found["val_auc"] == pytest.approx(roc_auc_score(labels, scores, multi_class="ovr"), abs=1e-6)


def test_optimisers():
    network = nn.Linear(1, 1)
    names = ("background", "a")
    sgd = SegmentationModule(
        network, names, optimizer="sgd", lr=0.1, momentum=0.8, weight_decay=0.01, milestones=(1,)
    )
    found = sgd.configure_optimizers()
    optimizer, schedule = found["optimizer"], found["lr_scheduler"]
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.SGD)
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.8, 0.01)
    optimizer.step()
    schedule.step()
    assert group["lr"] == pytest.approx(0.01)
    adam = ClassificationModule(network, names, lr=0.3).configure_optimizers()["optimizer"]
    assert isinstance(adam, torch.optim.Adam) and adam.param_groups[0]["lr"] == 0.3
    with pytest.raises(ValueError, match=r"optimizer: expected one of .*'adam', 'sgd'.*, got 'rmsprop'"):
        ClassificationModule(network, names, optimizer="rmsprop")
    with pytest.raises(ValueError, match="loss: expected 'dice_ce' or a function, got 'mse'"):
        SegmentationModule(network, names, loss="mse")


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conv", CONVS)
def test_to_3d(conv):
    def network():
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 1))

    flat = network()
    image = torch.rand(1, 1, 8, 8)
    volume = image[:, :, None].expand(-1, -1, 8, -1, -1)
    pretrained = to_3d(network(), conv, pretrained=True)
    assert pretrained(volume).shape == (1, 2, 8, 8, 8)
    if conv in ("Conv2_5d", "Conv3d"):
        torch.testing.assert_close(pretrained(volume)[:, :, 4], flat(image))
    else:
        assert torch.equal(pretrained[0].weight, flat[0].weight)
    random = to_3d(network(), conv, pretrained=False)
    kept = torch.allclose(random[0].weight, pretrained[0].weight)
    assert kept == (conv != "Conv3d")


def test_an_unknown_convolution_is_refused():
    with pytest.raises(ValueError, match=r"conv: expected one of \('ACSConv', .*\), got 'Conv3D'"):
        to_3d(nn.Conv2d(1, 1, 1), "Conv3D", pretrained=True)


# --- figures and results ----------------------------------------------------------------------------------------------


def test_three_planes_show_labels(tmp_path):
    names, volume = ("background", "a", "b"), np.zeros((8, 9, 10))
    labels = torch.zeros(8, 9, 10, dtype=torch.int64)
    three_planes(tmp_path / "none.png", volume, {"labels": labels}, names)
    labels[4] = 2  # in the axial plane all, in the others a line
    three_planes(tmp_path / "new" / "some.png", volume, {"labels": labels}, names)
    blue = np.array([0x56, 0xB4, 0xE9]) / 255  # the colour of class 2, over black
    pictures = [imread(tmp_path / name)[..., :3] for name in ("none.png", "new/some.png")]
    share = [(np.abs(picture - 0.6 * blue).max(-1) < 0.02).mean() for picture in pictures]
    assert share[0] == 0 and 0.05 < share[1] < 0.3
    with pytest.raises(ValueError, match=r"labels: expected \[8, 9, 10\], got \[8, 9\]"):
        three_planes(tmp_path / "x.png", volume, {"labels": labels[..., 0]}, names)
    with pytest.raises(ValueError, match=r"volume: expected \[D, H, W\], got \[9, 10\]"):
        three_planes(tmp_path / "x.png", volume[0], {}, names)
    with pytest.raises(ValueError, match="class_names: expected at most 8, got 9"):
        three_planes(tmp_path / "x.png", volume, {}, "abcdefghi")
    three_planes(tmp_path / "some.pdf", volume, {"labels": labels}, names)
    assert (tmp_path / "some.pdf").read_bytes().startswith(b"%PDF")


def test_a_picture_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(figure, file, **options):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(figures.Figure, "savefig", interrupted)
    with pytest.raises(KeyboardInterrupt):
        three_planes(tmp_path / "a.png", np.zeros((8, 9, 10)), {}, ("background", "a"))
    assert not list(tmp_path.iterdir())


def test_curves_are_the_means_over_seeds(tmp_path, monkeypatch):
    save, drawn = figures._save, []
    monkeypatch.setattr(figures, "_save", lambda figure, path: (drawn.append(figure), save(figure, path)))
    one, other = {1: 0.1, 2: 0.4, 3: 0.6}, {1: 0.2, 3: 0.8}
    panels = {"left": {"one": [one], "seeds": [one, other]}, "right": {"other": [other]}}
    draw_curves(tmp_path / "new" / "curves.png", panels, "Dice")
    assert imread(tmp_path / "new" / "curves.png").ndim == 3
    left, right = drawn[0].axes
    assert (left.get_title(), right.get_title(), left.get_ylabel()) == ("left", "right", "Dice")
    assert [line.get_label() for line in left.lines] == ["one", "seeds"]
    np.testing.assert_allclose(left.lines[0].get_xydata(), [(1, 0.1), (2, 0.4), (3, 0.6)])
    np.testing.assert_allclose(
        left.lines[1].get_xydata(), [(1, 0.15), (3, 0.7)]
    )  # of the epochs that both have
    np.testing.assert_allclose(right.lines[0].get_xydata(), [(1, 0.2), (3, 0.8)])
    (band,) = left.collections
    assert {tuple(point) for point in band.get_paths()[0].vertices} == {
        (1, 0.1),
        (1, 0.2),
        (3, 0.6),
        (3, 0.8),
    }


def test_a_checkpoint_that_is_one_no_more_is_named(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "whole.pth")
    with ZipFile(tmp_path / "whole.pth") as whole, ZipFile(tmp_path / "damaged.pth", "w") as damaged:
        for name in whole.namelist():
            # A tensor's place is to be a tuple, and is a number.
            damaged.writestr(name, b"\x80\x02K\x01Q." if name.endswith("data.pkl") else whole.read(name))
    with pytest.raises(ValueError, match=r"damaged\.pth is damaged or no checkpoint .*Get another"):
        read_checkpoint(tmp_path / "damaged.pth", "Get another")


def test_a_column_of_a_log(tmp_path):
    log = tmp_path / "metrics.csv"
    log.write_text("epoch,val_dice\n1,0.1\n2,0.4\n3,\n")
    assert read_curve(log, "val_dice") == {1: 0.1, 2: 0.4}
    with pytest.raises(ValueError, match=r"metrics\.csv has no column 'val_iou'; it has epoch, val_dice"):
        read_curve(log, "val_iou")


def test_result_files_and_tables(tmp_path):
    rows = [
        {"conv": "ACSConv", "pretrained": True, "dice": 0.5},
        {"conv": "ACSConv", "pretrained": True, "dice": 0.7},
        {"conv": "Conv3d", "pretrained": False, "dice": 0.25},
        {"conv": "Conv3d", "pretrained": False, "dice": None},
        {"conv": "Conv2_5d", "pretrained": False, "dice": None},
    ]
    path = tmp_path / "new" / "toy.json"
    write_results(path, rows, {"size": "toy"})
    result = read_results(path)
    assert result["rows"] == rows and result["settings"] == {"size": "toy"}
    assert result["environment"]["torch"] == torch.__version__
    assert table(rows, {"conv": "layer", "pretrained": "2D"}, {"dice": "Dice"}, digits=2) == (
        "| layer | 2D | Dice | n |\n| --- | --- | --: | --: |\n| ACSConv | yes | 0.60 ± 0.14 | 2 |\n"
        "| Conv3d | no | 0.25 | 1 |\n| Conv2_5d | no | - | 0 |\n"
    )
    scores = [{"conv": "a", "dice": 0.5, "iou": None}, {"conv": "a", "dice": 0.5, "iou": 0.4}]
    assert "| a | 0.500 ± 0.000 | 0.400 | 1-2 |\n" in table(scores, ["conv"], ["dice", "iou"])
    assert table(rows, ["conv"], ["dice"]).startswith("| conv | dice | n |\n")
    here, there = {"machine": "here"}, {"machine": "there"}
    for given, noted in (([here, here], here), ([here, there, here], [here, there])):
        write_results(path, rows, {"size": "toy"}, given)
        assert read_results(path)["environment"] == noted
    result = read_results(path)
    with pytest.raises(ValueError, match="JSON"):
        write_results(path, [{"dice": float("nan")}], {})
    assert read_results(path) == result, "a failed write leaves the file as it was"
    path.write_text('{"rows": []}')
    with pytest.raises(ValueError, match=r"toy\.json is no result of an experiment: no schema"):
        read_results(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"toy\.json is damaged"):
        read_results(path)
