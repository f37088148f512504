"""Compare this implementation with tensors of the official code: `python -m toolkit mgm parity DIR`.

DIR holds weights.safetensors, meta.json, a tokenizer and case files; sizes, samples and names are read from
meta.json. Each case is computed again from raw images and conversations. Tolerances are absolute: logits and
loss 1e-5, vision features 5e-5, CLIP's pixels 2e-6 (torch's bilinear kernel rounds otherwise where the
processor has no AVX2); ids, labels, orders, generations and the pixels of the high resolution must be equal.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from toolkit.errors import UserError
from toolkit.files import read_json
from toolkit.mgm.checkpoint import empty, fill
from toolkit.mgm.config import MGMConfig
from toolkit.mgm.convnext import concatenate
from toolkit.mgm.generate import Greedy, Prompt
from toolkit.mgm.language import language_model
from toolkit.mgm.mining import candidates
from toolkit.mgm.model import MGMForCausalLM
from toolkit.mgm.processor import blank, normalise, pixels, preprocess
from toolkit.mgm.sampler import conversation_length, modality_length_grouped
from toolkit.mgm.text import IMAGE, TEMPLATES, Template, collate, encode, ends, question_prompt, tokenize
from toolkit.mgm.tokenizer import load_tokenizer

EXACT, PIXELS, LOGITS, FEATURES = 0.0, 2e-6, 1e-5, 5e-5


@dataclass
class Case:
    """One row of the report: the largest difference of every comparison, with its tolerance."""

    name: str
    checks: list[tuple[str, float, float]] = field(default_factory=list)

    def add(self, label: str, ours: Any, golden: Any, tolerance: float = EXACT) -> None:
        """Compare tensors or plain values; other shapes or values count as infinite difference."""
        if isinstance(golden, Tensor):
            if ours.shape != golden.shape:
                difference = float("inf")
            elif golden.dtype.is_floating_point:
                difference = (ours.double() - golden.double()).abs().max().item() if golden.numel() else 0.0
            else:
                difference = float((ours != golden).sum().item())
        else:
            difference = 0.0 if ours == golden else float("inf")
        self.checks.append((label, difference if difference == difference else float("inf"), tolerance))

    @property
    def failed(self) -> list[tuple[str, float, float]]:
        return [check for check in self.checks if check[1] > check[2]]

    def worst(self, tolerances: tuple[float, ...]) -> tuple[float, str]:
        """(largest difference, its name) among the checks held to one of these tolerances."""
        return max(
            ((difference, label) for label, difference, tolerance in self.checks if tolerance in tolerances),
            default=(0.0, ""),
        )


class Golden:
    """One directory of golden data and the model its weights make."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "meta.json").is_file():
            raise UserError(f"{folder} holds no meta.json: give a directory of golden tensors")
        self.folder = folder
        self.meta = read_json(folder / "meta.json")
        raw = self.meta["config"]
        self.config = MGMConfig(
            language=language_model(raw, f"{folder}/meta.json: config"),
            clip=self.meta["tiny_clip_config"],
            depths=tuple(self.meta["tiny_convnext"]["depths"]),
            dims=tuple(self.meta["tiny_convnext"]["dims"]),
            image_size_aux=raw["image_size_aux"],
            image_aspect_ratio=raw["image_aspect_ratio"],
            image_grid=raw["image_grid"],
            image_global=raw["image_global"],
            model_max_length=raw["tokenizer_model_max_length"],
            padding_side=raw["tokenizer_padding_side"],
            select_layer=raw["mm_vision_select_layer"],
        )
        self.tokenizer = load_tokenizer(folder, self.config.model_max_length)
        self.template = self.meta.get("main_template", "gemma")
        self.model = self.filled(self.meta.get("attn_implementation", "eager"))
        self.raw_images = {
            name.removeprefix("raw_"): Image.fromarray(pixels.numpy())
            for name, pixels in self.load("raw_images").items()
        }

    def filled(self, attention: str) -> MGMForCausalLM:
        """A model with the weights of the set."""
        model = empty(self.config, attention)
        fill(model, self.load("weights"), self.folder / "weights.safetensors", torch.float32)
        return model.eval()

    def load(self, name: str) -> dict[str, Tensor]:
        path = self.folder / f"{name}.safetensors"
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is not a readable safetensors file: {error}") from None

    def image(self, name: str) -> Image.Image:
        """A raw image by its name, with or without a suffix or folder."""
        return self.raw_images[Path(name).stem]

    def samples(self, identifiers: list[Any]) -> list[dict[str, Any]]:
        """Samples in this order, from the first case that holds all of them."""
        for case in self.meta["cases"].values():
            by_id = {str(sample["id"]): sample for sample in case.get("samples", [])}
            if all(str(identifier) in by_id for identifier in identifiers):
                return [by_id[str(identifier)] for identifier in identifiers]
        raise UserError(f"{self.folder}/meta.json: no case holds all of the samples {identifiers}")

    def set(self, overrides: dict[str, Any]) -> MGMForCausalLM:
        """The model with some settings changed (names as in config.json)."""
        names = {"tokenizer_model_max_length": "model_max_length", "tokenizer_padding_side": "padding_side"}
        self.model.mgm = self.config.with_(**{names.get(key, key): value for key, value in overrides.items()})
        return self.model

    def batch(self, samples: list[dict[str, Any]], template: str | None = None) -> dict[str, Tensor]:
        """Samples of a training case through the whole data path."""
        rows = []
        for sample in samples:
            has_image = "image" in sample
            ids, labels = encode(
                sample["conversations"], self.tokenizer, template or self.template, has_image=has_image
            )
            mgm = self.model.mgm
            low, high = preprocess(self.image(sample["image"]), mgm) if has_image else blank(mgm)
            rows.append({"input_ids": ids, "labels": labels, "images": low, "images_aux": high})
        # the collator cuts at the tokenizer's length, which a case's override of the model's length leaves
        # alone
        return collate(rows, self.tokenizer.pad_token_id, self.config.model_max_length)


def strided(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Every n-th entry along each dimension that is longer than in `shape`, as the golden `*_sub` tensors
    were cut.

    Powers of two are tried first.
    """
    for dim, kept_size in enumerate(shape):
        size = tensor.shape[dim]
        for step in (*(2**power for power in range(12)), *range(1, size + 1)):
            if -(-size // step) == kept_size:
                tensor = tensor.index_select(dim, torch.arange(0, size, step))
                break
    return tensor


def check_images(case: Case, golden: dict[str, Tensor], low: Tensor, high: Tensor) -> None:
    """Both resolutions; the golden high resolution is kept as uint8, which means nothing for text-only
    samples (all zero)."""
    if "images" in golden:
        case.add("images", low, golden["images"], PIXELS)
    if "images_aux_u8" in golden:
        expected = torch.stack(
            [normalise(pixels.permute(1, 2, 0).numpy()) for pixels in golden["images_aux_u8"]]
        )
        expected[golden.get("images", low).flatten(1).abs().sum(1) == 0] = 0
        case.add("images_aux", high, expected)


def check_features(
    case: Case, golden: dict[str, Tensor], model: MGMForCausalLM, low: Tensor, high: Tensor
) -> None:
    """Every stage of the vision path that the case holds, whole or strided (`_sub`)."""
    maps = model.model.vision_tower_aux(high)
    clip = model.clip_features(low.flatten(0, 1) if low.ndim == 5 else low)
    windows = candidates(concatenate(maps), clip.shape[1])
    features = {
        "clip_features": clip,
        "uni_query": model.model.vlm_uni_query_projector(clip),
        **{f"aux_stage_{stage}": feature for stage, feature in enumerate(maps)},
        "aux_features": concatenate(maps),
        "uni_aux_in": windows,
        "uni_key": model.model.vlm_uni_aux_projector(windows),
        "uni_value": model.model.vlm_uni_val_projector(windows),
        "fused_tokens": model.fused_tokens(model.features(low, high)),
        "image_tokens": model.image_tokens(low, high),
    }
    for name, ours in features.items():
        for key in (name, f"{name}_sub"):
            if key in golden:
                case.add(name, strided(ours, golden[key].shape), golden[key], FEATURES)


def check_logits(case: Case, golden: dict[str, Tensor], logits: Tensor, mask: Tensor) -> None:
    """Logits of the positions that hold a token; the rest is padding, which no loss or answer reads."""
    for name in ("logits", "logits_sub"):
        if name in golden:
            ours, expected = strided(logits, golden[name].shape), golden[name]
            if ours.shape == expected.shape:
                ours, expected = ours[mask], expected[mask]
            case.add("logits", ours, expected, LOGITS)


def training_case(golden: Golden, name: str) -> Case:
    """A batch of conversations: ids, labels, images, features, spliced sequences, logits, loss and
    gradients."""
    case, spec, tensors = Case(name), golden.meta["cases"][name], golden.load(name)
    model = golden.set(spec.get("config_override", {}))
    # a case without samples of its own reuses another one's by id, in its own order
    batch = golden.batch(spec.get("samples") or golden.samples(spec["sample_ids"]), spec.get("version"))
    for part, key in (("input_ids", "input_ids"), ("labels", "labels"), ("mask", "attention_mask")):
        if key in tensors:
            case.add(key, batch[part], tensors[key])
    check_images(case, tensors, batch["images"], batch["images_aux"])
    with torch.no_grad():
        check_features(case, tensors, model, batch["images"], batch["images_aux"])
    model.zero_grad()
    spliced = model.splice(
        batch["input_ids"], batch["mask"], batch["labels"], batch["images"], batch["images_aux"]
    )
    if "labels_mm" in tensors:
        case.add("labels_mm", spliced.layout.labels, tensors["labels_mm"])
    if "attention_mask_mm" in tensors:
        case.add("attention_mask_mm", spliced.layout.mask, tensors["attention_mask_mm"])
    for key in ("inputs_embeds", "inputs_embeds_ch0"):
        if key in tensors:
            unscaled = spliced.embeds.detach() / model.mgm.language.embedding_scale
            case.add("inputs_embeds", unscaled[..., : tensors[key].shape[-1]], tensors[key], FEATURES)
    with torch.no_grad():
        check_logits(case, tensors, model.logits(spliced), spliced.layout.mask)
    loss = model.mean_loss(spliced)
    if "loss" in tensors:
        case.add("loss", loss.detach().reshape(1), tensors["loss"].reshape(1), LOGITS)
    case.add(
        "loss (meta)",
        loss.detach().double().reshape(1),
        torch.tensor([spec["loss"]], dtype=torch.float64),
        LOGITS,
    )
    gradients = {
        key.removeprefix("grad."): value for key, value in tensors.items() if key.startswith("grad.")
    }
    first = name == next(iter(golden.meta["cases"]))  # of which the set keeps the norms of all gradients
    norms = spec.get("grad_norms", golden.meta.get("stage2_grad_norms", {}) if first else {})
    if gradients or norms:
        loss.backward()
        parameters = dict(model.named_parameters())
        for key, expected in gradients.items():
            ours = parameters[key].grad
            case.add(f"grad {key}", torch.zeros_like(expected) if ours is None else ours, expected, LOGITS)
        for key, norm in norms.items():
            ours = parameters[key].grad
            ratio = (0.0 if ours is None else ours.norm().item()) / max(norm, 1.0)
            case.add(f"norm {key}", torch.tensor([ratio]), torch.tensor([norm / max(norm, 1.0)]), LOGITS)
        model.zero_grad()
    return case


def generation_case(golden: Golden, name: str) -> Case:
    """One prompt with its images: ids, features, logits, greedy continuation."""
    case, spec, tensors = Case(name), golden.meta["cases"][name], golden.load(name)
    model = golden.set(spec.get("config_override", {}))
    ids = torch.tensor([tokenize(spec["prompt"], golden.tokenizer)])
    case.add("input_ids", ids, tensors["input_ids"])
    pairs = [preprocess(golden.image(image), model.mgm) for image in spec["images"]]
    low, high = torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])
    check_images(case, tensors, low, high)
    with torch.no_grad():
        check_features(case, tensors, model, low, high)
        spliced = model.splice(ids, None, None, low, high)
        if "inputs_embeds" in tensors:
            case.add(
                "inputs_embeds",
                spliced.embeds / model.mgm.language.embedding_scale,
                tensors["inputs_embeds"],
                FEATURES,
            )
        check_logits(case, tensors, model.logits(spliced), spliced.layout.mask)
    stop = spec.get("eos_token_id", ends(golden.tokenizer, golden.template))
    stop = stop if isinstance(stop, list) else [stop]
    for key in ("generated_ids", "greedy_no_cache"):
        if key in tensors:
            new = model.greedy(ids, None, low, high, tensors[key].shape[1], stop)
            case.add(key, until_end(new[0].tolist(), stop), until_end(tensors[key][0].tolist(), stop))
    return case


def until_end(ids: list[int], stop: list[int]) -> list[int]:
    """Generated ids up to the first that ends an answer."""
    return ids[: next((place for place, number in enumerate(ids) if number in stop), None)]


def preprocess_case(golden: Golden) -> Case:
    """Image tensors of both aspect modes, named `{mode}.{image}.images` and `.images_aux_u8`."""
    case, tensors = Case("image_preprocess"), golden.load("image_preprocess")
    for mode, name in sorted({tuple(key.split(".")[:2]) for key in tensors}):
        low, high = preprocess(golden.image(name), golden.config.with_(image_aspect_ratio=mode))
        prefix = f"{mode}.{name}."
        check_images(
            case,
            {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)},
            low[None],
            high[None],
        )
    for key, expected in golden.meta.get("image_preprocess_hashes", {}).items():
        mode, name = key.split(".")
        image = pixels(golden.image(name), golden.config.with_(image_aspect_ratio=mode))
        digest = hashlib.sha256(image.transpose(2, 0, 1).tobytes()).hexdigest()
        case.add(f"{key} pixels", digest, expected["images_aux_u8_sha256"])
    return case


def variant(golden: Golden, key: str) -> tuple[PreTrainedTokenizerBase, Template]:
    """Tokenizer and template of `name` or `name(option,option=value)`, as the sets say what they vary: the
    tokenizer's `legacy` or `pad`, an empty `system`, control tokens as Yi has them."""
    name, _, rest = key.partition("(")
    options = dict(option.partition("=")[::2] for option in rest.removesuffix(")").split(",") if option)
    tokenizer, template = load_tokenizer(golden.folder, golden.config.model_max_length), TEMPLATES[name]
    if "pad" in options:
        tokenizer.pad_token = tokenizer.unk_token
    if "legacy" in options:
        changes: dict[str, Any] = {"legacy": options["legacy"] != "False"}
        if "yi" in options:
            added = {str(len(tokenizer) + n): name for n, name in enumerate(("<|im_start|>", "<|im_end|>"))}
            changes |= {"add_bos_token": False, "added_tokens_decoder": added}
        tokenizer = tokenizer.restated(**changes)
    return tokenizer, replace(template, system=options.get("system", template.system))


def check_rows(case: Case, golden: Golden, key: str, rows: list[dict[str, Any]]) -> None:
    """Ids and labels of conversations; a row with an `error` is to be refused."""
    tokenizer, template = variant(golden, key)
    for number, row in enumerate(rows):
        try:
            ids, labels = encode(row["conversations"], tokenizer, template, has_image=row["has_image"])
        except UserError:
            ids, labels = None, None
        case.add(f"{key} {number} ids", ids, row.get("input_ids"))
        case.add(f"{key} {number} labels", labels, row.get("labels"))


def rows_of(sets: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(template with options, rows) of the templates there are."""
    for key, rows in sets.items():
        if key.partition("(")[0] in TEMPLATES and isinstance(rows, list):
            yield key, rows


def tokenization_case(golden: Golden) -> Case:
    """Ids and labels of every template, what is refused, prompts, raw text, lengths and sampler orders."""
    case, expected = Case("tokenization"), read_json(golden.folder / "tokenization.json")
    for key, rows in rows_of(expected):
        check_rows(case, golden, key, rows)
    for row in expected.get("errors", []):
        for key, rows in rows_of({row["template"]: [row]}):
            check_rows(case, golden, key, rows)
    messages: dict[str, list[str | None]] = {
        "one_turn_generation": [f"{IMAGE}\nQ1", None],
        "two_turns": [f"{IMAGE}\nQ1", "A1", "Q2", "A2"],
        "empty_answer": ["Q1", ""],
        "three_generation": ["Q1", "A1", "Q2", None],
    }
    for name, template in TEMPLATES.items():
        for kind, prompt in expected.get("prompts", {}).get(name, {}).items():
            if kind in messages and not prompt.startswith("ERROR"):
                case.add(f"prompt {name} {kind}", template.prompt(messages[kind]), prompt)
    for number, probe in enumerate(expected.get("probes", [])):
        for key in {"ids", "slow", "slow_legacy"} & probe.keys():
            tokenizer = golden.tokenizer
            if key == "slow_legacy":
                tokenizer = tokenizer.restated(legacy=True)
            case.add(f"probe {number} {key}", tokenizer(probe["text"]).input_ids, probe[key])
            if key != "slow_legacy":
                text = tokenizer.decode(probe[key], skip_special_tokens=True)
                case.add(f"probe {number} decoded", text, probe["decoded"])
    if "modality_lengths" in expected:
        samples = [
            {"conversations": row["conversations"], **({"image": ""} if row["has_image"] else {})}
            for row in expected[expected.get("modality_lengths_of", golden.template)]
        ]
        case.add(
            "modality_lengths",
            [conversation_length(sample) for sample in samples],
            expected["modality_lengths"],
        )
    for key, spec in expected.items():
        if key.startswith("sampler"):
            torch.manual_seed(spec["torch_manual_seed"])
            case.add(
                key,
                modality_length_grouped(spec["lengths"], spec["batch_size"], spec["world_size"]),
                spec["indices"],
            )
    return case


def further_tokenization_case(golden: Golden) -> Case:
    """What some sets have beside: short model lengths with the collated batch, Yi's control tokens."""
    case = Case("further tokenization")
    if (path := golden.folder / "extra_chatml.json").is_file():
        for key, rows in rows_of(read_json(path)):
            check_rows(case, golden, key, rows)
    if not (path := golden.folder / "extra_tokenization.json").is_file():
        return case
    extra = read_json(path)
    for key, expected in extra.items():
        if not key.startswith("model_max_length_"):
            continue
        limit = int(key.removeprefix("model_max_length_"))
        tokenizer, rows = load_tokenizer(golden.folder, limit), []
        image = torch.zeros(1)
        for row, sample in zip(expected["rows"], extra["samples"], strict=True):
            ids, labels = encode(
                sample["conversations"], tokenizer, extra["template"], has_image=row["has_image"]
            )
            case.add(f"{key} {row['id']} ids", ids, row["input_ids"])
            case.add(f"{key} {row['id']} labels", labels, row["labels"])
            rows.append({"input_ids": ids, "labels": labels, "images": image, "images_aux": image})
        batch = collate(rows, tokenizer.pad_token_id, limit)
        case.add(f"{key} batch", batch["input_ids"].tolist(), expected["collated_input_ids"])
        case.add(f"{key} batch labels", batch["labels"].tolist(), expected["collated_labels"])
    return case


def evaluation_case(golden: Golden) -> Case:
    """Prompts of the official evaluation scripts and the answers, several at once as `evaluate` gives
    them."""
    case = Case("evaluation")
    if not (path := golden.folder / "eval.json").is_file():
        return case
    expected = read_json(path)
    stop = ends(golden.tokenizer, golden.template)
    greedy = Greedy(golden.filled("sdpa"), 4, stop)
    shown = {row["index"]: row["image"].split()[-1].rstrip(">") for row in expected["mmbench_rows"]}
    for section, asked in expected.items():
        if not isinstance(asked, dict) or "prompts" not in asked:
            continue
        texts = [prompt["prompt"] if isinstance(prompt, dict) else prompt for prompt in asked["prompts"]]
        ids = [tokenize(text, golden.tokenizer) for text in texts]
        if section == "vqa_loader":
            images = [question["image"] for question in asked["questions"]]
            for number, question in enumerate(asked["questions"]):
                ours = question_prompt(question["text"], golden.template)
                case.add(f"{section} {number} prompt", ours, texts[number])
            new: list[Any] | None = [prompt.get("generated_ids", []) for prompt in asked["prompts"]]
            case.add(f"{section} ids", ids, [prompt["input_ids"] for prompt in asked["prompts"]])
        else:
            images = [shown[answer["question_id"]] for answer in asked["answers"]]
            new = asked.get("generated_ids")
            case.add(f"{section} ids", ids[0], asked["first_input_ids"])
        if new and all(new):
            prompts = [Prompt.of(prompt, image) for prompt, image in zip(ids, images, strict=True)]
            loaded = [pixels(golden.image(image), golden.config) for image in images]
            for number, answer in greedy.run(prompts, loaded.__getitem__, max(map(len, new))):
                case.add(f"{section} {number} answer", answer, until_end(new[number], stop))
    return case


def names_case(golden: Golden) -> Case:
    """Names and shapes of the checkpoint, trained parameters of stage 1."""
    case, model = Case("names"), golden.set({})
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    tied = ("lm_head.weight",) if model.config.tie_word_embeddings else ()
    expected = {name: shape for name, (shape, _) in golden.meta["state_dict"].items() if name not in tied}
    case.add("state_dict", shapes, expected)
    trained = [name for name in shapes if any(part in name for part in ("mm_projector", "vlm_uni"))]
    case.add("stage 1 trains", sorted(trained), sorted(golden.meta["trainable_params_stage1"]))
    return case


def run(folder: Path) -> list[Case]:
    """All cases of a golden directory, in the order of meta.json; UserError when a file is damaged or lacks
    something."""
    cases = []
    try:
        golden = Golden(folder)
        torch.manual_seed(0)
        for name, spec in golden.meta["cases"].items():
            cases.append((generation_case if "prompt" in spec else training_case)(golden, name))
        cases += [preprocess_case(golden), tokenization_case(golden), names_case(golden)]
        cases += [
            case for case in (further_tokenization_case(golden), evaluation_case(golden)) if case.checks
        ]
    except (KeyError, TypeError, AttributeError) as error:
        after = f" after {cases[-1].name}" if cases else ""
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{folder} is not golden data as expected{after}: {problem}") from error
    if vacant := [case.name for case in cases if not case.checks]:
        raise UserError(f"{folder}: nothing to compare in {', '.join(vacant)}")
    return cases


def report(cases: list[Case]) -> str:
    """One line a case: largest differences in logits or loss, in features, number of exact comparisons,
    verdict."""
    lines = [f"{'case':<24}{'checks':>7}{'logits, loss, grads':>22}{'features':>12}{'unequal':>9}  verdict"]
    for case in cases:
        unequal = sum(1 for _, difference, tolerance in case.checks if tolerance == EXACT and difference > 0)
        verdict = (
            "ok" if not case.failed else "FAILED: " + json.dumps([label for label, _, _ in case.failed][:4])
        )
        columns = f"{case.worst((LOGITS,))[0]:>22.2e}{case.worst((PIXELS, FEATURES))[0]:>12.2e}{unequal:>9}"
        lines.append(f"{case.name:<24}{len(case.checks):>7}{columns}  {verdict}")
    return "\n".join(lines)
