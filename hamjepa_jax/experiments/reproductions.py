"""The reproductions: which grid and config make a table of the paper, or one like it, and what is claimed of it.

References: Jenkinson Alvarez, arXiv 2605.20107.
"""

from collections.abc import Mapping
from typing import NamedTuple

from hamjepa_jax.experiments.claims import SCORES, Claim

KNN, PROBE = SCORES
# By how much HamJEPA's q is better than SIGReg, in percentage points, by epochs.
CIFAR100 = {30: {KNN: 4.89, PROBE: 3.52}, 80: {KNN: 6.45, PROBE: 10.64}}
IMAGENET100 = {KNN: 4.82, PROBE: 7.52}
SCALED_DOWN = "_scaled_down"


class Reproduction(NamedTuple):
    """A table.

    Attributes:
        title: what it is called.
        grid: name of the grid.
        seeds: number of seeds.
        claims: that HamJEPA is better than SIGReg, and by how much where it was published.
        controls: that HamJEPA is better than the same with other predictors, so that the gain is due to its flow.
        corrected: the claims, of the recipes with sound choices.
    """

    title: str
    grid: str
    seeds: int
    claims: tuple[Claim, ...]
    controls: tuple[Claim, ...]
    corrected: tuple[Claim, ...] = ()


def _claims(suffix: str = "", published: Mapping[str, float] | None = None) -> tuple[Claim, ...]:
    return tuple(Claim(f"hamjepa{suffix}", f"sigreg{suffix}", score, (published or {}).get(score)) for score in SCORES)


def _controls(*predictors: str, suffix: str = "") -> tuple[Claim, ...]:
    return tuple(Claim(f"hamjepa{suffix}", f"{name}{suffix}", score) for name in predictors for score in SCORES)


def _paper_table(title: str, published: Mapping[int, Mapping[str, float]]) -> Reproduction:
    """Both lengths of training, and the sound choices where the published recipe leaves them to chance."""
    suffixes = {epochs: f"_epochs={epochs}" for epochs in CIFAR100}
    claims = [claim for n, suffix in suffixes.items() for claim in _claims(suffix, published.get(n))]
    controls = [claim for suffix in suffixes.values() for claim in _controls("mlp", suffix=suffix)]
    return Reproduction(title, "paper_table", 5, tuple(claims), tuple(controls), _claims("_corrected_epochs=30"))


def _scaled_down(title: str, published: Mapping[str, float] | None = None) -> Reproduction:
    return Reproduction(f"{title}, scaled down", "claim", 3, _claims(published=published), _controls("mlp", "identity"))


# By the name of the config.
REPRODUCTIONS = {
    "cifar100": _paper_table("CIFAR-100", CIFAR100),
    "cifar10": _paper_table("CIFAR-10", {}),
    "tiny_imagenet100": Reproduction("Tiny-ImageNet-100", "claim", 5, _claims(), _controls("mlp", "identity")),
    "imagenet100": Reproduction(
        "ImageNet-100", "claim", 5, _claims(published=IMAGENET100), _controls("mlp", "identity")
    ),
    "cifar100_scaled_down": _scaled_down("CIFAR-100", CIFAR100[30]),
    "cifar10_scaled_down": _scaled_down("CIFAR-10"),
    "tiny_imagenet100_scaled_down": _scaled_down("Tiny-ImageNet-100"),
}
