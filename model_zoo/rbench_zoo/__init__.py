"""Models as data: cards (TOML), weights (safetensors, checked by digest) and the few architectures that our own nets need."""
