"""Evaluation: training rows compared with the benchmarks, answers of each merged model in the kit's formats, their scores, and the
experiments side by side.
"""


rule contamination:
    """Look for training images and captions that are near-duplicates of evaluation items; before any training hour."""
    input:
        samples="output/processed_data/{exp}/processed_data.jsonl",
        seed=asset("seed"),
        evaluation=asset("evaluation"),
        tool=tool("toolkit.evaluate.contamination"),
    output:
        found="output/processed_data/{exp}/contamination.json",
    log:
        "output/logs/contamination/{exp}.log",
    benchmark:
        "output/benchmarks/contamination/{exp}.tsv"
    priority: 1
    threads: 1
    params:
        images=subpath(input.seed, parent=True),
        evaluation=evaluation_flags(*settings.benchmarks, apart="question_images"),
    shell:
        """
        python -m toolkit evaluate contamination \
            --samples {input.samples:q} \
            --images {params.images:q} \
            {params.evaluation:q} \
            --threads {threads} \
            --output {output.found:q} \
            2>&1 | tee {log:q}
        """


# One rule for each benchmark rather than a wildcard: the kit gives their answers different names, and an output that is declared
# is rebuilt when it was deleted.
for benchmark in map(BENCHMARKS.get, settings.benchmarks):

    rule:
        name:
            f"eval_{benchmark.name}"
        input:
            merged="output/training_dirs/MGM-{size}-Finetune-{run}/merge.json",
            evaluation=asset("evaluation"),
            tool=tool("toolkit.evaluate.run", STAGES[benchmark.name].module),
        output:
            [
                f"output/eval_results/MGM-{{size}}-Finetune-{{run}}/{benchmark.name}/{path}"
                for path in benchmark.outputs("MGM-{size}-Finetune-{run}").values()
            ],
            control=f"output/eval_results/MGM-{{size}}-Finetune-{{run}}/{benchmark.name}/control.jsonl",
            score=f"output/eval_results/MGM-{{size}}-Finetune-{{run}}/{benchmark.name}/score.json",
            record=f"output/eval_results/MGM-{{size}}-Finetune-{{run}}/{benchmark.name}/run.json",
        log:
            f"output/logs/eval_{benchmark.name}/MGM-{{size}}-Finetune-{{run}}.log",
        benchmark:
            f"output/benchmarks/eval_{benchmark.name}/MGM-{{size}}-Finetune-{{run}}.tsv"
        threads: 1
        resources:
            gpu=GPU,
        params:
            benchmark=benchmark.name,
            model=subpath(input.merged, parent=True),
            files=evaluation_flags(benchmark.name),
            prompt=prompt_flag(benchmark.name),
            batch_size=settings.benchmarks[benchmark.name].batch_size,
            folder=subpath(output.score, parent=True),
        shell:
            """
            python -m toolkit evaluate {params.benchmark} \
                --model {params.model:q} \
                {params.files:q} \
                {params.prompt:q} \
                --batch-size {params.batch_size} \
                --gpus {resources.gpu} \
                --output {params.folder:q} \
                2>&1 | tee {log:q}
            """


rule compare:
    """Put the experiments side by side with paired bootstrap intervals, the baseline first."""
    input:
        scores=[
            f"{results(run)}/{benchmark}/score.json"
            for run in RUNS
            for benchmark in settings.benchmarks
        ],
        evaluation=asset("evaluation"),
        tool=tool("toolkit.evaluate.compare"),
    output:
        table="output/reports/compare.json",
        page="output/reports/compare.md",
    log:
        "output/logs/compare.log",
    benchmark:
        "output/benchmarks/compare.tsv"
    params:
        results=[results(run) for run in RUNS if run in settings.experiments],
        benchmarks=list(settings.benchmarks),
        seeds=SEEDS,
        seed=settings.compare.seed,
        resamples=settings.compare.resamples,
    shell:
        """
        python -m toolkit evaluate compare \
            --results {params.results:q} \
            --benchmarks {params.benchmarks} \
            --seeds {params.seeds} \
            --seed {params.seed} \
            --resamples {params.resamples} \
            --output {output.table:q} \
            --markdown {output.page:q} \
            2>&1 | tee {log:q}
        """


rule strategies:
    """Put experiments that learn differently beside the baseline: differences over the seeds, time and memory of each."""
    input:
        table=compared_over_seeds,
        trained=expand(
            "output/training_dirs/MGM-{size}-{stage}-{run}/run.json",
            size=SCALE.size,
            stage=("Pretrain", "Finetune"),
            run=RUNS,
        ),
        tool=tool("toolkit.studies.learning"),
    output:
        table="output/reports/strategies.json",
        page="output/reports/strategies.md",
    log:
        "output/logs/strategies.log",
    benchmark:
        "output/benchmarks/strategies.tsv"
    shell:
        """
        python -m toolkit evaluate strategies \
            --comparison {input.table:q} \
            --output {output.table:q} \
            --markdown {output.page:q} \
            2>&1 | tee {log:q}
        """
