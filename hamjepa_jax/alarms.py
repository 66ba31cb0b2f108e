"""Alarms: says in words when the representation is collapsing, or when a part of the objective has stopped acting."""

import math
from collections.abc import Iterator, Mapping

# The ridge of `stats.floors.covariance_statistics` is 1e-4: below ten times that nothing is left but the ridge.
VANISHED_LOGDET = math.log(1e-3)
DOMINANT_EIGENVALUE = 0.5
FEW_DIMENSIONS = 0.02
SILENT_SHARE = 1e-4
SILENT_FORCE = 1e-3


class Alarms:
    """Watches the metrics of a run; what has been wrong for some time is said once."""

    def __init__(self, patience: int):
        """Sets the time that something must last.

        Args:
            patience: steps, such as a tenth of the run.
        """
        self._patience = patience
        self._since: dict[str, int] = {}
        self._said: set[str] = set()

    def check(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Looks at the metrics of a step.

        Args:
            step: the step.
            values: its metrics: `COORDINATES_logdet`, `_eigmax`, `_participation` and `_min_std`,
                `gradient_share_TERM`, `residual_force_ratio`.

        Returns:
            What there is to say, a line each.
        """
        found = dict(_collapses(values)) | dict(_silences(values))
        self._since = {name: self._since.get(name, step) for name in found}
        new = [name for name in found if step - self._since[name] >= self._patience and name not in self._said]
        self._said.update(new)
        return [f"step {step}: warning: {found[name]}, for {step - self._since[name]} steps" for name in new]


def _collapses(values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """What is collapsing: a name for each, and a description."""
    for on in ("q", "p", "z"):
        if f"{on}_logdet" not in values:
            continue
        logdet, eigmax, participation, min_std = (
            values[f"{on}_{name}"] for name in ("logdet", "eigmax", "participation", "min_std")
        )
        if logdet < VANISHED_LOGDET:
            yield (
                f"vanished {on}",
                f"{on} is collapsing to a point: log-determinant {logdet:.1f} per dimension, smallest standard "
                f"deviation {min_std:.3f}",
            )
        elif eigmax > DOMINANT_EIGENVALUE or participation < FEW_DIMENSIONS:
            yield (
                f"narrow {on}",
                f"{on} is collapsing to a few directions: the largest has {eigmax:.0%} of the variance, the "
                f"participation ratio is {participation:.1%} of the dimensions",
            )


def _silences(values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """What does not act: a name for each, and a description."""
    prefix = "gradient_share_"
    for name, share in values.items():
        if name.startswith(prefix) and share < SILENT_SHARE:
            term = name.removeprefix(prefix)
            yield name, f"the term {term!r} does not act: {share:.0e} of the gradient (a floor that is met needs none)"
    ratio = values.get("residual_force_ratio")
    if ratio is not None and ratio < SILENT_FORCE:
        yield (
            "residual_force_ratio",
            f"the learned part of the energy hardly acts: its force is {ratio:.0e} of the base's",
        )
