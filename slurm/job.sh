# Functions of the batch scripts, which source this file after `set -euo pipefail`.
# shellcheck shell=bash

LRRUNNER_MAX_REQUEUES=${LRRUNNER_MAX_REQUEUES:-20} LRRUNNER_WARNING_S=120 # --signal of the batch scripts

# The run directory of this job: run.dir= or run.resume= of the user, else one named after the job's id. A requeued job has
# the same id, so it finds what it saved and resumes.
#   sets directory, and arguments (those for lrrunner)
choose_run() {
    local argument resumes=
    directory=$LRRUNNER_RUNS/slurm-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}
    arguments=()
    for argument in "$@"; do
        case $argument in
        run.dir=*) directory=${argument#run.dir=} ;;
        run.resume=*) directory=${argument#run.resume=} resumes=yes ;;
        *) arguments+=("$argument") ;;
        esac
    done
    if [ -n "$resumes" ]; then arguments+=("run.resume=$directory"); else arguments+=("$(run_override "$directory")"); fi
}

# run.dir=..., or run.resume=... where a previous attempt of this job has begun.
run_override() {
    if [ -n "${SLURM_RESTART_COUNT:-}" ] && { [ -e "$1/config.yaml" ] || [ -e "$1/ledger.jsonl" ]; }; then
        echo "run.resume=$1"
    else
        echo "run.dir=$1"
    fi
}

run_state() { sed -n 's/^  "state": "\(.*\)",*$/\1/p' "$1/status.json" 2>/dev/null || true; }

# Number of ranks of a node: its GPUs, or the tasks requested for it.
ranks_per_node() {
    local tasks=${SLURM_NTASKS:-$SLURM_JOB_NUM_NODES} # unset where no number of tasks was requested
    echo "${SLURM_GPUS_ON_NODE:-${SLURM_NTASKS_PER_NODE:-$((tasks / SLURM_JOB_NUM_NODES))}}"
}

use_cpus_without_gpus() {
    if [ -z "${SLURM_GPUS_ON_NODE:-}" ]; then
        export ACCELERATE_USE_CPU=true OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    fi
}

# Steps that a run, or the jobs of a batch, have recorded.
num_recorded() {
    { find "$1" -maxdepth 2 \( -name records.csv -o -name trial_records.csv \) -exec tail -q -n +2 {} + 2>/dev/null || true; } | wc -l
}

# Whether a job may requeue itself: not more often than LRRUNNER_MAX_REQUEUES, and only with progress since the last time,
# else it would do so for ever. Each time is a line of .slurm_requeues: the steps recorded by then.
may_requeue() {
    local history=$1/.slurm_requeues last=0 count=0 recorded
    recorded=$(num_recorded "$1")
    if [ -e "$history" ]; then last=$(tail -n 1 "$history") count=$(wc -l <"$history"); fi
    if [ "$recorded" -le "$last" ]; then
        echo "warned by the scheduler, but not requeued: no step was recorded in $1 since the job began or was requeued;" \
            "give it more time (--time), then run.resume=$1"
        return 1
    fi
    if [ "$count" -ge "$LRRUNNER_MAX_REQUEUES" ]; then
        echo "warned by the scheduler, but not requeued: it has been $count times (LRRUNNER_MAX_REQUEUES);" \
            "give it more time (--time), then run.resume=$1"
        return 1
    fi
    echo "$recorded" >>"$history"
}

# Say it where the warning comes as soon as the job has begun. The format is [days-][[hours:]minutes:]seconds.
say_short_limit() {
    local limit days=0 hours minutes seconds
    limit=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%l 2>/dev/null) || return 0
    limit=${limit// /}
    [[ $limit =~ ^([0-9]+-)?[0-9:]+$ ]] || return 0 # UNLIMITED, for example
    case $limit in *-*) days=${limit%%-*} limit=${limit#*-} ;; esac
    IFS=: read -r seconds minutes hours < <(tr : '\n' <<<"$limit" | tac | paste -s -d :)
    seconds=$((10#$seconds + 60 * (10#${minutes:-0} + 60 * (10#${hours:-0} + 24 * 10#$days))))
    if [ "$seconds" -le "$LRRUNNER_WARNING_S" ]; then
        echo "the time limit of $seconds s leaves no time before the warning, $LRRUNNER_WARNING_S s before its end:" \
            "this job may end before its first step; give it more time (--time)"
    fi
}

# Run a job step, forward the scheduler's warning to its ranks, and requeue the job once they have saved.
#   supervise DIRECTORY srun ...
supervise() {
    local run=$1 warned= step code=0
    shift
    say_short_limit
    # accelerate launch forwards only the signals that it handles, and kills ranks that do not end in time.
    export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2 PET_SHUTDOWN_TIMEOUT=$LRRUNNER_SAVE_WITHIN_S
    trap 'warned=yes; scancel --signal=USR2 "$SLURM_JOB_ID"' USR2
    trap ':' TERM # Slurm signals the ranks itself; this shell waits for them
    "$@" &
    step=$!
    while :; do
        wait "$step" && code=0 || code=$?
        kill -0 "$step" 2>/dev/null || break
    done
    if [ -n "$warned" ] && [ "$code" != 0 ] && [ "$(run_state "$run")" != finished ] && may_requeue "$run"; then
        echo "warned by the scheduler: requeued, to resume $run"
        scontrol requeue "$SLURM_JOB_ID" && sleep 60
    fi
    case $(run_state "$run") in
    finished) return 0 ;;
    killed) return 143 ;;
    esac
    return "$code"
}

# One sweep over all nodes of the job, with one launcher on each node.
#   sweep_on_all_nodes DIRECTORY ARGUMENTS ...
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
    if [ "$num_processes" = 1 ]; then # a launcher of one rank would die of a signal without forwarding it
        supervise "$run" srun --ntasks=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" python -m lrrunner "$@"
        return
    fi
    launcher=(accelerate launch --multi_gpu --num_machines "$SLURM_JOB_NUM_NODES" --num_processes "$num_processes"
        --main_process_ip "$head" --main_process_port "$port" --mixed_precision no --dynamo_backend no)
    # SLURM_NODEID is expanded on each node.
    # shellcheck disable=SC2016
    supervise "$run" srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" \
        bash -c 'number=$1; shift; exec "${@:1:number}" --machine_rank "$SLURM_NODEID" -m lrrunner "${@:number+1}"' \
        bash "${#launcher[@]}" "${launcher[@]}" "$@"
}
