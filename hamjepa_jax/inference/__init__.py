"""A trained model and one's own images: embeddings, nearest neighbours, probes."""
