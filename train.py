"""Train, test and use a model: `python train.py --help`. This file is yours."""

import anneal

PACKAGES = ["project.models", "project.data"]  # whose classes go by their short names
PACKAGES += ["examples.optimizers"]  # the optimizer lab and its commands: `make slim` removes it


def fit(run: "anneal.Run") -> None:
    """Train (without a command, this one), then test the last weights and sum up."""
    data = run.data
    model = run.model
    trainer = run.trainer  # with the run's callbacks, loggers and folder
    trainer.fit(model, data, ckpt_path=run.ckpt_path)
    run.test()
    run.summarize()


if __name__ == "__main__":
    anneal.main(fit, PACKAGES)
