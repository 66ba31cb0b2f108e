"""The paper's protocol, scaled down to what two CPU cores can do.

What the objective sees stays as published: the state size, every weight and floor, the views, a batch of 256 as on
ImageNet-100. What costs time is cut: images, channels, blocks and epochs. Warm-up and ramp keep their share of a run
of 30 epochs, and the learning rates their sum over a run: a fifth of the published steps on CIFAR-100, each five times
as long.

References: Jenkinson Alvarez, arXiv 2605.20107.
"""

import ml_collections

NUM_IMAGES = 10_000
EPOCHS = 15
# Of 30 published epochs.
SHARE_OF_EPOCHS = 1 / 2
LEARNING_RATE_FACTOR = 5
SIZE = 32


def scale_down(config: ml_collections.ConfigDict) -> None:
    """Scales a published config down, in place.

    A quarter of the width and one block a stage, 15 epochs of 10,000 images of 32×32 pixels, float32. The evaluation
    fits the published probe alone, without a sweep and without few labels.

    Args:
        config: that of CIFAR-100, CIFAR-10 or Tiny-ImageNet-100, with a ResNet.
    """
    config.name += "_scaled_down"
    config.data.update(
        batch_size=256,
        view_size=SIZE,
        local_view_size=SIZE // 2,
        canvas_size=SIZE,
    )
    config.data.augmentation.blur_kernel_size = 3
    config.model.update(
        widths=tuple(width // 4 for width in config.model.widths),
        depths=(1,) * len(config.model.depths),
        dtype="float32",
    )
    config.predictor.residual_ramp_epochs = int(config.predictor.residual_ramp_epochs * SHARE_OF_EPOCHS)
    config.optimizer.update(
        learning_rate=config.optimizer.learning_rate * LEARNING_RATE_FACTOR,
        warmup_epochs=int(config.optimizer.warmup_epochs * SHARE_OF_EPOCHS),
    )
    if config.optimizer.predictor_learning_rate is not None:
        config.optimizer.predictor_learning_rate *= LEARNING_RATE_FACTOR
    config.train.epochs = EPOCHS
    config.evaluation.resize = SIZE
    config.evaluation.probe.learning_rates = (config.evaluation.probe.learning_rate,)
    config.evaluation.few_label_probe.update(labels_per_class=(), fractions=())
    config.log.every_steps = 20
