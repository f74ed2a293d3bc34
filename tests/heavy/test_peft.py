"""LoRA on the real MiniLM: the trainer takes the steps of a plain loop, and the adapter is saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, TrainingArguments

import armijo
from armijo.integrations.transformers import ArmijoTrainer, line_search
from armijo_lab.models import embedded_folder
from armijo_lab.tasks import embedded
from heavy.loop import QUIET, equal, plain, same, watched

pytestmark = pytest.mark.heavy

LABELS = 5


def minilm() -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(embedded_folder(), num_labels=LABELS, dtype=torch.float32)


def adapted() -> Any:
    torch.manual_seed(1)
    given = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], lora_dropout=0.1)
    return peft.get_peft_model(minilm(), given)


def rows(count: int) -> tuple[list[dict[str, Any]], Any]:
    split = embedded.load().train.first(count)
    tokenizer = AutoTokenizer.from_pretrained(embedded_folder())
    encoded = tokenizer(list(split.texts), truncation=True, max_length=32)
    made = [
        {"input_ids": ids, "attention_mask": mask, "labels": label}
        for ids, mask, label in zip(encoded["input_ids"], encoded["attention_mask"], split.targets, strict=True)
    ]
    return made, DataCollatorWithPadding(tokenizer)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer that has trained, what it did, and where."""
    folder = tmp_path_factory.mktemp("run")
    train, collate = rows(32)
    args = TrainingArguments(
        str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=8,
        **{**QUIET, "save_strategy": "steps"},
        save_steps=5,
    )
    trainer = ArmijoTrainer(
        adapted(),
        args,
        train_dataset=train,
        data_collator=collate,
        optimizer_cls_and_kwargs=line_search(armijo.PLASLS, n_layer_groups=2),
    )
    updates = watched(trainer)
    trainer.train()
    return trainer, updates, folder


def test_it_takes_the_steps_of_a_plain_loop(trained: Any) -> None:
    trainer, updates, _ = trained
    twin = adapted()
    optimizer = armijo.PLASLS(armijo.split(twin, by="layer", n_layer_groups=2))
    assert [group["component"] for group in optimizer.param_groups] == ["layers.0-2", "layers.3-5", "head"]
    same(updates.reports, plain(updates.batches, twin, optimizer, lambda batch, update: twin(**batch).loss))
    assert equal(trainer.model, twin)


def test_adapter_and_head_move_and_nothing_else(trained: Any) -> None:
    trainer, _, _ = trained
    before = dict(adapted().named_parameters())
    moved = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "classifier" in name for name in moved)


def test_the_adapter_alone_is_saved_and_makes_the_model_again(trained: Any, tmp_path: Path) -> None:
    trainer, _, _ = trained
    trainer.save_model(str(tmp_path))
    assert sum(path.stat().st_size for path in tmp_path.glob("*.safetensors")) < 1e6
    again = peft.PeftModel.from_pretrained(minilm(), str(tmp_path))
    inputs = {key: value for key, value in trainer.data_collator(rows(8)[0]).items() if key != "labels"}
    models = [trainer.model.eval(), again.eval()]
    with torch.no_grad():
        wanted, found = (model(**inputs).logits for model in models)
        assert torch.equal(found, wanted)
        merged = again.merge_and_unload()(**inputs).logits
    torch.testing.assert_close(merged, wanted, rtol=1e-4, atol=1e-5)


def test_a_resumed_run_is_the_run_that_was_not_interrupted(trained: Any) -> None:
    trainer, updates, folder = trained
    again = ArmijoTrainer(
        adapted(),
        trainer.args,
        train_dataset=trainer.train_dataset,
        data_collator=trainer.data_collator,
        optimizer_cls_and_kwargs=line_search(armijo.PLASLS, n_layer_groups=2),
    )
    rest = watched(again)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-5"))
    assert rest.reports == updates.reports[5:]
    assert equal(again.model, trainer.model)
