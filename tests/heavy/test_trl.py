"""TRL's trainers take the steps of a plain loop, and what they count is not counted again by trials."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast, Trainer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

import armijo
from armijo.integrations.transformers import ArmijoMixin, attach, line_search
from heavy.loop import QUIET, accepted, plain, same, searcher, watched

pytestmark = pytest.mark.heavy

WORDS = ("the", "film", "book", "was", "good", "bad", "dull", "very", "old")
ROWS = [
    f"the {thing} was {'very ' * (number % 3)}{kind}"
    for number, (thing, kind) in enumerate(itertools.product(("film", "book"), ("good", "bad", "dull", "old")))
]
OPTIONS: dict[str, Any] = {**QUIET, "per_device_train_batch_size": 2, "bf16": False, "num_train_epochs": 3}
CONFIGS = {SFTTrainer: SFTConfig, DPOTrainer: DPOConfig, RewardTrainer: RewardConfig}


class ArmijoSFT(ArmijoMixin, SFTTrainer):
    pass


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    specials = ("<pad>", "<eos>", "<unk>")
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate((*specials, *WORDS))}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def llama(kind: Any = LlamaForCausalLM, seed: int = 0, **more: Any) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        **more,
    )
    return kind(config).float()


def preferences() -> Dataset:
    """Of two ends of a sentence the first is to be preferred."""
    return Dataset.from_list(
        [
            {"prompt": f"the {thing} was", "chosen": f" {'very ' * number}good", "rejected": f" {kind}"}
            for number, thing, kind in itertools.product((0, 1), ("film", "book"), ("dull", "very bad"))
        ]
    )


def made(kind: Any, folder: Path, model: Any, choice: Any = None, **options: Any) -> Any:
    trainer, config = next((t, c) for t, c in CONFIGS.items() if issubclass(kind, t))
    data = Dataset.from_dict({"text": ROWS}) if trainer is SFTTrainer else preferences()
    more = {key: options.pop(key) for key in ("peft_config", "ref_model") if key in options}
    args = config(str(folder), **{**OPTIONS, **options})
    built = kind(model=model, args=args, train_dataset=data, processing_class=tokenizer(), **more)
    # Some have an argument for it, DPOTrainer has none; this serves them all.
    return built if choice is None else attach(built, choice)


def next_token(model: Any) -> Callable[[Any, list[Any]], torch.Tensor]:
    """The negative log-likelihood of the next token, a mean over those of the whole update."""

    def loss_of(batch: dict[str, torch.Tensor], update: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        targets = batch["labels"][:, 1:]
        count = sum((other["labels"][:, 1:] != -100).sum() for other in update)
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), reduction="sum") / count

    return loss_of


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_sft_takes_the_steps_of_a_plain_loop(tmp_path: Path, accumulate: int, checkpointing: bool) -> None:
    model, twin = llama(attention_dropout=0.1), llama(attention_dropout=0.1)
    trainer = made(
        ArmijoSFT, tmp_path, model, gradient_accumulation_steps=accumulate, gradient_checkpointing=checkpointing
    )
    updates = watched(trainer)
    trainer.train()
    assert len(updates.reports) == 12 // accumulate
    same(updates.reports, plain(updates.batches, twin, armijo.AdamSLS(twin.parameters()), next_token(twin)), rtol=1e-5)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    assert accepted(updates.reports) > 0


def test_sft_on_adapters(tmp_path: Path) -> None:
    given = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    base = llama(seed=0)
    before = {name: parameter.detach().clone() for name, parameter in base.named_parameters()}
    trainer = made(ArmijoSFT, tmp_path, base, choice=line_search(armijo.PLASLS, n_layer_groups=2), peft_config=given)
    twin = peft.get_peft_model(llama(seed=0), given)
    twin.load_state_dict(trainer.model.state_dict())
    updates = watched(trainer)
    trainer.train()
    optimizer = armijo.PLASLS(armijo.split(twin, by="layer", n_layer_groups=2))
    assert [group["component"] for group in optimizer.param_groups] == ["layers.0", "layers.1"]
    same(updates.reports, plain(updates.batches, twin, optimizer, next_token(twin)), rtol=1e-4)
    for name, parameter in trainer.model.named_parameters():
        assert parameter.requires_grad == ("lora" in name)
        if "lora" not in name:
            assert torch.equal(parameter, before[name.removeprefix("base_model.model.").replace(".base_layer", "")])


def log_ratio(model: Any, base: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """By how much each completion has become likelier than it was."""
    ratios = []
    for one in (model, base):
        logits = one(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        found = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
        ratios.append((found * batch["completion_mask"][:, 1:]).sum(-1))
    return ratios[0] - ratios[1].detach()


def test_dpo_takes_the_steps_of_a_plain_loop(tmp_path: Path) -> None:
    model, twin, base = llama(), llama(), llama()
    trainer = made(DPOTrainer, tmp_path, model, choice=line_search(), beta=0.1, ref_model=llama())
    updates = watched(trainer)
    trainer.train()

    def loss_of(batch: dict[str, torch.Tensor], update: list[Any]) -> torch.Tensor:
        chosen, rejected = log_ratio(twin, base, batch).chunk(2)
        return -functional.logsigmoid(0.1 * (chosen - rejected)).mean()

    same(updates.reports, plain(updates.batches, twin, armijo.AdamSLS(twin.parameters()), loss_of), rtol=1e-4)
    assert accepted(updates.reports) > 0


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", [SFTTrainer, DPOTrainer, RewardTrainer])
def test_what_is_counted_is_not_counted_again_by_trials(tmp_path: Path, kind: type[Trainer], accumulate: int) -> None:
    """With lr = 0 there are trials and no moves, so that all that is logged must be what is logged without trials."""
    logged = []
    for choice in (line_search(lr=0.0, selection=armijo.Jointly()), None):
        model = llama(LlamaForSequenceClassification, num_labels=1) if kind is RewardTrainer else llama()
        options: dict[str, Any] = {"gradient_accumulation_steps": accumulate, "learning_rate": 0.0}
        if kind is DPOTrainer:
            options["ref_model"] = llama()
        trainer = made(kind, tmp_path, model, choice=choice, **options)
        trainer.train()
        entries = [entry for entry in trainer.state.log_history if "loss" in entry]
        if choice is not None:
            assert sum(entry["forwards"] for entry in entries) > accumulate * len(entries)
            assert searcher(trainer).report.components[0].trials > 0
        added = ("learning_rate", "forwards", "accepted")
        logged.append([{key: value for key, value in entry.items() if key not in added} for entry in entries])
    assert len(logged[0]) == 12 // accumulate
    assert {"num_tokens", "loss"} < logged[0][0].keys()
    assert logged[0] == logged[1]


def test_sft_in_mixed_precision(tmp_path: Path) -> None:
    """bfloat16 under gradient checkpointing is TRL's default; losses are float32, and each step kept its promise."""
    model, twin = llama(), llama()
    choice = line_search(selection=armijo.Jointly())
    trainer = made(ArmijoSFT, tmp_path, model, choice, bf16=True, gradient_checkpointing=True)
    updates = watched(trainer)
    trainer.train()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert accepted(updates.reports, c=0.5) > len(updates.reports) // 2
    with torch.autocast("cpu", torch.bfloat16):
        first = next_token(twin)(updates.batches[0][0], updates.batches[0])
    assert updates.reports[0].loss == pytest.approx(first.item(), rel=1e-2)
    assert updates.reports[-1].loss < 0.8 * updates.reports[0].loss


def test_grpo_is_refused_in_its_first_update_because_the_value_of_its_loss_says_nothing(tmp_path: Path) -> None:
    from trl import GRPOConfig, GRPOTrainer

    tokens = tokenizer()
    tokens.padding_side = "left"
    policy = llama()
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    options = {**OPTIONS, "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 6}
    trainer = GRPOTrainer(
        policy,
        reward_funcs=lambda completions, **_: [float(len(set(text.split()))) for text in completions],
        args=GRPOConfig(str(tmp_path), **options),
        train_dataset=Dataset.from_list([{"prompt": "the film was"}] * 8),
        processing_class=tokens,
    )
    with pytest.raises(armijo.ClosureContractError, match=r"value does not depend on the parameters.*GRPO"):
        attach(trainer).train()
    assert all(map(torch.equal, before, policy.parameters()))
