"""Films of pendula: rendered motion, with the states that no encoder is shown.

One pendulum, or two of them with a spring in between, swings without friction in units of its length, mass and gravity:
θ̈ᵢ = −sin θᵢ − c·(θᵢ − θⱼ). A *frame* is what there is to see at an instant. An *image* stacks two frames δ apart, so
that motion can be seen in it: the first one red, the second one cyan, as in an anaglyph. A *film* is a row of images,
the views, Δ apart.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hamjepa_jax.data.sources import ArraySource

# Number of pendula by name of the data set.
PENDULA = {"pendulum": 1, "coupled_pendula": 2}
NUM_IMAGES = {"train": 8192, "test": 2048}
IMAGE_SIZE = 32
NUM_VIEWS = 2
# Times are in units of √(length/gravity): a small oscillation has the period 2π.
FRAME_GAP = 0.3
VIEW_GAP = 0.8
# Stiffness c of the spring.
COUPLING = 0.3
# Pendula are let go at rest at angles within these, on either side, and filmed after a random time. Two of them could
# otherwise bring one over the top, where its angle is not what an image shows.
AMPLITUDES = {1: 2.2, 2: 1.2}
LONGEST_WAIT = 10.0
TOLERANCE = 1e-8
NUM_CLASSES = 8
# In image sizes: where a pendulum hangs, its length, and the radius of its bob, which tells one from the other.
PIVOTS = {1: (0.0,), 2: (-0.2, 0.2)}
LENGTHS = {1: 0.4, 2: 0.22}
BOB_RADII = (0.07, 0.045)
ROD_RADIUS = 0.02


class FilmSource(ArraySource):
    """Films in memory.

    Attributes:
        images: uint8 (N, S, V·S, 3), the V views of a film side by side.
        labels: int32 (N,), in which of eight equal sectors of the phase plane the first pendulum is at the first view.
        class_names: the sectors, in degrees from the angle's axis towards that of the angular velocity.
        states: float32 (N, V, 2d), angles θ and angular velocities θ̇ of the d pendula midway between the two frames of
            each view.
    """

    def __init__(self, images: np.ndarray, states: np.ndarray):
        """Keeps the arrays, and names the sectors."""
        dim = states.shape[-1] // 2
        phase = np.arctan2(states[:, 0, dim], states[:, 0, 0]) % (2.0 * np.pi)
        labels = np.minimum(phase * NUM_CLASSES / (2.0 * np.pi), NUM_CLASSES - 1).astype(np.int32)
        width = 360 // NUM_CLASSES
        super().__init__(images, labels, tuple(f"{width * k}–{width * (k + 1)}°" for k in range(NUM_CLASSES)))
        self.states = states

    def still(self, index: int, min_shorter_side: int | None = None) -> Mapping[str, Any]:
        """The first view of a film, which is what an evaluation embeds."""
        return {"image": self.images[index, :, : self.images.shape[1]], "label": int(self.labels[index])}


def films(name: str, split: str) -> FilmSource:
    """Films of pendula, always the same.

    Args:
        name: `pendulum` or `coupled_pendula`.
        split: `train` or `test`.

    Returns:
        The films.

    Raises:
        ValueError: for an unknown name or split.
    """
    if name not in PENDULA or split not in NUM_IMAGES:
        raise ValueError(
            f"there are films of {', '.join(PENDULA)} for {', '.join(NUM_IMAGES)}, got {name!r}, {split!r}"
        )
    rng = np.random.default_rng([PENDULA[name], list(NUM_IMAGES).index(split)])
    starts_Nx2d = draw_states(rng, NUM_IMAGES[split], num_pendula=PENDULA[name])
    half = FRAME_GAP / 2.0
    instants = [VIEW_GAP * view + shift for view in range(NUM_VIEWS) for shift in (-half, 0.0, half)]
    # The first frame is half a gap before the state that was drawn.
    begin_Nx2d = swing(starts_Nx2d, np.array([-half]))[0]
    states_TxNx2d = swing(begin_Nx2d, np.array(instants) + half)
    frames_TxNxSxS = render(states_TxNx2d[..., : PENDULA[name]])
    views = [anaglyph(frames_TxNxSxS[3 * view], frames_TxNxSxS[3 * view + 2]) for view in range(NUM_VIEWS)]
    states = np.stack([states_TxNx2d[3 * view + 1] for view in range(NUM_VIEWS)], axis=1)
    return FilmSource(np.concatenate(views, axis=2), states.astype(np.float32))


def draw_states(rng: np.random.Generator, count: int, *, num_pendula: int) -> np.ndarray:
    """States that pendula come to when they are let go at rest at random angles, after random times.

    Args:
        rng: the random numbers.
        count: number N of states.
        num_pendula: number d of pendula.

    Returns:
        Angles and angular velocities [θ ; θ̇], float64 (N, 2d).
    """
    amplitude = AMPLITUDES[num_pendula]
    angles = rng.uniform(-amplitude, amplitude, (count, num_pendula))
    waits = rng.uniform(0.0, LONGEST_WAIT, (count, 1))
    # With a time of its own for each, all of them arrive at 1.
    return swing(np.concatenate([angles, np.zeros_like(angles)], axis=1), np.array([1.0]), speed=waits)[0]


def swing(states_Nx2d: np.ndarray, times: np.ndarray, *, speed: np.ndarray | float = 1.0) -> np.ndarray:
    """Follows the equations of motion.

    Args:
        states_Nx2d: angles and angular velocities at time 0.
        times: times of one sign, growing in magnitude, (T,).
        speed: how fast time goes by, a number or (N, 1).

    Returns:
        States (T, N, 2d).
    """
    from scipy.integrate import solve_ivp

    shape = states_Nx2d.shape
    if not np.any(times):
        # The solver would make no step.
        return np.repeat(states_Nx2d[None], len(times), axis=0)

    def motion(time: float, flat: np.ndarray) -> np.ndarray:
        del time
        angles, velocities = np.split(flat.reshape(shape), 2, axis=1)
        forces = -np.sin(angles) - COUPLING * (angles - angles[:, ::-1])
        return (speed * np.concatenate([velocities, forces], axis=1)).ravel()

    span, settings = (0.0, float(times[-1])), {"rtol": TOLERANCE, "atol": TOLERANCE, "method": "DOP853"}
    solution = solve_ivp(motion, span, states_Nx2d.ravel(), t_eval=times, **settings)
    return np.moveaxis(solution.y, 1, 0).reshape(len(times), *shape)


def energies(states: np.ndarray) -> np.ndarray:
    """The energy of all pendula, Σᵢ ½θ̇ᵢ² + (1 − cos θᵢ), and ½c·(θ₁ − θ₂)² of the spring.

    Args:
        states: states (..., 2d).

    Returns:
        Energies (...,) in units of mass·gravity·length.
    """
    angles, velocities = np.split(states, 2, axis=-1)
    spring = 0.5 * COUPLING * (angles[..., 0] - angles[..., -1]) ** 2
    return np.sum(0.5 * velocities**2 + 1.0 - np.cos(angles), axis=-1) + spring


def render(angles: np.ndarray) -> np.ndarray:
    """Draws pendula at an instant: rods and bobs, white on black, with edges that are smooth over a pixel.

    Args:
        angles: angles (..., d), 0 hanging down, positive to the right.

    Returns:
        Frames, uint8 (..., 32, 32).
    """
    num_pendula = angles.shape[-1]
    centers = ((np.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE - 0.5).astype(np.float32)
    length, drawn = np.float32(LENGTHS[num_pendula]), np.zeros((*angles.shape[:-1], IMAGE_SIZE, IMAGE_SIZE), np.float32)
    for i in range(num_pendula):
        right, down = np.meshgrid(centers - np.float32(PIVOTS[num_pendula][i]), centers)
        angle = angles[..., i, None, None].astype(np.float32)
        sine, cosine = np.sin(angle), np.cos(angle)
        along, across = right * sine + down * cosine, right * cosine - down * sine
        to_rod = np.hypot(across, along - np.clip(along, 0.0, length))
        to_bob = np.hypot(across, along - length)
        depth = np.maximum(np.float32(ROD_RADIUS) - to_rod, np.float32(BOB_RADII[i]) - to_bob)
        np.maximum(drawn, np.clip(depth * IMAGE_SIZE + 0.5, 0.0, 1.0), out=drawn)
    return np.rint(255.0 * drawn).astype(np.uint8)


def anaglyph(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two frames in one image, the first red and the second cyan.

    Args:
        first: frames (..., H, W).
        second: frames (..., H, W).

    Returns:
        Images (..., H, W, 3).
    """
    return np.stack([first, second, second], axis=-1)
