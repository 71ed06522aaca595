"""Strict promotion, several devices, and one hypothesis profile for the desk and one for the night."""

import gc
import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# On a GPU the default rounds the factors of a matrix product to ten bits.
jax.config.update("jax_default_matmul_precision", "highest")

hypothesis.settings.register_profile("default", max_examples=10, deadline=None)
hypothesis.settings.register_profile("nightly", max_examples=2000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# Of which a test may run the program, on the machine at hand.
PLATFORMS = ("cpu", "cuda", "tpu")

# What they find is rounding, or the program that XLA makes: here it compiles as it does for users.
OPTIMIZED = {
    "test_across_devices",
    "test_batch_norm",
    "test_exactness",
    "test_gpu",
    "test_inplace",
    "test_local_moments",
    "test_lowering",
    "test_masking",
    "test_numerics_benchmark",
    "test_per_example",
    "test_programs",
    "test_properties",
    "test_reduction",
    "test_remat",
    "test_rounded",
}


def pytest_configure(config):
    """What has been compiled once, by any process of this run or of an earlier one, is read again."""
    # Of two processes that compile the same at a time, one may find the other's file half written.
    half_written = "ignore:Error reading persistent compilation cache entry"
    config.addinivalue_line("filterwarnings", half_written)
    # Of processes that tests start, whose output they look at.
    os.environ["PYTHONWARNINGS"] = half_written
    if not config.pluginmanager.has_plugin("cacheprovider"):
        return
    settings = {
        "jax_compilation_cache_dir": str(config.cache.mkdir("jax")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


def pytest_collection_modifyitems(items):
    """Skips what this machine lacks the devices for; a skipped test is never run on something else.

    Tests that are compiled alike follow one another.
    """
    modules = list(dict.fromkeys(item.module for item in items))
    items.sort(
        key=lambda item: (
            item.module.__name__ not in OPTIMIZED,
            modules.index(item.module),
            _platform_of(item) or "",
        )
    )
    on_gpu, devices = jax.default_backend() == "gpu", jax.device_count()
    for item in items:
        if item.get_closest_marker("gpu") and not on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
        if item.get_closest_marker("cpu") and on_gpu:
            item.add_marker(pytest.mark.skip(reason="of the program for a CPU"))
        if item.get_closest_marker("several_devices") and devices < 8:
            item.add_marker(pytest.mark.skip(reason=f"needs 8 devices, there are {devices}"))


@pytest.fixture(scope="module", autouse=True)
def _compilation(request):
    """Optimized where it matters; in less time, and nothing else is different, in all other files."""
    quick = request.module.__name__ not in OPTIMIZED
    if jax.config.read("jax_disable_most_optimizations") != quick:
        jax.config.update("jax_disable_most_optimizations", quick)
        jax.clear_caches()


@pytest.fixture(scope="module", autouse=True)
def _garbage_is_collected_between_files():
    """Tracing makes so many objects that the collector takes a tenth of the time if it may.

    What a file leaves behind is not looked through again after each other one.
    """
    gc.disable()
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def x64():
    """64-bit mode for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def standard_promotion():
    """Flax promotes implicitly, which strict mode forbids."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(params=PLATFORMS)
def platform(request, monkeypatch):
    """The program of each platform, run on the machine at hand."""

    def dependent(*operands, default, **functions):
        return functions.get(request.param, default)(*operands)

    monkeypatch.setattr(jax.lax, "platform_dependent", dependent)
    return request.param


@pytest.fixture(scope="session")
def traced_for():
    """The platform for which JAX's caches are filled."""
    return {"platform": None}


@pytest.fixture(autouse=True)
def _traced_for_the_platform(request, traced_for):
    """What was traced for another platform is traced again."""
    platform = _platform_of(request.node)
    if traced_for["platform"] != platform:
        jax.clear_caches()
        traced_for["platform"] = platform


def _platform_of(item):
    return item.callspec.params.get("platform") if hasattr(item, "callspec") else None


@pytest.fixture
def torchvision():
    """PyPI's torchvision is compiled for CUDA. With a torch for CPUs alone its operators are missing,
    and its import ends where it describes two of them; no ResNet has any.
    """
    torch = pytest.importorskip("torch")
    try:
        return pytest.importorskip("torchvision")
    except RuntimeError:
        operators = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return pytest.importorskip("torchvision")
