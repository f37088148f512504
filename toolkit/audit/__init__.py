"""Entries that were made with the contest's kit alone: what they show, and what cannot be."""
