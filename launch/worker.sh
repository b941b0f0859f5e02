#!/usr/bin/env bash
# One machine's part of a job, whatever launched it. Not called by hand, except
# to look: `launch/worker.sh status`.
#
#   worker.sh setup [COMMIT ARCHIVE]    unpacks the code, installs the packages
#   worker.sh start COMMIT -- COMMAND   runs COMMAND, again after a failure
#   worker.sh stop                      SIGTERM, so that the run saves and ends
#   worker.sh status                    one line: none, running, done, ...
#   worker.sh log [LINES]               follows the log
#
# A COMMAND that ends with 0 is done, with 2 is wrong (a config, a file), with 3
# has diverged: all are final. Anything else (a preemption, a lost neighbour, a crash) is tried
# again: all machines of a job come back together, and the run resumes.
#
# Under $CRJAX_HOME (default ~/crjax): src/COMMIT the code, venv-HASH the
# packages of one requirements file, env secrets as NAME=value lines (mode 600),
# state and log of the job.
set -euo pipefail

HOME_DIR=${CRJAX_HOME:-$HOME/crjax}
RESTARTS=${CRJAX_RESTARTS:-10}    # In a row; an hour of running forgets them.
PAUSE=${CRJAX_PAUSE:-10}          # Seconds before the first restart; doubles.
GRACE=${CRJAX_GRACE:-300}         # Seconds that a stopped job has to save.
EXTRA=${CRJAX_EXTRA:-}            # tpu or cuda13: which jax to install.
GIVEN_PYTHON=${CRJAX_PYTHON:-}    # An interpreter that has everything already.

die() { echo "worker: $*" >&2; exit 1; }
say() { echo "[$(date -u +%FT%TZ) $(hostname)] $*"; }
note() { printf '%s\n' "$*" > "$HOME_DIR/state.tmp"; mv "$HOME_DIR/state.tmp" "$HOME_DIR/state"; }
# A pid can be another process after a reboot; a lock ends with its holders.
alive() { ! flock --shared --nonblock "$HOME_DIR/lock" true; }

venv_of() {  # The directory of the packages that a checkout asks for.
  local sum
  sum=$(cat "$1/requirements.txt" - <<< "$EXTRA" | sha256sum | cut -c1-12)
  echo "$HOME_DIR/venv-$sum"
}

python_of() {
  if [ -n "$GIVEN_PYTHON" ]; then echo "$GIVEN_PYTHON"
  else echo "$(venv_of "$1")/bin/python"; fi
}

make_venv() {  # python 3.11 or newer; TPU images still come with an older one.
  if python3 -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))'; then
    python3 -m venv "$1"
  else
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --seed --python 3.12 "$1"
  fi
}

setup() {
  local commit=$1 archive=$2 src=$HOME_DIR/src/$1 venv
  mkdir -p "$HOME_DIR/src"
  if [ ! -d "$src" ]; then
    rm -rf "$src.tmp" && mkdir "$src.tmp"
    tar -xzf "$archive" -C "$src.tmp" || die "$archive is damaged; copy it again"
    mv "$src.tmp" "$src"
  fi
  if [ -n "$GIVEN_PYTHON" ]; then
    say "ready: $commit with $GIVEN_PYTHON"
    return
  fi
  venv=$(venv_of "$src")
  if [ ! -e "$venv/ready" ]; then
    rm -rf "$venv"
    make_venv "$venv"
    "$venv/bin/python" -m pip install --quiet -r "$src/requirements.txt" \
      ${EXTRA:+"jax[$EXTRA]"}
    touch "$venv/ready"
  fi
  say "ready: $commit with $venv"
}

start() {
  local commit=$1 src=$HOME_DIR/src/$1
  shift
  [ "${1:-}" = -- ] && shift
  [ $# -gt 0 ] || die 'start needs a command after --'
  [ -d "$src" ] || die "no code of $commit here; run setup first"
  if alive; then
    [ "$(cat "$HOME_DIR/command")" = "$commit $*" ] || die \
      "another job runs here: $(cat "$HOME_DIR/command"); stop it first"
    say 'runs already'
    return
  fi
  printf '%s\n' "$commit $*" > "$HOME_DIR/command"
  note starting
  # A session of its own: it outlives the connection that started it.
  setsid nohup "$BASH" "$src/launch/worker.sh" supervise "$commit" -- "$@" \
    < /dev/null >> "$HOME_DIR/log" 2>&1 &
  echo $! > "$HOME_DIR/pid"
  while [ "$(cat "$HOME_DIR/state")" = starting ] &&
    kill -0 $! 2>/dev/null; do sleep 0.1; done
  say "started, log in $HOME_DIR/log"
}

supervise() {
  local commit=$1 failures=0 began code
  shift 2
  exec 9> "$HOME_DIR/lock"
  # Those who only look hold it too, for a moment.
  flock --timeout 10 9 || die 'a job runs here already'
  cd "$HOME_DIR/src/$commit"
  PATH="$(dirname "$(python_of "$PWD")"):$PATH"
  set -a
  # shellcheck source=/dev/null
  [ ! -e "$HOME_DIR/env" ] || . "$HOME_DIR/env"
  set +a
  stopping=''
  trap 'stopping=1; kill -TERM "$child" 2>/dev/null || true' TERM INT
  while true; do
    began=$SECONDS
    note "running, restart $failures, since $(date -u +%FT%TZ)"
    say "runs: $*"
    "$@" &
    child=$!
    # A trapped signal ends `wait` early; the child may still be saving.
    while true; do
      code=0
      wait "$child" || code=$?
      kill -0 "$child" 2>/dev/null || break
    done
    say "ended with $code"
    if [ -n "$stopping" ]; then note "stopped, code $code"; return; fi
    case $code in
      0) note 'done'; return ;;
      2) note "failed, code 2: wrong config or data, see the log"; return ;;
      3) note "failed, code 3: the run diverged, see the log"; return ;;
    esac
    if [ $((SECONDS - began)) -gt 3600 ]; then failures=0; fi
    failures=$((failures + 1))
    if [ "$failures" -gt "$RESTARTS" ]; then
      note "failed, code $code after $RESTARTS restarts"
      return
    fi
    note "waiting, restart $failures after code $code"
    sleep "$PAUSE" 9>&- & wait $! || true
    if [ -n "$stopping" ]; then note "stopped, code $code"; return; fi
    PAUSE=$((PAUSE < 150 ? PAUSE * 2 : 300))
  done
}

stop() {
  local pid left=$GRACE
  if ! alive; then say 'nothing runs here'; return; fi
  pid=$(cat "$HOME_DIR/pid")
  kill -TERM "$pid" 2>/dev/null || kill -TERM -- "-$pid"
  while alive; do
    if [ "$left" -le 0 ]; then
      kill -KILL -- "-$pid" 2>/dev/null || true
      note "stopped, killed after $GRACE s"
      break
    fi
    left=$((left - 1))
    sleep 1
  done
  say "$(cat "$HOME_DIR/state")"
}

status() {
  local state=none
  [ -e "$HOME_DIR/state" ] && state=$(cat "$HOME_DIR/state")
  case $state in
    running*|starting|waiting*) alive || state="lost, was: $state" ;;
  esac
  echo "$(hostname) $state"
}

mkdir -p "$HOME_DIR"
[ $# -gt 0 ] || die 'setup, start, stop, status or log?'
verb=$1
shift
case $verb in
  setup|start|supervise|stop|status) "$verb" "$@" ;;
  log) touch "$HOME_DIR/log"; exec tail -n "${1:-100}" -F "$HOME_DIR/log" ;;
  *) die "unknown command $verb: setup, start, stop, status or log" ;;
esac
