"""Training data: real Data-Juicer recipes over the seed rows, checks before any training hour, conversion to
LLaVA's format."""
