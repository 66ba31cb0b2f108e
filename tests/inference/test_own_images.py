import json
import zipfile

import numpy as np
import pytest
from absl import flags
from PIL import Image
from rich.console import Console
from saved_runs import save_run

from hamjepa_jax import pretrained
from hamjepa_jax.data.own_images import open_images
from hamjepa_jax.data.tfds_source import INFO_FILE
from hamjepa_jax.errors import UserError
from hamjepa_jax.inference import command_line, neighbours, tables
from hamjepa_jax.inference.embed import embed
from hamjepa_jax.inference.tables import Embeddings


@pytest.fixture
def use(photo_run, tmp_path, monkeypatch):
    """A function from a mode and flags to what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(mode, *arguments, workdir=photo_run):
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["program", *arguments])
        console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
        try:
            command_line.run(mode, workdir and str(workdir), console)
        finally:
            for name in flags.FLAGS.flags_by_module_dict()[command_line.__name__]:
                name.unparse()
        return console.export_text()

    return run


@pytest.fixture
def other_weights(photo_config, tmp_path):
    """The directory of a run of the same config at the same step, but with other weights."""
    config = photo_config()
    config.data.data_dir = "/nowhere"
    return save_run(config, tmp_path / "other_weights", seed=4)


def embedded(model, images, kept, **settings):
    chosen = {"coordinates": "qp", "batch_size": 4, "num_workers": 0} | settings
    return embed(model, open_images(str(images)), images=str(images), kept=kept, console=Console(quiet=True), **chosen)


def zipped(root, path):
    with zipfile.ZipFile(path, "w") as file:
        for image in root.rglob("*"):
            file.write(image, image.relative_to(root))
    return path


def test_every_image_of_a_folder_is_embedded_under_its_path(photo_model, own_images, tmp_path):
    found = embedded(photo_model, own_images, tmp_path / "kept")
    assert found.names == ["a.png", "b/c.jpg", "b/d/e.png", *(f"f/{number}.png" for number in range(6))]
    pictures = [Image.open(own_images / name) for name in found.names]
    np.testing.assert_allclose(found.features, photo_model.embed(pictures, batch_size=4), rtol=1e-4, atol=1e-5)
    ((name, reason),) = found.about["unreadable"]
    assert name == "b/broken.jpg"
    assert "truncated" in reason
    # What is done lies in files, however many images there are.
    assert isinstance(found.features, np.memmap)


def test_a_zip_file_is_read_like_a_folder(photo_model, own_images, tmp_path):
    plain = embedded(photo_model, own_images, tmp_path / "kept")
    packed = embedded(photo_model, zipped(own_images, tmp_path / "own.zip"), tmp_path / "kept_too", num_workers=1)
    assert packed.names == plain.names
    np.testing.assert_array_equal(packed.features, plain.features)


@pytest.mark.parametrize("stops_at", [0, 1, 2])
def test_what_was_interrupted_goes_on_where_it_was(photo_model, own_images, tmp_path, monkeypatch, stops_at):
    whole = embedded(photo_model, own_images, tmp_path / "whole")
    encode, calls = photo_model.encode, []

    def counted(views, batch_size):
        calls.append(len(views))
        if len(calls) == stops_at + 1:
            raise KeyboardInterrupt
        return encode(views, batch_size)

    monkeypatch.setattr(photo_model, "encode", counted)
    with pytest.raises(KeyboardInterrupt):
        embedded(photo_model, own_images, tmp_path / "kept")
    calls[:] = [0] * 10
    resumed = embedded(photo_model, own_images, tmp_path / "kept")
    # One block is in flight while the one before is written.
    assert len(calls) - 10 == 3 - max(stops_at - 1, 0)
    np.testing.assert_array_equal(resumed.features, whole.features)
    assert (resumed.names, resumed.about["unreadable"]) == (whole.names, whole.about["unreadable"])


def test_what_others_did_is_done_again(photo_model, own_images, other_weights, tmp_path):
    kept = tmp_path / "kept"
    first = embedded(photo_model, own_images, kept)
    p = embedded(photo_model, own_images, kept, coordinates="p")
    np.testing.assert_array_equal(p.features, first.features[:, photo_model.state_dim // 2 :])
    # Of the same config, at the same step.
    other = embedded(pretrained.load(other_weights), own_images, kept, coordinates="p")
    assert np.abs(other.features - p.features).min() > 0
    embedded(photo_model, own_images, kept)
    (own_images / "a.png").rename(own_images / "z.png")
    renamed = embedded(photo_model, own_images, kept)
    np.testing.assert_array_equal(renamed.features[-1], first.features[0])
    assert renamed.names == [*first.names[1:], "z.png"]


def test_a_folder_of_which_nothing_can_be_read_is_refused(photo_model, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="none of 1 images can be read; the first: not an image of a known format"):
        embedded(photo_model, tmp_path / "own", tmp_path / "kept")


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_files_come_back_as_they_were(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", 3)
    rng = np.random.default_rng(0)
    written = Embeddings(
        rng.normal(size=(8, 5)).astype("f4"),
        [f"ü/{i}.png" for i in range(8)],
        list("aabbccdd"),
        {"coordinates": "q", "unreadable": [["x", "broken"]]},
    )
    tables.write(tmp_path / f"file{suffix}", written)
    found = tables.read(tmp_path / f"file{suffix}")
    np.testing.assert_array_equal(found.features, written.features)
    assert found.features.dtype == np.float32
    assert found[1:] == written[1:]


def test_a_column_for_data_frames(tmp_path):
    from pyarrow import parquet

    tables.write(tmp_path / "f.parquet", Embeddings(np.ones((2, 3), "f4"), ["a", "b"], ["", ""], {}))
    table = parquet.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["name", "class", "features"]
    assert table["features"].to_pylist() == [[1.0] * 3] * 2


def test_embed_writes_a_file_and_lists_what_it_left_out(use, own_images, tmp_path):
    said = use("embed", f"--images={own_images}", "--output=out/f.npz", "--batch_size=4", "--num_workers=0")
    found = tables.read(tmp_path / "out" / "f.npz")
    assert found.features.shape[0] == 9
    assert found.about["coordinates"] == "qp"
    assert "left out: b/broken.jpg: image file is truncated" in said
    assert "written: out/f.npz: 9 × 64 float32, qp" in said
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"f.npz"}
    before = (tmp_path / "out" / "f.npz").read_bytes()
    with pytest.raises(UserError, match=r"--output: out/f\.npz exists; take another, or replace it with --overwrite"):
        use("embed", f"--images={own_images}", "--output=out/f.npz", "--coordinates=q")
    assert (tmp_path / "out" / "f.npz").read_bytes() == before
    use("embed", f"--images={own_images}", "--output=out/f.npz", "--coordinates=q", "--overwrite", "--num_workers=0")
    assert tables.read(tmp_path / "out" / "f.npz").features.shape == (9, 32)


def test_the_nearest_neighbour_of_an_image_is_itself(use, own_images, tmp_path):
    use("embed", f"--images={own_images}", "--output=f.parquet", "--num_workers=0")
    said = use("neighbours", "--features=f.parquet", f"--query={own_images}/f/3.png", "--k=4")
    assert said.splitlines()[0] == "  1  f/3.png"
    assert len(said.splitlines()) == 5
    assert Image.open(tmp_path / "neighbours_of_3.png").size[0] > 1000


def test_a_large_photograph_is_read_like_those_it_is_compared_with(use, own_images, monkeypatch):
    """A JPEG that is decoded at a fraction of its size differs from the whole one."""
    noise = np.random.default_rng(1).integers(256, size=(140, 140, 3), dtype=np.uint8)
    Image.fromarray(noise).save(own_images / "large.jpg")
    use("embed", f"--images={own_images}", "--output=f.npz", "--num_workers=0")
    found, search = [], neighbours.nearest_neighbours
    monkeypatch.setattr(neighbours, "nearest_neighbours", lambda *a, **k: found.append(search(*a, **k)) or found[0])
    use("neighbours", "--features=f.npz", f"--query={own_images}/large.jpg")
    assert found[0].similarities[0, 0] == pytest.approx(1, abs=1e-5)


def test_a_probe_tells_colours_apart(use, image_folder, tmp_path):
    said = use("probe", f"--train={image_folder}/train", f"--test={image_folder}/val", "--output=p", "--num_workers=0")
    found = json.loads((tmp_path / "p" / "probe.json").read_text())
    assert found["class_names"] == ["blue", "red"]
    assert (found["num_train"], found["num_test"]) == (96, 24)
    assert found["linear_probe"]["top1"] == 1.0
    assert found["confusion"] == [[12, 0], [0, 12]]
    assert found["knn"]["k"] == [1, 5, 10, 20, 50]
    assert "linear probe     100.0 %" in said
    assert {file.name for file in (tmp_path / "p").iterdir()} == {"probe.json", "confusion.png"}


def test_a_confusion_has_a_row_for_each_true_class(use, image_folder, tmp_path):
    """Where red test images lie in the folder of blue ones, the row of blue is wrong."""
    for name in ("blue", "red"):
        (tmp_path / "test" / name).mkdir(parents=True)
        for number in range(3):
            file = tmp_path / "test" / name / f"{number}.jpg"
            file.write_bytes((image_folder / "val" / "red" / f"{number}.jpg").read_bytes())
    use("probe", f"--train={image_folder}/train", "--test=test", "--output=p", "--num_workers=0")
    assert json.loads((tmp_path / "p" / "probe.json").read_text())["confusion"] == [[0, 3], [0, 3]]


MISTAKES = {
    "no workdir": ("embed", [], {"workdir": None}, "--workdir: missing; --mode=embed uses the model of a run"),
    "no run": ("embed", ["--images={own}", "--output=f.npz"], {"workdir": "."}, "no run here"),
    "no images": ("embed", ["--output=f.npz"], {}, "--images: missing; give a folder of images, a zip file of one"),
    "no output": ("embed", ["--images={own}"], {}, "--output: missing; give such as features.npz"),
    "another kind of file": ("embed", ["--output=f.csv"], {}, "--output=f.csv: must end in .npz or .parquet"),
    "a folder that is not there": (
        "embed",
        ["--images=nowhere", "--output=f.npz"],
        {},
        "--images=nowhere: there is no such file or folder; give a folder of images, a zip file of one, or a TFDS data",
    ),
    "an empty folder": (
        "embed",
        ["--images=empty", "--output=f.npz"],
        {},
        "--images=empty: holds no image, a file that",
    ),
    "no zip file": ("embed", ["--images=broken.zip", "--output=f.npz"], {}, "broken.zip is no complete zip file"),
    "an unknown data set": ("embed", ["--images=birds:test", "--output=f.npz"], {}, "the TFDS data set 'birds'"),
    "coordinates of no state": (
        "embed",
        ["--images={own}", "--output=f.npz", "--coordinates=whole"],
        {},
        "--coordinates=whole: this model has q, p, qp",
    ),
    "no features": ("neighbours", ["--query=a.png"], {}, "--features: missing; give a file of --mode=embed"),
    "features that are not there": ("neighbours", ["--query=a.png", "--features=f.npz"], {}, "there is no such file"),
    "features of another kind": (
        "neighbours",
        ["--query=a.png", "--features=broken.npz"],
        {},
        "--features=broken.npz: is no file of embeddings",
    ),
    "no query": ("neighbours", ["--features=f.npz"], {}, "--query: missing; give an image file"),
    "images in no class": (
        "probe",
        ["--train={own}", "--test={own}"],
        {},
        "a.png lie in no folder, which would be their class",
    ),
    "other classes": ("probe", ["--train=one", "--test=two"], {}, "only in one of them: cat, dog"),
    "one class": ("probe", ["--train=one", "--test=one"], {}, "--train: has one class, 'cat'; a probe needs two"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_touches_nothing(use, own_images, tmp_path, monkeypatch, mistake):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04")
    for folder, name in (("one", "cat"), ("two", "dog")):
        (tmp_path / folder / name).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(tmp_path / folder / name / "1.png")
    before = {path for path in tmp_path.rglob("*") if "probe" not in str(path)}
    mode, arguments, settings, message = MISTAKES[mistake]
    with pytest.raises(UserError) as caught:
        use(mode, *(argument.format(own=own_images) for argument in arguments), "--num_workers=0", **settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not set(tmp_path.rglob("*.npz")) - before


def test_a_directory_of_data_sets_of_tfds_asks_for_one_and_its_split(use, tmp_path):
    for name in ("birds", "pets"):
        (tmp_path / "tfds" / name / "1.0.0").mkdir(parents=True)
        (tmp_path / "tfds" / name / "1.0.0" / INFO_FILE).touch()
    with pytest.raises(UserError, match=r"^--images=tfds: holds TFDS data sets; name one and its split, such as tfds/"):
        use("embed", "--images=tfds", "--output=f.npz")
    with pytest.raises(UserError, match=r"^--images=tfds/pets: holds .*, such as tfds/pets/1\.0\.0:test$"):
        use("embed", "--images=tfds/pets", "--output=f.npz")
    with pytest.raises(UserError, match=r"^--images=tfds: holds the TFDS data sets tfds/birds/1\.0\.0, tfds/pets/1"):
        use("embed", "--images=tfds:test", "--output=f.npz")


def test_neighbours_in_embeddings_of_other_weights_are_refused(use, own_images, other_weights, tmp_path):
    use("embed", f"--images={own_images}", "--output=f.npz", "--num_workers=0")
    other, name = other_weights, "tiny_imagenet100 hamjepa, seed 42, step 5"
    with pytest.raises(UserError, match=f"f.npz: was made by other weights, {name}; --workdir={other} is {name}; "):
        use("neighbours", "--features=f.npz", f"--query={own_images}/a.png", workdir=other)
    found = tables.read(tmp_path / "f.npz")
    unknown = {key: value for key, value in found.about.items() if key != "weights"}
    tables.write(tmp_path / "old.npz", found._replace(about=unknown))
    with pytest.raises(UserError, match=r"--features=old\.npz: was made by other weights"):
        use("neighbours", "--features=old.npz", f"--query={own_images}/a.png")
    (own_images / "f" / "3.png").unlink()
    with pytest.raises(UserError, match=r"--features: f/3\.png is no longer in .*; embed it again"):
        use("neighbours", "--features=f.npz", f"--query={own_images}/f/2.png")
    with pytest.raises(UserError, match=r"--query=.*broken\.jpg: cannot be read \(image file is truncated"):
        use("neighbours", "--features=f.npz", f"--query={own_images}/b/broken.jpg")
    with pytest.raises(UserError, match=r"--query=gone\.jpg: cannot be read \(No such file"):
        use("neighbours", "--features=f.npz", "--query=gone.jpg")
