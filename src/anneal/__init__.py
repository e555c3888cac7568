"""Anneal: a PyTorch Lightning training template in which the optimizer is the experiment."""
