"""SetFit: its Trainer builds the one of sentence-transformers itself; `attach` gives that one a line search.

Sixteen sentences of each class are enough for it to learn from.
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
    rows = list(zip(split.texts, split.targets, strict=True))
    chosen = [row for label in set(split.targets) for row in [row for row in rows if row[1] == label][:each]]
    return Dataset.from_list([{"text": text, "label": label} for text, label in chosen])


given = options(shots="16", cap="5e-5")
data = embedded.load()
model = SetFitModel(model_body=SentenceTransformer(MINILM), model_head=LogisticRegression())
trainer = Trainer(
    model,
    TrainingArguments(
        "runs/setfit_attach",
        batch_size=16,
        max_steps=given.epochs * max(1, given.rows // 32),
        warmup_proportion=0.0,  # a search needs none
        logging_steps=5,
        save_strategy="no",
        report_to="none",
    ),
    train_dataset=few(data.train, int(given.shots)),
    eval_dataset=few(data.evaluation, 40),
    metric=accuracy_score,  # a name, "accuracy", would be fetched from the hub
)
# The embeddings are good already, and the rows few: a longer step would fit these and forget the rest.
attach(trainer.st_trainer, line_search(armijo.AdamSLS, max_step_size=float(given.cap)))

trainer.train_classifier(*trainer.dataset_to_parameters(trainer.train_dataset))
before = trainer.evaluate()["metric"]
trainer.train()
print(f"accuracy {before:.3f} with the embeddings as they were, {trainer.evaluate()['metric']:.3f} after")
