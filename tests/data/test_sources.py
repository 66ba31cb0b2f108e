import io
import os
import pickle
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from hamjepa_jax.data import prepare
from hamjepa_jax.data.images import UnreadableImage
from hamjepa_jax.data.sources import ArraySource, SourceError, check_same_classes, digits, open_source


def picture(value):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


# Path → red value of the whole picture; one file of each kind, some of them deeper, and what is to be ignored.
PICTURES = {
    "train/cat/b.png": 10,
    "train/cat/a.PNG": 20,
    "train/cat/deeper/still/c.bmp": 30,
    "train/dog/x.tiff": 40,
    "train/ant/1.gif": 50,
    "train/ant/2.ppm": 60,
    "test/cat/t.png": 70,
    "test/dog/t.png": 80,
    "test/ant/t.png": 90,
}
IGNORED = ("train/cat/notes.txt", "train/cat/.x.png", "train/.git/x.png", "train/x.png", "__MACOSX/train/c/x.png")
SORTED_TRAIN = [50, 60, 20, 10, 30, 40]


def write_folder(root, pictures=None, ignored=IGNORED):
    for path, value in (PICTURES if pictures is None else pictures).items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (value, 0, 0)).save(file)
    for path in ignored:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(picture(255))
    return root


def zip_folder(root, file, below=""):
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, below + path.relative_to(root).as_posix())
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("folder"))


@pytest.fixture(scope="module")
def tfds_directory(folder, tmp_path_factory):
    """A TFDS data directory with the data set `pets`, of the pictures above; four files for train."""
    output = tmp_path_factory.mktemp("tfds")
    arguments = [
        f"--source={folder}",
        f"--output={output}",
        "--name=pets",
        "--images_per_shard=2",
        "--split=train,test",
    ]
    assert prepare.main(arguments) == 0
    return output


def reds(source):
    return [int(source[index]["image"][0, 0, 0]) for index in range(len(source))]


def red_labels(source):
    """Red value → name of the class."""
    return {
        int(e["image"][0, 0, 0]): source.class_names[e["label"]] for e in map(source.__getitem__, range(len(source)))
    }


def test_digits_are_complete_and_split_without_overlap():
    train, test = digits("train"), digits("test")
    assert (len(train), len(test)) == (1347, 450)
    assert train.images.dtype == np.uint8
    assert train.images.shape[1:] == (8, 8, 1)
    assert (train.images.min(), train.images.max()) == (0, 255)
    assert train.class_names == tuple("0123456789")
    assert train.num_classes == 10
    images = np.concatenate([train.images, test.images]).reshape(1797, -1)
    assert len(np.unique(images, axis=0)) == 1797
    np.testing.assert_allclose(np.bincount(test.labels) / 450, np.bincount(train.labels) / 1347, atol=0.002)


def test_the_split_is_always_the_same():
    np.testing.assert_array_equal(digits("test").images, digits("test").images)
    example = digits("test")[7]
    assert example["image"].shape == (8, 8, 1)
    assert example["label"] == digits("test").labels[7]


def test_bad_splits_and_lengths_are_named():
    with pytest.raises(ValueError, match="split: 'validation' is unknown; known splits: train, test"):
        digits("validation")
    with pytest.raises(ValueError, match="2 images but 3 labels"):
        ArraySource(np.zeros((2, 1, 1, 1), np.uint8), np.zeros(3, np.int32), ("a",))
    with pytest.raises(ValueError, match=r"sizes: must be of shape \(2, 2\), got \(2, 1\)"):
        ArraySource(np.zeros((2, 1, 1, 1), np.uint8), np.zeros(2, np.int32), ("a",), np.ones((2, 1), np.int32))


def test_padding_is_not_part_of_an_image_in_memory():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    source = ArraySource(images, np.array([1, 0], np.int32), ("a", "b"), np.array([[3, 8], [8, 5]], np.int32))
    np.testing.assert_array_equal(source[0]["image"], images[0, :3])
    np.testing.assert_array_equal(source.read(1, min_shorter_side=1)["image"], images[1, :, :5])
    assert source.nbytes == 2 * 8 * 8 * 3


@pytest.mark.parametrize("packed", ["folder", "zip", "zip below one folder"])
def test_an_image_folder_is_read_sorted_by_class_and_path(packed, folder, tmp_path):
    if packed != "folder":
        folder = zip_folder(folder, tmp_path / "images.zip", "pets-v2/" if "below" in packed else "")
    source = open_source("anything", "train", data_dir=folder)
    assert source.class_names == ("ant", "cat", "dog")
    assert source.labels.tolist() == [0, 0, 1, 1, 1, 2]
    assert reds(source) == SORTED_TRAIN
    assert [source[index]["label"] for index in range(6)] == source.labels.tolist()
    example = source[0]
    assert (example["image"].shape, example["image"].dtype) == ((3, 4, 3), np.uint8)
    assert [source.name_of(index) for index in (0, 2, 4)] == [
        "train/ant/1.gif",
        "train/cat/a.PNG",
        "train/cat/deeper/still/c.bmp",
    ]
    assert reds(open_source("anything", "test", data_dir=str(folder))) == [90, 70, 80]
    for index in (6, -1):
        with pytest.raises(IndexError):
            source[index]


@pytest.mark.parametrize("packed", ["folder", "zip"])
def test_the_parts_of_kaggles_imagenet100_are_one_split(assert_refused, packed, tmp_path):
    pictures = {
        "train.X1/n2/a.png": 1,
        "train.X2/n1/a.png": 2,
        "train.X2/n2/a.png": 3,
        "val.X/n1/v.png": 4,
        "val.X/n2/v.png": 5,
    }
    root = write_folder(tmp_path / "kaggle", pictures, ignored=("Labels.json",))
    root = root if packed == "folder" else zip_folder(root, tmp_path / "kaggle.zip")
    train, val = (open_source("imagenet100", split, data_dir=root) for split in ("train", "val"))
    assert train.class_names == val.class_names == ("n1", "n2")
    assert red_labels(train) == {1: "n2", 2: "n1", 3: "n2"}
    assert reds(val) == [4, 5]
    assert_refused("split", "its splits: train, val", "imagenet100", "test", root)


def test_a_zip_file_of_a_single_split_is_read(tmp_path):
    archive = zip_folder(write_folder(tmp_path / "images", {"val/n1/v.png": 4}, ignored=()), tmp_path / "val.zip")
    assert reds(open_source("birds", "val", data_dir=archive)) == [4]


@pytest.mark.parametrize("kind", ["folder", "zip", "tfds", "classes of tfds"])
def test_a_source_can_be_pickled_used_by_threads_and_read_in_another_process(kind, folder, tfds_directory, tmp_path):
    archive = zip_folder(folder, tmp_path / "images.zip", "pets-v2/")
    data_dir = {"folder": folder, "zip": archive}.get(kind, tfds_directory)
    (tmp_path / "list.txt").write_text("dog\nant\ncat\n")
    class_list = tmp_path / "list.txt" if kind.startswith("classes") else None
    source = open_source("pets", "train", data_dir=data_dir, class_list=class_list)
    expected = reds(source)
    assert sorted(expected) == sorted(SORTED_TRAIN)
    pickled = pickle.dumps(source)
    assert len(pickled) < 2500
    with ThreadPoolExecutor(8) as executor:
        images = list(executor.map(pickle.loads(pickled).__getitem__, list(range(6)) * 20))
    assert [int(example["image"][0, 0, 0]) for example in images] == expected * 20
    program = (
        "import pickle, sys; source = pickle.load(sys.stdin.buffer);"
        "print([int(source[index]['image'][0, 0, 0]) for index in range(len(source))]);"
        "print([name for name in ('jax', 'tensorflow', 'cv2', 'sklearn') if name in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-c", program], input=pickled, capture_output=True, check=True)
    assert finished.stdout.decode().splitlines() == [str(expected), "[]"]
    assert finished.stderr == b""


def test_a_zip_file_is_opened_anew_after_a_fork(folder, tmp_path):
    source = open_source("pets", "train", data_dir=zip_folder(folder, tmp_path / "images.zip"))
    handle = source._files._open()
    assert source._files._open() is handle
    source._files._process = -1
    assert source._files._open() is not handle


@pytest.mark.parametrize("kind", ["folder", "tfds"])
def test_a_class_list_keeps_its_classes_and_numbers_them_in_its_order(kind, folder, tfds_directory, tmp_path):
    (tmp_path / "list.txt").write_text("# two of three\n\ndog\n  ant  \n")
    data_dir = folder if kind == "folder" else tfds_directory
    source = open_source("pets", "train", data_dir=data_dir, class_list=tmp_path / "list.txt")
    assert source.class_names == ("dog", "ant")
    assert len(source) == len(source.labels) == 3
    assert red_labels(source) == {40: "dog", 50: "ant", 60: "ant"}
    assert [source[index]["label"] for index in range(3)] == source.labels.tolist()
    whole = open_source("pets", "train", data_dir=data_dir)
    by_name = {whole.name_of(index): reds(whole)[index] for index in range(6)}
    assert [by_name[source.name_of(index)] for index in range(3)] == reds(source)


def test_a_class_list_works_for_digits_too(assert_refused, tmp_path):
    (tmp_path / "list.txt").write_text("7\n1\n")
    source = open_source("digits", "test", data_dir=None, class_list=tmp_path / "list.txt")
    whole = digits("test")
    assert source.class_names == ("7", "1")
    np.testing.assert_array_equal(source.images[source.labels == 0], whole.images[whole.labels == 7])
    np.testing.assert_array_equal(source.images[source.labels == 1], whole.images[whole.labels == 1])
    assert_refused("split", "its splits: train, test", "digits", "val", None)


def test_a_broken_record_is_unreadable_and_named(own_tfds, tmp_path):
    root = write_folder(tmp_path / "images", ignored=())
    archive = zip_folder(root, tmp_path / "images.zip")
    content = archive.read_bytes()
    archive.write_bytes(content.replace(picture(20), picture(20)[:-1] + b"?"))
    (root / "train/cat/a.PNG").write_bytes(picture(20)[:40])
    for data_dir in (root, archive):
        source = open_source("pets", "train", data_dir=data_dir)
        assert source.name_of(2) == "train/cat/a.PNG"
        with pytest.raises(UnreadableImage):
            source[2]
        assert int(source[3]["image"][0, 0, 0]) == 10
    source = open_source("pets", "train", data_dir=root)
    (root / "train/cat/b.png").unlink()
    with pytest.raises(UnreadableImage, match="No such file"):
        source[3]
    source = open_source("pets", "train", data_dir=own_tfds)
    file = own_tfds / "pets/1.0.0/pets-train.array_record-00002-of-00003"
    file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(UnreadableImage):
        source[5]
    with pytest.raises(SourceError, match="cannot be read near record"):
        source.read_labels()


def test_a_data_dir_that_is_missing_or_no_data_is_refused(assert_refused, tmp_path, tfds_directory, monkeypatch):
    assert_refused("data_dir", ["nowhere does not exist", "give a folder"], "pets", "train", tmp_path / "nowhere")
    assert_refused("data_dir", "neither a folder nor a zip file", "pets", "train", __file__)
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    assert_refused(
        "data_dir", ["broken.zip is no complete zip file", "fetch it again"], "pets", "train", tmp_path / "broken.zip"
    )
    what = ["neither an image folder", "'cats'", "there: pets:1.0.0", "`tfds build cats --data_dir="]
    what += ["python -m hamjepa_jax.data.prepare --source=FOLDER --output=", "--name=cats"]
    assert_refused("data_dir", what, "cats", "train", tfds_directory)
    (tmp_path / "empty").mkdir()
    assert_refused("data_dir", "TFDS data sets there: none", "pets", "train", tmp_path / "empty")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no"))
    assert_refused("data_dir", ["not given", "the default of TFDS"], "pets", "train", None)


def test_a_split_without_images_is_refused(assert_refused, folder, tfds_directory, own_tfds, tmp_path):
    assert_refused("split", "'val' is not a split of", "pets", "val", folder)
    assert_refused("split", "its splits: test, train", "pets", "val", tfds_directory)
    (tmp_path / "images" / "train" / "cat").mkdir(parents=True)
    assert_refused(
        "data_dir", ["holds no image in train", "DIR/SPLIT/CLASS/IMAGE"], "pets", "train", tmp_path / "images"
    )
    info = own_tfds / "pets/1.0.0/dataset_info.json"
    info.write_text(info.read_text().replace('"2"', '"0"'))
    assert_refused("split", "holds no images", "pets", "train", own_tfds)


def test_a_folder_that_must_not_be_read_is_refused(assert_refused, folder, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", forbidden)
    assert_refused("data_dir", "cannot be read (Permission denied); check its permissions", "pets", "train", folder)


def test_a_zip_file_with_a_password_is_refused(assert_refused, folder, tmp_path):
    archive = zip_folder(folder, tmp_path / "images.zip")
    content = bytearray(archive.read_bytes())
    # The flags of the first entry of the directory at the end.
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    assert_refused("data_dir", "asks for a password", "pets", "train", archive)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("\n# nothing\n", "names no class"),
        ("cat\ndog\ncat\n", "more than once: cat"),
        (
            "cat\na\nb\nc\nd\ne\nf\n",
            "6 of the 7 classes are not among the 3 of the data: a, b, c, d, e and 1 more; the data has ant, cat, dog",
        ),
        (b"\xff\xfe", "cannot be read as a text file"),
    ],
)
def test_a_bad_class_list_is_refused(assert_refused, content, message, folder, tmp_path):
    file = tmp_path / "list.txt"
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    assert_refused("class_list", message, "pets", "train", folder, class_list=str(file))


def test_splits_of_different_classes_are_refused(assert_refused, folder, tmp_path):
    train, test = (open_source("pets", split, data_dir=folder) for split in ("train", "test"))
    check_same_classes(train, test)
    other = write_folder(tmp_path, {"test/cat/a.png": 1, "test/cow/a.png": 2, "test/dog/a.png": 3}, ignored=())
    with pytest.raises(SourceError) as caught:
        check_same_classes(train, open_source("pets", "test", data_dir=other))
    assert caught.value.argument == "data_dir"
    assert "train 3 and test 3; only in train: ant; only in test: cow" in str(caught.value)
    (tmp_path / "list.txt").write_text("dog\ncat\nant\n")
    with pytest.raises(SourceError, match="their order differs"):
        check_same_classes(train, open_source("pets", "test", data_dir=folder, class_list=tmp_path / "list.txt"))
