"""An installed wheel works from any folder: its YAML is inside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder the wheel was installed to, alone."""
    pytest.importorskip("hatchling", reason="pip install 'sftc[dev]'")
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder / "dist", ROOT], check=True)
    (wheel,) = (folder / "dist").glob("sftc-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


def run(site, *args, cwd):
    env = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True)


def test_the_wheel_is_what_runs_and_carries_its_conf(site, tmp_path):
    where = run(site, "-c", "import sftc; print(sftc.__file__)", cwd=tmp_path)
    assert where.stdout.strip() == str(site / "sftc" / "__init__.py")
    shown = run(site, "-m", "sftc", "train", "debug=smoke", "model=mlp", "--cfg", "job", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "hidden:" in shown.stdout
    assert not list(tmp_path.iterdir())
    shipped = {p.relative_to(site / "sftc" / "conf") for p in (site / "sftc" / "conf").rglob("*.yaml")}
    assert shipped == {p.relative_to(ROOT / "conf") for p in (ROOT / "conf").rglob("*.yaml")}


def test_the_wheel_trains(site, tmp_path):
    done = run(site, "-m", "sftc", "train", "debug=smoke", "out=here", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "here" / "model.safetensors").is_file()
