"""Training: the projector on the experiment's captions, the model on the fixed instructions, the adapter merged and proved.

The kit's logs (pretrain.log, finetune.log) lie beside the outputs and are no `log:`, which Snakemake would delete before
a resumed attempt; so do the checkpoints, which survive a failed job because they are not outputs.
"""


rule pretrain:
    """Train projector and mining modules on the experiment's captions."""
    input:
        samples=lambda wildcards: f"output/processed_data/{experiment_of(wildcards.run)}/llava.json",
        seed=asset("seed"),
        llm=asset("llm"),
        clip=asset("clip"),
        convnext=asset("convnext"),
        scale=f"toolkit/scales/{settings.scale}.yaml",
        tool=tool(STAGES["pretrain"].module),
    output:
        projector="output/training_dirs/MGM-{size}-Pretrain-{run}/mm_projector.bin",
        config="output/training_dirs/MGM-{size}-Pretrain-{run}/config.json",
        record="output/training_dirs/MGM-{size}-Pretrain-{run}/run.json",
    log:
        "output/logs/pretrain/MGM-{size}-Pretrain-{run}.log",
    benchmark:
        "output/benchmarks/pretrain/MGM-{size}-Pretrain-{run}.tsv"
    threads: 1
    resources:
        gpu=GPU,
        nodes=1,
    params:
        images=subpath(input.seed, parent=True),
        llm=subpath(input.llm, parent=True),
        clip=subpath(input.clip, parent=True),
        convnext=subpath(input.convnext, parent=True),
        scale=settings.scale,
        base=settings.pretrain.base,
        seed=lambda wildcards: RUNS[wildcards.run],
        strategy=lambda wildcards: strategy_flags(wildcards.run, "pretrain"),
        folder=subpath(output.projector, parent=True),
    shell:
        """
        python -m toolkit train pretrain \
            --samples {input.samples:q} \
            --images {params.images:q} \
            --llm {params.llm:q} \
            --clip {params.clip:q} \
            --convnext {params.convnext:q} \
            --scale {params.scale:q} \
            --base {params.base} \
            --seed {params.seed} \
            {params.strategy:q} \
            --gpus {resources.gpu} \
            --nodes {resources.nodes} \
            --output {params.folder:q} \
            2>&1 | tee {log:q}
        """


rule finetune:
    """Train the model on the fixed instructions, starting from the pretrained projector."""
    input:
        projector="output/training_dirs/MGM-{size}-Pretrain-{run}/mm_projector.bin",
        teacher=teacher,
        instruction=asset("instruction"),
        llm=asset("llm"),
        clip=asset("clip"),
        convnext=asset("convnext"),
        scale=f"toolkit/scales/{settings.scale}.yaml",
        tool=tool(STAGES["finetune"].module),
    output:
        config="output/training_dirs/MGM-{size}-Finetune-{run}/config.json",
        record="output/training_dirs/MGM-{size}-Finetune-{run}/run.json",
    log:
        "output/logs/finetune/MGM-{size}-Finetune-{run}.log",
    benchmark:
        "output/benchmarks/finetune/MGM-{size}-Finetune-{run}.tsv"
    threads: 1
    resources:
        gpu=GPU,
        nodes=1,
    params:
        samples=asset_file("instruction", "samples"),
        images=subpath(input.instruction, parent=True),
        llm=subpath(input.llm, parent=True),
        clip=subpath(input.clip, parent=True),
        convnext=subpath(input.convnext, parent=True),
        scale=settings.scale,
        division=settings.finetune.division,
        base=settings.finetune.base,
        lora_rank=settings.finetune.lora_rank,
        lora_alpha=settings.finetune.lora_alpha,
        lora_dropout=settings.finetune.lora_dropout,
        seed=lambda wildcards: RUNS[wildcards.run],
        strategy=lambda wildcards: strategy_flags(wildcards.run, "finetune"),
        teacher=lambda wildcards: [
            part
            for path in teacher(wildcards)
            for part in ("--teacher", str(Path(path).parent))
        ],
        folder=subpath(output.record, parent=True),
    shell:
        """
        python -m toolkit train finetune \
            --samples {params.samples:q} \
            --images {params.images:q} \
            --projector {input.projector:q} \
            --llm {params.llm:q} \
            --clip {params.clip:q} \
            --convnext {params.convnext:q} \
            --scale {params.scale:q} \
            --division {params.division} \
            --base {params.base} \
            --lora-rank {params.lora_rank} \
            --lora-alpha {params.lora_alpha} \
            --lora-dropout {params.lora_dropout} \
            --seed {params.seed} \
            {params.strategy:q} \
            {params.teacher:q} \
            --gpus {resources.gpu} \
            --nodes {resources.nodes} \
            --output {params.folder:q} \
            2>&1 | tee {log:q}
        """


rule merge:
    """Fold the adapter into the base model and prove it with numbers; a full finetuning is proved as it is."""
    input:
        record="output/training_dirs/MGM-{size}-Finetune-{run}/run.json",
        llm=asset("llm"),
        clip=asset("clip"),
        convnext=asset("convnext"),
        tool=tool(STAGES["merge"].module),
    output:
        proof="output/training_dirs/MGM-{size}-Finetune-{run}/merge.json",
    log:
        "output/logs/merge/MGM-{size}-Finetune-{run}.log",
    benchmark:
        "output/benchmarks/merge/MGM-{size}-Finetune-{run}.tsv"
    threads: 1
    resources:
        gpu=GPU,
    params:
        finetuned=subpath(input.record, parent=True),
        llm=subpath(input.llm, parent=True),
        clip=subpath(input.clip, parent=True),
        convnext=subpath(input.convnext, parent=True),
    shell:
        """
        python -m toolkit train merge \
            --finetuned {params.finetuned:q} \
            --llm {params.llm:q} \
            --clip {params.clip:q} \
            --convnext {params.convnext:q} \
            --output {output.proof:q} \
            2>&1 | tee {log:q}
        """
