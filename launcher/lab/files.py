"""A cluster's folders and configuration files on disk."""

import secrets
import shutil
from pathlib import Path

from launcher.lab.config import cgroup_conf, gres_conf, hosts_file, slurm_conf
from launcher.lab.plan import Plan, write_plan
from sparse_pretrain.files import write_text


def write_files(plan: Plan) -> None:
    """Write a plan's folders and configuration files."""
    for name in ("state", "spool", "log", "processes", "munge"):
        # Nothing of a cluster that was here before, except its logs.
        if name != "log":
            shutil.rmtree(plan.folder / name, ignore_errors=True)
        (plan.folder / name).mkdir(parents=True, exist_ok=True)
    key = plan.folder / "munge" / "key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    write_plan(plan)
    write_text(plan.configuration, slurm_conf(plan))
    write_text(plan.folder / "cgroup.conf", cgroup_conf())
    write_text(plan.folder / "gres.conf", gres_conf(plan))
    write_text(plan.hosts, hosts_file(plan, Path("/etc/hosts").read_text(encoding="utf-8")))
