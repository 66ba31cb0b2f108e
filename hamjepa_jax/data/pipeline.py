"""The host side of the input: which examples make up which batch (Grain; no jax, no state to lose)."""

import grain


def index_batches(num_examples: int, *, batch_size: int, seed: int) -> grain.MapDataset:
    """Batches of example indices, shuffled anew in every epoch; incomplete batches are dropped.

    The batch of a step is a function of the seed and the step alone, so a resumed run sees what an uninterrupted one
    would have seen.

    Args:
        num_examples: size of the data set.
        batch_size: examples in a batch, at most `num_examples`.
        seed: seed of the order.

    Returns:
        An endless sequence; item `step` is an int array (batch_size,).

    Raises:
        ValueError: if the batch is larger than the data set.
    """
    if not 0 < batch_size <= num_examples:
        raise ValueError(f"batch_size: must be between 1 and the {num_examples} examples, got {batch_size}")
    return grain.MapDataset.range(num_examples).shuffle(seed=seed).batch(batch_size, drop_remainder=True).repeat()
