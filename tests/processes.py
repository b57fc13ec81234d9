"""The environment of processes that tests start."""

import os
import re


def environment() -> dict[str, str]:
    """That of this process, so that others compile as it does; how many devices it has is left out."""
    env = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    count = r"--xla_force_host_platform_device_count=\d+"
    return env | {"XLA_FLAGS": re.sub(count, "", env.get("XLA_FLAGS", ""))}
