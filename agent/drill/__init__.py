"""``drill``: the kit on a cluster, a pod deleted, a node withdrawn by a marked fault, a training killed; a report."""
