"""How well a frozen encoder tells the classes of one's own images apart: neighbours, a linear probe, its confusions."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from hamjepa_jax.atomic_files import replacing, write_json
from hamjepa_jax.errors import UserError
from hamjepa_jax.evaluation.knn import knn_accuracy
from hamjepa_jax.evaluation.probe import learning_rate_sweep
from hamjepa_jax.inference.tables import Embeddings

KS = (1, 5, 10, 20, 50)
# More classes have no room for their names and numbers.
NAMED_CLASSES = 30


def probe_images(
    train: Embeddings, test: Embeddings, *, learning_rates: tuple[float, ...], seed: int
) -> dict[str, Any]:
    """Classifies test images by their neighbours among the training images, and by a linear probe.

    The learning rate of the probe is chosen by a tenth of the training images.

    Args:
        train: labelled embeddings.
        test: labelled embeddings of the same classes.
        learning_rates: from which that of the probe is chosen.
        seed: seed of the probe.

    Returns:
        {"class_names", "num_train", "num_test", "knn": {"k", "top1"}, "linear_probe": {"top1", "top5",
        "learning_rate"}, "confusion"}, the last with a row for each true and a column for each predicted class.

    Raises:
        UserError: if there are classes in one of the two only, or only one class.
    """
    class_names = sorted(set(train.classes))
    alone = sorted(set(train.classes) ^ set(test.classes))
    if alone:
        raise UserError(
            f"--test: both must have the same classes (folders); only in one of them: {', '.join(alone[:5])}"
        )
    if len(class_names) < 2:
        raise UserError(f"--train: has one class, {class_names[0]!r}; a probe needs two or more folders of images")
    number = {name: label for label, name in enumerate(class_names)}
    train_y, test_y = (np.array([number[name] for name in part.classes], np.int32) for part in (train, test))
    arrays = train.features, train_y, test.features, test_y
    knn = knn_accuracy(*arrays, ks=KS, num_classes=len(class_names))
    sweep = learning_rate_sweep(*arrays, num_classes=len(class_names), learning_rates=learning_rates, seed=seed)
    best = int(np.argmax(sweep.validation_top1))
    confusion = np.zeros((len(class_names),) * 2, np.int64)
    np.add.at(confusion, (test_y, sweep.predicted[best]), 1)
    return {
        "class_names": class_names,
        "num_train": len(train_y),
        "num_test": len(test_y),
        "coordinates": train.about["coordinates"],
        "knn": {"k": list(knn["k"]), "top1": [float(top1) for top1 in knn["top1"]]},
        "linear_probe": {
            "top1": float(sweep.test.top1[best].mean()),
            "top5": float(sweep.test.top5[best].mean()),
            "learning_rate": learning_rates[best],
        },
        "confusion": confusion.tolist(),
        "unreadable": {"train": train.about["unreadable"], "test": test.about["unreadable"]},
    }


def write(found: dict[str, Any], directory: Path, console: Console) -> None:
    """Writes probe.json and confusion.png, and prints the accuracies.

    Args:
        found: what `probe_images` returned.
        directory: where the files go.
        console: where the accuracies are shown.

    Raises:
        StorageError: if they cannot be written.
    """
    write_json(directory / "probe.json", found)
    _draw_confusion(found, directory / "confusion.png")
    classes = (
        f"{found['num_train']:,} training and {found['num_test']:,} test images of {len(found['class_names'])} classes"
    )
    console.print(f"{classes}, {found['coordinates']}: test accuracy")
    for k, top1 in zip(found["knn"]["k"], found["knn"]["top1"], strict=True):
        console.print(f"kNN@{k:<12} {100 * top1:5.1f} %")
    probe = found["linear_probe"]
    console.print(f"linear probe     {100 * probe['top1']:5.1f} %, top 5 {100 * probe['top5']:.1f} %")
    console.print(f"written: {directory}/probe.json and confusion.png")


def _draw_confusion(found: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from sklearn.metrics import ConfusionMatrixDisplay

    counts, names = np.array(found["confusion"]), found["class_names"]
    few = len(names) <= NAMED_CLASSES
    side = 2.5 + (0.45 * len(names) if few else 8)
    figure, axes = pyplot.subplots(figsize=(side + 1, side), layout="constrained")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    display = ConfusionMatrixDisplay(shares, display_labels=names if few else None)
    display.plot(ax=axes, include_values=few, values_format=".2f", xticks_rotation="vertical", cmap="Blues")
    if not few:
        axes.set(xticks=[], yticks=[])
    axes.set_title(f"linear probe: {100 * found['linear_probe']['top1']:.1f} % right\nshare of each true class")
    with replacing(path) as replacement:
        figure.savefig(replacement, format="png", dpi=120)
    pyplot.close(figure)
