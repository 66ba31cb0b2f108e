"""The names and layouts of the published PyTorch models, translated to ours; and their checkpoints, made runs of ours.

    python -m hamjepa_jax.interop.torch_checkpoint FILE.pth --workdir=runs/published

PyTorch keeps the kernel of a convolution as (out, in, height, width) and of a dense layer as (out, in); Flax keeps them
as (height, width, in, out) and (in, out).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hamjepa_jax.dynamics.energies import Params
from hamjepa_jax.workdir import flatten

# A global encoder is one sequential backbone: its entries 0 to 3 are the stem, the four stages follow.
BACKBONE = {"backbone.0": "stem.0", "backbone.1": "stem.1"} | {f"backbone.{3 + i}": f"layer{i}" for i in range(1, 5)}
MODULES = {
    "stem.0": "stem_conv",
    "stem.1": "stem_bn",
    "token_proj.0": "token_conv",
    "token_proj.1": "token_bn",
    "fc": "head",
}
BLOCK_MODULES = {
    **{name: name for name in ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")},
    "downsample.0": "shortcut_conv",
    "downsample.1": "shortcut_bn",
}
STATISTICS = {"running_mean": "mean", "running_var": "var"}
WEIGHT_OF_RANK = {1: "scale", 2: "kernel", 4: "kernel"}
TORCH_BLOCK_MODULES = {ours: theirs for theirs, ours in BLOCK_MODULES.items()}
_OUR_BLOCK = re.compile(r"stage([1-4])_block(\d+)")
_IN_A_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.(.+)")
_IN_AN_ENERGY = re.compile(r"(?:H\.)?residual_V\.(\d+)\.(weight|bias)")


def encoder_from_state_dict(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Renames and transposes the state dict of a published encoder.

    The state dict of a token encoder also holds the stages behind its tokens, which take no part: they are left out.
    The tokens' stage is the last one that has as many channels as the token projection takes.

    Args:
        arrays: the state dict, names → arrays.

    Returns:
        {"params": ..., "batch_stats": ...}, the variables of `models.resnet.ResNetEncoder`.

    Raises:
        ValueError: naming the first entry that such an encoder does not have.
    """
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    unused = _unused_stages(arrays)
    for name, array in arrays.items():
        module, _, kind = name.rpartition(".")
        path = _module_path(module)
        if kind == "num_batches_tracked" or path and path[0].startswith(unused):
            continue
        array = np.asarray(array)
        leaf = ({"weight": WEIGHT_OF_RANK.get(array.ndim), "bias": "bias"} | STATISTICS).get(kind)
        if not path or leaf is None:
            raise ValueError(
                f"{name}: not an entry of a ResNet encoder, whose modules are stem, layer, token_proj and fc"
            )
        node = variables["batch_stats" if kind in STATISTICS else "params"]
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return variables


def predictor_from_state_dict(arrays: Mapping[str, np.ndarray]) -> Params:
    """Renames and transposes the energy MLP of a published Hamiltonian predictor.

    Args:
        arrays: the state dict: `residual_V.N.weight` and `residual_V.N.bias`, N = 0, 2, 4, with or without the prefix
            `H.`; the buffer `dt` is a setting here and is left out.

    Returns:
        {"layers": [{"kernel", "bias"}, ...]}, the parameters of `dynamics.energies.separable_mlp`.

    Raises:
        ValueError: naming the first entry that such a predictor does not have, or a layer without its bias or weight.
    """
    layers: dict[int, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        if name == "dt":
            continue
        match = _IN_AN_ENERGY.fullmatch(name)
        if not match:
            raise ValueError(
                f"{name}: not an entry of an energy MLP, which are residual_V.N.weight and residual_V.N.bias"
            )
        leaf = "kernel" if match[2] == "weight" else "bias"
        layers.setdefault(int(match[1]), {})[leaf] = np.asarray(array).T
    for entry, layer in layers.items():
        if len(layer) < 2:
            raise ValueError(f"residual_V.{entry}: has only its {', '.join(layer)}, needs a weight and a bias")
    return {"layers": [layers[entry] for entry in sorted(layers)]}


def state_dict_from_encoder(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Renames and transposes the variables of an encoder: the inverse of `encoder_from_state_dict`.

    Args:
        variables: {"params": ..., "batch_stats": ...}, the variables of `models.resnet.ResNetEncoder`.

    Returns:
        The state dict, names → arrays, with a `num_batches_tracked` of 0 for every normalisation.

    Raises:
        ValueError: naming the first module that has no name in PyTorch, as those of a ViT.
    """
    arrays = {}
    # A global encoder is the one with a dense layer in the end.
    names = {ours: theirs for theirs, ours in MODULES.items()}
    sequential = {plain: prefix for prefix, plain in BACKBONE.items()} if "head" in variables["params"] else {}
    for path, array in flatten(dict(variables["params"])).items():
        *module, leaf = path.split(".")
        name = _torch_name(module, names, sequential)
        array = np.asarray(array)
        plain = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        arrays[f"{name}.{'bias' if leaf == 'bias' else 'weight'}"] = np.ascontiguousarray(plain)
    kinds = {ours: theirs for theirs, ours in STATISTICS.items()}
    for path, array in flatten(dict(variables.get("batch_stats", {}))).items():
        *module, leaf = path.split(".")
        name = _torch_name(module, names, sequential)
        arrays[f"{name}.{kinds[leaf]}"] = np.asarray(array)
        arrays[f"{name}.num_batches_tracked"] = np.zeros((), np.int64)
    return dict(sorted(arrays.items()))


def state_dict_from_predictor(params: Params) -> dict[str, np.ndarray]:
    """Renames and transposes an energy MLP: the inverse of `predictor_from_state_dict`.

    Args:
        params: {"layers": [{"kernel", "bias"}, ...]}, the parameters of `dynamics.energies.separable_mlp`.

    Returns:
        The state dict: `H.residual_V.N.weight` and `H.residual_V.N.bias`, N = 0, 2, 4, as between two layers there is
        a GELU.
    """
    arrays = {}
    for number, layer in enumerate(params["layers"]):
        arrays[f"H.residual_V.{2 * number}.weight"] = np.ascontiguousarray(np.asarray(layer["kernel"]).T)
        arrays[f"H.residual_V.{2 * number}.bias"] = np.asarray(layer["bias"])
    return arrays


def _torch_name(module: Sequence[str], names: Mapping[str, str], sequential: Mapping[str, str]) -> str:
    """The name of a module in PyTorch."""
    if len(module) == 1 and module[0] in names:
        name = names[module[0]]
    elif len(module) == 2 and (match := _OUR_BLOCK.fullmatch(module[0])) and module[1] in TORCH_BLOCK_MODULES:
        name = f"layer{match[1]}.{int(match[2]) - 1}.{TORCH_BLOCK_MODULES[module[1]]}"
    else:
        raise ValueError(f"{'.'.join(module)}: has no name in PyTorch, where only ResNets have names")
    for plain, prefix in sequential.items():
        if f"{name}.".startswith(f"{plain}."):
            return prefix + name.removeprefix(plain)
    return name


def _module_path(module: str) -> tuple[str, ...]:
    """Where the module is in `ResNetEncoder`, or () if it is not there."""
    for prefix, plain in BACKBONE.items():
        if f"{module}.".startswith(f"{prefix}."):
            module = plain + module.removeprefix(prefix)
    if module in MODULES:
        return (MODULES[module],)
    match = _IN_A_BLOCK.fullmatch(module)
    if match and match[3] in BLOCK_MODULES:
        return (f"stage{match[1]}_block{int(match[2]) + 1}", BLOCK_MODULES[match[3]])
    return ()


def _unused_stages(arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Beginnings of the names of the stages behind the tokens."""
    if "token_proj.0.weight" not in arrays:
        return ()
    # Of the convolutions of a block the last one has its channels.
    channels = {
        int(match[1]): array.shape[0]
        for last in ("conv2.weight", "conv3.weight")
        for name, array in arrays.items()
        if (match := _IN_A_BLOCK.fullmatch(name)) and match[3] == last
    }
    taken = arrays["token_proj.0.weight"].shape[1]
    stages = [stage for stage in channels if channels[stage] == taken]
    if not stages:
        raise ValueError(f"token_proj.0.weight: takes {taken} channels, which no stage gives; they give {channels}")
    return tuple(f"stage{stage}_" for stage in channels if stage > max(stages))


if __name__ == "__main__":
    import sys

    from hamjepa_jax.interop.imported_run import main

    sys.exit(main(sys.argv[1:]))
