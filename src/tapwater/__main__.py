"""`python -m tapwater`."""

from tapwater.cli import main

main()
