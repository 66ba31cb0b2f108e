"""Variants: what a name says about predictor, objective, optimizer and encoder, in the groups of a config.

    NAME[_ENCODER][_multicrop][_corrected]            hamjepa, sigreg, mlp_corrected, lejepa_vit_s, ...
    PREDICTOR-REGULARIZER[_ENCODER][...]              mlp-sigreg, identity-vicreg, hamiltonian_flow-floors, ...

A name of `NAMED` is a published method or an ablation of it. A pair holds all else at HamJEPA's settings, so that any
two pairs differ in the named parts alone.

`hamjepa` and `sigreg` are the recipes of the paper, with every one of their peculiarities as an option of the config.
`_corrected` chooses these soundly: kernels alone decay, no scales and no biases; the predictor is clipped by itself,
has the encoder's learning rate, and ends at its own fraction of it; with more than two views all of them are predicted;
the warm-up takes at most a tenth of the run, however short, and the learned part of the energy acts from the first
epoch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import config_dict

from hamjepa_jax.recipes import forms, terms
from hamjepa_jax.recipes.encoders import ENCODERS
from hamjepa_jax.recipes.forms import FORMS, Form, Group
from hamjepa_jax.recipes.terms import Slices


class Recipe(NamedTuple):
    """What a variant's name says.

    Attributes:
        predictor: the group `predictor`.
        objective: the group `objective`.
        optimizer: the group `optimizer`.
        split_qp: whether the embedding is a state [q ; p].
        encoder: the encoder that the name asks for, or None.
        multicrop: whether there are local views.
    """

    predictor: Group
    objective: Group
    optimizer: Group
    split_qp: bool
    encoder: str | None
    multicrop: bool


def recipe(variant: str, *, form: str, num_directions: int = 64, num_points: int = 9) -> Recipe:
    """Reads a variant's name.

    Args:
        variant: the name, see the module's docstring.
        form: `cifar100` or `imagenet100`, the published form to start from.
        num_directions: directions of sliced tests.
        num_points: knots of the Epps–Pulley test.

    Returns:
        The recipe.

    Raises:
        ValueError: for an unknown name, listing the known ones.
    """
    name, suffixes = variant, set()
    while found := [suffix for suffix in SUFFIXES if name.endswith(f"_{suffix}")]:
        suffixes.add(found[0])
        name = name.removesuffix(f"_{found[0]}")
    encoders = [encoder for encoder in ENCODERS if encoder in suffixes]
    published, slices = FORMS[form], Slices(num_directions, num_points)
    predictor, _, regularizer = name.partition("-")
    if name in NAMED and len(encoders) < 2:
        made = NAMED[name](published, slices)
    elif predictor in PREDICTORS and regularizer in REGULARIZERS and len(encoders) < 2:
        made = _pair(predictor, regularizer, published, slices)
    else:
        raise ValueError(
            f"variant {variant!r} is unknown; known: {', '.join(NAMED)}, or PREDICTOR-REGULARIZER of "
            f"{', '.join(PREDICTORS)} and {', '.join(REGULARIZERS)}; each with _ENCODER of {', '.join(ENCODERS)}, "
            "_multicrop, _corrected"
        )
    made = made._replace(encoder=(*encoders, None)[0], multicrop=made.multicrop or "multicrop" in suffixes)
    return _corrected(made) if "corrected" in suffixes else made


def _pair(predictor: str, regularizer: str, form: Form, slices: Slices) -> Recipe:
    return Recipe(
        predictor=forms.predictor(predictor, form),
        objective={
            "form": "sum",
            "prediction": {
                "weight": 1.0,
                "pairing": "first_two",
                "bidirectional": form.bidirectional,
                "match": form.match,
                "p_weight": 0.2,
                "detach_target": True,
                "energy_weight": 0.0,
            },
            "regularizers": REGULARIZERS[regularizer](form, slices),
        },
        optimizer=forms.optimizer(form.clip_over, form.predictor_learning_rate),
        split_qp=True,
        encoder=None,
        multicrop=False,
    )


def _without_predictor(form: Form, regularizers: Group, **prediction: Any) -> Recipe:
    """A method that compares views directly: no state, no flow, no clipping."""
    return Recipe(
        predictor=forms.predictor("identity", form),
        objective={
            "form": "sum",
            "prediction": {
                "weight": 0.5,
                "pairing": "center",
                "bidirectional": "none",
                "match": "z",
                "p_weight": 1.0,
                "detach_target": False,
                "energy_weight": 0.0,
            }
            | prediction,
            "regularizers": regularizers,
        },
        optimizer=forms.optimizer("none", None),
        split_qp=form.split_baseline,
        encoder=None,
        multicrop=False,
    )


def _lejepa(form: Form) -> Recipe:
    """LeJEPA in its own, convex form and with its own defaults."""
    slices = Slices(num_directions=1024, num_points=17)
    made = _without_predictor(form, terms.sigreg("sigreg", slices, terms.SIGREG_WEIGHT), weight=1.0)
    return made._replace(
        objective=made.objective | {"form": "convex"},
        optimizer=made.optimizer | {"weight_decay": 5e-2},
        multicrop=True,
    )


def _corrected(made: Recipe) -> Recipe:
    prediction = dict(made.objective["prediction"])
    if prediction["pairing"] == "first_two":
        prediction["pairing"] = "all"
    clipped = made.optimizer["clip_over"] != "none"
    return made._replace(
        predictor=made.predictor | {"residual_ramp_epochs": 0},
        objective=made.objective | {"prediction": prediction},
        optimizer=made.optimizer
        | {
            "predictor_learning_rate": config_dict.placeholder(float),
            "shared_end_value": False,
            "warmup_limit": 0.1,
            "decay_of": "kernels",
            "clip_over": "each" if clipped else "none",
        },
    )


PREDICTORS = ("hamiltonian_flow", "mlp", "residual_mlp", "linear", "rotation", "identity")
REGULARIZERS: dict[str, Callable[[Form, Slices], Group]] = {
    "floors": lambda form, slices: terms.floors(form),
    **{
        name: lambda form, slices, name=name: terms.sigreg(name, slices, terms.SIGREG_WEIGHT_IN_PAIRS)
        for name in terms.GEOMETRIES
    },
    # Likewise, the gradient is a fiftieth of that of 25·mse between two views, neither detached.
    "vicreg": lambda form, slices: terms.vicreg(1 / 50),
    "none": lambda form, slices: {},
}
NAMED: dict[str, Callable[[Form, Slices], Recipe]] = {
    "hamjepa": lambda form, slices: _pair("hamiltonian_flow", "floors", form, slices),
    **{
        name: lambda form, slices, name=name: _pair(name, "floors", form, slices)
        for name in PREDICTORS
        if name != "hamiltonian_flow"
    },
    **{
        name: lambda form, slices, name=name: _without_predictor(form, terms.sigreg(name, slices, terms.SIGREG_WEIGHT))
        for name in terms.GEOMETRIES
    },
    "lejepa": lambda form, slices: _lejepa(form),
    "vicreg": lambda form, slices: _without_predictor(form, terms.vicreg(1.0), weight=25.0, pairing="all"),
    # The invariance is part of the regulariser; the prediction error is watched.
    "barlow_twins": lambda form, slices: _without_predictor(form, terms.barlow_twins(), weight=0.0, pairing="all"),
    "bhep": lambda form, slices: _without_predictor(form, terms.bhep(terms.SIGREG_WEIGHT)),
    **{
        test: lambda form, slices, test=test: _without_predictor(
            form, {test: terms.sliced(test, slices, weight=terms.SIGREG_WEIGHT, geometry={"name": "identity"})}
        )
        for test in terms.TESTS
    },
}
SUFFIXES = ("corrected", "multicrop", *ENCODERS)
