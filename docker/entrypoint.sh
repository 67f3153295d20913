#!/usr/bin/env bash
# Starts one process of the dataflow, as the bytewax Helm chart and our StatefulSet call it; with arguments, runs them.
#
# bytewax.run reads BYTEWAX_* itself: workers, and the process number from pod and StatefulSet names. The state of the
# flow is in memory: the flow restores it from S3 when it starts and keeps a copy there, so no volume is needed.
if [ -z "${BASH_VERSION:-}" ]; then
  exec bash "$0" "$@"
fi
set -euo pipefail

. "${VENV:-/venv}/bin/activate"
if [ "$#" -gt 0 ]; then
  exec "$@"
fi

export BYTEWAX_SNAPSHOT_INTERVAL="${BYTEWAX_SNAPSHOT_INTERVAL:-${PKM_SNAPSHOT_SECONDS:-5}}"
# The one recovery store is copied as a whole, so it need not keep older epochs for other stores to catch up.
export BYTEWAX_RECOVERY_BACKUP_INTERVAL="${BYTEWAX_RECOVERY_BACKUP_INTERVAL:-0}"
memory=/dev/shm/pkm/recovery
export BYTEWAX_RECOVERY_DIRECTORY="${BYTEWAX_RECOVERY_DIRECTORY:-${PKM_RECOVERY_DIR:-$memory}}"
case "$BYTEWAX_RECOVERY_DIRECTORY" in
  /dev/shm/*) ;;
  *)
    # The chart's volume is shared by all replicas, and state on it would be older than the state on S3.
    echo "entrypoint: $BYTEWAX_RECOVERY_DIRECTORY is not in memory; using $memory and S3" >&2
    BYTEWAX_RECOVERY_DIRECTORY=$memory
    ;;
esac

# With the API server on, bytewax ends when it can't write its description of the dataflow here; the chart's folder
# exists only beside its own web server.
cache="${BYTEWAX_DATAFLOW_API_CACHE_PATH:-}"
if [ -z "$cache" ] || [ ! -w "$cache" ]; then
  export BYTEWAX_DATAFLOW_API_CACHE_PATH=/dev/shm/pkm-api
  mkdir -p "$BYTEWAX_DATAFLOW_API_CACHE_PATH"
fi
# bytewax takes any value for yes, "false" too.
if [ "${BYTEWAX_DATAFLOW_API_ENABLED:-}" = "false" ]; then
  unset BYTEWAX_DATAFLOW_API_ENABLED
fi
if [ "${BYTEWAX_KEEP_CONTAINER_ALIVE:-false}" = "true" ]; then
  echo "entrypoint: keepAlive is not supported: it would hide that the flow has ended" >&2
fi

cd "${BYTEWAX_WORKDIR:-.}"
# exec: Python becomes process 1, where the flow's handler of SIGTERM closes sources and sinks.
exec python -m bytewax.run "${BYTEWAX_PYTHON_FILE_PATH:-flows.knowledge:flow}"
