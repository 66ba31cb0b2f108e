"""The dependency rules of the package: who may import whom."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hamjepa_jax"
FRAMEWORKS = ("flax", "optax", "orbax", "grain", "tensorflow_datasets", "ml_collections")
# Part of the package → what it must never import; a dot in front names a part of the package itself.
FORBIDDEN = {
    "dynamics": (*FRAMEWORKS, ".models", ".data", ".sharding", ".objectives", ".train", ".stats"),
    "stats": (*FRAMEWORKS, ".models", ".data", ".sharding", ".objectives", ".train"),
    "models": (*FRAMEWORKS[1:], ".objectives", ".data", ".train", ".step"),
    **dict.fromkeys(
        ["objectives", "prediction", "regularizers"], ("flax", *FRAMEWORKS[2:], ".models", ".data", ".train")
    ),
    **dict.fromkeys(
        ["theory", "physics"],
        ("flax", *FRAMEWORKS[2:], ".models", ".data", ".sharding", ".objectives", ".train", ".build"),
    ),
    "experiments": (*FRAMEWORKS, ".main", ".train", ".build", ".models", ".data"),
    **dict.fromkeys(
        [
            f"data/{name}"
            for name in ("sources", "images", "pendulum", "tfds_source", "image_folder", "loading", "pipeline")
        ],
        ("jax", "flax"),
    ),
    **dict.fromkeys(["evaluation", "inference"], (".train",)),
    "report": (
        "jax",
        *FRAMEWORKS,
        ".main",
        ".train",
        ".build",
        ".models",
        ".data",
        ".evaluation",
        ".dynamics",
        ".stats",
    ),
    "": (".main", ".benchmarks", "tensorflow"),
}
ONLY_IN = {
    "orbax": ("checkpoint",),
    "torch": ("interop", "benchmarks/torch_step"),
    "ml_collections": (
        "build",
        "build_data",
        "build_model",
        "build_monitoring",
        "build_objective",
        "build_views",
        "command_line",
        "recipes",
        "train",
        "evaluation/diagnose",
        "evaluation/pairs",
        "evaluation/run",
        "evaluation/world_model_run",
        "interop/imported_run",
        "main",
        "pretrained",
        "benchmarks/augment",
        "benchmarks/checkpoint",
    ),
}
NEVER_AT_THE_TOP = (
    "matplotlib",
    "sklearn",
    "tensorflow_datasets",
    "array_record",
    "pyarrow",
    "tensorboardX",
    "torch",
    "wandb",
)
# Programs of their own, which lie beside exported weights.
HANDED_OUT = ("interop/torch_encoder",)

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def imported(nodes):
    """The modules that the nodes import, those of the package itself with a leading dot."""
    for node in nodes:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            yield name.removeprefix("hamjepa_jax") if name.startswith("hamjepa_jax.") else name


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_dependency_rules(path):
    name, tree = name_of(path), ast.parse(path.read_text())
    everything = set(imported(ast.walk(tree)))
    for part, banned in FORBIDDEN.items():
        if name == part or name.startswith(f"{part}/") or not part:
            own = f".{name.split('/')[0]}"
            found = {i for i in everything for b in banned if b != own and f"{i}.".startswith(f"{b}.")}
            assert not found, f"{name} must not import {found}"
    for library, homes in ONLY_IN.items():
        if any(i.split(".")[0] == library for i in everything):
            assert name in homes or name.split("/")[0] in homes, f"{name} must not import {library}"
    at_the_top = {i.split(".")[0] for i in imported(tree.body)}
    if name not in HANDED_OUT:
        heavy = at_the_top & {*NEVER_AT_THE_TOP, *(f".{module.replace('/', '.')}" for module in HANDED_OUT)}
        assert not heavy, f"{name} imports a heavy library before it is needed"


def test_the_rules_see_the_package():
    names = {name_of(path) for path in MODULES}
    assert {"dynamics/integrators", "stats/floors", "objectives", "models/resnet", "checkpoint"} <= names
