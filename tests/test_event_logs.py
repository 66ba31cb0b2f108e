import math
import sys
import types

import numpy as np
import pytest
from event_files import events, shown
from PIL import Image

from hamjepa_jax import build, build_monitoring, distributed, train
from hamjepa_jax.errors import StorageError, UserError
from hamjepa_jax.event_logs import TensorBoardLog, WeightsAndBiasesLog, tagged
from hamjepa_jax.workdir import Workdir


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.zeros((3, 5, 3), np.uint8)).save(path)
    return path


def test_numbers_are_in_groups_and_what_is_not_finite_stays_so():
    record = {
        "step": 3,
        "epoch": 0.5,
        "learning_rate": 0.1,
        "views_per_second": None,
        "input_wait": 0.25,
        "loss": "nan",
        "mean": "-inf",
        "q_logdet": -1.5,
        "gradient_norm": 2.0,
        "gradient_share_mean": "inf",
        "skipped": 1.0,
        "online_knn20": 0.75,
        "online_ridge": 0.5,
        "warnings": ["beware"],
    }
    tags = tagged(record)
    assert math.isnan(tags.pop("train/loss"))
    assert tags == {
        "train/epoch": 0.5,
        "train/learning_rate": 0.1,
        "train/skipped": 1.0,
        "terms/mean": -math.inf,
        "statistics/q_logdet": -1.5,
        "gradient/norm": 2.0,
        "gradient/share_mean": math.inf,
        "speed/input_wait": 0.25,
        "probe/knn20": 0.75,
        "probe/ridge": 0.5,
    }


def test_tensorboard_has_every_point_before_the_log_is_closed(tmp_path, picture):
    log = TensorBoardLog(tmp_path / "tensorboard")
    log.begin(0, {"name": "digits"})
    log.picture(0, "views", picture)
    log.scalars(1, {"train/loss": 0.5, "terms/mean": -math.inf})
    log.scalars(3, {"train/loss": math.nan})
    found = shown(tmp_path / "tensorboard")
    assert found["terms/mean"] == [(1, -math.inf)]
    (first, (step, not_finite)) = found["train/loss"]
    assert first == (1, 0.5)
    assert step == 3
    assert math.isnan(not_finite)
    ((step, (config,)),) = found["text/config/text_summary"]
    assert step == 0
    assert b'"name": "digits"' in config
    ((step, image),) = found["views"]
    assert (step, image.height, image.width, image.colorspace) == (0, 3, 5, 3)
    assert image.encoded_image_string == picture.read_bytes()
    assert next(events(tmp_path / "tensorboard")).file_version == "brain.Event:2"


def test_a_run_that_goes_on_shows_no_point_twice(tmp_path):
    logs = []
    # Killed each time, which may cut the last event short, and gone on with at an earlier step, within a second.
    for first_step, last_step in ((0, 5), (3, 4), (2, 7)):
        logs.append(TensorBoardLog(tmp_path))
        logs[-1].begin(first_step, {})
        for step in range(first_step, last_step):
            logs[-1].scalars(step, {"train/loss": 10 * len(logs) + step})
        newest = max(tmp_path.iterdir())
        with newest.open("ab") as file:
            file.write(newest.read_bytes()[:20])
    assert shown(tmp_path)["train/loss"] == [(0, 10), (1, 11), (2, 32), (3, 33), (4, 34), (5, 35), (6, 36)]


def test_event_files_that_cannot_be_written_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("hamjepa_jax.event_logs.time.time", lambda: 1.5)
    monkeypatch.setattr("hamjepa_jax.event_logs.socket.gethostname", lambda: "here")
    (tmp_path / "events.out.tfevents.1.500000.here").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"events.* cannot be written .No space left on device."):
        TensorBoardLog(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="events.* cannot be written"):
        TensorBoardLog(tmp_path / "file")


def test_a_picture_that_is_none_is_one_line(tmp_path):
    log, path = TensorBoardLog(tmp_path / "tensorboard"), tmp_path / "views.png"
    for reason in ("No such file or directory", "not a picture"):
        with pytest.raises(UserError, match=rf"views.png: cannot be read \({reason}\); remove it"):
            log.picture(0, "views", path)
        path.touch()


def test_a_picture_is_added_after_training(digits_config, tmp_path, picture):
    config, workdir = digits_config(), Workdir(tmp_path / "run")
    (log,) = build_monitoring.open_event_logs(config, workdir)
    log.begin(0, {})
    log.scalars(9, {"train/loss": 1.0})
    log.close()
    build_monitoring.log_picture(config, workdir, step=4, tag="evaluation/summary", path=picture)
    found = shown(workdir.path / "tensorboard")
    assert found["train/loss"] == [(9, 1.0)]
    assert [step for step, _ in found["evaluation/summary"]] == [4]


def test_only_the_primary_process_writes_and_only_what_is_asked_for(digits_config, tmp_path, monkeypatch):
    config, workdir = digits_config(), Workdir(tmp_path / "run")
    config.log.tensorboard = False
    assert build_monitoring.open_event_logs(config, workdir) == []
    config.log.tensorboard = True
    monkeypatch.setattr(distributed, "is_primary", lambda: False)
    assert build_monitoring.open_event_logs(config, workdir) == []
    assert not workdir.path.exists()


class Wandb(types.ModuleType):
    """A stand-in that keeps what it is given."""

    class Error(Exception):
        pass

    def __init__(self, starting_step=0, refusal=None):
        super().__init__("wandb")
        self.Image = lambda path: f"image {path}"
        self.starting_step = self.step = starting_step
        self.settings, self.logged, self.configs, self.finished, self.refusal = {}, [], [], 0, refusal
        self.config = types.SimpleNamespace(update=lambda config, allow_val_change: self.configs.append(config))

    def init(self, **settings):
        if self.refusal is not None:
            raise self.Error(self.refusal)
        self.settings = settings
        return self

    def log(self, values, step):
        self.logged.append((step, values))
        self.step = step

    def finish(self):
        self.finished += 1


def test_weights_and_biases_has_one_run_for_all_parts_of_a_run(tmp_path, monkeypatch, picture):
    ids = []
    for wandb in (Wandb(), Wandb(starting_step=3)):
        monkeypatch.setitem(sys.modules, "wandb", wandb)
        log = WeightsAndBiasesLog(tmp_path, project="worlds", name="digits-0")
        log.begin(2, {"name": "digits"})
        log.scalars(2, {"train/loss": 1.0})
        log.scalars(3, {"train/loss": math.inf})
        log.picture(1, "views", picture)
        log.close()
        ids.append(wandb.settings.pop("id"))
        # Nothing is said of the mode: that of the environment holds.
        assert wandb.settings == {"project": "worlds", "name": "digits-0", "resume": "allow", "dir": str(tmp_path)}
        assert wandb.configs == [{"name": "digits"}]
        assert wandb.finished == 1
        expected = [(3, {"train/loss": math.inf}), (3, {"views": f"image {picture}"})]
        # What is there already is not logged again.
        assert wandb.logged == ([(2, {"train/loss": 1.0})] if wandb.starting_step == 0 else []) + expected
    assert ids[0] == ids[1] == (tmp_path / "wandb_id").read_text()
    assert len(ids[0]) == 8


def test_another_run_has_another_id(tmp_path, monkeypatch):
    wandb, ids = Wandb(), set()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        WeightsAndBiasesLog(tmp_path / name, project="worlds", name="same")
        ids.add(wandb.settings["id"])
    assert len(ids) == 2


def test_weights_and_biases_is_asked_for_by_its_project_only(digits_config, tmp_path, monkeypatch):
    config, wandb = digits_config(), Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config.log.tensorboard = False
    for project in (None, ""):
        config.log.wandb = project
        assert build_monitoring.open_event_logs(config, Workdir(tmp_path)) == []
    config.log.wandb = "worlds"
    (log,) = build_monitoring.open_event_logs(config, Workdir(tmp_path))
    assert isinstance(log, WeightsAndBiasesLog)
    assert wandb.settings["project"] == "worlds"
    assert wandb.settings["name"] == "digits-hamjepa-seed42"


def test_what_weights_and_biases_refuses_is_one_line(digits_config, tmp_path, monkeypatch):
    config = digits_config()
    config.log.wandb = "worlds"
    monkeypatch.setitem(sys.modules, "wandb", Wandb(refusal="api_key not configured\nand more"))
    with pytest.raises(UserError, match=r"^config.log.wandb: .*api_key not configured\); .*WANDB_MODE=offline[^\n]*$"):
        build_monitoring.open_event_logs(config, Workdir(tmp_path))


def test_weights_and_biases_that_is_missing_is_one_line_before_anything_else(digits_config, monkeypatch):
    config = digits_config()
    experiment = build.experiment(config)
    config.log.wandb = "worlds"
    # Not installed; and a folder of that name, which is a module without anything in it.
    for module in (None, types.ModuleType("wandb")):
        monkeypatch.setitem(sys.modules, "wandb", module)
        with pytest.raises(
            UserError, match="^config.log.wandb: .* needs the package wandb; `pip install wandb`, or le"
        ):
            train.set_up(config, experiment)
