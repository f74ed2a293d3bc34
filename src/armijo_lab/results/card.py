"""The model card of a run: what the model is, what it was trained on, and how well it does."""

import html
import re
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from armijo_lab.names import visible
from armijo_lab.results import run_folder

__all__ = ["model_card"]

# Of the embedded weights: the package's name, and the model on the hub that it holds.
_EMBEDDED = "sentence-transformers/all-MiniLM-L6-v2"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_ABSOLUTE = re.compile(r"""(?<![\w:/.~])(?:~|[A-Za-z]:)?[/\\][^\s"'`,;]+""")


def model_card(summary: dict[str, Any]) -> str:
    """The model card of a run, for the `README.md` of its folder.

    Args:
        summary: What `summary.json` holds.

    Returns:
        Markdown with the YAML front matter that the Hugging Face hub reads. Absolute paths in what the user typed are
        cut to their last part, so that the card can be published.
    """
    sections = [
        _front_matter(summary),
        f"# {_plain(_name(summary))}\n",
        _introduction(summary),
        _results(summary),
        _use(summary) if run_folder.divergence(summary) is None else "",
        _training(summary),
        _limits(summary),
        _provenance(summary),
    ]
    return "\n".join(section for section in sections if section)


def _front_matter(summary: dict[str, Any]) -> str:
    import yaml

    task, best = summary["task"], summary["result"]["best"]
    facts: dict[str, Any] = {"library_name": "transformers"}
    if not summary["config"]["paper_protocol"]:
        # Not for an encoder with its head beside it: the hub's widget would answer with a head drawn at random.
        facts["pipeline_tag"] = "text-classification"
    base = _base_model(summary)
    if base is not None:
        facts["base_model"] = base
    facts |= {"tags": ["armijo", "line-search", "text-classification"], "metrics": list(task["metrics"])}
    metrics = [
        {"type": metric, "name": f"{metric}, best epoch", "value": best[metric]}
        for metric in task["metrics"]
        if best is not None and best[metric] is not None
    ]
    if metrics:  # the hub takes no result without one
        result = {
            "task": {"type": "text-classification", "name": "Text classification"},
            "dataset": {"type": task["name"], "name": task["name"], "split": "evaluation"},
            "metrics": metrics,
        }
        facts["model-index"] = [{"name": _name(summary), "results": [result]}]
    return f"---\n{visible(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=1000))}---\n"


def _introduction(summary: dict[str, Any]) -> str:
    task = summary["task"]
    what = "gives one of the labels" if task["labels"] else "gives a number"
    labels = f" {', '.join(map(_code, task['labels']))}" if task["labels"] else ""
    sentence = run_folder.divergence(summary)
    if sentence is None and summary["status"] != "completed":
        sentence = "The run was interrupted before its end."
    status = "" if sentence is None else f"**{sentence}** "
    return (
        f"{status}{_plain(_portable(summary['model']['name']))}, fine-tuned on {_plain(_portable(task['name']))}; for "
        f"a text it {what}{labels}.\n\n{_plain(_portable(task['description']))}\n"
    )


def _results(summary: dict[str, Any]) -> str:
    task, result = summary["task"], summary["result"]
    if result["best"] is None:
        return "## Results\n\nThe run ended before its first evaluation.\n"
    names = [*task["metrics"], "loss"]
    ends = [(f"{end} (epoch {result[end]['epoch']})", result[end]) for end in ("best", "last")]
    text = f"## Results\n\nOn {task['eval_rows']} held-out rows:\n\n"
    text += _table(["epoch", *names], [[title, *(_number(values[name]) for name in names)] for title, values in ends])
    if result["majority"] is not None:
        text += f"\nAlways answering with the most frequent class would be right on {result['majority']:.4f} of them.\n"
    if result["per_class"]:
        columns = ["precision", "recall", "f1", "support"]
        rows = [
            [_plain(label), *(_number(values[column]) for column in columns)]
            for label, values in result["per_class"].items()
        ]
        text += "\nAt the best epoch, class by class:\n\n" + _table(["class", *columns], rows)
    return text


def _use(summary: dict[str, Any]) -> str:
    texts = '"…", "…"' if summary["task"]["pairs"] else '"…"'
    call = f"inputs = tokenizer({texts}, truncation=True, max_length={summary['config']['max_length']}, "
    call += 'return_tensors="pt")\n'
    pair = ' --text-pair "…"' if summary["task"]["pairs"] else ""
    command = f'```sh\narmijo predict . --text "…"{pair}\n```\n'
    if summary["config"]["paper_protocol"]:
        return (
            "## How to use it\n\n`best` holds the encoder, as `AutoModel.from_pretrained` loads it, and beside it "
            "`head.safetensors` with the `weight` and `bias` of one linear layer on the first token's last hidden "
            "state; `head.json` names the labels. In this folder,\n\n"
            f"{command}\nputs both together, and so do these lines:\n\n"
            "```python\nimport torch\nfrom safetensors.torch import load_file\n"
            "from transformers import AutoModel, AutoTokenizer\n\n"
            'tokenizer = AutoTokenizer.from_pretrained("best")\nencoder = AutoModel.from_pretrained("best").eval()\n'
            'head = load_file("best/head.safetensors")\n'
            f"{call}"
            "with torch.no_grad():\n    first = encoder(**inputs).last_hidden_state[:, 0]\n"
            '    print(first @ head["weight"].T + head["bias"])\n```\n'
        )
    answer = (
        "probabilities = logits.softmax(-1)\n"
        "print({model.config.id2label[i]: round(float(p), 3) for i, p in enumerate(probabilities)})"
        if summary["task"]["labels"]
        else "print(float(logits))"
    )
    return (
        f"## How to use it\n\nIn this folder, on the command line\n\n{command}\nor in Python:\n\n"
        "```python\nimport torch\nfrom transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("best")\n'
        'model = AutoModelForSequenceClassification.from_pretrained("best").eval()\n'
        f"{call}with torch.no_grad():\n    logits = model(**inputs).logits[0]\n{answer}\n```\n"
    )


def _training(summary: dict[str, Any]) -> str:
    config, optimizer, task = summary["config"], summary["optimizer"], summary["task"]
    arguments = ", ".join(f"{key} = {_number(value)}" for key, value in optimizer["arguments"].items())
    named = f"`{optimizer['name']}`" + (f" ({arguments})" if arguments else "")
    if "lr" in optimizer["arguments"]:
        how = f"{named}: its learning rate was chosen by hand."
    else:
        how = (
            f"{named}. **No learning rate was set**: at each step a line search found the step size, with "
            f"{summary['forwards'] / max(1, summary['steps']):.2f} forward passes a step on average."
        )
    text = (
        f"## Training\n\nOptimizer: {how}\n\n{_counted(task['train_rows'], 'row')}, "
        f"{_counted(config['epochs'], 'epoch')}, batches of "
        f"{_batch(config)}, texts cut to {config['max_length']} tokens, {config['precision']}, "
        f"{_counted(summary['steps'], 'step')}, {summary['seconds']['training']:.0f} s. Mean loss over the last epoch: "
        f"{_number(summary['train_loss'])}.\n"
    )
    if config["paper_protocol"]:
        text += (
            "\nThe protocol is that of arXiv 2403.18506: no dropout, rows always in the same order, one linear layer "
            "on the first token.\n"
        )
    if config.get("lora") is not None:
        targets = config["lora_targets"] or "every linear layer"
        alpha = 2 * config["lora"] if config["lora_alpha"] is None else config["lora_alpha"]
        text += (
            f"\nOnly LoRA adapters of rank {config['lora']} (alpha {_number(alpha)}) beside {targets} of the encoder "
            f"and the head were trained, {summary['model']['trainable']:,} parameters in all. The adapters are merged "
            "into the weights in `best` and `last`.\n"
        )
    if optimizer["components"]:
        rows = [
            [f"`{component['label']}`", f"{component['parameters']:,}", _number(component["step_size"])]
            for component in optimizer["components"]
        ]
        text += (
            "\nThe step sizes at the end, one for each component of the network "
            f"({len(optimizer['merges'])} merges, {optimizer['failed_searches']} searches that found none):\n\n"
            + _table(["component", "parameters", "step size"], rows)
        )
    return text + "\n`figures/training.png` shows the run, `metrics.jsonl` holds every step of it.\n"


def _batch(config: dict[str, Any]) -> str:
    size, accumulate = config["batch_size"], config.get("accumulate") or 1
    return str(size) if accumulate == 1 else f"{size * accumulate} (gradients of {accumulate} times {size} added up)"


def _limits(summary: dict[str, Any]) -> str:
    rows = summary["task"]["eval_rows"]
    return (
        "## Limits\n\n"
        f"- The best epoch was chosen on the same {rows} rows that it is judged by, so its values are on the high "
        "side; other texts than these were never looked at.\n"
        "- One run with one seed: another seed gives another model.\n"
        "- It knows no answer but those it was trained on, and gives one for any text, however foreign. Whatever "
        "prejudice the pretrained model or the rows hold, it may hold too.\n"
    )


def _provenance(summary: dict[str, Any]) -> str:
    hardware, versions = summary["hardware"], summary["versions"]
    facts: dict[str, Any] = {
        "command": _code(_portable(summary["command"])) if summary["command"] else None,
        "seed": ", ".join(map(str, summary["seeds"])),
        "commit": summary["commit"],
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "hardware": f"{hardware.get('gpu', hardware['cpu'])}, "
        f"{_counted(hardware['cores'], 'core')}, {_counted(hardware['threads'], 'thread')}",
        "parameters": f"{summary['model']['parameters']:,}",
    }
    facts |= {f"data: {key}": _plain(_portable(str(value))) for key, value in summary["task"]["provenance"].items()}
    rows = [[key, str(value)] for key, value in facts.items() if value is not None]
    return "## Provenance\n\n" + _table(["", ""], rows)


# --------------------------------------------------------------------------------------------------- shared


def _name(summary: dict[str, Any]) -> str:
    """As in `bert-base-uncased-sst2-adamsls`."""
    base = PurePath(summary["model"]["name"].partition("==")[0]).name
    return f"{base}-{_portable(summary['task']['name'])}-{summary['optimizer']['name']}"


def _base_model(summary: dict[str, Any]) -> str | None:
    """The model's name on the hub, if it has one; a folder of this machine is nobody else's business."""
    name = summary["config"]["model"]
    if name is None:
        return _EMBEDDED
    return name if _HUB_NAME.fullmatch(name) and not Path(name).exists() else None


def _portable(text: str) -> str:
    """Without this machine's folders: of an absolute path, its last part alone."""

    def last(found: re.Match[str]) -> str:
        path = PureWindowsPath if "\\" in found[0] else PurePosixPath
        return path(found[0]).name or found[0]

    return _ABSOLUTE.sub(last, text)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(text: str) -> str:
    """A text as Markdown that shows it, in one line: HTML, emphasis, links and code in it are none."""
    return re.sub(r"([\\`*_\[\]~])", r"\\\1", html.escape(visible(" ".join(text.split())), quote=False))


def _code(text: str) -> str:
    """A text as code, in one line, whatever backticks it has."""
    text = visible(" ".join(text.split()))
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{padding}{text}{padding}{fence}"


def _table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    # A line break or a bar inside a cell would end it.
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)
