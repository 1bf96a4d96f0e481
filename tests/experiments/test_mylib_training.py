"""Training: its result, and what a kill, damage, another setting, NaN, two processes make of it."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_training import CLASSES, EPOCHS, Volumes, network, run

from experiments.mylib.data import VolumeDataModule
from experiments.mylib.segmentation import SegmentationModule
from experiments.mylib.training import TrainingError

SCRIPT = Path(__file__).resolve().parents[1] / "small_training.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder, and the result of the training in it."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(folder)


def weights(folder):
    return torch.load(folder / "model.dat", weights_only=True)


def timeless(result):
    """Without what a process of its own has otherwise."""
    others = ("seconds", "peak_memory", "environment")
    return rounded({name: value for name, value in result.items() if name not in others})


def rounded(value):
    """Numbers to five digits: another process may round the last bit otherwise, as sums depend on where memory lies."""
    if isinstance(value, dict):
        return {name: rounded(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def rows_of(folder):
    """metrics.csv as rows, rounded."""
    with (folder / "metrics.csv").open() as file:
        return [
            {name: rounded(float(cell)) if cell else cell for name, cell in row.items()}
            for row in csv.DictReader(file)
        ]


def test_a_result(finished):
    folder, result = finished
    assert result == json.loads((folder / "result.json").read_text())
    assert result["parameters"] == sum(value.numel() for value in weights(folder).values())
    assert result["epochs"] == EPOCHS and 1 <= result["best_epoch"] <= EPOCHS and result["seconds"] > 0
    assert result["metrics"]["test_dice"] > 0.3  # it has learnt something
    assert {f"test_iou_{name}" for name in CLASSES} < set(result["metrics"])
    assert result["settings"]["lr"] == 0.02 and result["settings"]["train_samples"] == 8
    with (folder / "metrics.csv").open(newline="") as file:
        log = list(csv.DictReader(file))
    assert [row["epoch"] for row in log] == ["1", "2", "3", "4"]
    best = max(log, key=lambda row: float(row["val_dice"]))
    assert int(best["epoch"]) == result["best_epoch"]
    assert float(best["val_dice"]) == pytest.approx(result["validation"])
    assert any((folder / "tensorboard").glob("events*"))
    assert result["environment"]["torch"] == torch.__version__ and result["environment"]["device"] == "cpu"


def test_model_dat_is_the_best_epochs_network(finished):
    folder, result = finished
    model = network(0.2).eval()
    model.load_state_dict(weights(folder))
    test = Volumes(4, 2)
    predicted = model(test.x).argmax(1)
    for label, name in enumerate(CLASSES):
        hits = ((predicted == label) & (test.y == label)).sum()
        dice = 2 * hits / ((predicted == label).sum() + (test.y == label).sum())
        assert float(dice) == pytest.approx(result["metrics"][f"test_dice_{name}"])


def test_a_finished_training_is_not_repeated(finished, monkeypatch):
    folder, result = finished
    monkeypatch.setattr("lightning.Trainer", None)
    assert run(folder) == result


def test_other_settings_are_refused_by_name(finished):
    folder, _ = finished
    with pytest.raises(TrainingError, match=r"lr is 0\.02 there and 0\.01 now\. Choose another folder"):
        run(folder, lr=0.01)
    with pytest.raises(TrainingError, match="devices is 1 there and 2 now"):
        run(folder, devices=2)
    with pytest.raises(TrainingError, match="conv is 'nothing' there and 'ACSConv' now"):
        run(folder, settings={"conv": "ACSConv"})


def has_train_loss(folder):
    """The log follows the checkpoint: who is killed between them loses that epoch's training loss."""
    with (folder / "logs/version_0/metrics.csv").open(newline="") as file:
        return any(row.get("train_loss") for row in csv.DictReader(file))


def test_a_killed_training_goes_on_as_if_nothing_had_happened(finished, tmp_path):
    folder, result = finished
    command = [sys.executable, SCRIPT, tmp_path, "--delay", "0.1"]
    process = subprocess.Popen(command, env=ENVIRONMENT)
    try:
        while not ((tmp_path / "last.ckpt").exists() and has_train_loss(tmp_path)):
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "result.json").exists()
    resumed = run(tmp_path)
    repeated = (tmp_path / "logs" / "version_1" / "metrics.csv").read_text()
    assert "train_loss" in repeated and "\n0," not in repeated, "it began at the first epoch"
    assert timeless(resumed) == timeless(result)
    for name, value in weights(folder).items():
        # Seen: 2e-7. Another sample, or another order of them, changes weights by a thousand times as much.
        torch.testing.assert_close(weights(tmp_path)[name], value, rtol=0, atol=2e-6)
    assert rows_of(tmp_path) == rows_of(folder)


@pytest.mark.parametrize(
    ("options", "lost"),
    [
        ({"epochs": 1}, ("result.json",)),
        ({"epochs": 1}, ("result.json", "trained.json")),
        ({"patience": 1, "lr": 0.0}, ("result.json",)),
    ],
)
def test_a_kill_between_training_and_result(options, lost, tmp_path):
    result = run(tmp_path, **options)
    history = (tmp_path / "metrics.csv").read_text()
    for name in lost:
        (tmp_path / name).unlink()
    assert timeless(run(tmp_path, **options)) == timeless(result)
    assert (tmp_path / "metrics.csv").read_text() == history
    assert len(history.splitlines()) == result["epochs"] + 1


def test_a_moved_folder_keeps_its_best_score(tmp_path, monkeypatch):
    loss, item = SegmentationModule.loss, Volumes.__getitem__
    monkeypatch.setattr(
        SegmentationModule, "loss", lambda *args: -loss(*args)
    )  # so that the first epoch is the best
    left = [39]

    def killed(self, index):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return item(self, index)

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)):
        patch.setattr(Volumes, "__getitem__", killed)
        run(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    result = run(tmp_path / "new")
    with (tmp_path / "new" / "metrics.csv").open(newline="") as file:
        dice = [float(row["val_dice"]) for row in csv.DictReader(file)]
    assert len(dice) == EPOCHS and dice[0] > max(dice[1:])
    assert result["best_epoch"] == 1 and result["validation"] == pytest.approx(dice[0])
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_metric_that_is_no_number_is_none(tmp_path):
    def nothing(self, values):
        return {"dice": torch.tensor(torch.nan)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.mylib.segmentation.SegmentationModule.summary", nothing)
        result = run(tmp_path, epochs=1)
    assert result["validation"] is None and result["metrics"]["test_dice"] is None


def test_two_processes_train_what_one_does(tmp_path):
    alone = run(tmp_path / "alone", dropout=0.0)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, SCRIPT, tmp_path / "two", "--devices", "2"], env=ENVIRONMENT, check=True)
    together = json.loads((tmp_path / "two" / "result.json").read_text())
    assert together["metrics"] == pytest.approx(alone["metrics"], abs=1e-5)
    assert together["validation"] == pytest.approx(alone["validation"], abs=1e-5)
    for name, value in weights(tmp_path / "alone").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], value, rtol=1e-4, atol=1e-5)


def test_nan_stops_with_a_message(tmp_path):
    with pytest.raises(
        TrainingError, match=r"the loss is nan in epoch 1, step [12]: lower the learning rate"
    ):
        run(tmp_path, spoilt=0)
    assert not (tmp_path / "result.json").exists()


def test_damaged_files_are_named(finished, tmp_path):
    for name in ("settings.json", "result.json", "last.ckpt"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(b"PK\x03\x04")
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            run(folder)


def test_early_stop_and_no_validation(tmp_path):
    stopped = run(tmp_path / "stopped", patience=1, lr=0.0)
    assert (stopped["epochs"], stopped["best_epoch"]) == (2, 1)
    last = run(tmp_path / "last", validation=False, monitor=None, epochs=2)
    assert last["best_epoch"] == 2 and last["validation"] is None


def test_the_order_is_that_of_seed_and_epoch():
    class Trainer:
        world_size, global_rank, current_epoch = 1, 0, 0

    def order(epoch, world_size=1, rank=0, seed=0):
        data = VolumeDataModule(Volumes(8, 0), batch_size=2, seed=seed)
        data.trainer = Trainer()
        data.trainer.current_epoch, data.trainer.world_size, data.trainer.global_rank = (
            epoch,
            world_size,
            rank,
        )
        return list(data.train_dataloader().sampler)

    assert order(1) == order(1) and sorted(order(1)) == list(range(8))
    assert order(1) != order(0) and order(1) != order(1, seed=1)
    assert [index for pair in zip(order(1, 2, 0), order(1, 2, 1)) for index in pair] == order(1)
    with pytest.raises(ValueError, match="validation: the dataset is empty"):
        VolumeDataModule(Volumes(8, 0), Volumes(0, 0), batch_size=2)
