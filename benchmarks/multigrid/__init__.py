"""Layer-parallel training by multigrid: accuracy, and time per step."""
