#!/bin/sh
# From raw text to a served model, on two cores, in about a quarter of an hour. `make tiny` runs it; a step that was
# interrupted goes on when it is run again. Everything it makes is under runs/.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"

# 1. Raw text: this Python's own library and packages, filtered, without duplicates, as tokens of a vocabulary of theirs.
[ -e runs/tiny-corpus ] || tapwater data build configs/tiny-corpus.toml

# 2. What compressors make of the same text: zstd -19 with a dictionary, and a tuned n-gram model.
[ -e runs/tiny-corpus/baselines.json ] || tapwater data baselines runs/tiny-corpus

# 3. Ten minutes of pretraining; then held-out bits per byte, a checkpoint, a Hugging Face directory, and a report.
tapwater train configs/tiny.toml

# 4. The model, served with an OpenAI-compatible API, completes a line of Python and fills in another.
python runs/tiny_ask.py runs/tiny/export
echo "report: runs/tiny/report.html"
