"""MGM (Mini-Gemini, arXiv 2403.18814) with Gemma or Llama, on current transformers, numerically the official
model (commit 769820c).

Read in this order: language and config, convnext, mining, model (forward pass), processor (images), text
(templates, ids, labels), tokenizer, sampler, folder, weights and checkpoint (files in and out), answer
(generation), parity (proof against tensors of the official code).
"""
