"""What a run was made with: versions, hardware, the caller's git state, the command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from typing import Any

import psutil

from sftc import __version__
from sftc.device import Device

PACKAGES = ("torch", "torchvision", "timm", "torchmetrics", "lightning-fabric", "hydra-core", "safetensors", "numpy")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*args: str) -> str | None:
    """Output of git in the caller's folder; None where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *args], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def describe(device: Device, command: str, overrides: list[str]) -> dict[str, Any]:
    commit = _git("rev-parse", "HEAD")
    return {
        "sftc": __version__,
        "python": platform.python_version(),
        "packages": {p: _version(p) for p in PACKAGES},
        "platform": platform.platform(),
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": device.describe(),
        "git": commit and {"commit": commit, "changed": bool(_git("status", "--porcelain", "--untracked-files=no"))},
        "folder": os.getcwd(),
        "command": command,
        "overrides": overrides,
        "executable": sys.executable,
    }
