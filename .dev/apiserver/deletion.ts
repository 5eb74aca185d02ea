// Graceful deletion: what a delete marks, what it removes at once, and what it leaves to finalizers.
import {
  hasEnded,
  isSameJson,
  keyOf,
  type Obj,
  type Pod,
  TRACKING,
  timestamp,
  withFinalizers,
  withoutFinalizer,
} from "./resources.ts"
import type { Store } from "./store.ts"

export type Propagation = "Foreground" | "Background" | "Orphan"
interface Options {
  policy?: Propagation | undefined
  graceSeconds?: number | undefined
  dryRun?: boolean
}

/** Deletes, or marks for deletion. Answers the object where something still holds it (and always for a pod). */
export function deleteObject(store: Store, resource: string, prev: Obj, options: Options = {}): Obj | undefined {
  if (resource === "namespaces") return deleteNamespace(store, prev)
  if (resource === "pods") return deletePod(store, prev as Pod, options)
  const { policy, dryRun = false } = options
  const { finalizers = [], deletionTimestamp, generation } = prev.metadata
  const hadForeground = finalizers.includes("foregroundDeletion")
  const hadOrphan = finalizers.includes("orphan")
  const orphans = policy === "Orphan" || (!policy && (hadOrphan || (resource === "jobs" && !hadForeground)))
  const isForeground = policy === "Foreground" || (!policy && hadForeground)
  const kept = finalizers.filter((f) => f !== "foregroundDeletion" && f !== "orphan")
  if (orphans) kept.push("orphan")
  if (isForeground) kept.push("foregroundDeletion")
  if (!kept.length) {
    if (!dryRun) store.remove(resource, prev)
    return undefined
  }
  let next = withFinalizers(prev, kept)
  if (!deletionTimestamp) {
    const marks = { deletionTimestamp: timestamp(store.now()), deletionGracePeriodSeconds: 0 }
    next = { ...next, metadata: { ...next.metadata, ...marks, ...(generation && { generation: generation + 1 }) } }
  }
  if (dryRun) return next
  return isSameJson(next, prev) ? prev : store.write(resource, next, prev)
}

export function deletePod(store: Store, prev: Pod, { graceSeconds, dryRun = false }: Options = {}): Pod {
  const { deletionGracePeriodSeconds: now, deletionTimestamp, generation = 1 } = prev.metadata
  const isUnscheduled = !prev.spec.nodeName
  const wanted = graceSeconds ?? prev.spec.terminationGracePeriodSeconds ?? 30
  const grace = hasEnded(prev) || isUnscheduled ? 0 : wanted
  if (deletionTimestamp && grace >= (now ?? 0)) return prev
  const marks = { deletionTimestamp: timestamp(store.now() + grace * 1000), deletionGracePeriodSeconds: grace }
  const next = {
    ...prev,
    metadata: { ...prev.metadata, ...marks, ...(!deletionTimestamp && { generation: generation + 1 }) },
  }
  if (dryRun) return next
  const marked = store.write("pods", next, prev)
  if (grace === 0 && !marked.metadata.finalizers?.length) store.remove("pods", marked)
  return marked
}

function deleteNamespace(store: Store, prev: Obj): Obj {
  if (prev.metadata.deletionTimestamp) return prev
  const metadata = { ...prev.metadata, deletionTimestamp: timestamp(store.now()) }
  return store.write("namespaces", { ...prev, metadata, status: { phase: "Terminating" } }, prev)
}

/** Takes the Job controller's finalizer off a pod. */
export function untrack(store: Store, pod: Pod): Pod {
  const now = (store.objects.pods!.get(keyOf(pod)) ?? pod) as Pod
  if (!now.metadata.finalizers?.includes(TRACKING)) return now
  return store.save("pods", withoutFinalizer(now, TRACKING), now)
}
