"""Whether this machine can do what a configuration asks for, before it is tried: `python -m toolkit doctor`.

`facts` reads the machine, `work` the configuration, `checks` judges the one by the other.
"""
