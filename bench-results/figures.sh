#!/usr/bin/env bash
# Every measure of bench-results/README.md, one after the other, and monoio's park against our own on
# both datapaths. About two hours on two quiet cores; the first argument runs one part alone:
#   figures.sh [compare | idle | parks | crash | many | siege]
# Build first: cargo build --release -p drover -p drover-loadtest --features drover-loadtest/peers
set -euo pipefail
cd "$(dirname "$0")/.."
loadtest=${LOADTEST:-target/release/drover-loadtest}

# A run that missed its goal has written its folder all the same: go on.
run() { "$loadtest" "$@" || echo "figures.sh: $* ended with $?" >&2; }

run_compare() { run compare; }
run_idle()    { for agents in 5000 10000; do run hold --agents "$agents" --duration 1s --rate 0 --idle 60s --name "idle-$agents"; done; }
run_parks() {
  for datapath in uring poll; do
    for park in monoio direct; do
      run hold --agents 2000 --duration 20s --rate 500 --name "$datapath-$park" \
        --serve-arg=--datapath "--serve-arg=$datapath" --serve-arg=--park "--serve-arg=$park"
    done
  done
}
run_crash() { run hold --agents 10000 --duration 5m --rate 100 --kill-server 1m --name crash; }
run_many()  { run hold --agents 100000 --duration 30m --rate 100 --name hold-100000; }
run_siege() { run siege; }

if [ $# -gt 0 ]; then "run_$1"; else run_compare; run_idle; run_parks; run_crash; run_many; run_siege; fi
"$loadtest" index
