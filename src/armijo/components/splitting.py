"""Splittings: from a model to labelled parameter groups. Names and structure only; torch is not imported.

Torch's classes are recognised by their names in the class's ancestry, so that subclasses are recognised as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from armijo.errors import SplitError

if TYPE_CHECKING:
    from torch.nn import Module, Parameter

__all__ = ["split"]

_Found = TypeVar("_Found")
_Groups = dict[str, list["Parameter"]]

# They add a part to every name and hold the same parameters; labels do not depend on them.
_WRAPPERS = {"DistributedDataParallel": "module", "DataParallel": "module", "OptimizedModule": "_orig_mod"}

# `query`, `q_proj`, `to_q`, `wq`, `pos_key_proj`: the role, and what stands before and after it.
_ROLE = re.compile(r"(?P<before>(?:.*_)?w?)(?P<role>query|key|value|q|k|v)(?P<after>(?:_.*)?)", re.IGNORECASE)
_ROLES = {"k": "key", "q": "query", "v": "value"}

# Several roles in one name, and the names that say so by custom (GPT-2, torch.nn.MultiheadAttention, Baichuan).
_FUSED = re.compile(
    r"(?:.*_)?w?(?:q_?k_?v|q_?k|k_?v|query_key_value|query_key|key_value)(?:_.*)?|c_attn|in_proj_weight|w_pack",
    re.IGNORECASE,
)


def split(
    model: Module,
    by: str | Mapping[str, str | Sequence[str]] | Callable[[str, Parameter], str] = "layer",
    n_layer_groups: int | None = None,
) -> list[dict[str, Any]]:
    """Split a model's trainable parameters into labelled groups, one for each component with a step size of its own.

    Every parameter with `requires_grad` lies in exactly one group; frozen parameters lie in none. A parameter that is
    registered in several places (tied weights) belongs to the place registered first, as in `named_parameters()`. The
    order of the groups is the same at every call and is the order in which `armijo.PLASLS` searches components. Names
    and labels are those of the plain model when it is wrapped by `torch.compile`, `DistributedDataParallel` or
    `DataParallel`. The model is only read.

    Args:
        model: the module whose parameters are to be trained.
        by: how to split.

            - `"layer"`: `embeddings`, then `n_layer_groups` groups of consecutive layers, then `head`. The layers are
              the members of an outermost `torch.nn.ModuleList` whose members with parameters are of one class; where a
              model has no such list, of an outermost `torch.nn.Sequential` of that kind whose members have submodules
              (torchvision's ResNet and vision transformer). With the trainable layers l₀ … l_{L-1} of a stack, group
              i of n holds those from ⌈L·i/n⌉ up to ⌈L·(i+1)/n⌉: 12 layers in 8 groups are {0,1} {2} {3,4} {5} {6,7}
              {8} {9,10} {11}. Groups are called after their first and last layer, `layers.0-1`, `layers.2`; frozen
              layers are not counted and keep their numbers. A model with several stacks has groups for each, called
              after the shortest part of its name that tells it from the others: `encoder.0-1`, `decoder.2`.
              `embeddings` is what is registered before the first layer, `head` all else outside layers (pooler,
              classifier, final norm, and DeBERTa's `rel_embeddings`, which it registers after its layers); either is
              left out where it is empty.
            - `"projection"`: `key`, `query`, `value` and `rest`, those that are not empty. Query, key and value
              projections are a module's members (submodules or parameters) whose names differ in the role alone, all
              three being there: `query`, `key`, `value`; `q_proj`, `k_proj`, `v_proj`; `q`, `k`, `v`; … in self- and
              cross-attention. A member without the two others (a `value` head, DeBERTa's `pos_key_proj`) is `rest`.
            - `"module"`: one group for each module that owns trainable parameters directly, called by the module's
              name; the model itself is `(root)`.
            - `"tensor"`: one group for each parameter, called by its name.
            - a mapping of labels to a regular expression or a sequence of them, searched (`re.search`) in the
              parameter's name. The first label that matches has the parameter; groups come in the mapping's order.
            - a callable `(name, parameter) -> label`; groups come in the order in which labels first appear.
        n_layer_groups: for `"layer"` alone, the number of groups of layers, from 1 to the number L of trainable layers;
            default min(8, L). With several stacks it holds for each; a stack with fewer layers has one group a layer.

    Returns:
        `[{"params": [...], "component": label}, ...]`: what `armijo.PLASLS` and every torch optimizer takes. No group
        is empty, no label occurs twice.

    Raises:
        SplitError: `model` is not a module or has nothing to train; `by` is unknown; `n_layer_groups` is out of range
            or given with another `by`; the model has no layers, or no attention; query, key and value are one matrix
            (GPT-2's `c_attn`, `torch.nn.MultiheadAttention`), which no grouping of parameters can separate; a pattern
            is no regular expression or matches nothing; a label is left without a parameter, or a parameter without a
            label; a callable returns something other than a non-empty string.

    Examples:
        >>> import torch, armijo
        >>> class Net(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embedding = torch.nn.Embedding(20, 8)
        ...         self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(3))
        ...         self.classifier = torch.nn.Linear(8, 2)
        >>> model = Net()
        >>> [group["component"] for group in armijo.split(model, by="layer", n_layer_groups=2)]
        ['embeddings', 'layers.0-1', 'layers.2', 'head']
        >>> [group["component"] for group in armijo.split(model, by={"classifier": "^classifier", "body": ".*"})]
        ['classifier', 'body']
        >>> by_kind = armijo.split(model, by=lambda name, parameter: "matrices" if parameter.ndim > 1 else "vectors")
        >>> [(group["component"], len(group["params"])) for group in by_kind]
        [('matrices', 5), ('vectors', 4)]
        >>> optimizer = armijo.PLASLS(by_kind)

    Source:
        The splittings by layer and by projection are those of arXiv 2403.18506.
    """
    model = _unwrapped(model)
    parameters = list(model.parameters())
    if not any(parameter.requires_grad for parameter in parameters):
        raise SplitError(
            f"{_class(model)} has no trainable parameter: of its {len(parameters)} parameters none has "
            "requires_grad=True. Unfreeze what is to be trained before the split."
        )
    if n_layer_groups is not None and by != "layer":
        raise SplitError(
            f"n_layer_groups={n_layer_groups!r} counts groups of layers and goes with by='layer' alone; leave it out, "
            "or use by='layer'."
        )
    if isinstance(by, str) and by in _SPLITTINGS:
        groups = _SPLITTINGS[by](model, n_layer_groups)
    elif isinstance(by, Mapping):
        groups = _by_patterns(model, by)
    elif callable(by):
        groups = _grouped(model, _checked(by))
    else:
        *others, last = map(repr, _SPLITTINGS)
        raise SplitError(
            f"by={by!r} is unknown. Choose {', '.join(others)} or {last}, a mapping of labels to regular "
            "expressions, and a callable (name, parameter) -> label."
        )
    return [{"params": members, "component": label} for label, members in groups.items() if members]


def _grouped(model: Module, label: Callable[[str, Parameter], str], order: Sequence[str] = ()) -> _Groups:
    """The trainable parameters by label: the labels of `order` first, others as they appear."""
    groups: _Groups = {name: [] for name in order}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(label(name, parameter), []).append(parameter)
    return groups


# --- layers -----------------------------------------------------------------------------------------------------------


def _by_layer(model: Module, n_layer_groups: int | None) -> _Groups:
    stacks = _stacks(model)
    if not stacks:
        raise SplitError(_no_layers(model))
    titles = _titles(list(stacks))
    blocks = {block: (title, block.rpartition(".")[2]) for title, path in titles.items() for block in stacks[path]}
    # The first layer is found among frozen parameters too: what is frozen moves no other parameter elsewhere.
    names = [name for name, _ in model.named_parameters()]
    first = next((place for place, name in enumerate(names) if _enclosing(name, blocks)), len(names))
    early = set(names[:first])
    trainable = dict.fromkeys(
        layer
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (layer := _enclosing(name, blocks))
    )
    layers = {title: [number for stack, number in trainable if stack == title] for title in titles}
    labels: dict[tuple[str, str], str] = {}
    for title, wanted in _checked_n_layer_groups(model, n_layer_groups, layers).items():
        numbers = layers[title]
        bounds = [-(-len(numbers) * i // wanted) for i in range(wanted + 1)]
        for start, stop in pairwise(bounds):
            low, high = numbers[start], numbers[stop - 1]
            label = f"{title}.{low}" if low == high else f"{title}.{low}-{high}"
            labels.update({(title, number): label for number in numbers[start:stop]})

    def label_of(name: str, _: Parameter) -> str:
        layer = _enclosing(name, blocks)
        if layer is not None:
            return labels[layer]
        return "embeddings" if name in early else "head"

    return _grouped(model, label_of, order=["embeddings", *dict.fromkeys(labels.values()), "head"])


def _checked_n_layer_groups(model: Module, n_layer_groups: int | None, layers: dict[str, list[str]]) -> dict[str, int]:
    """The number of groups of each stack that has a trainable layer."""
    counts = {title: len(numbers) for title, numbers in layers.items() if numbers}
    if n_layer_groups is None:
        return {title: min(8, count) for title, count in counts.items()}
    if not counts:
        raise SplitError(
            f"n_layer_groups={n_layer_groups!r} cannot be used: every layer of {_class(model)} is frozen. Leave it "
            "out, or unfreeze layers before the split."
        )
    whole = isinstance(n_layer_groups, int) and not isinstance(n_layer_groups, bool)
    if not whole or not 1 <= n_layer_groups <= max(counts.values()):
        there_are = ", ".join(f"{count} in {title}" for title, count in counts.items())
        raise SplitError(
            f"n_layer_groups={n_layer_groups!r} is not an integer from 1 to the number of trainable layers of "
            f"{_class(model)} ({there_are}). Choose one in 1..{max(counts.values())}, or leave it out for at most 8."
        )
    return {title: min(n_layer_groups, count) for title, count in counts.items()}


def _stacks(model: Module) -> dict[str, list[str]]:
    """The names of the stacks of layers, and of each stack's layers."""
    lists: dict[str, list[str]] = {}
    closed: dict[str, bool] = {}
    for path, module in model.named_modules():
        if _is_a(module, "ModuleList") and _enclosing(path, closed) is None:
            # Closed in any case: lists inside a list of different blocks are parts of layers, not layers.
            closed[path] = True
            blocks = _blocks(path, module)
            if len({type(block) for block in blocks.values()}) == 1:
                lists[path] = list(blocks)
    if lists:
        return lists
    sequentials: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        if _is_a(module, "Sequential") and _enclosing(path, sequentials) is None:
            blocks = _blocks(path, module)
            # Without submodules they are the parts of one perceptron (linear, activation, linear), not layers.
            composite = all(next(block.children(), None) is not None for block in blocks.values())
            if composite and len({type(block) for block in blocks.values()}) == 1:
                sequentials[path] = list(blocks)
    return sequentials


def _blocks(path: str, container: Module) -> dict[str, Module]:
    """The members of a container that have parameters, by their full names (members without are not layers)."""
    return {
        _joined(path, name): block
        for name, block in container.named_children()
        if next(block.parameters(), None) is not None
    }


def _titles(paths: list[str]) -> dict[str, str]:
    """From short names of the stacks to their full ones: what tells them apart, without the beginning they share."""
    if len(paths) == 1:
        return {"layers": paths[0]}
    parts = [path.split(".") for path in paths]
    shared = next(depth for depth, column in enumerate(zip(*parts, strict=False)) if len(set(column)) > 1)
    while shared and any(own[shared].isdigit() for own in parts):  # `features.1`, not `1`
        shared -= 1
    titles: dict[str, str] = {}
    for own in parts:
        ends = range(shared + 1, len(own) + 1)
        end = next(end for end in ends if sum(other[:end] == own[:end] for other in parts) == 1)
        titles[".".join(own[shared:end])] = ".".join(own)
    return titles


def _no_layers(model: Module) -> str:
    mixed = [
        f"{path or '(root)'} has {', '.join(kinds)}"
        for path, module in model.named_modules()
        if _is_a(module, "ModuleList")
        and len(kinds := sorted({_class(block) for block in _blocks(path, module).values()})) > 1
    ]
    found = f" (there are lists of different classes: {_listed(mixed)})" if mixed else ""
    return (
        f"{_class(model)} has no numbered layers: no ModuleList, and no Sequential of composite blocks, whose members "
        f"are of one class{found}. Use by='module' or by='tensor', or give the groups yourself: a mapping of labels to "
        "regular expressions, or a callable (name, parameter) -> label."
    )


# --- projections ------------------------------------------------------------------------------------------------------


def _by_projection(model: Module) -> _Groups:
    roles: dict[str, str] = {}
    fused: list[str] = []
    attends = False
    for path, module in model.named_modules():
        children = dict(module.named_children())
        own = dict(module.named_parameters(recurse=False))
        held = {name: list(child.parameters()) for name, child in children.items()}
        held |= {name: [parameter] for name, parameter in own.items()}
        triples = _triples(list(held))
        roles.update({_joined(path, name): role for name, role in triples.items()})
        joint = [name for name, parameters in held.items() if name not in triples and _is_fused(name, parameters)]
        fused += [_joined(path, name) for name in joint if any(parameter.requires_grad for parameter in held[name])]
        attends = attends or bool(triples or joint)
    if fused:
        raise SplitError(
            f"{_class(model)} has query, key and value in one matrix ({_listed(fused)}), and one tensor cannot have "
            "several step sizes. Use by='layer' or by='module', which keep such a matrix whole."
        )
    if not attends:
        raise SplitError(
            f"{_class(model)} has no attention that could be split by projection: none of its modules has query, key "
            "and value side by side under names that differ in the role alone (query, key, value; q_proj, k_proj, "
            "v_proj). Use by='layer' or by='module', or a mapping of labels to regular expressions."
        )
    return _grouped(model, lambda name, _: _enclosing(name, roles) or "rest", order=[*_ROLES.values(), "rest"])


def _triples(names: list[str]) -> dict[str, str]:
    """The roles of those names that come as query, key and value with the same before, after and spelling."""
    frames: dict[tuple[str, bool, str], dict[str, str]] = {}
    for name in names:
        if match := _ROLE.fullmatch(name):
            role = match["role"].lower()
            frame = (match["before"], len(role) > 1, match["after"])
            frames.setdefault(frame, {})[name] = _ROLES[role[0]]
    return {name: role for frame in frames.values() if len(set(frame.values())) == 3 for name, role in frame.items()}


def _is_fused(name: str, parameters: list[Parameter]) -> bool:
    if name == "in_proj":  # DeBERTa's, of three times as many rows; state-space models have others of this name
        return any(tensor.ndim == 2 and tensor.shape[0] == 3 * tensor.shape[1] for tensor in parameters)
    return _FUSED.fullmatch(name) is not None and any(tensor.ndim > 1 for tensor in parameters)


# --- mappings and callables -------------------------------------------------------------------------------------------


def _by_patterns(model: Module, labels: Mapping[str, str | Sequence[str]]) -> _Groups:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    compiled = [(label, pattern) for label, given in labels.items() for pattern in _patterns(label, given)]
    for label, pattern in compiled:
        if not any(pattern.search(name) for name in names):
            raise SplitError(
                f"The pattern {pattern.pattern!r} of {label!r} matches no trainable parameter of {_class(model)}. Its "
                f"names are like {_listed(names)}; correct the pattern, or leave it out."
            )
    label_of = {name: next((label for label, pattern in compiled if pattern.search(name)), "") for name in names}
    unmatched = [name for name, label in label_of.items() if not label]
    if unmatched:
        raise SplitError(
            f"No pattern matches {_listed(unmatched)}. Every trainable parameter needs a component: add a label with "
            "the pattern '.*' at the end for all that is left, or freeze them."
        )
    for label in labels:
        if label not in label_of.values():
            raise SplitError(
                f"Nothing is left for {label!r}: labels before it match every parameter that its patterns match. Move "
                "it up, or leave it out."
            )
    return _grouped(model, lambda name, _: label_of[name], order=list(labels))


def _patterns(label: str, given: str | Sequence[str]) -> list[re.Pattern[str]]:
    _check_label(label, "A label of the mapping")
    patterns = [given] if isinstance(given, str) else given
    if not isinstance(patterns, Sequence) or not patterns or not all(isinstance(each, str) for each in patterns):
        raise SplitError(f"{label!r} needs a regular expression or a sequence of them, not {given!r}.")
    try:
        return [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise SplitError(
            f"A pattern of {label!r} ({given!r}) is no regular expression: {error}. Patterns are searched in a "
            "parameter's name as by re.search; re.escape takes a name literally."
        ) from error


def _checked(function: Callable[[str, Parameter], str]) -> Callable[[str, Parameter], str]:
    def label_of(name: str, parameter: Parameter) -> str:
        label = function(name, parameter)
        _check_label(label, f"The callable's label for {name}")
        return label

    return label_of


def _check_label(label: object, what: str) -> None:
    if not isinstance(label, str) or not label:
        raise SplitError(f"{what} is {label!r}; a component's label is a non-empty string.")


# --- modules and names ------------------------------------------------------------------------------------------------


def _unwrapped(model: Module) -> Module:
    if not _is_a(model, "Module"):
        raise SplitError(
            f"split reads the structure of a model and takes a torch.nn.Module, not {_class(model)}. Pass the model "
            "itself: armijo.split(model)."
        )
    while attribute := next((_WRAPPERS[name] for name in _WRAPPERS if _is_a(model, name)), None):
        model = getattr(model, attribute)
    return model


def _is_a(thing: object, name: str) -> bool:
    """Whether torch's class `name` is the class of `thing` or among its bases."""
    return any(base.__name__ == name and base.__module__.split(".")[0] == "torch" for base in type(thing).__mro__)


def _enclosing(name: str, table: Mapping[str, _Found]) -> _Found | None:
    """What the table has for the name itself or, innermost first, for a module around it."""
    while name not in table:
        if not name:
            return None
        name = name.rpartition(".")[0]
    return table[name]


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _class(thing: object) -> str:
    return type(thing).__name__


def _listed(names: Sequence[str]) -> str:
    """The first three, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# Another splitting is one function (model, n_layer_groups) -> groups, and one row here.
_SPLITTINGS: dict[str, Callable[[Module, int | None], _Groups]] = {
    "layer": _by_layer,
    "projection": lambda model, _: _by_projection(model),
    "module": lambda model, _: _grouped(model, lambda name, _: name.rpartition(".")[0] or "(root)"),
    "tensor": lambda model, _: _grouped(model, lambda name, _: name),
}
