"""The published recipes for CIFAR-100 and ImageNet-100: in what they differ, and what they have in common.

References: Jenkinson Alvarez, arXiv 2605.20107.
"""

from typing import Any, NamedTuple

from ml_collections import config_dict

Group = dict[str, Any]


class Form(NamedTuple):
    """In what the published recipes for CIFAR-100 and ImageNet-100 differ.

    Attributes:
        match: what is compared.
        bidirectional: how the second view is predicted from the first in turn.
        variance_weight: weight of the variance floor.
        variance_on: halves of the state that it acts on.
        logdet_weight: weight of the covariance floor.
        logdet_floor: its floor of the log-determinant per dimension.
        participation_floors: its floors of the participation ratio, of q and p.
        eigmax_ceilings: its ceilings of the largest eigenvalue's share, of q and p.
        residual_ramp_epochs: epochs over which the learned part of the energy comes in.
        predictor_learning_rate: that of the energy, or None for the encoder's.
        clip_over: what gradients are clipped over.
        split_baseline: whether the embedding of the baseline, too, is split into q and p.
    """

    match: str
    bidirectional: str
    variance_weight: float
    variance_on: tuple[str, ...]
    logdet_weight: float
    logdet_floor: float
    participation_floors: tuple[float, float]
    eigmax_ceilings: tuple[float, float]
    residual_ramp_epochs: int
    predictor_learning_rate: float | None
    clip_over: str
    split_baseline: bool


FORMS = {
    "cifar100": Form(
        match="q",
        bidirectional="inverse",
        variance_weight=0.5,
        variance_on=("q", "p"),
        logdet_weight=0.5,
        logdet_floor=-1.5,
        participation_floors=(0.12, 0.16),
        eigmax_ceilings=(0.35, 0.30),
        residual_ramp_epochs=10,
        predictor_learning_rate=None,
        clip_over="all",
        split_baseline=False,
    ),
    "imagenet100": Form(
        match="qp",
        bidirectional="swap",
        variance_weight=1.0,
        variance_on=("q",),
        logdet_weight=1.0,
        logdet_floor=-1.2,
        participation_floors=(0.25, 0.25),
        eigmax_ceilings=(0.10, 0.10),
        residual_ramp_epochs=0,
        predictor_learning_rate=5e-5,
        clip_over="encoder",
        split_baseline=True,
    ),
}


def predictor(name: str, form: Form) -> Group:
    """The group `predictor`.

    Args:
        name: the predictor.
        form: the published form.

    Returns:
        The group; its energy is the paper's, and what has a width is matched to it.
    """
    return {
        "name": name,
        "width": config_dict.placeholder(int),
        "energy": "separable_mlp",
        "hidden_dim": 256,
        "depth": 2,
        "base_coeff": 0.1,
        "mass": "unit",
        "scheme": "leapfrog",
        "step_size": 0.05,
        "num_steps": 2,
        "residual_scale": 0.02,
        "residual_ramp_epochs": form.residual_ramp_epochs,
    }


def optimizer(clip_over: str, predictor_learning_rate: float | None) -> Group:
    """The group `optimizer`, with every peculiarity of the published one.

    Args:
        clip_over: what gradients are clipped over.
        predictor_learning_rate: that of the energy, or None for the encoder's.

    Returns:
        The group.
    """
    energy_rate = config_dict.placeholder(float) if predictor_learning_rate is None else predictor_learning_rate
    return {
        "learning_rate": 5e-4,
        "predictor_learning_rate": energy_rate,
        "end_factor": 1e-3,
        "shared_end_value": True,
        "warmup_epochs": 10,
        "warmup_limit": config_dict.placeholder(float),
        "warmup_factor": 0.01,
        "b1": 0.9,
        "b2": 0.999,
        "weight_decay": 5e-4,
        "decay_of": "all",
        "clip_norm": 1.0,
        "clip_over": clip_over,
        "regularizers": {"every_steps": 10, "learning_rate": 1e-3, "clip_norm": 1.0},
    }
