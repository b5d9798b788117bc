"""Which GPU the course uses: two, four, one that is divided, and what the user asked for."""

import pytest

from utils import gpu_choice, profiles
from utils.gpu_choice import GpuChoiceError, choose, parse_devices, part_bytes, pin_gpu
from utils.profiles import ProfileError, load_profile

TWO = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
GPU 1: NVIDIA RTX A6000 (UUID: GPU-0aa1f5f8-6f0b-4f86-9f0e-1b1d3b9c7a11)
"""
DIVIDED = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 1g.5gb      Device  1: (UUID: MIG-0d3bb2d9-55a9-5d1a-a8c2-8a7e5b1e3d2a)
"""
FIRST, SECOND = (device.uuid for device in parse_devices(TWO))
PARTS = list(parse_devices(DIVIDED)[0].parts)


@pytest.fixture
def machine(monkeypatch):
    """A machine whose nvidia-smi answers."""

    def put(listed, free=""):
        answers = {"-L": listed}
        monkeypatch.setattr(gpu_choice, "_ask", lambda *a: answers.get(a[0], free))

    return put


@pytest.mark.parametrize(
    ("environment", "chosen"),
    [
        ({}, SECOND),
        ({"COURSE_GPU": "0"}, FIRST),
        ({"COURSE_GPU": "0", "CUDA_VISIBLE_DEVICES": "1"}, SECOND),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, FIRST),
        ({"CUDA_VISIBLE_DEVICES": FIRST[:12]}, FIRST),
    ],
)
def test_variables_decide_before_free_memory(environment, chosen):
    choice = choose(parse_devices(TWO), environment, {FIRST: 10.0, SECOND: 40.0})
    assert choice.id == chosen
    assert "of 2 GPUs the course uses number" in choice.reason


def test_single_gpu_needs_no_word():
    choice = choose(parse_devices(TWO)[:1], {}, {})
    assert (choice.id, choice.reason) == (FIRST, "")


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({}, PARTS[0]),
        ({"CUDA_VISIBLE_DEVICES": PARTS[1]}, PARTS[1]),
        ({"COURSE_GPU": "0"}, PARTS[0]),
    ],
)
def test_divided_gpu_gives_one_part(environment, part):
    choice = choose(parse_devices(DIVIDED), environment, {})
    assert choice.id == part
    assert "is divided (MIG)" in choice.reason


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"COURSE_GPU": "7"}, "no GPU '7'.*0 .NVIDIA A100-SXM4-40GB., 1 .NVIDIA RTX A6000"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "hides every GPU"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, "COURSE_PROFILE=cpu"),
    ],
)
def test_gpu_that_is_not_there_is_refused(environment, words):
    with pytest.raises(GpuChoiceError, match=words):
        choose(parse_devices(TWO), environment, {})


def test_choice_is_pinned_for_torch_and_engines(machine):
    machine(TWO, f"{FIRST}, 1000\n{SECOND}, 40000\n")
    environment = {}
    pin_gpu(environment)
    assert environment == {"CUDA_VISIBLE_DEVICES": SECOND}
    machine(TWO, f"{FIRST}, 90000\n{SECOND}, 0\n")
    pin_gpu(environment)
    assert environment == {"CUDA_VISIBLE_DEVICES": SECOND}, "the same GPU for the whole session"


def test_single_or_unknown_gpu_is_left_alone(machine):
    for listed in (TWO.splitlines()[0], "", "stand-in: unknown arguments"):
        machine(listed)
        environment = {}
        assert pin_gpu(environment) == ""
        assert environment == {}


def test_part_has_the_memory_that_its_name_tells(machine):
    machine(DIVIDED)
    assert part_bytes({"CUDA_VISIBLE_DEVICES": PARTS[0]}) == 20e9
    assert part_bytes({"CUDA_VISIBLE_DEVICES": FIRST}) is None
    assert part_bytes({}) is None


def test_profile_tells_of_its_gpu(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    machine(TWO)
    assert "number 1, as CUDA_VISIBLE_DEVICES says" in load_profile("cuda").description
    assert profiles.os.environ["CUDA_VISIBLE_DEVICES"] == SECOND
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    with pytest.raises(ProfileError, match="There is no GPU '5'"):
        load_profile("cuda")
    assert "GPUs" not in load_profile("cpu").description
