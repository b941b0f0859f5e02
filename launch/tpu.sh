#!/usr/bin/env bash
# Cloud TPU slices, from nothing to a running job and back to nothing.
#
#   launch/tpu.sh up --name=cr --zone=us-east5-a --type=v6e-8 --spot -- \
#       python -m crjax.train --config=configs/grpo_7b.py --distributed
#
#   create  ask for the slice (a queued resource)   start   the job, everywhere
#   wait    until it is there                       logs    of one worker
#   setup   code of --commit and packages           status  queue and workers
#   stop    the job saves and ends; still costs     delete  ends the costs
#   up      create, wait, setup, start; then watch, and do it again after a
#           preemption or a dead machine, until the job is done
#
# Every step may be repeated. --dry-run prints the commands and runs none.
#   --slices=N     N slices, data parallel between them
#   --reserved     from a reservation; --spot from spare capacity, 3 times cheaper
#   --commit=REF   what runs (default HEAD; uncommitted changes stay at home)
#   --env-file=F   NAME=value lines that only the job sees (HF_TOKEN, ...)
#   --project=P  --version=RUNTIME   where, and which system image
#   --slice=I  --worker=I  --lines=N  whose log, and how much of it
#   --then-delete  after the job is done (up)
set -euo pipefail

POLL=${CRJAX_POLL:-30}        # Seconds between two looks.
PATIENCE=${CRJAX_PATIENCE:-10}  # Failing looks in a row before a new slice.
TRIES=${CRJAX_TRIES:-5}       # Of a connection that is lost.
name='' zone='' type='' project='' version='' slices=1 commit=HEAD env_file=''
tier='' slice=0 worker=0 lines=100 then_delete='' dry=''

die() { echo "tpu: $*" >&2; exit 2; }
say() { echo "tpu: $*" >&2; }

usage() { sed -n '2,/^set -e/{/^set -e/!p}' "$0" | sed 's/^# \{0,1\}//'; }

[ $# -gt 0 ] || { usage; exit 2; }
verb=$1
shift
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --commit=*) commit=${1#*=} ;;
    --env-file=*) env_file=${1#*=} ;;
    --slice=*) slice=${1#*=} ;;
    --worker=*) worker=${1#*=} ;;
    --lines=*) lines=${1#*=} ;;
    --spot) tier=--spot ;;
    --reserved) tier=--reserved ;;
    --then-delete) then_delete=1 ;;
    --dry-run) dry=1 ;;
    --) shift; break ;;
    *) die "unknown option $1; launch/tpu.sh alone lists them" ;;
  esac
  shift
done

need() {
  local option
  for option in "$@"; do
    [ -n "${!option}" ] || die "$verb needs --$option"
  done
}

run() {  # Runs a command, or shows it.
  if [ -n "$dry" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

tpus() {  # gcloud's queued resources; ssh and scp to them are alpha commands.
  local group=(compute tpus queued-resources "$1" "$name")
  case $1 in ssh|scp) group=(alpha compute tpus queued-resources "$1") ;; esac
  shift
  run gcloud "${group[@]}" "$@" --zone="$zone" ${project:+--project="$project"}
}

runtime() {
  case $type in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) die "no runtime known for --type=$type (v5litepod-N, v5p-N or v6e-N);\
 give --version" ;;
  esac
}

state() {  # ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...; absent.
  local out
  if out=$(dry='' tpus describe --format='value(state.state)' 2>&1); then
    echo "$out"
  else
    case $out in
      *NOT_FOUND*|*'not found'*) echo absent ;;
      *) say "$out"; echo unknown ;;
    esac
  fi
}

patiently() {  # COMMAND...: again, where a connection was lost (255).
  local try code
  for ((try = 1; ; try++)); do
    code=0
    "$@" || code=$?
    [ "$code" -eq 255 ] && [ "$try" -lt "$TRIES" ] || return "$code"
    say "connection lost, try $((try + 1)) of $TRIES"
    sleep $((try * POLL / 10))
  done
}

on_all() {  # A shell command on every worker of every slice.
  patiently tpus ssh "$name" --node=all --worker=all --command="$1"
}

to_all() {  # A file to every worker.
  patiently tpus scp "$1" "$name:$2" --node=all --worker=all
}

sha() { git rev-parse --short=12 --verify --quiet "$commit^{commit}" ||
  die "--commit=$commit is no commit here"; }

create() {
  need name zone type
  local found nodes=(--node-id="$name") at
  at=${version:-$(runtime)} || exit 2
  found=absent
  [ -n "$dry" ] || found=$(state)
  case $found in
    absent) ;;
    SUSPENDED|SUSPENDING|FAILED) say "$name is $found: asks anew"; delete ;;
    unknown)
      say "cannot see $name; is gcloud logged in, and is the zone right?"
      return 1 ;;
    *) say "$name is there already: $found"; return ;;
  esac
  [ "$slices" -eq 1 ] || nodes=(--node-count="$slices" --node-prefix="$name")
  tpus create "${nodes[@]}" --accelerator-type="$type" \
    --runtime-version="$at" ${tier:+"$tier"} && return
  say "the request was refused (see above): check the quota of $type in $zone\
 (console: IAM & Admin > Quotas), or try --spot or another zone"
  return 1
}

await() {
  need name zone
  if [ -n "$dry" ]; then tpus describe --format='value(state.state)'; return; fi
  local found began=$SECONDS
  while true; do
    found=$(state)
    case $found in
      ACTIVE) say "$name is ACTIVE after $((SECONDS - began)) s"; return ;;
      FAILED|SUSPENDED|absent)
        say "$name is $found: $(tpus describe --format='value(state)' 2>&1)"
        return 1 ;;
    esac
    say "$name is $found since $((SECONDS - began)) s (interrupt at will:\
 the request stays; \`launch/tpu.sh delete\` withdraws it)"
    sleep "$POLL"
  done
}

setup() {
  need name zone
  local at folder archive
  at=$(sha) || exit 2
  [ -z "$env_file" ] || [ -r "$env_file" ] ||
    die "--env-file=$env_file cannot be read"
  git diff --quiet HEAD || say 'uncommitted changes stay at home'
  folder=$(mktemp -d)
  archive=$folder/crjax-$at.tgz
  run git archive --format=tgz --output="$archive" "$at"
  to_all "$archive" "crjax-$at.tgz" || return
  rm -rf "$folder"
  if [ -n "$env_file" ]; then  # Closed to others before anything is in it.
    on_all 'mkdir -p crjax && install -m 600 /dev/null crjax/env' &&
      to_all "$env_file" crjax/env || return
  fi
  on_all "tar -xzOf crjax-$at.tgz launch/worker.sh > crjax-worker.sh &&\
 CRJAX_EXTRA=tpu bash crjax-worker.sh setup $at crjax-$at.tgz"
}

start() {
  need name zone
  [ $# -gt 0 ] || die "$verb needs a command after --, for instance: \
-- python -m crjax.train --config=configs/grpo_7b.py --distributed"
  local at
  case $(tr '[:upper:]' '[:lower:]' <<< "$*") in
    *token=*|*secret=*|*password=*|*api_key=*)
      die 'a secret on a command line can be read by everyone: use --env-file' ;;
  esac
  at=$(sha) || exit 2
  on_all "CRJAX_EXTRA=tpu bash crjax-worker.sh start $at -- $(printf '%q ' "$@")"
}

logs() {
  need name zone
  patiently tpus ssh "$name" --node="$slice" --worker="$worker" \
    --command="bash crjax-worker.sh log $lines"
}

status() {
  need name zone
  local found
  if [ -z "$dry" ]; then
    found=$(state)
    echo "$name $found"
    [ "$found" = ACTIVE ] || return 0
  fi
  on_all 'bash crjax-worker.sh status'
}

stop() { need name zone; on_all 'bash crjax-worker.sh stop'; }

delete() {
  need name zone
  if [ -z "$dry" ] && [ "$(state)" = absent ]; then
    say "$name is gone: it costs nothing"
    return
  fi
  tpus delete --force --quiet
}

launch() {  # From whatever there is to a running job.
  create && await && setup && start "$@"
}

look() {  # One word on the job: going, done, failed, stopped, idle, lost, gone.
  local found states
  found=$(state)
  case $found in
    ACTIVE) ;;
    unknown) echo unseen; return ;;
    *) echo gone; return ;;
  esac
  states=$(tpus ssh "$name" --node=all --worker=all \
    --command='bash crjax-worker.sh status' 2>&1) || { echo lost; return; }
  say "$(tr '\n' ';' <<< "$states")"
  case $states in
    *' failed'*) echo failed ;;
    *' stopped'*) echo stopped ;;
    *' lost'*|*' none'*) echo idle ;;
    *' running'*|*' waiting'*|*' starting'*) echo going ;;
    *) echo 'done' ;;
  esac
}

up() {
  local missed=0
  launch "$@" || die 'no job runs (see above); the same command tries again'
  [ -z "$dry" ] || return 0
  while true; do
    sleep "$POLL"
    case $(look) in
      going) missed=0 ;;
      'done') break ;;
      failed)
        lines=50 logs_now
        stop || true
        die 'the job failed: the log is above. The slice still costs:'\
' launch/tpu.sh delete' ;;
      stopped) say 'the job was stopped; the slice still costs'; return ;;
      idle) say 'a worker lost its job (a reboot?): starts it'
        { setup && start "$@"; } || say 'will try again' ;;
      unseen) say 'gcloud does not answer; looks again' ;;
      lost)
        missed=$((missed + 1))
        say "a worker does not answer, look $missed of $PATIENCE"
        if [ "$missed" -ge "$PATIENCE" ]; then
          say 'takes the machine for dead: asks for a new slice'
          delete
          missed=0
          launch "$@" || say 'will ask again'
        fi ;;
      gone)
        say 'the slice is gone (a preemption?): asks for another'
        launch "$@" || say 'will ask again' ;;
    esac
  done
  say 'the job is done'
  if [ -n "$then_delete" ]; then delete; else
    say "the slice still costs: launch/tpu.sh delete --name=$name --zone=$zone"
  fi
}

logs_now() {  # The end of the log, without following it.
  tpus ssh "$name" --node="$slice" --worker="$worker" \
    --command="tail -n $lines crjax/log" || true
}

case $verb in
  create|setup|start|logs|status|stop|delete|up) "$verb" "$@" ;;
  wait) await ;;
  *) die "unknown command $verb; launch/tpu.sh alone lists them" ;;
esac
