"""Archives of strangers: every byte accounted for, nothing unpacked before it was weighed."""
