import hashlib
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch_writer

from hamjepa_jax.interop.imported_run import main
from hamjepa_jax.interop.torch_checkpoint import state_dict_from_encoder
from hamjepa_jax.models.resnet import ResNetEncoder


@pytest.fixture(scope="module")
def arrays():
    """The state dict of a small token encoder of 8×8 tokens and D = 256."""
    import jax

    encoder = ResNetEncoder(
        widths=(4, 8, 8), depths=(1, 1, 1), stem="cifar", mode="tokens", token_layer=3, token_hw=None, token_d_f=4,
        split_qp=True, out_dim=5,
    )  # fmt: skip
    variables = jax.jit(lambda key: encoder.init(key, np.zeros((2, 32, 32, 3), "f4"), train=False))(jax.random.key(0))
    return state_dict_from_encoder(jax.device_get(variables))


@pytest.fixture
def import_file(tmp_path, capsys, monkeypatch):
    """A function from what a file holds to the exit code and what was said."""

    # The published recipes are found from any directory.
    monkeypatch.chdir(tmp_path)

    def run(saved, *arguments, workdir="run"):
        path = tmp_path / "saved.pth"
        if saved is not None:
            torch_writer.write(path, saved)
        code = main([str(path), f"--workdir={tmp_path / workdir}", *arguments])
        return code, "".join(capsys.readouterr())

    return run


def energy(dim, hidden=3):
    sizes = {0: (dim, hidden), 2: (hidden, 1)}
    return {
        f"H.residual_V.{n}.{kind}": np.zeros((b, a) if kind == "weight" else (b,), "f4")
        for n, (a, b) in sizes.items()
        for kind in ("weight", "bias")
    }


def test_the_architecture_is_that_of_the_arrays(import_file, arrays, tmp_path):
    code, said = import_file({"encoder": arrays, "predictor": energy(128)})
    assert code == 0
    assert "cifar100_imported hamjepa: basic blocks (1, 1, 1, 2) of widths (4, 8, 8, 512), tokens" in said
    assert (tmp_path / "run" / "checkpoints" / "0").is_dir()
    source = json.loads((tmp_path / "run" / "imported.json").read_text())
    assert source["sha256"] == hashlib.sha256((tmp_path / "saved.pth").read_bytes()).hexdigest()
    assert (source["file"], source["epoch"]) == ("saved.pth", None)
    # Without a predictor it is the baseline, whose embedding is no state.
    several = {f"module.{name}": array for name, array in arrays.items()}
    code, said = import_file({"encoder": several, "projector": {"w": np.ones(2)}}, workdir="other")
    assert code == 0
    assert "cifar100_imported sigreg" in said
    assert "left out, since nothing here uses them: projector" in said


def without(arrays, *names):
    return {name: array for name, array in arrays.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {}, "has no state dict `encoder`; it holds nothing"),
        (lambda a: {"model": a}, "has no state dict `encoder`; it holds model"),
        (lambda a: [1], "has no state dict `encoder`; it holds list"),
        (lambda a: {"encoder": {"w": 3}}, "its entry `encoder` is no state dict, names → tensors"),
        (
            lambda a: {"encoder": without(a, "layer2.0.conv1.weight", "layer2.0.bn1.bias")},
            "encoder: does not fit: layer2.0.bn1.bias (missing in the file, 8 in the model), layer2.0.conv1.weight "
            "(missing in the file, 8×4×3×3 in the model); if the file is whole",
        ),
        (
            lambda a: {"encoder": a | {"layer3.0.bn2.weight": np.ones(9, "f4")}},
            "encoder: does not fit: layer3.0.bn2.weight (9 in the file, 8 in the model)",
        ),
        (lambda a: {"encoder": a | {"layer3.0.extra": np.ones(9, "f4")}}, "encoder: layer3.0.extra: not an entry of"),
        (lambda a: {"encoder": without(a, "stem.0.weight")}, "encoder: must have a stem convolution stem.0.weight"),
        (
            lambda a: {"encoder": a, "predictor": energy(100)},
            "predictor: does not fit: H.residual_V.0.weight (3×100 in the file, 3×128 in the model)",
        ),
        (lambda a: {"encoder": a, "predictor": {"w": np.ones(3)}}, "predictor: w: not an entry of an energy MLP"),
    ],
)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(import_file, arrays, tmp_path, change, message):
    code, said = import_file(change(arrays))
    assert code == 2
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_file_that_calls_a_function_is_refused_and_nothing_is_called(import_file, tmp_path):
    class Calls:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "called"),)

    with zipfile.ZipFile(tmp_path / "saved.pth", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"encoder": Calls()}))
    code, said = import_file(None)
    assert (code, said.count("\n")) == (2, 1)
    assert "refused, because it names posix.mkdir" in said
    assert not (tmp_path / "called").exists()
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_the_command_is_one_line(capsys):
    assert main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the following arguments are required: file, --workdir; see python -m hamjepa_jax.")
    assert said.count("\n") == 1


def test_no_run_is_overwritten(import_file, arrays, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    code, said = import_file({"encoder": arrays})
    assert code == 2
    assert "holds a run already; take another" in said
    assert (tmp_path / "run" / "config.json").read_text() == "{}"
