#!/usr/bin/env bash
# Install what a SLURM cluster on this machine needs: SLURM's daemons and commands, munge, and `ip`.
# Debian and Ubuntu; as root, or with a sudo that asks nothing. The packages' own services are not started.
set -euo pipefail

packages=(slurmctld slurmd slurm-client munge iproute2)
programs=(slurmctld slurmd sbatch munged ip)
export PATH="$PATH:/usr/sbin:/sbin"

say() { printf 'slurm: %s\n' "$*"; }

is_installed() { command -v "${programs[@]}" >/dev/null 2>&1 && (($(command -v "${programs[@]}" | wc -l) == ${#programs[@]})); }

# Exit code 3: SLURM is missing and this script may not, or cannot, install it.
give_up() {
    say "$*" >&2
    exit 3
}

if is_installed; then
    exit 0
fi
command -v apt-get >/dev/null ||
    give_up "not installed, and there is no apt-get here; install SLURM's daemons and munge by your system's means"
as_root=()
if (($(id -u) != 0)); then
    as_root=(sudo -n)
    sudo -n true 2>/dev/null ||
        give_up "not installed, and installing needs root: sudo apt-get install --no-install-recommends ${packages[*]}"
fi

# A package's script would start a slurmd without a configuration and a munged that nobody asked for. Debian
# asks this program first; one that is there already (containers have it) stays.
policy=/usr/sbin/policy-rc.d
remove_policy() { "${as_root[@]}" rm -f "$policy"; }
if [ ! -e "$policy" ]; then
    trap remove_policy EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod +x "$policy"
fi

say "installing ${packages[*]}"
log=$(mktemp)
install_packages() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}" \
        >"$log" 2>&1
}
# The list of packages may be missing or old: fetched only when needed, for it takes longest.
if ! install_packages; then
    "${as_root[@]}" apt-get update >"$log" 2>&1 || true
    if ! install_packages; then
        tail -n 10 "$log" >&2
        give_up "apt-get could not install them; its last lines are above, all of them in $log"
    fi
fi
rm -f "$log"
say "installed in ${SECONDS} s"
