"""Questions put to a model by hand, from a program or on the command line.

from toolkit.ask import MGM

model = MGM.load("output/training_dirs/MGM-Tiny-Finetune-synth")
model.answer("sign.png", "What does the sign say?")
"""

from toolkit.ask.model import MGM

__all__ = ["MGM"]
