"""How recipes are run: Data-Juicer's operators under control, statistics kept, processes, selection."""
