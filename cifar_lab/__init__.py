"""Experiment-tracked research on CIFAR-10: seeded repeats, honest comparisons, one best run."""
