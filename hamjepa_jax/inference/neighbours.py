"""The images of an embedded folder that are most like another one, as a sheet of pictures."""

import math
from pathlib import Path

import numpy as np

from hamjepa_jax.atomic_files import replacing
from hamjepa_jax.data.images import UnreadableImage, decode
from hamjepa_jax.data.own_images import open_images
from hamjepa_jax.errors import UserError
from hamjepa_jax.evaluation.knn import nearest_neighbours
from hamjepa_jax.inference.tables import Embeddings
from hamjepa_jax.pretrained import Pretrained

COLUMNS = 6
# Of a name, what fits over a picture.
NAME_LENGTH = 24


def draw_neighbours(model: Pretrained, embeddings: Embeddings, query: Path, *, k: int, path: Path) -> list[str]:
    """Draws an image and its k nearest neighbours by the cosine of their embeddings.

    Args:
        model: the model that embedded them.
        embeddings: the embedded images, which must still be where they were.
        query: an image file.
        k: number of neighbours.
        path: where the PNG goes.

    Returns:
        The names of the neighbours, the nearest first.

    Raises:
        UserError: if the image cannot be read, or an embedded image is gone.
        SourceError: if the embedded images are no longer there.
        StorageError: if the picture cannot be written.
    """
    try:
        encoded = query.read_bytes()
        picture = decode(encoded)
        # As the embedded images were read: what is much larger than the view, at a fraction of its size.
        reduced = decode(encoded, model.config.evaluation.resize)
    except OSError as error:
        raise UserError(f"--query={query}: cannot be read ({error.strerror})") from error
    except UnreadableImage as error:
        raise UserError(f"--query={query}: cannot be read ({error}); give an image file") from error
    features = model.coordinates(model.embed([reduced], batch_size=1))[embeddings.about["coordinates"]]
    found = nearest_neighbours(embeddings.features, features, k=min(k, len(embeddings.features)))
    names = [embeddings.names[int(i)] for i in found.indices[0]]
    source = open_images(embeddings.about["images"])
    places = {name: i for i in range(len(source)) if (name := source.name_of(i)) in set(names)}
    missing = [name for name in names if name not in places]
    if missing:
        raise UserError(f"--features: {missing[0]} is no longer in {embeddings.about['images']}; embed it again")
    pictures = [(picture, query.name)]
    for name, cosine in zip(names, found.similarities[0], strict=True):
        pictures.append((source.read(places[name])["image"], f"{cosine:.3f}\n{name[-NAME_LENGTH:]}"))
    _draw(pictures, path)
    return names


def _draw(pictures: list[tuple[np.ndarray, str]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = math.ceil(len(pictures) / COLUMNS)
    figure, panels = pyplot.subplots(
        rows, COLUMNS, figsize=(2 * COLUMNS, 2.5 * rows), layout="constrained", squeeze=False
    )
    for axes in panels.flat:
        axes.axis("off")
    for axes, (picture, title) in zip(panels.flat, pictures, strict=False):
        axes.imshow(picture)
        axes.set_title(title, fontsize=8)
    panels.flat[0].set_title(f"query\n{pictures[0][1][-NAME_LENGTH:]}", fontsize=8, fontweight="bold")
    with replacing(path) as replacement:
        figure.savefig(replacement, format="png", dpi=120)
    pyplot.close(figure)
