"""Data sets that tests may break, and how sources refuse them."""

import shutil

import pytest

from hamjepa_jax.data.sources import SourceError, open_source


@pytest.fixture
def own_tfds(tfds_directory, tmp_path):
    """A copy of it that a test may break."""
    return shutil.copytree(tfds_directory, tmp_path / "copy")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache directory of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def assert_refused():
    """A function that opens a source and checks which argument is at fault, and what the one line says."""

    def open_and_check(argument, message, name, split, data_dir, **options):
        with pytest.raises(SourceError) as caught:
            open_source(name, split, data_dir=data_dir, **options)
        assert caught.value.argument == argument
        assert "\n" not in str(caught.value)
        for part in [message] if isinstance(message, str) else message:
            assert part in str(caught.value)

    return open_and_check
