import numpy as np
import pytest

from hamjepa_jax.data import images
from hamjepa_jax.data.images import UnreadableImage
from hamjepa_jax.data.loading import CanvasLoader, CropGroup, CropLoader, EvaluationLoader, LabelledCanvasLoader
from hamjepa_jax.data.sources import ArraySource

GROUPS = (CropGroup(2, 6, (0.4, 1.0), (3 / 4, 4 / 3)), CropGroup(3, 4, (0.05, 0.4), (3 / 4, 4 / 3)))


class WithBrokenRecords(ArraySource):
    """A source, some of whose records cannot be read."""

    def __init__(self, source, broken):
        super().__init__(source.images, source.labels, source.class_names, source.sizes)
        self.broken = broken

    def read(self, index, min_shorter_side=None):
        if index in self.broken:
            raise UnreadableImage("truncated")
        return super().read(index)


@pytest.fixture
def source():
    """Ten images of their own height and width, at most 9×9."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(5, 10, size=(10, 2)).astype(np.int32)
    pixels = rng.integers(256, size=(10, 9, 9, 3), dtype=np.uint8)
    return ArraySource(pixels, np.arange(10, dtype=np.int32) % 3, ("a", "b", "c"), sizes)


def test_whole_images_lie_at_the_top_left_of_their_canvas(source):
    batch, skipped = CanvasLoader(source, canvas_size=9)(0, np.array([7, 2]))
    np.testing.assert_array_equal(batch.example_ids, [7, 2])
    np.testing.assert_array_equal(batch.sizes, source.sizes[[7, 2]])
    for canvas, index in zip(batch.images, (7, 2), strict=True):
        height, width = source.sizes[index]
        np.testing.assert_array_equal(canvas[:height, :width], source[index]["image"])
        assert canvas.sum() == source[index]["image"].sum(dtype=int)
    assert skipped == []


def test_crops_are_cut_out_of_the_boxes_that_they_report(source):
    batch, _ = CropLoader(source, groups=GROUPS, seed=0)(3, np.array([7, 2]))
    assert [crops.shape for crops in batch.crops] == [(2, 2, 6, 6, 3), (2, 3, 4, 4, 3)]
    assert [boxes.shape for boxes in batch.boxes] == [(2, 2, 4), (2, 3, 4)]
    for row, index in enumerate((7, 2)):
        image = source[index]["image"]
        for group, crops, boxes in zip(GROUPS, batch.crops, batch.boxes, strict=True):
            for crop, box in zip(crops[row], boxes[row], strict=True):
                np.testing.assert_array_equal(crop, images.resized_crop(image, tuple(box), group.size))
    np.testing.assert_array_equal(batch.sizes, source.sizes[[7, 2]])


def test_boxes_depend_on_seed_step_example_and_view_and_on_nothing_else(source):
    loader = CropLoader(source, groups=GROUPS, seed=0)
    batch, _ = loader(3, np.array([7, 2]))
    moved, _ = CropLoader(source, groups=GROUPS, seed=0)(3, np.array([1, 2, 7]))
    np.testing.assert_array_equal(moved.boxes[1][2], batch.boxes[1][0])
    assert len(np.unique(batch.boxes[1][0], axis=0)) > 1
    for other in (CropLoader(source, groups=GROUPS, seed=1)(3, np.array([7, 2])), loader(4, np.array([7, 2]))):
        assert not np.array_equal(other[0].boxes[0], batch.boxes[0])


def test_a_file_is_decoded_at_a_size_from_which_no_crop_must_be_enlarged(source, monkeypatch):
    asked, read = [], source.read
    monkeypatch.setattr(source, "read", lambda index, side=None: asked.append(side) or read(index))
    CropLoader(source, groups=(CropGroup(1, 224, (0.4, 1.0), (3 / 4, 4 / 3)),), seed=0)(0, np.array([0]))
    # The smallest crop, the narrowest of the smallest area, of a square of this side still has 224 pixels.
    assert asked[0] * np.sqrt(0.4 * 3 / 4) >= 224 > (asked[0] - 1) * np.sqrt(0.4 * 3 / 4)


def test_an_unreadable_example_is_replaced_by_the_next_that_can_be_read(source):
    broken = WithBrokenRecords(source, {9, 0})
    batch, skipped = CanvasLoader(broken, canvas_size=9)(0, np.array([9, 4]))
    np.testing.assert_array_equal(batch.sizes, source.sizes[[1, 4]])
    np.testing.assert_array_equal(batch.example_ids, [9, 4])
    assert skipped == [("image 9", "truncated"), ("image 0", "truncated")]
    cropped, skipped = CropLoader(broken, groups=GROUPS, seed=0)(0, np.array([9]))
    np.testing.assert_array_equal(cropped.sizes, source.sizes[[1]])
    assert len(skipped) == 2


def test_when_nothing_can_be_read_the_first_record_is_named(source):
    with pytest.raises(UnreadableImage, match=r"no image can be read from image 3 on \(truncated\)"):
        CanvasLoader(WithBrokenRecords(source, set(range(10))), canvas_size=9)(0, np.array([3]))


def test_blocks_for_evaluation_leave_out_what_cannot_be_read_with_its_label(source):
    broken = WithBrokenRecords(source, {4})
    block, skipped = EvaluationLoader(broken, size=4, resize=5)(0, np.arange(3, 6))
    assert block.images.shape == block.pixels.shape == (2, 4, 4, 3)
    np.testing.assert_array_equal(block.labels, source.labels[[3, 5]])
    np.testing.assert_array_equal(block.images[1], images.shorter_side_crop(source[5]["image"], size=4, resize=5))
    assert skipped == [("image 4", "truncated")]
    block, skipped = LabelledCanvasLoader(broken, canvas_size=9)(0, np.arange(3, 6))
    np.testing.assert_array_equal(block.labels, source.labels[[3, 5]])
    np.testing.assert_array_equal(block.sizes, source.sizes[[3, 5]])
    assert skipped == [("image 4", "truncated")]


def test_the_baseline_of_raw_pixels_has_at_most_32_of_them_a_side(source):
    block, _ = EvaluationLoader(source, size=64, resize=64)(0, np.arange(2))
    assert block.images.shape == (2, 64, 64, 3)
    np.testing.assert_array_equal(block.pixels[0], images.resize_to(block.images[0], 32, 32))
