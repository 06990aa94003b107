"""Where a run computes, in which precision, and how it steps. The only file that names cuda or Fabric.

Every automatic choice is made once, here, said with its reason, and returned by `resolved()` so that it is written to
the run's config: a resumed run repeats the choice instead of making it again.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator

import psutil
import torch
from torch import Tensor, nn

from sftc.errors import Refused, choose

ACCELERATORS = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("32", "bf16-mixed", "16-mixed")
PER_THREAD = 500_000_000  # multiply-adds of a forward worth one more thread: two lost clearly at 0.3e9, drew at 2.4e9


def _cores() -> int:
    """Physical cores this process may use, and no more than OMP_NUM_THREADS says."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    limit = int(asked) if asked.isdigit() else allowed
    return max(1, min(allowed, limit, psutil.cpu_count(logical=False) or allowed))


def _accelerator(name: str, index: int | None) -> tuple[torch.device, str]:
    choose("device", name, ACCELERATORS)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        why = "the best one available"
    else:
        why = "asked for"
    if name == "cuda" and not torch.cuda.is_available():
        raise Refused("device=cuda: torch sees no CUDA device here; use device=cpu or device=auto")
    if name == "mps" and not torch.backends.mps.is_available():
        raise Refused("device=mps: torch sees no Apple GPU here; use device=cpu or device=auto")
    if name == "cuda":
        count = torch.cuda.device_count()
        if index is not None and index >= count:
            raise Refused(f"device.index={index}: there are {count} CUDA devices, numbered from 0")
        return torch.device("cuda", index or 0), why
    return torch.device(name), why


class Later:
    """A small tensor on its way to the host. `read()` one step later finds it there without a wait."""

    __slots__ = ("_done", "_value")

    def __init__(self, value: Tensor) -> None:
        self._done = None
        self._value = value.detach()
        if value.device.type == "cuda":
            self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value.copy_(value.detach(), non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()

    def read(self) -> list[float]:
        if self._done is not None:
            self._done.synchronize()
        return self._value.tolist()


class Device:
    """One accelerator with its precision, threads and memory format.

    Args:
        accelerator: auto, cpu, cuda or mps.
        index: which GPU; None is the first.
        precision: 32, bf16-mixed or 16-mixed.
        compile: compile each model with `torch.compile` (in place, so its state dict keeps its names).
        channels_last: true, false or auto (true on a GPU in mixed precision).
        threads: CPU threads, or auto.
        deterministic: ask cuDNN for repeatable algorithms.

    Raises:
        Refused: the accelerator is not there, or cannot compute in that precision.
    """

    def __init__(
        self,
        accelerator: str = "auto",
        index: int | None = None,
        precision: str | int = "32",
        compile: bool = False,
        channels_last: bool | str = "auto",
        threads: int | str = "auto",
        deterministic: bool = True,
    ) -> None:
        self.precision = choose("device.precision", str(precision), PRECISIONS)
        self.torch, why = _accelerator(accelerator, index)
        self.compile = bool(compile)
        self.deterministic = bool(deterministic)
        self.notes = [f"device {self.torch}: {why}"]
        if self.precision == "16-mixed" and self.torch.type == "cpu":
            raise Refused("device.precision=16-mixed needs a GPU; on a CPU use bf16-mixed or 32")
        self._settled = threads != "auto"
        self.threads = int(threads) if self._settled else _cores()
        if channels_last == "auto":
            self.channels_last = self.torch.type == "cuda" and self.precision != "32"
            self.notes.append(f"channels_last {self.channels_last}: pays on a GPU in mixed precision only")
        else:
            self.channels_last = channels_last in (True, "true")
        # The scaler is ours, because `fabric.save` leaves it out of a checkpoint.
        self.scaler = torch.amp.GradScaler(self.kind) if self.precision == "16-mixed" else None

    @functools.cached_property
    def _fabric(self):
        """Fabric in mixed precision. In 32 bits there is nothing to cast or scale, so nobody waits for its import."""
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.precision import MixedPrecision

        devices = [self.torch.index or 0] if self.kind == "cuda" else 1
        plugin = MixedPrecision(self.precision, self.kind, self.scaler)  # type: ignore[arg-type]
        with _quiet_fabric():
            return Fabric(accelerator=self.kind, devices=devices, plugins=plugin)

    def settle(self, work: float) -> None:
        """Decide `threads: auto` by the multiply-adds of one step's forward pass.

        More threads than free cores make a small model many times slower, and its steps are too short to share anyway.
        The amount of work is known beforehand, unlike the load of the machine, so every run decides the same.
        """
        if self._settled or self.kind != "cpu":
            return
        cores = _cores()
        self.threads = max(1, min(cores, int(work / PER_THREAD)))
        self._settled = True
        torch.set_num_threads(self.threads)
        self.notes.append(f"threads {self.threads} of {cores} cores: a step is {work / 1e6:.3g} million multiply-adds")

    @property
    def kind(self) -> str:
        return self.torch.type

    def resolved(self) -> dict[str, object]:
        """The device group of a config with every `auto` replaced by what was chosen."""
        return {
            "accelerator": self.kind,
            "index": self.torch.index,
            "precision": self.precision,
            "compile": self.compile,
            "channels_last": self.channels_last,
            "threads": self.threads,
            "deterministic": self.deterministic,
        }

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Process-wide settings of this device, put back afterwards: the next job of a sweep must not inherit them."""
        cudnn = torch.backends.cudnn
        before = torch.get_num_threads(), cudnn.deterministic, cudnn.benchmark
        torch.set_num_threads(self.threads)
        cudnn.deterministic, cudnn.benchmark = self.deterministic, not self.deterministic
        try:
            with torch.random.fork_rng(devices=[self.torch] if self.kind == "cuda" else []):
                yield
        finally:
            torch.set_num_threads(before[0])
            cudnn.deterministic, cudnn.benchmark = before[1:]

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model here, in this memory format; compile it in place if asked."""
        if self.channels_last:
            model.to(self.torch, memory_format=torch.channels_last)  # type: ignore[call-overload]
        else:
            model.to(self.torch)
        if self.compile and model._compiled_call_impl is None:
            for part in {type(m) for m in model.modules()}:
                if getattr(part, "eager", False):  # only now: as a decorator it imports the compiler at every start
                    part.forward = torch.compiler.disable(part.forward)
                    setattr(part, "eager", False)  # noqa: B010  (once is enough)
            model.compile()
        return model

    def inputs(self, x):
        """Images in this device's memory format; anything else as it is."""
        if self.channels_last and isinstance(x, Tensor) and x.ndim == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x

    def autocast(self) -> contextlib.AbstractContextManager:
        """Around the forward of a student or a teacher."""
        return contextlib.nullcontext() if self.precision == "32" else self._fabric.autocast()

    def exact(self) -> contextlib.AbstractContextManager:
        """Around loss terms: autocast off."""
        if self.precision == "32":
            return contextlib.nullcontext()
        return torch.autocast(self.kind, enabled=False)

    def reseed(self, seed: int) -> None:
        """Make the next random numbers of a model a function of `seed` alone: nothing to save, nothing to restore."""
        torch.default_generator.manual_seed(seed)
        if self.kind == "cuda":
            torch.cuda.default_generators[self.torch.index or 0].manual_seed(seed)
        elif self.kind == "mps":
            torch.mps.manual_seed(seed)

    def backward(self, loss: Tensor) -> None:
        if self.precision == "32":
            loss.backward()
        else:
            self._fabric.backward(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def step(self, *optimizers: torch.optim.Optimizer) -> None:
        """Apply the gradients; under 16-mixed an overflow is skipped and the scale lowered."""
        for optimizer in optimizers:
            if self.scaler is None:
                optimizer.step()
            else:
                self.scaler.step(optimizer)
        if self.scaler is not None:
            self.scaler.update()

    def out_of_memory(self, error: RuntimeError) -> bool:
        """Whether an error says that memory ran out; CPUs and Apple GPUs say it in words only."""
        words = ("out of memory", "can't allocate memory", "not enough memory")
        return isinstance(error, torch.OutOfMemoryError) or any(w in str(error) for w in words)

    def release(self) -> None:
        """Give back memory that is held for reuse in pieces of the wrong size."""
        if self.kind == "cuda":
            torch.cuda.empty_cache()

    def wait(self) -> None:
        """Until all that was asked of the device is done: for timing."""
        if self.kind == "cuda":
            torch.cuda.synchronize(self.torch)
        elif self.kind == "mps":
            torch.mps.synchronize()

    def free_bytes(self) -> int:
        """Memory a resident data set may use: the GPU's where there is one, else the machine's."""
        if self.kind == "cuda":
            return torch.cuda.mem_get_info(self.torch)[0]
        return psutil.virtual_memory().available

    def peak_bytes(self) -> int:
        """Most memory the process held: on the GPU where there is one, else resident set size."""
        if self.kind == "cuda":
            return torch.cuda.max_memory_allocated(self.torch)
        # Linux; ru_maxrss counts the process that started us, too
        with contextlib.suppress(OSError, StopIteration), open("/proc/self/status") as f:
            return 1024 * next(int(line.split()[1]) for line in f if line.startswith("VmHWM:"))
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on a Mac

    def describe(self) -> str:
        name = torch.cuda.get_device_name(self.torch) if self.kind == "cuda" else self.kind
        return f"{name}, {self.precision}, {self.threads} threads"


@contextlib.contextmanager
def _quiet_fabric() -> Iterator[None]:
    """Fabric announces its precision on stderr; we say it ourselves."""
    import logging

    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
