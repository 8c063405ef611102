# Makes .venv once and reuses it. Sourced by the other scripts, from the repository's root, with `project` set to what
# pip shall install: . or '.[dev]'.
# shellcheck shell=bash

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "scripts need Python 3.11 or newer, got $("$python" --version 2>&1 || echo "no $python"); set PYTHON=..." >&2
    exit 2
fi

has_cuda_torch() { "$1" -c 'import sys, torch; sys.exit(torch.version.cuda is None)' 2>/dev/null; }

if [ ! -x .venv/bin/python ]; then
    echo "making .venv ..."
    shared=()
    if has_cuda_torch "$python"; then shared=(--system-site-packages); fi # keep the CUDA torch that is there
    "$python" -m venv "${shared[@]}" .venv || {
        echo "python could not make .venv; on Debian: apt-get install python3-venv" >&2
        exit 2
    }
fi

stamp="$project $(cat pyproject.toml scripts/environment.sh | sha256sum)"
if ! grep -qxF "$stamp" .venv/lrrunner-stamps 2>/dev/null; then
    echo "installing lrrunner and what it needs into .venv (the first time takes a minute or two) ..."
    # one changing line on a terminal, nothing elsewhere; errors are shown
    show_last_line() {
        if [ ! -t 1 ]; then cat >/dev/null && return; fi
        while IFS= read -r line; do printf '\r\033[K  %.76s' "$line"; done
        printf '\r\033[K'
    }
    install() {
        .venv/bin/python -m pip --disable-pip-version-check install --progress-bar off "$@" | show_last_line
    }
    if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
        if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
            install 'torch>=2.6'
        else
            install torch==2.13.0 # first and pinned: the CPU build where there is one
        fi
    fi
    install 'setuptools>=77' wheel
    install --editable "$project"
    echo "$stamp" >>.venv/lrrunner-stamps
fi
export PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MLFLOW_DISABLE_TELEMETRY=${MLFLOW_DISABLE_TELEMETRY:-true}
