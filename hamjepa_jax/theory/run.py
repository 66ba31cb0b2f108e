"""The theory from beginning to end: check every statement, learn couplings, draw."""

from pathlib import Path

import jax
from rich.console import Console

from hamjepa_jax import environment
from hamjepa_jax.atomic_files import plain, write_json
from hamjepa_jax.theory import figures, identifiability, identifiability_figures, statements

NUM_SEEDS = 5


def run(directory: Path, console: Console, *, seed: int = 0, num_seeds: int = NUM_SEEDS) -> None:
    """Checks the statements of the paper, learns couplings from data, prints both tables, and writes the figures.

    Args:
        directory: where theory.json and the PNGs go; it is made if need be.
        console: where progress, the tables and the names of the files are shown.
        seed: seed of the random geometries.
        num_seeds: seeds over which couplings are learned.

    Raises:
        StorageError: if something cannot be written.
        DisprovedError: if a statement does not hold, when everything is written.
    """
    with console.status("checking the statements") as status:
        with jax.enable_x64(True):
            checked = statements.check_statements(seed=seed)
            status.update("drawing")
            files = figures.draw_all(directory, seed=seed)
        status.update("learning couplings from data")
        learned = identifiability.learn_couplings(seeds=tuple(range(num_seeds)))
        files += identifiability_figures.draw_all(learned, directory)
    found = {
        "statements": [statement._asdict() | {"holds": statement.holds} for statement in checked],
        "identifiability": learned,
        "environment": environment.describe(),
    }
    write_json(directory / "theory.json", plain(found))
    statements.print_table(checked, console)
    console.print()
    identifiability_figures.print_table(learned, console)
    for path in (*files, directory / "theory.json"):
        console.print(f"written: {path}")
    statements.require_all(checked)
