"""A run of Snakemake, watched from outside: `python -m toolkit watch`. It reads logs and writes nothing.

`run` reads Snakemake's log, `stage` what a job says of itself, `frame` draws both.
"""
