"""The accelerators, which need not be there: their compilers run on any Linux x86-64 machine.

For a GPU the compiler is told what device it compiles for, in the text of a `GpuTargetConfigProto` (XLA
has more of them under xla/backends/gpu/target_config/specs); a TPU's compiler knows its chips.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P


@dataclasses.dataclass(frozen=True)
class Compiler:
    """Of one platform, to be run in a process of its own.

    Attributes:
        module: what is importable where it is installed.
        extra: what installs it, of pyproject.toml.
        environment: what it needs to run without the hardware.
    """

    module: str
    extra: str
    environment: Mapping[str, str]

    @property
    def installed(self) -> bool:
        """Whether it is."""
        return importlib.util.find_spec(self.module) is not None


COMPILERS = {
    "gpu": Compiler(
        "jax_cuda12_plugin",
        "programs-gpu",
        # Which algorithm is the fastest can be tried on the device alone.
        {"XLA_FLAGS": "--xla_gpu_autotune_level=0"},
    ),
    "tpu": Compiler(
        "libtpu",
        "programs-tpu",
        {
            "XLA_FLAGS": "",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_WORKER_ID": "0",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        },
    ),
}
PLATFORMS = {"H200": "gpu", "A100": "gpu", "v5e": "tpu", "v6e": "tpu"}

_GPU = """
gpu_device_info {{
  core_count: {core_count}
  fpus_per_core: {fpus_per_core}
  clock_rate_ghz: {clock_rate_ghz}
  memory_bandwidth: {memory_bandwidth}
  device_memory_size: {device_memory_size}
  l2_cache_size: {l2_cache_size}
  shared_memory_per_core: {shared_memory_per_core}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {shared_memory_per_block_optin}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  cuda_compute_capability {{ major: {capability} }}
}}
platform_name: "CUDA"
dnn_version_info {{ {cudnn} }}
device_description_str: "{name}"
"""
_GPUS = {
    "H200": {
        "name": "NVIDIA H200 141GB HBM3e",
        "core_count": 132,
        "fpus_per_core": 128,
        "clock_rate_ghz": 1.98,
        "memory_bandwidth": 4_800_000_000_000,
        "device_memory_size": 151_397_597_184,
        "l2_cache_size": 52_428_800,
        "shared_memory_per_core": 233_472,
        "shared_memory_per_block_optin": 232_448,
        "capability": 9,
        "cudnn": "major: 9 minor: 10",
    },
    "A100": {
        "name": "NVIDIA A100-SXM4-80GB",
        "core_count": 108,
        "fpus_per_core": 64,
        "clock_rate_ghz": 1.41,
        "memory_bandwidth": 2_039_040_000_000,
        "device_memory_size": 85_100_068_864,
        "l2_cache_size": 41_943_040,
        "shared_memory_per_core": 167_936,
        "shared_memory_per_block_optin": 166_912,
        "capability": 8,
        "cudnn": "major: 8 minor: 9 patch: 4",
    },
}
_TPU_SHAPES = {1: "2x2", 16: "4x4", 256: "16x16"}


@functools.cache
def _devices(chip, count):
    if PLATFORMS[chip] == "tpu":
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{chip}:{_TPU_SHAPES[count]}"
        )
    else:
        config, shape = _GPU.format(**_GPUS[chip]), f"1x1x{count}"
        found = topologies.get_topology_desc(shape, "cuda", target_config=config, topology=shape)
    return tuple(found.devices[:count])


def mesh(chip: str, count: int) -> Mesh:
    """So many chips in a row, along an axis "i"; of TPUs there are 1, 16 or 256."""
    return Mesh(_devices(chip, count), ("i",))


def compiled(chip: str, function: Any, *arguments: Any, donate: tuple[int, ...] = ()) -> Any:
    """The compiled program of a function.

    Args:
        chip: of `PLATFORMS`, whose compiler is installed.
        function: to be jitted.
        arguments: shapes and dtypes. What has no sharding lies on one chip.
        donate: the arguments whose memory the results may take.
    """
    one = SingleDeviceSharding(_devices(chip, 1)[0])

    def placed(a):
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=getattr(a, "sharding", None) or one)

    lowered = jax.jit(function, donate_argnums=donate).lower(*jax.tree.map(placed, arguments))
    return lowered.compile()


def spread(tree: Any, mesh: Mesh, spec: P) -> Any:
    """Shapes and dtypes, with a sharding on several chips."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)
