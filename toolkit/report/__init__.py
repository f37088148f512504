"""The page that puts all experiments side by side, for people."""
