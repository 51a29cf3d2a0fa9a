"""`tapwater plan`: what a model needs, does and costs on a machine, before anybody rents it.

The verbs and their options; what answers them is loaded when one is asked, so that help comes at once.
"""

import sys
from pathlib import Path

from cyclopts import App

from tapwater.cli.common import own_machines, progress_bar
from tapwater.cli.output import AsJson, write_json
from tapwater.cli.plan_target import target
from tapwater.errors import ConfigError

plan = App(name="plan", help="What a model needs, does and costs on a machine: predicted, and how well.")
plan.command(target)


@plan.command
def serve(
    model: str,
    /,
    *,
    machine: str | None = None,
    prompt_tokens: int = 1000,
    output_tokens: int = 500,
    hit_share: float = 0.0,
    weights: str | None = None,
    head: str | None = None,
    cache: str | None = None,
    ttft_s: float | None = None,
    tpot_s: float | None = None,
    max_nodes: int | None = None,
    utilisation: float = 0.7,
    layout: str | None = None,
    prefill_layout: str | None = None,
    decode_layout: str | None = None,
    requests_per_s: float | None = None,
    usd_per_hour: str | None = None,
    cny_per_usd: str = "7.2",
    compare: list[str] | None = None,
    sheet: Path | None = None,
    html: Path | None = None,
    as_json: AsJson = False,
) -> None:
    """Find the layout and batch that serve a model most cheaply, and what a million tokens then cost.

    Without --machine all machines are compared, cheapest first. Costs are without margin, idle time included.

    Parameters
    ----------
    model
        A preset such as deepseek-v2, a config.json, a model directory, a .gguf file, or a model to pull.
    machine
        A machine of `tapwater hardware list`.
    prompt_tokens
        Length of a prompt.
    output_tokens
        Length of an answer.
    hit_share
        Share of a prompt that is found in the context cache, e.g. 0.56.
    weights
        Format of weights: fp8, bf16, q8, q4_min, q4, float32. Without it what suits the machine.
    head
        Format of embedding and head, where it differs.
    cache
        Format of the cache: bfloat16, fp8, fp8_line, 6bit, q8, q6, float32.
    ttft_s
        Seconds to the first token at most.
    tpot_s
        Seconds per output token at most.
    max_nodes
        Nodes of a unit at most; without it 1, or what the layout takes.
    utilisation
        Share of its capacity that a unit is loaded to.
    layout
        Devices by axis, e.g. "dp8 ep8"; without it the best is looked for.
    prefill_layout
        Layout of units that only compute prompts; needs --decode-layout.
    decode_layout
        Layout of units that only generate.
    requests_per_s
        The load demanded: how many units carry it?
    usd_per_hour
        Rent of a node, instead of the catalogue's.
    cny_per_usd
        Yuan for a dollar; 7.2 is an assumption.
    compare
        The same with something changed, e.g. "cache=6bit" or "machine=h100,max_nodes=2"; repeatable.
    sheet
        Write a predicted price sheet to this new file.
    html
        Write a report to this file; a page that is there is replaced, anything else is not.
    """
    from tapwater.cli.models import model_config
    from tapwater.cli.plan_options import Question, yuan_per_dollar
    from tapwater.cli.plan_serve import one_machine, separate_units, which_machines
    from tapwater.cost.hardware import machines

    rate = yuan_per_dollar(cny_per_usd)
    if requests_per_s is not None and not 0 < requests_per_s <= 1e9:
        raise ConfigError(f"--requests-per-s must be above 0, at most a billion; got {requests_per_s}")
    question = Question(
        config=model_config(model),
        machine=machine or "",
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        hit_share=hit_share,
        weights=weights,
        head=head,
        cache=cache,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        max_nodes=max_nodes,
        utilisation=utilisation,
        layout=layout,
        usd_per_hour=usd_per_hour,
    )
    question.check()
    if machine is None:
        given = {
            "--usd-per-hour": usd_per_hour,
            "--compare": compare,
            "--sheet": sheet,
            "--html": html,
            "--requests-per-s": requests_per_s,
            "--prefill-layout": prefill_layout,
            "--decode-layout": decode_layout,
        }
        for name, value in given.items():
            if value is not None:
                raise ConfigError(f"{name} needs --machine; known: {', '.join(machines(own_machines()))}")
        which_machines(question, rate, as_json)
    elif prefill_layout is not None or decode_layout is not None:
        if layout is not None or compare or sheet or html or prefill_layout is None or decode_layout is None:
            raise ConfigError(
                "separate units need both --prefill-layout and --decode-layout, "
                "and go without --layout, --compare, --sheet and --html"
            )
        separate_units(question, prefill_layout, decode_layout, requests_per_s, rate, as_json)
    else:
        one_machine(model, question, rate, compare or [], requests_per_s, sheet, html, as_json)


@plan.command
def train(
    model: str,
    /,
    *,
    tokens: float,
    machine: str,
    layout: str,
    sequence: int = 4096,
    batch: int | None = None,
    micro_batch: int = 1,
    schedule: str = "1f1b",
    recomputation: str = "none",
    overlap: str = "none",
    communication_share: float = 0.0,
    optimizer: str = "adamw",
    precision: str = "bf16",
    weight_format: str = "bf16",
    gradient_format: str = "float32",
    usd_per_device_hour: str | None = None,
    as_json: AsJson = False,
) -> None:
    """Show how long training takes and what it costs; refused when it does not fit in memory.

    Parameters
    ----------
    model
        A preset such as deepseek-v2, a config.json, a model directory, a .gguf file, or a model to pull.
    tokens
        Tokens to train on, e.g. 8.1e12.
    machine
        A machine of `tapwater hardware list`.
    layout
        Devices by axis, e.g. "dp128 ep8 pp16".
    sequence
        Tokens of a sequence.
    batch
        Sequences of a step; without it four micro-batches for each pipeline stage of a replica.
    micro_batch
        Sequences a replica computes at once.
    schedule
        Pipeline schedule: 1f1b, zb1p or dualpipe.
    recomputation
        What is computed again in the backward pass: none, selective or full.
    overlap
        What hides the exchange of tokens with experts: none, shared_experts or all.
    communication_share
        Share of a device's processors that only moves tokens.
    optimizer
        adamw, adamw_bf16 or muon.
    precision
        Of products with weights: bf16 or fp8.
    weight_format
        Format of weights.
    gradient_format
        Format of gradients.
    usd_per_device_hour
        Rent of a device, instead of the catalogue's.
    """
    from tapwater.cli.models import model_config
    from tapwater.cli.plan_tables import show_training
    from tapwater.cli.plan_train import training_facts
    from tapwater.cost.hardware import machine as find_machine
    from tapwater.cost.layout import parse_layout
    from tapwater.cost.recipe import Recipe

    spread = parse_layout(layout)
    recipe = Recipe(
        sequence,
        4 * spread.dp * spread.pp * micro_batch if batch is None else batch,
        micro_batch,
        schedule,
        recomputation,
        overlap,
        communication_share,
        optimizer,
        precision,
        weight_format,
        gradient_format,
    )
    node = find_machine(machine, own_machines())
    facts = training_facts(model_config(model), node, spread, recipe, tokens, usd_per_device_hour)
    if as_json:
        write_json({"model": model, "machine": machine, **facts})
        return
    _say(f"{model} on {spread.devices:,} devices of {machine}, {spread}: {tokens:.4g} tokens")
    assumed = " (assumed)" if batch is None else ""
    _say(f"{recipe.batch:,} sequences of {sequence:,} tokens a step{assumed}, {precision}, {schedule}, {optimizer}\n")
    show_training(facts)
    _say("left out: evaluation, checkpoints, failures; for models with experts take the time as a lower bound")


@plan.command
def sweep(
    model: str,
    /,
    *,
    machine: str,
    batch: str = "1..1024",
    context: str | None = None,
    weights: str | None = None,
    head: str | None = None,
    cache: str | None = None,
    layout: str | None = None,
    usd_per_hour: str | None = None,
    out: Path | None = None,
    as_json: AsJson = False,
) -> None:
    """Show decoding over batch and context: rate, step, memory and cost of each pair.

    Ctrl-C keeps the points that are there.

    Parameters
    ----------
    model
        A preset such as deepseek-v2, a config.json, a model directory, a .gguf file, or a model to pull.
    machine
        A machine of `tapwater hardware list`.
    batch
        Requests that generate at once: "1,2,4..64" (doubling) or "100..900+100" (by steps).
    context
        Cached tokens of each, written the same way; without it 1024..131072, as far as the model goes.
    weights
        Format of weights; without it what suits the machine.
    head
        Format of embedding and head, where it differs.
    cache
        Format of the cache.
    layout
        Devices by axis; without it the fastest of a whole node, point by point.
    usd_per_hour
        Rent of a node, instead of the catalogue's.
    out
        Write CSV to this new file.
    """
    from tapwater.cli.models import model_config
    from tapwater.cli.plan_options import MAX_POINTS, numbers_of, rented
    from tapwater.cli.plan_sweep import collect, point_facts, usual_contexts, write_csv
    from tapwater.cli.plan_tables import show_sweep
    from tapwater.cost.candidates import default_formats
    from tapwater.cost.hardware import machine as find_machine
    from tapwater.cost.layout import parse_layout
    from tapwater.cost.sweep import sweep as swept

    if out is not None and as_json:
        raise ConfigError("give either --out, which writes CSV, or --json, which prints")
    config, node = model_config(model), rented(find_machine(machine, own_machines()), usd_per_hour)
    contexts = usual_contexts(config) if context is None else numbers_of(context, "--context")
    batches = numbers_of(batch, "--batch")
    total = len(batches) * len(contexts)
    if total > MAX_POINTS:
        raise ConfigError(f"--batch times --context are {total:,} points, at most {MAX_POINTS:,}: take larger steps")
    formats = default_formats(node, weights, cache, head)
    points = swept(config, node, formats, batches, contexts, None if layout is None else parse_layout(layout))
    with progress_bar(f"Planning {total:,} points") as progress:
        found = collect(points, total, progress) if out is None else []
        done = len(found) if out is None else write_csv(points, total, out, progress)
    if as_json:
        shared = {"model": model, "machine": machine, "weights": formats.weights, "cache": formats.cache}
        write_json([{**shared, **point_facts(each)} for each in found])
    elif out is None:
        _say(f"{model} on {machine}: weights {formats.weights}, cache {formats.cache}; GB of the fullest device\n")
        show_sweep(found)
    if done < total:
        sys.stderr.write(f"stopped: {done:,} of {total:,} points are kept\n")
        sys.exit(130)


@plan.command
def evidence(*, as_json: AsJson = False) -> None:
    """Show predictions beside measurements: how wrong is this?"""
    from tapwater.cli.plan_tables import show_evidence
    from tapwater.cost.evidence import evidence as known_evidence

    rows = known_evidence()
    if as_json:
        write_json([{**vars(row), "factor": row.factor} for row in rows])
    else:
        show_evidence(rows)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
