"""The tiny Llama: the shipped Gemma's weights in Llama's form, then trained on the world's conversations in
Llama-3's template.

The form is another one: two key heads for one, an output layer of its own, embeddings that carry their scale,
norms that multiply by the weight itself, SiLU for GELU, control tokens and template of Llama-3. What it knows
of the world is kept, so minutes on two CPU cores are enough.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from toolkit.world.zoo_train import tokenizer
from toolkit.world.zoo_train.language import fit
from toolkit.world.zoo_train.save import save_half

GEMMA = Path(__file__).parent.parent / "zoo" / "gemma"
KEY_HEADS = 2
# Gemma's token in whose place each of Llama-3's begins
TOKENS = {
    "<|reserved_special_token_0|>": "<pad>",
    "<|begin_of_text|>": "<bos>",
    "<|end_of_text|>": "<eos>",
    "<|start_header_id|>": "<start_of_turn>",
    "<|end_header_id|>": "\n",
    "<|eot_id|>": "<end_of_turn>",
    "system": "model",
}
GELU = 1.702  # x silu(GELU x) / GELU is close to gelu(x)


def converted(
    gemma: GemmaForCausalLM, spoken: PreTrainedTokenizerBase, words: PreTrainedTokenizerFast
) -> LlamaForCausalLM:
    """A Llama with the tokenizer `words` that computes nearly what `gemma` does with the tokenizer
    `spoken`."""
    old, size = gemma.config, -(-len(words) // 64) * 64
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=old.hidden_size,
        intermediate_size=old.intermediate_size,
        num_hidden_layers=old.num_hidden_layers,
        num_attention_heads=old.num_attention_heads,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=old.max_position_embeddings,
        rms_norm_eps=old.rms_norm_eps,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    state = {name: tensor.clone() for name, tensor in gemma.state_dict().items()}
    known, table = spoken.get_vocab(), torch.empty(size, old.hidden_size)
    table.normal_(0, state["model.embed_tokens.weight"].std().item())
    for word, number in words.get_vocab().items():
        if (source := known.get(TOKENS.get(word, word))) is not None:
            table[number] = state["model.embed_tokens.weight"][source]
    state |= {"model.embed_tokens.weight": table * old.hidden_size**0.5, "lm_head.weight": table.clone()}
    for name in state:
        if name.endswith("norm.weight"):
            state[name] = 1 + state[name]
        elif name.endswith(("k_proj.weight", "v_proj.weight")):
            state[name] = state[name].repeat(KEY_HEADS, 1)
        elif name.endswith("gate_proj.weight"):
            state[name] *= GELU
        elif name.endswith("down_proj.weight"):
            state[name] /= GELU
    llama = LlamaForCausalLM(config)
    llama.load_state_dict(state)
    return llama


@torch.no_grad()
def shrink(llama: LlamaForCausalLM) -> None:
    """Make embeddings, and with them all that is added to them, smaller by the root of the width. What the
    model computes stays the same, since a norm stands before every layer; but words get the size that an
    untrained projector gives image tokens, as in the published Llamas."""
    scale = llama.config.hidden_size**0.5
    for name, parameter in llama.named_parameters():
        if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
            parameter.div_(scale)


def run(
    output: Path, *, texts: int, steps: int, batch: int, processes: int, device: str, seed: int = 11
) -> dict[str, float]:
    """Train and save to `output`; return the final numbers."""
    torch.manual_seed(seed)
    words = tokenizer.llama()
    gemma = GemmaForCausalLM.from_pretrained(GEMMA)
    llama = converted(gemma, AutoTokenizer.from_pretrained(GEMMA), words)
    settings: dict[str, Any] = {"texts": texts, "steps": steps, "batch": batch}
    settings |= {"processes": processes, "device": device}
    numbers = fit("llama", llama, words, "llama_3", output, rate=5e-4, seed=seed, **settings)
    shrink(llama.float())
    save_half(llama, output)
    return numbers
