import pytest

from hamjepa_jax import build
from hamjepa_jax.errors import UserError
from hamjepa_jax.evaluation.run import check


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("evaluation.ks", (0, 5), "must be numbers of neighbours between 1 and 1347, got (0, 5)"),
        ("evaluation.ks", (5, 2000), "between 1 and 1347"),
        ("evaluation.ks", (), "between 1 and 1347"),
        ("evaluation.few_label_probe.labels_per_class", 500, "must be between 1 and the 131 images"),
    ],
)
def test_what_the_data_cannot_give_is_named_before_training(digits_config, key, value, message):
    config = digits_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as error:
        check(config, build.experiment(config))
    assert str(error.value).startswith(f"config.{key}: ")
    assert message in str(error.value)
