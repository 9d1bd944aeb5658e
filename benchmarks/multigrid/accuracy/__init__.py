"""Accuracy of training with few multigrid iterations, evaluated serially and with the same multigrid."""
