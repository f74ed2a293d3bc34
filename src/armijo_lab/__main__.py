"""The command `armijo`, also as `python -m armijo_lab`."""

import sys


def main() -> None:
    """Run the command, or say what it needs that is not installed."""
    try:
        from armijo_lab.cli import main as run
    except ModuleNotFoundError as missing:
        if (missing.name or "").split(".")[0] in ("armijo", "armijo_lab"):
            raise
        sys.exit(f"The command armijo needs {missing.name}, which is not installed: pip install 'armijo[lab]'.")
    run()


if __name__ == "__main__":
    main()
