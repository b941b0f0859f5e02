#!/usr/bin/env bash
# A job on machines that ssh reaches: GPU nodes without a scheduler.
#
#   launch/ssh.sh up --hosts=nodes.txt -- \
#       python -m crjax.train --config=configs/grpo_7b.py --distributed
#
# nodes.txt has one machine a line, as ssh names it; the first one leads, and
# the others must reach it at --port. One process a machine drives its GPUs.
#
#   setup   code of --commit and packages    start   the job, on all machines
#   status  of all   logs  of one (--worker) stop    the job saves and ends
#   up      setup and start
#
# Every step may be repeated. --dry-run prints the commands and runs none.
#   --extra=E      which jax: cuda13 (default), cuda12, or cpu for none
#   --commit=REF   what runs (default HEAD; uncommitted changes stay at home)
#   --env-file=F   NAME=value lines that only the job sees (HF_TOKEN, ...)
#   --lead=ADDR    of the first machine, where the others know it by another name
set -euo pipefail

hosts='' extra=cuda13 commit=HEAD env_file='' lead='' port=29400 worker=0
lines=100 dry=''

die() { echo "ssh: $*" >&2; exit 2; }
say() { echo "ssh: $*" >&2; }

usage() { sed -n '2,/^set -e/{/^set -e/!p}' "$0" | sed 's/^# \{0,1\}//'; }

[ $# -gt 0 ] || { usage; exit 2; }
verb=$1
shift
while [ $# -gt 0 ]; do
  case $1 in
    --hosts=*) hosts=${1#*=} ;;
    --extra=*) extra=${1#*=} ;;
    --commit=*) commit=${1#*=} ;;
    --env-file=*) env_file=${1#*=} ;;
    --lead=*) lead=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --worker=*) worker=${1#*=} ;;
    --lines=*) lines=${1#*=} ;;
    --dry-run) dry=1 ;;
    --) shift; break ;;
    *) die "unknown option $1; launch/ssh.sh alone lists them" ;;
  esac
  shift
done
[ "$extra" != cpu ] || extra=''
[ -n "$hosts" ] || die "$verb needs --hosts=FILE, one machine a line"
[ -r "$hosts" ] || die "--hosts=$hosts cannot be read"
mapfile -t machines < <(grep -v '^[[:space:]]*\(#\|$\)' "$hosts")
[ ${#machines[@]} -gt 0 ] || die "--hosts=$hosts names no machine"
[ -n "$lead" ] || lead=${machines[0]#*@}

run() { if [ -n "$dry" ]; then printf '%q ' "$@"; echo; else "$@"; fi; }

reach() {  # MACHINE COMMAND
  run ssh -o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=15 \
    "$1" "$2"
}

on_all() {  # A function of (number, machine), on all at once; 1 if one fails.
  local i pids=() failed=0
  for i in "${!machines[@]}"; do
    if [ -n "$dry" ]; then "$1" "$i" "${machines[i]}"; continue; fi
    "$1" "$i" "${machines[i]}" &
    pids+=($!)
  done
  for i in "${!pids[@]}"; do
    wait "${pids[i]}" || { say "${machines[i]}: $verb failed"; failed=1; }
  done
  return "$failed"
}

sha() { git rev-parse --short=12 --verify --quiet "$commit^{commit}" ||
  die "--commit=$commit is no commit here"; }

setup_one() {
  run scp -q "$archive" "$2:crjax-$at.tgz" || return
  if [ -n "$env_file" ]; then  # Closed to others before anything is in it.
    reach "$2" 'mkdir -p crjax && install -m 600 /dev/null crjax/env' &&
      run scp -q "$env_file" "$2:crjax/env" || return
  fi
  reach "$2" "tar -xzOf crjax-$at.tgz launch/worker.sh > crjax-worker.sh &&\
 CRJAX_EXTRA=$extra bash crjax-worker.sh setup $at crjax-$at.tgz"
}

setup() {
  at=$(sha) || exit 2
  [ -z "$env_file" ] || [ -r "$env_file" ] ||
    die "--env-file=$env_file cannot be read"
  git diff --quiet HEAD || say 'uncommitted changes stay at home'
  folder=$(mktemp -d)
  archive=$folder/crjax-$at.tgz
  run git archive --format=tgz --output="$archive" "$at"
  local code=0
  on_all setup_one || code=$?
  rm -rf "$folder"
  return "$code"
}

start_one() {
  reach "$2" "CRJAX_EXTRA=$extra bash crjax-worker.sh start $at -- env\
 JAX_COORDINATOR_ADDRESS=$lead:$port JAX_NUM_PROCESSES=${#machines[@]}\
 JAX_PROCESS_ID=$1 $command"
}

start() {
  [ $# -gt 0 ] || die "$verb needs a command after --, for instance: \
-- python -m crjax.train --config=configs/grpo_7b.py --distributed"
  case $(tr '[:upper:]' '[:lower:]' <<< "$*") in
    *token=*|*secret=*|*password=*|*api_key=*)
      die 'a secret on a command line can be read by everyone: use --env-file' ;;
  esac
  at=$(sha) || exit 2
  command=$(printf '%q ' "$@")
  on_all start_one
}

status_one() { reach "$2" 'bash crjax-worker.sh status'; }
stop_one() { reach "$2" 'bash crjax-worker.sh stop'; }
status() { on_all status_one; }
stop() { on_all stop_one; }
up() { setup && start "$@"; }
logs() {
  [ "$worker" -lt ${#machines[@]} ] ||
    die "--worker=$worker: there are ${#machines[@]} machines, from 0"
  reach "${machines[worker]}" "bash crjax-worker.sh log $lines"
}

case $verb in
  setup|start|status|logs|stop|up) "$verb" "$@" ;;
  *) die "unknown command $verb; launch/ssh.sh alone lists them" ;;
esac
