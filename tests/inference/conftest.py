"""A run that was never trained, and a folder of one's own images."""

import numpy as np
import pytest
from PIL import Image
from saved_runs import save_run

from hamjepa_jax import pretrained


@pytest.fixture(scope="session")
def photo_run(photo_config, tmp_path_factory):
    """The directory of a run on photographs, whose data set is gone."""
    config = photo_config()
    config.data.data_dir = "/nowhere"
    return save_run(config, tmp_path_factory.mktemp("runs") / "photos")


@pytest.fixture(scope="session")
def photo_model(photo_run):
    return pretrained.load(photo_run)


@pytest.fixture
def own_images(tmp_path):
    """Images in folders of any depth: nine, of many sizes and modes; and one that cannot be read."""
    root, rng = tmp_path / "own", np.random.default_rng(0)
    names = ["a.png", "b/c.jpg", "b/d/e.png", *(f"f/{number}.png" for number in range(6))]
    for name in names:
        height, width = rng.integers(12, 40, size=2)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(height, width, 3), dtype=np.uint8)).save(root / name)
    Image.open(root / "a.png").convert("L").save(root / "a.png")
    whole = (root / "b" / "c.jpg").read_bytes()
    (root / "b" / "broken.jpg").write_bytes(whole[: -len(whole) // 8])
    (root / "notes.txt").write_text("no image")
    return root
