"""The gallery from beginning to end: learn, roll out, measure, draw."""

import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from hamjepa_jax import environment
from hamjepa_jax.atomic_files import plain, write_json
from hamjepa_jax.physics import animation, figures_maps, figures_rollouts, maps, numbers, rollouts
from hamjepa_jax.physics.gallery import STEPS, SYSTEMS
from hamjepa_jax.physics.learned_step import learn_steps


class Settings(NamedTuple):
    """How much is computed.

    Attributes:
        seed: of all random states and weights.
        num_starts: random starts of each system.
        loop_size: states along each loop, and along the blob of the animation.
        cloud_size: states in each cloud.
        num_steps: steps of a roll-out.
        every: steps between two observations of it.
        grid_size: starts along each axis of a map.
        num_mapped: steps over which a map takes the largest energy error.
        num_reversed: steps that a map makes forwards and then back.
        num_pairs: states that a learned step is trained on.
        num_updates: steps of Adam.
        learning_rate: the first one.
        num_frames: frames of the animation.
        frame_every: steps between two of them.
    """

    seed: int = 0
    num_starts: int = 256
    loop_size: int = 256
    cloud_size: int = 512
    num_steps: int = 2000
    every: int = 10
    grid_size: int = 48
    num_mapped: int = 1000
    num_reversed: int = 200
    num_pairs: int = 2048
    num_updates: int = 2500
    learning_rate: float = 1e-2
    num_frames: int = 56
    frame_every: int = 4


def run(directory: Path, console: Console, settings: Settings = Settings()) -> None:  # noqa: B008
    """Computes the gallery in double precision and writes its figures, its animation and its numbers.

    Args:
        directory: where physics.json, the PNGs and the GIF go; it is made if need be.
        console: where progress, the table and the names of the files are shown.
        settings: how much is computed.

    Raises:
        StorageError: if something cannot be written.
    """
    start = time.perf_counter()
    with jax.enable_x64(True), console.status("") as status:
        status.update("training the learned steps")
        keys = dict(zip(("learned", "carried"), jax.random.split(jax.random.key(settings.seed)), strict=True))
        learn = partial(
            learn_steps,
            num_pairs=settings.num_pairs,
            num_steps=settings.num_updates,
            learning_rate=settings.learning_rate,
        )
        learned = environment.jit_quickly(learn)(keys["learned"])
        params = {name: one.params for name, one in learned.items()}
        status.update("rolling out four systems under six steps")
        carried = _carried(keys["carried"], settings)
        observed = rollouts.roll_out(carried, params, num_steps=settings.num_steps, every=settings.every)
        status.update("mapping starts")
        mapped = maps.map_starts(
            params, size=settings.grid_size, num_steps=settings.num_mapped, num_reversed=settings.num_reversed
        )
        defects = maps.defects({name: one.starts for name, one in carried.items()}, params)
        observed, mapped, defects = jax.device_get((observed, mapped, defects))
        summaries = {
            name: {
                step: numbers.summary(observed[name][step], mapped[name][step], defects[name][step]) for step in STEPS
            }
            for name in SYSTEMS
        }
        status.update("drawing")
        files = list(_draw(directory, settings, observed, mapped, defects, summaries))
        files.append(_animate(directory, settings, params["pendulum"]))
        errors = {
            name: {"error": float(learned[name].error), "relative_error": float(learned[name].relative_error)}
            for name in SYSTEMS
        }
        files.append(_write_numbers(directory, settings, summaries, errors, time.perf_counter() - start))
    console.print(numbers.table(summaries))
    console.print("∞: states left all bounds")
    shares = ", ".join(f"{SYSTEMS[name].title} {100 * one['relative_error']:.2f} %" for name, one in errors.items())
    console.print(f"error of a learned step, relative to the step: {shares}")
    for file in files:
        console.print(f"written: {file}", soft_wrap=True)


def _carried(key: jax.Array, settings: Settings) -> dict[str, rollouts.Carried]:
    return {
        name: rollouts.carried_at_first(
            system,
            jax.random.fold_in(key, index),
            num_starts=settings.num_starts,
            loop_size=settings.loop_size,
            cloud_size=settings.cloud_size,
        )
        for index, (name, system) in enumerate(SYSTEMS.items())
    }


def _draw(
    directory: Path, settings: Settings, observed: Any, mapped: Any, defects: Any, summaries: Mapping[str, Any]
) -> Iterator[Path]:
    """Draws every figure; yields where it is."""
    draw = {
        "orbits": partial(figures_rollouts.draw_orbits, observed),
        "energy": partial(figures_rollouts.draw_energy_errors, summaries, every=settings.every),
        "energy_maps": partial(figures_maps.draw_energy_maps, mapped, num_steps=settings.num_mapped),
        "area": partial(figures_rollouts.draw_areas, summaries, every=settings.every),
        "defect": partial(figures_maps.draw_defects, defects),
        "reversal": partial(figures_maps.draw_reversal_maps, mapped, num_reversed=settings.num_reversed),
        "covariance": partial(figures_rollouts.draw_covariances, summaries, every=settings.every),
    }
    for name, draw_to in draw.items():
        path = directory / f"physics_{name}.png"
        draw_to(path=path)
        yield path


def _animate(directory: Path, settings: Settings, learned: Any) -> Path:
    path = directory / "physics_blob.gif"
    carried = animation.carried_blob(
        learned, num_states=settings.loop_size, num_frames=settings.num_frames, every=settings.frame_every
    )
    animation.animate(carried, path, every=settings.frame_every)
    return path


def _write_numbers(
    directory: Path, settings: Settings, summaries: Mapping[str, Any], errors: Mapping[str, Any], seconds: float
) -> Path:
    path = directory / "physics.json"
    about = {
        "settings": settings._asdict(),
        "step_size": {name: system.step_size for name, system in SYSTEMS.items()},
        "learned": errors,
        "systems": summaries,
        "seconds": seconds,
        "environment": environment.describe(),
    }
    write_json(path, plain(about, digits=6))
    return path
