#!/bin/sh
# Tier standard on one GPU, one seed a call, within ten minutes: see gpu.py, whose options may follow.
#   benchmarks/gpu.sh [SEED] [OUT] [OPTION...]        nothing needs to be installed but the core dependencies
# PYTHON names the interpreter (python3). What can be made again is kept in VIREID_CACHE (_build/cache), where a second
# call finds it. Cards and gpu-sSEED.json are written to OUT (_build/gpu).
set -eu
seed=${1:-0}
[ $# -eq 0 ] || shift
out=${1:-_build/gpu}
[ $# -eq 0 ] || shift
case $out in /*) ;; *) out=$PWD/$out ;; esac
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# Not as a file: each of the rendering processes would import it whole.
exec "${PYTHON:-python3}" -c "import sys, gpu; sys.exit(gpu.main())" --seed "$seed" --out "$out" "$@"
