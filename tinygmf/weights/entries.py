"""Find the network in a checkpoint.

Trainers store a state dict under names of their own ("state_dict", "model_ema", ...), at any depth,
and wrappers put prefixes before its keys ("module.", "_orig_mod.", "backbone.", ...), in any number
and order. Neither needs a list: among named tensors, what precedes a root of the network is a
prefix, and what shares a prefix is one network. An entry's name is the path to it, joined by dots:
`state_dict.teacher.backbone`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tinygmf.config import GroupMixFormerConfig
from tinygmf.weights.notes import Placeholder, TensorNote

ROOTS = {"conv_stem", "patch_embed_layers", "groupmixformer_backbone"}
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
NETWORK_KEY = re.compile(
    r"(conv_stem\.(proj|norm)[12]|patch_embed_layers\.\d+\.(proj\.(conv1|pointwise_conv)|norm)"
    r"|groupmixformer_backbone\.\d+\.gma_stage\.\d+\.[a-z0-9_.]+|norm4|head)"
    r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"
)
HEADS = ("head", "head.fc", "fc", "classifier")  # mmpretrain's is head.fc, beside its backbone
AVERAGE = re.compile(
    r"(?<![a-z])(ema|swa|avg|target)(?![a-z])|EMA|SWA|average|Average|teacher|shadow|momentum"
)
# Where a file has the entry on the left, the one on the right holds the average: MMEngine's hook
# and Lightning's callback swap the network and its average when they save.
SWAPPED = {("message_hub", "ema_state_dict"): "state_dict", ("current_model_state",): "state_dict"}
# Names for a network within something larger, the rest of which does not belong to it.
PART = re.compile(r"backbone|encoder|body|trunk|student|teacher|online|target|ema|swa|avg|average")
OTHER_PARTS = re.compile(
    r"head|neck|decode|fpn|rpn|roi|loss|criterion|metric|acc|project|predict|queue"
)
COUNTERS = {"total_ops", "total_params", "n_averaged"}  # thop's and PyTorch's, anywhere
CONTAINERS = (dict, list, tuple, Placeholder)
# Bounds on the work for a hostile file. PyTorch's own training states have four levels, and the
# names of the largest published network 60 characters.
MAX_DEPTH, MAX_PATH, MAX_LIST, MAX_NETWORKS, MAX_MODULE = 16, 500, 10_000, 1_000, 50_000
MAX_PARTS = 32  # of a name, between its dots
SHOWN = 3  # names that a message lists
RUN_STATE = {"weights", "gradient", "first", "second"}  # in a run's file (`training.state`)


class Found(NamedTuple):
    """The tensors of one network under the published names, and a remark on what was skipped."""

    notes: dict[str, TensorNote]
    remark: str = ""


@dataclass
class Network:
    """The values under one prefix of a container, by the rest of their names.

    `others` are the container's values under no prefix; `used` are those that are its head.
    """

    name: str
    prefix: str
    values: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    @property
    def parent(self) -> str:
        """The prefix of the parts beside it: "" or "model."."""
        return self.prefix[: self.prefix.rfind(".") + 1]

    @property
    def notes(self) -> dict[str, TensorNote]:
        return _tensors(self.values)

    @property
    def keys(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the network's tensors but for the counters, which a file may lack."""
        notes = self.notes.items()
        return {
            key: note.shape
            for key, note in notes
            if NETWORK_KEY.fullmatch(key) and not key.endswith("num_batches_tracked")
        }


def find_network(tree: Any, entry: str | None = None) -> Found:
    """Return the one network in a file's containers, or the one that `entry` names.

    Of a network and its average (EMA, SWA, a teacher of the same shape), the average is taken.

    Raises:
        ValueError: there is none, there are several and nothing says which, or something in it or
            beside it does not belong to it. The message names what was found.
    """
    networks: list[Network] = []
    sets: list[str] = []
    for name, values in tensor_sets(tree):
        networks.extend(split_networks(name, values))
        if len(sets) < SHOWN:
            sets.append(f"{name or 'the file'} holds {_list(list(values))}")
        if len(networks) > MAX_NETWORKS:
            raise ValueError(f"it holds more than {MAX_NETWORKS} networks")
    if not networks and RUN_STATE.issubset(_members(tree)):
        raise ValueError(
            "expected a network, found the state of a training run: name its folder, or the "
            "model.safetensors there"
        )
    if not networks:
        raise ValueError(f"not a GroupMixFormer: {'; '.join(sets) or 'it holds no named tensors'}")
    whole = _distinct([network for network in networks if _is_whole(network)])
    whole = whole or [max(networks, key=lambda network: len(network.keys))]
    whole = _named(whole, networks, entry) if entry else whole
    chosen = _choose(whole, tree)
    return _finish(chosen, whole, accept_others=entry is not None)


def find_tensors(tree: Any) -> Found:
    """Return the largest set of named tensors in a file's containers, of any network, without
    prefixes such as `module.`.

    Raises:
        ValueError: there is none, or a name appears twice.
    """
    sets = [_tensors(values) for _, values in tensor_sets(tree)]
    if not sets:
        raise ValueError("expected a state dict, found no named tensors")
    notes = max(sets, key=len)
    result = {".".join(_without_wrappers(key)): note for key, note in notes.items()}
    if len(result) != len(notes):
        raise ValueError("a name appears twice, with and without 'module.' or the like")
    return Found(result)


def tensor_sets(tree: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every container of named tensors, outermost first, after the path to it."""
    waiting: deque[tuple[tuple[str, ...], Any]] = deque([((), tree)])
    seen: set[int] = set()
    while waiting:
        path, part = waiting.popleft()
        if id(part) in seen:
            continue
        seen.add(id(part))
        values = _members(part)
        named = type(part) not in (list, tuple)
        if named and any(type(value) is TensorNote for value in values.values()):
            yield ".".join(path), values
        if len(path) < MAX_DEPTH and sum(map(len, path)) < MAX_PATH:
            inner = (item for item in values.items() if type(item[1]) in CONTAINERS)
            waiting.extend(((*path, name), value) for name, value in inner)


def _tensors(values: Mapping[str, Any]) -> dict[str, TensorNote]:
    return {key: value for key, value in values.items() if type(value) is TensorNote}


def _members(part: Any) -> dict[str, Any]:
    """A container's members by name; of a pickled module its state dict."""
    if type(part) is dict:
        return {str(key): value for key, value in part.items()}
    if type(part) in (list, tuple):
        kinds = (*CONTAINERS, TensorNote)
        return {str(i): v for i, v in enumerate(part[:MAX_LIST]) if type(v) in kinds}
    if type(part) is not Placeholder:
        return {}
    attributes = _attributes(part)
    if "_modules" in attributes:
        return dict(_module_tensors(part))
    return _members(part.arguments) | attributes | _members(part.items)


def _attributes(part: Placeholder) -> dict[str, Any]:
    """An object's attributes; those in slots are a second dict."""
    states = part.state if type(part.state) is tuple else (part.state,)
    return {str(k): v for state in states if type(state) is dict for k, v in state.items()}


def _module_tensors(module: Placeholder) -> Iterator[tuple[str, Any]]:
    """Yield the state dict of an `nn.Module` that was pickled whole, each part once."""
    waiting: list[tuple[str, Any]] = [("", module)]
    seen: set[int] = set()
    while waiting:
        path, part = waiting.pop()
        if type(part) is not Placeholder or id(part) in seen or len(path) > MAX_PATH:
            continue
        if len(seen) > MAX_MODULE:
            raise ValueError(f"it holds a module of more than {MAX_MODULE} parts")
        seen.add(id(part))
        attributes = _attributes(part)
        for kind in ("_parameters", "_buffers"):
            values = _members(attributes.get(kind))
            yield from ((path + name, v) for name, v in values.items() if v is not None)
        modules = _members(attributes.get("_modules"))
        waiting.extend((f"{path}{name}.", value) for name, value in modules.items())


def split_networks(name: str, values: Mapping[str, Any]) -> Iterator[Network]:
    """The networks of one container: one for each prefix before a root of the network."""
    networks: dict[str, Network] = {}
    split = {key: _without_wrappers(key) for key in values}
    for parts in split.values():
        if (root := next((i for i, part in enumerate(parts) if part in ROOTS), -1)) >= 0:
            prefix = ".".join(parts[:root])
            way = ".".join(filter(None, (name, prefix)))
            networks.setdefault(prefix, Network(way or ".", prefix))
    others: dict[str, Any] = {}
    for key, parts in split.items() if networks else ():
        prefixes = (".".join(parts[:end]) for end in range(len(parts) - 1, -1, -1))
        owner = next((networks[prefix] for prefix in prefixes if prefix in networks), None)
        rest = ".".join(parts)[len(owner.prefix) + 1 if owner and owner.prefix else 0 :]
        target = owner.values if owner else others
        if rest in target:
            raise ValueError(f"{rest!r} appears twice, with and without 'module.' or the like")
        target[rest] = values[key]
    for network in networks.values():
        network.others = others
        _find_head(network)
        yield network


def _without_wrappers(key: str) -> list[str]:
    """A name's parts, without what data-parallel, compiled and checkpointed modules add."""
    *prefixes, last = key.split(".", MAX_PARTS)
    return [*(part for part in prefixes if part not in WRAPPERS), last]


def _find_head(network: Network) -> None:
    """Give the network the head that its wrapper keeps under another name, or beside it."""
    norm = network.values.get("norm4.weight")
    if "head.weight" in network.values or type(norm) is not TensorNote:
        return
    for values, base in ((network.values, ""), (network.others, network.parent)):
        for name in (f"{base}{head}" for head in HEADS):
            weight = values.get(f"{name}.weight")
            if type(weight) is TensorNote and weight.shape[1:] == norm.shape:
                keys = {last: f"{name}.{last}" for last in ("weight", "bias")}
                found = {last: values[key] for last, key in keys.items() if key in values}
                if values is network.others:
                    network.used.update(keys.values())
                else:
                    network.values = {k: v for k, v in values.items() if k not in keys.values()}
                network.values |= {f"head.{last}": value for last, value in found.items()}
                return


def _is_whole(network: Network) -> bool:
    try:
        GroupMixFormerConfig.from_state_dict({k: note.shape for k, note in network.notes.items()})
    except ValueError:
        return False
    return True


def _distinct(networks: list[Network]) -> list[Network]:
    """The networks without duplicates and parts of the largest one: an average of the parameters
    alone, say, or a gradient."""
    unique: dict[Any, Network] = {}
    for network in networks:
        unique.setdefault(tuple(network.notes.items()), network)
    largest = max((network.keys for network in unique.values()), key=len, default={})
    return [n for n in unique.values() if not n.keys.items() < largest.items()]


def _named(whole: list[Network], networks: list[Network], entry: str) -> list[Network]:
    """The networks whose name is `entry`, or else contains it."""
    for candidates in (whole, networks):
        if exact := [network for network in candidates if network.name == entry]:
            return exact
        if within := [network for network in candidates if f".{entry}." in f".{network.name}."]:
            return within
    raise ValueError(f"expected a network under {entry!r}, found networks under {_names(networks)}")


def _choose(networks: list[Network], tree: Any) -> Network:
    """The only network, or the only average among those of one shape."""
    if len(networks) == 1:
        return networks[0]
    shapes = {tuple(sorted(network.keys.items())) for network in networks}
    top = set(_members(tree))
    averages = [network for network in networks if _is_average(network.name, top)]
    if len(shapes) == 1 and len(averages) == 1:
        return averages[0]
    raise ValueError(
        f"expected one network, found {len(networks)}: choose one with --entry (Python: entry=): "
        f"{_names(networks)}"
    )


def _is_average(name: str, top: set[str]) -> bool:
    """Whether an entry holds an average, by its name and the names of the outermost container."""
    for marks, average in SWAPPED.items():
        if top.issuperset(marks):
            return name.split(".")[0] == average
    return AVERAGE.search(name) is not None


def _finish(chosen: Network, whole: list[Network], accept_others: bool) -> Found:
    """Drop or refuse what is not a tensor of the network; say what was skipped."""
    notes, skipped = {}, []
    for key, value in chosen.values.items():
        if NETWORK_KEY.fullmatch(key) and type(value) is not TensorNote:
            kind = value.name if type(value) is Placeholder else type(value).__name__
            raise ValueError(f"expected a tensor in {key!r}, found {kind!r}: save it as a tensor")
        if _is_counter(key, value):
            skipped.append(key)
        else:
            notes[key] = value
    others = [k for k, v in chosen.others.items() if not (k in chosen.used or _is_counter(k, v))]
    if not accept_others:
        _check_others(chosen, others)
    remark = []
    if len(whole) > 1:
        rest = [network for network in whole if network is not chosen]
        remark.append(f"chose {chosen.name!r}, not {_names(rest)}: --entry names another")
    if skipped := skipped + others:
        remark.append(f"skipped what is not part of the network: {_list(skipped)}")
    return Found(notes, "; ".join(remark))


def _check_others(chosen: Network, others: list[str]) -> None:
    """Raise ValueError if tensors beside the network belong to no known larger network."""
    last, start = chosen.name.rpartition(".")[2], len(chosen.parent)
    strange = [key for key in others if not OTHER_PARTS.search(key[start:].partition(".")[0])]
    if strange and not PART.search(last):
        raise ValueError(
            f"expected the network alone under {last!r}, found beside it {_list(strange)}: if they "
            f"are not part of it, say so with --entry {chosen.name} (Python: entry=)"
        )


def _is_counter(key: str, value: Any) -> bool:
    """Whether it is not a tensor, or a single number that no network computes with."""
    if type(value) is not TensorNote:
        return True
    root, _, _ = key.partition(".")
    single = value.shape in ((), (1,)) and not NETWORK_KEY.fullmatch(key)
    return single and (root not in ROOTS or key.rpartition(".")[2] in COUNTERS)


def _names(networks: list[Network]) -> str:
    return ", ".join(repr(network.name) for network in networks[: 3 * SHOWN])


def _list(keys: list[str]) -> str:
    """`a, b` or `9 names: a, b, c, …`"""
    count = f"{len(keys)} names: " if len(keys) > SHOWN else ""
    return f"{count}{', '.join(keys[:SHOWN])}{', …' if count else ''}"
