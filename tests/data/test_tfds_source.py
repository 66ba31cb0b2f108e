import json
import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from hamjepa_jax.data import prepare, tfds_source
from hamjepa_jax.data.sources import open_source

# Class → red values of its pictures.
TRAIN = {"ant": (50, 60), "cat": (20, 10, 30), "dog": (40,)}


@pytest.fixture(scope="module")
def tfds_directory(tmp_path_factory):
    """A TFDS data directory with the data set `pets`; two pictures in each of its files."""
    root, output = tmp_path_factory.mktemp("folder"), tmp_path_factory.mktemp("tfds")
    for split in ("train", "test"):
        for name, values in TRAIN.items():
            (root / split / name).mkdir(parents=True)
            for value in values:
                Image.new("RGB", (4, 3), (value, 0, 0)).save(root / split / name / f"{value}.png")
    arguments = [f"--source={root}", f"--output={output}", "--name=pets", "--images_per_shard=2"]
    assert prepare.main(arguments) == 0
    return output


def reds(source):
    return [int(source[index]["image"][0, 0, 0]) for index in range(len(source))]


def red_labels(source):
    """Red value → name of the class."""
    return {
        int(e["image"][0, 0, 0]): source.class_names[e["label"]] for e in map(source.__getitem__, range(len(source)))
    }


@pytest.mark.parametrize(
    "where", ["data directory", "directory of the data set", "directory of the version", "default"]
)
@pytest.mark.parametrize("name", ["pets", "pets:1.0.0"])
def test_a_tfds_data_set_is_found_by_name_or_directory(where, name, tfds_directory, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_directory))
    data_dir = {
        "data directory": tfds_directory,
        "directory of the data set": tfds_directory / "pets",
        "directory of the version": tfds_directory / "pets" / "1.0.0",
        "default": None,
    }[where]
    source = open_source(name, "train", data_dir=data_dir)
    assert source.class_names == ("ant", "cat", "dog")
    assert source.labels is None
    assert red_labels(source) == {value: name for name, values in TRAIN.items() for value in values}
    assert source.name_of(3) == "pets train record 3"
    for index in (6, -1):
        with pytest.raises(IndexError):
            source[index]


def test_the_newest_version_is_read_and_a_config_must_be_told(assert_refused, own_tfds):
    def copy(source, target, name):
        shutil.copytree(own_tfds / source, own_tfds / target)
        info = own_tfds / target / "dataset_info.json"
        info.write_text(json.dumps(json.loads(info.read_text()) | name))

    copy("pets/1.0.0", "pets/9.0.0", {"version": "9.0.0"})
    copy("pets/1.0.0", "pets/10.0.0", {"version": "10.0.0"})
    shutil.copytree(own_tfds / "pets/1.0.0", own_tfds / "pets/11.0.0.incomplete")
    assert open_source("pets", "test", data_dir=own_tfds).version == "10.0.0"
    assert open_source("pets:9.0.0", "test", data_dir=own_tfds).version == "9.0.0"
    for config in ("small", "large"):
        copy("pets/1.0.0", f"birds/{config}/1.0.0", {"name": "pets", "configName": config})
    assert open_source("birds/small", "test", data_dir=own_tfds).name == "pets/small"
    assert_refused("name", ["'birds' has several configs", "birds/large, birds/small"], "birds", "test", own_tfds)


def test_slices_of_tfds_splits_are_understood(tfds_directory):
    whole, half = (open_source("pets", split, data_dir=tfds_directory) for split in ("train", "train[3:]"))
    assert reds(half) == reds(whole)[3:]


def test_the_line_about_group_sizes_is_not_printed_and_others_are(tfds_directory, caplog):
    reds(open_source("pets", "train", data_dir=tfds_directory))
    logger = logging.getLogger("absl")
    logger.propagate = True
    with caplog.at_level(logging.ERROR):
        logger.error("File %s was created with group size %s. Grain requires group size 1", "f", 16)
        logger.error("File %s is broken", "f")
    assert [record.getMessage() for record in caplog.records] == ["File f is broken"]


def test_labels_are_read_once_and_kept_in_the_cache(tfds_directory, cache, monkeypatch):
    source = open_source("pets", "train", data_dir=tfds_directory)
    labels = source.read_labels()
    assert labels.dtype == np.int32
    assert labels.tolist() == [source[index]["label"] for index in range(6)]
    (file,) = cache.rglob("*.npy")
    assert [path.name for path in cache.rglob("*") if path.is_file()] == [file.name]

    def read_again(self):
        raise AssertionError("the records are read again")

    again = open_source("pets", "train", data_dir=tfds_directory)
    with monkeypatch.context() as patch:
        patch.setattr(tfds_source.TfdsSource, "_each_label", read_again)
        np.testing.assert_array_equal(again.read_labels(), labels)
    for broken in (b"", b"garbage", file.read_bytes()[:-4]):
        file.write_bytes(broken)
        np.testing.assert_array_equal(open_source("pets", "train", data_dir=tfds_directory).read_labels(), labels)
    for wrong in (labels[:-1], labels + 100, labels.astype(np.int64)):
        np.save(file, wrong)
        np.testing.assert_array_equal(open_source("pets", "train", data_dir=tfds_directory).read_labels(), labels)
    assert np.load(file).tolist() == labels.tolist()


def test_labels_of_files_that_changed_are_read_again(own_tfds, cache):
    labels = open_source("pets", "train", data_dir=own_tfds).read_labels()
    (file,) = cache.rglob("*.npy")
    np.save(file, np.zeros_like(labels))
    os.utime(own_tfds / "pets/1.0.0/pets-train.array_record-00001-of-00003", (1, 1))
    np.testing.assert_array_equal(open_source("pets", "train", data_dir=own_tfds).read_labels(), labels)


def test_a_cache_that_cannot_be_written_is_done_without(tfds_directory, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert sorted(open_source("pets", "train", data_dir=tfds_directory).read_labels()) == [0, 0, 1, 1, 1, 2]


def test_tfds_data_of_another_kind_is_refused(assert_refused, own_tfds):
    directory = own_tfds / "pets" / "1.0.0"
    info, features = directory / "dataset_info.json", directory / "features.json"
    good = info.read_text()
    info.write_text(good.replace('"array_record"', '"tfrecord"'))
    assert_refused(
        "data_dir", ["stored as tfrecord", "tfds build pets --file_format=array_record"], "pets", "train", own_tfds
    )
    info.write_text("{")
    assert_refused("data_dir", "cannot be read as a TFDS data set", "pets", "train", own_tfds)
    info.write_text(good)
    features.write_text(features.read_text().replace('"label"', '"kind"'))
    assert_refused("name", "has the features file_name, image, kind, and needs", "pets", "train", own_tfds)


def test_tfds_data_that_is_incomplete_or_broken_is_refused(assert_refused, own_tfds):
    directory = own_tfds / "pets" / "1.0.0"
    (directory / "pets-train.array_record-00001-of-00003").unlink()
    assert_refused("data_dir", ["lacks 1 of the 3 files", "-00001-of-00003"], "pets", "train", own_tfds)
    (directory / "pets-test.array_record-00000-of-00003").write_bytes(b"")
    assert_refused("data_dir", "its first record cannot be read", "pets", "test", own_tfds)


def test_tfds_data_without_labels_is_refused(assert_refused, own_tfds, monkeypatch):
    monkeypatch.setattr(tfds_source.TfdsSource, "record", lambda self, index: (b"", -1))
    assert_refused("split", "'test' of pets has no labels (the first is -1)", "pets", "test", own_tfds)
