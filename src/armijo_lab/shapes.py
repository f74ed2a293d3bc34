"""Models that were never trained, by the name of their shape: for timing, and for tasks without pretrained weights.

    random:bert-large       24 layers of width 1024
    random:vit-tiny         2 layers of width 128, over the patches of an image

The sizes are those of Turc et al., arXiv 1908.08962, and of BERT.
"""

from __future__ import annotations

from typing import Any

from armijo_lab.errors import BadInputError
from armijo_lab.tasks import TaskData

__all__ = ["FAMILIES", "PREFIX", "SIZES", "configuration"]

PREFIX = "random:"
SIZES: dict[str, tuple[int, int]] = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "base": (12, 768),
    "large": (24, 1024),
}
"""Layers and width; heads are 64 wide, and the layer between is four times as wide."""
FAMILIES = ("bert", "roberta", "distilbert", "vit", "resnet", "gpt")
"""The first three read texts, `vit` and `resnet` digits, `gpt` characters."""

_POSITIONS = 512


def configuration(name: str | None, task: TaskData, tokenizer: Any) -> tuple[Any, Any]:
    """The configuration of a shape for a task, and the auto class that builds it.

    Args:
        name: `random:FAMILY-SIZE`.
        task: Decides the family and the number of outputs.
        tokenizer: Decides the vocabulary of a model of texts.

    Raises:
        BadInputError: There is no such shape, or it does not fit the task.
    """
    family, _, size = (name or "").removeprefix(PREFIX).partition("-")
    fitting = {"digits": ("vit", "resnet"), "characters": ("gpt",)}.get(task.name, FAMILIES[:3])
    if not (name or "").startswith(PREFIX) or size not in SIZES or family not in fitting:
        raise BadInputError(
            f"There is no model {name!r} for the task {task.name}; write random:FAMILY-SIZE with a family of "
            f"{', '.join(fitting)} and a size of {', '.join(SIZES)}."
        )
    import transformers as t

    layers, width = SIZES[size]
    body: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
    }
    labels: dict[str, Any] = {"num_labels": task.num_labels}
    if task.labels:
        labels |= {
            "id2label": dict(enumerate(task.labels)),
            "label2id": {label: index for index, label in enumerate(task.labels)},
        }
    if family == "vit":
        shape = t.ViTConfig(image_size=8, patch_size=2, num_channels=1, **body, **labels)
        return shape, t.AutoModelForImageClassification
    if family == "resnet":
        widths = [width // 2, width]
        shape = t.ResNetConfig(
            num_channels=1, embedding_size=width // 4, hidden_sizes=widths, depths=[layers, layers], layer_type="basic",
            **labels,
        )  # fmt: skip
        return shape, t.AutoModelForImageClassification
    if family == "gpt":
        shape = t.GPT2Config(
            vocab_size=len(task.labels), n_positions=_POSITIONS, n_embd=width, n_layer=layers, n_head=width // 64
        )
        return shape, t.AutoModelForCausalLM
    words: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **labels}
    if family == "distilbert":
        shape = t.DistilBertConfig(
            dim=width, n_layers=layers, n_heads=width // 64, hidden_dim=4 * width, max_position_embeddings=_POSITIONS,
            **words,
        )  # fmt: skip
    elif family == "roberta":
        # Its positions begin behind the padding token's number.
        positions = _POSITIONS + tokenizer.pad_token_id + 1
        shape = t.RobertaConfig(max_position_embeddings=positions, type_vocab_size=2, **body, **words)
    else:
        shape = t.BertConfig(max_position_embeddings=_POSITIONS, **body, **words)
    return shape, t.AutoModelForSequenceClassification
