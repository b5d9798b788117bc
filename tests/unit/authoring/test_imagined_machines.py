"""The doctor's answers about machines that nobody here has."""

from tools.authoring.imagined_machines import (
    MACHINES,
    Card,
    Imagined,
    ImaginedProbe,
    machines_table,
)
from tools.doctor.diagnoses import BLOCKER, examine, stopped
from tools.doctor.facts import Machine


def found(machine):
    return Machine(ImaginedProbe(machine))


def test_every_lab_can_run_on_every_machine_of_the_table():
    rows = machines_table().splitlines()[2:]
    assert len(rows) == len(MACHINES)
    assert all(row.endswith("| all |") for row in rows)


def test_too_small_card_stops_the_labs_that_do_not_fit():
    small = found(Imagined("6 GB", (Card("a small card", 8.6, "6144"),)))
    diagnoses = examine(small)
    assert stopped(diagnoses) == {1, 3, 4, 5, 6, 7}
    (blocker,) = (each for each in diagnoses if each.level == BLOCKER)
    assert "smallest model, Qwen3-0.6B" in blocker.text


def test_two_cards_count_as_one_and_a_spark_shares_its_memory():
    by_title = {machine.title: found(machine) for machine in MACHINES}
    two = by_title["two of 24 GB"]
    assert len(two.gpus) == 2
    assert two.sizes.models == by_title["24 GB (RTX 4090)"].sizes.models
    assert by_title["DGX Spark"].profile == "spark"
    assert by_title["DGX Spark"].gpu.unified
    pod = by_title["pod with 24 GB, no docker"]
    assert (pod.profile, pod.on_gpu, pod.in_containers) == ("cuda-local", True, False)
    assert pod.sizes.models["vllm"] == two.sizes.models["vllm"]
