"""Cutting models: listen inside, name the blocks, keep the first few, change the head, hold parts still."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sftc.errors import Refused, nearest
from sftc.types import Inputs, Out

Block = tuple[str, list[str]]  # name, parameter names


class Tapped:
    """Call a model and keep what the named submodules gave.

    Make it after deepcopy or EMA and before compiling. The hooks sit on these very modules: a later copy of
    the model carries them along, but they see that they are not at home and keep silent.

    Raises:
        Refused: no such submodule, naming the nearest.
    """

    def __init__(self, model: nn.Module, taps: Sequence[str] = ()) -> None:
        self.model = model
        self._seen: dict[str, Tensor] = {}
        self._hooks = [self._listen(path) for path in dict.fromkeys(taps)]

    def __call__(self, inputs: Inputs) -> Out:
        """Logits in float32, and each tapped output as it was given (the first, if there are several)."""
        self._seen.clear()
        logits = self.model(inputs)
        features, self._seen = self._seen, {}
        return Out(logits.float(), features)

    def close(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()

    def _listen(self, path: str) -> torch.utils.hooks.RemovableHandle:
        modules = dict(self.model.named_modules())
        if not path or path not in modules:
            raise Refused(f"tap '{path}' is no module of the model{nearest(path, modules)}")
        home = modules[path]

        def hook(module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...] | list[Tensor]) -> None:
            if module is home:
                self._seen[path] = output if isinstance(output, Tensor) else output[0]

        return home.register_forward_hook(hook)


def head_names(model: nn.Module) -> list[str]:
    """Paths of the modules that give the logits: as the builder found them, else the last layer.

    Raises:
        Refused: there is none.
    """
    known = getattr(model, "heads", None)
    if known:
        return list(known)
    layers = [path for path, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if not layers:
        raise Refused(f"{type(model).__name__} has no dense or convolution layer to be its head")
    return layers[-1:]


def find_head(net: nn.Module, size: int) -> str:
    """The last dense or convolution layer that pictures of `size` pixels pass, on any device, also meta."""
    passed: list[str] = []
    hooks = [
        module.register_forward_hook(lambda _m, _i, _o, path=path: passed.append(path))
        for path, module in net.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, size, size, device=next(net.parameters()).device))
    for hook in hooks:
        hook.remove()
    return passed[-1]


def replace_head(model: nn.Module, out_dim: int) -> nn.Module:
    """Give `model` fresh heads of `out_dim` outputs, in place.

    Raises:
        Refused: a head that is neither dense nor a convolution.
    """
    for path in head_names(model):
        old = model.get_submodule(path)
        bias, device = getattr(old, "bias", None) is not None, next(old.parameters()).device
        if isinstance(old, nn.Linear):
            new: nn.Module = nn.Linear(old.in_features, out_dim, bias=bias, device=device)
        elif isinstance(old, nn.Conv2d):
            shape: Any = (old.kernel_size, old.stride, old.padding)
            new = nn.Conv2d(old.in_channels, out_dim, *shape, bias=bias, device=device)
        else:
            raise Refused(f"the head {path} is a {type(old).__name__}, neither dense nor a convolution")
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, new)
    for module in model.modules():  # timm's nets remember how many classes they have
        if isinstance(getattr(module, "num_classes", None), int):
            module.num_classes = out_dim  # type: ignore[assignment]
    return model


def blocks(model: nn.Module) -> list[Block]:
    """A model's own blocks as (name, parameter names): stem first, head last, each parameter in exactly one.

    timm says itself what its blocks are. For other nets they are the parts of its sequences; a norm or a
    loose parameter belongs to the block before.
    """
    heads = tuple(f"{path}." for path in head_names(model))
    known = dict(model.named_parameters())
    found: list[Block] = []
    head = [name for name in known if name.startswith(heads)]
    # Without the head: the same blocks for any number of classes, and any head.
    body = {id(p): p.numel() for name, p in known.items() if name not in head}
    for name, names, joins in _parts(model, "", body):
        names = [n for n in names if n not in head and n in known]
        small = all(known[n].ndim <= 1 for n in names)
        if found and (joins or small):
            found[-1][1].extend(names)
        elif names:
            found.append((name, names))
    if len(found) > 1 and _loose(model, found[0]):
        found[:2] = [(found[1][0], found[0][1] + found[1][1])]
    return [*found, (heads[0][:-1], head)]


def keep_first(source: nn.Module, target: nn.Module, n: int) -> nn.Module:
    """Copy the weights and running statistics of `source`'s first `n` blocks into `target`, in place.

    Raises:
        Refused: `n` out of range, or blocks that differ between the two.
    """
    theirs = blocks(source)
    in_range(n, len(theirs), "keep_first")
    give, take = source.state_dict(), target.state_dict()
    homes, aliases = _homes(source, theirs), getattr(target, "aliases", {})
    for key, value in give.items():
        if homes[key] >= n:
            continue
        key = key if key in take else aliases.get(key, key)  # a net without its head, in another
        if key not in take or take[key].shape != value.shape:
            raise Refused(f"keep_first={n}: the target has no {key} of shape {list(value.shape)}; are they alike?")
        take[key].copy_(value)
    return target


def in_range(n: int, count: int, what: str) -> None:
    """Refuse to keep fewer than one block, or the head too.

    Raises:
        Refused: naming how many blocks there are.
    """
    if count == 1:
        raise Refused(f"{what}={n} counts blocks below the head, and the model has nothing but its head")
    if not 1 <= n < count:
        raise Refused(f"{what}={n} must lie in 1..{count - 1}: the model has {count} blocks, the last is its head")


def kept(model: nn.Module, keep: int | str, what: str) -> int:
    """How many first blocks `keep` means: a number, or the path of the last module to be kept.

    Raises:
        Refused: no such module, or not fewer blocks than there are; says which there are.
    """
    parts = blocks(model)
    if isinstance(keep, str):
        held = [i for i, (_, names) in enumerate(parts) if any(n.startswith(f"{keep}.") for n in names)]
        if not held:
            names = [name for name, _ in parts[:-1]]
            near = nearest(keep, [path for path, _ in model.named_modules()])
            raise Refused(f"{what}={keep} is no block of the model{near} (blocks: {', '.join(names)})")
        keep = held[-1] + 1
    in_range(keep, len(parts), what)
    return keep


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for a while; every part gets the mode back that it had."""
    was = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in was:
            part.training = mode


def train_mode(model: nn.Module) -> nn.Module:
    """`model.train()`, but what is frozen as a whole stays in eval mode, its running statistics too."""
    model.train()
    _still(model)
    return model


def _still(module: nn.Module) -> None:
    params = list(module.parameters())
    if params and not any(p.requires_grad for p in params):
        module.eval()
        return
    for child in module.children():
        _still(child)


def _parts(module: nn.Module, path: str, body: dict[int, int]) -> Iterator[tuple[str, list[str], bool]]:
    """(path, parameter names, whether it belongs to the part before) in the order of registration."""
    prefix = f"{path}." if path else ""
    if hasattr(module, "group_matcher"):
        yield from _timm_parts(module, prefix)
        return
    if hasattr(module, "sections"):  # it says itself what its blocks are
        sections: Any = module.sections
        for names in sections():
            yield prefix + _shared(names), [prefix + n for n in names], False
        return
    loose = [prefix + name for name, _ in module.named_parameters(recurse=False)]
    if loose:
        yield path, loose, True
    for name, child in module.named_children():
        if not any(True for _ in child.parameters()):
            continue
        if _is_sequence(child) or (any(True for _ in child.children()) and _most(child, body)):
            inner = list(_parts(child, prefix + name, body))
            if sum(not joins for _, _, joins in inner) == 1:  # one layer with its norm, in a wrapper
                yield prefix + name, [n for _, names, _ in inner for n in names], False
            else:
                yield from inner
        else:
            small = all(p.ndim <= 1 for p in child.parameters())
            yield prefix + name, [f"{prefix}{name}.{n}" for n, _ in child.named_parameters()], small


def _most(module: nn.Module, body: dict[int, int]) -> bool:
    return sum(body.get(id(p), 0) for p in module.parameters()) > 0.8 * sum(body.values())


def _timm_parts(net: nn.Module, prefix: str) -> Iterator[tuple[str, list[str], bool]]:
    from timm.models import group_parameters

    groups = group_parameters(net, net.group_matcher(coarse=False))  # type: ignore[operator]
    for _, names in sorted(groups.items()):
        yield prefix + _shared(names), [prefix + n for n in names], False


def _shared(names: list[str]) -> str:
    """The longest path that most of the names share with the first."""
    parts = names[0].split(".")[:-1]
    for i in range(len(parts), 0, -1):
        path = ".".join(parts[:i])
        if 2 * sum(n.startswith(f"{path}.") for n in names) > len(names):
            return path
    return parts[0] if parts else names[0]


def _is_sequence(module: nn.Module) -> bool:
    """Whether a module is nothing but its children one after another."""
    plain = (nn.Sequential.forward, nn.ModuleList.forward, nn.ModuleDict.forward)
    own = type(module).__name__ == "IntermediateLayerGetter"  # torchvision's: in order, and some outputs are kept
    return isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict) and (own or type(module).forward in plain)


def _loose(model: nn.Module, block: Block) -> bool:
    """Whether a block is only parameters that no layer owns, such as a class token."""
    owners = {name.rpartition(".")[0] for name in block[1]}
    return all(any(True for _ in model.get_submodule(owner).children()) for owner in owners)


def _homes(model: nn.Module, parts: list[Block]) -> dict[str, int]:
    """The block number of every parameter and buffer; a buffer lives with its nearest owner's parameters."""
    home = {"": 0}
    for block, (_, names) in enumerate(parts):
        for name in names:
            home[name] = block
            while name:
                name = name.rpartition(".")[0]
                home.setdefault(name, block)
    for key in model.state_dict():
        owner = key
        while owner not in home:
            owner = owner.rpartition(".")[0]
        home[key] = home[owner]
    return home
