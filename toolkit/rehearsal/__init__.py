"""A rehearsal: the whole workflow at the real sizes, with random weights and drawn pictures."""
