"""The doctor on recorded machines; `doctor_machines/README.md` says where each comes from."""

import re
import subprocess
import sys
import time
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tools.doctor import diagnoses as judge
from tools.doctor import needs
from tools.doctor.diagnoses import BLOCKER, examine, stopped
from tools.doctor.doctor_report import render
from tools.doctor.facts import Listener, Machine, commands, read_docker, read_listeners
from tools.doctor.machine_probe import CommandResult, Probe
from tools.setup.setup_steps import COURSE, Step
from utils import fleet_plan
from utils.engines import ENGINES
from utils.profiles import PROFILES, ROOT, gpu_models, load_profile

MACHINES = Path(__file__).with_name("doctor_machines")


class Recorded(Probe):
    """A machine from its file."""

    def __init__(self, name, **environment):
        text = (MACHINES / f"{name}.txt").read_text()
        self.commands, self.files, self.keys = {}, {}, []
        for part in re.split(r"^(?=[$<=] )", text, flags=re.M)[1:]:
            head, _, body = part.partition("\n")
            kind, what = head[0], head[2:].strip()
            if kind == "$":
                body, code = (
                    re.subn(r"\[exit \d+\]\n", "", body)[0],
                    re.search(r"\[exit (\d+)\]", body),
                )
                self.commands[what] = CommandResult(int(code[1]) if code else 0, body)
            elif kind == "<":
                self.files[what] = body
            else:
                self.keys.append(tuple(what.split(" ", 1)))
        self.environment = environment
        self.home = self.key("home")
        self.python = tuple(map(int, self.key("python").split(".")))

    def key(self, name):
        return next(value for key, value in self.keys if key == name)

    def run(self, command):
        return self.commands.get(" ".join(command), CommandResult(None))

    def read(self, path):
        return self.files.get(path)

    def exists(self, path):
        return ("exists", path) in self.keys

    def free_bytes(self, path):
        return float(self.key("free"))

    def has_module(self, name):
        return self.key("venv") == "yes"

    def done(self, step):
        return ("done", step.name) in self.keys


def facts_of(name, **environment):
    return Machine(Recorded(name, **environment))


def change(facts, **changes):
    changed = copy(facts)
    vars(changed).update(changes)
    return changed


def topics(found, level):
    return {diagnosis.topic for diagnosis in found if diagnosis.level == level}


def fixes(found):
    return "\n".join(line for diagnosis in found for line in diagnosis.fix)


@pytest.mark.parametrize(
    ("name", "profile", "stops", "notes"),
    [
        ("gb10", "spark", set(), {"images", "SGLang's image", "ports", "HF_TOKEN", "ptxas"}),
        ("h100", "cuda", set(), {"ports"}),
        ("laptop", "cpu", set(), {"ports"}),
        ("broken_driver", "cpu", set(), {"driver"}),
        ("wsl", "cuda", {"Python", "driver", "GPU memory", "docker"}, {"HF_TOKEN"}),
    ],
)
def test_the_verdict_on_a_recorded_machine(name, profile, stops, notes):
    facts = facts_of(name)
    found = examine(facts)
    assert facts.profile == profile
    assert topics(found, BLOCKER) == stops
    assert topics(found, judge.INFO) == notes
    assert stopped(found) == (frozenset(needs.LABS) if stops else frozenset())
    page = render(facts, found)
    assert ("All labs can run" in page) == (not stops)
    assert max(map(len, page.splitlines())) < 130


@pytest.mark.parametrize("name", ["gb10", "h100", "laptop", "broken_driver", "wsl"])
@pytest.mark.parametrize("asked", ["", "cpu", "cuda", "spark", "tpu"])
def test_whatever_stops_or_warns_comes_with_a_fix(name, asked):
    found = examine(facts_of(name, COURSE_PROFILE=asked))
    for diagnosis in found:
        if diagnosis.level == BLOCKER:
            assert diagnosis.fix and diagnosis.labs, diagnosis
        if diagnosis.level in (judge.FIXABLE, judge.INFO):
            assert diagnosis.fix, diagnosis
    checked = subprocess.run(["bash", "-n", "-c", fixes(found)], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_gb10_is_read_from_meminfo_since_nvidia_smi_knows_no_memory():
    facts = facts_of("gb10")
    assert facts.gpus[0].unified and facts.gpus[0].capability == 12.1
    assert facts.gpus[0].free_bytes == facts.memory.available == 118566368 * 1024
    assert facts.gpus[0].memory_bytes == facts.memory.total
    assert (facts.cuda, facts.dtype, facts.docker.toolkit) == ("13.0", "bfloat16", "1.19.0")
    page = render(facts, examine(facts))
    assert "NVIDIA GB10, sm_121" in page and "113 of 122 GiB available" in page


def test_gb10_with_a_full_page_cache_drops_it():
    facts = facts_of("gb10")
    full = change(facts, memory=replace(facts.memory, free=9e9, cached=100e9))
    found = examine(full)
    assert "page cache" in topics(found, judge.INFO) and not stopped(found)
    assert "echo 3 | sudo tee /proc/sys/vm/drop_caches" in fixes(found)


def test_gb10_whose_memory_something_else_holds_cannot_start_an_engine():
    facts = facts_of("gb10")
    busy = change(facts, gpus=(replace(facts.gpus[0], free_bytes=40e9),))
    found = examine(busy)
    assert topics(found, BLOCKER) == {"unified memory"}
    assert "docker ps" in fixes(found)


def test_gb10_says_which_ptxas_triton_should_take():
    facts = facts_of("gb10")
    assert "export TRITON_PTXAS_PATH=/usr/local/cuda/bin/ptxas" in fixes(examine(facts))
    chosen = facts_of("gb10", TRITON_PTXAS_PATH="/usr/local/cuda/bin/ptxas")
    assert "ptxas" in topics(examine(chosen), judge.OK)
    none = change(facts, ptxas={"ptxas": (12, 8)})
    assert "apt-get install -y cuda-toolkit" in fixes(examine(none))


@pytest.mark.parametrize(
    ("name", "changed", "topic", "fix"),
    [
        ("h100", {"docker": {"state": "down", "message": "Cannot connect"}}, "docker", "systemctl"),
        ("h100", {"docker": {"state": "denied"}}, "docker", "usermod -aG docker"),
        ("h100", {"docker": {"gpus": False}}, "container toolkit", "nvidia-ctk runtime configure"),
        ("h100", {"free_models": 9e9, "downloads": {"m": 16e9}}, "disk", "docker system df"),
        ("h100", {"kernel": "broken"}, "Jupyter", "rm -rf .venv"),
        ("laptop", {"python": (3, 9, 2)}, "Python", "make lab PYTHON=python3.12"),
        (
            "laptop",
            {"python": (3, 10, 12), "other_pythons": ()},
            "Python",
            "python3.11-venv && make",
        ),
        ("laptop", {"venv": False}, "Python", "python3.12-venv"),
        ("laptop", {"compiler": ""}, "C++ compiler", "apt-get install -y g++"),
        ("laptop", {"free": 5e9}, "disk", "du -xhd1"),
        ("laptop", {"glibc": (2, 31)}, "packages", "Ubuntu 22.04"),
        ("laptop", {"glibc": ()}, "packages", "Debian 12"),
        ("laptop", {"system": "Darwin 24.1", "machine": "arm64"}, "packages", "WSL 2"),
        ("laptop", {"machine": "riscv64"}, "packages", "Linux machine"),
    ],
)
def test_doctor_reports_blocker_and_fix(name, changed, topic, fix):
    facts = facts_of(name)
    if isinstance(changed.get("docker"), dict):
        changed = {"docker": replace(facts.docker, **changed["docker"])}
    found = examine(change(facts, **changed))
    assert topics(found, BLOCKER) == {topic}
    assert fix in fixes([diagnosis for diagnosis in found if diagnosis.level == BLOCKER])


@pytest.mark.parametrize("machine", ["h100", "laptop"])
def test_doctor_stops_only_lab_6_without_compiler(machine):
    facts = change(facts_of(machine), compiler="")
    found = examine(facts)
    assert stopped(found) == {6}
    page = render(facts, found)
    assert re.search(r"3\.3\.6 .*cannot run: C\+\+ compiler", page)


def test_doctor_names_package_of_missing_libgomp():
    probe = Recorded("laptop")
    probe.commands[" ".join(commands(probe)["libgomp"])] = CommandResult(1, "", "cannot open")
    probe.keys.append(("done", "llama_cpp"))
    found = examine(Machine(probe))
    assert "apt-get install -y libgomp1" in fixes(found)
    assert stopped(found) == {1, 3, 6, 7}
    probe.keys.remove(("done", "llama_cpp"))
    assert stopped(examine(Machine(probe))) == set(needs.LABS)


def test_doctor_stops_at_unknown_load():
    found = examine(facts_of("laptop", COURSE_LOAD="foo"))
    assert "load" in topics(found, BLOCKER)
    assert "unset COURSE_LOAD" in fixes(found)


@pytest.mark.parametrize("name", ["COURSE_PROFILE", "COURSE_LOAD"])
def test_probe_calls_no_step_done_when_variable_is_wrong(name, monkeypatch):
    def done(step):
        return load_profile() is not None

    monkeypatch.setattr(Step, "done", done)
    monkeypatch.setenv(name, "foo")
    assert not Probe().done(COURSE)


def test_doctor_ignores_libgomp_when_engines_run_in_containers():
    assert "libgomp" not in topics(examine(change(facts_of("h100"), libgomp=False)), BLOCKER)


def test_full_gpu_is_distinguished_from_small_one():
    facts = facts_of("h100")
    busy = change(facts, gpus=(replace(facts.gpus[0], free_bytes=10e9),))
    small = change(facts, gpus=(replace(facts.gpus[0], memory_bytes=4e9, free_bytes=4e9),))
    old = change(facts, gpus=(replace(facts.gpus[0], capability=7.0),))
    for changed, words in (
        (busy, "Something else uses the memory"),
        (small, "smallest model, Qwen3-0.6B"),
        (old, "compute capability 7.5"),
    ):
        found = examine(changed)
        assert stopped(found)
        assert words in " ".join(render(changed, found).split())


@pytest.mark.parametrize(
    ("output", "words", "fix"),
    [
        (
            "Failed to initialize NVML: Driver/library version mismatch",
            "still loaded",
            "sudo reboot",
        ),
        ("did not answer within 15 s", "hangs", "sudo dmesg"),
        ("", "its driver is not installed", "ubuntu-drivers install"),
    ],
)
def test_a_broken_driver_is_named_and_labs_fall_back_to_the_cpu(output, words, fix):
    facts = change(facts_of("broken_driver"), nvidia_smi=output)
    found = examine(facts)
    assert words in render(facts, found) and fix in fixes(found)
    assert not stopped(found)


def test_a_profile_that_is_not_the_machines_own_is_named():
    assert "profile" in topics(examine(facts_of("gb10", COURSE_PROFILE="cuda")), judge.INFO)
    assert "profile" in topics(examine(facts_of("gb10", COURSE_PROFILE="spark")), judge.OK)
    assert topics(examine(facts_of("laptop", COURSE_PROFILE="spark")), BLOCKER) == {"GPU", "docker"}


def test_a_broken_driver_stops_the_profile_that_was_asked_for():
    found = examine(facts_of("broken_driver", COURSE_PROFILE="cuda"))
    assert topics(found, BLOCKER) == {"driver"}


def test_gpu_without_docker_gets_local_engines():
    probe = Recorded("h100")
    del probe.commands["docker info --format {{json .}}"]
    facts = Machine(probe)
    found = examine(facts)
    assert facts.profile == "cuda-local"
    assert "docker" in topics(found, judge.INFO)
    assert "docker.io" in fixes(found)
    assert [step.name for step in facts.steps] == [
        "course",
        "vllm_cuda",
        "sglang_cuda",
        "llama_cpp",
    ]


def test_sglang_lab_runs_in_part_on_arm_cpu():
    facts = facts_of("gb10", COURSE_PROFILE="cpu")
    page = render(facts, examine(facts))
    assert re.search(r"3\.3\.2  SGLang +runs in part, after set-up; without SGLang", page)
    assert [step.name for step in facts.steps] == ["course", "vllm", "llama_cpp"]


def test_a_kernel_that_set_up_makes_anew_stops_nothing():
    facts = change(facts_of("laptop"), kernel="broken")
    assert not stopped(examine(facts))


def test_wsl_on_windows_disk_is_told_to_move():
    facts = change(facts_of("wsl"), root="/mnt/c/course")
    assert "~/course" in fixes(examine(facts))


def test_docker_info_of_a_daemon_that_does_not_answer():
    text = '{"ServerVersion":"","ServerErrors":["permission denied while trying to connect"]}'
    assert (
        read_docker(CommandResult(1, text), CommandResult(1), CommandResult(None)).state == "denied"
    )
    down = CommandResult(1, '{"ServerVersion":""}', "Cannot connect to the Docker daemon")
    assert read_docker(down, CommandResult(1), CommandResult(None)).state == "down"
    cdi = CommandResult(
        0, '{"ServerVersion":"29","DiscoveredDevices":[{"ID":"nvidia.com/gpu=all"}]}'
    )
    assert read_docker(cdi, CommandResult(0), CommandResult(None)).gpus
    assert not read_docker(
        CommandResult(0, '{"ServerVersion":"29"}'), CommandResult(0), CommandResult(None)
    ).gpus


def test_listeners_are_read_once_each_with_their_owner():
    text = (
        'LISTEN 0 5 127.0.0.1:80 0.0.0.0:* users:(("a b",pid=7,fd=3))\n'
        "LISTEN 0 5 [::]:22 [::]:*\nLISTEN 0 5 [::1]:80 [::]:*\nrubbish\n"
    )
    assert read_listeners(text) == (Listener(22, "", 0), Listener(80, "a b", 7))


def test_needs_agree_with_the_course():
    assert {
        name: spec.container.image for name, spec in ENGINES.items() if spec.container
    } == needs.IMAGES
    assert needs.TITLES.keys() == ENGINES.keys()
    for number, (waves, _) in fleet_plan.LABS.items():
        started = {start.engine for wave in waves(PROFILES["spark"]) for start in wave}
        lab = needs.LABS[number]
        assert set(lab.engines) <= started | {"transformers"} <= {*ENGINES}, number
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    published = [
        port for service in compose["services"].values() for port in service.get("ports", ())
    ]
    assert published and {int(port.split(":")[-2]) for port in published} <= set(needs.PORTS)


def test_downloads_are_known_for_every_model_of_every_size():
    for size in ("0.6B", "1.7B", "4B", "8B"):
        for model in gpu_models(size).values():
            assert needs.download_bytes(model) > 0.3e9, model
    assert needs.hub_folder("qwen3:8b-fp16") == ""
    folder = ".cache/huggingface/hub/models--bartowski--Qwen_Qwen3-8B-GGUF"
    assert needs.hub_folder("bartowski/Qwen_Qwen3-8B-GGUF:bf16") == folder


def test_doctor_prints_the_plan_of_each_lab_on_gpus_only():
    page = render(facts_of("h100"), examine(facts_of("h100")))
    assert re.search(r"3\.3\.7 .*needs 38\.3 GB for 2 vLLM", page)
    assert re.search(r"3\.3\.2 .*needs 37\.4 GB for 2 SGLang", page)
    laptop = facts_of("laptop")
    assert "GB for" not in render(laptop, examine(laptop))


def test_doctor_stops_only_the_labs_whose_fleet_does_not_fit():
    facts = facts_of("h100")
    busy = change(facts, gpus=(replace(facts.gpus[0], free_bytes=38.6e9),))
    assert stopped(examine(busy)) == {7}


def test_every_engine_that_a_lab_names_is_among_its_needs():
    for source in sorted((ROOT / "solutions").glob("lab-3.3.*.py")):
        lab = needs.LABS[int(source.name.split("-")[1].rpartition(".")[2])]
        lines = source.read_text().splitlines()
        text = "\n".join(line for line in lines if not line.startswith("#"))  # code, not prose
        named = set(re.findall(r'launch\("(\w+)"|"engine": "(\w+)"|engine="(\w+)"', text))
        wanted = {name for groups in named for name in groups if name}
        assert wanted <= {*lab.engines, *lab.optional}, source.name


def test_doctor_runs_on_standard_library_alone():
    began = time.monotonic()
    command = [sys.executable, "-I", "-S", "-c"]
    program = f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r})\n"
    program += "runpy.run_module('tools.doctor', run_name='__main__')"
    done = subprocess.run(
        [*command, program], capture_output=True, text=True, timeout=60, check=False
    )
    assert "3.3.1  Engine benchmark" in done.stdout, done.stderr
    assert done.returncode == (0 if "All labs can run" in done.stdout else 1)
    assert time.monotonic() - began < 30
    assert vars(facts_of("laptop")).keys() >= {"token", "ptxas", "kernel"}


def test_doctor_names_an_image_that_could_not_be_confirmed():
    facts = facts_of("h100")
    for name, known in needs.UNCONFIRMED.items():
        assert known.partition(":")[0] == needs.IMAGES[name].partition(":")[0]
        assert known != needs.IMAGES[name]
    bare = change(facts, docker=replace(facts.docker, images=frozenset()))
    found = examine(bare)
    assert "SGLang's image" in topics(found, judge.INFO)
    assert "docker tag lmsysorg/sglang:v0.5.20-cu130" in fixes(found)
    assert "SGLang's image" not in topics(examine(facts), judge.INFO)
