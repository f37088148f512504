"""The search for a recipe: rounds of proposals, a trial for each, the finals, the winner; then what the ordinary rules confirm of it."""

SEARCH = settings.search
ROUNDS = [str(number) for number in range(SEARCH.rounds)]
# What of the configuration decides a trial.
DECISIVE = {"scale", "assets", "synthesize", "pretrain", "finetune", "benchmarks"}
OF_TRIALS = settings.model_dump_json(**{"include": DECISIVE})
SPACE = Path(SEARCH.space)


wildcard_constraints:
    round=r"\d+|finals",
    key="[0-9a-f]{16}",


def round_file(name: str) -> str:
    return f"output/search/round-{name}.json"


def proposed(name: str) -> list[str]:
    """The keys of a round's proposals, once it was proposed."""
    return [
        each.key
        for each in read_round(checkpoints.propose.get(round=name).output.proposals)
    ]


def earlier(name: str) -> list[str]:
    """The rounds before one."""
    return ROUNDS if name == "finals" else ROUNDS[: int(name)]


def trials(names: list[str]) -> list[str]:
    """The results of rounds."""
    return [
        f"output/search/trials/{key}.json" for name in names for key in proposed(name)
    ]


def round_of(wildcards) -> str:
    """The round that proposes a key first: it is complete when the key is asked for."""
    return next(name for name in (*ROUNDS, "finals") if wildcards.key in proposed(name))


def search_models(wildcards) -> list[str]:
    """The models of the space's recipes."""
    return [asset(role) for role in configuration.recipe_models(SPACE)]


rule search_scores:
    """Compute the statistics that the space's recipes share."""
    input:
        space=SEARCH.space,
        seed=asset("seed"),
        models=search_models,
        tool=tool("toolkit.search.trial"),
    output:
        scores="output/search/scores.json",
    log:
        "output/logs/search_scores.log",
    benchmark:
        "output/benchmarks/search_scores.tsv"
    threads: 16
    resources:
        gpu=GPU,
    params:
        settings=OF_TRIALS,
    shell:
        """
        python -m toolkit search scores \
            --space {input.space:q} \
            --settings {params.settings:q} \
            --scores output/scores \
            --processes {threads} \
            --output {output.scores:q} \
            2>&1 | tee {log:q}
        """


checkpoint propose:
    """Choose the recipes of a round from the results of all rounds before it; the finals train the best again at full size."""
    input:
        space=SEARCH.space,
        rounds=lambda wildcards: [round_file(name) for name in earlier(wildcards.round)],
        trials=lambda wildcards: trials(earlier(wildcards.round)),
        tool=tool("toolkit.search.propose"),
    output:
        proposals="output/search/round-{round}.json",
    log:
        "output/logs/propose/{round}.log",
    params:
        search=SEARCH.model_dump_json(**{"exclude": {"rounds"}}),
        final=lambda wildcards: ["--final"] if wildcards.round == "finals" else [],
    shell:
        """
        python -m toolkit search propose \
            --space {input.space:q} \
            --search {params.search:q} \
            --rounds {input.rounds:q} \
            --trials output/search/trials \
            {params.final:q} \
            --output {output.proposals:q} \
            2>&1 | tee {log:q}
        """


rule trial:
    """Train one proposal and let it answer the development questions."""
    input:
        round=ancient(lambda wildcards: round_file(round_of(wildcards))),
        scores=ancient("output/search/scores.json"),
        seed=asset("seed"),
        instruction=asset("instruction"),
        development=f"input/{SEARCH.development}/manifest.json",
        base=[asset(role) for role in ("llm", "clip", "convnext")],
        models=search_models,
        scale=f"toolkit/scales/{settings.scale}.yaml",
        tool=tool("toolkit.search.trial", *(STAGES[name].module for name in CONTEST)),
    output:
        result="output/search/trials/{key}.json",
    log:
        "output/logs/trial/{key}.log",
    benchmark:
        "output/benchmarks/trial/{key}.tsv"
    threads: 1
    resources:
        gpu=GPU,
    params:
        settings=OF_TRIALS,
        questions=SEARCH.development,
    shell:
        """
        python -m toolkit search trial \
            --round {input.round:q} \
            --key {wildcards.key} \
            --questions {params.questions:q} \
            --settings {params.settings:q} \
            --scores output/scores \
            --output {output.result:q} \
            2>&1 | tee {log:q}
        """


rule select:
    """Write the winner's recipe, the recipe of its random control, and the record of the search."""
    input:
        rounds=[round_file(name) for name in (*ROUNDS, "finals")],
        trials=lambda wildcards: trials([*ROUNDS, "finals"]),
        tool=tool("toolkit.search.select"),
    output:
        winner="output/search/winner.yaml",
        control="output/search/control.yaml",
        record="output/search/search.json",
    log:
        "output/logs/select.log",
    params:
        search=SEARCH.model_dump_json(),
        folder=subpath(output.winner, parent=True),
    shell:
        """
        python -m toolkit search select \
            --rounds {input.rounds:q} \
            --trials output/search/trials \
            --search {params.search:q} \
            --output {params.folder:q} \
            2>&1 | tee {log:q}
        """


rule search_report:
    """What the search promised, what was confirmed with fresh seeds on the evaluation's questions, and against whom."""
    input:
        record="output/search/search.json",
        table="output/reports/compare.json",
        tool=tool("toolkit.search.report"),
    output:
        page="output/reports/search.md",
        table="output/reports/search.json",
        figure="output/reports/search.svg",
    log:
        "output/logs/search_report.log",
    benchmark:
        "output/benchmarks/search_report.tsv"
    params:
        recipes=json.dumps(
            {name: each.recipe for name, each in settings.experiments.items()}
        ),
    shell:
        """
        python -m toolkit search report \
            --record {input.record:q} \
            --comparison {input.table:q} \
            --recipes {params.recipes:q} \
            --output {output.page:q} \
            2>&1 | tee {log:q}
        """
