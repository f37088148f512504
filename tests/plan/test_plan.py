"""What `plan` predicts: work that is counted, seconds that follow from rates by hand, what fits and what does
not."""

import json
import re
from dataclasses import replace
from pathlib import Path

import forks
import pytest

from toolkit import config, scales
from toolkit.__main__ import main
from toolkit.contest.records import write_record
from toolkit.doctor import facts
from toolkit.files import sha256
from toolkit.plan import cards, measure, predict, ran, show, work
from toolkit.train.memory import GIB

ROOT = Path(__file__).parents[2]
CONTEST = config.read(ROOT / "workflow/config/baseline_10k.yaml").model_dump() | {
    "finetune": {"division": "closed"}
}
RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text())
# what submit.zip does not need
UNPLANNED = {"all", "analyze", "compare_data", "overview", "strategies", "training_figure"}
UNPLANNED |= {"search_scores", "trial", "select", "search_report"}


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A project's folder without assets and results."""
    (tmp_path / "solution").mkdir()
    for name in ("recipes", "search"):
        (tmp_path / "solution" / name).symlink_to(ROOT / "solution" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(facts, "gpus", lambda: ())


def contest(**changes) -> config.Config:
    """The contest's small configuration with other values."""
    return config.load(CONTEST | changes, "test")


def outlook(settings: config.Config, card: str | cards.Card = "h100", gpus: int = 1) -> predict.Outlook:
    chosen = cards.card(card) if isinstance(card, str) else card
    return predict.predict(settings, work.of(settings), chosen, gpus)


def seconds(planned: predict.Outlook, rule: str) -> list[float]:
    return [each.seconds for each in planned.predictions if each.job.rule == rule]


def job(planned: work.Work, name: str) -> work.Job:
    return next(job for job in planned.jobs if job.name == name)


def jobs(settings: config.Config) -> dict[str, work.Job]:
    return {job.name: job for job in work.of(settings).jobs}


# --- seconds


def test_seconds_by_hand():
    """39 steps of 256 and 93 of 128, 5,000 and 4,377 questions and 100 of each again."""
    planned = outlook(contest())
    assert seconds(planned, "pretrain") == pytest.approx([68 + 39 * 256 / 75.3] * 2)
    assert seconds(planned, "finetune") == pytest.approx([62 + 93 * 128 / 28.8] * 2)
    assert seconds(planned, "eval_textvqa") == pytest.approx([41 + 5100 / 99.4] * 2)
    assert seconds(planned, "eval_mmbench") == pytest.approx([41 + 4477 / 99.4] * 2)
    assert seconds(planned, "score") == pytest.approx([2.3, 45 + 10000 / 6557 + 10000 / 382 + 10000 / 961])
    assert planned.seconds == sum(each.seconds or 0 for each in planned.predictions)


def test_the_rows_of_a_seed_take_memory_of_the_host(monkeypatch):
    def host(rows: int) -> dict[str, int]:
        monkeypatch.setattr(work, "rows", lambda asset: rows)
        return {each.job.rule: each.host for each in outlook(contest()).predictions}

    few, many = host(10_000), host(4_000_000)
    grown = {rule: many[rule] - few[rule] for rule in ("score", "synthesize", "check")}
    assert grown == {"score": 3_990_000 * 1310, "synthesize": 3_990_000 * 1060, "check": 0}
    assert few["synthesize"] == 316_000_000 + 10_000 * 1060


def test_embeddings_take_memory_while_a_selector_compares_them():
    used = outlook(experiments("baseline", "caption_clusters", "cluster_uniform"))
    held = {each.job.name: each.host for each in used.predictions if each.job.rule == "synthesize"}
    more = {name: host - held["synthesize/baseline"] for name, host in held.items()}
    selecting = more["synthesize/cluster-uniform"] - 8 * 768 * 400_000
    assert more["synthesize/caption-clusters"] == selecting + 8 * 384 * 400_000


def test_the_error_is_of_the_rates_that_were_used():
    (first, _), (scaled, _) = (
        [each for each in outlook(contest(), card).predictions if each.job.rule == "pretrain"]
        for card in ("h100", "rtx-4090")
    )
    assert (first.error, scaled.error) == (pytest.approx(0.25), pytest.approx(0.4))
    least, most = outlook(contest()).bounds
    assert least < outlook(contest()).seconds < most


def test_a_card_that_was_not_measured_goes_by_its_data_sheet():
    """LoRA on a 4090 D, which has 0.147 of the tensor rate of an H100: 2.8 samples/s against 16.9 of the
    official code (docs/plan.md), a ratio of 0.17."""
    assert cards.card("rtx-4090").rates["lora"].value == pytest.approx(41.4 * 165.2 / 989.4)
    assert cards.card("a100-80").rates["full"].value == pytest.approx(28.8 * 312 / 989.4)
    assert cards.card("rtx-4090").rates["scored"] == cards.card("h100").rates["scored"]


def test_further_gpus_train_and_answer_no_faster():
    alone, four = outlook(contest()), outlook(contest(), gpus=4)
    assert seconds(four, "pretrain")[0] == pytest.approx(68 + 39 * 256 / (75.3 * (1 + 3 * 0.95)))
    assert seconds(four, "eval_textvqa") == seconds(alone, "eval_textvqa")


def test_the_embedded_world_within_a_factor_of_two_of_a_run():
    settings = config.load({}, "test")
    pairs = show.compared(outlook(settings, "cpu"), RECORDED)
    assert sum(runs for _, runs, *_ in pairs) == len(RECORDED) == len(work.of(settings).jobs)
    for rule, _, predicted, took in pairs:
        assert took < 10 or took / 2 < predicted < took * 2, rule
    total = [sum(column) for column in zip(*(pair[2:] for pair in pairs), strict=True)]
    assert total[1] / 2 < total[0] < total[1] * 2


def test_measured_rates_take_the_place_of_the_cards():
    card = predict.measured(cards.card("h100"), {"pretrain": 150.6, "lora": 50.0}, 1, 0.15)
    assert card.rates["lora"] == cards.Rate(50.0, 0.15)
    assert card.rates["captions"].value == pytest.approx(2 * 382)  # as pretraining here to pretraining there
    assert card.rates["captions"].error == 0.25
    assert card.rates["scored"] == cards.card("h100").rates["scored"]
    of_two = predict.measured(cards.card("h100"), {"pretrain": 195.0, "lora": 97.5}, 2, 0.15)
    assert (of_two.rates["pretrain"].value, of_two.rates["lora"].value) == (
        pytest.approx(100),
        pytest.approx(50),
    )


# --- work


def test_every_rule_of_the_entry_is_planned():
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "workflow/rules").glob("*.smk"))
    rules = set(re.findall(r"^rule (\w+):", text, flags=re.MULTILINE)) - UNPLANNED
    settings = config.load({}, "test")
    assert {job.rule for job in work.of(settings).jobs} == rules | {
        f"eval_{name}" for name in settings.benchmarks
    }


@pytest.mark.parametrize("rows", [1, 255, 9_999, 10_000, 12_000, 200_000])
@pytest.mark.parametrize("scale", ["tiny", "baseline_10k", "track_200k"])
def test_steps_are_the_trainers(scale, rows):
    from toolkit.train.trainer import Plan

    numbers = scales.load(scale)
    for stage in (numbers.pretrain, *numbers.finetune.values()):
        assert work.steps(stage, rows) == Plan.of(stage, rows, seed=0).steps


def test_what_the_world_draws_is_counted(capsys):
    from toolkit.assets import entry
    from toolkit.benchmarks import BENCHMARKS

    asset = "rehearsal-evaluation"
    built = ["world", "build", "--part", "evaluation", "--seed", "1", "--rows", "64"]
    assert main([*built, "--output", f"input/{asset}"]) == 0
    expected = {name: work.questions(asset, name) for name in ("textvqa", "mmbench")}
    Path("input", asset, "manifest.json").write_text('{"files": {}}')
    assert (
        {name: work.questions(asset, name) for name in expected}
        == expected
        == {"textvqa": 64, "mmbench": 204}
    )
    assert set(expected) <= set(BENCHMARKS) and entry(asset).rows == 64
    assert (work.rows("world-seed"), work.rows("rehearsal-seed")) == (6000, 2048)


def fetched(asset: str, files: dict[str, str]) -> None:
    folder = Path("input", asset)
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "manifest.json").write_text(
        json.dumps({"files": {name: {"bytes": len(text)} for name, text in files.items()}})
    )


def test_an_asset_of_before_a_benchmark_is_counted_as_it_will_be():
    """The world's evaluation of an older commit, and the contest's, which has no POPE."""
    fetched("world-evaluation", {})
    assert work.questions("world-evaluation", "pope") == 600
    fetched("eval_stage_1", {})
    with pytest.raises(config.UserError, match="how many questions of pope are in eval_stage_1 is not known"):
        work.questions("eval_stage_1", "pope")


def test_files_at_hand_are_counted():
    assert (work.rows("pretrain_stage_1_10k"), work.size("finetuning_stage_1_12k")) == (10_000, None)
    fetched("pretrain_stage_1_10k", {"mgm_pretrain_stage_1_10k.jsonl": '{"id": 1}\n{"id": 2}\n\n{"id": 3}\n'})
    fetched("finetuning_stage_1_12k", {"mgm_instruction_stage_1_12k.json": '[{"id": 1}, {"id": 2}]'})
    assert (work.rows("pretrain_stage_1_10k"), work.rows("finetuning_stage_1_12k")) == (3, 2)
    assert work.size("finetuning_stage_1_12k") == 22


def synthesized(recipe: str, seed: str) -> None:
    """The record of a run that wrote 5,120 rows of the experiment synth."""
    record, samples = Path("output/processed_data/synth/run.json"), f"input/{seed}/samples.jsonl"
    made_by = {"path": recipe, "sha256": sha256(recipe), "bytes": Path(recipe).stat().st_size}
    inputs = {"recipe": made_by, "samples": {"path": samples, "sha256": "0" * 64, "bytes": 1}}
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(
        json.dumps(
            {
                **{"record": 2, "stage": "synthesize", "inputs": inputs, "outputs": {}, "settings": {}},
                **{"results": {"rows_written": 5120}, "versions": {}, "device": "cpu", "driver": None},
                **{"code": "0" * 64, "lock": None, "image": None},
            }
        )
    )


@pytest.mark.parametrize(("recipe", "seed"), [("recaption", "world-seed"), ("basic", "pretrain_stage_1_10k")])
def test_rows_that_another_run_kept_say_nothing(recipe, seed):
    """`output` may be that of the embedded world, or of a recipe that was edited since."""
    synthesized(f"solution/recipes/{recipe}.yaml", seed)
    assert jobs(contest())["pretrain/MGM-2B-Pretrain-synth"].text == "39 steps of 256"
    assert work.of(contest()).assumed


def test_rows_that_a_recipe_kept_are_known_once_it_ran():
    assert jobs(contest())["pretrain/MGM-2B-Pretrain-synth"].text == "39 steps of 256"
    synthesized("solution/recipes/recaption.yaml", "pretrain_stage_1_10k")
    planned = work.of(contest())
    assert job(planned, "pretrain/MGM-2B-Pretrain-synth").text == "20 steps of 256"
    assert job(planned, "pretrain/MGM-2B-Pretrain-baseline").text == "39 steps of 256"
    assert not planned.assumed


def test_a_seed_of_a_configuration_trains_every_experiment():
    planned = jobs(contest(seeds=[1024, 7]))
    trained = [name for name in planned if name.startswith("pretrain/")]
    assert sorted(trained) == sorted(
        f"pretrain/MGM-2B-Pretrain-{run}" for run in ("baseline", "baseline-seed7", "synth", "synth-seed7")
    )
    assert len([name for name in planned if name.startswith("score/")]) == 2


def experiments(*recipes: str) -> config.Config:
    return contest(
        assets=CONTEST["assets"] | {"seed": "pretrain_stage_1"},
        experiments={name.replace("_", "-"): {"recipe": name} for name in recipes},
        compare={"baseline": recipes[0].replace("_", "-")},
        submit={"experiment": recipes[0].replace("_", "-"), "rules": "online_2024"},
    )


def test_captions_of_one_model_are_made_once():
    planned = jobs(experiments("baseline", "basic", "blip2_30k"))
    assert planned["score/basic"].amounts["captions"] == 400_000
    assert "captions" not in planned["score/blip2-30k"].amounts
    assert planned["score/basic"].amounts["images"] == 400_000 and not planned["score/basic"].unknown


def test_a_classifier_out_of_a_package_counts_as_no_pass_of_the_gpu():
    settings = experiments("caption_clusters", "baseline")
    assert "image_nsfw_filter" not in jobs(settings)["score/caption-clusters"].unknown
    packaged = settings.model_copy(update={"assets": settings.assets.model_copy(update={"nsfw": "opennsfw"})})
    assert "image_nsfw_filter" in jobs(packaged)["score/caption-clusters"].unknown


def test_reading_text_is_work_of_the_processor():
    settings = experiments("image_captioning", "ocr_synthesis")
    planned = outlook(settings)
    by_name = {each.job.name: each for each in planned.predictions}
    read = by_name["score/ocr-synthesis"]
    assert read.job.amounts["read"] == 400_000 and not read.job.unknown
    assert read.seconds > 400_000 / cards.table().processor.rates["read"]
    assert any("score: 10.5 h of it reads text in images, on two cores" in note for note in planned.notes)
    assert not any(
        "reads text" in note for note in outlook(experiments("image_captioning", "baseline")).notes
    )


def test_a_recipe_that_draws_rows_trains_on_as_many():
    planned = jobs(experiments("baseline", "blip2_30k", "random", "grounding_itm"))
    assert planned["pretrain/MGM-2B-Pretrain-blip2-30k"].text == "117 steps of 256"
    assert planned["pretrain/MGM-2B-Pretrain-baseline"].text == "781 steps of 256"  # the cap
    assert planned["check/random"].text == "200,000 rows"
    assert planned["check/grounding-itm"].text == "800,000 rows"  # each twice
    # for rows that are not drawn nothing is computed
    assert planned["score/blip2-30k"].amounts["captions"] == 30_000


def test_an_asset_of_ones_own_is_adopted_not_fetched(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(
        config.UserError, match="how many rows own-mgm-2b has is not known: run `assets adopt`"
    ):
        work.rows("own-mgm-2b")
    jobs = work.of(config.read("workflow/config/finals.yaml")).jobs
    downloads = {job.name for job in jobs if job.rule == "download"}
    assert "download/clip-vit-large-patch14-336" in downloads and "download/own-mgm-2b" not in downloads


def test_an_asset_that_nobody_knows_must_be_there():
    with pytest.raises(config.UserError, match="how many rows gpt2 has is not known: fetch it, then plan"):
        work.rows("gpt2")
    with pytest.raises(config.UserError, match="how many questions of pope are in eval_stage_1 is not known"):
        work.questions("eval_stage_1", "pope")


# --- memory


def test_full_finetuning_on_24_gb_says_what_to_take_instead():
    note = outlook(contest(), "rtx-4090").notes[-1]
    assert note.startswith("finetune just fits") and "host memory" in note
    assert "finetune.division: open takes" in note
    for planned in (
        outlook(contest(), "h100"),
        outlook(contest(finetune={"division": "open"}), "rtx-4090"),
    ):
        assert not planned.problems and "just fits" not in str(planned.notes)
    assert not outlook(contest(), "rtx-4090").problems


def test_what_does_not_fit_is_said():
    small = replace(cards.card("rtx-4090"), memory=16 * GIB)
    (problem,) = outlook(contest(), small).problems
    assert (
        problem.startswith("finetune does not fit: it takes at least")
        and "finetune.division: open takes" in problem
    )
    tiny = replace(small, memory=4 * GIB)
    problems = outlook(contest(), tiny).problems
    assert {problem.split()[0] for problem in problems} >= {"pretrain", "finetune"}
    assert all("take a larger card" in problem for problem in problems)


def test_checkpoints_count_once_and_only_where_they_are_written():
    def disk(rows: int) -> int:
        fetched("finetuning_stage_1_12k", {"mgm_instruction_stage_1_12k.json": json.dumps([0] * rows)})
        planned = [each for each in outlook(contest()).predictions if each.job.rule == "finetune"]
        for path in Path("input/finetuning_stage_1_12k").iterdir():
            path.unlink()
        Path("input/finetuning_stage_1_12k").rmdir()
        return predict.disk(planned)

    few, many = disk(128 * 100), disk(128 * 101)
    assert few / 1e9 == pytest.approx(14.2, abs=0.1) and many - few == 2 * 12 * (3_019_166_144 - 499_734_720)


# --- the command


def test_every_shipped_configuration_has_its_lines():
    """docs/configuration.md says what the plan prints."""
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `workflow/config/(\w+).yaml` \| `([\w-]+)` \| (.+) \| ([\d.]+) GB \|$", text, flags=re.MULTILINE
    )
    assert {name for name, *_ in rows} == {path.stem for path in (ROOT / "workflow/config").glob("*.yaml")}
    for name, card, span, disk in rows:
        planned = outlook(config.read(ROOT / f"workflow/config/{name}.yaml"), card)
        assert (name, show.span(planned), f"{planned.disk / 1e9:.1f}") == (name, span, disk)


def test_the_table(capsys):
    assert (
        main(["plan", "--config", str(ROOT / "workflow/config/baseline_10k.yaml"), "--card", "rtx-4090"]) == 0
    )
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if "finetune " in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]][:3] == ["finetune", "2", "93 steps of 128"]
    assert "the whole: 2.0 h (" in out
    assert "synth: how many rows a recipe keeps is not known before it ran" in out
    assert "the sizes of eval_stage_1, finetuning_stage_1_12k are not known" in out


@pytest.mark.parametrize(
    ("name", "flags"),
    [("baseline_10k", ["--card", "h100"]), ("baseline_10k", ["--card", "rtx-4090"]), ("tiny", [])],
)
def test_the_documentation_shows_what_is_printed(name, flags, capsys):
    (Path.cwd() / "workflow").symlink_to(ROOT / "workflow")
    assert main(["plan", "--config", f"workflow/config/{name}.yaml", *flags]) == 0
    text = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert text in (ROOT / "docs/plan.md").read_text(encoding="utf-8")


def test_values(capsys):
    assert main(["plan", "--config", str(ROOT / "workflow/config/baseline_10k.yaml"), "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["card"], planned["gpus"]) == ("h100", 1)
    assert any("there is no GPU here" in note for note in planned["notes"])
    assert sum(rule["seconds"] or 0 for rule in planned["rules"]) == pytest.approx(planned["seconds"])
    (tuned,) = (rule for rule in planned["rules"] if rule["rule"] == "finetune")
    assert tuned["runs"] == 2 and 7 * GIB < tuned["gpu_bytes"] < 8 * GIB


def test_predicted_against_actual(capsys, monkeypatch):
    assert main(["plan", "--config", str(ROOT / "workflow/config/tiny.yaml"), "--actual"]) == 1
    assert "run it first" in capsys.readouterr().err
    for name, took in RECORDED.items():
        path = Path("output/benchmarks", f"{name}.tsv")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\th:m:s\n{took}\t0:00:01\n")
    monkeypatch.setattr("toolkit.plan.ran._same_work", lambda config, job: True)
    assert main(["plan", "--config", str(ROOT / "workflow/config/tiny.yaml"), "--actual"]) == 0
    rows = {
        cells[0]: cells[1:]
        for line in capsys.readouterr().out.splitlines()
        if len(cells := [cell.strip() for cell in line.split("│")[1:-1]]) == 5
    }
    assert rows["pretrain"][::2] == ["2", "66"] and rows["all"][::2] == ["34", "311"]


def record(path: str, stage: str, inputs: tuple[str, ...] = (), **settings) -> None:
    for file in inputs:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()
    named = {str(number): file for number, file in enumerate(inputs)}
    write_record(path, stage, inputs=named, outputs={}, settings=settings, results={"rows_written": 3000})


def test_seconds_of_other_work_are_not_compared():
    """The experiment baseline is this configuration's; synth is another's, under the same name."""
    runs = "output/training_dirs/MGM-Tiny-"
    pretrained = {"scale": "tiny", "steps": 375, "global_batch": 8}
    record(f"{runs}Pretrain-baseline/run.json", "pretrain", **pretrained)
    record(f"{runs}Pretrain-synth/run.json", "pretrain", **pretrained | {"steps": 15})
    tuned = {"scale": "tiny", "steps": 125, "global_batch": 8}
    record(f"{runs}Finetune-baseline/run.json", "finetune", **tuned, division="open", lora={"base": "full"})
    record(f"{runs}Finetune-synth/run.json", "finetune", **tuned, division="closed")
    record(f"{runs}Finetune-baseline/merge.json", "merge", scale="tiny", division="open")
    record(f"{runs}Finetune-synth/merge.json", "merge", scale="tiny", division="closed")
    answered = "output/eval_results/MGM-Tiny-Finetune-"
    record(f"{answered}baseline/textvqa/run.json", "evaluate textvqa", ("input/world-evaluation/q.jsonl",))
    record(f"{answered}synth/textvqa/run.json", "evaluate textvqa", ("input/world-development/q.jsonl",))
    for name, seed in (("baseline", "world-seed"), ("synth", "mine")):
        record(f"output/processed_data/{name}/run.json", "synthesize", (f"input/{seed}/samples.jsonl",))
        path = Path(f"output/processed_data/{name}/run.json")
        recipe = ROOT / f"solution/recipes/{'recaption' if name == 'synth' else name}.yaml"
        document = json.loads(path.read_text())
        document["inputs"] = {
            "samples": document["inputs"]["0"],
            "recipe": {"path": "r.yaml", "sha256": sha256(recipe), "bytes": 1},
        }
        path.write_text(json.dumps(document))
    settings = config.load({}, "test")
    planned = outlook(settings, "cpu")
    compared = ran.comparable(settings, planned, dict.fromkeys(RECORDED, 1.0))
    assert {name for name in compared if not name.startswith("download/")} == {
        *(f"{rule}/baseline" for rule in ran.DATA),
        "pretrain/MGM-Tiny-Pretrain-baseline",
        *(f"{rule}/MGM-Tiny-Finetune-baseline" for rule in ("finetune", "merge", "eval_textvqa")),
    }


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            ["--card", "v100"],
            f"no figures of a card 'v100' are known: choose one of {', '.join(cards.names())}",
        ),
        (["--card", "h100", "--measure"], "give one of them"),
        (["--measure"], "--measure trains on the GPU of this machine and there is none"),
    ],
)
def test_flags_that_mean_nothing(flags, sentence, capsys):
    assert main(["plan", "--config", str(ROOT / "workflow/config/baseline_10k.yaml"), *flags]) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100-PCIE-40GB", "a100-40"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_the_card_that_is_here(device, name, monkeypatch, capsys):
    monkeypatch.setattr(facts, "gpus", lambda: (facts.GPU(device, "580.82", 9.0, 80 * GIB, 79 * GIB),))
    arguments = ["plan", "--config", str(ROOT / "workflow/config/baseline_10k.yaml"), "--json"]
    assert cards.named(device) == name
    assert main(arguments) == (0 if name else 1)
    said = capsys.readouterr()
    if name:
        assert json.loads(said.out)["card"] == name
    else:
        assert f"no figures of {device} are known: measure them (--measure)" in said.err


def test_a_gpu_without_figures_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(facts, "gpus", lambda: (facts.GPU("NVIDIA Z1", "580.82", 9.0, 6 * GIB, 6 * GIB),))
    monkeypatch.setattr(measure, "measure", lambda settings, gpus: {"pretrain": 7.53, "lora": 5.0})
    assert main(["plan", "--config", str(ROOT / "workflow/config/baseline_10k.yaml"), "--measure"]) == 0
    out = capsys.readouterr().out
    assert "on NVIDIA Z1" in out and "finetune does not fit" in out


def test_a_base_in_8_bits_has_rates_of_its_own():
    plain = config.read(ROOT / "workflow/config/baseline_10k.yaml")
    fast = plain.model_copy(
        update={"pretrain": config.Pretrain(base="fp8"), "finetune": config.Finetune(base="fp8")}
    )
    for card in ("h200", "rtx-4090"):
        seconds = [
            {each.job.rule: each.seconds for each in outlook(settings, card).predictions}
            for settings in (plain, fast)
        ]
        for rule in ("pretrain", "finetune"):
            assert seconds[1][rule] < seconds[0][rule]
    # what pretraining here is to pretraining there holds for the other rates too
    card = cards.card("h200")
    here = predict.measured(card, {"pretrain_fp8": 193.0, "lora_fp8": 50.0}, 1, 0.15).rates
    assert here["lora_fp8"] == cards.Rate(50.0, 0.15) and here["scored"] == card.rates["scored"]
    assert here["answers"].value == pytest.approx(2 * card.rates["answers"].value)


def test_nf4_has_the_rates_of_lora_until_they_are_measured(monkeypatch, tmp_path, capsys):
    text = (ROOT / "workflow/config/baseline_10k.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("finetune:\n", "finetune:\n  base: nf4\n"))
    monkeypatch.setattr(facts, "gpus", lambda: (facts.GPU("NVIDIA H200", "580.82", 9.0, 99 * GIB, 99 * GIB),))
    monkeypatch.setattr(measure, "measure", lambda settings, gpus: {"pretrain": 96.0, "lora": 30.0})
    for flags in ([], ["--measure"]):
        assert main(["plan", "--config", str(path), "--json", *flags]) == 0
        notes = " ".join(json.loads(capsys.readouterr().out)["notes"])
        assert ("nf4 is slower" in notes) == (not flags)


@pytest.mark.slow
def test_measuring_is_a_run_of_the_benchmark(monkeypatch):
    monkeypatch.setattr(measure, "STEPS", 1)
    monkeypatch.setattr(measure.subprocess, "run", forks.run)
    fp8 = config.Config(pretrain=config.Pretrain(base="fp8"), finetune=config.Finetune(base="nf4"))
    planned = measure.measure(fp8, 0)
    assert set(planned) == {"pretrain_fp8", "lora"} and all(rate > 0 for rate in planned.values())


def test_a_failed_measurement_is_a_sentence(monkeypatch, tmp_path):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(measure.sys, "executable", str(program))
    with pytest.raises(config.UserError, match="measuring pretrain failed"):
        measure.measure(config.Config(), 1)
