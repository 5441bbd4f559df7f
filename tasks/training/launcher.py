"""DeepSpeed's launcher of the ranks of one machine, without packages that no rank uses.

`python -m tasks.training.launcher ...` takes the arguments of `python -m deepspeed.launcher.launch`, which is
what the `deepspeed` command starts on each node after it has imported everything once more. Reads and writes
nothing itself. Ends with the exit code of the first rank that failed.
"""

import sys

# Imported wherever they are installed: MLflow by DeepSpeed's autotuner, the others by Transformers' trainer.
# Without them each process starts two seconds sooner and is 100 MB smaller.
UNUSED = ("mlflow", "datasets", "pandas", "pyarrow", "scipy", "sklearn")
FOUR_BITS = ("bitsandbytes",)  # PEFT imports it wherever it is installed: another 40 MB


def leave_out(names: tuple[str, ...] = UNUSED) -> None:
    """Make importing packages that are not used fail, which their importers take for "not installed"."""
    for name in names:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def main() -> None:
    """Start the ranks and wait for them."""
    leave_out()
    from deepspeed.launcher.launch import main as launch

    launch()


if __name__ == "__main__":
    main()
