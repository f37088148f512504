"""Learning strategies of the division `open`, one a module; registry.py names them, base.py has the seams."""
