"""The grids: which variants and settings are compared, and with which of them."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Cell(NamedTuple):
    """One row of a table.

    Attributes:
        label: its name, and that of its directory.
        variant: variant of the config.
        overrides: fields of the config, GROUP.FIELD → value.
    """

    label: str
    variant: str
    overrides: Mapping[str, Any] = {}


class Grid(NamedTuple):
    """A table.

    Attributes:
        cells: its rows.
        reference: label of the row that the others are compared with.
    """

    cells: tuple[Cell, ...]
    reference: str


PREDICTORS = ("hamiltonian_flow", "mlp", "residual_mlp", "rotation", "identity")
REGULARISERS = ("floors", "sigreg", "vicreg", "none")


def _of(variant: str, group: str, **values: Any) -> Cell:
    """A variant with other values, which its label names."""
    label = "_".join([variant, *(f"{field}={value}" for field, value in values.items())])
    return Cell(label, variant, {f"{group}.{field}": value for field, value in values.items()})


GRIDS = {
    "paper_table": Grid(
        (
            *(_of(variant, "train", epochs=n) for n in (30, 80) for variant in ("sigreg", "hamjepa", "mlp")),
            *(_of(f"{variant}_corrected", "train", epochs=30) for variant in ("sigreg", "hamjepa")),
        ),
        reference="sigreg_epochs=30",
    ),
    "claim": Grid(
        tuple(Cell(variant, variant) for variant in ("sigreg", "hamjepa", "mlp", "identity")),
        reference="sigreg",
    ),
    # What holds HamJEPA back on configs/cifar100_scaled_down.py: one thing changed at a time.
    "causes": Grid(
        (
            Cell("hamjepa", "hamjepa"),
            Cell("sigreg", "sigreg"),
            _of("hamjepa", "predictor", residual_scale=0.0),
            _of("hamjepa", "optimizer", predictor_learning_rate=2.5e-4),
            _of("hamjepa", "optimizer", learning_rate=5e-4),
            _of("sigreg", "optimizer", learning_rate=5e-4),
            _of("hamjepa", "model", dtype="bfloat16"),
            Cell("hamjepa_mean_weight=1", "hamjepa", {"objective.regularizers.mean.weight": 1.0}),
            Cell(
                "hamjepa_logdet_weight=0.05",
                "hamjepa",
                {f"objective.regularizers.logdet_{half}.weight": 0.05 for half in "qp"},
            ),
            Cell("hamjepa_corrected", "hamjepa_corrected"),
            _of("hamjepa", "train", epochs=30),
            _of("sigreg", "train", epochs=30),
        ),
        reference="hamjepa",
    ),
    "predictor_x_regulariser": Grid(
        tuple(Cell(variant, variant) for r in REGULARISERS for p in PREDICTORS for variant in (f"{p}-{r}",)),
        reference="hamiltonian_flow-floors",
    ),
    "sensitivity": Grid(
        (
            Cell("hamjepa", "hamjepa"),
            *(
                _of("hamjepa", "predictor", step_size=step_size, num_steps=num_steps)
                for step_size in (0.01, 0.05, 0.2)
                for num_steps in (1, 2, 8)
                if (step_size, num_steps) != (0.05, 2)
            ),
            *(_of("hamjepa", "predictor", base_coeff=base_coeff) for base_coeff in (0.0, 1.0)),
            *(_of("hamjepa", "predictor", residual_scale=residual_scale) for residual_scale in (0.0, 0.2)),
        ),
        reference="hamjepa",
    ),
    "lambda": Grid(
        (
            Cell("hamjepa", "hamjepa"),
            *(
                _of("sigreg", "objective.regularizers.sigreg", weight=weight)
                for weight in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
            ),
        ),
        reference="hamjepa",
    ),
}
