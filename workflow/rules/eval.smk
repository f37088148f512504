"""Evaluation: training rows compared with the benchmarks, answers of each merged model in the kit's formats, their scores, and the
experiments side by side.
"""


rule contamination:
    """Look for training images and captions that are near-duplicates of evaluation items; before any training hour."""
    input:
        samples="output/processed_data/{exp}/processed_data.jsonl",
        seed=asset("seed"),
        evaluation=asset("evaluation"),
        tool=tool("contamination"),
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
        questions=asset_file("evaluation", "questions"),
        question_images=asset_file("evaluation", "images"),
        annotations=asset_file("evaluation", "annotations"),
        table=asset_file("evaluation", "table"),
    shell:
        """
        python -m toolkit evaluate contamination \
            --samples {input.samples:q} \
            --images {params.images:q} \
            --questions {params.questions:q} \
            --question-images {params.question_images:q} \
            --annotations {params.annotations:q} \
            --table {params.table:q} \
            --threads {threads} \
            --output {output.found:q} \
            2>&1 | tee {log:q}
        """


rule eval_textvqa:
    """Answer TextVQA with the merged model and score the answers."""
    input:
        merged="output/training_dirs/MGM-{size}-Finetune-{exp}/merge.json",
        evaluation=asset("evaluation"),
        tool=tool("eval", "textvqa"),
    output:
        answers="output/eval_results/MGM-{size}-Finetune-{exp}/textvqa/bm1.jsonl",
        control="output/eval_results/MGM-{size}-Finetune-{exp}/textvqa/control.jsonl",
        score="output/eval_results/MGM-{size}-Finetune-{exp}/textvqa/score.json",
        record="output/eval_results/MGM-{size}-Finetune-{exp}/textvqa/run.json",
    log:
        "output/logs/eval_textvqa/MGM-{size}-Finetune-{exp}.log",
    benchmark:
        "output/benchmarks/eval_textvqa/MGM-{size}-Finetune-{exp}.tsv"
    threads: 1
    resources:
        gpu=GPU,
    params:
        model=subpath(input.merged, parent=True),
        questions=asset_file("evaluation", "questions"),
        images=asset_file("evaluation", "images"),
        annotations=asset_file("evaluation", "annotations"),
        batch_size=settings.eval_textvqa.batch_size,
        folder=subpath(output.score, parent=True),
    shell:
        """
        python -m toolkit evaluate textvqa \
            --model {params.model:q} \
            --questions {params.questions:q} \
            --images {params.images:q} \
            --annotations {params.annotations:q} \
            --batch-size {params.batch_size} \
            --output {params.folder:q} \
            2>&1 | tee {log:q}
        """


rule eval_mmbench:
    """Answer MMBench with the merged model, score the answers, write the upload table."""
    input:
        merged="output/training_dirs/MGM-{size}-Finetune-{exp}/merge.json",
        evaluation=asset("evaluation"),
        tool=tool("eval", "mmbench"),
    output:
        answers="output/eval_results/MGM-{size}-Finetune-{exp}/mmbench/answers/mmbench_dev_20230712/MGM-{size}-Finetune-{exp}.jsonl",
        control="output/eval_results/MGM-{size}-Finetune-{exp}/mmbench/control.jsonl",
        upload="output/eval_results/MGM-{size}-Finetune-{exp}/mmbench/answers_upload/mmbench_dev_20230712/MGM-{size}-Finetune-{exp}.xlsx",
        score="output/eval_results/MGM-{size}-Finetune-{exp}/mmbench/score.json",
        record="output/eval_results/MGM-{size}-Finetune-{exp}/mmbench/run.json",
    log:
        "output/logs/eval_mmbench/MGM-{size}-Finetune-{exp}.log",
    benchmark:
        "output/benchmarks/eval_mmbench/MGM-{size}-Finetune-{exp}.tsv"
    threads: 1
    resources:
        gpu=GPU,
    params:
        model=subpath(input.merged, parent=True),
        table=asset_file("evaluation", "table"),
        prompt=settings.eval_mmbench.prompt,
        batch_size=settings.eval_mmbench.batch_size,
        folder=subpath(output.score, parent=True),
    shell:
        """
        python -m toolkit evaluate mmbench \
            --model {params.model:q} \
            --table {params.table:q} \
            --prompt {params.prompt:q} \
            --batch-size {params.batch_size} \
            --output {params.folder:q} \
            2>&1 | tee {log:q}
        """


rule compare:
    """Put the experiments side by side with paired bootstrap intervals, the baseline first."""
    input:
        textvqa=[f"{folder}/textvqa/score.json" for folder in RESULTS],
        mmbench=[f"{folder}/mmbench/score.json" for folder in RESULTS],
        evaluation=asset("evaluation"),
        tool=tool("compare"),
    output:
        table="output/reports/compare.json",
        page="output/reports/compare.md",
    log:
        "output/logs/compare.log",
    benchmark:
        "output/benchmarks/compare.tsv"
    params:
        results=RESULTS,
        seed=settings.compare.seed,
        resamples=settings.compare.resamples,
    shell:
        """
        python -m toolkit evaluate compare \
            --results {params.results:q} \
            --seed {params.seed} \
            --resamples {params.resamples} \
            --output {output.table:q} \
            --markdown {output.page:q} \
            2>&1 | tee {log:q}
        """
