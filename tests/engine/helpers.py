"""The small recipe that the tests of the engine train."""

SMALL = """
trainer:
  max_epochs: 2
  limit_train_batches: 4
  limit_val_batches: 2
  limit_test_batches: 2
  log_every_n_steps: 2
  accelerator: cpu
  logger: false
model:
  class_path: MLP
  init_args:
    width: 8
    depth: 1
    optimizer:
      class_path: SGD
      init_args: {lr: 0.1, momentum: 0.9}
data:
  class_path: MNISTDataModule
  init_args: {batch_size: 32, shift: 1, rotation: 5}
"""
