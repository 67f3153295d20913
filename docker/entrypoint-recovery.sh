#!/usr/bin/env bash
# The Helm chart runs this before the flow when its recovery is on, to create stores on a volume. Ours are in memory
# and restored from S3 by the flow itself, so there is nothing to create.
echo "entrypoint-recovery: the volume is not used; set configuration.recovery.enabled=false" >&2
