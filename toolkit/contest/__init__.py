"""What the contest is made of: its rules as data, the stages of the pipeline, their records, where an
experiment's files lie."""
