import pytest

from hamjepa_jax import distributed
from hamjepa_jax.errors import UserError

SLURM = {"SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "node[01-02]"}


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        (SLURM | {"SLURM_NTASKS": "2"}, True),
        # jax would give the only task of a step one of its GPUs.
        (SLURM | {"SLURM_NTASKS": "1"}, False),
        # The shell of a job, outside of srun.
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
    ],
)
def test_several_processes_are_seen_in_the_environment(environment, several):
    assert distributed.launched_as_one_of_several(environment) == several


def test_a_tpu_is_asked_unless_another_platform_is_wanted(monkeypatch):
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    monkeypatch.setattr(distributed.glob, "glob", lambda pattern: ["/dev/accel0"] if "accel" in pattern else [])
    assert distributed.launched_as_one_of_several({})
    assert not distributed.launched_as_one_of_several({"JAX_PLATFORMS": "cpu"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 2, 0), "--coordinator_address: missing; several processes need all of --coordinator_address, "),
        (("a:1", None, 0), "--num_processes: missing"),
        (("a:1", 2, None), "--process_id: missing"),
        (("a", 2, 0), "--coordinator_address: must be HOST:PORT, such as 10.0.0.1:1234, got 'a'"),
        ((":80", 2, 0), "--coordinator_address: must be HOST:PORT"),
        (("a:1", 2, 2), "--process_id: must be between 0 and 1, as --num_processes=2, got 2"),
        (("a:1", 2, -1), "--process_id: must be between 0 and 1"),
        (("a:1", 0, 0), "--num_processes: must be at least 1, got 0"),
    ],
)
def test_wrong_flags_are_one_line(arguments, message):
    address, count, number = arguments
    with pytest.raises(UserError, match=f"^{message}"):
        distributed.start(coordinator_address=address, num_processes=count, process_id=number)


def test_one_process_agrees_with_itself_and_has_no_peers_to_lose():
    distributed.start(coordinator_address=None, num_processes=None, process_id=None)
    assert distributed.is_primary()
    assert distributed.agreed(7) == 7
    assert not distributed.lost_process(RuntimeError("Gloo all-reduce failed: Connection closed by peer"))
    distributed.leave(1)


def test_a_refusal_of_the_primary_process_is_passed_on():
    done = []
    distributed.on_primary(lambda: done.append("it"))
    assert done == ["it"]

    def refuse():
        raise UserError("no")

    with pytest.raises(UserError, match="^no$"):
        distributed.on_primary(refuse)
