"""The last mile of an entry: its train.sh, its validation against the contest's rules, its submit.zip."""
