#!/usr/bin/env bash
# First figures beside the design's: memory of an idle session, CPU of a handshake and of a command,
# monoio's park against our own, io_uring against poll. About ten minutes on two quiet cores.
#   cargo build --release -p drover -p drover-loadtest && bash bench-results/figures.sh
set -euo pipefail
cd "$(dirname "$0")/.."
loadtest=${LOADTEST:-target/release/drover-loadtest}
hold() { # NAME AGENTS RATE SERVE-ARGS…
  local name=$1 agents=$2 rate=$3; shift 3
  local arguments=()
  for word in "$@"; do arguments+=("--serve-arg=$word"); done
  "$loadtest" hold --agents "$agents" --duration 20s --rate "$rate" --name "$name" "${arguments[@]}" || true
}
hold idle-5000 5000 500
hold idle-10000 10000 500
for datapath in uring poll; do
  for park in monoio direct; do
    hold "$datapath-$park" 2000 500 --datapath "$datapath" --park "$park"
  done
done
hold busy 2000 2000
