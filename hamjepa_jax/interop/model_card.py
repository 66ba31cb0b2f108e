"""The card of an exported model: what it is, how to use it, what it was trained on, what it scored, its licence."""

from pathlib import Path
from typing import Any

from hamjepa_jax.atomic_files import read_json
from hamjepa_jax.pretrained import Pretrained
from hamjepa_jax.workdir import Workdir

NEIGHBOURS = 20
HOMEPAGES = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "imagenet2012": "https://www.image-net.org",
}


def card(model: Pretrained, workdir: Path, about: dict[str, Any]) -> str:
    """The card in Markdown, with the metadata that model hubs read.

    Args:
        model: the model.
        workdir: the directory of its run, for its results.
        about: see `export.description`; and "imported", what imported.json of the run holds, or None.

    Returns:
        The text.
    """
    config, imported = about["config"], about["imported"]
    metrics = read_json(Workdir(workdir).evaluation / "metrics.json")
    sections = [
        _metadata(config, "apache-2.0" if imported is None else "other"),
        f"# {model.name}",
        _introduction(about),
        "## Use",
        _use(about),
        "## Data",
        _data(config, imported),
        "## Protocol",
        _protocol(config, model.step),
        "## Results",
        # Of another step they would be results of another model.
        _results(metrics if metrics and metrics["step"] == model.step else None),
        "## Licence",
        _licence(imported),
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(config: dict[str, Any], licence: str) -> str:
    lines = ["---", f"license: {licence}", "library_name: hamjepa_jax", "pipeline_tag: image-feature-extraction"]
    lines += ["tags:", "- self-supervised-learning", "- jepa", f"- {config['variant']}"]
    return "\n".join([*lines, "datasets:", f"- {config['data']['name']}", "---"])


def _introduction(about: dict[str, Any]) -> str:
    kind = "a state z = [q ; p] in phase space" if about["is_state"] else "a vector"
    return (
        f"An image encoder that was trained without labels. It maps an image of {about['image_size']} × "
        f"{about['image_size']} pixels to {kind} of {about['state_dim']:,} numbers."
    )


def _use(about: dict[str, Any]) -> str:
    text = "With jax alone, on CPU, CUDA or TPU: `python run_stablehlo.py IMAGE ...`"
    if about["encoder"]:
        text += "\n\nIn PyTorch:\n\n```python\n"
        text += "import json\nimport torch\nfrom safetensors.torch import load_file\n"
        text += "from torch_encoder import Encoder, parts\n\n"
        text += 'encoder = Encoder(**json.load(open("model.json"))["encoder"]).eval()\n'
        text += 'encoder.load_state_dict(parts(load_file("pytorch_model.safetensors"))["encoder"])\n'
        size, channels = about["image_size"], len(about["encoder"]["mean"])
        text += f"z = encoder(torch.zeros(1, {size}, {size}, {channels}, dtype=torch.uint8))\n```"
    return text + (
        f"\n\nImages are resized to {about['resize']} pixels along the shorter side (bilinear, antialiased) and cut to "
        f"the {about['image_size']} × {about['image_size']} pixels in their centre; the encoder normalises them itself."
    )


def _data(config: dict[str, Any], imported: dict[str, Any] | None) -> str:
    data = config["data"]
    home = HOMEPAGES.get(data["name"])
    name = f"[{data['name']}]({home})" if home else data["name"]
    text = f"{name}, split `{data['train_split']}`; no label was used in training."
    if imported is not None:
        text += f" Training began with the weights of `{imported['file']}` (SHA-256 {imported['sha256']}); what they "
        text += "were trained on, those say who published them."
    return text


def _licence(imported: dict[str, Any] | None) -> str:
    if imported is None:
        text = "The files are under Apache-2.0, as the program that made them."
    else:
        text = f"The weights are, or come from, those of `{imported['file']}`: **its licence holds for them.** The "
        text += "programs beside them are under Apache-2.0."
    return f"{text} What the data set's terms ask of models that were trained on it holds besides."


def _protocol(config: dict[str, Any], step: int) -> str:
    model, optimizer = config["model"], config["optimizer"]
    rows = {
        "variant": config["variant"],
        "encoder": " ".join(str(model[key]) for key in ("name", "block", "widths", "depths") if key in model),
        "predictor": config["predictor"]["name"],
        "batch": f"{config['data']['batch_size']} images of {config['data']['num_global_views']} views",
        "steps": f"{step:,} of {config['train']['epochs']} epochs",
        "learning rate": optimizer["learning_rate"],
        "weight decay": optimizer["weight_decay"],
        "compute type": model["dtype"],
        "seed": config["train"]["seed"],
    }
    lines = ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join([*lines, "", "Every field of the config is in `model.json`."])


def _results(metrics: dict[str, Any] | None) -> str:
    if metrics is None:
        return "It has not been evaluated at this step."
    images = f"{metrics['num_train']:,} training and {metrics['num_test']:,} test images"
    lines = [
        f"Frozen encoder, {images}, one seed; accuracy in %.",
        "",
        f"| features | kNN@{NEIGHBOURS} | linear probe |",
        "| --- | ---: | ---: |",
    ]
    for name, scores in {**metrics["features"], **metrics["baselines"]}.items():
        knn = scores["knn"]
        nearest = min(range(len(knn["k"])), key=lambda i: abs(knn["k"][i] - NEIGHBOURS))
        lines.append(f"| {name} | {100 * knn['top1'][nearest]:.1f} | {100 * scores['linear_probe']['top1']:.1f} |")
    return "\n".join(lines)
