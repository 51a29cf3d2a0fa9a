"""The catalogue's machine that most published figures are of."""

from tapwater.cost.hardware import machine

H800 = machine("h800")
