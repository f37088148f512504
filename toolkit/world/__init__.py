"""The embedded world: scenes, captions, questions and a zoo of tiny trained models, in the file formats of
the contest."""
