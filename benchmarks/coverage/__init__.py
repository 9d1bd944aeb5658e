"""What converts, and what does not: torchvision, timm and Hugging Face, model by model."""
