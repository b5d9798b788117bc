"""What a notebook's kernel does: starts an engine in a container, says so, and goes on.

`python docker_kernel.py IMAGE ENTRYPOINT...` prints "starting" before the launch, then the id.
"""

import dataclasses
import sys
import time

from utils.engines import ENGINES, launch
from utils.profiles import PROFILES

image, *command = sys.argv[1:]
spec = ENGINES["llama_cpp"]
container = dataclasses.replace(
    spec.container, image=image, command=tuple(command), gpus=False, mounts={}
)
ENGINES["llama_cpp"] = dataclasses.replace(spec, container=container)
profile = dataclasses.replace(PROFILES["cpu"], runtime="docker", context_length=512)
print("starting", flush=True)
engine = launch("llama_cpp", profile, quiet=True)
print(engine.identity, flush=True)
time.sleep(60)
