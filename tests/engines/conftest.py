"""Real engines, each started once for its tests; the profile is that of the machine."""

import pytest

from utils.engines import NotRunHere, launch
from utils.engines.structured import COMPACT_JSON
from utils.profiles import load_profile


@pytest.fixture(scope="session")
def profile():
    return load_profile()


def running(name, profile, **options):
    try:
        engine = launch(name, profile, quiet=True, **options)
    except NotRunHere as reason:
        pytest.skip(str(reason))
    with engine:
        yield engine


@pytest.fixture(scope="package")
def vllm(profile):
    yield from running("vllm", profile, extra_arguments=COMPACT_JSON["vllm"])


@pytest.fixture(scope="package")
def sglang(profile):
    yield from running("sglang", profile, extra_arguments=COMPACT_JSON["sglang"])


@pytest.fixture(scope="module")
def llama_cpp(profile):
    yield from running("llama_cpp", profile)


@pytest.fixture(scope="module")
def llama_cpp_quantised(profile):
    yield from running("llama_cpp", profile, model=profile.models["llama_cpp_quantised"])


@pytest.fixture(scope="module")
def baseline(profile):
    yield from running("transformers", profile)
