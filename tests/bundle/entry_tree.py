"""A small work tree with one entry whose records, logs and answers agree. All values are made up: they test
the checker, nothing else."""

import base64
import hashlib
import json
import math
import os
import shutil
import zipfile
from pathlib import Path

import numpy
import pandas
from photos import encoded
from PIL import Image
from safetensors.numpy import save_file

from toolkit.__main__ import main
from toolkit.benchmarks import BENCHMARKS, mmbench, textvqa
from toolkit.benchmarks.upload import write_upload
from toolkit.bundle.checks.exceptions import listed
from toolkit.bundle.checks.training import schedule
from toolkit.bundle.entry import Entry
from toolkit.bundle.pack import VALIDATION
from toolkit.bundle.papers import sources
from toolkit.bundle.papers.crate import document
from toolkit.bundle.papers.train_script import script
from toolkit.config import Config
from toolkit.contest.experiment import Experiment
from toolkit.contest.records import write_record
from toolkit.contest.ruleset import load as load_rules
from toolkit.data.convert import convert
from toolkit.evaluate import control
from toolkit.evaluate.answer_file import answer_id, answer_line, score_file
from toolkit.evaluate.compare import compare, markdown
from toolkit.evaluate.contamination import contamination
from toolkit.files import read_json, read_yaml, sha256, write_json, write_jsonl, write_text
from toolkit.report.figures import draw_losses_of_all
from toolkit.report.page import page
from toolkit.scales import load

REPOSITORY = Path(__file__).parents[2]
ROWS, INSTRUCTIONS, QUESTIONS = 40, 24, 20
WORDS = ["nova", "echo", "lima", "kilo", "tango", "delta", "sierra", "oscar", "zulu", "hotel"]
PARTS = {"llm": "gemma", "clip": "clip", "convnext": "convnext"}
REMOVES = "batched_similarity_filter"
LORA = {"rank": 1, "alpha": 2, "dropout": 0.1, "base": "full"}
PROMPT = "Answer with the option's letter from the given choices directly."
SPLIT = "mmbench_dev_20230712"
DATA = "output/processed_data/synth"
ENTRY = ["--root", ".", "--experiment", "synth", "--rules", "embedded"]  # flags of the commands of `bundle`
LAYER, PROJECTOR = "model.layers.0.self_attn.q_proj", "model.mm_projector.0.weight"
BASE = {
    f"{LAYER}.weight": numpy.eye(2, dtype=numpy.float32),
    "model.norm.weight": numpy.ones(2, dtype=numpy.float32),
}
# alpha / r is 2
ADAPTER = {"A": numpy.ones((1, 2), dtype=numpy.float32), "B": numpy.full((2, 1), 0.25, dtype=numpy.float32)}


def pack(archive: Path | str = "submit.zip") -> None:
    """Validate the entry in the working directory and write its archive."""
    assert main(["bundle", "validate", *ENTRY, "--output", VALIDATION]) == 0
    assert main(["bundle", "submit", *ENTRY, "--output", str(archive)]) == 0


def merged() -> dict[str, numpy.ndarray]:
    """The merged model's tensors."""
    folded = BASE[f"{LAYER}.weight"] + 2 * ADAPTER["B"] @ ADAPTER["A"]
    return BASE | {f"{LAYER}.weight": folded, PROJECTOR: numpy.ones(2, dtype=numpy.float32)}


def seed_row(number: int, caption: str) -> dict:
    name = f"{number:09d}"
    return {
        "id": name,
        "text": f"<__dj__image>\n{caption} <|__dj__eoc|>",
        "images": [f"images/{name[:5]}/{name}.jpg"],
    }


def made_image(number: int) -> str:
    """An image as an operator makes one; its name in the rows."""
    shades = numpy.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=numpy.uint8)
    content = encoded(Image.fromarray(shades), "JPEG")
    name = f"synthetic_images/{hashlib.sha256(content).hexdigest()[:32]}.jpg"
    path = Path(DATA, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return name


def word(number: int) -> str:
    return WORDS[number % len(WORDS)]


def letter_of(number: int, turn: int) -> str:
    return "ABCD"[(number - turn) % 4]


def manifest(asset: str) -> None:
    folder = Path("input") / asset
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = {
        path.relative_to(folder).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size}
        for path in files
    }
    write_json(folder / "manifest.json", {"asset": asset, "source": {}, "files": listed})


def assets() -> None:
    """Seed, instructions, evaluation, models: just enough for the checks, which open no image and no
    model."""
    seed = Path("input/world-seed")
    rows = [seed_row(number, f"noise {number}") for number in range(ROWS)]
    for row in rows:
        write_text(seed / row["images"][0], f"image {row['id']}")
    write_jsonl(seed / "mgm_pretrain_stage_1.jsonl", rows)
    question = {"from": "human", "value": "<image>\nWhat is in the photo?"}
    write_json(
        seed / "stage_1.json",
        [{"id": row["id"], "conversations": [question, {"from": "gpt", "value": "noise"}]} for row in rows],
    )
    write_json(
        "input/world-instruction/mgm_instruction_stage_1.json",
        [{"id": str(number)} for number in range(INSTRUCTIONS)],
    )
    evaluation = Path("input/world-evaluation")
    suffix = "Reference OCR token: a, b\nAnswer the question using a single word or phrase."
    asked = [
        {"question_id": f"q{n}", "image": f"q{n}.jpg", "text": f"what is word {n}?\n{suffix}"}
        for n in range(QUESTIONS)
    ]
    write_jsonl(evaluation / "textvqa/llava_textvqa_val_v051_ocr.jsonl", asked)
    humans = [
        {"image_id": f"q{n}", "question": f"What is word {n}?", "answers": [word(n)] * 10}
        for n in range(QUESTIONS)
    ]
    write_json(evaluation / "textvqa/TextVQA_0.5.1_val.json", {"data": humans})
    table = [
        {"index": turn * mmbench.ROTATION + n, "question": f"which {n}?", "hint": None}
        | {letter: f"option {(place + turn) % 4}" for place, letter in enumerate("ABCD")}
        | {
            "answer": letter_of(n, turn),
            "category": "kind",
            "image": base64.b64encode(f"image {n}".encode()).decode(),
        }
        for n in range(QUESTIONS)
        for turn in range(4)
    ]
    (evaluation / "mmbench").mkdir()
    pandas.DataFrame(table).to_csv(evaluation / "mmbench/mmbench_dev_20230712.tsv", sep="\t", index=False)
    Path("input/world-gemma").mkdir()
    save_file(BASE, "input/world-gemma/model.safetensors")
    for name in ("clip", "convnext", "captioner"):
        write_text(f"input/world-{name}/model.safetensors", f"weights of {name}")
    for folder in sorted(Path("input").iterdir()):
        manifest(folder.name)


def compared(folder: str = DATA) -> dict:
    """The rows against the benchmarks."""
    evaluation = Path("input/world-evaluation")
    questions = evaluation / "textvqa/llava_textvqa_val_v051_ocr.jsonl"
    files = questions, evaluation / "textvqa/train_images", questions.with_name("TextVQA_0.5.1_val.json")
    table = evaluation / "mmbench/mmbench_dev_20230712.tsv"
    evaluated = {
        "textvqa": dict(zip(("questions", "images", "annotations"), files, strict=True)),
        "mmbench": {"table": table},
    }
    return contamination(Path(f"{folder}/processed_data.jsonl"), Path("input/world-seed"), evaluated)


def answer(path: Path, questions: list, texts: list[str], digest: str, model: str) -> None:
    path.parent.mkdir(parents=True)
    pairs = enumerate(zip(questions, texts, strict=True))
    lines = [
        answer_line(question, text, answer_id(digest, place, question), model)
        for place, (question, text) in pairs
    ]
    path.write_bytes(b"".join(lines))


def agreement(folder: str, benchmark: str, answers: Path) -> dict:
    """What the score says of answers and image-swap control."""
    files = answers, Path(folder) / benchmark / control.FILE
    rows, again = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    return {"texts": control.texts_sha256(rows), "control": control.agreement(rows, again)}


def torch_bin(path: str, tensors: dict[str, numpy.ndarray]) -> None:
    """A file in torch.save's format (protocol 2), written without torch: float32, one storage a tensor."""
    pickled = b"\x80\x02}("
    for number, (name, tensor) in enumerate(tensors.items()):
        shape = b"(" + b"".join(b"K" + bytes([side]) for side in tensor.shape) + b"t"
        strides = (
            b"(" + b"".join(b"K" + bytes([stride // tensor.itemsize]) for stride in tensor.strides) + b"t"
        )
        storage = (
            b"("
            + text_of("storage")
            + b"ctorch\nFloatStorage\n"
            + text_of(str(number))
            + text_of("cpu")
            + b"K"
            + bytes([tensor.size])
        )
        pickled += (
            text_of(name)
            + b"ctorch._utils\n_rebuild_tensor_v2\n("
            + storage
            + b"tQK\x00"
            + shape
            + strides
            + b"\x89ccollections\n"
        )
        pickled += b"OrderedDict\n)RtR"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        members = {"data.pkl": pickled + b"u.", "byteorder": b"little", "version": b"3\n"}
        members |= {
            f"data/{number}": tensor.astype(numpy.float32).tobytes()
            for number, tensor in enumerate(tensors.values())
        }
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)


def text_of(text: str) -> bytes:
    """BINUNICODE."""
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def tensors(shard: str) -> int:
    """How many a file holds, by its header."""
    with Path(shard).open("rb") as handle:
        return len(json.loads(handle.read(int.from_bytes(handle.read(8), "little"))))


def edit(path: Path, change) -> None:
    """Rewrite a JSON file through `change`, which alters the value in place."""
    value = json.loads(path.read_text())
    change(value)
    write_json(path, value)


def rehash(run: str = "synth") -> None:
    """Let every record of a run name the files as they are now."""
    entry = Entry(Path(), run, load_rules("embedded"))
    for file in entry.record_files.values():

        def change(record: dict) -> None:
            for item in [*record["inputs"].values(), *record["outputs"].values()]:
                if Path(item["path"]).is_file():
                    item.update(sha256=sha256(item["path"]), bytes=Path(item["path"]).stat().st_size)

        edit(Path(file), change)


def say_steps(folder: str, process: list[dict]) -> None:
    """Let a record of data say that these steps ran and removed nothing."""

    def change(record: dict) -> None:
        rows = record["results"]["read"]
        names = ["read", *(name for step in process for name in step), "result"]
        record["settings"]["process"] = process
        record["results"]["funnel"] = [{"operator": name, "in": rows, "out": rows} for name in names]

    edit(Path(folder, "run.json"), change)


class EntryTree:
    """How to build an entry `synth` at a scale, in a division, with `synthetic` rows whose image the recipe
    made, beside the run `baseline` that it is compared with; its paths are relative to the tree's root.

    name: of the run that the methods make; rules: those that the configuration names.
    """

    def __init__(
        self,
        scale: str = "tiny",
        division: str = "open",
        synthetic: int = 0,
        name: str = "synth",
        rules: str | None = None,
    ):
        self.scale, self.division, self.synthetic, self.name = load(scale), division, synthetic, name
        self.recipe = {"synth": "recaption", "baseline": "baseline"}[name]
        self.removed = 4 if name == "synth" else 0
        self.rows = ROWS - self.removed + synthetic
        self.size = self.scale.size
        self.rules = rules or {"Tiny": "embedded", "2B": "online_2024"}[self.size]
        self.folder = f"output/processed_data/{name}"
        self.pretrain = f"output/training_dirs/MGM-{self.size}-Pretrain-{name}"
        self.finetune = f"output/training_dirs/MGM-{self.size}-Finetune-{name}"
        self.shard = f"{self.finetune}/{'merged/' * (division == 'open')}model-00001-of-00001.safetensors"

    @property
    def process(self) -> list[dict]:
        """The recipe's steps."""
        captions = {"batched_captioning_mapper": {"hf_img2seq": "{captioner}"}}
        similar = {REMOVES: {"hf_clip": "{clip}", "min_score": 0.2}}
        steps = [
            captions,
            similar,
            *([{"image_augmentation_mapper": {"crop": 0.9}}] if self.synthetic else []),
        ]
        return steps if self.name == "synth" else []

    @property
    def config(self) -> Config:
        return Config(
            scale=self.scale.name,
            finetune={"division": self.division, "lora_rank": 1, "lora_alpha": 2},
            compare={"seed": 1, "resamples": 100},
            submit={"rules": self.rules},
        )

    def results(self, experiment: str = "synth") -> str:
        return f"output/eval_results/MGM-{self.size}-Finetune-{experiment}"

    def answers(self, experiment: str = "synth") -> str:
        return (
            f"{self.results(experiment)}/mmbench/answers/{SPLIT}/MGM-{self.size}-Finetune-{experiment}.jsonl"
        )

    def upload(self, experiment: str = "synth") -> str:
        folder = f"{self.results(experiment)}/mmbench/answers_upload/{SPLIT}"
        return f"{folder}/MGM-{self.size}-Finetune-{experiment}.xlsx"

    def build(self, root: Path) -> None:
        """Fill `root` with a valid entry `synth` and the results of an experiment `baseline` to compare it
        with."""
        before = Path.cwd()
        root.mkdir(parents=True)
        os.chdir(root)  # records hold paths relative to the working directory
        try:
            (root / "solution" / "recipes").mkdir(parents=True)
            for name in ("readme", "requirements.txt"):
                shutil.copyfile(REPOSITORY / "solution" / name, root / "solution" / name)
            write_json("solution/recipes/recaption.yaml", {"process": self.process})  # JSON is YAML
            write_text("solution/recipes/baseline.yaml", "process: []\n")
            assets()
            for tree, right in ((self, 0.7), (self.run("baseline"), 0.3)):
                tree.data()
                tree.train()
                tree.evaluate(tree.name, right)
                write_json(f"{tree.folder}/contamination.json", compared(tree.folder))
            shutil.copyfile(REPOSITORY / "CITATION.cff", "CITATION.cff")
            sources.write(self.config.model_dump_json(), Path("output/reports"))
            self.comparison()
            self.documents()
        finally:
            os.chdir(before)

    def comparison(self) -> None:
        """compare.json of the scores."""
        results, config = [Path(self.results(name)) for name in ("baseline", "synth")], self.config.compare
        compared = compare(results, config.seed, config.resamples, seeds=self.config.seeds)
        write_json("output/reports/compare.json", compared)

    def documents(self) -> None:
        """What is made of records and of compare.json."""
        experiments = [Experiment.find(Path(), name) for name in ("baseline", "synth")]
        config = Config.model_validate(read_yaml("output/reports/config.yaml"))
        write_text("output/reports/compare.md", markdown(read_json("output/reports/compare.json")))
        draw_losses_of_all(experiments, Path("output/reports/losses.svg"))
        text = page(config.report.title, experiments, "losses.svg", listed(experiments[0]))
        write_text("output/reports/report.md", text)
        write_text("output/train.sh", script(experiments[1]))
        entry = Entry(Path(), "synth", load_rules(self.rules))
        write_json("output/ro-crate-metadata.json", document(entry))

    def run(self, name: str) -> "EntryTree":
        """Another run of the same tree."""
        return EntryTree(self.scale.name, self.division, name=name, rules=self.rules)

    def data(self) -> None:
        said = "a {} sign" if self.name == "synth" else "noise {}"
        about = word if self.name == "synth" else str
        kept = [seed_row(number, said.format(about(number))) for number in range(ROWS - self.removed)]
        kept += [row | {"images": [made_image(number)]} for number, row in enumerate(kept[: self.synthetic])]
        write_jsonl(f"{self.folder}/processed_data.jsonl", kept)
        removed = [
            {"line": n + 1, "id": f"{n:09d}", "operator": REMOVES, "reason": "below"}
            for n in range(ROWS - self.removed, ROWS)
        ]
        write_jsonl(f"{self.folder}/removed.jsonl", removed)
        folder = Path("input/world-captioner")
        listing = "".join(f"{path.name} {sha256(path)}\n" for path in sorted(folder.iterdir()))
        captioner = {
            "path": "input/world-captioner",
            "sha256": hashlib.sha256(listing.encode()).hexdigest(),
        }
        write_record(
            f"{self.folder}/run.json",
            "synthesize",
            inputs={
                "recipe": f"solution/recipes/{self.recipe}.yaml",
                "samples": "input/world-seed/mgm_pretrain_stage_1.jsonl",
            },
            outputs={
                "processed_data": f"{self.folder}/processed_data.jsonl",
                "removed": f"{self.folder}/removed.jsonl",
            },
            settings={
                "recipe": self.recipe,
                "process": self.process,
                "models": {"captioner": captioner} if self.name == "synth" else {},
                "images": {"path": "input/world-seed", "sha256": "0" * 64},
            },
            results={
                "read": ROWS,
                "kept": ROWS - self.removed,
                "removed": self.removed,
                "quarantined": 0,
                "rows_written": self.rows,
                "captions_changed": self.rows if self.name == "synth" else 0,
                "removed_by": {REMOVES: self.removed} if self.removed else {},
                "funnel": self.funnel(),
            },
        )
        write_json(
            f"{self.folder}/check.json",
            {"rows": self.rows, "images": self.rows, "problems": [], "set_aside": [], "outside": []},
        )
        convert(
            Path(f"{self.folder}/processed_data.jsonl"),
            Path("input/world-seed/stage_1.json"),
            Path(f"{self.folder}/llava.json"),
            self.scale.cap,
            self.scale.question_tokens,
        )

    def funnel(self) -> list[dict]:
        """Rows before and after each step; the recipe's filter removes, its last step makes rows."""
        names, count, funnel = [name for step in self.process for name in step], ROWS, []
        for name in ("read", *names, "result"):
            after = count - self.removed * (name == REMOVES)
            after += self.synthetic * (name == "image_augmentation_mapper")
            funnel.append({"operator": name, "in": count, "out": after})
            count = after
        return funnel

    def stage(
        self, name: str, numbers, rows: int, folder: str, inputs: dict, outputs: list[str], settings: dict
    ) -> None:
        """A training log and its record."""
        accumulation = numbers.global_batch // numbers.micro_batch
        steps = max(1, math.ceil(rows / numbers.micro_batch) // accumulation)
        losses = [round(6 - 2 * step / steps, 4) for step in range(1, steps + 1)]
        lines = [
            {"loss": loss, "grad_norm": 1.0, "learning_rate": rate, "epoch": round(step / steps, 2)}
            for step, (loss, rate) in enumerate(zip(losses, schedule(numbers, steps), strict=True), start=1)
        ]
        mean = round(sum(losses) / steps, 4)
        lines.append({"train_loss": mean, "train_samples": rows, "train_steps": steps, "epoch": 1.0})
        logs = ["pretrain.log"] if name == "pretrain" else ["finetune.log", "finetuning.log"]
        for log in logs:
            write_text(f"{folder}/{log}", "".join(f"{line}\n" for line in lines))
        write_record(
            f"{folder}/run.json",
            name,
            inputs={
                **inputs,
                **{
                    part: f"input/world-{PARTS[part]}/model.safetensors"
                    for part in ("llm", "clip", "convnext")
                },
            },
            outputs={file: f"{folder}/{file}" for file in [*outputs, *logs]},
            settings={
                "scale": self.scale.name,
                "seed": 1024,
                "micro_batch": numbers.micro_batch,
                "accumulation": accumulation,
                "global_batch": numbers.global_batch,
                "learning_rate": numbers.learning_rate,
                "weight_decay": numbers.weight_decay,
                "max_grad_norm": numbers.max_grad_norm,
                **settings,
                "command": ["python", "-m", "toolkit", "train", name, *self.flags(inputs, settings, folder)],
            },
            results={
                "rows": rows,
                "steps": steps,
                "first_loss": losses[0],
                "last_loss": losses[-1],
                "mean_loss": mean,
            },
        )

    def flags(self, inputs: dict, settings: dict, folder: str) -> list[str]:
        """The options of a training's command."""
        flags = {**inputs, **{part: f"input/world-{name}" for part, name in PARTS.items()}}
        flags |= {"scale": self.scale.name, "seed": 1024, "output": folder}
        flags |= {key: value for key, value in settings.items() if key != "lora"}
        for key, value in settings.get("lora", {}).items():
            flags["base" if key == "base" else f"lora-{key}"] = value
        return [part for key, value in flags.items() for part in (f"--{key}", str(value))]

    def train(self) -> None:
        torch_bin(f"{self.pretrain}/mm_projector.bin", {PROJECTOR: numpy.zeros(2)})
        write_json(f"{self.pretrain}/config.json", {})
        inputs = {"samples": f"{self.folder}/llava.json"}
        self.stage(
            "pretrain",
            self.scale.pretrain,
            self.rows,
            self.pretrain,
            inputs,
            ["mm_projector.bin", "config.json"],
            {},
        )
        adapter = (
            ["adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin"]
            if self.division == "open"
            else []
        )
        write_json(f"{self.finetune}/config.json", {})
        if adapter:
            write_json(f"{self.finetune}/adapter_config.json", {"r": 1, "lora_alpha": 2, "lora_dropout": 0.1})
            halves = {
                f"base_model.model.{LAYER}.lora_{half}.weight": value for half, value in ADAPTER.items()
            }
            save_file(halves, f"{self.finetune}/adapter_model.safetensors")
            torch_bin(
                f"{self.finetune}/non_lora_trainables.bin", {f"base_model.model.{PROJECTOR}": numpy.ones(2)}
            )
        Path(self.shard).parent.mkdir(exist_ok=True)
        save_file(merged(), self.shard)
        write_text(Path(self.shard).with_name("tokenizer.json"), "{}")
        inputs = {
            "samples": "input/world-instruction/mgm_instruction_stage_1.json",
            "projector": f"{self.pretrain}/mm_projector.bin",
        }
        outputs = [*adapter, "config.json"] if adapter else ["config.json", Path(self.shard).name]
        self.stage(
            "finetune",
            self.scale.finetune[self.division],
            INSTRUCTIONS,
            self.finetune,
            inputs,
            outputs,
            {"division": self.division} | ({"lora": LORA} if adapter else {}),
        )
        self.merge_record()

    def merge_record(self, **results) -> None:
        """merge.json for the shard that is there, with other `results` where given."""
        adapter = ("adapter_model.safetensors", "non_lora_trainables.bin") if self.division == "open" else ()
        proof = {
            "checkpoint": "merged" if adapter else ".",
            "division": self.division,
            "max_logit_difference": 1e-6 if adapter else None,
            "tolerance": 1e-4,
            "tensors_total": tensors(self.shard),
            "tensors_changed": 1,
            "lora_tensors_left": 0,
        }
        write_record(
            f"{self.finetune}/merge.json",
            "merge",
            inputs={
                "llm": "input/world-gemma/model.safetensors",
                "finetune": f"{self.finetune}/run.json",
                **{name: f"{self.finetune}/{name}" for name in adapter},
            },
            outputs={Path(self.shard).name: self.shard},
            settings={"command": ["python", "-m", "toolkit", "train", "merge", "--finetuned", self.finetune]},
            results=proof | results,
        )

    def evaluate(self, experiment: str, right: float) -> None:
        """Answers of which about the share `right` is right, scores, upload table and records, in the formats
        of toolkit.evaluate."""
        folder, model = self.results(experiment), f"MGM-{self.size}-Finetune-{experiment}"
        digest = sha256(f"{self.finetune}/merge.json")
        questions = Path("input/world-evaluation/textvqa/llava_textvqa_val_v051_ocr.jsonl")
        answers = Path(folder) / "textvqa/bm1.jsonl"
        texts = [word(n if n < right * QUESTIONS else n + 1) for n in range(QUESTIONS)]
        answer(answers, textvqa.load_questions(questions), texts, digest, model)
        self.control("textvqa", folder, answers, ["nothing"] * QUESTIONS)

        table = Path("input/world-evaluation/mmbench/mmbench_dev_20230712.tsv")
        answers = Path(self.answers(experiment))
        loaded = mmbench.load_table(table)
        texts = [
            letter_of(n if n < right * QUESTIONS else n + 1, turn)
            for n in range(QUESTIONS)
            for turn in range(4)
        ]
        answer(answers, mmbench.questions(loaded, PROMPT), texts, digest, model)
        self.control(
            "mmbench",
            folder,
            answers,
            ["ABCD"[(n + turn) % 4] for n in range(QUESTIONS) for turn in range(4)],
        )
        self.score(experiment)

    def score(self, experiment: str) -> None:
        """Upload table, scores and records of the answers that are there."""
        folder, evaluation = self.results(experiment), Path("input/world-evaluation")
        answers = Path(folder) / "textvqa/bm1.jsonl"
        inputs = {
            "questions": evaluation / "textvqa/llava_textvqa_val_v051_ocr.jsonl",
            "annotations": evaluation / "textvqa/TextVQA_0.5.1_val.json",
        }
        result = textvqa.score(inputs["annotations"], answers) | agreement(folder, "textvqa", answers)
        outputs = {"answers": answers, "control": Path(folder) / "textvqa/control.jsonl"}
        self.record("textvqa", folder, result, inputs, outputs, {})

        table = evaluation / "mmbench/mmbench_dev_20230712.tsv"
        answers, upload = Path(self.answers(experiment)), Path(self.upload(experiment))
        upload.parent.mkdir(parents=True, exist_ok=True)
        loaded = mmbench.load_table(table)
        texts, _ = mmbench.predictions(answers, loaded["index"].tolist(), table)
        write_upload(upload, loaded, texts)
        result = mmbench.score(table, answers) | agreement(folder, "mmbench", answers)
        outputs = {"answers": answers, "upload": upload, "control": Path(folder) / "mmbench/control.jsonl"}
        self.record("mmbench", folder, result, {"table": table}, outputs, {"prompt": PROMPT})

    def control(self, benchmark: str, folder: str, answers: Path, texts: list[str]) -> None:
        """The answers re-evaluated with other images. texts: of all questions."""
        rows = [json.loads(line) for line in answers.read_text().splitlines()]
        again = [rows[place] | {"text": texts[place]} for place in control.places(len(rows))]
        write_jsonl(Path(folder) / benchmark / control.FILE, again)

    def record(
        self, benchmark: str, folder: str, result: dict, inputs: dict, outputs: dict, extra: dict
    ) -> None:
        score = Path(folder) / benchmark / "score.json"
        settings = {
            "max_new_tokens": BENCHMARKS[benchmark].max_new_tokens,
            "decoding": "greedy",
            "shuffle_images": None,
            "batch_size": 16,
            **extra,
        }
        model, digest = Path(folder).name, sha256(f"{self.finetune}/merge.json")
        files = {name: sha256(path) for name, path in outputs.items()}
        write_json(score, score_file(benchmark, result, model, digest, files, settings))
        write_record(
            score.with_name("run.json"),
            f"evaluate {benchmark}",
            inputs={"merge": f"{self.finetune}/merge.json", **inputs},
            outputs={**outputs, "score": score},
            settings=settings,
            results={key: value for key, value in result.items() if key != "scores"},
        )
