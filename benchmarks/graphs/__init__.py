"""How long a training step of ResNet-1001 takes on one GPU: eagerly, on streams, stacked, as CUDA graphs."""
