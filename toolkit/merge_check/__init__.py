"""Whether a merged model is its base with the adapter folded in, for a LoRA of any model that PEFT adapts."""
