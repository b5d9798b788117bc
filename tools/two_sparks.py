"""Two DGX Sparks, linked by their ConnectX-7 ports: commands for each, their environment, and a health check.

    python -m tools.two_sparks advice
    python -m tools.two_sparks replicas --nodes 192.168.100.10 192.168.100.11   # both, to read
    python -m tools.two_sparks replicas --nodes ... --node 0 | bash             # on the first
    python -m tools.two_sparks replicas --nodes ... --health

Written from documents, and never run on a DGX Spark. vLLM's and SGLang's own parsers take these commands in
the tests, and two vLLM on CPUs, in two network namespaces, serve the plan `vllm` together there.

Sources: NVIDIA/dgx-spark-playbooks @0db7c14 (nvidia/connect-two-sparks, vllm, trt-llm), vLLM 0.32.0
(config/parallel.py, examples/ray_serving/run_cluster.sh), sglang 0.5.23 (srt/arg_groups/fields/parallel.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import yaml

from utils import loopback
from utils.engines.engine_errors import EngineError
from utils.engines.launch import profile_fields, served_name
from utils.engines.registry import get_spec
from utils.engines.spec import Container, ServeOptions
from utils.model_sizes import ConfigError, decoder_parameters, dtype_bytes, read_config
from utils.profiles import PROFILES
from utils.roofline.published import DGX_SPARK, QWEN3_8B

EXAMPLE = ("192.168.100.10", "192.168.100.11")  # of the playbook connect-two-sparks
INTERFACE = "enp1s0f1np1"
# A port of the card is two interfaces; the second, on another PCIe segment, is named enP2p1s0f1np1.
CX7 = re.compile(r"enp\d+s\d+f\d+np\d+")
RAY_PORT, MASTER_PORT, SGLANG_PORT, SSH_PORT = 6379, 29501, 25000, 2233
# MemTotal of a DGX Spark: 127600748 kB (XuehaiPan/nvitop pull request 208).
MEMORY_BYTES = 127600748 * 1024


class NoLink(EngineError):
    """The link between the two was not found."""


@dataclass(frozen=True)
class Interface:
    """A network interface.

    Attributes:
        name: Its name.
        address: Its IPv4 address; "" without one.
        up: Whether it has a link.
        rdma: Whether it belongs to an RDMA device, as ConnectX-7's do.
    """

    name: str
    address: str
    up: bool
    rdma: bool = False


@dataclass(frozen=True)
class Pair:
    """Two nodes.

    Attributes:
        addresses: Of the link, the first node's first.
        interface: Its name, the same on both.
        model: Hub id.
    """

    addresses: tuple[str, str] = EXAMPLE
    interface: str = INTERFACE
    model: str = PROFILES["spark"].models["vllm"]

    @property
    def head(self) -> str:
        """The first node's address."""
        return self.addresses[0]


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        node: 0 or 1.
        why: What it does.
        command: The command and its arguments.
    """

    node: int
    why: str
    command: tuple[str, ...]

    def line(self) -> str:
        """As a shell takes it."""
        return shlex.join(self.command)


@dataclass(frozen=True)
class Plan:
    """How two nodes serve one model.

    Attributes:
        name: Its name on the command line.
        title: What it is.
        steps: Commands, in order; those of one node in the order in which it runs them.
        url: Where clients send requests.
        health: Addresses that answer 200 when all of it serves.
        watch: Commands that show whether the cluster is whole.
        notes: What to know.
        files: Files that it needs on the first node, by name.
    """

    name: str
    title: str
    steps: tuple[Step, ...]
    url: str
    health: tuple[str, ...]
    watch: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    def script(self, node: int) -> str:
        """What one node runs, for `| bash`."""
        lines = ["set -e"]
        if node == 0:
            for name, text in self.files.items():
                lines += [f"cat > {name} <<'END'", text.rstrip("\n"), "END"]
        for step in self.steps:
            if step.node == node:
                lines += [f"# {step.why}", step.line()]
        return "\n".join(lines) + "\n"

    def page(self) -> str:
        """All of it, for people."""
        parts = [self.title, *(f"- {note}" for note in self.notes)]
        for node in (0, 1):
            parts += ["", f"== node {node} ==", self.script(node).rstrip()]
        parts += ["", "== is it whole? ==", *self.watch]
        parts += [f"curl -f {url}" for url in self.health]
        return "\n".join(parts)


def parse_interfaces(answer: str, rdma: Iterable[str] = ()) -> list[Interface]:
    """Reads `ip -j addr`.

    Args:
        answer: Its JSON.
        rdma: Interfaces of RDMA devices.
    """
    known = set(rdma)
    found = []
    for entry in json.loads(answer):
        name = str(entry.get("ifname", ""))
        addresses = [a["local"] for a in entry.get("addr_info", ()) if a.get("family") == "inet"]
        up = entry.get("operstate") == "UP"
        found.append(Interface(name, addresses[0] if addresses else "", up, name in known))
    return found


def choose_link(interfaces: Sequence[Interface]) -> Interface:
    """The interface that leads to the other Spark.

    Of the two interfaces of a port the one on the first PCIe segment, as the playbooks do.

    Raises:
        NoLink: None of the card's is up, or has an address; says which, and what to do.
    """
    card = [i for i in interfaces if i.rdma or CX7.fullmatch(i.name)]
    if not card:
        names = ", ".join(i.name for i in interfaces) or "none"
        raise NoLink(
            f"There is no ConnectX-7 interface here (found: {names}). Name one: --interface"
        )
    if not (up := [i for i in card if i.up]):
        names = ", ".join(i.name for i in card)
        raise NoLink(
            f"{names}: none has a link. Is the cable in the same port of both? ibdev2netdev"
        )
    if not (addressed := [i for i in up if i.address]):
        first = up[0].name
        raise NoLink(
            f"{first} is up and has no address. On the first: sudo ip addr add {EXAMPLE[0]}/24 dev {first}; "
            f"on the second {EXAMPLE[1]}/24"
        )
    return min(addressed, key=lambda i: (not CX7.fullmatch(i.name), i.name))


def find_link(root: Path = Path("/sys/class/infiniband")) -> Interface:
    """The link of this machine.

    Raises:
        NoLink: There is none.
    """
    try:
        answer = subprocess.run(
            ("ip", "-j", "addr"), capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise NoLink(f"`ip -j addr` failed ({error}). Name the interface: --interface") from error
    rdma = [path.name for path in root.glob("*/device/net/*")]
    return choose_link(parse_interfaces(answer.stdout, rdma))


def environment(pair: Pair, node: int) -> dict[str, str]:
    """What every engine needs to know of the link: which interface its libraries are to use."""
    names = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "UCX_NET_DEVICES")
    return {name: pair.interface for name in names} | {
        "OMPI_MCA_btl_tcp_if_include": pair.interface,
        "VLLM_HOST_IP": pair.addresses[node],
        "MASTER_ADDR": pair.head,
    }


def _container(engine: str) -> Container:
    container = get_spec(engine).container
    assert container is not None
    return container


def serving(pair: Pair, engine: str, node: int, *extra: str) -> list[str]:
    """An engine's own command for a node, as the profile `spark` starts it."""
    spec, profile = get_spec(engine), PROFILES["spark"]
    container = _container(engine)
    options = ServeOptions(
        model=pair.model,
        served_name=served_name(pair.model),
        host=pair.addresses[node],
        port=container.port,
        device="cuda",
        **profile_fields(profile),
        extra_arguments=extra,
    )
    return [*container.command, *spec.arguments(options)]


def docker_run(
    container: Container, name: str, variables: Mapping[str, str], command: Sequence[str]
) -> tuple[str, ...]:
    """`docker run` of an engine on the host's network, with the card handed in."""
    line = ["docker", "run", "-d", "--rm", "--name", name, "--gpus", "all", "--network", "host"]
    line += ["--device", "/dev/infiniband"]
    line += ["--ipc", container.ipc] if container.ipc else []
    line += ["--shm-size", container.shm_size] if container.shm_size else []
    for limit, value in ({"memlock": -1} | dict(container.ulimits)).items():
        line += ["--ulimit", f"{limit}={value}"]
    for key in container.pass_environment:
        line += ["-e", key]
    for key, text in {**container.environment, **variables}.items():
        line += ["-e", f"{key}={text}"]
    for source, target in container.mounts.items():
        # Not ~: a shell takes it for a letter where it stands in quotes.
        line += ["-v", f"{Path(source).expanduser()}:{target}"]
    return (*line, container.image, *command)


def _one_server(
    pair: Pair,
    name: str,
    title: str,
    container: Container,
    steps: Sequence[Step],
    *,
    watch: str,
    note: str = "",
    health: str = "/health",
) -> Plan:
    """The plan of an engine whose first node answers for both."""
    url = f"http://{pair.head}:{container.port}"
    notes = (note,) if note else ()
    return Plan(name, title, tuple(steps), f"{url}/v1", (url + health,), (watch,), notes)


def replicas(pair: Pair) -> Plan:
    """Two engines, one on each node, behind the gateway of lab 3.3.7."""
    container = _container("vllm")
    steps = tuple(
        Step(
            node,
            "one vLLM, by itself",
            docker_run(container, f"course-replica-{node}", {}, serving(pair, "vllm", node)),
        )
        for node in (0, 1)
    )
    urls = [f"http://{address}:{container.port}" for address in pair.addresses]
    name = served_name(pair.model)
    backends = [
        {"name": f"spark-{node}", "engine": "vllm", "url": url} for node, url in enumerate(urls)
    ]
    settings = {
        "host": "127.0.0.1",
        "port": 8080,
        "allow_anonymous": True,
        "models": [{"name": name, "policy": "prefix_affinity", "backends": backends}],
    }
    gateway = ("python", "-m", "utils.gateway", "--config", "two-sparks.yaml")
    return Plan(
        "replicas",
        "Two replicas behind the gateway: for a model that fits into one Spark",
        (*steps, Step(0, "the gateway, from the course's folder and environment", gateway)),
        "http://127.0.0.1:8080/v1",
        (*(f"{url}/health" for url in urls), "http://127.0.0.1:8080/health/ready"),
        notes=(
            "No token crosses the cable: any network between the two will do.",
            "If one dies, the gateway sends its requests to the other.",
        ),
        files={"two-sparks.yaml": yaml.safe_dump(settings, sort_keys=False)},
    )


def vllm_halves(pair: Pair, node: int) -> list[str]:
    """What makes two vLLM one: arguments for a node."""
    return [
        *("--tensor-parallel-size", "2", "--distributed-executor-backend", "mp"),
        *("--nnodes", "2", "--node-rank", str(node)),
        *("--master-addr", pair.head, "--master-port", str(MASTER_PORT)),
        *(("--headless",) if node else ()),
    ]


def vllm(pair: Pair) -> Plan:
    """One vLLM over both nodes, with its own processes."""
    container = _container("vllm")
    steps = []
    for node in (1, 0):
        command = serving(pair, "vllm", node, *vllm_halves(pair, node))
        why = (
            "the second half of the model, without an API"
            if node
            else "the first half, and the API"
        )
        run = docker_run(container, f"course-vllm-{node}", environment(pair, node), command)
        steps.append(Step(node, why, run))
    return _one_server(
        pair,
        "vllm",
        "vLLM, tensor parallel over two nodes, without Ray",
        container,
        steps,
        watch="docker logs course-vllm-0 2>&1 | grep -i nccl   # NET/IB: over RDMA; NET/Socket: not",
        note="Either node waits for the other: start them within minutes.",
    )


def vllm_ray(pair: Pair) -> Plan:
    """One vLLM over both nodes, with Ray, as NVIDIA's playbook has it."""
    container = _container("vllm")
    steps = []
    for node in (0, 1):
        where = f"--head --port={RAY_PORT}" if node == 0 else f"--address={pair.head}:{RAY_PORT}"
        start = f"ray start --block --node-ip-address={pair.addresses[node]} {where}"
        shell = (
            "bash",
            "-c",
            f"pip install -q --root-user-action=ignore 'ray[default]' && {start}",
        )
        variables = environment(pair, node) | {"RAY_memory_monitor_refresh_ms": "0"}
        run = docker_run(container, f"course-ray-{node}", variables, shell)
        why = "joins the cluster" if node else "begins a Ray cluster (the image has no Ray)"
        steps.append(Step(node, why, run))
    wait = "until docker exec course-ray-0 ray status | grep -q '2.0 GPU'; do sleep 2; done"
    steps.append(Step(0, "waits for both", ("bash", "-c", wait)))
    extra = ("--tensor-parallel-size", "2", "--distributed-executor-backend", "ray")
    serve = ("docker", "exec", "-d", "course-ray-0", *serving(pair, "vllm", 0, *extra))
    steps.append(Step(0, "serves, over both", serve))
    return _one_server(
        pair,
        "vllm-ray",
        "vLLM, tensor parallel over two nodes, with Ray",
        container,
        steps,
        watch="docker exec course-ray-0 ray status   # two nodes, 2.0 GPU",
    )


def sglang(pair: Pair) -> Plan:
    """One SGLang over both nodes."""
    container = _container("sglang")
    steps = []
    for node in (1, 0):
        extra = [
            *("--tp-size", "2", "--nnodes", "2", "--node-rank", str(node)),
            *("--dist-init-addr", f"{pair.head}:{SGLANG_PORT}"),
        ]
        command = serving(pair, "sglang", node, *extra)
        run = docker_run(container, f"course-sglang-{node}", environment(pair, node), command)
        steps.append(Step(node, "its half of the model", run))
    return _one_server(
        pair,
        "sglang",
        "SGLang, tensor parallel over two nodes",
        container,
        steps,
        watch="docker logs course-sglang-1 2>&1 | tail -3",
        note="Only the first node answers requests; /health_generate tries the whole way.",
        health="/health_generate",
    )


def tensorrt_llm(pair: Pair) -> Plan:
    """One TensorRT-LLM over both nodes: mpirun starts it on the second over ssh."""
    container = _container("tensorrt_llm")
    container = replace(container, mounts={**container.mounts, "~/.ssh": "/tmp/.ssh:ro"})
    reach = (
        "apt-get update -q && apt-get install -y -q openssh-server && mkdir -p /run/sshd && "
        "cp -r /tmp/.ssh /root && chown -R root: /root/.ssh && chmod 700 /root/.ssh && "
        f"printf 'Host *\\n  Port {SSH_PORT}\\n  StrictHostKeyChecking no\\n' > "
        f"/etc/ssh/ssh_config.d/course.conf && exec /usr/sbin/sshd -D -p {SSH_PORT}"
    )
    hosts = "/etc/openmpi-hostfile"
    steps = []
    for node in (1, 0):
        variables = environment(pair, node) | {
            "OMPI_MCA_orte_default_hostfile": hosts,
            "OMPI_MCA_rmaps_ppr_n_pernode": "1",
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "TRITON_PTXAS_PATH": "/usr/local/cuda/bin/ptxas",
        }
        run = docker_run(container, f"course-trtllm-{node}", variables, ("bash", "-c", reach))
        steps.append(Step(node, f"waits for mpirun, on port {SSH_PORT}", run))
    inside = ("docker", "exec", "course-trtllm-0", "bash", "-c")
    listed = "\\n".join(pair.addresses)
    steps.append(Step(0, "names both", (*inside, f"printf '{listed}\\n' > {hosts}")))
    ask = f"until ssh {pair.addresses[1]} true; do sleep 2; done"
    steps.append(Step(0, "waits for the other", (*inside, ask)))
    serve = shlex.join(serving(pair, "tensorrt_llm", 0, "--tp_size", "2"))
    launch = f"mpirun -x HF_TOKEN trtllm-llmapi-launch {serve}"
    detached = ("docker", "exec", "-d", "course-trtllm-0", "bash", "-c", launch)
    steps.append(Step(0, "serves, over both", detached))
    return _one_server(
        pair,
        "tensorrt-llm",
        "TensorRT-LLM, tensor parallel over two nodes, with MPI",
        container,
        steps,
        watch="docker exec course-trtllm-0 mpirun hostname   # two names",
        note="Both need the same ssh key without a password (playbook connect-two-sparks, step 4).",
    )


PLANS: Mapping[str, Callable[[Pair], Plan]] = {
    "replicas": replicas,
    "vllm": vllm,
    "vllm-ray": vllm_ray,
    "sglang": sglang,
    "tensorrt-llm": tensorrt_llm,
}


def advise(weights_bytes: float, layers: int) -> str:
    """Which plan for a model, and why. Predicted, by the formulas that it names.

    Args:
        weights_bytes: Of the whole model, as it is served.
        layers: Transformer layers; tensor parallelism adds the parts up twice in each (all-reduce).
    """
    share = PROFILES["spark"].gpu_memory_utilization or 1.0
    room = share * MEMORY_BYTES
    gb = weights_bytes / 1e9
    if weights_bytes > 2 * room:
        return f"{gb:.0f} GB of weights do not fit into two Sparks ({room / 1e9:.0f} GB each): quantise."
    if weights_bytes > room:
        return (
            f"Tensor parallel over both: {gb:.0f} GB of weights do not fit into one ({room / 1e9:.0f} GB of "
            f"{MEMORY_BYTES / 1e9:.0f}, at {share:.0%})."
        )
    bandwidth = DGX_SPARK.bandwidth
    step_s = weights_bytes / bandwidth
    even_us = step_s / 2 / (2 * layers) * 1e6
    return (
        f"Two replicas: {gb:.3g} GB of weights fit into each. Both plans read {bandwidth / 1e9:.0f} GB/s "
        f"twice, so together they decode as much at best (a step is {step_s * 1e3:.3g} ms or more in a "
        f"replica); but tensor parallelism waits {2 * layers} times a step for the cable. For a single user "
        "it could be faster: up to twice, and slower than a replica once an all-reduce takes more than "
        f"{even_us:.0f} us. Measure before you choose it."
    )


def check(plan: Plan, timeout_s: float = 5.0) -> list[str]:
    """What of a plan does not answer; empty: all serves."""
    faults = []
    with loopback.client(timeout=timeout_s) as client:
        for url in plan.health:
            said = "no answer"
            with contextlib.suppress(httpx.HTTPError):
                said = f"HTTP {client.get(url).status_code}"
            if said != "HTTP 200":
                faults.append(f"{url}: {said}. Its log says why: docker ps; docker logs NAME")
    return faults


def print_advice(model: str) -> int:
    """Prints the advice for a model whose config can be read; returns the exit status."""
    try:
        config = QWEN3_8B if model == Pair.model else read_config(model)
        weights = dtype_bytes(decoder_parameters(config), PROFILES["spark"].dtype)
    except ConfigError as error:
        print(f"{error}\nName a folder with a config.json: --model FOLDER", file=sys.stderr)
        return 1
    print(f"{model}: {advise(weights, int(config['num_hidden_layers']))}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.two_sparks", description=__doc__)
    parser.add_argument("plan", choices=("advice", *PLANS))
    parser.add_argument("--nodes", nargs=2, metavar="ADDRESS", default=EXAMPLE)
    parser.add_argument("--interface", help="of the link; otherwise it is looked for")
    parser.add_argument("--model", default=Pair.model)
    parser.add_argument("--node", type=int, choices=(0, 1), help="only this node's script")
    parser.add_argument("--health", action="store_true", help="ask whether it serves")
    arguments = parser.parse_args(argv)
    if arguments.plan == "advice":
        return print_advice(arguments.model)
    interface = arguments.interface
    if interface is None:
        try:
            interface = find_link().name
        except NoLink as error:
            interface = INTERFACE
            print(f"# {error}\n# Written for {interface}.", file=sys.stderr)
    plan = PLANS[arguments.plan](Pair(tuple(arguments.nodes), interface, arguments.model))
    if arguments.health:
        faults = check(plan)
        print("\n".join(faults) or f"All of it serves: {plan.url}")
        return 1 if faults else 0
    print(plan.page() if arguments.node is None else plan.script(arguments.node))
    return 0


if __name__ == "__main__":
    sys.exit(main())
