"""A published PyTorch checkpoint as the directory of a run, which is evaluated, used and trained on like ours."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from hamjepa_jax import build
from hamjepa_jax.atomic_files import write_json
from hamjepa_jax.checkpoint import Checkpointer
from hamjepa_jax.command_line import load_config
from hamjepa_jax.errors import UserError
from hamjepa_jax.interop import command_line, torch_checkpoint, torch_file
from hamjepa_jax.state import TrainState
from hamjepa_jax.workdir import Workdir

# Size of the stem's kernel → the published form. The configs lie beside the package, wherever a command is given.
CONFIGS = Path(__file__).parents[2] / "configs"
FORMS = {3: CONFIGS / "cifar100.py", 7: CONFIGS / "imagenet100.py"}
_OUR_BLOCK = re.compile(r"stage(\d+)_block(\d+)")
# How many names a message has.
SHOWN = 3


def import_run(path: Path, workdir: Path, *, config: str | None = None, data_dir: str | None = None) -> list[str]:
    """Makes the directory of a run out of a checkpoint.

    Architecture, step size and the size of the energy are those of the arrays; all else is the published recipe.

    Args:
        path: the .pth file, a dictionary with `encoder` and perhaps `predictor`.
        workdir: the directory, which must not exist.
        config: PATH[:VARIANT] of the recipe; that of the published form by default, told by the stem.
        data_dir: where the data set lies.

    Returns:
        What there is to say, a line each.

    Raises:
        UserError: if it is no such checkpoint, or its arrays do not fit; nothing is written then.
        StorageError: if the directory cannot be written.
    """
    try:
        saved = torch_file.read(path)
    except torch_file.TorchFileError as error:
        raise UserError(f"{error}") from None
    encoder, predictor = _state_dict(saved, "encoder", path), _state_dict(saved, "predictor", path)
    if not encoder:
        there = ", ".join(map(str, saved)) if isinstance(saved, Mapping) else type(saved).__name__
        raise UserError(f"{path}: has no state dict `encoder`; it holds {there[:200] or 'nothing'}")
    made = fitted_config(encoder, predictor, config, data_dir)
    state = fitted_state(made, encoder, predictor)
    plain = json.loads(made.to_json())
    directory = Workdir(workdir)
    if directory.config_file.exists():
        raise UserError(f"--workdir={workdir}: holds a run already; take another")
    directory.claim(plain)
    epoch = saved["epoch"] if isinstance(saved.get("epoch"), int) else None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    write_json(directory.imported_file, {"file": path.name, "sha256": digest, "epoch": epoch})
    checkpointer = Checkpointer(directory.checkpoints, keep=1)
    checkpointer.save(0, state, data={"next_step": 0}, config=plain, metrics={})
    checkpointer.close()
    ignored = [name for name in ("projector", "regularizer") if isinstance(saved.get(name), Mapping) and saved[name]]
    model = made.model
    said = [f"{made.name} {made.variant}: {model.block} blocks {model.depths} of widths {model.widths}, {model.mode}"]
    if epoch is not None:
        said.append(f"trained for {epoch} epochs there; here it counts from step 0")
    if ignored:
        said.append(f"left out, since nothing here uses them: {', '.join(ignored)}")
    return [*said, f"written: {workdir}; judge it with python -m hamjepa_jax.main --mode=evaluate --workdir={workdir}"]


def _state_dict(saved: Any, name: str, path: Path) -> dict[str, np.ndarray]:
    found = saved.get(name) if isinstance(saved, Mapping) else None
    if found is None:
        return {}
    if not isinstance(found, Mapping) or not all(isinstance(array, np.ndarray) for array in found.values()):
        raise UserError(f"{path}: its entry `{name}` is no state dict, names → tensors")
    # As a model that was trained on several GPUs has them.
    return {key.removeprefix("module."): array for key, array in found.items()}


def fitted_config(
    encoder: Mapping[str, np.ndarray], predictor: Mapping[str, np.ndarray], recipe: str | None, data_dir: str | None
) -> ConfigDict:
    """The config of a run that would have made these arrays.

    Args:
        encoder: the state dict of the encoder.
        predictor: that of the predictor; may be empty.
        recipe: PATH[:VARIANT]; that of the published form by default.
        data_dir: where the data set lies, or None.

    Returns:
        The config.

    Raises:
        UserError: if the arrays are not those of a ResNet encoder, or there is no such recipe.
    """
    try:
        params = torch_checkpoint.encoder_from_state_dict(encoder)["params"]
    except ValueError as error:
        raise UserError(f"encoder: {error}") from None
    stem = params.get("stem_conv", {}).get("kernel")
    if stem is None or len(stem) not in FORMS:
        shown = "none" if stem is None else f"one of {len(stem)}×{len(stem)}"
        raise UserError(f"encoder: must have a stem convolution stem.0.weight of 3×3 or 7×7, and has {shown}")
    learned = {name: array for name, array in predictor.items() if name != "dt"}
    config = load_config(recipe or f"{FORMS[len(stem)]}:{'hamjepa' if learned else 'sigreg'}")
    config.data.data_dir = data_dir
    blocks = [tuple(map(int, match.groups())) for name in params if (match := _OUR_BLOCK.fullmatch(name))]
    stages = range(1, max((stage for stage, _ in blocks), default=0) + 1)
    widths = [params[f"stage{stage}_block1"]["conv2"]["kernel"].shape[-1] for stage in stages]
    model = config.model
    model.update(
        block="bottleneck" if any("conv3" in block for block in params.values()) else "basic",
        stem="cifar" if len(stem) == 3 else "imagenet",
        # Stages behind the tokens are not built.
        widths=(*widths, *model.widths[len(widths) :]),
        depths=(
            *(max(block for at, block in blocks if at == stage) for stage in stages),
            *model.depths[len(widths) :],
        ),
    )
    if "head" in params:
        model.update(mode="global", out_dim=params["head"]["kernel"].shape[-1])
    elif "token_conv" in params:
        model.update(mode="tokens", token_layer=len(widths), token_d_f=params["token_conv"]["kernel"].shape[-1])
    if learned:
        try:
            layers = torch_checkpoint.predictor_from_state_dict(predictor)["layers"]
        except ValueError as error:
            raise UserError(f"predictor: {error}") from None
        config.predictor.update(
            name="hamiltonian_flow",
            hidden_dim=layers[0]["kernel"].shape[1],
            depth=len(layers) - 1,
            # There is no first epoch, in which the learned part would be small.
            residual_ramp_epochs=0,
        )
        if "dt" in predictor:
            config.predictor.step_size = float(predictor["dt"])
    config.name += "_imported"
    return config


def fitted_state(
    config: ConfigDict, encoder: Mapping[str, np.ndarray], predictor: Mapping[str, np.ndarray]
) -> TrainState:
    """The state before the first step, with the arrays in it.

    Args:
        config: see `fitted_config`.
        encoder: the state dict of the encoder.
        predictor: that of the predictor; may be empty.

    Returns:
        The state.

    Raises:
        UserError: naming the first arrays that are missing, too many, or of another shape.
    """
    made = build.model(config)
    state = jax.jit(made.initial_state)(jax.random.key(config.train.seed))
    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    given = torch_checkpoint.encoder_from_state_dict(encoder)
    _require_same("encoder", *map(torch_checkpoint.state_dict_from_encoder, (variables, given)))
    params = state.params | {"encoder": _as(given["params"], variables["params"])}
    if any(name != "dt" for name in predictor):
        energy = torch_checkpoint.predictor_from_state_dict(predictor)
        _require_same(
            "predictor", *map(torch_checkpoint.state_dict_from_predictor, (state.params["predictor"], energy))
        )
        params |= {"predictor": _as(energy, state.params["predictor"])}
    return state._replace(params=params, batch_stats=_as(given["batch_stats"], variables["batch_stats"]))


def _as(arrays: Any, like: Any) -> Any:
    return jax.tree.map(lambda wanted, array: jnp.asarray(array, wanted.dtype), like, arrays)


def _require_same(part: str, wanted: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]) -> None:
    """Makes sure that the arrays are those of the architecture, by their names in PyTorch."""
    differing = [
        f"{name} ({_shape(given.get(name))} in the file, {_shape(wanted.get(name))} in the model)"
        for name in sorted(wanted.keys() | given.keys())
        if _shape(given.get(name)) != _shape(wanted.get(name))
    ]
    if differing:
        more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        raise UserError(
            f"{part}: does not fit: {', '.join(differing[:SHOWN])}{more}; if the file is whole, name the recipe of its "
            "architecture with --config=PATH:VARIANT"
        )


def _shape(array: np.ndarray | None) -> str:
    return "missing" if array is None else "×".join(map(str, array.shape)) or "a number"


def main(arguments: Sequence[str]) -> int:
    """Runs the command line of `interop.torch_checkpoint`.

    Args:
        arguments: without the program's name.

    Returns:
        The exit code.
    """
    parser = command_line.parser("hamjepa_jax.interop.torch_checkpoint", torch_checkpoint.__doc__)
    parser.add_argument("file", type=Path, help="the checkpoint, FILE.pth")
    parser.add_argument("--workdir", type=Path, required=True, help="directory of the run that is made")
    parser.add_argument("--config", help="PATH[:VARIANT] of the recipe; by default the published one, told by the stem")
    parser.add_argument("--data_dir", help="where the data set lies (default: TFDS's data directory)")

    def work() -> list[str]:
        options = parser.parse_args(arguments)
        return import_run(options.file, options.workdir, config=options.config, data_dir=options.data_dir)

    return command_line.run(work)
