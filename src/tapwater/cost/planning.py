"""Planning: the best way to serve a model on a machine, separate units, sweeps, and how wrong predictions were."""

from tapwater.cost.candidates import default_formats, layouts
from tapwater.cost.evidence import Evidence, evidence
from tapwater.cost.formats import Formats
from tapwater.cost.hardware import machine, machines
from tapwater.cost.layout import Layout, parse_layout
from tapwater.cost.load import Point, Traffic, Unit
from tapwater.cost.plan import BusySeconds, Limits, Plan, TokenCost, plan, plan_layout
from tapwater.cost.split import SplitPlan, plan_split
from tapwater.cost.sweep import SweepPoint, sweep
from tapwater.cost.throughput import Estimate, Serving, decode, prefill

__all__ = [
    "BusySeconds",
    "Estimate",
    "Evidence",
    "Formats",
    "Layout",
    "Limits",
    "Plan",
    "Point",
    "Serving",
    "SplitPlan",
    "SweepPoint",
    "TokenCost",
    "Traffic",
    "Unit",
    "decode",
    "default_formats",
    "evidence",
    "layouts",
    "machine",
    "machines",
    "parse_layout",
    "plan",
    "plan_layout",
    "plan_split",
    "prefill",
    "sweep",
]
