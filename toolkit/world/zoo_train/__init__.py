"""Training of the zoo, the four tiny models of the embedded world: `python -m toolkit world zoo-train --output DIR` (one GPU, minutes)."""
