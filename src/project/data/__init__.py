"""Data modules, found by class name: `--data=MNISTDataModule`, and what they are made of."""
