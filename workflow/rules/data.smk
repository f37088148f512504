"""Data: download the assets, synthesize each experiment's captions, check them and convert them to LLaVA's format."""


rule download:
    """Fetch and verify one asset, or build it from the embedded world; its manifest is written last."""
    input:
        tool=asset_sources,
    output:
        manifest="input/{asset}/manifest.json",
    log:
        "output/logs/download/{asset}.log",
    benchmark:
        "output/benchmarks/download/{asset}.tsv"
    params:
        entry=lambda wildcards: REGISTRY[wildcards.asset].model_dump_json(),  # a changed entry is fetched again
        folder=subpath(output.manifest, parent=True),
    shell:
        """
        python -m toolkit assets fetch \
            --asset {wildcards.asset:q} \
            --output {params.folder:q} \
            2>&1 | tee {log:q}
        """


rule score:
    """Compute every statistic that the experiment's recipe asks for, each once for one content; thresholds do not matter here."""
    input:
        seed=asset("seed"),
        models=lambda wildcards: [asset(role) for role in recipe_models(wildcards)],
        files=recipe_files,
        tool=tool(STAGES["data"].module),
    output:
        scores="output/processed_data/{exp}/scores.json",
    log:
        "output/logs/score/{exp}.log",
    benchmark:
        "output/benchmarks/score/{exp}.tsv"
    threads: 16  # as many as there are, up to this
    resources:
        gpu=GPU,
    params:
        recipe=recipe,
        plan=lambda wildcards: plan(source(wildcards)),  # what of the recipe's file makes this rule run again
        samples=asset_file("seed", "samples"),
        images=subpath(input.seed, parent=True),
        models=model_flags,
        executor=settings.synthesize.executor,
    shell:
        """
        python -m toolkit data score \
            --recipe {params.recipe:q} \
            --samples {params.samples:q} \
            --images {params.images:q} \
            {params.models:q} \
            --processes {threads} \
            --executor {params.executor} \
            --scores output/scores \
            --output {output.scores:q} \
            2>&1 | tee {log:q}
        """


rule synthesize:
    """Apply the experiment's recipe to the seed: thresholds, selection, new captions; what it removes is kept with the reason."""
    input:
        recipe=recipe,
        scores="output/processed_data/{exp}/scores.json",
        seed=asset("seed"),
        models=lambda wildcards: [asset(role) for role in recipe_models(wildcards)],
        files=recipe_files,
        tool=tool(STAGES["data"].module),
    output:
        samples="output/processed_data/{exp}/processed_data.jsonl",
        removed="output/processed_data/{exp}/removed.jsonl",
        record="output/processed_data/{exp}/run.json",
    log:
        "output/logs/synthesize/{exp}.log",
    benchmark:
        "output/benchmarks/synthesize/{exp}.tsv"
    threads: 2
    resources:
        gpu=GPU,
    params:
        samples=asset_file("seed", "samples"),
        images=subpath(input.seed, parent=True),
        models=model_flags,
        executor=settings.synthesize.executor,
    shell:
        """
        python -m toolkit data synthesize \
            --recipe {input.recipe:q} \
            --samples {params.samples:q} \
            --images {params.images:q} \
            {params.models:q} \
            --processes {threads} \
            --executor {params.executor} \
            --scores output/scores \
            --output {output.samples:q} \
            --removed {output.removed:q} \
            --record {output.record:q} \
            2>&1 | tee {log:q}
        """


rule check:
    """Check rows, tokens and images before any training hour."""
    input:
        samples="output/processed_data/{exp}/processed_data.jsonl",
        seed=asset("seed"),
        tool=tool("toolkit.data.check"),
    output:
        findings="output/processed_data/{exp}/check.json",
    log:
        "output/logs/check/{exp}.log",
    benchmark:
        "output/benchmarks/check/{exp}.tsv"
    params:
        images=subpath(input.seed, parent=True),
        original=asset_file("seed", "original"),
        question_tokens=SCALE.question_tokens,
    shell:
        """
        python -m toolkit data check \
            --samples {input.samples:q} \
            --images {params.images:q} \
            --original {params.original:q} \
            --question-tokens {params.question_tokens} \
            --output {output.findings:q} \
            2>&1 | tee {log:q}
        """


rule convert:
    """Give every caption its question back, in LLaVA's format, at most as many rows as the scale allows."""
    input:
        samples="output/processed_data/{exp}/processed_data.jsonl",
        checked="output/processed_data/{exp}/check.json",
        seed=asset("seed"),
        tool=tool(STAGES["convert"].module),
    output:
        samples="output/processed_data/{exp}/llava.json",
    log:
        "output/logs/convert/{exp}.log",
    benchmark:
        "output/benchmarks/convert/{exp}.tsv"
    params:
        original=asset_file("seed", "original"),
        cap=SCALE.cap,
        question_tokens=SCALE.question_tokens,
    shell:
        """
        python -m toolkit data convert \
            --to llava \
            --original {params.original:q} \
            --cap {params.cap} \
            --question-tokens {params.question_tokens} \
            {input.samples:q} \
            {output.samples:q} \
            2>&1 | tee {log:q}
        """
