"""Statistics of a batch of embeddings: one-dimensional normality tests, their sliced form, and the floors."""
