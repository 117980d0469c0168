#!/usr/bin/env bash
# Opens MLflow on a runs folder: ui.sh RUNS PORT. Run by `make ui`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

runs=$1 port=$2
python=${VENV:-.venv}/bin/python
die() { echo "ui: error: $*" >&2; exit 1; }

[[ $port =~ ^[0-9]+$ ]] || die "UI_PORT=$port is no port number: make ui UI_PORT=5001"
[[ -f $runs/mlflow.db ]] || die "no $runs/mlflow.db yet: make demo writes demo/runs, or name the folder of your runs: make ui RUNS=/path/to/runs"
# connecting rather than binding: it also sees a port taken on another address of this machine
if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    die "port $port is in use: make ui UI_PORT=$((port + 1)), or stop what listens there"
fi
echo "ui: MLflow on $runs: http://127.0.0.1:$port (Ctrl-C ends it); in an experiment, Views > Comparison shows what one compares by"
exec "$python" -m mlflow server --host 127.0.0.1 --port "$port" --workers 1 \
    --backend-store-uri "sqlite:///$runs/mlflow.db" --artifacts-destination "$runs/mlartifacts"
