"""How fast the model trains and answers on this machine, in how much memory: the trainer's own steps on
synthetic samples."""
