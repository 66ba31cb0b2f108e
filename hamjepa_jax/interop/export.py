"""Takes a trained model out of this package: a folder of its weights, a program of its own, and a card for model hubs.

    python -m hamjepa_jax.interop.export --workdir=runs/mine --output=exported/mine

writes

    model.safetensors          the weights under our names
    pytorch_model.safetensors  the weights under the names of the published PyTorch models, of a ResNet
    torch_encoder.py           encoder and flow in PyTorch, which load them
    model.json                 architecture, normalisation, and the config of the run
    encoder.stablehlo          the encoder for CPU, CUDA and TPU, any number of images at once
    run_stablehlo.py           a program that runs it with nothing but jax
    README.md                  the card: data, protocol, results, how to use it, licence

Where PyTorch is installed, the exported encoder and flow are compared with ours before anything counts as exported.

Exit codes: 0 success, 2 a mistake in the command, 3 a file cannot be written.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hamjepa_jax import build_objective
from hamjepa_jax.atomic_files import read_json, writing
from hamjepa_jax.errors import UserError
from hamjepa_jax.interop import command_line, model_card, stablehlo
from hamjepa_jax.interop.torch_checkpoint import state_dict_from_encoder, state_dict_from_predictor
from hamjepa_jax.interop.torch_file import has_torch
from hamjepa_jax.pretrained import Pretrained, load
from hamjepa_jax.workdir import Workdir

TORCH_ENCODER = Path(__file__).with_name("torch_encoder.py")
# Of embeddings in PyTorch, relative to the largest of ours.
TOLERANCE = 1e-5
RUN_STABLEHLO = '''"""Embeds images with the exported encoder; needs jax, numpy and pillow."""

import sys

import jax
import numpy as np
from PIL import Image


def view(path):
    image = Image.open(path).convert("{mode}")
    image = image.resize([side * {resize} // min(image.size) for side in image.size], Image.BILINEAR)
    left, top = (round((side - {size}) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + {size}, top + {size}))).reshape({size}, {size}, {channels})


encoder = jax.export.deserialize(open("encoder.stablehlo", "rb").read())
z = encoder.call(np.stack([view(path) for path in sys.argv[1:]]))
np.save("embeddings.npy", z)
print("written: embeddings.npy:", z.shape)
'''


def export(model: Pretrained, workdir: Path, output: Path) -> list[str]:
    """Writes the folder.

    Args:
        model: the model.
        workdir: the directory of its run, for its results, and where its weights come from.
        output: the folder, which is made.

    Returns:
        What there is to say, a line each.

    Raises:
        UserError: if the model in PyTorch differs from ours.
        StorageError: if a file cannot be written.
    """
    from safetensors.numpy import save_file

    said = []
    variables = jax.tree.map(np.asarray, jax.device_get(model.variables))
    predictor = jax.tree.map(np.asarray, jax.device_get(model.predictor_params))
    about = description(model) | {"imported": read_json(Workdir(workdir).imported_file)}
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        metadata = {"format": "flax", "about": json.dumps(about)}
        save_file(named({**variables, "predictor": predictor}), output / "model.safetensors", metadata)
        try:
            weights = {f"encoder.{name}": array for name, array in state_dict_from_encoder(variables).items()}
        except ValueError as error:
            said.append(f"no weights for PyTorch: {error}")
        else:
            if about["flow"]:
                of_flow = {**state_dict_from_predictor(predictor), "dt": np.float32(about["flow"]["step_size"])}
                weights |= {f"predictor.{name}": np.asarray(array) for name, array in of_flow.items()}
            save_file(weights, output / "pytorch_model.safetensors", {"format": "pt", "about": json.dumps(about)})
            shutil.copyfile(TORCH_ENCODER, output / "torch_encoder.py")
            said.append(_compared(model, about, weights))
        (output / "model.json").write_text(json.dumps(about, indent=1) + "\n")
        (output / "encoder.stablehlo").write_bytes(stablehlo.encoder_program(model))
        channels = len(model.config.data.mean)
        program = RUN_STABLEHLO.format(
            size=about["image_size"],
            resize=about["resize"],
            channels=channels,
            mode="L" if channels == 1 else "RGB",
        )
        (output / "run_stablehlo.py").write_text(program)
        (output / "README.md").write_text(model_card.card(model, workdir, about))
    return said


def named(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree by the path to them, with dots between its pieces."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


def description(model: Pretrained) -> dict[str, Any]:
    """What somebody must know to build the model anew.

    Args:
        model: the model.

    Returns:
        {"model", "state_dim", "is_state", "image_size", "resize", "encoder", "flow", "config"}: images are resized to
        `resize` along the shorter side and cut to `image_size`; `encoder` and `flow` are the arguments of the classes
        of torch_encoder.py, the flow None where it is of another kind.
    """
    config = json.loads(model.config.to_json())
    fields = (
        "block",
        "widths",
        "depths",
        "stem",
        "mode",
        "token_layer",
        "token_hw",
        "token_d_f",
        "split_qp",
        "out_dim",
    )
    is_resnet, predictor = config["model"]["name"] == "resnet", config["predictor"]
    of_ours = {"name": build_objective.FLOW, "energy": "separable_mlp", "mass": "unit", "scheme": "leapfrog"}
    has_flow = is_resnet and model.is_state and all(predictor[key] == value for key, value in of_ours.items())
    settings = ("hidden_dim", "depth", "base_coeff", "step_size", "num_steps")
    normalisation = {name: config["data"][name] for name in ("mean", "std")}
    return {
        "model": model.name,
        "state_dim": model.state_dim,
        "is_state": model.is_state,
        "image_size": config["data"]["view_size"],
        "resize": config["evaluation"]["resize"],
        "encoder": {name: config["model"][name] for name in fields} | normalisation if is_resnet else None,
        "flow": {name: predictor[name] for name in settings}
        | {"state_dim": model.state_dim, "residual_scale": model.residual_scale}
        if has_flow
        else None,
        "config": config,
    }


def _compared(model: Pretrained, about: dict[str, Any], weights: dict[str, np.ndarray]) -> str:
    """Embeds and predicts images of noise in PyTorch and here."""
    if not has_torch():
        return "PyTorch is not installed: the weights for it were not tried"
    import torch

    from hamjepa_jax.interop.torch_encoder import Encoder, Flow, parts

    of_parts = parts({name: torch.tensor(array) for name, array in weights.items()})
    encoder = Encoder(**about["encoder"]).eval()
    encoder.load_state_dict(of_parts["encoder"])
    size, channels = about["image_size"], len(about["encoder"]["mean"])
    images = np.random.default_rng(0).integers(0, 256, (4, size, size, channels), np.uint8)
    ours = model.float32_encode(images)
    with torch.no_grad():
        theirs = encoder(torch.tensor(images))
    worst = {"encoder": _difference(ours, theirs.numpy())}
    if about["flow"]:
        flow = Flow(**about["flow"])
        flow.load_state_dict(of_parts["predictor"])
        worst["flow"] = _difference(np.asarray(model.predict(ours)), flow(torch.tensor(ours)).detach().numpy())
    shown = ", ".join(f"{name} {difference:.0e}" for name, difference in worst.items())
    if max(worst.values()) > TOLERANCE:
        raise UserError(f"--workdir: in PyTorch the model differs from ours, relatively by {shown}; nothing may use it")
    return f"in PyTorch the same, to a relative {shown}"


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


def main(arguments: Sequence[str] = sys.argv[1:]) -> int:
    """Runs the command line.

    Args:
        arguments: without the program's name.

    Returns:
        The exit code.
    """
    parser = command_line.parser("hamjepa_jax.interop.export", __doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="directory of the run")
    parser.add_argument("--output", type=Path, required=True, help="folder that is written")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that exists")

    def work() -> Iterator[str]:
        options = parser.parse_args(arguments)
        if options.output.exists() and not options.overwrite:
            raise UserError(f"--output={options.output}: exists; take another, or replace it with --overwrite")
        yield from export(load(options.workdir), options.workdir, options.output)
        yield f"written: {options.output}: {', '.join(sorted(file.name for file in options.output.iterdir()))}"

    return command_line.run(work)


if __name__ == "__main__":
    sys.exit(main())
