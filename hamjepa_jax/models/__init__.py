"""Encoders, the only modules written in Flax Linen: images in, embeddings out."""
