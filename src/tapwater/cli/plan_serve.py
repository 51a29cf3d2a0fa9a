"""What `tapwater plan serve` answers: on one machine, on all of them, or with separate units."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from math import ceil
from pathlib import Path
from typing import Any

from tapwater.cli.common import own_machines
from tapwater.cli.output import check_new, check_page, write_json
from tapwater.cli.plan_options import Question, changed
from tapwater.cli.plan_tables import plan_facts, show_machines, show_plans, show_split, split_facts
from tapwater.cost.hardware import machines
from tapwater.cost.money import plain
from tapwater.cost.plan import Plan
from tapwater.errors import ConfigError


def one_machine(
    model: str,
    question: Question,
    rate: Decimal,
    compare: Sequence[str],
    requests_per_s: float | None,
    sheet: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """The plan, and beside it the same with something changed; what then has no plan is shown with the reason.

    Nothing is written before all is known to be right; ConfigError when the question itself has no plan.
    """
    if len(set(compare)) < len(compare):
        raise ConfigError(f"--compare {next(each for each in compare if compare.count(each) > 1)!r} is there twice")
    if sheet is not None and html is not None and sheet.resolve() == html.resolve():
        raise ConfigError(f"--sheet and --html are both {sheet}: they are two files")
    if sheet is not None:
        check_new(sheet, "--sheet")
    if html is not None:
        check_page(html, "--html")
    questions = {text: changed(question, text) for text in compare}
    answers, refused = {question.machine: question.answer()}, dict[str, str]()
    for text, each in questions.items():
        try:
            answers[text] = each.answer()
        except ConfigError as error:
            refused[text] = str(error)
    facts = {name: plan_facts(each, rate) for name, each in answers.items()}
    if requests_per_s is not None:
        for name, each in answers.items():
            facts[name]["demand"] = _demand(each, requests_per_s)
    _write_files(model, answers, refused, rate, sheet, html)
    base = facts[question.machine]
    if as_json:
        compared = {text: facts[text] if text in facts else {"cannot": refused[text]} for text in questions}
        write_json({"model": model, "assumed": question.assumed, **base, "compared": compared})
        return
    _say(f"{model} on {question.machine}, {question.node.description}")
    _say(
        f"prompts of {question.prompt_tokens:,} tokens ({question.hit_share:.0%} cached), answers of "
        f"{question.output_tokens:,}; loaded to {question.utilisation:.0%} of capacity"
    )
    _say(f"assumed: {', '.join([*question.assumed, f'{plain(rate)} yuan a dollar'])}\n")
    show_plans(facts)
    for text, reason in refused.items():
        _say(f"{text}: cannot: {reason}")
    for name, each in facts.items():
        if "demand" in each:
            demand = each["demand"]
            _say(f"{name}: {demand['units']} units, {demand['nodes']:g} nodes for {requests_per_s:g} requests/s")


def which_machines(question: Question, rate: Decimal, as_json: bool) -> None:
    """Cheapest request first, then machines without a rent by speed, then those that cannot, with the reason.

    ConfigError, after those, when none can.
    """
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
    nodes = question.limits.max_nodes
    if as_json:
        write_json({"machines": facts, "cannot": refused})
    else:
        _say(
            f"prompts of {question.prompt_tokens:,} tokens ({question.hit_share:.0%} cached), answers of "
            f"{question.output_tokens:,}; units of up to {nodes} nodes, loaded to {question.utilisation:.0%}"
        )
        _say("req/s and tokens/s (output) are a unit's, first and token its waiting times, $ per million tokens\n")
        show_machines(facts, refused)
    if not found:
        raise ConfigError(f"no machine can serve it on {nodes} nodes; try more with --max-nodes")


def separate_units(
    question: Question, prefill_layout: str, decode_layout: str, load: float | None, rate: Decimal, as_json: bool
) -> None:
    """Prompts and answers on units of their own."""
    from tapwater.cost.split import plan_split

    layouts = question.spread(prefill_layout), question.spread(decode_layout)
    found = plan_split(question.config, question.node, question.formats, *layouts, question.traffic, question.limits)
    facts = split_facts(found, rate)
    if load is not None:
        facts["demand"] = {"requests_per_s": load}
        for kind, part in (("prefill", found.prefill), ("decode", found.decode)):
            facts["demand"] |= {f"{kind}_units": part.units_for(load), f"{kind}_nodes": part.nodes_for(load)}
    if as_json:
        write_json(facts)
    else:
        show_split(facts)


def _write_files(
    model: str,
    answers: dict[str, Plan],
    refused: dict[str, str],
    rate: Decimal,
    sheet: Path | None,
    html: Path | None,
) -> None:
    """The report first: it can be written again, a sheet cannot."""
    from tapwater.cli.plan_sheet import predicted_sheet
    from tapwater.cost.sheet_file import write_sheet

    base = next(iter(answers.values()))
    made = None if sheet is None else predicted_sheet(base, model, rate, datetime.now(UTC))
    if html is not None:
        from tapwater.cli.report import write_report

        write_report(html, model, answers, refused, rate)
    if sheet is not None and made is not None:
        write_sheet(made, sheet)


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


def _demand(answer: Plan, requests_per_s: float) -> dict[str, Any]:
    units = answer.units(requests_per_s)
    return {"requests_per_s": requests_per_s, "units": units, "nodes": ceil(units * answer.nodes - 1e-9)}


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
