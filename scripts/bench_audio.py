"""Spoken digits: nets on spectrograms, their team and their student against scikit-learn on mean spectra.

python scripts/bench_audio.py                                   # takes 0 to 4 are the test set, 3 seeds
python scripts/bench_audio.py --by speaker --seeds 2            # one speaker, theo, is the test set
python scripts/bench_audio.py memory --clips 600 6000           # peak memory of an epoch, held and streamed

Everybody hears the same clips. The nets choose their epoch on a tenth of the training clips, the reference needs none
and learns from all of them. Seconds are CPU-seconds of a whole run: reading, training, scores and files.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sftc import build, data, models
from sftc.cli import compose
from sftc.cli.conf import conf_dir
from sftc.store import Run
from sftc.types import Form

PATTERNS = {
    "takes": r"(?P<label>\d)_\w+_((?P<test>[0-4])|\d+)",
    "speaker": r"(?P<label>\d)_((?P<test>theo)|[a-z]+)_\d+",
}
GROUPS = {  # so that validation, too, is of a speaker that was not learned from
    "takes": (),
    "speaker": (r"++data.groups='\d_(?P<group>[a-z]+)_\d+'",),
}
NETS = {
    "audio_cnn": (),
    "audio_bilstm": (),
    "resnet18": ("optim.lr=0.001", "epochs=10", "model.pretrained=false"),
}


def config(root: str, by: str, seed: int, *more: str, command: str = "train") -> dict[str, Any]:
    own = ("experiment=fsdd", f"data.root={root}", f"++data.pattern='{PATTERNS[by]}'", f"seed={seed}")
    own = (*own, *GROUPS[by])
    own = (*own, "device=cpu", "device.threads=1", "quiet=true") if command == "train" else ("quiet=true",)
    return compose.check_all(command, [*own, *more], [conf_dir()], sweep=False).values


def trained(out: Path, cfg: dict[str, Any]) -> Run:
    build.train(cfg, out, [], "bench")
    return Run.open(out)


def reference(root: str, by: str) -> dict[str, float]:
    """Mean and deviation over time of each band: test accuracy in percent of two classifiers."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    held = data.build(config(root, by, 0)["data"] | {"augment": {}})
    net: Any = models.build(
        {"family": "linear", "name": "linear"}, out_dim=2, form=Form(held.shape, about=held.form.about)
    )

    def split(*names: str) -> tuple[np.ndarray, np.ndarray]:
        parts = [(held.splits[n].table, held.splits[n].rows) for n in names]
        pictures = torch.cat([net.prepare.spectrogram(table.read(rows)) for table, rows in parts])[:, 0]
        target = torch.cat([table.target[rows] for table, rows in parts])
        return torch.cat([pictures.mean(2), pictures.std(2)], 1).numpy(), target.numpy()

    train, test = split("train", "val"), split("test")
    found = {"logistic regression": LogisticRegression(max_iter=2000), "support vectors": SVC(C=10)}
    return {
        name: 100 * make_pipeline(StandardScaler(), model).fit(*train).score(*test) for name, model in found.items()
    }


def compare(args: argparse.Namespace) -> None:
    found: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}

    def note(name: str, run: Run, begun: float) -> None:
        found.setdefault(name, []).append(100 * run.result["test"]["accuracy"])
        seconds.setdefault(name, []).append(time.process_time() - begun)
        print(f"seed {seed}: {name} {found[name][-1]:.2f} ({seconds[name][-1]:.0f} CPU-s)", flush=True)

    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            members = []
            for name in args.nets:
                begun = time.process_time()
                members.append(
                    trained(Path(folder) / name, config(args.root, args.by, seed, f"model={name}", *NETS[name]))
                )
                note(name, members[-1], begun)
            if len(members) > 1:
                begun, out = time.process_time(), Path(folder) / "fused"
                runs = f"runs=[{','.join(str(run.path) for run in members)}]"
                build.fuse(config(args.root, args.by, seed, runs, "fuse=mean", command="fuse"), out, [], "bench")
                note("fused (mean)", Run.open(out), begun)
                begun = time.process_time()
                kd = ("model=audio_bilstm", "strategy=kd", f"strategy.teachers=[{out}]", "strategy.alpha=0.3")
                note(
                    "audio_bilstm, taught by the team",
                    trained(Path(folder) / "kd", config(args.root, args.by, seed, *kd)),
                    begun,
                )
    for name, value in reference(args.root, args.by).items():
        found[name] = [value]
    print(f"\ntest accuracy in %, split by {args.by}, {args.seeds} seeds")
    for name, values in found.items():
        spread = f"({statistics.stdev(values):.2f})" if len(values) > 1 else ""
        cost = f"{statistics.median(seconds[name]):.0f} CPU-s" if name in seconds else ""
        print(f"{name:34} {statistics.mean(values):6.2f} {spread:7} {cost}")


def memory(args: argparse.Namespace) -> None:
    """Peak memory of a process that reads and augments an epoch of 5-second clips, by how many there are."""
    import soundfile

    for clips in args.clips:
        with tempfile.TemporaryDirectory() as folder:
            noise = np.random.default_rng(0).integers(-8000, 8000, (8, 40_000), dtype=np.int16)
            for i in range(clips):
                path = Path(folder) / "root" / "ab"[i % 2] / f"{i}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, noise[i % 8], 8000)
            for cache in ("host", "none"):
                code = [sys.executable, __file__, "epoch", "--root", str(Path(folder) / "root"), "--cache", cache]
                said = subprocess.run(code, capture_output=True, text=True, check=True).stdout.strip()
                print(
                    f"{clips:6} clips, {clips * 80_000 / 1e6:5.0f} MB decoded, data.cache={cache}: {said}", flush=True
                )


def epoch(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    spec = {"name": "audio_folder", "root": args.root, "cache": args.cache, "workers": 0}
    held = data.build({**spec, "augment": {"shift": 0.1, "noise": 0.1, "time_mask": 0.2, "freq_mask": 0.2}})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for batch in held.source("train", 32, train=True, seed=0, device=torch.device("cpu")).epoch(0):
        assert batch.inputs.isfinite().all()
    print(f"{before:.0f} MiB before, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="compare", choices=("compare", "memory", "epoch"))
    parser.add_argument("--root", default="../shared/data/fsdd")
    parser.add_argument("--by", default="takes", choices=tuple(PATTERNS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nets", nargs="+", default=["audio_cnn", "audio_bilstm"], choices=tuple(NETS))
    parser.add_argument("--clips", type=int, nargs="+", default=[600, 6000])
    parser.add_argument("--cache", default="host")
    args = parser.parse_args()
    torch.set_num_threads(1)
    {"compare": compare, "memory": memory, "epoch": epoch}[args.what](args)


if __name__ == "__main__":
    main()
