import json

import pytest

from hamjepa_jax.errors import UserError
from hamjepa_jax.workdir import Workdir, flatten

CONFIG = {"train": {"seed": 0, "epochs": 3}, "model": {"widths": [1, 2]}, "log": {"every_steps": 5}}


def changed(**values):
    return {group: fields | values.get(group, {}) for group, fields in CONFIG.items()}


def test_the_config_is_written_and_may_be_claimed_again(tmp_path):
    workdir = Workdir(tmp_path / "a" / "b")
    workdir.claim(CONFIG)
    workdir.claim(CONFIG)
    assert workdir.read_config_file() == CONFIG
    assert [path.name for path in workdir.path.iterdir()] == ["config.json"]


def test_a_longer_run_of_the_same_experiment_is_allowed_and_noted(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.claim(CONFIG)
    longer = changed(train={"epochs": 9}, log={"every_steps": 1})
    workdir.claim(longer)
    assert workdir.read_config_file() == longer


def test_another_experiment_is_refused_and_nothing_is_touched(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.claim(CONFIG)
    before = workdir.config_file.read_bytes()
    with pytest.raises(UserError, match=r"another config: model.widths \(\[1, 2\] there, \[1, 3\] now\), train.seed"):
        workdir.claim(changed(model={"widths": [1, 3]}, train={"seed": 1}))
    with pytest.raises(UserError, match="another config: train.seed"):
        workdir.check(changed(train={"seed": 1}))
    assert workdir.config_file.read_bytes() == before


def test_a_directory_that_is_not_a_run_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not the directory of a run"):
        Workdir(tmp_path).claim(CONFIG)
    with pytest.raises(UserError, match="is not the directory of a run"):
        Workdir(tmp_path / "thesis.tex").claim(CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Workdir(tmp_path / "file" / "run").claim(CONFIG)


def test_reading_a_missing_or_damaged_config_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no run here"):
        Workdir(tmp_path).read_config_file()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG)[:20])
    with pytest.raises(UserError, match="cannot be read"):
        Workdir(tmp_path).read_config_file()


def test_flatten_joins_keys_with_dots():
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}
