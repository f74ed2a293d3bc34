"""Lightning takes the steps of a plain loop, automatic and manual; nothing is logged or counted twice."""

from __future__ import annotations

import copy
import functools
import logging
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import armijo
from integrations.plain import BATCH, averaged, cross_entropy, same
from integrations.rows import LABELS, batched, bert, parameters, rows
from processes import run_to_end, torchrun

pytest.importorskip("lightning")

from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.spike import SpikeDetection
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins import MixedPrecision
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassRecall

from armijo.integrations.lightning import ArmijoMixin, StepSizeLogger, _ReleaseOnError

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning.*"),
]
Build = Callable[[nn.Module], Any]


def quiet() -> None:
    """Without the tips and the list of devices."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def adamsls(net: nn.Module) -> armijo.LineSearch:
    return armijo.AdamSLS(net.parameters())


def plasls(net: nn.Module) -> armijo.LineSearch:
    return armijo.PLASLS(armijo.split(net, by="layer", n_layer_groups=2))


class Unmixed(LightningModule):
    """What a person would write."""

    def __init__(self, net: nn.Module, build: Build = adamsls) -> None:
        super().__init__()
        self.net, self.build = net, build

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.net(**batch).loss

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return self.build(self.net)


class Automatic(ArmijoMixin, Unmixed):
    """And nothing more for the line search."""


class Manual(Automatic):
    """The recipe of the documentation."""

    def __init__(self, net: nn.Module, build: Build = adamsls) -> None:
        super().__init__(net, build)
        self.automatic_optimization = False

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = self.record_loss(lambda: self.loss(batch))
        self.manual_backward(loss)
        optimizer.step()


class Watching(Callback):
    """The reports of each optimizer, in order; and each update begins from a seed of its own, as in `plain`."""

    def __init__(self) -> None:
        self.of: dict[int, list[armijo.StepReport]] = defaultdict(list)

    @property
    def reports(self) -> list[armijo.StepReport]:
        return self.of[0]

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        for index, optimizer in enumerate(trainer.optimizers):
            if isinstance(optimizer, armijo.LineSearch):
                optimizer.register_observer(self.of[index].append)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            torch.manual_seed(trainer.fit_loop.epoch_loop.total_batch_idx)


def loader() -> DataLoader[Any]:
    return DataLoader(rows(), batch_size=BATCH)  # pyright: ignore[reportArgumentType]


def fitted(
    module: LightningModule, *others: Callback, data: Any = None, ckpt_path: Any = None, **options: Any
) -> tuple[Trainer, Watching]:
    quiet()
    watch = Watching()
    given = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, "log_every_n_steps": 1}
    given |= {"enable_progress_bar": False, "enable_model_summary": False, **options}
    trainer = Trainer(accelerator="cpu", callbacks=[watch, *others], **given)
    trainer.fit(module, loader() if data is None else data, ckpt_path=ckpt_path)
    return trainer, watch


def plain(
    net: nn.Module,
    optimizer: armijo.LineSearch,
    loss_of: Callable[[nn.Module, Any], torch.Tensor] = cross_entropy,
    *,
    accumulate: int = 1,
    epochs: int = 2,
    batches: list[Any] | None = None,
    scheduler: Any = None,
    modules: list[nn.Module] | None = None,
) -> list[armijo.StepReport]:
    """The loop that a person would write, with Lightning's habit of dividing by `accumulate` at the end of an epoch."""
    net.train()
    reports, index = [], 0
    batches = batched(rows(), BATCH) if batches is None else batches
    for _ in range(epochs):
        for start in range(0, len(batches), accumulate):
            torch.manual_seed(index)
            optimizer.zero_grad()
            objective = armijo.Objective(modules)
            for batch in batches[start : start + accumulate]:
                objective.baseline(functools.partial(_part, loss_of, net, batch, accumulate)).backward()
                index += 1
            optimizer.step(objective)
            reports.append(optimizer.report)
            if scheduler is not None:
                scheduler.step()
    return reports


def _part(loss_of: Callable[[nn.Module, Any], torch.Tensor], net: nn.Module, batch: Any, parts: int) -> torch.Tensor:
    return loss_of(net, batch) / parts


def equal(found: nn.Module, wanted: nn.Module) -> bool:
    states = found.state_dict(), wanted.state_dict()
    return list(states[0]) == list(states[1]) and all(torch.equal(states[0][key], states[1][key]) for key in states[0])


# ------------------------------------------------------------------------------------------------ the same trajectory


@pytest.mark.parametrize(
    ("build", "dropout", "accumulate"),
    [(adamsls, 0.0, 1), (adamsls, 0.2, 2), (adamsls, 0.0, 4), (plasls, 0.2, 1), (plasls, 0.0, 2)],
)
def test_it_takes_the_steps_of_a_plain_loop(build: Build, dropout: float, accumulate: int) -> None:
    """An epoch has six batches: with four an update the second one has two."""
    net, twin = bert(dropout=dropout), bert(dropout=dropout)
    _, watch = fitted(Automatic(net, build), accumulate_grad_batches=accumulate)
    same(watch.reports, plain(twin, build(twin), accumulate=accumulate))
    assert equal(net, twin)


class Norms(nn.Module):
    """Buffers that change in each forward, in a module that is called and in one that is not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(0.2))
        self.head = nn.utils.parametrizations.spectral_norm(nn.Linear(12, LABELS))
        self.register_buffer("scale", torch.ones(()))

    def loss(self, batch: Any) -> torch.Tensor:
        inputs, labels = batch
        hidden = self.inner(inputs)
        self.scale.mul_(0.9).add_(0.1 * hidden.detach().abs().mean())
        return nn.functional.cross_entropy(self.head(hidden / self.scale), labels)


class Normed(Automatic):
    def loss(self, batch: Any) -> torch.Tensor:
        return self.net.loss(batch)  # pyright: ignore[reportCallIssue]


def points() -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(BATCH, 6, generator=generator), torch.randint(LABELS, (BATCH,), generator=generator))
        for _ in range(6)
    ]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_buffers_change_once_a_batch(accumulate: int) -> None:
    net, twin = Norms(), Norms()
    data: Any = DataLoader(points(), batch_size=None)  # pyright: ignore[reportArgumentType]
    _, watch = fitted(Normed(net), data=data, accumulate_grad_batches=accumulate)
    given: dict[str, Any] = {"accumulate": accumulate, "batches": points(), "modules": [twin]}
    same(watch.reports, plain(twin, adamsls(twin), lambda net, batch: net.loss(batch), **given))
    assert equal(net, twin)
    assert int(net.inner[1].num_batches_tracked) == 12


def half(net: nn.Module, batch: Any) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        return net(**batch).loss


def test_mixed_precision() -> None:
    net, twin = bert(dropout=0.2), bert(dropout=0.2)
    _, watch = fitted(Automatic(net), precision="bf16-mixed", max_epochs=1)
    reports = plain(twin, adamsls(twin), half, epochs=1)
    same(watch.reports, reports)
    # In another precision than the training forward's, trials would have losses that differ by little.
    found, wanted = ([r.components[0].trial_loss for r in each] for each in (watch.reports, reports))
    assert found == wanted
    assert equal(net, twin)


@pytest.mark.parametrize("kind", [Automatic, Manual])
def test_a_grad_scaler_and_the_updates_that_it_skips(kind: type[Automatic]) -> None:
    """Scales this high overflow at first; a skipped update leaves nothing behind for the next."""
    net, twin = bert(dropout=0.2), bert(dropout=0.2)

    def scaler() -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-12)

    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler())
    _, watch = fitted(kind(net), plugins=plugin, max_epochs=1)

    twin.train()
    own, optimizer, reports = scaler(), adamsls(twin), []
    optimizer.register_observer(reports.append)
    for index, batch in enumerate(batched(rows(), BATCH)):
        torch.manual_seed(index)
        optimizer.zero_grad()

        def forward(batch: Any = batch) -> torch.Tensor:
            with torch.autocast("cpu", torch.float16, cache_enabled=False):
                return twin(**batch).loss

        objective = armijo.Objective()
        # Lightning's autocast is around training_step, of which the backward pass is a part in manual optimisation.
        with torch.autocast("cpu", torch.float16, cache_enabled=False, enabled=kind is Manual):
            own.scale(objective.baseline(forward)).backward()
        own.step(optimizer, objective)
        own.update()
    assert 2 < len(reports) < 6
    same(watch.reports, reports)
    assert equal(net, twin)


def test_a_scheduler_drives_the_multiplier() -> None:
    def built(net: nn.Module) -> tuple[armijo.LineSearch, Any]:
        optimizer = adamsls(net)
        return optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=5)

    def configured(net: nn.Module) -> Any:
        optimizer, scheduler = built(net)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    net, twin = bert(), bert()
    trainer, watch = fitted(Automatic(net, configured), max_epochs=1)
    optimizer, scheduler = built(twin)
    same(watch.reports, plain(twin, optimizer, scheduler=scheduler, epochs=1))
    assert equal(net, twin)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1)


def test_a_resumed_run_is_the_run_that_was_not_interrupted(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", every_n_epochs=1, save_top_k=-1)
    module = Automatic(bert(dropout=0.2), plasls)
    _, through = fitted(module, saver, max_epochs=3, enable_checkpointing=True)
    again = Automatic(bert(dropout=0.2, seed=1), plasls)
    _, resumed = fitted(again, max_epochs=3, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert len(through.reports) == 18
    assert resumed.reports == through.reports[6:]
    assert equal(again.net, module.net)


class Iterates(Callback):
    """Keeps the weights after each update; stands before the callback that averages."""

    def __init__(self) -> None:
        self.after: list[list[torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self.after.append([p.detach().clone() for p in module.parameters()])


def test_lightnings_own_callback_averages_and_a_resumed_run_goes_on_from_the_weights(tmp_path: Path) -> None:
    def averaging() -> Callback:
        return callbacks.WeightAveraging(multi_avg_fn=armijo.polynomial_average())

    saver = ModelCheckpoint(tmp_path, filename="{epoch}", every_n_epochs=1, save_top_k=-1)
    module, kept = Automatic(bert(dropout=0.2)), Iterates()
    _, through = fitted(module, kept, averaging(), saver, max_epochs=3, enable_checkpointing=True)
    twin = Automatic(bert(dropout=0.2))
    _, without = fitted(twin, max_epochs=3)
    assert through.reports == without.reports
    assert all(map(torch.equal, averaged(kept.after), parameters(module)))
    again = Automatic(bert(dropout=0.2, seed=1))
    _, resumed = fitted(again, averaging(), max_epochs=3, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert resumed.reports == through.reports[6:]
    assert equal(again.net, module.net)


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    from integrations import lightning_ranks

    command = torchrun(Path(lightning_ranks.__file__), str(tmp_path))
    done = run_to_end(command, 300, {**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-4000:]
    for rank in range(2):
        assert "averaged by manual_backward() alone" in (tmp_path / f"refused-{rank}").read_text()
    for case, (_, options) in lightning_ranks.CASES.items():
        first, second = (torch.load(tmp_path / f"{case}-{rank}.pt", weights_only=False) for rank in range(2))
        assert first["reports"] == second["reports"], case
        assert all(map(torch.equal, first["parameters"], second["parameters"])), case
        assert first["sharded"] == (case == "fsdp2")

        twin = bert()
        reports = plain(twin, plasls(twin), accumulate=options.get("accumulate_grad_batches", 1), epochs=1)
        trials = [[[c.trials for c in report.components] for report in taken] for taken in (first["reports"], reports)]
        assert trials[0] == trials[1], case
        losses = [[report.loss for report in taken] for taken in (first["reports"], reports)]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=0)
        for (name, wanted), found in zip(twin.named_parameters(), first["parameters"], strict=True):
            # The gradient of a key's bias is zero but for rounding, of which Adam's direction makes full steps.
            if not name.endswith("key.bias"):
                torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


# --------------------------------------------------------------------------------- what training_step does besides


class Kept(Logger):
    """What Lightning hands to a logger, in memory."""

    name, version = "kept", 0

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.entries.append(dict(metrics))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def of(self, name: str) -> list[float]:
        return [entry[name] for entry in self.entries if name in entry]


class Busy(Automatic):
    """All that people do in a training_step."""

    def __init__(self, net: nn.Module, build: Build = adamsls) -> None:
        super().__init__(net, build)
        self.accuracy = MulticlassAccuracy(LABELS, average="micro")
        self.mean = MeanMetric()
        self.several = MetricCollection(
            {"f1": MulticlassF1Score(LABELS), "micro": MulticlassAccuracy(LABELS, average="micro")}
        )
        # These two share one state.
        self.alike = MetricCollection(
            {"f1 of each": MulticlassF1Score(LABELS, average=None), "recall": MulticlassRecall(LABELS)}
        )
        self.calls = self.updates = 0
        self.seen: list[int] = []
        self.by_kind: dict[str, list[float]] = {"loss": []}
        self.smoothed = torch.zeros(())

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
        type(self).all_calls = getattr(type(self), "all_calls", 0) + 1  # pyright: ignore
        labels = batch.pop("labels")
        outputs = self.net(**batch)
        loss = nn.functional.cross_entropy(outputs.logits, labels)
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("rows", float(len(labels)), on_step=False, on_epoch=True, reduce_fx="sum")
        self.accuracy(outputs.logits, labels)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.mean.update(loss.detach())
        self.several.update(outputs.logits, labels)
        self.log_dict(self.several, on_step=False, on_epoch=True)
        self.alike(outputs.logits, labels)
        self.calls += 1
        self.seen.append(batch_idx)
        self.by_kind["loss"].append(loss.item())
        self.smoothed = 0.9 * self.smoothed + 0.1 * loss.detach()
        return {"loss": loss, "logits": outputs.logits.detach()}


class AtTheEnd(Callback):
    """What the metrics hold at the end of each epoch, and what `training_step` returned."""

    def __init__(self) -> None:
        self.confusion, self.updates, self.outputs = [], [], []

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.outputs.append(outputs)

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        self.updates.append(module.mean._update_count)
        self.confusion.append(int(module.accuracy.tp) + int(module.accuracy.fn))


def test_nothing_is_logged_or_counted_twice() -> None:
    Busy.all_calls = 0  # pyright: ignore
    # From far above, so that a step has several trials.
    search = armijo.Backtracking(guess=armijo.Growth(10.0))
    kept, end = Kept(), AtTheEnd()
    module = Busy(bert(dropout=0.2), lambda net: armijo.LineSearch(net.parameters(), search=search))
    _, watch = fitted(module, end, logger=kept)
    losses = [report.loss for report in watch.reports]
    assert Busy.all_calls == watch.reports[-1].total_forwards > 24  # pyright: ignore
    assert module.calls == len(module.seen) == 12
    assert module.seen == list(range(6)) * 2
    assert module.by_kind["loss"] == pytest.approx(losses)
    assert float(module.mean.compute()) == pytest.approx(sum(losses) / 12)
    smoothed = 0.0
    for loss in losses:
        smoothed = 0.9 * smoothed + 0.1 * loss
    assert float(module.smoothed) == pytest.approx(smoothed)

    assert kept.of("loss_step") == pytest.approx(losses)
    assert kept.of("loss_epoch") == pytest.approx([sum(losses[:6]) / 6, sum(losses[6:]) / 6])
    assert kept.of("rows") == [48.0, 48.0]
    assert kept.of("micro") == kept.of("accuracy")
    assert end.updates == [6, 12]
    assert end.confusion == [48, 48]
    for metric in module.alike.values():
        assert int((metric.tp + metric.fn).sum()) == 96
    labels = [batch["labels"] for batch in batched(rows(), BATCH) * 2]
    of_outputs = [nn.functional.cross_entropy(o["logits"], each) for o, each in zip(end.outputs, labels, strict=True)]
    assert [float(loss) for loss in of_outputs] == pytest.approx(losses), "they are those of the training forward"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_for_which_training_step_returns_none_has_no_say(accumulate: int) -> None:
    class Choosy(Automatic):
        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
            return None if batch_idx in (1, 2, 3) else self.loss(batch)

    net, twin = bert(), bert()
    _, watch = fitted(Choosy(net), max_epochs=1, accumulate_grad_batches=accumulate)
    batches = batched(rows(), BATCH)
    if accumulate == 1:
        reports = plain(twin, adamsls(twin), epochs=1, batches=[batches[0], *batches[4:]])
    else:
        optimizer = adamsls(twin)
        reports = plain(twin, optimizer, lambda *given: cross_entropy(*given) / 2, epochs=1, batches=batches[:1])
        reports += plain(twin, optimizer, epochs=1, batches=batches[4:], accumulate=2)
    same(watch.reports, reports)
    assert equal(net, twin)


def test_an_update_that_was_left_unfinished_is_forgotten() -> None:
    class Impatient(Automatic):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 3 else None

    net, twin = bert(), bert()
    _, watch = fitted(Impatient(net), accumulate_grad_batches=2)
    same(watch.reports, plain(twin, adamsls(twin), batches=batched(rows(), BATCH)[:2], accumulate=2))
    assert equal(net, twin)


def test_a_module_may_step_as_lightnings_documentation_says() -> None:
    class Own(Automatic):
        def optimizer_step(
            self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
        ) -> None:
            optimizer.step(closure=optimizer_closure)

    net, twin = bert(dropout=0.2), bert(dropout=0.2)
    _, watch = fitted(Own(net), max_epochs=1)
    same(watch.reports, plain(twin, adamsls(twin), epochs=1))
    assert equal(net, twin)


def test_clipping_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    net, twin = bert(), bert()
    _, watch = fitted(Automatic(net), max_epochs=1, gradient_clip_val=0.01)
    assert "gradient_clip_val is 0.01: gradients are clipped before the search" in caplog.text
    reports = plain(twin, adamsls(twin), epochs=1)
    # Adam's direction does not change with the gradient's length; the slope shrinks with it.
    assert watch.reports[0].components[0].slope < 0.1 * reports[0].components[0].slope


def test_under_another_optimizer_the_mixin_does_nothing() -> None:
    def adamw(net: nn.Module) -> Any:
        return torch.optim.AdamW(net.parameters(), lr=1e-2)

    nets = [bert(dropout=0.2) for _ in range(3)]
    for kind, net in zip((Automatic, Manual, Unmixed), nets, strict=True):
        fitted(kind(net, adamw), StepSizeLogger(), max_epochs=1)
    assert equal(nets[0], nets[2])
    assert equal(nets[1], nets[2])


def test_a_trainer_is_left_as_it_was_and_copies_hold_no_batches() -> None:
    class Copying(Callback):
        copied: Any = None

        def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
            if self.copied is None:
                self.copied, self.window = copy.deepcopy(module), module._window

    module, copying = Automatic(bert()), Copying()
    trainer, _ = fitted(module, copying, max_epochs=1, accumulate_grad_batches=2)
    assert copying.window is not None
    assert copying.copied._window is None
    assert "training_step" not in vars(trainer.strategy)
    assert not trainer.optimizers[0]._optimizer_step_pre_hooks
    assert module._window is None


def test_an_optimizer_steps_by_itself_after_an_interruption() -> None:
    optimizers = []

    class Stopping(Automatic):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            optimizers.append(optimizer)
            raise RuntimeError("enough")

    module = Stopping(bert())
    with pytest.raises(RuntimeError, match="enough"):
        fitted(module)
    batch = next(iter(loader()))
    optimizers[0].step(lambda: module.loss(batch))
    assert optimizers[0].report.step == 1
    assert optimizers[0].report.forwards == 1 + optimizers[0].report.components[0].trials


def test_a_trainer_that_was_interrupted_serves_another_module() -> None:
    class Failing(Automatic):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert batch_idx < 2, "no more"
            return super().training_step(batch, batch_idx)

    quiet()
    failing, other = Failing(bert()), Unmixed(bert(), lambda net: torch.optim.SGD(net.parameters(), lr=0.1))
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **options)
    with pytest.raises(AssertionError, match="no more"):
        trainer.fit(failing, loader())
    assert failing._window is None
    assert not any(isinstance(callback, _ReleaseOnError) for callback in trainer.callbacks)  # pyright: ignore
    trainer.fit(other, loader())
    assert not equal(other.net, bert())
    fitted(failing, max_epochs=1, limit_train_batches=2)
    assert failing._window is None


# ------------------------------------------------------------------------------------------------ manual optimisation


def test_the_manual_recipe_takes_the_same_steps() -> None:
    net, twin = bert(dropout=0.2), bert(dropout=0.2)
    trainer, watch = fitted(Manual(net, plasls), max_epochs=1)
    same(watch.reports, plain(twin, plasls(twin), epochs=1))
    assert equal(net, twin)
    assert trainer.global_step == 6


def test_manual_accumulation_and_what_a_closure_does_besides() -> None:
    class Accumulating(Manual):
        def __init__(self, net: nn.Module) -> None:
            super().__init__(net)
            self.mean, self.seen = MeanMetric(), []

        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
            def loss() -> torch.Tensor:
                value = self.loss(batch)
                self.mean.update(value.detach())
                self.seen.append(batch_idx)
                self.log("inner", value, on_epoch=True, on_step=False)
                return value

            optimizer: Any = self.optimizers()
            if batch_idx % 2 == 0:
                optimizer.zero_grad()
            # Of the loss of a batch that is skipped nothing is left.
            if batch_idx == 0:
                self.manual_backward(self.record_loss(loss))
                optimizer.zero_grad()
            self.manual_backward(self.record_loss(loss) / 2)
            if batch_idx % 2 == 1:
                optimizer.step()

    net, twin, kept = bert(), bert(), Kept()
    module = Accumulating(net)
    _, watch = fitted(module, max_epochs=1, logger=kept)
    same(watch.reports, plain(twin, adamsls(twin), accumulate=2, epochs=1))
    assert equal(net, twin)
    assert module.seen == [0, 0, 1, 2, 3, 4, 5]
    assert module.mean._update_count == 7
    assert kept.of("inner") == pytest.approx([float(module.mean.compute())])


@pytest.mark.parametrize("mixin", [True, False])
def test_a_closure_reaches_the_optimizer(mixin: bool) -> None:
    seen = []

    def training_step(self: Any, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        def closure() -> torch.Tensor:
            self.calls += 1
            self.log("inside", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")
            return self.loss(batch)

        self.log("loss", self.optimizers().step(closure))
        seen.append(self.calls)

    kind = Automatic if mixin else Unmixed
    net, twin, kept = bert(dropout=0.2), bert(dropout=0.2), Kept()
    module = type("Short", (kind,), {"training_step": training_step})(net, plasls)
    module.automatic_optimization, module.calls = False, 0
    trainer, watch = fitted(module, logger=kept, max_epochs=1)
    same(watch.reports, plain(twin, plasls(twin), epochs=1))
    assert equal(net, twin)
    assert trainer.global_step == 6
    assert kept.of("loss") == pytest.approx([report.loss for report in watch.reports])
    # Without the mixin nobody is there to keep a trial quiet.
    assert seen == (list(range(1, 7)) if mixin else [report.total_forwards for report in watch.reports])
    assert kept.of("inside") == [seen[-1]]


class Two(Manual):
    """Two optimizers, each with a loss of its own."""

    def __init__(self) -> None:
        super().__init__(nn.ModuleList([bert(dropout=0.2), bert(dropout=0.2, seed=1)]))

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        for net, optimizer in zip(self.net, optimizers, strict=True):  # pyright: ignore
            torch.manual_seed(batch_idx)
            optimizer.zero_grad()
            self.manual_backward(self.record_loss(lambda net=net: net(**batch).loss))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [adamsls(self.net[0]), plasls(self.net[1])]  # pyright: ignore


def test_two_optimizers_search_each_over_its_own_loss() -> None:
    module, kept = Two(), Kept()
    _, watch = fitted(module, StepSizeLogger(), max_epochs=1, logger=kept)
    for index, build in enumerate((adamsls, plasls)):
        twin = bert(dropout=0.2, seed=index)
        same(watch.of[index], plain(twin, build(twin), epochs=1))
        assert equal(module.net[index], twin)  # pyright: ignore
    assert kept.of("AdamSLS-0/step_size") == pytest.approx([r.components[0].step_size for r in watch.of[0]])
    assert kept.of("PLASLS-1/forwards") == pytest.approx([r.forwards for r in watch.of[1]])


# ------------------------------------------------------------------------------------------------------------ the logs


@pytest.mark.parametrize("kind", [Automatic, Manual])
def test_the_logs_show_what_was_found(kind: type[Automatic]) -> None:
    def merging(net: nn.Module) -> armijo.LineSearch:
        return armijo.PLASLS(armijo.split(net, n_layer_groups=2), merging=armijo.MergeSmallest(below=1.0))

    kept = Kept()
    _, watch = fitted(kind(bert(), merging), StepSizeLogger(prog_bar=True), logger=kept, max_epochs=1)
    assert [len(report.components) for report in watch.reports] == [4, 3, 2, 2, 2, 2]
    first = {component.label for component in watch.reports[0].components}
    assert len(kept.entries) == len(watch.reports) == 6
    for entry, report in zip(kept.entries, watch.reports, strict=True):
        sizes = {name.removeprefix("step_size/"): size for name, size in entry.items() if "step_size" in name}
        assert sizes.keys() == first, "a merged component goes on with the other's step size"
        for component in report.components:
            assert sizes[component.label] == pytest.approx(component.step_size)
        assert set(sizes.values()) == {sizes[component.label] for component in report.components}
        assert entry["forwards"] == report.forwards
        searched = [component for component in report.components if component.trials]
        share = sum(component.status == "accepted" for component in searched) / len(searched)
        assert entry["accepted"] == pytest.approx(share)


def test_steps_between_two_lines_of_the_log_are_not_lost(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    trainer, watch = fitted(
        Automatic(bert()), StepSizeLogger(), logger=logger, log_every_n_steps=4, accumulate_grad_batches=2, max_epochs=4
    )
    lines = [line.split(",") for line in (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()]
    logged = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    assert len(watch.reports) == 12
    assert [int(line["step"]) for line in logged] == [3, 7, 11]
    for index, line in enumerate(logged):
        of_these = watch.reports[4 * index : 4 * index + 4]
        assert float(line["forwards"]) == pytest.approx(sum(report.forwards for report in of_these) / 4)
        assert float(line["step_size"]) == pytest.approx(of_these[-1].components[0].step_size)
    assert "step_size" in trainer.callback_metrics


@pytest.mark.parametrize("kind", [TQDMProgressBar, RichProgressBar])
def test_a_progress_bar_shows_small_step_sizes(kind: Any) -> None:
    class Bar(kind):  # type: ignore[misc]
        def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
            shown.append(dict(self.get_metrics(trainer, *args)))

    shown: list[dict[str, Any]] = []
    bar = Bar()
    build = functools.partial(small_steps, armijo.SGDSLS)
    fitted(Automatic(bert(), build), StepSizeLogger(prog_bar=True), bar, max_epochs=1, enable_progress_bar=True)
    assert shown[0]["step_size"] == "2.00e-05"
    assert shown[0]["forwards"] == 2.0
    assert "get_metrics" not in vars(bar)


def small_steps(kind: type[armijo.LineSearch], net: nn.Module) -> armijo.LineSearch:
    return kind(net.parameters(), max_step_size=2e-5)


class WithoutClosure(Automatic):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step()


class PastTheStrategy(Automatic):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer_closure()
        optimizer.optimizer.step()


def test_an_optimizer_step_without_the_closure_is_told_about_the_closure() -> None:
    with pytest.raises(armijo.MissingClosureError, match=r"optimizer_step\(\) of your own must hand on the closure"):
        fitted(WithoutClosure(bert()), max_epochs=1)


def test_a_closure_that_was_called_already_is_as_good_as_one_handed_on() -> None:
    _, watch = fitted(PastTheStrategy(bert(dropout=0.2)), max_epochs=1)
    twin = bert(dropout=0.2)
    same(watch.reports, plain(twin, adamsls(twin), epochs=1))


# ------------------------------------------------------------------------------------------- Lightning's own callbacks

PASSIVE: dict[str, Callable[[Path], Callback]] = {
    "DeviceStatsMonitor": lambda folder: callbacks.DeviceStatsMonitor(cpu_stats=True),
    "LambdaCallback": lambda folder: callbacks.LambdaCallback(on_train_end=lambda *_: None),
    "LearningRateMonitor": lambda folder: callbacks.LearningRateMonitor(log_momentum=True, log_weight_decay=True),
    "ModelCheckpoint": lambda folder: callbacks.ModelCheckpoint(folder, every_n_train_steps=2),
    "OnExceptionCheckpoint": lambda folder: callbacks.OnExceptionCheckpoint(folder),
    "StochasticWeightAveraging": lambda folder: callbacks.StochasticWeightAveraging(1.0, swa_epoch_start=1),
    "ThroughputMonitor": lambda folder: callbacks.ThroughputMonitor(batch_size_fn=lambda batch: BATCH),
    "Timer": lambda folder: callbacks.Timer(duration="00:01:00:00"),
    "WeightAveraging": lambda folder: callbacks.WeightAveraging(),
    "EMAWeightAveraging": lambda folder: callbacks.EMAWeightAveraging(),
    "ModelSummary": lambda folder: callbacks.ModelSummary(),
    "RichModelSummary": lambda folder: callbacks.RichModelSummary(),
    "EarlyStopping": lambda folder: callbacks.EarlyStopping("loss", patience=9, check_on_train_epoch_end=True),
    "SpikeDetection": lambda folder: SpikeDetection(),
}


class Logging(Automatic):
    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss


@pytest.mark.parametrize("name", PASSIVE)
def test_a_callback_that_only_looks_changes_no_step(tmp_path: Path, name: str) -> None:
    _, watch = fitted(
        Logging(bert(dropout=0.2)),
        PASSIVE[name](tmp_path),
        logger=CSVLogger(tmp_path),
        enable_checkpointing=True,
        default_root_dir=tmp_path,
    )
    twin = bert(dropout=0.2)
    same(watch.reports, plain(twin, adamsls(twin)))


class Unfreezing(callbacks.BaseFinetuning):
    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.net.bert.embeddings)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net.bert.embeddings, optimizer, initial_denom_lr=1.0)


ACTIVE: dict[str, Callable[[], Callback]] = {
    "BaseFinetuning": Unfreezing,
    "GradientAccumulationScheduler": lambda: callbacks.GradientAccumulationScheduler({1: 2}),
    "ModelPruning": lambda: callbacks.ModelPruning("l1_unstructured", amount=0.1),
    "StochasticWeightAveraging": lambda: callbacks.StochasticWeightAveraging(1e-2, swa_epoch_start=1),
}


@pytest.mark.parametrize("name", ACTIVE)
def test_a_callback_that_changes_the_training_runs_beside_the_search(tmp_path: Path, name: str) -> None:
    _, watch = fitted(Automatic(bert(dropout=0.2)), ACTIVE[name](), default_root_dir=tmp_path)
    assert len(watch.reports) == (9 if name == "GradientAccumulationScheduler" else 12)
    statuses = {str(component.status) for report in watch.reports for component in report.components}
    assert {"accepted"} <= statuses <= {"accepted", "unsearched"}


class OwnLoader(Automatic):
    batch_size = 2
    lr = 1.0

    def train_dataloader(self) -> Any:
        return DataLoader(rows(), self.batch_size, collate_fn=lambda part: batched(part, len(part))[0])


def test_the_batch_size_finder_trains_with_the_search_before_fit_begins(tmp_path: Path) -> None:
    module = OwnLoader(bert())
    quiet()
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[callbacks.BatchSizeFinder(max_trials=2, init_val=4)],
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module)
    assert module.batch_size == 8
    assert trainer.optimizers[0].report.step == 48 // 8  # pyright: ignore[reportAttributeAccessIssue]


def test_there_is_no_learning_rate_to_find(tmp_path: Path) -> None:
    with pytest.raises(armijo.ConfigurationError, match="no learning rate for LearningRateFinder to find"):
        fitted(OwnLoader(bert()), callbacks.LearningRateFinder(), default_root_dir=tmp_path)


# ----------------------------------------------------------------------------------------------------------- refusals


def test_the_mixin_stands_first() -> None:
    with pytest.raises(armijo.ConfigurationError, match=r"Write class Mine\(ArmijoMixin, LightningModule\)"):

        class Mine(LightningModule, ArmijoMixin):
            pass


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [("DeepSpeedStrategy", "DeepSpeed steps inside"), ("FSDPStrategy", "flat shards. Use ModelParallelStrategy")],
)
def test_strategies_that_cannot_work_are_refused_before_anything_happens(kind: str, sentence: str) -> None:
    class Unconfigured(Automatic):
        def setup(self, stage: str) -> None:
            raise AssertionError("the refusal comes first")

        def validation_step(self, *_: Any) -> None:
            pass

    module = Unconfigured(bert())
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.__class__ = type(kind, (type(trainer.strategy),), {})  # neither runs on a CPU
    with pytest.raises(armijo.ConfigurationError, match=sentence):
        trainer.fit(module, loader())
    with pytest.raises(AssertionError, match="the refusal comes first"):
        trainer.validate(module, loader())


def test_an_iterator_of_batches_is_refused() -> None:
    class Iterating(Automatic):
        def training_step(self, dataloader_iter: Any) -> Any:
            raise NotImplementedError

    with pytest.raises(armijo.ConfigurationError, match="cannot draw the same batch from dataloader_iter again"):
        fitted(Iterating(bert()))


def test_several_optimizers_want_manual_optimisation() -> None:
    class Several(Automatic):
        def configure_optimizers(self) -> Any:
            return [adamsls(self.net), adamsls(self.net)]

    with pytest.raises(RuntimeError, match="multiple optimizers is only supported with manual optimization"):
        fitted(Several(bert()))


def test_recording_by_hand_is_for_manual_optimisation() -> None:
    class Both(Automatic):
        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> Any:
            return self.record_loss(lambda: self.loss(batch))

    with pytest.raises(armijo.ConfigurationError, match=r"record_loss\(\) is for manual optimisation"):
        fitted(Both(bert()))


@pytest.mark.parametrize("scaled", [False, True])
def test_without_the_mixin_the_first_step_is_refused(scaled: bool) -> None:
    net = bert()
    before = parameters(net)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=8.0))
    with pytest.raises((armijo.ClosureContractError, armijo.MissingClosureError)):
        fitted(Unmixed(net), plugins=plugin if scaled else None)  # pyright: ignore
    assert all(map(torch.equal, before, parameters(net)))


class Skipping(LightningModule):
    """Draws whether a batch counts, after its forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
        self.drawn: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.net(batch).square().mean()
        draw = float(torch.rand(()))
        if torch.is_grad_enabled():
            self.drawn.append(draw)
        return None if draw < 0.5 else loss

    def configure_optimizers(self) -> Any:
        return armijo.SGDSLS(self.parameters()) if isinstance(self, ArmijoMixin) else torch.optim.SGD(self.parameters())


class SkippingSearched(ArmijoMixin, Skipping):
    pass


def test_a_batch_without_a_loss_has_been_seen_all_the_same() -> None:
    found = []
    for kind in (SkippingSearched, Skipping):
        module = kind()
        inputs = [torch.randn(8, 4, generator=torch.Generator().manual_seed(i)) for i in range(10)]
        data: Any = DataLoader(inputs, batch_size=None)  # pyright: ignore[reportArgumentType]
        fitted(module, data=data, max_epochs=1)
        found.append((module.drawn, int(module.net[1].num_batches_tracked)))  # pyright: ignore
    assert found[0] == found[1]
    assert min(found[0][0]) < 0.5 < max(found[0][0])


def test_a_loss_outside_training_is_not_recorded() -> None:
    module = Manual(bert())

    class Validate(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            assert module._window is not None
            with torch.no_grad():
                loss = module.record_loss(lambda: module.loss(batched(rows(), BATCH)[0]))
            assert not loss.requires_grad
            assert not module._window._forwards

    fitted(module, Validate(), max_epochs=1)


def test_manual_optimisation_without_a_recorded_loss_says_what_to_write() -> None:
    class Ordinary(Manual):
        def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    with pytest.raises(armijo.ConfigurationError, match=r"loss = self.record_loss\(lambda"):
        fitted(Ordinary(bert()), max_epochs=1)
