"""The text of a cluster's configuration files, from its plan."""

from launcher.lab.plan import MEMORY_MB, Plan

# Seconds after which a node that does not answer is DOWN.
NODE_TIMEOUT = 5
# Seconds for which a credential counts; a requeued job waits one second longer than that (121 s by default).
CREDENTIAL_SECONDS = 5
# Seconds between a preempted job's SIGTERM and its end.
GRACE_SECONDS = 30


def slurm_conf(plan: Plan) -> str:
    """Return slurm.conf: the partitions `main` and `urgent`, which may take nodes from `main`."""
    nodes = "\n".join(node_line(plan, node) for node in plan.node_names)
    every = ",".join(plan.node_names)
    return f"""# Written by launcher/lab for a cluster on one machine; nothing here suits a real one.
ClusterName=lab
SlurmctldHost={plan.controller_host}({plan.controller_address})
SlurmctldPort={plan.port}
SlurmUser={plan.user}
SlurmdUser={plan.user}
StateSaveLocation={plan.folder}/state
SlurmctldPidFile={plan.folder}/processes/slurmctld
SlurmctldLogFile={plan.log("slurmctld")}
SlurmdSpoolDir={plan.folder}/spool/%n
SlurmdPidFile={plan.folder}/spool/%n/slurmd
SlurmdLogFile={plan.folder}/log/%n.log
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={plan.munge_socket},cred_expire={CREDENTIAL_SECONDS}

# One machine, shared with everything else that runs on it: nothing is bound to cores or limited.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SlurmdParameters=config_overrides
MailProg=/bin/true

# Quick where a real cluster is patient.
SlurmdTimeout={NODE_TIMEOUT}
KillWait=5
MinJobAge=3600
ReturnToService=2
FirstJobId={plan.first_job}
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU={MEMORY_MB // plan.cpus}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{"GresTypes=gpu" if plan.gpus else ""}
{nodes}
PartitionName=main Nodes={every} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime={GRACE_SECONDS}
PartitionName=urgent Nodes={every} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def node_line(plan: Plan, node: str) -> str:
    """Return a node's line of slurm.conf."""
    gres = f" Gres=gpu:{plan.gpus}" if plan.gpus else ""
    return (
        f"NodeName={node} NodeAddr={plan.address(node)} NodeHostname={node} Port={plan.port + plan.number(node)} "
        f"CPUs={plan.cpus} RealMemory={MEMORY_MB}{gres} State=UNKNOWN"
    )


def cgroup_conf() -> str:
    """Return cgroup.conf: without this line slurmd looks for cgroups of version 2 and dies where there are none."""
    return "CgroupPlugin=cgroup/v1\n"


def gres_conf(plan: Plan) -> str:
    """Return gres.conf: a file has to stand for each GPU, and every Linux has these terminals."""
    if not plan.gpus:
        return ""
    return f"AutoDetect=off\nNodeName={','.join(plan.node_names)} Name=gpu File=/dev/tty[0-{plan.gpus - 1}]\n"


def hosts_file(plan: Plan, present: str) -> str:
    """Return /etc/hosts as the nodes see it: what is `present`, and the nodes' names."""
    added = "".join(f"{plan.address(node)} {node}\n" for node in plan.node_names)
    return f"{added}{present}"
