"""The encoder and the flow in PyTorch; this file needs nothing but PyTorch, and lies beside exported weights.

    import json, torch
    from safetensors.torch import load_file
    from torch_encoder import Encoder, Flow, parts

    about = json.load(open("model.json"))
    weights = parts(load_file("pytorch_model.safetensors"))
    encoder = Encoder(**about["encoder"]).eval()
    encoder.load_state_dict(weights["encoder"])
    z = encoder(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))    # images (N, S, S, C), cut to size

References: He et al., "Deep Residual Learning for Image Recognition", 2016; Jenkinson Alvarez, arXiv 2605.20107.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional


def parts(weights: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """State dicts by what they are of: `encoder` and `predictor`, the first piece of every name."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in weights.items():
        part, _, rest = name.partition(".")
        found.setdefault(part, {})[rest] = tensor
    return found


def _convolution(channels: int, features: int, size: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, features, size, stride, size // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int):
        """Makes the layers, for maps of `channels` channels."""
        super().__init__()
        self.conv1, self.bn1 = _convolution(channels, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _convolution(width, width, 3, 1), nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, C, H, W) to (N, width, H/stride, W/stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class BottleneckBlock(nn.Module):
    """A 3×3 convolution between two 1×1 ones, beside a shortcut."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int):
        """Makes the layers, for maps of `channels` channels."""
        super().__init__()
        self.conv1, self.bn1 = _convolution(channels, width, 1, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _convolution(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _convolution(width, 4 * width, 1, 1), nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(channels, 4 * width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, C, H, W) to (N, 4·width, H/stride, W/stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def _shortcut(channels: int, features: int, stride: int) -> nn.Module:
    if channels == features and stride == 1:
        return nn.Sequential()
    return nn.Sequential(_convolution(channels, features, 1, stride), nn.BatchNorm2d(features))


BLOCKS = {"basic": BasicBlock, "bottleneck": BottleneckBlock}


class Encoder(nn.Module):
    """A headless ResNet: tokens of a stage, or the globally pooled last stage, as one embedding per image."""

    def __init__(
        self,
        *,
        block: str,
        widths: Sequence[int],
        depths: Sequence[int],
        stem: str,
        mode: str,
        token_layer: int,
        token_hw: int | None,
        token_d_f: int,
        split_qp: bool,
        out_dim: int,
        mean: Sequence[float],
        std: Sequence[float],
    ):
        """Makes the layers.

        Args:
            block: `basic` or `bottleneck`.
            widths: channels of the 3×3 convolutions of the stages.
            depths: blocks of the stages.
            stem: `cifar` (3×3, stride 1) or `imagenet` (7×7, stride 2, then a 3×3 max-pool of stride 2).
            mode: `tokens` or `global`.
            token_layer: stage, counted from 1, that gives the tokens.
            token_hw: tokens along each axis after pooling, or None for the map as it is.
            token_d_f: channels of a token.
            split_qp: whether the channels of a token split into positions and momenta.
            out_dim: embedding size of the mode `global`.
            mean: of every channel of images in [0, 1].
            std: the same.
        """
        super().__init__()
        self.mode, self.token_hw, self.split_qp = mode, token_hw, split_qp
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        small, channels = stem == "cifar", widths[0]
        first = nn.Conv2d(len(mean), channels, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        pool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        stages = []
        for number in range(token_layer if mode == "tokens" else len(widths)):
            blocks = []
            for i in range(depths[number]):
                stride = 2 if number > 0 and i == 0 else 1
                blocks.append(BLOCKS[block](channels, widths[number], stride))
                channels = widths[number] * BLOCKS[block].expansion
            stages.append(nn.Sequential(*blocks))
        beginning = [first, nn.BatchNorm2d(widths[0]), nn.ReLU(), pool]
        if mode == "global":
            self.backbone = nn.Sequential(*beginning, *stages)
            self.fc = nn.Linear(channels, out_dim)
            return
        self.stem = nn.Sequential(*beginning)
        self.num_stages = len(stages)
        for number, stage in enumerate(stages, start=1):
            self.add_module(f"layer{number}", stage)
        self.token_proj = nn.Sequential(nn.Conv2d(channels, token_d_f, 1, bias=False), nn.BatchNorm2d(token_d_f))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeds uint8 images (N, S, S, C), cut to size, as (N, D); a state is z = [q ; p]."""
        x = (images.to(self.mean.dtype) / 255 - self.mean) / self.std
        x = x.permute(0, 3, 1, 2)
        if self.mode == "global":
            return self.fc(self.backbone(x).mean(dim=(2, 3)))
        x = self.stem(x)
        for number in range(1, self.num_stages + 1):
            x = getattr(self, f"layer{number}")(x)
        if self.token_hw is not None:
            x = functional.adaptive_avg_pool2d(x, self.token_hw)
        tokens = self.token_proj(x).permute(0, 2, 3, 1)
        if not self.split_qp:
            return tokens.flatten(1)
        q, p = tokens.chunk(2, dim=-1)
        return torch.cat([q.flatten(1), p.flatten(1)], dim=1)


class _Energy(nn.Module):
    """V(q) = ½·a·‖q‖² + s·f(q), f an MLP."""

    def __init__(self, dim: int, hidden_dim: int, depth: int):
        super().__init__()
        layers: list[nn.Module] = []
        for number in range(depth):
            layers += [nn.Linear(dim if number == 0 else hidden_dim, hidden_dim), nn.GELU()]
        self.residual_V = nn.Sequential(*layers, nn.Linear(hidden_dim if depth else dim, 1))


class Flow(nn.Module):
    """The Hamiltonian flow, by leapfrog: H(q, p) = ½‖p‖² + ½·a·‖q‖² + s·f(q)."""

    def __init__(
        self,
        *,
        state_dim: int,
        hidden_dim: int,
        depth: int,
        base_coeff: float,
        residual_scale: float,
        step_size: float,
        num_steps: int,
    ):
        """Makes the layers.

        Args:
            state_dim: size D of a state.
            hidden_dim: width of f.
            depth: hidden layers of f.
            base_coeff: a.
            residual_scale: s.
            step_size: τ.
            num_steps: K.
        """
        super().__init__()
        self.H = _Energy(state_dim // 2, hidden_dim, depth)
        self.register_buffer("dt", torch.tensor(step_size))
        self.base_coeff, self.residual_scale, self.num_steps = base_coeff, residual_scale, num_steps

    def force(self, q: torch.Tensor) -> torch.Tensor:
        """∇V(q), of the shape of q (N, D/2)."""
        with torch.enable_grad():
            leaf = q if q.requires_grad else q.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.H.residual_V(leaf).sum(), leaf, create_graph=q.requires_grad)
        return self.base_coeff * q + self.residual_scale * gradient

    def forward(self, z: torch.Tensor, direction: int = 1) -> torch.Tensor:
        """Carries states (N, D) on, or back with the direction −1."""
        q, p = z.chunk(2, dim=-1)
        step = direction * self.dt
        force = self.force(q)
        for _ in range(self.num_steps):
            p = p - 0.5 * step * force
            q = q + step * p
            force = self.force(q)
            p = p - 0.5 * step * force
        return torch.cat([q, p], dim=-1)
