import io
import json
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from hamjepa_jax.data import conversion, prepare
from hamjepa_jax.data.images import decode
from hamjepa_jax.data.sources import open_source

CLASSES = ("bird", "cat", "dog")


def noise(height, width, seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


def encode(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write(root, path, content):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(content)


@pytest.fixture
def folder(tmp_path):
    """Eight small JPEG files a class for training and two for testing."""
    for label, name in enumerate(CLASSES):
        for number in range(8):
            write(tmp_path / "images", f"train/{name}/{number}.jpg", encode(noise(6, 5, 10 * label + number)))
        for number in range(2):
            write(tmp_path / "images", f"test/{name}/{number}.jpg", encode(noise(6, 5, 100 + 10 * label + number)))
    return tmp_path / "images"


@pytest.fixture
def convert(folder, tmp_path, capsys):
    """A function that runs the command and returns its exit code, its output and its errors."""

    def run(*options, source=folder, output=None):
        arguments = [f"--source={source}", f"--output={output or tmp_path / 'data'}", "--name=pets"]
        code = prepare.main([*arguments, "--images_per_shard=5", *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def examples(data_dir, split, name="pets"):
    """The examples as any user of TFDS reads them: file name → image and label."""
    data = tfds.data_source(name, split=split, data_dir=data_dir)
    return {example["file_name"].decode(): example for example in data}


def shards(data_dir):
    return {file.name: file.read_bytes() for file in data_dir.rglob("pets-*")}


def test_tfds_reads_back_every_image_with_its_label_and_name(convert, folder, tmp_path):
    code, out, err = convert()
    assert (code, err) == (0, "")
    for split, count in (("train", 24), ("test", 6)):
        found = examples(tmp_path / "data", split)
        assert len(found) == count
        assert set(found) == {path.relative_to(folder).as_posix() for path in (folder / split).rglob("*.jpg")}
        for name, example in found.items():
            assert CLASSES[example["label"]] == name.split("/")[1]
            np.testing.assert_array_equal(example["image"], decode((folder / name).read_bytes()))
    info = tfds.builder("pets", data_dir=tmp_path / "data").info
    assert info.features["label"].names == list(CLASSES)
    assert info.splits["train"].shard_lengths == [5, 5, 5, 5, 4]
    assert f"{tmp_path}/data/pets/1.0.0: train 24, test 6 images of 3 classes; 0 left out" in out
    assert f"--config.data.name=pets --config.data.data_dir={tmp_path}/data" in out


def test_images_are_shrunk_to_the_shorter_side(convert, folder, tmp_path):
    write(folder, "train/cat/wide.png", encode(noise(20, 41, 0), "PNG"))
    convert("--shorter_side=10")
    found = examples(tmp_path / "data", "train")
    assert found["train/cat/wide.png"]["image"].shape == (10, 20, 3)
    assert found["train/cat/0.jpg"]["image"].shape == (6, 5, 3)


def test_shards_are_shuffled_over_the_split_and_always_the_same(convert, tmp_path):
    for directory, workers in (("one", 1), ("two", 4)):
        assert convert(f"--workers={workers}", output=tmp_path / directory)[0] == 0
    assert shards(tmp_path / "one") == shards(tmp_path / "two")
    labels = [example["label"] for example in tfds.data_source("pets", split="train", data_dir=tmp_path / "one")]
    assert sorted(labels) != labels
    assert all(len(set(labels[start : start + 5])) > 1 for start in range(0, 20, 5))
    assert len(shards(tmp_path / "one")) == 5 + 2


def test_records_can_be_read_one_by_one_and_hold_their_features_in_order(convert, tmp_path):
    from array_record.python import array_record_module

    convert()
    for file in (tmp_path / "data" / "pets" / "1.0.0").glob("pets-*"):
        reader = array_record_module.ArrayRecordReader(str(file))
        assert "group_size:1," in reader.writer_options_string()
        for record in reader.read_all():
            places = [record.index(name) for name in (b"file_name", b"image", b"label")]
            assert places == sorted(places)


@pytest.mark.parametrize("below", ["", "pets-v2/"])
def test_a_zip_file_gives_the_same_data_as_its_folder(below, convert, folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in folder.rglob("*"):
            archive.write(path, below + path.relative_to(folder).as_posix())
    assert convert(output=tmp_path / "from_folder")[0] == 0
    assert convert(source=tmp_path / "images.zip", output=tmp_path / "from_zip")[0] == 0
    assert shards(tmp_path / "from_folder") == shards(tmp_path / "from_zip")


def test_tfds_data_can_be_converted_again(convert, tmp_path):
    convert()
    assert convert(source=tmp_path / "data", output=tmp_path / "again")[0] == 0
    first, again = examples(tmp_path / "data", "train"), examples(tmp_path / "again", "train")
    pictures = [
        {example["image"].tobytes(): example["label"] for example in found.values()} for found in (first, again)
    ]
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) == 24


def test_only_the_classes_of_a_list_and_the_splits_asked_for_are_converted(convert, tmp_path):
    (tmp_path / "list.txt").write_text("dog\nbird\n")
    code, out, _ = convert(f"--class_list={tmp_path}/list.txt", "--split=train")
    assert code == 0
    assert "train 16 images of 2 classes" in out
    info = tfds.builder("pets", data_dir=tmp_path / "data").info
    assert info.features["label"].names == ["dog", "bird"]
    assert list(info.splits) == ["train"]
    for name, example in examples(tmp_path / "data", "train").items():
        assert name.split("/")[1] == ["dog", "bird"][example["label"]]


@pytest.mark.parametrize("images_per_shard", [1, 4])
def test_unreadable_images_are_left_out_and_listed(images_per_shard, convert, folder, tmp_path):
    write(folder, "train/cat/broken.jpg", encode(noise(64, 64, 0))[:2000])
    write(folder, "test/dog/empty.png", b"")
    options = (f"--images_per_shard={images_per_shard}", "--workers=3")
    code, out, err = convert(*options)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    start = lines.index("unreadable images: 2")
    assert lines[start + 1] == "  test/dog/empty.png: the file is empty"
    assert lines[start + 2].startswith("  train/cat/broken.jpg: ")
    assert "train 24, test 6 images of 3 classes; 2 left out" in out
    assert len(examples(tmp_path / "data", "train")) == 24
    assert len(open_source("pets", "test", data_dir=tmp_path / "data")) == 6
    convert(*options, "--workers=1", output=tmp_path / "again")
    assert shards(tmp_path / "data") == shards(tmp_path / "again")


def interrupt_after(monkeypatch, count):
    """Ctrl-C when this many images were converted; returns the list to which each conversion adds."""
    calls, real = [], conversion.convert

    def counted(encoded, shorter_side):
        calls.append(encoded)
        if len(calls) > count:
            raise KeyboardInterrupt
        return real(encoded, shorter_side)

    monkeypatch.setattr(conversion, "convert", counted)
    return calls


def test_a_conversion_that_was_stopped_goes_on_where_it_was(convert, folder, tmp_path, monkeypatch):
    write(folder, "train/bird/broken.jpg", b"broken")
    assert convert("--workers=1", output=tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patch:
        interrupt_after(patch, 17)
        code, _, err = convert("--workers=1")
    assert code == 130
    (line,) = err.splitlines()
    assert line.startswith(
        "stopped; to go on, give the same command again: python -m hamjepa_jax.data.prepare --source="
    )
    unfinished = tmp_path / "data" / "pets" / "1.0.0.incomplete"
    assert not (tmp_path / "data" / "pets" / "1.0.0").exists()
    finished = sorted(file.name for file in unfinished.glob("*-of-00005"))
    assert finished == [f"pets-train.array_record-0000{shard}-of-00005" for shard in range(3)]
    # One of them is damaged, and has to be written again.
    (unfinished / finished[1]).write_bytes(b"")
    # Another was finished the moment before the state was written.
    state = json.loads((unfinished / "conversion.json").read_text())
    del state["shards"][finished[2]]
    (unfinished / "conversion.json").write_text(json.dumps(state))
    with monkeypatch.context() as patch:
        calls = interrupt_after(patch, 10**9)
        code, out, _ = convert("--workers=1")
    assert code == 0
    assert len(calls) == 25 + 6 - 5
    assert shards(tmp_path / "data") == shards(tmp_path / "whole")
    assert "train/bird/broken.jpg" in out
    assert sorted(path.name for path in (tmp_path / "data" / "pets").iterdir()) == ["1.0.0"]
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("stopped", [False, True])
def test_a_conversion_with_other_settings_or_images_is_refused(stopped, convert, folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        if stopped:
            interrupt_after(patch, 12)
        convert("--workers=1")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, _, err = convert("--shorter_side=4")
    assert code == 2
    assert "other settings: shorter_side (None there, 4 now); give the same, take another --name" in err
    assert len(err.splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert "images of test" in convert("--split=train")[2]
    write(folder, "train/cat/new.jpg", encode(noise(4, 4, 0)))
    assert "images of train (24 " in convert()[2]


def test_a_finished_conversion_is_not_made_again(convert, tmp_path, monkeypatch):
    _, first, _ = convert()
    interrupt_after(monkeypatch, 0)
    code, out, err = convert()
    assert (code, err) == (0, "")
    assert "complete already; nothing was done" in out
    assert first.splitlines()[-2:] == out.splitlines()[-2:]


def test_a_directory_of_something_else_is_left_alone(convert, tmp_path):
    write(tmp_path, "data/pets/1.0.0/precious.txt", b"precious")
    code, _, err = convert()
    assert code == 2
    assert "is not a conversion by this command; take another --name" in err
    assert [path.name for path in (tmp_path / "data").rglob("*.*") if path.is_file()] == ["precious.txt"]
    (tmp_path / "file").write_text("")
    code, _, err = convert(output=tmp_path / "file")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "--output: " in err
    assert "cannot be written" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "required: --source"),
        (["--source=x", "--colour=red"], "unrecognized arguments: --colour=red"),
        (["--source={folder}"], "--output: missing"),
        (["--source={folder}", "--output=x"], "--name: missing"),
        (["--source={folder}", "--output=x", "--name=My-Set"], "--name: must be small letters, digits and _"),
        (["--source={folder}", "--output=x", "--name=digits"], "--name: 'digits' is the data set that comes with"),
        (
            ["--source={folder}", "--output=x", "--name=a", "--shorter_side=0"],
            "--shorter_side: must be at least 1, got 0",
        ),
        (["--source={folder}", "--output=x", "--name=a", "--workers=many"], "--workers: invalid int value: 'many'"),
        (["--source={folder}", "--output=x", "--validate"], "--output: does not go with --validate"),
        (["--source=nowhere", "--validate"], "--source: nowhere does not exist"),
        (["--source={folder}", "--validate", "--split=train,val"], "--split: 'val' is not a split of"),
        (["--source={folder}", "--validate", "--class_list=no.txt"], "--class_list: no.txt does not exist"),
        (["--source={empty}", "--validate"], "--source: "),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2(options, message, folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert prepare.main([option.format(folder=folder, empty=tmp_path / "empty") for option in options]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert message in line.replace("argument ", "")
    assert captured.out == ""
    assert not (tmp_path / "x").exists()


def test_splits_of_different_classes_and_splits_without_images_are_refused(convert, folder):
    write(folder, "test/cow/0.jpg", encode(noise(4, 4, 0)))
    code, _, err = convert()
    assert code == 2
    assert "train 3 and test 4; only in test: cow" in err
    for path in (folder / "test").rglob("*.jpg"):
        path.write_bytes(b"broken")
    (folder / "test" / "cow" / "0.jpg").unlink()
    code, _, err = convert()
    assert code == 2
    assert "no image of test can be read; the first, test/" in err


@pytest.mark.parametrize("kind", ["folder", "tfds"])
def test_validation_reports_sizes_and_means_and_finds_what_is_unreadable(kind, convert, folder, tmp_path, capsys):
    colours = {"train/bird/0.jpg": (255, 0, 0), "train/cat/0.jpg": (0, 51, 0), "train/dog/0.jpg": (0, 0, 102)}
    for path in (folder / "train").rglob("*.jpg"):
        colour = colours.get(path.relative_to(folder).as_posix())
        path.unlink()
        if colour:
            write(folder, path.relative_to(folder).with_suffix(".png"), encode(Image.new("RGB", (3, 2), colour), "PNG"))
    write(folder, "train/bird/wide.png", encode(Image.new("RGB", (9, 2), (0, 0, 0)), "PNG"))
    arguments = ["--validate", f"--source={folder}"]
    if kind == "tfds":
        convert()
        arguments = ["--validate", f"--source={tmp_path / 'data'}", "--name=pets"]
    assert prepare.main(arguments) == 0
    out = capsys.readouterr().out
    assert "train: 4 images, 0 unreadable, 3 classes" in out
    assert "height × width from 2×3 to 2×9 pixels" in out
    # Three pictures of 6 pixels and one of 18.
    assert f"means of red, green, blue, as parts of 255: {6 / 36:.5f}, {0.2 * 6 / 36:.5f}, {0.4 * 6 / 36:.5f}" in out
    assert "test: 6 images, 0 unreadable, 3 classes" in out
    if kind == "folder":
        write(folder, "test/cat/0.jpg", b"")
        before = sorted(tmp_path.rglob("*"))
        assert prepare.main(arguments) == 1
        out = capsys.readouterr().out
        assert "unreadable images: 1\n  test/cat/0.jpg: the file is empty\n" in out
        assert sorted(tmp_path.rglob("*")) == before
        assert prepare.main([*arguments, "--split=train"]) == 0
        assert "test" not in capsys.readouterr().out.replace(str(tmp_path), "")


def test_one_of_several_tfds_data_sets_must_be_named(convert, tmp_path, capsys):
    convert()
    assert convert("--name=others")[0] == 0
    assert prepare.main(["--validate", f"--source={tmp_path / 'data'}"]) == 2
    assert "holds several data sets; give one, such as" in capsys.readouterr().err
    assert prepare.main(["--validate", f"--source={tmp_path / 'data'}", "--name=others", "--split=test"]) == 0


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as caught:
        prepare.main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for part in ("--source=imagenet100 --output=data --name=imagenet100", "--validate", "--shorter_side", "Exit codes"):
        assert part in out
