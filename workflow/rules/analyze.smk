"""A look at the data: numbers, figures and a gallery of each experiment, and each experiment beside the baseline. None of it is packed."""


rule analyze:
    """Numbers, figures and a gallery with captions before and after; the gallery's pictures are undeclared siblings."""
    input:
        samples="output/processed_data/{exp}/processed_data.jsonl",
        removed="output/processed_data/{exp}/removed.jsonl",
        record="output/processed_data/{exp}/run.json",
        seed=asset("seed"),
        tool=tool("toolkit.data.analysis.analyze"),
    output:
        statistics="output/reports/data-{exp}/statistics.json",
        gallery="output/reports/data-{exp}/index.html",
    log:
        "output/logs/analyze/{exp}.log",
    benchmark:
        "output/benchmarks/analyze/{exp}.tsv"
    threads: 2
    params:
        images=subpath(input.seed, parent=True),
        seed_samples=asset_file("seed", "samples"),
        folder=subpath(output.gallery, parent=True),
    shell:
        """
        python -m toolkit data analyze {input.samples:q} \
            --images {params.images:q} \
            --removed {input.removed:q} \
            --record {input.record:q} \
            --seed-samples {params.seed_samples:q} \
            --processes {threads} \
            --output {params.folder:q} \
            2>&1 | tee {log:q}
        """


rule compare_data:
    """An experiment's data beside the baseline's, with intervals."""
    input:
        baseline=f"output/processed_data/{BASELINE}/processed_data.jsonl",
        samples="output/processed_data/{exp}/processed_data.jsonl",
        seed=asset("seed"),
        tool=tool("toolkit.data.analysis.compare"),
    output:
        table="output/reports/data-{exp}/compare.json",
        markdown="output/reports/data-{exp}/compare.md",
    log:
        "output/logs/compare_data/{exp}.log",
    benchmark:
        "output/benchmarks/compare_data/{exp}.tsv"
    params:
        images=subpath(input.seed, parent=True),
    shell:
        """
        python -m toolkit data compare {input.baseline:q} {input.samples:q} \
            --images {params.images:q} \
            --output {output.table:q} \
            --markdown {output.markdown:q} \
            2>&1 | tee {log:q}
        """
