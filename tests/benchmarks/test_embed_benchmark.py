import pytest

from hamjepa_jax.benchmarks import embed


def test_the_start_is_left_out_of_the_full_speed():
    few = {"images": 2500, "seconds": 10.0, "peak_memory_gib": 0.5, "operations_per_image": 1e6}
    many = {"images": 10_000, "seconds": 25.0, "peak_memory_gib": 0.6, "operations_per_image": 1e6}
    (row,) = embed.rows({"small": [few, many]}, rate=1e9)
    assert row["images_per_second"] == pytest.approx(400)
    assert row["at_full_speed"] == pytest.approx(500)
    assert row["floor"] == pytest.approx(1000)
    assert embed.markdown_table([row]).splitlines()[-1] == "| small | 400 | 500 | 1,000 | 0.50 | 0.60 |"
