"""What this machine can do: memory, products, and tapwater's own kernels, measured."""

from tapwater.calibration.kernels import measure_kernels
from tapwater.calibration.machine import measure_machine, median_rates
from tapwater.calibration.probe import Probe, random_weights

__all__ = ["Probe", "measure_kernels", "measure_machine", "median_rates", "random_weights"]
