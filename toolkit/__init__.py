"""The toolkit behind the workflow: every rule is one `python -m toolkit <noun> <verb>` that also works by hand."""
