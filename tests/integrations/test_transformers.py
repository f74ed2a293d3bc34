"""The Trainer takes the steps of a plain loop, and what it adds is said and kept."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import armijo
from integrations.plain import BATCH, averaged, cross_entropy, plain, same
from integrations.rows import batched, bert, parameters, rows

pytest.importorskip("transformers")

from transformers import Trainer, TrainerCallback, TrainingArguments

from armijo.integrations.transformers import ArmijoMixin, ArmijoTrainer, attach, line_search


class InOrder(Trainer):
    """Rows in their order, so that a plain loop can have the same batches."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class InOrderArmijo(ArmijoMixin, InOrder):
    pass


class Reseeding(TrainerCallback):
    """The same masks in both loops: each update begins from a seed of its own."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.manual_seed(state.global_step)


class Watching(TrainerCallback):
    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.reports = trainer, []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = self.trainer.optimizer
        while not isinstance(optimizer, armijo.LineSearch):
            optimizer = optimizer.optimizer
        self.reports.append(optimizer.report)


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    given = {"num_train_epochs": 2, "per_device_train_batch_size": BATCH, "logging_steps": 1, "report_to": "none"}
    given |= {"use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "dataloader_num_workers": 0}
    return TrainingArguments(str(folder), **{**given, **options})


def made(
    folder: Path, model: nn.Module, kind: type[Trainer] = InOrderArmijo, choice: Any = None, **options: Any
) -> tuple[Any, Watching]:
    inner = {key: options.pop(key) for key in ("compute_loss_func", "eval_dataset") if key in options}
    trainer = kind(model, arguments(folder, **options), train_dataset=rows(), optimizer_cls_and_kwargs=choice, **inner)
    trainer.add_callback(Reseeding())
    watch = Watching(trainer)
    trainer.add_callback(watch)
    return trainer, watch


CHOICES = {
    "adamsls": (line_search(), lambda model: armijo.AdamSLS(model.parameters())),
    "sgdsls": (line_search(armijo.SGDSLS), lambda model: armijo.SGDSLS(model.parameters())),
    "plasls": (
        line_search(armijo.PLASLS, n_layer_groups=2),
        lambda model: armijo.PLASLS(armijo.split(model, by="layer", n_layer_groups=2)),
    ),
    "projection": (
        line_search(armijo.PLASLS, by="projection", c=0.3),
        lambda model: armijo.PLASLS(armijo.split(model, by="projection"), c=0.3),
    ),
}


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("choice", CHOICES)
def test_it_takes_the_steps_of_a_plain_loop(tmp_path: Path, choice: str, dropout: float) -> None:
    model, twin = bert(dropout=dropout), bert(dropout=dropout)
    given, build = CHOICES[choice]
    trainer, watch = made(tmp_path, model, choice=given)
    trainer.train()
    same(watch.reports, plain(twin, build(twin)))
    assert all(map(torch.equal, parameters(model), parameters(twin)))


def smoothed(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    from transformers.trainer_pt_utils import LabelSmoother

    inputs = {key: value for key, value in batch.items() if key != "labels"}
    return LabelSmoother(0.1)(model(**inputs), batch["labels"])


def weighted(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs.logits, labels, weight=torch.tensor([1.0, 2.0, 3.0]))


def by_weight(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    return weighted(model(**inputs), batch["labels"])


def half(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**batch)
    return outputs.loss.float()


def test_label_smoothing(tmp_path: Path) -> None:
    model, twin = bert(dropout=0.2), bert(dropout=0.2)
    trainer, watch = made(tmp_path, model, label_smoothing_factor=0.1)
    trainer.train()
    same(watch.reports, plain(twin, armijo.AdamSLS(twin.parameters()), smoothed))
    assert all(map(torch.equal, parameters(model), parameters(twin)))


def test_a_loss_function_of_ones_own(tmp_path: Path) -> None:
    model, twin = bert(dropout=0.2), bert(dropout=0.2)
    trainer, watch = made(tmp_path, model, compute_loss_func=weighted)
    trainer.train()
    same(watch.reports, plain(twin, armijo.AdamSLS(twin.parameters()), by_weight))
    assert all(map(torch.equal, parameters(model), parameters(twin)))


def test_a_trainer_that_overrides_compute_loss(tmp_path: Path) -> None:
    class Own(InOrder):
        def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            loss = weighted(outputs, labels)
            return (loss, outputs) if return_outputs else loss

    model, twin = bert(dropout=0.2), bert(dropout=0.2)
    trainer, watch = made(tmp_path, model, Own)
    assert attach(trainer) is trainer
    trainer.train()
    same(watch.reports, plain(twin, armijo.AdamSLS(twin.parameters()), by_weight))
    assert all(map(torch.equal, parameters(model), parameters(twin)))


class Weighted(ArmijoTrainer):
    """As transformers' documentation shows it: the mixin stands behind this class."""

    _get_train_sampler = InOrder._get_train_sampler

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = weighted(outputs, labels)
        self.log({"seen": float(loss.detach())})
        return (loss, outputs) if return_outputs else loss


class OwnStep(Weighted):
    """A training step of one's own, which wants the outputs too."""

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        model.train()
        loss, outputs = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        assert outputs.logits.requires_grad
        self.accelerator.backward(loss)
        return loss.detach()


class OwnLoss(ArmijoTrainer):
    """A training step that computes its loss past compute_loss."""

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        loss = model(**self._prepare_inputs(inputs)).loss
        self.accelerator.backward(loss)
        return loss.detach()


@pytest.mark.parametrize("kind", [Weighted, OwnStep])
def test_a_class_derived_from_the_trainer_overrides_what_it_likes_and_logs_once_an_update(
    tmp_path: Path, kind: type[Trainer]
) -> None:
    model, twin = bert(dropout=0.2), bert(dropout=0.2)
    trainer, watch = made(tmp_path, model, kind)
    trainer.train()
    same(watch.reports, plain(twin, armijo.AdamSLS(twin.parameters()), by_weight))
    assert all(map(torch.equal, parameters(model), parameters(twin)))
    seen = [entry["seen"] for entry in trainer.state.log_history if "seen" in entry]
    assert seen == [report.loss for report in watch.reports]
    assert "compute_loss" not in vars(trainer)


def test_an_update_whose_loss_was_not_recorded_says_why(tmp_path: Path) -> None:
    trainer, _ = made(tmp_path, bert(), OwnLoss)
    with pytest.raises(armijo.MissingClosureError, match=r"OwnLoss .*training_step of your own must get its loss from"):
        trainer.train()


@pytest.mark.parametrize(
    "name", ["PrinterCallback", "ProgressCallback", "EarlyStoppingCallback", "TensorBoardCallback"]
)
def test_the_trainers_own_callbacks_change_no_step(tmp_path: Path, name: str) -> None:
    import transformers
    from transformers.integrations import TensorBoardCallback

    kind: Any = TensorBoardCallback if name == "TensorBoardCallback" else getattr(transformers, name)
    model, twin = bert(dropout=0.2), bert(dropout=0.2)
    options: dict[str, Any] = {}
    if name == "EarlyStoppingCallback":
        options = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
        options |= {"eval_dataset": rows(), "metric_for_best_model": "loss"}
    trainer, watch = made(tmp_path, model, **options)
    trainer.add_callback(kind())
    trainer.train()
    same(watch.reports, plain(twin, armijo.AdamSLS(twin.parameters())))


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_gradients(tmp_path: Path, accumulate: int) -> None:
    """Six batches an epoch: with four an update the second of an epoch has two."""
    model, twin = bert(dropout=0.2), bert(dropout=0.2)
    trainer, watch = made(tmp_path, model, gradient_accumulation_steps=accumulate)
    trainer.train()
    same(watch.reports, plain(twin, armijo.AdamSLS(twin.parameters()), accumulate=accumulate), rtol=1e-5)
    torch.testing.assert_close(parameters(model), parameters(twin), rtol=1e-4, atol=1e-6)


def test_mixed_precision(tmp_path: Path) -> None:
    model, twin = bert(dropout=0.2), bert(dropout=0.2)
    trainer, watch = made(tmp_path, model, bf16=True)
    trainer.train()
    same(watch.reports, plain(twin, armijo.AdamSLS(twin.parameters()), half))
    assert all(map(torch.equal, parameters(model), parameters(twin)))


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    model, twin = bert(dropout=0.2), bert(dropout=0.2)
    trainer, watch = made(tmp_path, model, gradient_checkpointing=True)
    trainer.train()
    same(watch.reports, plain(twin, armijo.AdamSLS(twin.parameters())))
    torch.testing.assert_close(parameters(model), parameters(twin))


def test_weight_decay_spares_biases_and_norms_and_keeps_the_components(tmp_path: Path) -> None:
    model, twin = bert(), bert()
    trainer, watch = made(tmp_path, model, choice=line_search(armijo.PLASLS, n_layer_groups=2), weight_decay=0.1)
    trainer.train()
    groups = []
    for group in armijo.split(twin, by="layer", n_layer_groups=2):
        names = {id(parameter): name for name, parameter in twin.named_parameters()}
        plain_ones = [p for p in group["params"] if "bias" in names[id(p)] or "LayerNorm" in names[id(p)]]
        rest = [p for p in group["params"] if all(p is not one for one in plain_ones)]
        groups += [{**group, "params": rest, "weight_decay": 0.1}, {**group, "params": plain_ones, "weight_decay": 0.0}]
    same(watch.reports, plain(twin, armijo.PLASLS([group for group in groups if group["params"]])))
    assert all(map(torch.equal, parameters(model), parameters(twin)))


def test_lora(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    def adapted() -> Any:
        torch.manual_seed(1)
        given = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], lora_dropout=0.1)
        return peft.get_peft_model(bert(), given)

    model, twin = adapted(), adapted()
    trainer, watch = made(tmp_path, model, choice=line_search(armijo.PLASLS, n_layer_groups=2))
    trainer.train()
    optimizer = armijo.PLASLS(armijo.split(twin, by="layer", n_layer_groups=2))
    same(watch.reports, plain(twin, optimizer))
    assert all(map(torch.equal, parameters(model), parameters(twin)))


def test_a_resumed_run_is_the_run_that_was_not_interrupted(tmp_path: Path) -> None:
    choice = line_search(armijo.PLASLS, n_layer_groups=2)
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5}
    model = bert(dropout=0.2)
    trainer, through = made(tmp_path / "a", model, choice=choice, **options)
    trainer.train()
    again = bert(dropout=0.2, seed=1)
    trainer, resumed = made(tmp_path / "a", again, choice=choice, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-5"))
    assert resumed.reports == through.reports[5:]
    assert all(map(torch.equal, parameters(model), parameters(again)))


class Iterates(TrainerCallback):
    """Keeps the weights after each update, and those that are evaluated."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.after: list[list[torch.Tensor]] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.after.append([p.detach().clone() for p in self.model.parameters()])


def held_out_loss(model: nn.Module, weights: list[torch.Tensor]) -> float:
    twin = bert(dropout=0.2)
    with torch.no_grad():
        for p, value in zip(twin.parameters(), weights, strict=True):
            p.copy_(value)
        batch = torch.utils.data.default_collate(list(rows(16, seed=1)))
        return twin.eval()(**batch).loss.item()


def test_an_average_is_evaluated_saved_and_left_and_changes_no_step(tmp_path: Path) -> None:
    model, twin = bert(dropout=0.2), bert(dropout=0.2)
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5, "eval_strategy": "steps", "eval_steps": 1}
    trainer, watch = made(tmp_path, model, eval_dataset=rows(16, seed=1), **options)
    trainer.averaging = armijo.polynomial_average()
    kept = Iterates(model)
    trainer.add_callback(kept)
    trainer.train()
    same(watch.reports, plain(twin, armijo.AdamSLS(twin.parameters())))
    assert all(map(torch.equal, kept.after[-1], parameters(twin)))
    assert all(map(torch.equal, averaged(kept.after), parameters(model)))
    saved = type(model).from_pretrained(tmp_path / "checkpoint-5")
    assert all(map(torch.equal, averaged(kept.after[:5]), parameters(saved)))
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    expected = [held_out_loss(model, averaged(kept.after[: k + 1])) for k in range(12)]
    assert losses == pytest.approx(expected, rel=1e-5)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected[-1], rel=1e-5)


@pytest.mark.parametrize("goes_on_averaging", [True, False])
def test_a_resumed_run_goes_on_from_the_weights_and_not_from_their_average(
    tmp_path: Path, goes_on_averaging: bool
) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5}
    model, again = bert(dropout=0.2), bert(dropout=0.2, seed=1)
    trainer, through = made(tmp_path, model, **options)
    trainer.averaging = armijo.polynomial_average()
    kept = Iterates(model)
    trainer.add_callback(kept)
    trainer.train()
    trainer, resumed = made(tmp_path, again, **options)
    trainer.averaging = armijo.polynomial_average() if goes_on_averaging else None
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert resumed.reports == through.reports[5:]
    expected = parameters(model) if goes_on_averaging else kept.after[-1]
    assert all(map(torch.equal, expected, parameters(again)))


def test_the_best_model_is_the_best_average(tmp_path: Path) -> None:
    model = bert(dropout=0.2)
    _, kept, best = trained_to_the_best(tmp_path, model, InOrderArmijo, armijo.polynomial_average())
    assert all(map(torch.equal, averaged(kept.after[:best]), parameters(model)))


class OneArgument(InOrder):
    """Loads as sentence-transformers does: other arguments, and the best model by the same method."""

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        super()._load_from_checkpoint(checkpoint_path)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self._load_from_checkpoint(self.state.best_model_checkpoint)


class OneArgumentArmijo(ArmijoMixin, OneArgument):
    pass


BEST: dict[str, Any] = {
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "greater_is_better": True,  # an early one, so that the last one is another
    "save_strategy": "steps",
    "save_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 1,
}


def trained_to_the_best(
    folder: Path, model: nn.Module, kind: type[Trainer], averaging: Any
) -> tuple[Watching, Iterates, int]:
    """What was watched, the weights after each update, and the update whose model was loaded in the end."""
    trainer, watch = made(folder, model, kind, eval_dataset=rows(16, seed=1), **BEST)
    trainer.averaging = averaging
    kept = Iterates(model)
    trainer.add_callback(kept)
    trainer.train()
    best = trainer.state.best_global_step
    assert best is not None
    assert best < 12
    return watch, kept, best


@pytest.mark.parametrize("averaging", [None, armijo.polynomial_average()])
def test_a_trainer_that_loads_in_its_own_way(tmp_path: Path, averaging: Any) -> None:
    model, again = bert(dropout=0.2), bert(dropout=0.2, seed=1)
    through, kept, best = trained_to_the_best(tmp_path, model, OneArgumentArmijo, averaging)
    expected = kept.after[best - 1] if averaging is None else averaged(kept.after[:best])
    assert all(map(torch.equal, expected, parameters(model)))
    trainer, resumed = made(tmp_path, again, OneArgumentArmijo, save_strategy="no")
    trainer.averaging = averaging
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert resumed.reports == through.reports[5:]
    expected = kept.after[-1] if averaging is None else averaged(kept.after)
    assert all(map(torch.equal, expected, parameters(again)))


def test_where_the_best_model_is_missing_the_average_is_left(tmp_path: Path) -> None:
    class Losing(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            shutil.rmtree(tmp_path / f"checkpoint-{state.global_step}")

    model = bert(dropout=0.2)
    trainer, _ = made(tmp_path, model, eval_dataset=rows(16, seed=1), **BEST)
    trainer.averaging = armijo.polynomial_average()
    kept = Iterates(model)
    trainer.add_callback(kept)
    trainer.add_callback(Losing())
    trainer.train()
    assert all(map(torch.equal, averaged(kept.after), parameters(model)))


def test_several_sets_are_evaluated_and_a_callback_saves_the_average(tmp_path: Path) -> None:
    class Saving(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.save_model(str(tmp_path / f"saved-{state.global_step}"))

    model = bert(dropout=0.2)
    sets = {"a": rows(16, seed=1), "b": rows(16, seed=2)}
    trainer, _ = made(tmp_path, model, eval_dataset=sets, eval_strategy="steps", eval_steps=4)
    trainer.averaging = armijo.polynomial_average()
    kept = Iterates(model)
    trainer.add_callback(kept)
    trainer.add_callback(Saving())
    trainer.train()
    losses = [entry["eval_a_loss"] for entry in trainer.state.log_history if "eval_a_loss" in entry]
    expected = [held_out_loss(model, averaged(kept.after[:k])) for k in (4, 8, 12)]
    assert losses == pytest.approx(expected, rel=1e-5)
    saved = type(model).from_pretrained(tmp_path / "saved-4")
    assert all(map(torch.equal, averaged(kept.after[:4]), parameters(saved)))


def test_the_weights_of_an_earlier_run_do_not_stay_in_a_checkpoint(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5}
    for averaging, more in ((armijo.polynomial_average(), {}), (None, {}), (armijo.polynomial_average(), ONLY_MODEL)):
        trainer, _ = made(tmp_path, bert(dropout=0.2), **options, **more)
        trainer.averaging = averaging
        trainer.train()
        there = (tmp_path / "checkpoint-5" / "weights_in_training.pt").exists()
        assert there == (averaging is not None and not more)


ONLY_MODEL: dict[str, Any] = {"save_only_model": True}


def test_torchs_own_averages_leave_integers_and_infinities_alone(tmp_path: Path) -> None:
    from torch.optim.swa_utils import get_ema_multi_avg_fn

    model: Any = bert(dropout=0.2)
    model.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    trainer, _ = made(tmp_path, model)
    trainer.averaging = get_ema_multi_avg_fn(0.9)
    trainer.train()
    assert before.keys() >= {"mask", "bert.embeddings.position_ids"}
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_a_step_that_was_not_taken_is_no_part_of_the_average(tmp_path: Path) -> None:
    model = bert(dropout=0.2)

    def broken_once(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        loss = nn.functional.cross_entropy(outputs.logits, labels)
        return loss * torch.nan if trainer.state.global_step == 3 else loss

    trainer, _ = made(tmp_path, model, compute_loss_func=broken_once)
    trainer.averaging = armijo.polynomial_average()
    kept = Iterates(model)
    trainer.add_callback(kept)
    trainer.train()
    assert all(map(torch.equal, kept.after[2], kept.after[3]))
    assert all(map(torch.equal, averaged([*kept.after[:3], *kept.after[4:]]), parameters(model)))


def test_lora_averages_what_is_trained(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    given = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], lora_dropout=0.1)
    model: Any = peft.get_peft_model(bert(), given)
    trainer, watch = made(tmp_path, model, save_strategy="steps", save_steps=5)
    trainer.averaging = armijo.polynomial_average()
    trainer.train()
    state = torch.load(tmp_path / "checkpoint-5" / "weights_in_training.pt", weights_only=True)
    trained = {name.replace(".", "/") for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in state["weights"] if "lora" in name or "classifier" in name} == trained
    through = [p.detach().clone() for p in model.parameters()]
    torch.manual_seed(2)
    again: Any = peft.get_peft_model(bert(), given)
    trainer, resumed = made(tmp_path, again, save_strategy="steps", save_steps=5)
    trainer.averaging = armijo.polynomial_average()
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert resumed.reports == watch.reports[5:]
    assert all(map(torch.equal, through, parameters(again)))


def test_the_logs_show_what_was_found(tmp_path: Path) -> None:
    trainer, watch = made(tmp_path, bert(), choice=line_search(armijo.PLASLS, n_layer_groups=2))
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == len(watch.reports) == 12
    for entry, report in zip(logged, watch.reports, strict=True):
        sizes = {f"step_size/{component.label}": component.step_size for component in report.components}
        assert {key: value for key, value in entry.items() if key.startswith("step_size")} == sizes
        assert min(sizes.values()) <= entry["learning_rate"] <= max(sizes.values())
        assert entry["forwards"] == report.forwards
        assert entry["loss"] == pytest.approx(report.loss, rel=1e-3)
    assert 0 < logged[-1]["accepted"] <= 1


def test_evaluation_is_no_part_of_an_update(tmp_path: Path) -> None:
    model, twin = bert(dropout=0.2), bert(dropout=0.2)
    trainer, watch = made(tmp_path, model, eval_strategy="steps", eval_steps=1, eval_dataset=rows(16, seed=1))
    trainer.train()
    assert sum("eval_loss" in entry for entry in trainer.state.log_history) == 12
    same(watch.reports, plain(twin, armijo.AdamSLS(twin.parameters())))


def test_defaults_made_for_a_learning_rate_are_replaced_and_other_values_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = arguments(tmp_path, num_train_epochs=1)
    trainer = ArmijoTrainer(bert(), given, train_dataset=rows())
    with caplog.at_level(logging.INFO, "armijo"):
        trainer.train()
    assert "lr_scheduler_type=linear, which is the default, becomes constant" in caplog.text
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {1.0}
    assert given.max_grad_norm == 1.0, "the caller's arguments are his"

    caplog.clear()
    trainer = ArmijoTrainer(
        bert(), arguments(tmp_path, lr_scheduler_type="cosine", max_grad_norm=0.5, max_steps=4), train_dataset=rows()
    )
    trainer.train()
    assert "max_grad_norm is 0.5: gradients are clipped before the search" in caplog.text
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)


def test_clipping_shortens_the_slope(tmp_path: Path) -> None:
    slopes = []
    for clipped in (0.01, 0.0):
        trainer, watch = made(tmp_path, bert(), choice=line_search(armijo.SGDSLS), max_grad_norm=clipped, max_steps=1)
        trainer.train()
        slopes.append(watch.reports[0].components[0].slope)
    assert slopes[0] == pytest.approx(0.01**2, rel=1e-3)
    assert slopes[1] > 100 * slopes[0]


class Stream(torch.utils.data.IterableDataset):
    """Five batches: of two micro-batches an update, the last is left to the next epoch."""

    def __iter__(self) -> Any:
        return iter(rows(5 * BATCH))


def test_a_micro_batch_that_is_left_over_belongs_to_the_next_update(tmp_path: Path) -> None:
    model = bert()
    given = arguments(tmp_path, gradient_accumulation_steps=2, max_steps=6)
    trainer = ArmijoTrainer(model, given, train_dataset=Stream(), optimizer_cls_and_kwargs=line_search(armijo.SGDSLS))
    found = []

    class Compare(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert trainer._window is not None
            objective = trainer._window.objective(1.0)
            grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            with torch.enable_grad():
                total = sum(record.weight * record.closure() for record in objective.recorded_forwards)
                again = torch.autograd.grad(total, [p for n, p in model.named_parameters() if n in grads])
            found.append((len(objective.recorded_forwards), [*grads.values()], [*again]))

    trainer.add_callback(Compare())
    trainer.train()
    assert {records for records, _, _ in found} == {2, 3}
    for _, grads, again in found:
        torch.testing.assert_close(grads, again, rtol=1e-4, atol=1e-6)


def test_an_interrupted_trainer_leaves_the_optimizer_alone(tmp_path: Path) -> None:
    model = bert()
    optimizer = armijo.AdamSLS(model.parameters())

    class Stop(TrainerCallback):
        def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    given = arguments(tmp_path, gradient_accumulation_steps=2)
    trainer = ArmijoTrainer(model, given, train_dataset=rows(), optimizers=(optimizer, None))
    trainer.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    model.zero_grad()
    batch = batched(rows(), BATCH)[0]
    optimizer.step(lambda: cross_entropy(model.train(), batch))
    assert optimizer.report.step == 1
    assert optimizer.report.forwards == 1 + optimizer.report.components[0].trials


def test_warm_up_stays_warm_up(tmp_path: Path) -> None:
    trainer, _ = made(tmp_path, bert(), warmup_steps=4)
    seen = []

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, optimizer: Any, **kwargs: Any) -> None:
            seen.append(optimizer.param_groups[0]["lr"])

    trainer.add_callback(Look())
    trainer.train()
    assert seen[:6] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


class Shifted(nn.Module):
    """Divides its loss by the number of items, as it is told, and is negative all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = bert()

    def forward(self, num_items_in_batch: Any = None, **batch: Any) -> dict[str, torch.Tensor]:
        labels = batch.pop("labels")
        logits = self.inner(**batch).logits
        return {"loss": (torch.nn.functional.cross_entropy(logits, labels, reduction="sum") - 500) / num_items_in_batch}


def test_a_loss_that_is_divided_is_not_divided_again(tmp_path: Path) -> None:
    trainer, watch = made(tmp_path, Shifted(), gradient_accumulation_steps=2, max_steps=1, remove_unused_columns=False)
    trainer.model_accepts_loss_kwargs = True
    trainer.train()
    assert trainer.model_accepts_loss_kwargs
    assert watch.reports[0].loss == pytest.approx((2 * BATCH * 1.1 - 2 * 500) / (2 * BATCH), abs=1.0)


def test_attach_comes_before_an_optimizer(tmp_path: Path) -> None:
    model = bert()
    foreign = torch.optim.AdamW(model.parameters())
    with pytest.raises(armijo.ConfigurationError, match="has an optimizer already, AdamW"):
        attach(Trainer(model, arguments(tmp_path), train_dataset=rows(), optimizers=(foreign, None)))
    ours = armijo.AdamSLS(model.parameters())
    trainer = Trainer(model, arguments(tmp_path), train_dataset=rows(), optimizers=(ours, None))
    with pytest.raises(armijo.ConfigurationError, match="has an optimizer already, AdamSLS"):
        attach(trainer, line_search(armijo.PLASLS))
    assert isinstance(attach(trainer), ArmijoMixin)


def test_an_optimizer_may_be_given(tmp_path: Path) -> None:
    model = bert()
    optimizer = armijo.SGDSLS(model.parameters(), c=0.5)
    trainer = ArmijoTrainer(model, arguments(tmp_path, max_steps=3), train_dataset=rows(), optimizers=(optimizer, None))
    trainer.train()
    assert optimizer.param_groups[0]["steps"] == 3


def test_training_twice_goes_on(tmp_path: Path) -> None:
    trainer, watch = made(tmp_path, bert(), num_train_epochs=1)
    trainer.train()
    trainer.train()
    assert [report.step for report in watch.reports] == list(range(1, 13))


def test_other_optimizers_are_refused(tmp_path: Path) -> None:
    model = bert()
    trainer = ArmijoTrainer(
        model,
        arguments(tmp_path),
        train_dataset=rows(),
        optimizers=(torch.optim.AdamW(model.parameters()), None),
    )
    before = parameters(model)
    with pytest.raises(armijo.ConfigurationError, match="AdamW, which searches for no step size"):
        trainer.train()
    assert all(map(torch.equal, before, parameters(model)))


def test_attach_says_where_the_trainer_is() -> None:
    class Holder:
        def __init__(self, inner: Any) -> None:
            self.st_trainer = inner

    with pytest.raises(armijo.ConfigurationError, match=r"not a Holder. It holds one: attach\(trainer.st_trainer\)"):
        attach(Holder(object.__new__(Trainer)))  # pyright: ignore
    with pytest.raises(armijo.ConfigurationError, match=r"attach\(\) takes a transformers.Trainer, not a int"):
        attach(3)  # pyright: ignore


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("deepspeed", "DeepSpeed steps inside"),
        ("context", "context and sequence"),
        ("devices", "torchrun"),
        ("fsdp1", "FSDP1 hides"),
        ("averaging", "FSDP2 shards"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_happens(tmp_path: Path, name: str, sentence: str) -> None:
    model = bert()
    trainer, _ = made(tmp_path, model)
    if name == "deepspeed":
        trainer.is_deepspeed_enabled = True
    elif name == "context":
        trainer.accelerator.state.parallelism_config = type("Config", (), {"cp_enabled": True})()
    elif name == "fsdp1":
        trainer.accelerator.state.fsdp_plugin = type("Plugin", (), {"fsdp_version": 1})()
    elif name == "averaging":
        trainer.is_fsdp_enabled, trainer.averaging = True, armijo.polynomial_average()
    else:
        trainer.args._n_gpu = 2
    before = parameters(model)
    try:
        with pytest.raises(armijo.ConfigurationError, match=sentence):
            trainer.train()
    finally:
        if name == "context":
            del trainer.accelerator.state.parallelism_config
        if name == "fsdp1":
            del trainer.accelerator.state.fsdp_plugin
    assert all(map(torch.equal, before, parameters(model)))


def test_without_the_mixin_the_error_says_what_to_do(tmp_path: Path) -> None:
    trainer = Trainer(
        bert(), arguments(tmp_path), train_dataset=rows(), optimizer_cls_and_kwargs=line_search(armijo.AdamSLS)
    )
    with pytest.raises(armijo.MissingClosureError, match="ArmijoTrainer"):
        trainer.train()
