"""The matrix of what is supported, for a machine with time and bandwidth: nox, or nox -s 'tests-3.11(floor)'.

`pinned` is what `make test` runs, `floor` the oldest versions that pyproject.toml names, `newest` whatever is out.
"""

import nox

FLOOR = ("torch==2.6.0", "transformers==5.6.0", "accelerate==1.10.0", "lightning==2.6.0")
PINNED_IN_FLOOR = ("torch", "transformers", "accelerate", "lightning", "pytorch-lightning")
# What the floors themselves pin, or cannot do with in its newest version.
FREE = ("sympy", "mpmath", "networkx", "fsspec", "huggingface_hub", "hf-xet", "tokenizers", "triton")

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True


@nox.session(python=["3.11", "3.12", "3.13"])
@nox.parametrize("versions", [nox.param(name, id=name) for name in ("pinned", "floor", "newest")])
def tests(session: nox.Session, versions: str) -> None:
    """The library, the integrations and the command."""
    if versions == "pinned":
        session.install("--constraint", "constraints.txt", "--editable", ".[test,studies]")
    elif versions == "newest":
        session.install("--upgrade", "--editable", ".[test,studies]")
    else:
        with open("constraints.txt", encoding="utf-8") as file:
            kept = [line for line in file if line.split("==")[0] not in (*PINNED_IN_FLOOR, *FREE)]
        constraints = session.create_tmp() + "/floor.txt"
        with open(constraints, "w", encoding="utf-8") as file:
            file.writelines([*kept, *(f"{pin}\n" for pin in FLOOR)])
        session.install("--constraint", constraints, "--editable", ".[test,studies]")
    # FSDP2 of torch 2.6 runs on GPUs alone.
    without = ["--ignore=tests/distributed", "-k", "not two_processes"] if versions == "floor" else []
    session.run("pytest", *without, *(session.posargs or ["-n", "2"]))


@nox.session(python="3.11")
def trackers(session: nox.Session) -> None:
    """What the searches found, in W&B, MLflow and trackio; they are in no extra, for what they bring along."""
    session.install("--editable", ".[test]", "wandb", "mlflow-skinny", "sqlalchemy", "alembic", "trackio")
    session.run("pytest", "-m", "heavy", "tests/heavy/test_trackers.py", *session.posargs)
