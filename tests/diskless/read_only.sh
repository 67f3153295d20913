#!/bin/sh
# Runs a command as a user without a name or a home where nothing but /dev/shm can be written to: `read_only.sh COMMAND…`.
# To be started by root within namespaces of its own: `unshare --mount --pid --fork --kill-child --mount-proc`.
set -eu
mount --make-rprivate /
umask 000
mount -t tmpfs -o size="${MEMORY:-1g}",mode=1777 tmpfs /dev/shm
while read -r _ place kind _; do
  case "$kind $place" in
    "tmpfs /dev/shm" | proc\ * | sysfs\ * | devpts\ * | cgroup* | mqueue\ *) ;;
    *) mount -o remount,bind,ro "$place" ;;
  esac
done < /proc/self/mounts
# Reading is allowed everywhere, because a checkout may lie in root's home; writing nowhere but in memory.
exec setpriv --reuid 65532 --regid 65532 --clear-groups --no-new-privs \
  --inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search \
  env --unset=HOME --unset=USER --unset=LOGNAME "$@"
