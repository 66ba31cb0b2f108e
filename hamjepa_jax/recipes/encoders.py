"""The encoders of the recipes: ResNet-18, -34, -50 and ViT-Ti, -S, -B.

References: He et al., "Deep Residual Learning for Image Recognition", 2016; Dosovitskiy et al., "An Image is Worth
16x16 Words", 2021.
"""

from hamjepa_jax.recipes.forms import Group


def _resnet(block: str, depths: tuple[int, ...]) -> Group:
    return {"name": "resnet", "block": block, "widths": (64, 128, 256, 512), "depths": depths, "token_layer": 3}


def _vit(hidden_dim: int, num_heads: int) -> Group:
    sizes = {"hidden_dim": hidden_dim, "depth": 12, "num_heads": num_heads}
    return {"name": "vit", "patch_size": 16, "num_registers": 4} | sizes


ENCODERS = {
    "resnet18": _resnet("basic", (2, 2, 2, 2)),
    "resnet34": _resnet("basic", (3, 4, 6, 3)),
    "resnet50": _resnet("bottleneck", (3, 4, 6, 3)),
    "vit_ti": _vit(192, 3),
    "vit_s": _vit(384, 6),
    "vit_b": _vit(768, 12),
}


def encoder(name: str, *, stem: str, patch_size: int) -> Group:
    """The fields of the group `model` that say which encoder it is.

    Args:
        name: one of `ENCODERS`.
        stem: stem of a ResNet.
        patch_size: pixels along a side of a ViT's patches.

    Returns:
        The fields.
    """
    fields = dict(ENCODERS[name])
    return fields | ({"stem": stem} if fields["name"] == "resnet" else {"patch_size": patch_size})
