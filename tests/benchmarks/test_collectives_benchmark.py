import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from hamjepa_jax import sharding
from hamjepa_jax.benchmarks import collectives, hlo, scaling, shipped

PROGRAM = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%body (carry: (s32[], f32[4,2])) -> (s32[], f32[4,2]) {
  %all-reduce.1 = f32[4,2]{1,0:T(8,128)S(1)} all-reduce(%v), to_apply=%add, metadata={op_name="jit(step)/in_loop"}
  ROOT %tuple = (s32[], f32[4,2]{1,0}) tuple(%i, %all-reduce.1)
}

%condition (carry: (s32[], f32[4,2])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[] {
  %while.1 = (s32[], f32[4,2]{1,0}) while(%init), condition=%condition, body=%body
  %while.2 = (s32[], f32[4,2]) while(%init), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %gather = (bf16[2,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(bf16[2,8]{1,0} %q), dimensions={0}
  %done = bf16[16,8]{1,0} all-gather-done(%gather)
  ROOT %both = (f32[], /*index=1*/pred[3]{0}) all-reduce(%a, %b), to_apply=%add, metadata={op_name="jit(step)/both"}
}
"""


def test_collectives_are_found_in_loops_and_counted_once_where_they_are_started():
    in_loop = hlo.Array("f32", (4, 2))
    expected = [
        hlo.Collective("all-reduce", (in_loop,), 3, "jit(step)/in_loop"),
        hlo.Collective("all-reduce", (in_loop,), 5, "jit(step)/in_loop"),
        hlo.Collective("all-gather", (hlo.Array("bf16", (16, 8)),), 1, ""),
        hlo.Collective("all-reduce", (hlo.Array("f32", ()), hlo.Array("pred", (3,))), 1, "jit(step)/both"),
    ]
    found = hlo.collectives(PROGRAM)
    assert found == expected
    assert [collective.num_bytes for collective in found] == [32, 32, 256, 7]


def test_a_loop_of_unknown_length_and_a_text_without_a_program_are_errors():
    with pytest.raises(ValueError, match="unknown length: jit\\(step\\)/in_loop"):
        hlo.collectives(PROGRAM.replace("direction=LT", "direction=NE"))
    with pytest.raises(ValueError, match="no entry computation"):
        hlo.collectives("nothing")


def test_arrays_are_sorted_by_what_they_are_for():
    params = {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}
    parameters, gradients, statistics = collectives.count(
        hlo.collectives(PROGRAM), params | {"wide": jnp.ones((8, 16))}
    )
    assert parameters == {"kind": "all-gather", "what": "parameters", "types": ["bf16"], "arrays": 1, "bytes": 256}
    assert gradients == {"kind": "all-reduce", "what": "gradients", "types": ["f32"], "arrays": 8, "bytes": 256}
    assert statistics == {"kind": "all-reduce", "what": "statistics", "types": ["f32", "pred"], "arrays": 2, "bytes": 7}


def test_operations_of_products_loops_and_convolutions():
    def operations(function, *shapes):
        return collectives.floating_point_operations(jax.make_jaxpr(function)(*map(jnp.ones, shapes)).jaxpr)

    assert operations(jnp.matmul, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    loop = lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, length=4)[0]  # noqa: E731
    assert operations(loop, (3, 3)) == 4 * 2 * 3**3

    def convolve(x, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=dimensions)

    once = 2 * (2 * 4 * 4 * 6) * (3 * 3 * 5)
    assert operations(convolve, (2, 8, 8, 5), (3, 3, 5, 6)) == once
    # Both gradients take as many operations as the convolution, though one of them is of a stretched input.
    both = jax.grad(lambda x, kernel: jnp.sum(convolve(x, kernel) ** 2), argnums=(0, 1))
    assert operations(both, (2, 8, 8, 5), (3, 3, 5, 6)) == 3 * once


@pytest.mark.parametrize("resident", [True, False])
def test_the_shapes_are_those_that_the_views_of_a_shipped_config_take(tmp_path, monkeypatch, resident):
    monkeypatch.chdir(Path(__file__).parents[2])
    case = collectives.Case("cifar100", "hamjepa", 8, 1)
    if not resident:
        case = collectives.Case("imagenet100", "hamjepa_multicrop", 8, 1)
    config, experiment = shipped.load(case.config, case.variant, tmp_path)
    mesh = sharding.make_mesh(data=case.data, fsdp=case.fsdp)
    dataset, batch = collectives.abstract_data(config.data, mesh, resident=resident)
    views = jax.eval_shape(experiment.views, jax.eval_shape(jax.random.key, 0), dataset, batch)
    expected = [(2, 512, 32, 32, 3)] if resident else [(2, 256, 224, 224, 3), (6, 256, 96, 96, 3)]
    assert [view.shape for view in views] == expected


STEP = {
    "config": "cifar100",
    "variant": "hamjepa",
    "data": 8,
    "fsdp": 1,
    "compiler": "CPU",
    "collectives": 10,
    "parameter_bytes": 9_000_000,
    "batch_size": 512,
    "operations": 512 * 10**9,
    "rows": [
        {"kind": "all-reduce", "what": "gradients", "types": ["f32"], "arrays": 3, "bytes": 8_000_000},
        {"kind": "all-reduce", "what": "statistics", "types": ["f32"], "arrays": 9, "bytes": 1_000},
    ],
}


def test_the_model_is_its_formula():
    machine = scaling.Machine("m", 1e12, 4, 1e9, 1e8, 1e-6, 1e-5)
    assert scaling.communication_seconds(machine, 1, 1e6, 10) == 0
    in_a_node = 2 * 3 / 4 * 1e6 / 1e9 + 10 * 2e-6
    assert scaling.communication_seconds(machine, 4, 1e6, 10) == pytest.approx(in_a_node)
    # Eight nodes: every device exchanges a fourth of the result with its peers.
    between = 2 * 7 / 8 * 1e6 / 4 / 1e8 + 10 * 3e-5
    assert scaling.communication_seconds(machine, 32, 1e6, 10) == pytest.approx(in_a_node + between)
    compute = 64 * 1e9 / 4 / (1e12 * scaling.UTILISATION)
    communication = scaling.communication_seconds(machine, 4, 8_001_000, 10)
    assert scaling.step_seconds(STEP, machine, 4, 64) == pytest.approx(compute + communication)


def test_modelled_speed_grows_and_efficiency_falls():
    rows = scaling.model([STEP])
    assert len(rows) == len(scaling.MACHINES) * 2 * len(scaling.DEVICE_COUNTS)
    for first, second in zip(rows, rows[1:], strict=False):
        if second["devices"] == 1:
            assert second["efficiency"] == 1
        else:
            assert second["efficiency"] < first["efficiency"]
    growing = [row for row in rows if row["batch"] == "growing"]
    assert {row["images"] / row["devices"] for row in growing} == {scaling.IMAGES_PER_DEVICE}
    assert math.isclose(growing[0]["images_per_second"], 64 / growing[0]["seconds"])


def test_tables_and_figure(tmp_path):
    _, _, first, second = collectives.markdown_table([STEP]).splitlines()
    assert first == "| cifar100:hamjepa | 8 × 1 | CPU | 10 | 9.00 | all-reduce | gradients | f32 | 3 | 8.000 |"
    assert second == "|  |  |  |  |  | all-reduce | statistics | f32 | 9 | 0.001 |"
    rows = scaling.model([STEP])
    header, _, *lines = scaling.markdown_table(rows).splitlines()
    assert header.startswith("| step | batch | devices | n = 1, ms | n = 8, ms |")
    assert len(lines) == 2 * len(scaling.MACHINES)
    assert all("(100%)" in line for line in lines)
    scaling.draw(rows, tmp_path / "images" / "scaling.png")
    assert (tmp_path / "images" / "scaling.png").stat().st_size > 10_000
