#!/usr/bin/env bash
# Start a Slurm cluster of this one machine, to try --executor slurm: scripts/start_slurm.sh FOLDER
# The cluster ends with ctrl-C, or with the process that started it. All its files are in FOLDER.
# When FOLDER/ready exists:
#     export SLURM_CONF=FOLDER/slurm.conf; sinfo
# The script needs root and Debian's packages slurmctld, slurmd, slurm-client and munge.
set -euo pipefail

folder=$(realpath -m "${1:?"give a folder"}")
for program in munged slurmctld slurmd sinfo; do
    command -v "$program" >/dev/null || { echo "error: $program is not installed" >&2; exit 2; }
done
[ "$(id -u)" = 0 ] || { echo "error: only root can start slurmd" >&2; exit 2; }

started=()
end() {
    # Running steps outlive slurmd, so cancel their jobs first.
    timeout 5 scancel --full --signal=KILL --user=root 2>/dev/null || true
    timeout 5 bash -c 'while squeue --noheader | grep -q .; do sleep 0.2; done' 2>/dev/null || true
    kill "${started[@]}" 2>/dev/null || true
    sleep 0.5
    kill -KILL "${started[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$socket"
}

free_ports() {
    python3 <<'PYTHON'
import socket
held = [socket.socket(), socket.socket()]
for one in held:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in held))
PYTHON
}

mkdir -p "$folder"/{state,spool}
export SLURM_CONF=$folder/slurm.conf
socket=$(mktemp -d /tmp/munge.XXXXXX)  # munged needs a socket whose parent folders everybody can enter
trap end EXIT
trap 'exit 0' INT TERM
dd if=/dev/urandom of="$socket/key" bs=64 count=1 status=none
chmod 755 "$socket"
chmod 600 "$socket/key"
chown -R munge:munge "$socket"
read -r controller_port node_port <<<"$(free_ports)"
cat >"$SLURM_CONF" <<CONF
ClusterName=here
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$controller_port
SlurmdPort=$node_port
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$socket/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
KillWait=2
SchedulerParameters=sched_interval=1,sched_min_interval=0
SlurmctldDebug=info
SlurmdDebug=info
NodeName=node NodeAddr=127.0.0.1 CPUs=4 RealMemory=4000
PartitionName=all Nodes=node Default=YES MaxTime=INFINITE State=UP
CONF

setpriv --reuid=munge --regid=munge --clear-groups \
    munged --foreground --socket="$socket/socket" --key-file="$socket/key" \
    --pid-file="$socket/pid" --log-file="$socket/log" --seed-file="$socket/seed" &
started+=($!)
for _ in $(seq 50); do [ -S "$socket/socket" ] && break || sleep 0.1; done
slurmctld -D -c &>"$folder/slurmctld.out" &
started+=($!)
slurmd -D -c -N node &>"$folder/slurmd.out" &
started+=($!)
for _ in $(seq 150); do
    if timeout 5 sinfo --noheader --format=%T 2>/dev/null | grep -qx idle; then
        touch "$folder/ready"
        echo "ready: export SLURM_CONF=$SLURM_CONF"
        while kill -0 "${started[@]}" 2>/dev/null; do
            kill -0 "$PPID" 2>/dev/null || exit 0  # the process that started this script has ended
            sleep 1 &
            wait $!
        done
        echo "error: a daemon ended; see $folder/*.log" >&2
        exit 1
    fi
    sleep 0.2
done
echo "error: the cluster did not start; see $folder/*.log" >&2
exit 1
