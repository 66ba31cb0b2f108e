"""Images that are named on the command line: a folder or a zip file of any layout, or a split of a TFDS data set."""

import re
from collections import defaultdict
from pathlib import Path

from hamjepa_jax.data.image_folder import EXTENSIONS, FilesSource, cannot_be_read, open_files
from hamjepa_jax.data.sources import EncodedSource, SourceError, some
from hamjepa_jax.data.tfds_source import INFO_FILE, TfdsSource, default_directory, find, prepared_in

# NAME:SPLIT or DIR:SPLIT, the split with or without a slice.
OF_TFDS = re.compile(r"(?P<name>.+?):(?P<split>\w+(?:\[.*\])?)")
WHAT = "a folder of images, a zip file of one, or a TFDS data set as NAME:SPLIT, such as cifar100:test"


def open_images(images: str, *, by_class: bool = False) -> EncodedSource:
    """Opens images.

    Args:
        images: a folder or a zip file with images at any depth; or NAME:SPLIT of a data set in TFDS's data directory
            ($TFDS_DATA_DIR, or ~/tensorflow_datasets), or DIR:SPLIT, the directory of one.
        by_class: whether images belong to the class that the first folder of their path names; else they have none.

    Returns:
        The images; of a folder sorted by path.

    Raises:
        SourceError: if there is nothing, it cannot be read, or it holds no image.
    """
    root = Path(images).expanduser()
    if not root.exists() and (match := OF_TFDS.fullmatch(images)):
        return _tfds(match["name"], match["split"])
    if not root.exists():
        raise SourceError("images", f"{images}: there is no such file or folder; give {WHAT}")
    if root.is_dir() and (there := _tfds_directories(root)):
        raise SourceError("images", f"{images}: holds TFDS data sets; name one and its split, such as {there[0]}:test")
    try:
        files = open_files(root)
        found = [path for path in files.below() if path.lower().endswith(EXTENSIONS)]
    except OSError as error:
        raise cannot_be_read(root, error) from error
    if not found:
        raise SourceError("images", f"{images}: holds no image, a file that ends in {' '.join(EXTENSIONS)}")
    classes = defaultdict(list)
    for path in found:
        classes[path.split("/")[0] if by_class else ""].append(path)
    outside = [path for path in found if "/" not in path]
    if by_class and outside:
        raise SourceError(
            "images", f"{images}: {some(outside)} lie in no folder, which would be their class; expected CLASS/IMAGE"
        )
    return FilesSource(files, classes)


def _tfds_directories(root: Path) -> list[Path]:
    """The data sets that are, or lie in, a directory."""
    return [root] if (root / INFO_FILE).exists() else list(prepared_in(root).values())


def _tfds(name: str, split: str) -> EncodedSource:
    directory = Path(name).expanduser()
    if directory.is_dir():
        there = _tfds_directories(directory)
        if len(there) != 1:
            known = some(sorted(map(str, there))) or "none"
            raise SourceError("images", f"{name}: holds the TFDS data sets {known}; name one of them")
        return TfdsSource(*there, split)
    return TfdsSource(find(name, default_directory()), split)
