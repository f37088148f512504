"""What is looked at in an entry: one module a kind of evidence, one generator of findings a check."""
