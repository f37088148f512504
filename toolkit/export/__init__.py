"""A merged model as a folder that others load with transformers alone, and the proof that it is the same."""
