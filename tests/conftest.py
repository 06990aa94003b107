"""One thread, no network, and where the real data lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Hubs would be asked, and time out, on machines without a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
REAL = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets beside a checkout."""
    if not REAL.is_dir():
        pytest.skip(f"no real data at {REAL}")
    return REAL
