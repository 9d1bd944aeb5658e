"""One network, one machine, one table: serial, pipeline, parareal network, multigrid."""
