"""The training step of configs/cifar100.py in plain PyTorch, and SIGReg alone, to be timed beside ours.

    python -m hamjepa_jax.benchmarks.torch_step hamjepa --batch_size=64 --threads=2
    python -m hamjepa_jax.benchmarks.torch_step sigreg_alone --batch_size=512 --directions=1024 --points=17

For every line on standard input it makes a step and prints the seconds that it took, so that two programs can take
turns. The views are drawn before: unlike ours, its step has no augmentation.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from typing import Any

VARIANTS = ("hamjepa", "sigreg", "sigreg_alone")
VIEWS, IMAGE_SIZE = 2, 32
# Width, stride of the first convolution, and residual blocks of each stage of a ResNet-18 up to its tokens.
STAGES = ((64, 1, 2), (128, 2, 2), (256, 2, 2))
TOKEN_CHANNELS, HIDDEN_DIM = 32, 256
STEP_SIZE, NUM_STEPS, BASE_COEFF, RESIDUAL_SCALE = 0.05, 2, 0.1, 0.02
# Floors of the participation ratio and ceilings of the largest eigenvalue's share, of q and p.
SPECTRA = ((0.12, 0.35), (0.16, 0.30))
NUM_DIRECTIONS, NUM_POINTS, T_MAX, SIGREG_WEIGHT = 64, 9, 3.0, 0.02


class Model:
    """The parameters, and the functions of them that make the loss.

    Attributes:
        parameters: all tensors that are learned.
    """

    def __init__(self, variant: str, device: str, channels_last: bool):
        """Draws the parameters.

        Args:
            variant: `hamjepa` or `sigreg`.
            device: `cpu` or `cuda`.
            channels_last: whether kernels lie in memory as those of channels-last maps do.
        """
        import torch

        self._torch, self._functional, self._variant, self._device = torch, torch.nn.functional, variant, device
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self.parameters: list[Any] = []
        self._stem = self._convolution(3, STAGES[0][0], 3, 1)
        self._blocks, channels = [], STAGES[0][0]
        for width, stride, depth in STAGES:
            for block in range(depth):
                step = stride if block == 0 else 1
                plain = channels == width and step == 1
                shortcut = None if plain else self._convolution(channels, width, 1, step)
                both = (self._convolution(channels, width, 3, step), self._convolution(width, width, 3, 1))
                self._blocks.append((*both, shortcut))
                channels = width
        self._token = self._convolution(channels, TOKEN_CHANNELS, 1, 1)
        dim = TOKEN_CHANNELS * (IMAGE_SIZE // 4) ** 2 // 2
        sizes = (dim, HIDDEN_DIM, HIDDEN_DIM, 1)
        self._energy = [
            (self._learned(torch.randn(b, a) * a**-0.5), self._learned(torch.zeros(b)))
            for a, b in (zip(sizes, sizes[1:], strict=False) if variant == "hamjepa" else ())
        ]

    def _learned(self, tensor: Any) -> Any:
        tensor = tensor.to(self._device).requires_grad_()
        self.parameters.append(tensor)
        return tensor

    def _convolution(self, channels: int, features: int, size: int, stride: int) -> Callable[[Any], Any]:
        """A convolution and its batch normalisation."""
        torch, functional = self._torch, self._functional
        kernel = torch.randn(features, channels, size, size) * (2 / (features * size * size)) ** 0.5
        kernel = self._learned(kernel.contiguous(memory_format=self._format))
        scale, bias = self._learned(torch.ones(features)), self._learned(torch.zeros(features))
        mean, variance = torch.zeros(features, device=self._device), torch.ones(features, device=self._device)

        def apply(x: Any) -> Any:
            y = functional.conv2d(x, kernel, stride=stride, padding=size // 2)
            return functional.batch_norm(y, mean, variance, scale, bias, training=True, momentum=0.1)

        return apply

    def embed(self, images: Any) -> Any:
        """Tokens of images, with the q of all tokens before the p, as (N, D)."""
        relu = self._functional.relu
        x = relu(self._stem(images))
        for first, second, shortcut in self._blocks:
            x = relu(second(relu(first(x))) + (x if shortcut is None else shortcut(x)))
        return self._token(x).float().flatten(1)

    def loss(self, z: Any, directions: Any, projections: Any) -> Any:
        """The loss of embeddings of the views, (V, B, D)."""
        return self._sigreg(z, directions) if self._variant == "sigreg" else self._hamjepa(z, projections)

    def _sigreg(self, z: Any, directions: Any) -> Any:
        prediction = (z.mean(0) - z).square().mean()
        return 0.5 * prediction + SIGREG_WEIGHT * epps_pulley(z @ directions, NUM_POINTS).mean()

    def _hamjepa(self, z: Any, projections: Any) -> Any:
        q, p = z.chunk(2, dim=-1)
        there = self._flow(q[0], p[0], STEP_SIZE)
        back = self._flow(q[1], p[1], -STEP_SIZE)
        loss = 0.5 * (self._mismatch(there, q[1], p[1]) + self._mismatch(back, q[0], p[0]))
        loss = loss + 0.05 * z.flatten(0, 1).mean(0).square().mean()
        for half, projection, (participation_floor, eigmax_ceiling) in zip((q, p), projections, SPECTRA, strict=True):
            rows = half.flatten(0, 1)
            loss = loss + 0.2 * (rows.square().mean() - 1).square()
            std = (rows.var(0, unbiased=False).clamp_min(0) + 1e-4).sqrt()
            loss = loss + 0.5 * self._functional.relu(0.2 - std).square().mean()
            loss = loss + 0.5 * self._spectral_floor(rows, projection, participation_floor, eigmax_ceiling)
        return loss

    def _mismatch(self, state: Any, q: Any, p: Any) -> Any:
        return (state[0] - q.detach()).square().mean() + 0.2 * (state[1] - p.detach()).square().mean()

    def _spectral_floor(self, rows: Any, projection: Any, participation_floor: float, eigmax_ceiling: float) -> Any:
        torch, relu = self._torch, self._functional.relu
        projected = (rows - rows.mean(0)) @ projection
        rank = projection.shape[1]
        covariance = projected.T @ projected / (len(rows) - 1) + 1e-4 * torch.eye(rank, device=self._device)
        trace = covariance.trace()
        participation = trace.square() / (covariance.square().sum() + 1e-12) / rank
        eigmax = torch.linalg.eigvalsh(covariance)[-1] / trace
        logdet = torch.logdet(covariance) / rank
        return (
            relu(-1.5 - logdet).square()
            + relu(participation_floor - participation).square()
            + relu(eigmax - eigmax_ceiling).square()
        )

    def _flow(self, q: Any, p: Any, step_size: float) -> tuple[Any, Any]:
        """Leapfrog with the separable energy."""
        force = self._force(q)
        for _ in range(NUM_STEPS):
            p = p - 0.5 * step_size * force
            q = q + step_size * p
            force = self._force(q)
            p = p - 0.5 * step_size * force
        return q, p

    def _force(self, q: Any) -> Any:
        hidden = q
        for weight, bias in self._energy[:-1]:
            hidden = self._functional.gelu(self._functional.linear(hidden, weight, bias))
        energy = self._functional.linear(hidden, *self._energy[-1]).sum()
        (gradient,) = self._torch.autograd.grad(energy, q, create_graph=True)
        return BASE_COEFF * q + RESIDUAL_SCALE * gradient


def epps_pulley(x: Any, num_points: int) -> Any:
    """The statistic of samples (..., N, K), knot by knot at once as an array (..., N, K, T)."""
    import torch

    knots = torch.linspace(0, T_MAX, num_points, device=x.device)
    weights = torch.full_like(knots, 2 * T_MAX / (num_points - 1))
    weights[[0, -1]] *= 0.5
    normal = torch.exp(-0.5 * knots.square())
    angles = x.unsqueeze(-1) * knots
    error = (angles.cos().mean(-3) - normal).square() + angles.sin().mean(-3).square()
    return x.shape[-2] * error @ (weights * normal)


def make_step(options: argparse.Namespace) -> Callable[[], float]:
    """Builds the model and the optimizer.

    Args:
        options: those of the command line.

    Returns:
        A function that makes a step and returns its loss.
    """
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.variant == "sigreg_alone":
        return make_sigreg(options)
    model = Model(options.variant, options.device, options.channels_last)
    optimizer = torch.optim.AdamW(model.parameters, lr=5e-4, weight_decay=5e-4)
    num_images = VIEWS * options.batch_size
    images = torch.randn(num_images, 3, IMAGE_SIZE, IMAGE_SIZE, device=options.device)
    images = images.contiguous(memory_format=torch.channels_last if options.channels_last else torch.contiguous_format)
    embed = torch.compile(model.embed) if options.compile else model.embed
    dim = TOKEN_CHANNELS * (IMAGE_SIZE // 4) ** 2
    rank = min(128, dim // 2, num_images - 1)
    counter, projections = 0, None

    def step() -> float:
        nonlocal counter, projections
        if counter % 16 == 0 and options.variant == "hamjepa":
            projections = [torch.linalg.qr(torch.randn(dim // 2, rank, device=options.device))[0] for _ in range(2)]
        counter += 1
        directions = torch.nn.functional.normalize(torch.randn(dim, NUM_DIRECTIONS, device=options.device), dim=0)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(options.device, torch.bfloat16, enabled=options.bfloat16):
            z = embed(images)
        loss = model.loss(z.view(VIEWS, options.batch_size, dim), directions, projections)
        loss.backward()
        if options.variant == "hamjepa":
            torch.nn.utils.clip_grad_norm_(model.parameters, 1.0)
        optimizer.step()
        return loss.item()

    return step


def make_sigreg(options: argparse.Namespace) -> Callable[[], float]:
    """SIGReg and its gradient.

    Args:
        options: those of the command line.

    Returns:
        A function that computes them and returns the value.
    """
    import torch

    z = torch.randn(VIEWS, options.batch_size, options.dim, device=options.device, requires_grad=True)
    directions = torch.randn(options.dim, options.directions, device=options.device)
    directions = torch.nn.functional.normalize(directions, dim=0)

    def step() -> float:
        z.grad = None
        value = epps_pulley(z @ directions, options.points).mean()
        value.backward()
        return value.item()

    return step


def main() -> None:
    """Makes a step for every line of standard input, and prints its seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=VARIANTS, help="the objective, or SIGReg without an encoder")
    parser.add_argument("--batch_size", type=int, default=64, help="images of a batch, each of two views")
    parser.add_argument("--dim", type=int, default=2048, help="size of the embeddings of SIGReg alone")
    parser.add_argument("--directions", type=int, default=1024, help="directions of SIGReg alone")
    parser.add_argument("--points", type=int, default=17, help="knots of SIGReg alone")
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it runs")
    parser.add_argument("--bfloat16", action="store_true", help="autocast the encoder to bfloat16")
    parser.add_argument("--channels_last", action="store_true", help="maps and kernels with the channels last")
    parser.add_argument("--compile", action="store_true", help="compile the encoder")
    options = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        parser.error("PyTorch is not installed; pip install torch")
    step = make_step(options)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
