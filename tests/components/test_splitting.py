"""`armijo.split`: which parameter lies in which component."""

from __future__ import annotations

import doctest
import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import armijo
from armijo import SplitError, split
from armijo.components import splitting
from components import architectures
from components.architectures import ARCHITECTURES, Residual, SequentialResNet

SEPARATE = sorted(name for name, (_, separate) in ARCHITECTURES.items() if separate)
FUSED = sorted(name for name, (_, separate) in ARCHITECTURES.items() if separate is False)
WITHOUT_ATTENTION = sorted(name for name, (_, separate) in ARCHITECTURES.items() if separate is None)


@cache
def _built(architecture: str) -> nn.Module:
    return ARCHITECTURES[architecture][0]()


def model_of(architecture: str) -> nn.Module:
    """One model an architecture, everything trainable."""
    return _built(architecture).requires_grad_(True)


def members(model: nn.Module, **how: Any) -> dict[str, list[str]]:
    """Label -> names of parameters, in the order of the groups."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = split(model, **how)
    assert all(set(group) == {"params", "component"} for group in groups)
    return {group["component"]: [names[parameter] for parameter in group["params"]] for group in groups}


def labels(model: nn.Module, **how: Any) -> list[str]:
    return [group["component"] for group in split(model, **how)]


def bounds(length: int, n: int) -> list[list[int]]:
    """The groups of METHOD's ⌈L·i/n⌉."""
    edges = [math.ceil(length * i / n) for i in range(n + 1)]
    return [list(range(low, high)) for low, high in pairwise(edges)]


# --- a partition, whatever the model, the splitting and what is frozen ---

BY: dict[str, Any] = {
    "layer": "layer",
    "projection": "projection",
    "module": "module",
    "tensor": "tensor",
    "mapping": {"first": r"\.0\.", "others": ["weight", ".*"]},
    "callable": lambda name, parameter: f"{parameter.ndim} dimensions",
}


@settings(max_examples=150)
@given(
    architecture=st.sampled_from(sorted(ARCHITECTURES)),
    by=st.sampled_from(sorted(BY)),
    frozen=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    seed=st.integers(0, 2**16),
)
def test_every_trainable_parameter_lies_in_exactly_one_group(
    architecture: str, by: str, frozen: float, seed: int
) -> None:
    if by == "projection":
        assume(architecture in SEPARATE)
    model = model_of(architecture)
    parameters = list(model.parameters())
    draws = torch.rand(len(parameters), generator=torch.Generator().manual_seed(seed)).tolist()
    for parameter, draw in zip(parameters, draws, strict=True):
        parameter.requires_grad_(draw >= frozen)
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    assume(trainable)
    if by == "mapping":  # a label without a parameter is an error, shown elsewhere
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assume({".0." in name for name in names} == {True, False} and any("weight" in name for name in names))
    groups = split(model, by=BY[by])
    placed = [parameter for group in groups for parameter in group["params"]]
    assert Counter(map(id, placed)) == Counter(map(id, trainable))
    assert all(group["params"] for group in groups)
    assert len({group["component"] for group in groups}) == len(groups)
    # Stable, and in the order of registration within each group.
    again = split(model, by=BY[by])
    place = {id(parameter): i for i, parameter in enumerate(parameters)}
    for group, repeated in zip(groups, again, strict=True):
        assert group["component"] == repeated["component"]
        assert list(map(id, group["params"])) == list(map(id, repeated["params"]))
        assert [place[id(parameter)] for parameter in group["params"]] == sorted(
            place[id(parameter)] for parameter in group["params"]
        )


@pytest.mark.parametrize("by", ["layer", "projection", "module", "tensor"])
def test_freezing_moves_no_other_parameter_between_layers_and_what_is_around_them(by: str) -> None:
    model = model_of("bert")
    coarse = {name: re.sub(r"layers.*", "layers", label) for label, ns in members(model, by=by).items() for name in ns}
    for frozen in ("embeddings", "layer.0", "layer", "pooler"):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(frozen not in name)
        for label, names in members(model, by=by).items():
            assert {coarse[name] for name in names} == {re.sub(r"layers.*", "layers", label)}


# --- layers ---


def test_twelve_layers_are_the_ten_components_of_the_paper() -> None:
    model = architectures.bert(layers=12)
    found = members(model, by="layer")
    assert list(found) == [
        "embeddings",
        "layers.0-1",
        "layers.2",
        "layers.3-4",
        "layers.5",
        "layers.6-7",
        "layers.8",
        "layers.9-10",
        "layers.11",
        "head",
    ]
    assert found == members(model) == members(model, n_layer_groups=8)
    names = [name for name, _ in model.named_parameters()]
    assert found["embeddings"] == [name for name in names if name.startswith("bert.embeddings.")]
    assert found["head"] == [name for name in names if name.startswith(("bert.pooler.", "classifier."))]
    for label, numbers in zip(list(found)[1:-1], bounds(12, 8), strict=True):
        prefixes = tuple(f"bert.encoder.layer.{number}." for number in numbers)
        assert found[label] == [name for name in names if name.startswith(prefixes)]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 12])
def test_any_number_of_groups_up_to_the_number_of_layers(length: int) -> None:
    model = nn.Sequential(nn.ModuleList(nn.Linear(2, 2) for _ in range(length)))
    for n_layer_groups in range(1, length + 1):
        found = list(members(model, by="layer", n_layer_groups=n_layer_groups).values())
        assert found == [
            [f"0.{i}.{kind}" for i in group for kind in ("weight", "bias")] for group in bounds(length, n_layer_groups)
        ]
        assert all(found)
    for n_layer_groups in (0, -1, length + 1, 2.0, "2", True):
        with pytest.raises(SplitError, match=rf"n_layer_groups=.*\b{length} in layers.*Choose one in 1\.\.{length}"):
            split(model, by="layer", n_layer_groups=n_layer_groups)  # type: ignore[arg-type]
    assert len(split(model, by="layer")) == min(8, length)


LAYERS = {
    "albert": ["embeddings", "layers.0", "head"],
    "bart": ["embeddings", "encoder.0", "encoder.1", "decoder.0-1", "decoder.2", "head"],
    "bert": ["embeddings", "layers.0-1", "layers.2", "head"],
    "bert_masked": ["embeddings", "layers.0", "layers.1", "head"],
    "deberta": ["embeddings", "layers.0-1", "layers.2", "head"],
    "deberta_v2": ["embeddings", "layers.0-1", "layers.2", "head"],
    "distilbert": ["embeddings", "layers.0-1", "layers.2", "head"],
    "electra": ["embeddings", "layers.0-1", "layers.2", "head"],
    "gpt2": ["embeddings", "layers.0-1", "layers.2", "head"],
    "llama": ["embeddings", "layers.0-1", "layers.2", "head"],
    "opt": ["embeddings", "layers.0-1", "layers.2"],
    "resnet": ["embeddings", "layers.0-1", "layers.2", "head"],
    "roberta": ["embeddings", "layers.0-1", "layers.2", "head"],
    "sequential_resnet": ["embeddings", "layer1.0-1", "layer1.2", "layer2.0", "layer2.1", "head"],
    "t5": ["embeddings", "encoder.0-1", "encoder.2", "decoder.0", "decoder.1", "head"],
    "torch_transformer": ["layers.0-1", "layers.2"],
    "vit": ["embeddings", "layers.0-1", "layers.2", "head"],
}
# Members of `embeddings` and `head` by what their names begin with.
AROUND = {
    "albert": (("albert.embeddings", "albert.encoder.embedding_hidden_mapping_in"), ("albert.pooler", "classifier")),
    "bart": (
        ("model.shared", "model.encoder.embed_positions"),
        ("model.encoder.layernorm_embedding", "model.decoder.embed_positions", "model.decoder.layernorm_embedding"),
    ),
    "bert": (("bert.embeddings",), ("bert.pooler", "classifier")),
    "bert_masked": (("bert.embeddings",), ("cls.predictions",)),
    "deberta": (("deberta.embeddings",), ("deberta.encoder.rel_embeddings", "pooler", "classifier")),
    "deberta_v2": (
        ("deberta.embeddings",),
        (
            "deberta.encoder.rel_embeddings",
            "deberta.encoder.LayerNorm",
            "deberta.encoder.conv",
            "pooler",
            "classifier",
        ),
    ),
    "distilbert": (("distilbert.embeddings",), ("pre_classifier", "classifier")),
    "electra": (("electra.embeddings", "electra.embeddings_project"), ("classifier",)),
    "gpt2": (("transformer.wte", "transformer.wpe"), ("transformer.ln_f",)),
    "llama": (("model.embed_tokens",), ("model.norm", "lm_head")),
    "opt": (("model.decoder.embed_tokens", "model.decoder.embed_positions", "model.decoder.final_layer_norm"), ()),
    "resnet": (("resnet.embedder",), ("classifier",)),
    "roberta": (("roberta.embeddings",), ("classifier",)),
    "sequential_resnet": (("conv1", "bn1"), ("fc",)),
    "t5": (("shared",), ("encoder.final_layer_norm", "decoder.final_layer_norm")),
    "torch_transformer": ((), ()),
    "vit": (("vit.embeddings",), ("vit.layernorm", "classifier")),
}


def test_the_tables_cover_every_architecture() -> None:
    assert set(LAYERS) == set(AROUND) == set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_layers_of_each_architecture(architecture: str) -> None:
    model = model_of(architecture)
    found = members(model, by="layer", n_layer_groups=1 if architecture == "albert" else 2)
    assert list(found) == LAYERS[architecture]
    for label, prefixes in zip(("embeddings", "head"), AROUND[architecture], strict=True):
        names = found.pop(label, [])
        assert all(name.startswith(prefixes) for name in names), names
        assert all(any(name.startswith(prefix) for name in names) for prefix in prefixes)
    for label, names in found.items():
        # Only the label's own layers, and nothing of a layer elsewhere.
        low, _, high = label.rpartition(".")[2].partition("-")
        numbers = {int(low), int(high or low)}
        stack = "" if label.startswith("layers.") else label.partition(".")[0]
        assert all(stack in name for name in names)
        assert {int(re.findall(r"\.(\d+)\.", name)[0]) for name in names} == numbers


def test_t5_keeps_the_relative_bias_in_its_layer_and_the_shared_embedding_once() -> None:
    found = members(model_of("t5"), by="layer")
    assert found["embeddings"] == ["shared.weight"]
    bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert f"encoder.{bias}" in found["encoder.0"]
    assert f"decoder.{bias}" in found["decoder.0"]


def test_tied_weights_belong_where_they_are_registered_first() -> None:
    model = model_of("bert_masked")
    embedding = model.get_parameter("bert.embeddings.word_embeddings.weight")
    assert model.get_parameter("cls.predictions.decoder.weight") is embedding
    for by in ("layer", "module", "tensor"):
        owners = [g["component"] for g in split(model, by=by) if any(p is embedding for p in g["params"])]
        assert len(owners) == 1
        assert "embeddings" in owners[0]
    repeated = nn.Module()
    repeated.layers = nn.ModuleList([nn.Linear(2, 2)] * 3)  # one layer, three times
    assert labels(repeated, by="layer") == ["layers.0"]
    tied = nn.Module()
    tied.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    tied.layers[2].weight = tied.layers[0].weight
    assert members(tied, by="layer")["layers.2"] == ["layers.2.bias"]


def test_frozen_layers_are_not_counted_and_keep_their_numbers() -> None:
    model = architectures.bert(layers=12)
    model.get_submodule("bert.embeddings").requires_grad_(False)
    for number in (0, 1, 2, 3, 4, 8):
        model.get_submodule(f"bert.encoder.layer.{number}").requires_grad_(False)
    assert labels(model) == ["layers.5", "layers.6", "layers.7", "layers.9", "layers.10", "layers.11", "head"]
    assert labels(model, n_layer_groups=2) == ["layers.5-7", "layers.9-11", "head"]
    with pytest.raises(SplitError, match="6 in layers"):
        split(model, n_layer_groups=7)


def test_with_every_layer_frozen_the_rest_is_split_and_n_groups_refused() -> None:
    model = model_of("bert")
    model.get_submodule("bert.encoder").requires_grad_(False)
    assert labels(model) == ["embeddings", "head"]
    with pytest.raises(SplitError, match=r"every layer .* is frozen"):
        split(model, n_layer_groups=1)


def test_stacks_of_different_lengths_take_as_many_groups_as_they_have_layers() -> None:
    model = model_of("t5")  # 3 and 2 layers
    assert labels(model, n_layer_groups=3)[1:-1] == ["encoder.0", "encoder.1", "encoder.2", "decoder.0", "decoder.1"]
    with pytest.raises(SplitError, match=r"3 in encoder, 2 in decoder.*1\.\.3"):
        split(model, n_layer_groups=4)
    model.get_submodule("encoder").requires_grad_(False)  # the shared embedding with it
    assert labels(model) == ["decoder.0", "decoder.1", "head"]


class Tower(nn.Module):
    def __init__(self, blocks: Callable[[], Iterator[nn.Module]], kind: type[nn.Module] = nn.ModuleList) -> None:
        super().__init__()
        self.blocks = kind(blocks()) if kind is nn.ModuleList else kind(*blocks())


def test_stacks_are_called_by_the_least_that_tells_them_apart() -> None:
    def tower() -> Tower:
        return Tower(lambda: (nn.Linear(2, 2) for _ in range(2)))

    model = nn.ModuleDict(
        {"net": nn.ModuleDict({"vision": nn.ModuleDict({"a": tower(), "b": tower()}), "text": tower()})}
    )
    assert labels(model, n_layer_groups=1) == ["vision.a.0-1", "vision.b.0-1", "text.0-1"]
    numbered = nn.ModuleDict({"features": nn.Sequential(OrderedDict({"0": tower(), "1": nn.Flatten(), "2": tower()}))})
    assert labels(numbered, n_layer_groups=1) == ["features.0.0-1", "features.2.0-1"]


def test_a_sequential_of_composite_blocks_is_a_stack_where_there_is_no_list() -> None:
    def blocks() -> Iterator[nn.Module]:
        return (Residual(2, 2) for _ in range(3))

    assert labels(nn.Sequential(*blocks())) == ["layers.0", "layers.1", "layers.2"]
    assert labels(nn.Sequential(OrderedDict(first=Residual(2, 2), second=Residual(2, 2))), n_layer_groups=1) == [
        "layers.first-second"
    ]
    with_head = nn.Sequential(Tower(blocks, nn.Sequential), nn.Linear(2, 2))
    assert labels(with_head) == ["layers.0", "layers.1", "layers.2", "head"]
    with_list = nn.Sequential(Tower(blocks, nn.Sequential), Tower(blocks))
    assert labels(with_list) == ["embeddings", "layers.0", "layers.1", "layers.2"]


def test_members_without_parameters_are_no_layers() -> None:
    model = Tower(lambda: iter([nn.Linear(2, 2), nn.Identity(), nn.Linear(2, 2)]))
    assert labels(model) == ["layers.0", "layers.2"]
    with pytest.raises(SplitError, match="no numbered layers"):
        split(nn.ModuleDict({"drops": nn.ModuleList([nn.Dropout(), nn.Dropout()]), "fc": nn.Linear(2, 2)}))


def test_a_model_without_layers_is_told_what_would_work() -> None:
    perceptron = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(SplitError, match=r"Sequential has no numbered layers.*by='module'.*callable"):
        split(perceptron)
    assert labels(perceptron, by="module") == ["0", "2"]
    mixed = Tower(lambda: iter([nn.Linear(2, 2), nn.Conv1d(2, 2, 1), Tower(lambda: iter([nn.Linear(2, 2)]))]))
    with pytest.raises(SplitError, match=r"different classes: blocks has Conv1d, Linear, Tower\)"):
        split(mixed)


# --- projections ---


@pytest.mark.parametrize("architecture", SEPARATE)
def test_projections_of_each_architecture(architecture: str) -> None:
    model = model_of(architecture)
    found = members(model, by="projection")
    assert list(found) == ["key", "query", "value", "rest"]
    for label in ("key", "query", "value"):
        owner = re.compile(rf"\.({label}(_proj)?|{label[0]}(_proj|_lin)?)\.(weight|bias)$")
        assert all(owner.search(name) for name in found[label])
        assert not any(owner.search(name) for name in found["rest"])
    # As many of each, one per attention.
    attentions = {"albert": 1, "bart": 2 + 2 * 3, "bert_masked": 2, "t5": 3 + 2 * 2}.get(architecture, 3)
    for label in ("key", "query", "value"):
        assert sum(name.endswith("weight") for name in found[label]) == attentions


def test_cross_attention_is_split_too() -> None:
    found = members(model_of("t5"), by="projection")
    assert "decoder.block.1.layer.1.EncDecAttention.k.weight" in found["key"]
    assert "decoder.block.1.layer.1.EncDecAttention.o.weight" in found["rest"]


def test_projections_of_relative_positions_are_not_those_of_the_attention() -> None:
    found = members(model_of("deberta_v2"), by="projection")
    positions = [name for name in found["rest"] if "pos_key_proj" in name or "pos_query_proj" in name]
    assert len(positions) == 3 * 4


@pytest.mark.parametrize("architecture", FUSED)
def test_a_fused_matrix_is_refused_with_its_name_and_what_would_work(architecture: str) -> None:
    model = model_of(architecture)
    fused = {
        "gpt2": "transformer.h.0.attn.c_attn",
        "deberta": "deberta.encoder.layer.0.attention.self.in_proj",
        "torch_transformer": "layers.0.self_attn.in_proj_weight",
    }[architecture]
    with pytest.raises(SplitError, match=rf"in one matrix \({re.escape(fused)}, .*by='layer' or by='module'"):
        split(model, by="projection")
    assert split(model, by="layer")
    assert split(model, by="module")
    for name, parameter in model.named_parameters():  # where it is frozen it is in no one's way
        parameter.requires_grad_(not re.search(r"c_attn|in_proj", name))
    assert labels(model, by="projection") == ["rest"]


@pytest.mark.parametrize("architecture", WITHOUT_ATTENTION)
def test_a_model_without_attention_is_refused(architecture: str) -> None:
    with pytest.raises(SplitError, match=r"no attention.*by='layer' or by='module'"):
        split(model_of(architecture), by="projection")


def attention(*names: str, **sizes: tuple[int, int]) -> nn.Module:
    return nn.ModuleDict(
        {name: nn.Linear(*sizes.get(name, (2, 2))) for name in (*names, "out") if name} | {"norm": nn.LayerNorm(2)}
    )


@pytest.mark.parametrize(
    "names",
    [
        "query key value",
        "q k v",
        "to_q to_k to_v",
        "wq wk wv",
        "W_Q W_K W_V",
        "q_head k_head v_head",
        "linear_q linear_k linear_v",
        "query_global key_global value_global",
    ],
)
def test_spellings_of_the_three_roles(names: str) -> None:
    query, key, value = names.split()
    found = members(attention(query, key, value), by="projection")
    assert [found[label][0].rpartition(".")[0] for label in ("query", "key", "value")] == [query, key, value]
    assert {name.partition(".")[0] for name in found["rest"]} == {"out", "norm"}


@pytest.mark.parametrize("names", ["key", "value_head", "query value", "q key v", "q_proj k v_proj", "key_norm", ""])
def test_roles_that_do_not_come_as_three_are_no_projections(names: str) -> None:
    with pytest.raises(SplitError, match="no attention"):
        split(attention(*names.split()), by="projection")
    both = nn.ModuleDict({"attention": attention("q", "k", "v"), "other": attention(*names.split())})
    assert all(name.startswith("attention.") for name in members(both, by="projection")["key"])


@pytest.mark.parametrize(
    "name", ["qkv", "qkv_proj", "Wqkv", "to_qkv", "query_key_value", "kv", "kv_proj", "query_key", "c_attn", "W_pack"]
)
def test_names_of_fused_matrices(name: str) -> None:
    with pytest.raises(SplitError, match=rf"in one matrix \(1\.{name}\)"):
        split(nn.Sequential(attention("q", "k", "v"), attention(name)), by="projection")


def test_a_state_space_models_in_proj_and_a_norm_of_queries_and_keys_are_not_fused() -> None:
    model = nn.Sequential(attention("q", "k", "v"), attention("in_proj", in_proj=(2, 8)))
    model[0]["qk_norm"] = nn.LayerNorm(2)
    assert {"0.qk_norm.weight", "1.in_proj.weight"} <= set(members(model, by="projection")["rest"])
    with pytest.raises(SplitError, match=r"1\.in_proj"):
        split(nn.Sequential(attention("q", "k", "v"), attention("in_proj", in_proj=(2, 6))), by="projection")


def test_projections_that_are_parameters_themselves() -> None:
    model = nn.MultiheadAttention(4, 2, kdim=3, vdim=5, bias=False)
    assert members(model, by="projection") == {
        "key": ["k_proj_weight"],
        "query": ["q_proj_weight"],
        "value": ["v_proj_weight"],
        "rest": ["out_proj.weight"],
    }


# --- modules, tensors, mappings, callables ---


def test_modules_own_their_parameters_directly() -> None:
    model = nn.Module()
    model.scale = nn.Parameter(torch.ones(()))
    model.inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.LayerNorm(2))
    model.table = nn.ParameterDict({"a": nn.Parameter(torch.ones(1)), "b": nn.Parameter(torch.ones(1))})
    assert members(model, by="module") == {
        "(root)": ["scale"],
        "inner.0": ["inner.0.weight", "inner.0.bias"],
        "inner.2": ["inner.2.weight", "inner.2.bias"],
        "table": ["table.a", "table.b"],
    }
    assert members(model, by="tensor") == {name: [name] for name, _ in model.named_parameters()}


def test_a_mapping_gives_each_parameter_to_the_first_label_that_matches() -> None:
    model = SequentialResNet()
    found = members(model, by={"norms": ["bn", r"downsample\.1"], "head": r"^fc\.", "rest": ".*"})
    assert list(found) == ["norms", "head", "rest"]
    assert found["head"] == ["fc.weight", "fc.bias"]
    assert "layer1.0.downsample.1.weight" in found["norms"]
    assert all(name.endswith((".weight",)) and "bn" not in name for name in found["rest"])
    # The order is the mapping's, not that of the parameters.
    assert labels(model, by={"head": "fc", "rest": ".*"}) == ["head", "rest"]


@pytest.mark.parametrize(
    ("mapping", "sentence"),
    [
        ({"head": "fc"}, r"No pattern matches conv1\.weight, bn1\.weight, bn1\.bias and \d+ more.*'\.\*'"),
        ({"attention": "attn", "rest": ".*"}, r"'attn' of 'attention' matches no trainable parameter"),
        ({"a": ["fc", "attn"], "rest": ".*"}, r"'attn' of 'a' matches no trainable parameter"),
        ({"rest": ".*", "head": "fc"}, r"Nothing is left for 'head'"),
        ({"head": "(fc", "rest": ".*"}, r"'head' \('\(fc'\) is no regular expression"),
        ({"": "fc", "rest": ".*"}, r"label of the mapping is ''"),
        ({3: "fc", "rest": ".*"}, r"label of the mapping is 3"),
        ({"head": [], "rest": ".*"}, r"'head' needs a regular expression"),
        ({"head": 3, "rest": ".*"}, r"'head' needs a regular expression.*not 3"),
        ({"head": [3], "rest": ".*"}, r"'head' needs a regular expression"),
        ({}, r"No pattern matches"),
    ],
)
def test_a_mapping_that_is_no_partition_is_refused(mapping: Any, sentence: str) -> None:
    with pytest.raises(SplitError, match=sentence):
        split(SequentialResNet(), by=mapping)


def test_a_pattern_that_only_a_frozen_parameter_matches_is_refused() -> None:
    model = SequentialResNet()
    model.fc.requires_grad_(False)
    with pytest.raises(SplitError, match="'fc' of 'head' matches no trainable parameter"):
        split(model, by={"head": "fc", "rest": ".*"})


def test_a_callable_labels_each_trainable_parameter() -> None:
    model = SequentialResNet()
    model.conv1.requires_grad_(False)
    seen: dict[str, nn.Parameter] = {}

    def by(name: str, parameter: nn.Parameter) -> str:
        seen[name] = parameter
        return "matrices" if parameter.ndim > 1 else "vectors"

    found = members(model, by=by)
    assert list(found) == ["vectors", "matrices"]  # bn1 comes first
    assert seen == {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("label", [None, "", 3, ["a"]])
def test_a_callable_that_returns_no_label_is_refused(label: Any) -> None:
    with pytest.raises(SplitError, match=re.escape(f"for conv1.weight is {label!r}")):
        split(SequentialResNet(), by=lambda name, parameter: label)


# --- arguments ---


def test_anything_but_a_module_is_refused_with_the_remedy() -> None:
    model = nn.Linear(2, 2)
    for given_ in (model.parameters(), list(model.named_parameters()), nn.Linear, None, model.state_dict()):
        with pytest.raises(SplitError, match=r"takes a torch\.nn\.Module, not .*armijo\.split\(model\)"):
            split(given_)  # type: ignore[arg-type]


@pytest.mark.parametrize("by", ["layers", "", None, 3, ["layer"], ("a", "b")])
def test_an_unknown_splitting_is_refused_with_those_that_exist(by: Any) -> None:
    with pytest.raises(SplitError, match=r"is unknown\. Choose 'layer', 'projection', 'module' or 'tensor', a mapping"):
        split(nn.Linear(2, 2), by=by)


@pytest.mark.parametrize("by", ["projection", "module", "tensor", {"all": ".*"}, lambda name, parameter: "all"])
def test_n_groups_goes_with_layers_alone(by: Any) -> None:
    for n_layer_groups in (0, 2):
        with pytest.raises(SplitError, match=rf"n_layer_groups={n_layer_groups} counts groups of layers"):
            split(model_of("bert"), by=by, n_layer_groups=n_layer_groups)


@pytest.mark.parametrize("by", sorted(BY))
def test_a_model_with_nothing_to_train_is_refused(by: str) -> None:
    with pytest.raises(SplitError, match="has no trainable parameter: of its 2 parameters none has requires_grad"):
        split(nn.Linear(2, 2).requires_grad_(False), by=BY[by])
    with pytest.raises(SplitError, match="of its 0 parameters"):
        split(nn.Identity(), by=BY[by])


# --- adapters and wrappers ---


class LowRank(nn.Module):
    """A frozen linear map plus a trained product of two thin matrices."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 1, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(1, base.out_features, bias=False)})


def test_low_rank_adapters_split_like_what_they_adapt() -> None:
    model = architectures.bert().requires_grad_(False)
    for path, module in list(model.named_modules()):
        if path.endswith(("attention.self.query", "attention.self.value")):
            model.set_submodule(path, LowRank(module))
    wrapped = nn.ModuleDict({"base_model": nn.ModuleDict({"model": model})})  # as adapter libraries nest it
    assert {label: len(names) for label, names in members(wrapped).items()} == {f"layers.{i}": 4 for i in range(3)}
    assert {label: len(names) for label, names in members(wrapped, by="projection").items()} == {
        "query": 6,
        "value": 6,
    }
    model.get_submodule("classifier").requires_grad_(True)
    assert labels(wrapped) == ["layers.0", "layers.1", "layers.2", "head"]
    assert labels(wrapped, by="projection") == ["query", "value", "rest"]


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model)  # type: ignore[return-value]


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "wrap",
    [
        compiled,
        nn.DataParallel,
        nn.parallel.DistributedDataParallel,
        lambda model: compiled(nn.parallel.DistributedDataParallel(model)),
        lambda model: nn.parallel.DistributedDataParallel(compiled(model)),
    ],
    ids=["compiled", "DataParallel", "DDP", "compiled DDP", "DDP of compiled"],
)
def test_labels_do_not_depend_on_wrappers(wrap: Callable[[nn.Module], nn.Module]) -> None:
    for architecture in ("t5", "bert"):
        model = model_of(architecture)
        wrapped = wrap(model)
        for by in BY.values():
            plain, same = split(model, by=by), split(wrapped, by=by)
            assert [group["component"] for group in same] == [group["component"] for group in plain]
            assert [[*map(id, group["params"])] for group in same] == [[*map(id, group["params"])] for group in plain]


# --- use ---


def test_the_model_is_only_read() -> None:
    model = model_of("t5")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    for by in BY.values():
        split(model, by=by)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert flags == [parameter.requires_grad for parameter in model.parameters()]


def test_the_groups_are_what_the_optimizers_take() -> None:
    model = SequentialResNet()
    inputs, targets = torch.randn(4, 3, 4, 4), torch.tensor([0, 1, 2, 0])
    optimizer = armijo.PLASLS(split(model))
    optimizer.step(lambda: nn.functional.cross_entropy(model(inputs), targets))
    assert [group["component"] for group in optimizer.param_groups] == labels(model)
    assert {record.label for record in optimizer.report.components} == set(labels(model))
    torch.optim.AdamW(split(model))


def test_the_docstrings_example_runs() -> None:
    outcome = doctest.testmod(splitting)
    assert outcome.attempted > 5
    assert outcome.failed == 0


def test_blocks_of_different_classes_are_no_stack_of_layers() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

    class Other(One):
        pass

    assert {group["component"] for group in split(nn.Sequential(One(), One()), by="layer")} == {"layers.0", "layers.1"}
    with pytest.raises(SplitError, match="whose members are of one class"):
        split(nn.Sequential(One(), Other()), by="layer")


def test_what_matches_no_pattern_is_counted() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    with pytest.raises(SplitError, match=r"No pattern matches 1\.weight, 1\.bias, 2\.weight and 3 more\."):
        split(model, by={"head": "0.*"})
