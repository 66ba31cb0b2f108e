import io

import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image
from rich.console import Console

from hamjepa_jax import build, build_data, build_views, contact_sheet
from hamjepa_jax.data.views import Appearance, CropBox, CroppedView
from hamjepa_jax.data.warp import WarpedView
from hamjepa_jax.errors import UserError
from hamjepa_jax.workdir import Workdir

QUIET = Console(quiet=True)
PLAIN = Appearance(
    flip=False,
    operations=np.array([2, 0, 3, 1]),
    factors=np.array([1.0, 1.0, 0.0, 1.0]),
    grayscale=False,
    blur_sigma=0.0,
    solarize=False,
)


def draw(config, path, console=QUIET, experiment=None):
    source = (experiment or build.experiment(config)).train_source
    contact_sheet.draw(
        source,
        build_views.view_groups(config.data),
        build_data.loader(config.data, source, seed=1),
        build_data.skipped_records(config.data, console),
        batch_size=8,
        seed=1,
        title="views",
        path=path,
    )


def test_a_view_is_described_in_the_order_of_what_is_done_to_it():
    box = CropBox(3, 5, 20, 16)
    assert contact_sheet.describe(CroppedView(box, PLAIN)) == "crop 20×16 at 3, 5"
    changed = Appearance(True, PLAIN.operations, np.array([0.9, 1.3, -0.05, 1.0]), True, 1.25, True)
    assert contact_sheet.describe(CroppedView(box, changed)) == (
        "crop 20×16 at 3, 5, mirrored\nsaturation 0.90, brightness 1.30\nhue -0.05\ngrey, blur 1.25, solarised"
    )
    warp = WarpedView(angle=-7.2, scale=(0.97, 1.07), shift=(0.02, -0.04), contrast=1.1, noise_key=())
    assert contact_sheet.describe(warp) == "turn -7°, scale 0.97 × 1.07\nshift +0.02, -0.04, contrast 1.10"


@pytest.mark.parametrize("canvas_size", [24, None])
def test_the_sheet_shows_eight_images_and_all_of_their_views(photo_config, tmp_path, monkeypatch, canvas_size):
    shown = []
    show = contact_sheet._show
    monkeypatch.setattr(
        contact_sheet, "_show", lambda axes, image, *a, **k: shown.append(image) or show(axes, image, *a, **k)
    )
    config = photo_config("hamjepa_multicrop")
    config.data.canvas_size = canvas_size
    draw(config, tmp_path / "run" / "views.png")
    assert len(shown) == 8 * (1 + 2 + 6)
    assert [image.shape for image in shown[1:9]] == [(16, 16, 3)] * 2 + [(8, 8, 3)] * 6
    with Image.open(tmp_path / "run" / "views.png") as picture:
        assert picture.width > 9 * 100
    # A run may begin where its views were looked at.
    Workdir(tmp_path / "run").claim({"name": "run"})


def test_boxes_are_drawn_at_the_scale_of_the_original(photo_config, tmp_path, monkeypatch):
    boxes, rectangle = [], pyplot.Rectangle
    monkeypatch.setattr(
        pyplot, "Rectangle", lambda corner, *size, **k: boxes.append(size) or rectangle(corner, *size, **k)
    )
    config = photo_config()
    # The images, of 12 to 39 pixels, are shrunk to canvases of 8.
    config.data.canvas_size = 8
    draw(config, tmp_path / "views.png")
    assert len(boxes) == 8 * 2
    assert 12 < np.max(boxes) < 40


def test_few_views_leave_room_for_two_examples_in_a_row(digits_config, tmp_path):
    config = digits_config()
    draw(config, tmp_path / "views.png")
    with Image.open(tmp_path / "views.png") as picture:
        assert 0.8 < picture.width / picture.height < 1.5


def test_a_sheet_that_cannot_be_written_is_one_line(digits_config, tmp_path):
    config = digits_config()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="--workdir=.*file: cannot be written"):
        draw(config, tmp_path / "file" / "views.png")


def test_what_the_sheet_had_to_skip_is_said(photo_config, tmp_path, monkeypatch):
    config = photo_config()
    experiment = build.experiment(config)
    monkeypatch.setattr(experiment.train_source, "record", with_one_broken(experiment.train_source))
    output = io.StringIO()
    draw(config, tmp_path / "views.png", Console(file=output, width=200), experiment)
    assert "cannot be read (the file is empty)" in output.getvalue()


def with_one_broken(source):
    record, asked = source.record, []

    def broken(index):
        asked.append(index)
        encoded, label = record(index)
        return (b"" if index == asked[0] else encoded), label

    return broken
