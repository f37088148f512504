"""How long a configuration takes, in how much memory and disk, before it runs: `python -m toolkit plan`.

`work` counts what every rule has to do, `cards` knows how fast that was on which card, `predict` joins the
two, `show` prints them.
"""
