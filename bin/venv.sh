# Sourced by the scripts beside it, which set `lock` to the lock file they need. Leaves a Python with all of it in
# .venv, and the working directory at the top of the project. Does next to nothing when the lock has not changed.
# A script may set `venv` to another folder, PYTHON to an interpreter, and `django_lock` to a lock of another Django.
# shellcheck shell=sh
: "${venv:=.venv}" "${django_lock:=}"

# Before the change of directory: where the caller meant it.
case ${HANDOFF_HOME:-/} in /*) ;; *) HANDOFF_HOME=$PWD/$HANDOFF_HOME && export HANDOFF_HOME ;; esac
cd -- "$(dirname -- "$0")/.."
# Without compiled modules every process takes twice as long to start.
unset PYTHONDONTWRITEBYTECODE

# Installs Debian packages as root in CI, else names them: missing "what for" package …
missing() {
    what=$1 && shift
    if [ "$(id -u)" = 0 ] && [ -n "${CI:-}" ] && command -v apt-get >/dev/null; then
        echo "$what: installing $*" >&2
        { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@"; } >&2
    else
        echo "$what is missing: apt install $*" >&2
        return 1
    fi
}

make_venv() {
    for python in "${PYTHON:-python3}" python3.13 python3.12 python3.11 ""; do
        [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || break
    done
    [ -n "$python" ] || { echo "Python 3.11 or later is missing: apt install python3" >&2; exit 1; }
    if command -v uv >/dev/null && uv --version >/dev/null 2>&1; then
        uv venv --quiet --allow-existing --python "$python" "$venv"
    else
        "$python" -c 'import ensurepip, venv' 2>/dev/null || missing "The module venv of Python" python3-venv || exit 1
        "$python" -m venv "$venv"
    fi
}

install_lock() {
    uv=
    if command -v uv >/dev/null && uv --version >/dev/null 2>&1; then
        uv=uv
    elif "$venv/bin/uv" --version >/dev/null 2>&1 ||
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.txt; then
        uv=$venv/bin/uv
    fi
    # Behind a proxy with a certificate of its own, uv needs the system's; where it reaches no index, because pip's
    # configuration is unknown to it, pip may.
    if [ -n "$uv" ]; then
        set -- "$uv" pip install --quiet --compile-bytecode --python "$venv/bin/python" --require-hashes -r "$lock"
        [ -z "$django_lock" ] || set -- "$@" --override "$django_lock"
        "$@" 2>/dev/null || UV_SYSTEM_CERTS=1 "$@" && return
    fi
    "$venv/bin/python" -c 'import pip' 2>/dev/null || "$venv/bin/python" -m ensurepip
    "$venv/bin/python" -m pip install --disable-pip-version-check --require-hashes -r "$lock"
    [ -z "$django_lock" ] ||
        "$venv/bin/python" -m pip install --disable-pip-version-check --require-hashes --no-deps -r "$django_lock"
}

is_installed() {
    for file in "$lock" $django_lock; do
        cmp -s "$file" "$venv/$file" || return 1
    done
    "$venv/bin/python" -c '' 2>/dev/null
}

if ! is_installed; then
    [ -z "$django_lock" ] || [ -f "$django_lock" ] || { echo "There is no $django_lock" >&2; exit 66; }
    mkdir -p "$venv"
    # Two scripts at once, in a fresh clone: the second waits for the first. Not `.lock`, which is uv's own.
    exec 9>"$venv/.installing"
    ! command -v flock >/dev/null || flock 9
    if ! is_installed; then
        echo "Installing what $lock names into $venv" >&2
        "$venv/bin/python" -c '' 2>/dev/null || make_venv
        install_lock
        # shellcheck disable=SC2086  # one name or none
        cp "$lock" $django_lock "$venv"
    fi
    exec 9>&-
fi

if ! "$venv/bin/python" -c 'import ctypes.util, sys; sys.exit(not ctypes.util.find_library("pango-1.0"))'; then
    missing "Pango, for PDF reports," libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0 fonts-dejavu-core || true
fi
