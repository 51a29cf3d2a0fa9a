"""`tapwater ablate`: what a change to a model or its training is worth, with seeds and cost."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tapwater.cli.common import console
from tapwater.cli.output import AsJson, write_json
from tapwater.cli.train import INTERRUPTED, rent_of
from tapwater.errors import TapwaterError

Settings = Annotated[str, Parameter(help="Settings of the base as section.key=value, e.g. data.corpus=corpus.")]


def ablate(config: Path, /, *overrides: Settings, only: str | None = None, as_json: AsJson = False) -> int:
    """Train every variant that CONFIG describes with several seeds, at equal training FLOPs or equal time.

    Its directory gets a run of each variant and seed, and results.json, table.md and report.html of what is finished.
    Ctrl-C saves the run under way; the same command goes on.

    Parameters
    ----------
    config
        A TOML file: a base, a budget, and [[variants]] of the base.
    only
        Names of the variants to train, with commas between; of the others what is finished is reported too.
    """
    from tapwater.config.ablation import load_ablation

    ablation = load_ablation(config, overrides)
    names = [each.name for each in ablation.variants] if only is None else [each.strip() for each in only.split(",")]
    chosen = ablation.choose(names)
    rent = rent_of(ablation.base)
    directory = Path(ablation.budget.directory)

    import torch

    from tapwater.cli.ablation_bars import AblationBars
    from tapwater.cli.ablation_report import facts, table, write_ablation_report
    from tapwater.data.corpus import Corpus
    from tapwater.data.lock import locked
    from tapwater.llm import available_cores
    from tapwater.parallel import join, leave
    from tapwater.train.ablation import run_all
    from tapwater.train.ablation_plan import planned_before, settle
    from tapwater.train.ablation_results import Results, collect
    from tapwater.train.allocator import keep_freed_memory

    keep_freed_memory()
    corpus = Corpus.open(Path(ablation.base.data.corpus))
    torch.set_num_threads(ablation.base.train.threads or available_cores())
    seeds, target_loss = ablation.budget.seeds, ablation.budget.target_loss
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        try:
            world = join(ablation.base.parallel)
            begun = planned_before(directory)
            with console().status("Settling how long each variant runs"):
                reported = settle(
                    ablation,
                    [each for each in ablation.variants if each in chosen or each.name in begun],
                    corpus,
                    world,
                )
            plan = replace(reported, variants=tuple(each for each in reported.variants if each.name in names))

            def report() -> Results:
                results = collect(reported, directory, seeds, target_loss, rent)
                write_ablation_report(directory, ablation, reported, results)
                return results

            try:
                with AblationBars(console(), plan, directory, seeds) as bars:
                    is_whole = run_all(plan, directory, seeds, corpus, world, rent, bars)
            except TapwaterError:
                report()  # what is finished stands
                raise
            results = report()
        finally:
            leave()
    if as_json:
        write_json(facts(ablation, reported, results))
    elif results.results:
        sys.stdout.write(table(ablation, reported, results))
    console().print(f"report: {directory / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    if not is_whole:
        return INTERRUPTED
    return 0 if results.results else 1
