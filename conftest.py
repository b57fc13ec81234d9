"""Tests run on four forced CPU devices; this must be said before JAX starts."""

import os


flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=4"
os.environ.setdefault("MPLBACKEND", "agg")
