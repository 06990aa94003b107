"""Changes at random to a run folder: to a value, to a tensor, to bytes, to what stands where."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import torch
import yaml

from foreign import named

RNG = random.Random

# -- values -----------------------------------------------------------------------------------------------------------

ODD: list[Any] = [
    *[None, True, False, 0, -1, 1, 2, 7, 10**6, 10**9, 10**12, 2**31, 2**63, -(2**63), 10**30, 0.0, -0.5, 0.5, 1e-300],
    *[1e300, float("nan"), float("inf"), "", "x", "auto", "none", "true", "0", "../x", "/dev/zero", "/", "~", "\x00"],
    *[
        "${oc.env:HOME}",
        "hf_hub:a/b",
        "https://a.example/b",
        "os.system",
        "__class__",
        "\x1b[31m",
        "é" * 99,
        "x" * 9999,
    ],
    *[[], {}, [[]], [None], [0], [1, 2, 3], [10**12], [1] * 1000, {"_target_": "os.system"}, {"a": {"b": [1]}}, [{}]],
]
NAMES = [
    *["timm", "torchvision", "mlp", "linear", "resnet18", "sgd", "lion", "plateau", "onecycle", "gradual", "first_n"],
    *["bce", "huber", "mse", "focal", "labels", "values", "fake", "diabetes", "image_folder", "mnist", "cifar10"],
    *["cuda", "cpu", "bf16-mixed", "tensorboard", "csv", "balanced", "train", "test"],
]


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a value."""
    found: list[tuple[Any, Any]] = []
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found += [(value, key), *nodes(value[key])]
    return found


def change(value: Any, rng: RNG) -> Any:
    """One place of a tree of values: another value or type, gone, nested, or with a neighbour."""
    places = nodes(value)
    if not places or rng.random() < 0.02:
        return rng.choice(ODD)
    container, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.55:
        container[key] = rng.choice(ODD)
    elif kind < 0.65:
        container[key] = rng.choice(NAMES)
    elif kind < 0.75:
        del container[key]
    elif kind < 0.82:
        container[key] = functools.reduce(lambda inner, _: [inner], range(rng.choice([1, 5, 200])), container[key])
    elif kind < 0.88 and isinstance(container, dict):
        container[rng.choice(["_target_", "x", "out", "name", "shape", "${x}", "\x1b[2J"])] = rng.choice(ODD)
    elif kind < 0.94:
        container[key] = copy.deepcopy(rng.choice(places)[0])
    elif isinstance(container[key], int | float):
        container[key] = container[key] * rng.choice([-1, 0, 2, 10, 10**6, 0.5])
    else:
        container[key] = str(container[key])
    return value


def plain(value: Any, depth: int = 0) -> Any:
    """`value` to a depth that both formats can write; a change may have put it into itself."""
    if depth == 250 or not isinstance(value, dict | list):
        return None if depth == 250 else value
    if isinstance(value, list):
        return [plain(one, depth + 1) for one in value]
    return {key: plain(one, depth + 1) for key, one in value.items()}


# -- files ------------------------------------------------------------------------------------------------------------


def flipped(content: bytes, rng: RNG) -> bytes:
    out = bytearray(content)
    for _ in range(rng.choice([1, 1, 4, 64])):
        if out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut(content: bytes, rng: RNG) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def noise(content: bytes, rng: RNG) -> bytes:
    return rng.randbytes(rng.choice([0, 1, 8, 100, len(content)]))


def longer(content: bytes, rng: RNG) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + rng.choice([content, b"\x00" * 100, b"[" * 5000, b"{\n", b"\xff\xfe"]) + content[start:]


def doubled(content: bytes, rng: RNG) -> bytes:
    """A line twice, or two lines in each other's place: keys that come again, keys of other nodes."""
    rows = content.splitlines(keepends=True)
    if rows:
        rows.insert(rng.randrange(len(rows)), rng.choice(rows))
    return b"".join(rows)


BYTES = [flipped, cut, noise, longer, doubled]


def header(content: bytes, rng: RNG) -> bytes:
    """A safetensors file with another header, of the right length or of another."""
    (size,) = struct.unpack("<Q", content[:8])
    node = json.loads(content[8 : 8 + size])
    for _ in range(rng.choice([1, 2, 5])):
        node = change(node, rng)
    text = json.dumps(plain(node)).encode()
    length = rng.choice([len(text), len(text), len(text), 0, len(text) + 1, 2**62, 2**64 - 1, rng.randrange(2**20)])
    return struct.pack("<Q", length) + text + content[8 + size :]


def in_json(content: bytes, rng: RNG) -> bytes:
    return json.dumps(plain(change(json.loads(content), rng))).encode()


def in_yaml(content: bytes, rng: RNG) -> bytes:
    return yaml.safe_dump(plain(change(yaml.safe_load(content), rng))).encode()


def tensors(value: Any, rng: RNG) -> Any:
    """Another tensor in the place of one: of other shape, type, layout or numbers."""
    shape = list(value.shape)
    return rng.choice(
        [
            lambda: torch.zeros(1),
            lambda: torch.zeros([]),
            lambda: torch.zeros(10**5),
            lambda: torch.zeros(1).expand([10**6, 10**6]),
            lambda: torch.zeros(1, dtype=value.dtype).expand(shape or [1]),
            lambda: value.double(),
            lambda: value.to(torch.complex64),
            lambda: value.long(),
            lambda: value.reshape(-1),
            lambda: value.T if value.ndim == 2 else value[None],
            lambda: torch.full_like(value.float(), float("nan")),
            lambda: value.to_sparse() if value.ndim else value,
            lambda: torch.empty(shape, device="meta"),
        ]
    )()


def state(file: Path, rng: RNG) -> str:
    """A checkpoint with something else inside, under the name that its content asks for; the only one."""
    for other in file.parent.glob("*.pt"):
        if other != file:
            other.unlink()
    content = torch.load(file, weights_only=True)
    if rng.random() < 0.5:
        places = [(c, k) for c, k in nodes(content) if isinstance(c[k], torch.Tensor)]
        container, key = rng.choice(places)
        container[key] = tensors(container[key], rng)
        what = f"{key} {container[key].dtype} {list(container[key].shape)}"
    else:
        content, what = change(content, rng), "value"
    torch.save(content, file)
    named(file)
    return what


def _files(run: Path) -> list[Path]:
    return sorted(p for p in run.rglob("*") if p.is_file() and not p.is_symlink() and p.suffix != ".md")


def places(run: Path, rng: RNG) -> None:
    """A file that is gone, a folder, a pipe, a link, or the content of another."""
    files = _files(run)
    if not files:
        return
    file, other = rng.choice(files), rng.choice(files)
    content = other.read_bytes()
    file.unlink()
    match rng.randrange(7):
        case 0:
            file.mkdir()
        case 1:
            os.mkfifo(file)
        case 2:
            file.symlink_to(rng.choice([run.parent / "outside" / "secret", Path("/dev/zero"), file, Path("nowhere")]))
        case 3 | 4:
            file.write_bytes(content)
        case 5:
            shutil.rmtree(file.parent) if file.parent != run else None


def mutate(run: Path, rng: RNG) -> str:
    """Change one thing in a run folder, and say what."""
    files = _files(run)
    kind = rng.random()
    if kind < 0.1:
        places(run, rng)
        return "places"
    if kind < 0.25 and (states := [p for p in files if p.suffix == ".pt"]):
        with contextlib.suppress(Exception):  # it is damaged already
            return "state: " + state(rng.choice(states), rng)
    # A half of all on the config: it is what things are built from.
    file = run / "config.yaml" if rng.random() < 0.5 else rng.choice(files)
    if file not in files:  # an earlier change took it, or made a pipe of it
        return "nothing"
    content = file.read_bytes()
    edits = {".safetensors": header, ".yaml": in_yaml, ".json": in_json}
    if rng.random() < 0.7 and file.suffix in edits:
        # It is damaged already.
        with contextlib.suppress(ValueError, TypeError, RecursionError, struct.error, yaml.YAMLError):
            file.write_bytes(edits[file.suffix](content, rng))
            return f"value {file.name}"
    how = rng.choice(BYTES)
    file.write_bytes(how(content, rng))
    if file.suffix == ".pt" and rng.random() < 0.5:
        named(file)
    return f"{how.__name__} {file.name}"
