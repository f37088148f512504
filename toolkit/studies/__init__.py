"""Questions about recipes, answered on the embedded world or on rows of one's own: tables of many runs."""
