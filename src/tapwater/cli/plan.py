"""`tapwater plan`: what a model needs, does and costs on a machine, before anybody rents it."""

import sys
from dataclasses import replace
from decimal import Decimal
from math import ceil
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from tapwater.cli.common import own_machines, progress_bar
from tapwater.cli.models import model_config
from tapwater.cli.plan_options import Question, changed, numbers_of, rented, yuan_per_dollar
from tapwater.cli.plan_sheet import write_predicted
from tapwater.cli.plan_sweep import collect, point_facts, write_csv
from tapwater.cli.plan_tables import (
    plan_facts,
    show_evidence,
    show_machines,
    show_plans,
    show_split,
    show_sweep,
    show_training,
    split_facts,
    write_json,
)
from tapwater.cli.plan_target import target
from tapwater.cli.plan_train import training_facts
from tapwater.cost.candidates import default_formats
from tapwater.cost.evidence import evidence as known_evidence
from tapwater.cost.hardware import machine as find_machine
from tapwater.cost.hardware import machines
from tapwater.cost.layout import parse_layout
from tapwater.cost.plan import Plan
from tapwater.cost.recipe import Recipe
from tapwater.cost.split import plan_split
from tapwater.cost.sweep import sweep as swept
from tapwater.errors import ConfigError

AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON instead of tables.")]

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
    max_nodes: int = 1,
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
        Nodes of a unit at most.
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
        Write a report to this file, which is replaced.
    """
    rate = yuan_per_dollar(cny_per_usd)
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
        _all_machines(question, rate, as_json)
        return
    if prefill_layout is not None or decode_layout is not None:
        if layout is not None or compare or sheet or html or prefill_layout is None or decode_layout is None:
            raise ConfigError(
                "separate units need both --prefill-layout and --decode-layout, "
                "and go without --layout, --compare, --sheet and --html"
            )
        _separate(question, prefill_layout, decode_layout, requests_per_s, rate, as_json)
        return
    questions = {machine: question} | {text: changed(question, text) for text in compare or []}
    answers = {name: each.answer() for name, each in questions.items()}
    facts = {name: plan_facts(each, rate) for name, each in answers.items()}
    if requests_per_s is not None:
        for name, each in answers.items():
            facts[name]["demand"] = _demand(each, requests_per_s)
    if sheet is not None:
        write_predicted(answers[machine], model, rate, sheet)
    if html is not None:
        from tapwater.cli.report import write_report

        write_report(html, model, answers, rate)
    if as_json:
        alternatives = {name: each for name, each in facts.items() if name != machine}
        write_json({"model": model, "assumed": question.assumed, **facts[machine], "compared": alternatives})
        return
    _say(f"{model} on {machine}, {question.node.description}")
    _say(
        f"prompts of {prompt_tokens:,} tokens ({hit_share:.0%} cached), answers of {output_tokens:,}; "
        f"loaded to {utilisation:.0%} of capacity"
    )
    _say(f"assumed: {', '.join([*question.assumed, f'{cny_per_usd} yuan a dollar'])}\n")
    show_plans(facts)
    for name, each in facts.items():
        if "demand" in each:
            demand = each["demand"]
            _say(f"{name}: {demand['units']} units, {demand['nodes']:g} nodes for {requests_per_s:g} requests/s")


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
    context: str = "1024..131072",
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
        Cached tokens of each, written the same way; the default ends at the model's context.
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
    config, node = model_config(model), rented(find_machine(machine, own_machines()), usd_per_hour)
    contexts = numbers_of(context, "--context")
    if context == "1024..131072":  # the default asks for what the model has
        contexts = [each for each in contexts if each <= config.max_position_embeddings] or [
            config.max_position_embeddings
        ]
    batches = numbers_of(batch, "--batch")
    formats = default_formats(node, weights, cache, head)
    points = swept(config, node, formats, batches, contexts, None if layout is None else parse_layout(layout))
    total = len(batches) * len(contexts)
    with progress_bar(f"Planning {total:,} points") as progress:
        found = collect(points, total, progress) if out is None else []
        done = len(found) if out is None else write_csv(points, total, out, progress)
    if out is None and as_json:
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
    rows = known_evidence()
    if as_json:
        write_json([{**vars(row), "factor": row.factor} for row in rows])
    else:
        show_evidence(rows)


def _all_machines(question: Question, rate: Decimal, as_json: bool) -> None:
    """Cheapest request first, then machines without a rent by speed, then those that cannot, with the reason."""
    found: list[tuple[tuple[int, float], Plan]] = []
    refused: dict[str, str] = {}
    for name in machines(own_machines()):
        try:
            answer = replace(question, machine=name).answer()
        except ConfigError as error:
            refused[name] = str(error)
            continue
        found.append((_order(answer), answer))
    found.sort(key=lambda each: each[0])
    facts = [plan_facts(answer, rate) for _, answer in found]
    if as_json:
        write_json({"machines": facts, "cannot": refused})
        return
    _say(
        f"prompts of {question.prompt_tokens:,} tokens ({question.hit_share:.0%} cached), answers of "
        f"{question.output_tokens:,}; units of up to {question.max_nodes} nodes, loaded to {question.utilisation:.0%}"
    )
    _say("req/s and tokens/s (output) are a unit's, first and token its waiting times, $ per million tokens\n")
    show_machines(facts, refused)
    if not found:
        raise ConfigError(f"no machine can serve it on {question.max_nodes} nodes; try more with --max-nodes")


def _order(answer: Plan) -> tuple[int, float]:
    if answer.cost is None:
        return 1, -answer.point.requests_per_s
    traffic = answer.traffic
    request = (
        traffic.new_tokens * answer.cost.input_miss_usd
        + traffic.hit_tokens * answer.cost.input_hit_usd
        + traffic.output_tokens * answer.cost.output_usd
    )
    return 0, float(request)


def _separate(
    question: Question, prefill_layout: str, decode_layout: str, load: float | None, rate: Decimal, as_json: bool
) -> None:
    layouts = parse_layout(prefill_layout), parse_layout(decode_layout)
    found = plan_split(question.config, question.node, question.formats, *layouts, question.traffic, question.limits)
    facts = split_facts(found, rate)
    if load is not None:
        if not 0 < load < 1e12:
            raise ConfigError(f"--requests-per-s must be a positive number, got {load}")
        facts["demand"] = {"requests_per_s": load}
        for kind, part in (("prefill", found.prefill), ("decode", found.decode)):
            facts["demand"] |= {f"{kind}_units": part.units_for(load), f"{kind}_nodes": part.nodes_for(load)}
    if as_json:
        write_json(facts)
    else:
        show_split(facts)


def _demand(answer: Plan, requests_per_s: float) -> dict[str, Any]:
    units = answer.units(requests_per_s)
    return {"requests_per_s": requests_per_s, "units": units, "nodes": ceil(units * answer.nodes - 1e-9)}


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
