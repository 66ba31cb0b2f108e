import pytest

from hamjepa_jax.interop import torch_file


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    """Checkpoints are read as where PyTorch is not installed."""
    monkeypatch.setattr(torch_file, "has_torch", lambda: False)
