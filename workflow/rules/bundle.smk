"""The entry: the report over all experiments, the checks of the chosen one, and submit.zip."""


rule report:
    """Write the report over all experiments."""
    input:
        table="output/reports/compare.json",
        data=expand("output/processed_data/{exp}/run.json", exp=settings.experiments),
        compared=expand(
            "output/processed_data/{exp}/contamination.json", exp=settings.experiments
        ),
        exceptions=exceptions(),
        pretrained=expand(
            "output/training_dirs/MGM-{size}-Pretrain-{exp}/run.json",
            size=SCALE.size,
            exp=settings.experiments,
        ),
        finetuned=expand(
            "output/training_dirs/MGM-{size}-Finetune-{exp}/run.json",
            size=SCALE.size,
            exp=settings.experiments,
        ),
        merged=expand(
            "output/training_dirs/MGM-{size}-Finetune-{exp}/merge.json",
            size=SCALE.size,
            exp=settings.experiments,
        ),
        tool=tool("toolkit.report.page", "toolkit.report.figures"),
    output:
        page=report("output/reports/report.md", category="Results"),
        losses=report("output/reports/losses.svg", category="Training"),
    log:
        "output/logs/report.log",
    benchmark:
        "output/benchmarks/report.tsv"
    params:
        title=settings.report.title,
        experiments=list(settings.experiments),
    shell:
        """
        python -m toolkit report build \
            --title={params.title:q} \
            --experiments {params.experiments:q} \
            --output {output.page:q} \
            --losses {output.losses:q} \
            2>&1 | tee {log:q}
        """


rule overview:
    """Write one page for browsers over all experiments and all answers; times differ from run to run, so it is not packed."""
    input:
        table="output/reports/compare.json",
        config="output/reports/config.yaml",
        data=expand("output/processed_data/{exp}/run.json", exp=settings.experiments),
        compared=expand(
            "output/processed_data/{exp}/contamination.json", exp=settings.experiments
        ),
        exceptions=exceptions(),
        pretrained=expand(
            "output/training_dirs/MGM-{size}-Pretrain-{run}/run.json",
            size=SCALE.size,
            run=RUNS,
        ),
        finetuned=expand(
            "output/training_dirs/MGM-{size}-Finetune-{run}/run.json",
            size=SCALE.size,
            run=RUNS,
        ),
        merged=expand(
            "output/training_dirs/MGM-{size}-Finetune-{run}/merge.json",
            size=SCALE.size,
            run=RUNS,
        ),
        evaluated=[
            f"{results(run)}/{benchmark}/run.json"
            for run in RUNS
            for benchmark in settings.benchmarks
        ],
        evaluation=asset("evaluation"),
        template="toolkit/report/overview.html.j2",
        tool=tool("toolkit.report.overview", "toolkit.plan.show"),
    output:
        page=report("output/reports/index.html", category="Results"),
    log:
        "output/logs/overview.log",
    benchmark:
        "output/benchmarks/overview.tsv"
    shell:
        """
        python -m toolkit report overview \
            --config {input.config:q} \
            --output {output.page:q} \
            2>&1 | tee {log:q}
        """


rule training_figure:
    """Draw losses, memory and speed of an experiment's training; memory and speed differ from run to run, so it is not packed."""
    input:
        pretrained=f"output/training_dirs/MGM-{SCALE.size}-Pretrain-{{run}}/run.json",
        finetuned=f"output/training_dirs/MGM-{SCALE.size}-Finetune-{{run}}/run.json",
        tool=tool("toolkit.report.figures"),
    output:
        figure=report(
            "output/reports/training-{run}.svg",
            category="Training",
            labels={"run": "{run}"},
        ),
    log:
        "output/logs/training_figure/{run}.log",
    benchmark:
        "output/benchmarks/training_figure/{run}.tsv"
    shell:
        """
        python -m toolkit report training \
            --experiment {wildcards.run:q} \
            --output {output.figure:q} \
            2>&1 | tee {log:q}
        """


rule train_script:
    """Write the commands that made the chosen experiment, as its records state them, in place of the kit's copied script."""
    input:
        data=f"output/processed_data/{CHOSEN}/run.json",
        pretrained=f"output/training_dirs/MGM-{SCALE.size}-Pretrain-{CHOSEN}/run.json",
        finetuned=f"output/training_dirs/MGM-{SCALE.size}-Finetune-{CHOSEN}/run.json",
        merged=f"output/training_dirs/MGM-{SCALE.size}-Finetune-{CHOSEN}/merge.json",
        evaluated=expand(
            f"{results(CHOSEN)}/{{benchmark}}/run.json", benchmark=settings.benchmarks
        ),
        tool=tool("toolkit.bundle.papers.train_script"),
    output:
        script="output/train.sh",
    log:
        "output/logs/train_script.log",
    benchmark:
        "output/benchmarks/train_script.tsv"
    params:
        experiment=CHOSEN,
    shell:
        """
        python -m toolkit bundle train-script \
            --experiment {params.experiment:q} \
            --output {output.script:q} \
            2>&1 | tee {log:q}
        """


rule sources:
    """Put configuration, licences of the assets, bill of materials and citation beside the results: a rebuild starts from them."""
    input:
        citation="CITATION.cff",
        project="pyproject.toml",
        locks=[
            "requirements/project.in",
            *map(str, sorted(Path("requirements").glob("*.lock"))),
        ],
        tool=tool("toolkit.bundle.papers.sources"),
    output:
        config="output/reports/config.yaml",
        licences="output/reports/licences.json",
        sbom="output/reports/sbom.cdx.json",
        citation="output/reports/CITATION.cff",
    log:
        "output/logs/sources.log",
    benchmark:
        "output/benchmarks/sources.tsv"
    params:
        config=settings.model_dump_json(),
        entries=[REGISTRY[name].model_dump_json() for _, name in settings.assets],
        folder=subpath(output.config, parent=True),
    shell:
        """
        python -m toolkit bundle sources \
            --config {params.config:q} \
            --output {params.folder:q} \
            2>&1 | tee {log:q}
        """


rule crate:
    """Describe the entry as an RO-Crate: which stage made which file from which, by the records."""
    input:
        solution=solution_files(),
        script="output/train.sh",
        page="output/reports/report.md",
        losses="output/reports/losses.svg",
        table="output/reports/compare.json",
        checked=f"output/processed_data/{CHOSEN}/check.json",
        sources=rules.sources.output,
        rules=RULES,
        tool=tool("toolkit.bundle.papers.crate"),
    output:
        crate="output/ro-crate-metadata.json",
    log:
        "output/logs/crate.log",
    benchmark:
        "output/benchmarks/crate.tsv"
    params:
        experiment=CHOSEN,
        rules=settings.submit.rules,
    shell:
        """
        python -m toolkit bundle crate \
            --root . \
            --experiment {params.experiment:q} \
            --rules {params.rules:q} \
            --output {output.crate:q} \
            2>&1 | tee {log:q}
        """


rule validate:
    """Check layout, records, logs and recomputed scores of the chosen experiment against the contest's rules."""
    input:
        crate="output/ro-crate-metadata.json",
        seed=asset("seed"),
        evaluation=asset("evaluation"),
        rules=RULES,
        tool=tool("toolkit.bundle.validate"),
    output:
        findings="output/reports/validation.json",
    log:
        "output/logs/validate.log",
    benchmark:
        "output/benchmarks/validate.tsv"
    params:
        experiment=CHOSEN,
        rules=settings.submit.rules,
    shell:
        """
        python -m toolkit bundle validate \
            --root . \
            --experiment {params.experiment:q} \
            --rules {params.rules:q} \
            --output {output.findings:q} \
            2>&1 | tee {log:q}
        """


rule submit:
    """Pack the validated experiment in the kit's layout, then open the archive and check it again."""
    input:
        findings="output/reports/validation.json",
        tool=tool("toolkit.bundle.pack"),
    output:
        archive="submit.zip",
    log:
        "output/logs/submit.log",
    benchmark:
        "output/benchmarks/submit.tsv"
    params:
        experiment=CHOSEN,
        rules=settings.submit.rules,
    shell:
        """
        python -m toolkit bundle submit \
            --root . \
            --experiment {params.experiment:q} \
            --rules {params.rules:q} \
            --output {output.archive:q} \
            2>&1 | tee {log:q}
        """
