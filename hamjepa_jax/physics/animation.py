"""The moving picture: a blob in the pendulum's phase plane, carried by three steps side by side."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hamjepa_jax.atomic_files import replacing
from hamjepa_jax.dynamics.energies import Params
from hamjepa_jax.dynamics.geometry import rollout
from hamjepa_jax.physics.gallery import LEARNED, SYSTEMS, energy_of, step_map
from hamjepa_jax.physics.invariants import circle, poincare_invariant
from hamjepa_jax.physics.style import COLORS, NAMES
from hamjepa_jax.plotting import STYLE

SHOWN = ("explicit_euler", LEARNED, "leapfrog")
SYSTEM = SYSTEMS["pendulum"]
FRAME_MILLISECONDS = 80
NUM_COLORS = 48


def carried_blob(learned: Params, *, num_states: int, num_frames: int, every: int) -> dict[str, np.ndarray]:
    """The outline of a blob in the pendulum's phase plane, as three steps carry it.

    Args:
        learned: parameters of the pendulum's learned step.
        num_states: number N of states along the outline.
        num_frames: number F of frames.
        every: steps between two frames.

    Returns:
        States (F, N, 2) by the name of the step.
    """
    blob = circle(jnp.array(SYSTEM.centre), SYSTEM.loop_radius, num_states)
    settings = {"num_applications": every * (num_frames - 1), "every": every}
    maps = {step: step_map(SYSTEM, step, learned) for step in SHOWN}
    return {
        step: np.asarray(jax.jit(lambda z, m=map_fn: rollout(m, z, lambda z: z, **settings))(blob))
        for step, map_fn in maps.items()
    }


def animate(carried: Mapping[str, np.ndarray], path: Path, *, every: int) -> None:
    """Draws the animation.

    Args:
        carried: see `carried_blob`.
        path: where the GIF goes.
        every: steps between two frames.

    Raises:
        StorageError: if it cannot be written; an older one is intact then.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    areas = {step: np.asarray(poincare_invariant(jnp.asarray(states))) for step, states in carried.items()}
    frames = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.6), layout="constrained", dpi=80)
        canvas = FigureCanvasAgg(figure)
        blobs = _still_parts(figure)
        for number in range(len(next(iter(carried.values())))):
            time = SYSTEM.step_size * every * number
            figure.suptitle(f"The same blob under three steps, time {time:.1f}: only leapfrog keeps its area")
            for step, (panel, blob) in blobs.items():
                blob.set_xy(carried[step][number])
                panel.set_title(f"{NAMES[step]}\narea × {areas[step][number] / areas[step][0]:.3f}")
            canvas.draw()
            frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]))
    # One palette for all frames, so that what stands still does not flicker.
    palette = frames[-1].quantize(NUM_COLORS)
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    with replacing(path) as replacement:
        first.save(replacement, format="GIF", save_all=True, append_images=others, duration=FRAME_MILLISECONDS, loop=0)


def _still_parts(figure: Any) -> dict[str, tuple[Any, Any]]:
    """Draws what does not move; returns the panel of each step, and the blob in it."""
    from matplotlib.patches import Polygon

    x, y = SYSTEM.portrait
    q, p = np.meshgrid(np.linspace(x.low, x.high, 81), np.linspace(y.low, y.high, 81))
    energy = np.asarray(energy_of(SYSTEM, jnp.stack([q, p], axis=-1)))
    found = {}
    for step, panel in zip(SHOWN, figure.subplots(1, len(SHOWN), sharey=True), strict=True):
        panel.contour(q, p, energy, levels=(0.2, 0.5, 1.0, 1.5, 2.0), colors="#c8c8c8", linewidths=1)
        blob = Polygon(np.zeros((1, 2)), facecolor=COLORS[step], edgecolor=COLORS[step], alpha=0.6, linewidth=2)
        panel.add_patch(blob)
        panel.set(xlim=(x.low, x.high), ylim=(y.low, y.high), xlabel=x.label)
        panel.grid(False)
        found[step] = panel, blob
    found[SHOWN[0]][0].set_ylabel(y.label)
    return found
