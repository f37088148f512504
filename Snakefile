"""A Better Synth entry from nothing: `snakemake submit.zip` (the tiny scale, 2 cores, no GPU) or
`snakemake submit.zip --configfile workflow/config/baseline_10k.yaml`. `snakemake -n` lists what would run and why.
"""

from snakemake.utils import min_version

min_version("9.27")


# Read only with `--sdm apptainer`: an image of the locked environment (environment.yml) that you put here for your cluster.
container: "better-synth.sif"


# A file given with --configfile replaces this one as a whole; single keys of either can be changed with --config.
if not workflow.overwrite_configfiles:

    configfile: "workflow/config/tiny.yaml"


include: "workflow/rules/common.smk"


onstart:
    for folder in ("input", "output"):
        if not os.access(folder if os.path.exists(folder) else ".", os.W_OK):
            raise WorkflowError(
                f"{folder}/ cannot be written: make it writable, then run the same command again"
            )
    # Snakemake does not miss a file between two that exist: should a job fail, the archive of an earlier state would pass for done.
    for job in workflow.dag.needrun_jobs():
        if job.rule.name in ("validate", "submit"):
            for path in job.output:
                Path(path).unlink(missing_ok=True)
    # For its limit of jobs a second Snakemake's scheduler runs again a second after every run, and each job that ends starts one more
    # such chain: while jobs wait, it takes most of a core after a few hundred. Where a cluster queues them, the limit stays.
    if workflow.local_exec:
        workflow.scheduler.job_rate_limiter = None


wildcard_constraints:
    asset="|".join(REGISTRY),
    exp="|".join(settings.experiments),
    run="|".join(RUNS),
    size=SCALE.size,


rule all:
    input:
        "submit.zip",
        "output/reports/index.html",
        expand("output/reports/data-{exp}/index.html", exp=settings.experiments),


# Parts of a run: `snakemake data` for all experiments, `snakemake data-synth` for one; `train` and `evaluate` likewise.
for part, results_of in PARTS.items():

    rule:
        name:
            part
        input:
            [path for exp in settings.experiments for path in results_of(exp)],

    for exp in settings.experiments:

        rule:
            name:
                f"{part}-{exp}"
            input:
                results_of(exp),


include: "workflow/rules/data.smk"
include: "workflow/rules/analyze.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/eval.smk"
include: "workflow/rules/bundle.smk"


if settings.search:

    include: "workflow/rules/search.smk"

    # The first round alone: what a trial takes is measured by it.
    rule search_first:
        input:
            lambda wildcards: trials(["0"]),

    rule search:
        input:
            "output/reports/search.md",

else:

    rule search:
        input:
            no_search,
