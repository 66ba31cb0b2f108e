import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file
from saved_runs import save_run

from hamjepa_jax import pretrained
from hamjepa_jax.interop import export, model_card
from hamjepa_jax.interop.torch_checkpoint import encoder_from_state_dict, predictor_from_state_dict
from hamjepa_jax.interop.torch_file import has_torch as torch_is_installed


@pytest.fixture(scope="module")
def run(photo_config, tmp_path_factory):
    return save_run(photo_config(), tmp_path_factory.mktemp("runs") / "photos")


@pytest.fixture(scope="module")
def model(run):
    return pretrained.load(run)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """The folder of an export."""
    folder = tmp_path_factory.mktemp("exports") / "photos"
    scores = {"knn": {"k": [1, 20], "top1": [0.1, 0.625]}, "linear_probe": {"top1": 0.25}}
    (run / "evaluation").mkdir()
    (run / "evaluation" / "metrics.json").write_text(
        json.dumps({"step": 5, "num_train": 96, "num_test": 24, "features": {"q": scores}, "baselines": {}})
    )
    assert export.main([f"--workdir={run}", f"--output={folder}"]) == 0
    return folder


def test_the_folder_is_ready_for_a_hub(exported):
    assert sorted(file.name for file in exported.iterdir()) == [
        "README.md",
        "encoder.stablehlo",
        "model.json",
        "model.safetensors",
        "pytorch_model.safetensors",
        "run_stablehlo.py",
        "torch_encoder.py",
    ]
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "The files are under Apache-2.0" in card
    for part in ("## Use", "## Data", "## Protocol", "## Results", "## Licence", "| q | 62.5 | 25.0 |"):
        assert part in card
    about = json.loads((exported / "model.json").read_text())
    assert (about["image_size"], about["resize"], about["is_state"]) == (16, 16, True)
    assert about["model"] == "tiny_imagenet100 hamjepa, seed 42, step 5"
    assert about["encoder"]["mean"] == [0.485, 0.456, 0.406]


def test_results_of_another_step_are_not_those_of_the_model(run, model):
    about = export.description(model) | {"imported": None}
    metrics_file = run / "evaluation" / "metrics.json"
    before = metrics_file.read_text()
    metrics_file.write_text(before.replace('"step": 5', '"step": 4'))
    card = model_card.card(model, run, about)
    metrics_file.write_text(before)
    assert "It has not been evaluated at this step." in card
    assert "62.5" not in card


def test_weights_of_others_stay_under_their_licence(run, model):
    about = export.description(model) | {"imported": {"file": "published.pth", "sha256": "0" * 64, "epoch": 30}}
    card = model_card.card(model, run, about)
    assert card.startswith("---\nlicense: other\n")
    assert "The weights are, or come from, those of `published.pth`: **its licence holds for them.**" in card
    assert "The files are under Apache-2.0" not in card


def test_weights_keep_our_names_and_every_bit(exported, model):
    found = load_file(exported / "model.safetensors")
    ours = export.named({**model.variables, "predictor": model.predictor_params})
    assert found.keys() == ours.keys()
    assert "params.stage1_block1.conv1.kernel" in found
    assert "predictor.layers.0.kernel" in found
    for name, array in ours.items():
        np.testing.assert_array_equal(found[name], array)
    with safe_open(exported / "model.safetensors", "numpy") as file:
        assert json.loads(file.metadata()["about"]) == json.loads((exported / "model.json").read_text())


def test_from_ours_to_the_names_of_pytorch_and_back_every_bit_is_the_same(exported, model):
    found = load_file(exported / "pytorch_model.safetensors")
    parts = {
        part: {name.removeprefix(f"{part}."): array for name, array in found.items() if name.startswith(f"{part}.")}
        for part in ("encoder", "predictor")
    }
    assert "layer2.0.downsample.1.running_var" in parts["encoder"]
    assert parts["predictor"]["dt"] == np.float32(0.05)
    back = encoder_from_state_dict(parts["encoder"])
    jax.tree.map(np.testing.assert_array_equal, back, jax.device_get(model.variables))
    energy = predictor_from_state_dict(parts["predictor"])
    jax.tree.map(np.testing.assert_array_equal, energy, jax.device_get(model.predictor_params))


@pytest.mark.parametrize("number", [1, 3])
def test_the_program_embeds_any_number_of_images(exported, model, number):
    program = jax.export.deserialize((exported / "encoder.stablehlo").read_bytes())
    assert program.platforms == ("cpu", "cuda", "tpu")
    views = np.random.default_rng(0).integers(256, size=(number, 16, 16, 3), dtype=np.uint8)
    np.testing.assert_allclose(program.call(views), model.encode(views, 8)[:number], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_program_runs_without_this_package(exported, model, tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(37, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    script = (exported / "run_stablehlo.py").read_text()
    assert len([line for line in script.splitlines() if line and "import" not in line]) <= 10
    without = "import sys; sys.modules['hamjepa_jax'] = None\n"
    (exported.parent / "alone.py").write_text(without + script + "print(float(z[0, 7]))\n")
    finished = subprocess.run(
        [sys.executable, exported.parent / "alone.py", tmp_path / "image.png"],
        cwd=exported, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    expected = model.embed([pixels], batch_size=8)[0, 7]
    assert float(finished.stdout.split()[-1]) == pytest.approx(float(expected), rel=1e-3, abs=1e-4)


@pytest.mark.skipif(not torch_is_installed(), reason="PyTorch is not installed")
@pytest.mark.parametrize(
    "settings", [{}, {"block": "bottleneck"}, {"mode": "global", "split_qp": False}, {"stem": "imagenet"}]
)
def test_in_pytorch_the_model_is_the_same(photo_config, tmp_path, monkeypatch, capsys, settings):
    monkeypatch.setattr(export, "has_torch", lambda: True)
    config = photo_config("hamjepa" if "mode" not in settings else "sigreg")
    config.model.update(settings)
    config.model.out_dim = 6
    assert export.main([f"--workdir={save_run(config, tmp_path / 'run')}", f"--output={tmp_path / 'out'}"]) == 0
    assert "in PyTorch the same, to a relative encoder" in capsys.readouterr().out


def test_a_vit_has_no_names_in_pytorch_and_a_program_all_the_same(photo_config, tmp_path, capsys):
    config = photo_config("sigreg_vit_ti")
    config.model.mode = "global"
    assert export.main([f"--workdir={save_run(config, tmp_path / 'run')}", f"--output={tmp_path / 'out'}"]) == 0
    assert "no weights for PyTorch: " in capsys.readouterr().out
    assert not (tmp_path / "out" / "pytorch_model.safetensors").exists()
    assert (tmp_path / "out" / "encoder.stablehlo").exists()
    assert "PyTorch" not in (tmp_path / "out" / "README.md").read_text()


def test_an_export_overwrites_only_what_it_is_told_to(run, exported, tmp_path, capsys):
    before = {file.name: file.read_bytes() for file in exported.iterdir()}
    assert export.main([f"--workdir={run}", f"--output={exported}"]) == 2
    assert capsys.readouterr().err.endswith("exists; take another, or replace it with --overwrite\n")
    assert {file.name: file.read_bytes() for file in exported.iterdir()} == before
    assert export.main([f"--workdir={tmp_path}", f"--output={tmp_path / 'out'}"]) == 2
    assert "no run here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
