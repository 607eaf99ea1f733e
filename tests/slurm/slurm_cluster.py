"""A real Slurm on this machine for as long as a block or command lasts: `python tests/slurm/slurm_cluster.py COMMAND`.

    munged ── slurmctld on host ctl ── slurmd on hosts node1, node2, ...   all on the loopback interface

Every host is a namespace of processes, mounts and its name: `kill_node` ends all that runs there, as a loss of power
does. Nothing outlives the process that started the cluster, however that one ends. Needs root, Linux namespaces and the
Debian packages `PACKAGES`; where one is missing `Unavailable` says which, and the command ends with `SKIP_EXIT_CODE`.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PACKAGES = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
"""Debian package of each program."""
SKIP_EXIT_CODE = 77
START_SECONDS = 60
CPUS_PER_NODE = 8
"""Number of CPUs that Slurm is given, independent of the machine."""
GPUS_PER_NODE = 4
"""Number of GPUs that Slurm is given; they are empty files."""
LOST_AFTER_SECONDS = 10
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
_DIES_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
_HOST = ("unshare", "--fork", "--kill-child", "--pid", "--mount", "--mount-proc", "--uts")
_INIT = 'hostname "$1"; mount --bind "$2" /etc/hosts; shift 2; "$@" & while sleep 1; do wait; done'
"""The first process of a host: bash reaps what is orphaned there, so slurmd may be killed alone."""

CONFIG = """
ClusterName=ufork
SlurmctldHost=ctl(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/log/slurmctld
SlurmdPidFile={folder}/%n/slurmd.pid
SlurmdLogFile={folder}/log/%n
SlurmdSpoolDir={folder}/%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmdTimeout={lost_after}
KillWait={kill_wait}
MessageTimeout=5
TCPTimeout=2
GresTypes=gpu
PartitionName=train Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF
"""
KILL_WAIT_SECONDS = 10
"""Time that a preempted job has to save; Slurm's default is 30."""


class Unavailable(Exception):
    """Raised if this machine cannot run the cluster; the message says why."""


class Cluster:
    """`with Cluster(folder) as cluster`; the path of `folder` is short, since Unix sockets go below it."""

    def __init__(self, folder: Path, num_nodes: int = 3) -> None:
        self.folder = folder
        self.nodes = [f"node{number}" for number in range(1, num_nodes + 1)]
        self.environment = {**os.environ, "PATH": _PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Cluster":
        require_available()
        try:
            self._configure()
            self._start_munged()
            self._start_host("ctl", "slurmctld", "-D", "-c")
            for node in self.nodes:
                self._start_host(node, "slurmd", "-D", "-N", node)
            self._wait("idle nodes", lambda: all(self.state(node) == "idle" for node in self.nodes))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._processes):
            self._end(name)

    def run(self, *command: str) -> str:
        """Runs a command of Slurm and returns its output; it must succeed."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def run_on(self, node: str, *command: str) -> str:
        """Runs a command as `run` does, among the processes and mounts of a node."""
        return self.run("nsenter", "--target", str(self._first_process(node)), "--pid", "--mount", *command)

    def state(self, node: str) -> str:
        """Returns Slurm's state of a node: idle, mixed, down, ..."""
        return self.run("sinfo", "-h", "-n", node, "-p", "train", "-o", "%T")

    def kill_node(self, node: str) -> None:
        """Kills everything on the node, as a loss of power does."""
        self._end(node)

    def kill_slurmd(self, node: str) -> None:
        """Makes Slurm lose the node, while its processes keep running."""
        self.run_on(node, "kill", "-KILL", (self.folder / node / "slurmd.pid").read_text().strip())

    def start_node(self, node: str) -> None:
        """Restarts the node and waits until it accepts jobs."""
        self._end(node)
        self._start_host(node, "slurmd", "-D", "-N", node)
        self._wait(node, lambda: self.state(node) in ("idle", "mixed", "allocated"))

    def _configure(self) -> None:
        for name in ("munge", "state", "log", *self.nodes):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)  # munged refuses a socket that other users cannot reach
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost ctl {' '.join(self.nodes)}\n")
        first, *ports = _free_ports(len(self.nodes) + 1)
        config = CONFIG.format(
            port=first, folder=self.folder, lost_after=LOST_AFTER_SECONDS, kill_wait=KILL_WAIT_SECONDS
        )
        for node, port in zip(self.nodes, ports, strict=True):
            config += f"NodeName={node} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS_PER_NODE} RealMemory=1000"
            config += f" Gres=gpu:{GPUS_PER_NODE}\n"
        (self.folder / "slurm.conf").write_text(config)
        for number in range(GPUS_PER_NODE):
            (self.folder / f"gpu{number}").touch()
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-{GPUS_PER_NODE - 1}]\n")

    def _start_munged(self) -> None:
        munge = self.folder / "munge"
        files = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
        self._start("munged", "munged", "--foreground", f"--socket={munge / 'socket'}", *files)
        self._wait("munged", (munge / "socket").exists)

    def _start_host(self, host: str, *command: str) -> None:
        self._start(host, *_HOST, "bash", "-c", _INIT, "init", host, str(self.folder / "hosts"), *command)

    def _start(self, name: str, *command: str) -> None:
        with open(self.folder / "log" / f"{name}.out", "ab") as log:
            self._processes[name] = subprocess.Popen(
                [*_DIES_WITH_PARENT, *command],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _end(self, name: str) -> None:
        if process := self._processes.pop(name, None):
            process.kill()
            process.wait()

    def _first_process(self, host: str) -> int:
        pid = self._processes[host].pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def _wait(self, what: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not _succeeds(ready):
            assert time.monotonic() < deadline, f"{what} after {START_SECONDS} s: see {self.folder / 'log'}"
            time.sleep(0.2)


def require_available() -> None:
    """Raises `Unavailable` where this machine cannot run the cluster."""
    if os.geteuid() != 0:
        raise Unavailable("starting a Slurm cluster needs root")
    if missing := [package for program, package in PACKAGES.items() if not shutil.which(program, path=_PATH)]:
        raise Unavailable(f"no Slurm here: apt-get install --no-install-recommends {' '.join(missing)}")
    if subprocess.run([*_HOST, "true"], capture_output=True, check=False).returncode:
        raise Unavailable("virtual hosts need namespaces (unshare; in a container CAP_SYS_ADMIN)")


def _succeeds(ready: Callable[[], bool]) -> bool:
    try:
        return ready()
    except AssertionError:
        return False


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("command", nargs="*", default=["bash"], help="run with the cluster's sbatch and its kin")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        try:
            with Cluster(Path(folder), arguments.nodes) as cluster:
                return subprocess.run(arguments.command, env=cluster.environment, check=False).returncode
        except Unavailable as reason:
            print(reason, file=sys.stderr)
            return SKIP_EXIT_CODE


if __name__ == "__main__":
    sys.exit(main())
