import pytest
from PIL import Image

from hamjepa_jax import build
from hamjepa_jax.errors import UserError


def build_error(config):
    with pytest.raises(UserError) as error:
        build.experiment(config)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_data_directory_that_does_not_exist(photo_config, tmp_path):
    config = photo_config()
    config.data.data_dir = str(tmp_path / "nowhere")
    assert build_error(config).startswith(f"config.data.data_dir: {tmp_path}/nowhere does not exist; give ")


def test_a_data_set_that_is_not_prepared(photo_config, tmp_path):
    config = photo_config()
    config.data.name, config.data.data_dir = "cifar10", str(tmp_path)
    message = build_error(config)
    assert message.startswith(f"config.data.data_dir: {tmp_path} holds neither an image folder ")
    assert f"`tfds build cifar10 --data_dir={tmp_path} --file_format=array_record`" in message


@pytest.mark.parametrize("key", ["train_split", "test_split"])
def test_a_split_that_does_not_exist(photo_config, key):
    config = photo_config()
    config.data[key] = "validation"
    message = build_error(config)
    assert message.startswith(f"config.data.{key}: 'validation' is not a split of ")
    assert message.endswith("its splits: train, val")


def test_a_class_list_that_names_an_absent_class(photo_config, tmp_path):
    config = photo_config()
    (tmp_path / "classes.txt").write_text("red\ngreen\n")
    config.data.class_list = str(tmp_path / "classes.txt")
    message = build_error(config)
    assert message.startswith("config.data.class_list: 1 of the 2 classes are not among the 2 of the data: green")


def test_a_class_list_chooses_and_orders_the_classes_and_nothing_means_all(photo_config, tmp_path):
    config = photo_config()
    (tmp_path / "classes.txt").write_text("red\n")
    config.data.class_list = str(tmp_path / "classes.txt")
    experiment = build.experiment(config)
    assert experiment.train_source.class_names == ("red",)
    assert (len(experiment.train_source), len(experiment.test_source)) == (48, 12)
    config.data.class_list = ""
    assert build.experiment(config).train_source.class_names == ("blue", "red")


def test_a_folder_without_classes(photo_config, tmp_path):
    config = photo_config()
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / split / "1.png")
    config.data.data_dir = str(tmp_path)
    assert "holds no image in train; expected DIR/SPLIT/CLASS/IMAGE" in build_error(config)


def test_splits_with_different_classes(photo_config, image_folder, tmp_path):
    config = photo_config()
    (tmp_path / "train").symlink_to(image_folder / "train")
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "red").symlink_to(image_folder / "val" / "red")
    config.data.data_dir = str(tmp_path)
    message = build_error(config)
    assert message.startswith("config.data.data_dir: the splits must have the same classes")
    assert "only in train: blue" in message


MISTAKES = [
    ("data.mean", (0.5,), "must be three numbers, for images in colour, got (0.5,)"),
    ("data.std", (0.5,), "must be 3 numbers, one for each channel"),
    ("data.augmentation.crop_scale", (0.5, 1.5), "must be at most 1"),
    ("data.augmentation.crop_ratio", (4 / 3, 3 / 4), "must be two positive numbers, the smaller first"),
    ("data.augmentation.blur_kernel_size", 4, "must be odd and at most 31 for views of 16 pixels, got 4"),
    ("data.augmentation.flip", 1.5, "must be in [0, 1], got 1.5"),
    ("data.augmentation.brightness", -0.1, "must not be negative, got -0.1"),
    ("data.augmentation.hue", 0.6, "must be in [0, 0.5], got 0.6"),
]


@pytest.mark.parametrize(("key", "value", "message"), MISTAKES, ids=[mistake[0] for mistake in MISTAKES])
def test_a_mistake_is_answered_with_its_key_and_what_is_allowed(photo_config, key, value, message):
    config = photo_config()
    config.update_from_flattened_dict({key: value})
    error = build_error(config)
    assert error.startswith(f"config.{key}: ")
    assert message in error


def test_views_of_two_sizes_need_tokens_of_one_number(photo_config):
    config = photo_config("hamjepa_multicrop")
    config.model.token_hw = None
    message = build_error(config)
    assert message.startswith("config.model.token_hw: must be given, such as 8, so that views of every size")
    assert message.endswith("they are of 64 at 8 pixels and 256 at 16 pixels")
