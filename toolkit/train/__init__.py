"""Training: pretrain (projector and mining modules), finetune (full or LoRA), merge with proof."""
