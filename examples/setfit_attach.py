"""SetFit: its Trainer builds the one of sentence-transformers itself; `attach` gives that one a line search.

Eight sentences of each class are enough for it to learn from.
"""

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from setfit import SetFitModel, Trainer, TrainingArguments
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score

import armijo
from armijo.integrations.transformers import attach, line_search
from armijo_lab.tasks import Split, embedded
from texts import MINILM, options


def few(split: Split, each: int) -> Dataset:
    """The first rows of each class."""
    places = [place for label in range(5) for place in _of(split, label)[:each]]
    return Dataset.from_list([{"text": split.texts[place], "label": split.targets[place]} for place in places])


def _of(split: Split, label: int) -> list[int]:
    return [place for place, target in enumerate(split.targets) if target == label]


given = options(shots="8")
data = embedded.load()
model = SetFitModel(model_body=SentenceTransformer(MINILM), model_head=LogisticRegression())
trainer = Trainer(
    model,
    TrainingArguments(
        "runs/setfit_attach",
        batch_size=16,
        max_steps=given.rows // 16 * given.epochs,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
    ),
    train_dataset=few(data.train, int(given.shots)),
    eval_dataset=few(data.evaluation, 40),
    metric=accuracy_score,  # a name would be fetched from the hub
)
attach(trainer.st_trainer, line_search(armijo.AdamSLS))

trainer.train_classifier(*trainer.dataset_to_parameters(trainer.train_dataset))
before = trainer.evaluate()["metric"]
trainer.train()
print(f"accuracy {before:.3f} with the embeddings as they were, {trainer.evaluate()['metric']:.3f} after")
