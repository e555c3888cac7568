"""Train, validate, test and predict: `python train.py --help`."""

from anneal.cli.entry import main

PACKAGES = ["project.models", "project.data"]  # whose classes go by their short names
PACKAGES += ["examples.optimizers"]  # the optimizer lab

if __name__ == "__main__":
    main(PACKAGES)
