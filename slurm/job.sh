# What the batch scripts share; sourced by them. They keep `set -euo pipefail`.
# shellcheck shell=bash

# Where this job's run is, and whether it goes on: words `run.dir=` and `run.resume=` of the user choose the directory, else
# the job's id does. A requeued job has the same id and finds what it saved.
#   sets words (the overrides for lrrunner) and directory
choose_run() {
    local word resumes=
    directory=$LRRUNNER_RUNS/slurm-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}
    words=()
    for word in "$@"; do
        case $word in
        run.dir=*) directory=${word#run.dir=} ;;
        run.resume=*) directory=${word#run.resume=} resumes=yes ;;
        *) words+=("$word") ;;
        esac
    done
    if [ -n "$resumes" ]; then words+=("run.resume=$directory"); else words+=("$(run_word "$directory")"); fi
}

# run.dir=..., or run.resume=... where an earlier life of this job has begun.
run_word() {
    if [ -n "${SLURM_RESTART_COUNT:-}" ] && { [ -e "$1/config.yaml" ] || [ -e "$1/ledger.jsonl" ]; }; then
        echo "run.resume=$1"
    else
        echo "run.dir=$1"
    fi
}

run_state() { sed -n 's/^  "state": "\(.*\)",*$/\1/p' "$1/status.json" 2>/dev/null || true; }

# Ranks of a node: its GPUs, or the tasks that were asked for on it.
ranks_per_node() {
    local tasks=${SLURM_NTASKS:-$SLURM_JOB_NUM_NODES} # unset where no number of tasks was asked for
    echo "${SLURM_GPUS_ON_NODE:-${SLURM_NTASKS_PER_NODE:-$((tasks / SLURM_JOB_NUM_NODES))}}"
}

use_cpus_without_gpus() {
    if [ -z "${SLURM_GPUS_ON_NODE:-}" ]; then
        export ACCELERATE_USE_CPU=true OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    fi
}

# Run a step, pass the scheduler's warning on to its ranks, and put the job back into the queue once they have saved.
#   supervise DIRECTORY srun ...
supervise() {
    local run=$1 warned= step code=0
    shift
    # A launcher passes on only what it handles, and ends what does not end by itself in time.
    export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2 PET_SHUTDOWN_TIMEOUT=$LRRUNNER_SAVE_WITHIN_S
    trap 'warned=yes; scancel --signal=USR2 "$SLURM_JOB_ID"' USR2
    trap ':' TERM # Slurm tells the ranks itself; this shell waits for them
    "$@" &
    step=$!
    while :; do
        wait "$step" && code=0 || code=$?
        kill -0 "$step" 2>/dev/null || break
    done
    if [ -n "$warned" ] && [ "$code" != 0 ] && [ "$(run_state "$run")" != finished ]; then
        echo "warned by the scheduler: back into the queue, to go on from $run"
        scontrol requeue "$SLURM_JOB_ID" && sleep 60
    fi
    case $(run_state "$run") in
    finished) return 0 ;;
    killed) return 143 ;;
    esac
    return "$code"
}

# One sweep over all nodes of the job, with one launcher a node.
#   sweep_on_all_nodes DIRECTORY overrides ...
sweep_on_all_nodes() {
    local run=$1 head num_processes port launcher
    shift
    if [ "$(run_state "$run")" = finished ]; then
        echo "$run is finished"
        return 0
    fi
    read -r head _ < <(scontrol show hostnames "$SLURM_JOB_NODELIST") # machine 0 of the rendezvous
    num_processes=$((SLURM_JOB_NUM_NODES * $(ranks_per_node)))
    port=$((20000 + (SLURM_JOB_ID + 7 * ${SLURM_RESTART_COUNT:-0}) % 20000))
    if [ "$num_processes" = 1 ]; then # a launcher of one rank would die of a signal without passing it on
        supervise "$run" srun --ntasks=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" python -m lrrunner "$@"
        return
    fi
    launcher=(accelerate launch --multi_gpu --num_machines "$SLURM_JOB_NUM_NODES" --num_processes "$num_processes"
        --main_process_ip "$head" --main_process_port "$port" --mixed_precision no --dynamo_backend no)
    # The number of a node is known only there.
    # shellcheck disable=SC2016
    supervise "$run" srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" \
        bash -c 'number=$1; shift; exec "${@:1:number}" --machine_rank "$SLURM_NODEID" -m lrrunner "${@:number+1}"' \
        bash "${#launcher[@]}" "${launcher[@]}" "$@"
}
