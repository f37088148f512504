"""Training of the zoo, the tiny models of the embedded world: `python -m toolkit world zoo-train --output
DIR`."""
